//! A line between two programs that can be slow, silent, broken or cut, as a network can.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// How the line is, for the connections there are and for new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Open,
    /// Every piece takes this long, either way.
    Slow(Duration),
    /// Nothing arrives, either way, and nobody is told. What is on its way arrives once the line is open.
    Silent,
    /// Every connection is reset at once.
    Reset,
    /// An answer that comes in a longer piece breaks off after so many bytes, and its connection is reset.
    Cut(usize),
}

/// Where the line leads.
#[derive(Debug, Clone)]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Listens on a loopback port of its own and carries every connection to the upstream, until dropped.
pub struct Proxy {
    pub address: SocketAddr,
    line: watch::Sender<Line>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(upstream: Upstream) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (line, how) = watch::channel(Line::Open);
        Self {
            address,
            line,
            accepting: tokio::spawn(accept(listener, upstream, how)),
        }
    }

    /// From now on the line is like this.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, upstream: Upstream, line: watch::Receiver<Line>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(client, upstream.clone(), line.clone()));
    }
}

/// Carries one connection to its end, gentle or not.
async fn carry(mut client: TcpStream, upstream: Upstream, mut line: watch::Receiver<Line>) {
    let _ = client.set_nodelay(true);
    let also = line.clone();
    let ended_well = tokio::select! {
        carried = exchange(&mut client, upstream, &also) => carried.is_ok(),
        _ = line.wait_for(|line| *line == Line::Reset) => false,
    };
    if !ended_well {
        let _ = client.set_zero_linger();
    }
}

async fn exchange(
    client: &mut TcpStream,
    upstream: Upstream,
    line: &watch::Receiver<Line>,
) -> io::Result<()> {
    match upstream {
        Upstream::Tcp(address) => both_ways(client, TcpStream::connect(address).await?, line).await,
        Upstream::Unix(path) => both_ways(client, UnixStream::connect(path).await?, line).await,
    }
}

async fn both_ways(
    client: &mut TcpStream,
    server: impl AsyncRead + AsyncWrite,
    line: &watch::Receiver<Line>,
) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = split(server);
    let questions = pump(from_client, to_server, line.clone(), false);
    let answers = pump(from_server, to_client, line.clone(), true);
    tokio::try_join!(questions, answers).map(|_| ())
}

/// One direction, its end included.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut line: watch::Receiver<Line>,
    answers: bool,
) -> io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut piece).await?;
        let how = *line.borrow();
        match how {
            Line::Open | Line::Reset | Line::Cut(_) => {}
            Line::Slow(pause) => sleep(pause).await,
            Line::Silent => {
                let _ = line.wait_for(|line| *line != Line::Silent).await;
            }
        }
        match how {
            Line::Cut(after) if answers && length > after => {
                to.write_all(&piece[..after]).await?;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            _ if length == 0 => return to.shutdown().await,
            _ => to.write_all(&piece[..length]).await?,
        }
    }
}
