//! The processes under test: each a real `serve`, behind a line to the database and one to Graph.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockwatch::simulator::Simulator;
use reqwest::{RequestBuilder, Response};
use rustix::process::Signal;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::schedule::LineTo;
use crate::support::ACCESS_TOKEN;
use crate::support::process::Serve;
use crate::support::proxy::{Line, Proxy, Upstream};

/// What `serve` promises of SIGTERM.
const DRAINED_WITHIN: Duration = Duration::from_secs(20);

/// One `serve` after the other, on the same lines.
pub struct Replica {
    database: Proxy,
    graph: Proxy,
    life: Mutex<Life>,
    running: tokio::sync::Mutex<Option<Serve>>,
    logged: Mutex<Vec<String>>,
}

/// Where the process is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Life {
    pub webhook: String,
    pub admin: String,
    pub pid: u32,
    /// It was told to end, and there is no other one yet.
    pub ending: bool,
}

impl Replica {
    pub async fn start(database: PathBuf, simulator: &Simulator) -> Self {
        let graph = simulator
            .url()
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap();
        let replica = Self {
            database: Proxy::to(Upstream::Unix(database)).await,
            graph: Proxy::to(Upstream::Tcp(graph)).await,
            life: Mutex::default(),
            running: tokio::sync::Mutex::default(),
            logged: Mutex::default(),
        };
        *replica.running.lock().await = Some(replica.begin().await);
        replica
    }

    async fn begin(&self) -> Serve {
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
        let (webhook, admin) = (serve.webhook.clone(), serve.admin.clone());
        *self.life.lock().unwrap() = Life {
            webhook,
            admin,
            pid: serve.child.id(),
            ending: false,
        };
        serve
    }

    pub fn life(&self) -> Life {
        self.life.lock().unwrap().clone()
    }

    /// `None` where the process that was asked ended before it answered: one that lives answers everybody.
    pub async fn answer(&self, of: &Life, request: RequestBuilder) -> Option<Response> {
        match request.send().await {
            Ok(response) => Some(response),
            Err(error) => {
                assert!(
                    of.ending || self.life() != *of,
                    "no answer from a process that lives: {error:?}"
                );
                None
            }
        }
    }

    pub fn set(&self, to: LineTo, line: Line) {
        match to {
            LineTo::Database => self.database.set(line),
            LineTo::Graph => self.graph.set(line),
        }
    }

    /// Ends the process and, after a while, starts the next.
    pub async fn restart(&self, signal: Signal, after: Duration) {
        let mut running = self.running.lock().await;
        self.end(running.take().unwrap(), signal).await;
        sleep(after).await;
        *running = Some(self.begin().await);
    }

    /// Ends the process for good, gently.
    pub async fn stop(&self) {
        let serve = self.running.lock().await.take().unwrap();
        self.end(serve, Signal::TERM).await;
    }

    async fn end(&self, mut serve: Serve, signal: Signal) {
        self.life.lock().unwrap().ending = true;
        let told = Instant::now();
        serve.signal(signal);
        let (status, log) = spawn_blocking(move || (serve.wait(), serve.whole_log()))
            .await
            .unwrap();
        self.logged.lock().unwrap().extend(log);
        if signal == Signal::TERM {
            let took = told.elapsed();
            assert!(
                status.code() == Some(0) && took < DRAINED_WITHIN,
                "SIGTERM: {status} after {took:?}"
            );
        }
    }

    /// What its processes have logged that no process should.
    pub fn panics(&self) -> Vec<String> {
        self.logged
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.contains("panicked"))
            .cloned()
            .collect()
    }
}

impl Drop for Replica {
    /// Where a promise was broken, the log may tell why.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let logged = self
            .logged
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(mut serve) = self.running.get_mut().take() {
            let _ = serve.child.kill();
            logged.extend(serve.whole_log());
        }
        println!("what the replica logged:\n{}", logged.join("\n"));
    }
}
