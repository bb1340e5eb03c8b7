//! The load: open connections, and signed requests that are built before the clock starts.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::serve::APP_SECRET;

/// The content of the load's requests.
#[derive(Debug, Clone, Copy)]
pub enum Payload {
    /// A callback of this size without failures: most of what Meta sends.
    Quiet { bytes: usize },
    /// New failures, of this number of accounts in turn.
    Failures { per_request: u64, accounts: u64 },
}

impl Payload {
    /// Builds a signed request that differs from all before.
    pub fn build_request(self) -> Vec<u8> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match self {
            Self::Quiet { bytes } => {
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                let start = format!(
                    "{{\"object\":\"whatsapp_business_account\",\
                     \"entry\":[{{\"id\":\"{n}\",\"changes\":[]}}],\"x\":\""
                );
                let filler = "m".repeat(bytes.saturating_sub(start.len() + 2));
                signed_request(format!("{start}{filler}\"}}").as_bytes())
            }
            Self::Failures {
                per_request,
                accounts,
            } => {
                let first = NEXT.fetch_add(per_request, Ordering::Relaxed);
                let account = format!("10229012934{:04}", first / per_request % accounts);
                let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
                for n in first..first + per_request {
                    let message = message_id("16505551234", &format!("{n:018X}"));
                    callback = callback.failed(&account, "106540352242922", &message);
                }
                signed_request(&callback.into_body())
            }
        }
    }

    /// The number of failures in a request.
    pub fn failures(self) -> u64 {
        match self {
            Self::Quiet { .. } => 0,
            Self::Failures { per_request, .. } => per_request,
        }
    }
}

/// Returns a whole request with this body.
pub fn signed_request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /webhook HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         {SIGNATURE_HEADER}: {}\r\ncontent-length: {}\r\n\r\n",
        sign(APP_SECRET, body),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The outcome of a turn.
pub struct TurnOutcome {
    pub acknowledged: u64,
    pub refused: u64,
    pub elapsed: Duration,
}

/// Requests that are ready to be sent.
struct Requests {
    ready: Vec<Vec<u8>>,
    /// Quiet requests are sent again and again.
    are_reused: bool,
    next: usize,
}

impl Requests {
    fn take(&mut self) -> Option<Vec<u8>> {
        if !self.are_reused {
            return self.ready.pop();
        }
        self.next += 1;
        Some(self.ready[self.next % self.ready.len()].clone())
    }
}

/// Clients that keep their connections.
pub struct Load {
    payload: Payload,
    streams: Vec<TcpStream>,
    requests: RefCell<Requests>,
    /// Microseconds from the first byte sent to the last received.
    latencies: RefCell<Histogram<u64>>,
}

impl Load {
    /// Opens this number of connections to each of these addresses.
    pub async fn connect(
        addresses: &[&str],
        connections: usize,
        payload: Payload,
    ) -> io::Result<Self> {
        let mut streams = Vec::with_capacity(connections * addresses.len());
        for address in addresses.iter().cycle().take(connections * addresses.len()) {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let latencies =
            Histogram::new_with_max(60_000_000, 3).expect("three digits up to a minute");
        Ok(Self {
            payload,
            streams,
            requests: RefCell::new(Requests {
                ready: Vec::new(),
                are_reused: payload.failures() == 0,
                next: 0,
            }),
            latencies: RefCell::new(latencies),
        })
    }

    /// Builds requests until at least this number is ready. If they are reused, 500 are enough.
    pub fn prepare(&mut self, count: usize) {
        let requests = self.requests.get_mut();
        let count = if requests.are_reused {
            count.min(500)
        } else {
            count
        };
        while requests.ready.len() < count {
            requests.ready.push(self.payload.build_request());
        }
    }

    /// Sends on all connections until the time is over or no request is left.
    pub async fn run_turn(&mut self, duration: Duration) -> io::Result<TurnOutcome> {
        let started = Instant::now();
        let requests = &self.requests;
        requests.borrow_mut().next = 0;
        let latencies = &self.latencies;
        let clients = self.streams.iter_mut().map(async |stream| {
            let (mut acknowledged, mut refused) = (0_u64, 0_u64);
            let mut answer = Vec::with_capacity(512);
            while started.elapsed() < duration {
                let Some(request) = requests.borrow_mut().take() else {
                    break;
                };
                let sent = Instant::now();
                stream.write_all(&request).await?;
                match read_status(stream, &mut answer).await? {
                    200 => acknowledged += 1,
                    503 => refused += 1,
                    status => return Err(io::Error::other(format!("answered {status}"))),
                }
                let latency = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                latencies.borrow_mut().saturating_record(latency);
            }
            Ok((acknowledged, refused))
        });
        let counts = try_join_all(clients).await?;
        Ok(TurnOutcome {
            acknowledged: counts.iter().map(|(acknowledged, _)| acknowledged).sum(),
            refused: counts.iter().map(|(_, refused)| refused).sum(),
            elapsed: started.elapsed(),
        })
    }

    pub fn p99_ms(&self) -> f64 {
        self.latencies.borrow().value_at_quantile(0.99) as f64 / 1000.0
    }

    pub fn reset_latencies(&mut self) {
        self.latencies.get_mut().reset();
    }
}

/// Reads an answer to its end and returns its status.
pub async fn read_status(stream: &mut TcpStream, answer: &mut Vec<u8>) -> io::Result<u16> {
    answer.clear();
    loop {
        if stream.read_buf(answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = std::str::from_utf8(answer).map_err(io::Error::other)?;
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.split('\r').next()?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return head
                    .get(9..12)
                    .and_then(|status| status.parse().ok())
                    .ok_or(io::ErrorKind::InvalidData.into());
            }
        }
    }
}
