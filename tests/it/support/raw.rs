//! HTTP by hand: bytes that no client would send.

use std::net::SocketAddr;
use std::time::Duration;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);

/// What the server made of the bytes on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The status of each answer, in order.
    pub answers: Vec<u16>,
    /// Whether it would take another request.
    pub open: bool,
}

/// Sends bytes, waits for so many answers, and then for the one to a further request of its own.
pub async fn exchange(address: SocketAddr, bytes: &[u8], answers: usize) -> Exchange {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may refuse and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut received = Vec::new();
    let mut closed = false;
    while statuses(&received).len() < answers && !closed {
        closed = !receive(&mut stream, &mut received).await;
    }
    let _ = stream
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let open = loop {
        if memmem::find(&received, b"alive").is_some() {
            break true;
        }
        if !receive(&mut stream, &mut received).await {
            break false;
        }
    };
    let mut answers = statuses(&received);
    if open {
        assert_eq!(answers.pop(), Some(200), "the further request's own");
    }
    Exchange { answers, open }
}

/// Sends bytes and then the end of the stream; returns the status of each answer.
pub async fn last_words(address: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut received = Vec::new();
    while receive(&mut stream, &mut received).await {}
    statuses(&received)
}

/// `false` at the end of the stream, however it comes.
async fn receive(stream: &mut TcpStream, into: &mut Vec<u8>) -> bool {
    let read = timeout(PATIENCE, stream.read_buf(into)).await;
    let read =
        read.unwrap_or_else(|_| panic!("neither an answer nor an end: {}", into.escape_ascii()));
    read.is_ok_and(|bytes| bytes > 0)
}

fn statuses(received: &[u8]) -> Vec<u16> {
    let status = |at| {
        std::str::from_utf8(received.get(at + 9..at + 12)?)
            .ok()?
            .parse()
            .ok()
    };
    memmem::find_iter(received, b"HTTP/1.")
        .filter_map(status)
        .collect()
}
