//! The processes under test: each one is a real `serve`, with one proxied link to the database and
//! one to Graph.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockwatch::simulator::Simulator;
use reqwest::{RequestBuilder, Response};
use rustix::process::Signal;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::schedule::Link;
use crate::support::ACCESS_TOKEN;
use crate::support::process::Serve;
use crate::support::proxy::{LinkState, Proxy, Upstream};

/// The time within which `serve` promises to end after SIGTERM.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// A sequence of `serve` processes on the same links: a restart replaces the process.
pub struct Replica {
    database: Proxy,
    graph: Proxy,
    process: Mutex<ProcessInfo>,
    running: tokio::sync::Mutex<Option<Serve>>,
    log: Mutex<Vec<String>>,
}

/// The current process: its addresses, its id, and its state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    pub webhook: String,
    pub admin: String,
    pub pid: u32,
    /// The process got a signal to end, and its successor has not started yet.
    pub is_stopping: bool,
}

impl Replica {
    pub async fn start(database: PathBuf, simulator: &Simulator) -> Self {
        let url = simulator.url();
        let graph = url.strip_prefix("http://").unwrap().parse().unwrap();
        let replica = Self {
            database: Proxy::start(Upstream::Unix(database)).await,
            graph: Proxy::start(Upstream::Tcp(graph)).await,
            process: Mutex::default(),
            running: tokio::sync::Mutex::default(),
            log: Mutex::default(),
        };
        *replica.running.lock().await = Some(replica.start_process().await);
        replica
    }

    pub fn process(&self) -> ProcessInfo {
        self.process.lock().unwrap().clone()
    }

    /// Sends a request to a process. Returns `None` if the process ended before it answered; a
    /// running process must answer every request.
    pub async fn send(&self, process: &ProcessInfo, request: RequestBuilder) -> Option<Response> {
        match request.send().await {
            Ok(response) => Some(response),
            Err(error) => {
                assert!(
                    process.is_stopping || self.process() != *process,
                    "a running process does not answer: {error:?}"
                );
                None
            }
        }
    }

    pub fn set_link(&self, link: Link, state: LinkState) {
        match link {
            Link::Database => self.database.set(state),
            Link::Graph => self.graph.set(state),
        }
    }

    /// Ends the process with a signal and, after a pause, starts the next one.
    pub async fn restart(&self, signal: Signal, pause: Duration) {
        let mut running = self.running.lock().await;
        self.stop_process(running.take().unwrap(), signal).await;
        sleep(pause).await;
        *running = Some(self.start_process().await);
    }

    /// Ends the process with SIGTERM, without a successor.
    pub async fn stop(&self) {
        let serve = self.running.lock().await.take().unwrap();
        self.stop_process(serve, Signal::TERM).await;
    }

    /// The log lines that report a panic.
    pub fn panic_lines(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|line| line.contains("panicked"))
            .cloned()
            .collect()
    }

    async fn start_process(&self) -> Serve {
        let database = format!(
            "postgresql://lockwatch@{}/postgres?sslmode=disable",
            self.database.address
        );
        let graph = format!("http://{}", self.graph.address);
        let serve = spawn_blocking(move || {
            Serve::on_database(
                &database,
                &[
                    ("META_ACCESS_TOKEN", ACCESS_TOKEN),
                    ("META_GRAPH_URL", &graph),
                ],
            )
        });
        let serve = serve.await.unwrap();
        *self.process.lock().unwrap() = ProcessInfo {
            webhook: serve.webhook.clone(),
            admin: serve.admin.clone(),
            pid: serve.child.id(),
            is_stopping: false,
        };
        serve
    }

    async fn stop_process(&self, mut serve: Serve, signal: Signal) {
        self.process.lock().unwrap().is_stopping = true;
        let signalled = Instant::now();
        serve.signal(signal);
        let (status, log) = spawn_blocking(move || (serve.wait(), serve.whole_log()))
            .await
            .unwrap();
        self.log.lock().unwrap().extend(log);
        if signal == Signal::TERM {
            let took = signalled.elapsed();
            assert!(
                status.code() == Some(0) && took < SHUTDOWN_TIMEOUT,
                "SIGTERM: {status} after {took:?}"
            );
        }
    }
}

impl Drop for Replica {
    /// Prints the log if the test failed, because the log may show the reason.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let log = self.log.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut serve) = self.running.get_mut().take() {
            let _ = serve.child.kill();
            log.extend(serve.whole_log());
        }
        println!("log of the replica:\n{}", log.join("\n"));
    }
}
