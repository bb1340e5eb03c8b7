//! Raw HTTP bytes that no HTTP client would send.

use std::net::SocketAddr;
use std::time::Duration;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The answers of the server on one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The status of each answer, in order.
    pub statuses: Vec<u16>,
    /// True if the server would take another request.
    pub is_open: bool,
}

/// Sends bytes and waits for this number of answers. Then sends a further request, which shows
/// whether the connection is still open.
pub async fn exchange(address: SocketAddr, bytes: &[u8], answers: usize) -> Exchange {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may refuse the request and close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut received = Vec::new();
    let mut closed = false;
    while statuses(&received).len() < answers && !closed {
        closed = !receive(&mut stream, &mut received).await;
    }
    let _ = stream
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        .await;
    let is_open = loop {
        if memmem::find(&received, b"alive").is_some() {
            break true;
        }
        if !receive(&mut stream, &mut received).await {
            break false;
        }
    };
    let mut statuses = statuses(&received);
    if is_open {
        assert_eq!(
            statuses.pop(),
            Some(200),
            "the answer to the further request"
        );
    }
    Exchange { statuses, is_open }
}

/// Sends bytes and then the end of the stream. Returns the status of each answer.
pub async fn send_and_close(address: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut received = Vec::new();
    while receive(&mut stream, &mut received).await {}
    statuses(&received)
}

/// Reads more bytes. Returns `false` at the end of the stream, whether it was closed or reset.
async fn receive(stream: &mut TcpStream, into: &mut Vec<u8>) -> bool {
    let read = timeout(ANSWER_TIMEOUT, stream.read_buf(into)).await;
    let read = read.unwrap_or_else(|_| {
        panic!(
            "neither an answer nor the end of the stream: {}",
            into.escape_ascii()
        )
    });
    read.is_ok_and(|bytes| bytes > 0)
}

fn statuses(received: &[u8]) -> Vec<u16> {
    let status_at = |at| {
        std::str::from_utf8(received.get(at + 9..at + 12)?)
            .ok()?
            .parse()
            .ok()
    };
    memmem::find_iter(received, b"HTTP/1.")
        .filter_map(status_at)
        .collect()
}
