//! A Graph server that sends raw bytes, for answers that no correct server would send.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// One step of a script. The steps run in order after the request is read; then the connection
/// closes.
#[derive(Debug, Clone)]
pub enum Step {
    /// Sends these bytes.
    SendBytes(Vec<u8>),
    /// Sends these bytes again and again until the client is gone, with a pause after each time.
    Repeat(Vec<u8>, Duration),
    /// Sends nothing and keeps the connection open.
    KeepOpen,
    /// Resets the connection (RST).
    Reset,
}

/// The script for a complete answer. `head` is the status and the headers, without the length.
pub fn answer(head: &str, body: impl AsRef<[u8]>) -> Vec<Step> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n", body.len());
    vec![Step::SendBytes([head.as_bytes(), body].concat())]
}

/// A server that runs a script for each node.
pub struct ScriptedServer {
    pub url: String,
    paths: Arc<Mutex<Vec<String>>>,
}

impl ScriptedServer {
    pub async fn start(scripts: HashMap<String, Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let paths = Arc::new(Mutex::new(Vec::new()));
        let server = Self {
            url,
            paths: Arc::clone(&paths),
        };
        let scripts = Arc::new(scripts);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (scripts, paths) = (Arc::clone(&scripts), Arc::clone(&paths));
                tokio::spawn(async move { run_script(socket, &scripts, &paths).await });
            }
        });
        server
    }

    /// The paths of the requests, in order of arrival.
    pub fn requested_paths(&self) -> Vec<String> {
        self.paths.lock().unwrap().clone()
    }
}

/// Returns `None` if the client has gone.
async fn run_script(
    mut socket: TcpStream,
    scripts: &HashMap<String, Vec<Step>>,
    paths: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(socket.read_u8().await.ok()?);
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split([' ', '?']).nth(1).unwrap();
    paths.lock().unwrap().push(path.to_owned());
    for step in scripts.get(path.rsplit('/').next().unwrap())? {
        match step {
            Step::SendBytes(bytes) => socket.write_all(bytes).await.ok()?,
            Step::Repeat(bytes, pause) => loop {
                socket.write_all(bytes).await.ok()?;
                sleep(*pause).await;
            },
            Step::KeepOpen => drop(socket.read(&mut [0]).await),
            Step::Reset => {
                // The bytes that were sent must arrive before the reset discards them.
                sleep(Duration::from_millis(100)).await;
                socket.set_zero_linger().unwrap();
                return None;
            }
        }
    }
    Some(())
}
