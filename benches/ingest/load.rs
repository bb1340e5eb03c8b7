//! The load: open connections, and signed requests that were made before the clock starts.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::meta::signature::{HEADER, sign};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::serve::APP_SECRET;

/// What a request carries.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Nothing for us, in this many bytes: most of what Meta sends.
    Quiet { bytes: usize },
    /// Failures that nobody has sent before, of so many accounts in turn.
    Failures { each: u64, accounts: u64 },
}

impl Kind {
    /// A signed request.
    pub fn request(self) -> Vec<u8> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match self {
            Self::Quiet { bytes } => {
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                let start = format!(
                    r#"{{"object":"whatsapp_business_account","entry":[{{"id":"{n}","changes":[]}}],"x":""#
                );
                let body = format!(
                    "{start}{}\"}}",
                    "m".repeat(bytes.saturating_sub(start.len() + 2))
                );
                request(body.as_bytes())
            }
            Self::Failures { each, accounts } => {
                let first = NEXT.fetch_add(each, Ordering::Relaxed);
                let account = format!("10229012934{:04}", first / each % accounts);
                let mut callback = StatusCallback::new().at(OffsetDateTime::now_utc());
                for n in first..first + each {
                    let message = message_id("16505551234", &format!("{n:018X}"));
                    callback = callback.failed(&account, "106540352242922", &message);
                }
                request(&callback.into_body())
            }
        }
    }

    /// Failures in a request.
    pub fn rows(self) -> u64 {
        match self {
            Self::Quiet { .. } => 0,
            Self::Failures { each, .. } => each,
        }
    }
}

/// A whole request with this body.
pub fn request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /webhook HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{HEADER}: {}\r\ncontent-length: {}\r\n\r\n",
        sign(APP_SECRET, body),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// What came of a turn.
pub struct Turn {
    pub acknowledged: u64,
    pub refused: u64,
    pub elapsed: Duration,
}

/// Clients that keep their connections.
pub struct Load {
    kind: Kind,
    streams: Vec<TcpStream>,
    stock: Vec<Vec<u8>>,
    /// Microseconds from the first byte sent to the last received.
    pub latencies: Histogram<u64>,
}

impl Load {
    /// Connects so many times to each of these addresses.
    pub async fn connect(addresses: &[&str], connections: usize, kind: Kind) -> io::Result<Self> {
        let mut streams = Vec::with_capacity(connections * addresses.len());
        for address in addresses.iter().cycle().take(connections * addresses.len()) {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let latencies =
            Histogram::new_with_max(60_000_000, 3).expect("three digits up to a minute");
        Ok(Self {
            kind,
            streams,
            stock: Vec::new(),
            latencies,
        })
    }

    /// Makes at least so many requests ready. Those that say nothing to us are used again and again.
    pub fn prepare(&mut self, requests: usize) {
        let enough = if self.kind.rows() == 0 {
            requests.min(500)
        } else {
            requests
        };
        self.stock
            .extend((self.stock.len()..enough).map(|_| self.kind.request()));
    }

    /// Sends on all connections until the time is over or nothing is left.
    pub async fn turn(&mut self, time: Duration) -> io::Result<Turn> {
        let started = Instant::now();
        let (again, stock) = (self.kind.rows() == 0, RefCell::new(&mut self.stock));
        let latencies = RefCell::new(&mut self.latencies);
        let next = RefCell::new(0_usize);
        let take = || {
            if !again {
                return stock.borrow_mut().pop();
            }
            let (stock, mut next) = (stock.borrow(), next.borrow_mut());
            *next += 1;
            Some(stock[*next % stock.len()].clone())
        };
        let clients = self.streams.iter_mut().map(async |stream| {
            let (mut acknowledged, mut refused) = (0_u64, 0_u64);
            let mut answer = Vec::with_capacity(512);
            while started.elapsed() < time {
                let Some(request) = take() else { break };
                let sent = Instant::now();
                stream.write_all(&request).await?;
                match read_status(stream, &mut answer).await? {
                    200 => acknowledged += 1,
                    503 => refused += 1,
                    status => return Err(io::Error::other(format!("answered {status}"))),
                }
                let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                latencies.borrow_mut().saturating_record(took);
            }
            Ok((acknowledged, refused))
        });
        let answers = try_join_all(clients).await?;
        let (acknowledged, refused) = answers
            .iter()
            .fold((0, 0), |sum, (yes, no)| (sum.0 + yes, sum.1 + no));
        Ok(Turn {
            acknowledged,
            refused,
            elapsed: started.elapsed(),
        })
    }
}

/// The status of an answer, which is read to its end.
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
