//! A Graph made of raw bytes, for what no proper server would ever answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// What a connection does once the request is read, one after the other; then it closes.
#[derive(Debug, Clone)]
pub enum Move {
    /// Sends these bytes.
    Say(Vec<u8>),
    /// Sends these bytes for as long as anyone listens, with a pause after each time.
    Repeat(Vec<u8>, Duration),
    /// Says nothing more, and stays.
    Hold,
    /// Breaks the connection off (RST).
    Reset,
}

/// A whole answer. `head` is the status and the headers, but for the length.
pub fn answer(head: &str, body: impl AsRef<[u8]>) -> Vec<Move> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len());
    vec![Move::Say([head.as_bytes(), body].concat())]
}

/// A listener that plays a script for each node.
pub struct Wire {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Wire {
    pub async fn start(scripts: HashMap<String, Vec<Move>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let wire = Self {
            url,
            asked: Arc::clone(&asked),
        };
        let scripts = Arc::new(scripts);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (scripts, asked) = (Arc::clone(&scripts), Arc::clone(&asked));
                tokio::spawn(async move { play(socket, &scripts, &asked).await });
            }
        });
        wire
    }

    /// The paths asked for, in order of arrival.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// `None` where the other side has gone.
async fn play(
    mut socket: TcpStream,
    scripts: &HashMap<String, Vec<Move>>,
    asked: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(socket.read_u8().await.ok()?);
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split([' ', '?']).nth(1).unwrap();
    asked.lock().unwrap().push(path.to_owned());
    for step in scripts.get(path.rsplit('/').next().unwrap())? {
        match step {
            Move::Say(bytes) => socket.write_all(bytes).await.ok()?,
            Move::Repeat(bytes, pause) => loop {
                socket.write_all(bytes).await.ok()?;
                sleep(*pause).await;
            },
            Move::Hold => drop(socket.read(&mut [0]).await),
            Move::Reset => {
                // What was said must not be lost with the connection.
                sleep(Duration::from_millis(100)).await;
                socket.set_zero_linger().unwrap();
                return None;
            }
        }
    }
    Some(())
}
