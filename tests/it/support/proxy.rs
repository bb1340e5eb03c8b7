//! A proxy between two programs that can make their connections slow, silent, reset or cut, as a
//! network can.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// The state of the link, for existing connections and for new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    Open,
    /// Every piece of data is delayed by this time, in both directions.
    Slow(Duration),
    /// No data arrives, in either direction, and neither side sees an error. Data in transit
    /// arrives when the link is open again.
    Silent,
    /// Every connection is reset immediately.
    Reset,
    /// A piece of an answer that is longer than this number of bytes is cut there, and its
    /// connection is reset.
    Cut(usize),
}

/// The address of the program behind the proxy.
#[derive(Debug, Clone)]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Listens on a loopback port of its own and forwards every connection to the upstream, until
/// dropped.
pub struct Proxy {
    pub address: SocketAddr,
    state: watch::Sender<LinkState>,
    accept_task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(upstream: Upstream) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, receiver) = watch::channel(LinkState::Open);
        Self {
            address,
            state,
            accept_task: tokio::spawn(accept(listener, upstream, receiver)),
        }
    }

    /// Sets the state of the link from now on.
    pub fn set(&self, state: LinkState) {
        self.state.send_replace(state);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

async fn accept(listener: TcpListener, upstream: Upstream, state: watch::Receiver<LinkState>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        connections.spawn(forward(client, upstream.clone(), state.clone()));
    }
}

/// Forwards one connection until it is closed or reset.
async fn forward(mut client: TcpStream, upstream: Upstream, mut state: watch::Receiver<LinkState>) {
    let _ = client.set_nodelay(true);
    let pump_state = state.clone();
    let was_closed = tokio::select! {
        forwarded = connect_and_copy(&mut client, upstream, &pump_state) => forwarded.is_ok(),
        _ = state.wait_for(|state| *state == LinkState::Reset) => false,
    };
    if !was_closed {
        let _ = client.set_zero_linger();
    }
}

async fn connect_and_copy(
    client: &mut TcpStream,
    upstream: Upstream,
    state: &watch::Receiver<LinkState>,
) -> io::Result<()> {
    match upstream {
        Upstream::Tcp(address) => {
            copy_both_ways(client, TcpStream::connect(address).await?, state).await
        }
        Upstream::Unix(path) => {
            copy_both_ways(client, UnixStream::connect(path).await?, state).await
        }
    }
}

async fn copy_both_ways(
    client: &mut TcpStream,
    server: impl AsyncRead + AsyncWrite,
    state: &watch::Receiver<LinkState>,
) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = split(server);
    let requests = pump(from_client, to_server, state.clone(), Direction::ToServer);
    let answers = pump(from_server, to_client, state.clone(), Direction::ToClient);
    tokio::try_join!(requests, answers).map(|_| ())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// Copies one direction, the end of the stream included.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<LinkState>,
    direction: Direction,
) -> io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut piece).await?;
        let current = *state.borrow();
        match current {
            LinkState::Open | LinkState::Reset | LinkState::Cut(_) => {}
            LinkState::Slow(pause) => sleep(pause).await,
            LinkState::Silent => {
                let _ = state.wait_for(|state| *state != LinkState::Silent).await;
            }
        }
        match current {
            LinkState::Cut(after) if direction == Direction::ToClient && length > after => {
                to.write_all(&piece[..after]).await?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            _ if length == 0 => return to.shutdown().await,
            _ => to.write_all(&piece[..length]).await?,
        }
    }
}
