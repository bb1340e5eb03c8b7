//! The running service: recorder, follow-up and listeners, wired together and taken down in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::error_chain::error_chain;
use crate::followup::FollowUp;
use crate::graph::Graph;
use crate::http::listener::{connection_limit, serve};
use crate::http::webhook::Webhook;
use crate::http::{admin_router, public_router};
use crate::metrics::Metrics;
use crate::recorder::{Capturing, recorder};
use crate::retention;
use crate::store::{self, Database, Pool};

/// Stopping may take this long. An embedded database stops after it, and both within 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// Connections to the admin listener: people and probes.
const ADMIN_CONNECTIONS_LIMIT: usize = 64;
/// Connections that may wait to be accepted. A peer that finds no room there retries only after a second.
const ACCEPT_BACKLOG: u32 = 4096;
/// The pause between two attempts to reach an absent database.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The same error is logged again after this time.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// What the service needs.
#[derive(Debug)]
pub struct Settings {
    /// The database. It may be away for now.
    pub database: Database,
    /// The public address.
    pub listen: SocketAddr,
    /// The admin address.
    pub admin_listen: SocketAddr,
    /// The token of the admin listener. Without one it must be a loopback address.
    pub admin_token: Option<SecretString>,
    /// The app secrets that sign callbacks.
    pub app_secrets: Vec<SecretString>,
    /// The verify token of the handshake.
    pub verify_token: SecretString,
    /// The Graph API client.
    pub graph: Graph,
    /// Which callbacks to keep byte for byte.
    pub capturing: Capturing,
    /// How long captures, deliveries, checks and quarantine stay.
    pub retention: Duration,
}

/// A service that runs until [`stop`](Self::stop).
#[derive(Debug)]
pub struct Service {
    /// Where the public listener is.
    pub address: SocketAddr,
    /// Where the admin listener is.
    pub admin_address: SocketAddr,
    pools: [Pool; 2],
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl Service {
    /// Starts listening at once. Without a database callbacks about lockouts are answered with 503 until
    /// it comes; its tables are then brought up to date.
    ///
    /// # Errors
    /// An address is taken or not ours.
    pub async fn start(settings: Settings) -> Result<Self, ListenError> {
        let public = bind(settings.listen)?;
        let admin = bind(settings.admin_listen)?;
        let address = local_address(&public, settings.listen)?;
        let admin_address = local_address(&admin, settings.admin_listen)?;

        let stop = CancellationToken::new();
        let db = settings.database.pool();
        let pages = settings.database.pages_pool();
        let checks_due = Arc::new(Notify::new());
        let metrics = Metrics::new();
        let (recorder, recorder_task) = recorder(
            settings.database.clone(),
            Arc::clone(&checks_due),
            metrics.recorder.clone(),
        );
        let webhook = Webhook::new(
            &settings.app_secrets,
            settings.verify_token,
            recorder,
            settings.capturing,
            metrics.webhook.clone(),
        );
        let graph = Arc::new(settings.graph);
        let follow_up = FollowUp::new(db.clone(), graph, checks_due, metrics.follow_up.clone());
        let admin_token = settings.admin_token.as_ref();
        let admin_router = admin_router(db.clone(), pages.clone(), admin_token, metrics);
        let public_router = public_router(webhook.clone());
        let public = serve(public, public_router, connection_limit(), stop.clone());
        let admin = serve(admin, admin_router, ADMIN_CONNECTIONS_LIMIT, stop.clone());
        let background = Background {
            database: settings.database,
            db: db.clone(),
            follow_up,
            retention: settings.retention,
        };

        let mut tasks = JoinSet::new();
        tasks.spawn(webhook.report_refusals(stop.clone()));
        tasks.spawn(public);
        tasks.spawn(admin);
        tasks.spawn(run_on_own_thread("recorder", recorder_task.run()));
        tasks.spawn(background.run(stop.clone()));
        Ok(Self {
            address,
            admin_address,
            pools: [db, pages],
            stop,
            tasks,
        })
    }

    /// Waits until a part of the service ends that should not: half a service is worse than none, since
    /// whoever watches it would not notice.
    pub async fn wait_for_failure(&mut self) {
        let ended = self.tasks.join_next().await;
        error!(?ended, "a part of the service ended by itself");
    }

    /// Stops listening, lets requests and look-ups under way finish, and closes the database.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let finish = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    error!(%error, "a part of the service ended badly");
                }
            }
            for pool in self.pools {
                pool.close().await;
            }
        };
        if timeout(STOP_TIMEOUT, finish).await.is_err() {
            warn!(
                "not everything finished within {} s",
                STOP_TIMEOUT.as_secs()
            );
        }
    }
}

/// Runs a task beside all others. On the common threads the recorder would wait for every request that is
/// being read each time the database answers, and everybody waits for the recorder.
async fn run_on_own_thread(name: &str, task: impl Future<Output = ()> + Send + 'static) {
    let (ended, end) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        runtime.block_on(task);
        let _ = ended.send(());
    });
    thread.expect("a thread");
    let _ = end.await;
}

fn local_address(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, ListenError> {
    let local = listener.local_addr();
    local.map_err(|source| ListenError { address, source })
}

fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(ACCEPT_BACKLOG)
    };
    listen().map_err(|source| ListenError { address, source })
}

/// The work that needs the tables: it starts once they are up to date.
struct Background {
    database: Database,
    db: Pool,
    follow_up: FollowUp,
    retention: Duration,
}

impl Background {
    async fn run(self, stop: CancellationToken) {
        let migrated = stop.run_until_cancelled(migrate_with_retries(&self.database));
        if migrated.await.is_none() {
            return;
        }
        if let Ok(false) = store::bounded(store::is_durable(&self.db)).await {
            warn!(
                "the database runs with fsync off: a crash of its machine loses acknowledged callbacks"
            );
        }
        tokio::join!(
            self.follow_up.run(stop.clone()),
            retention::run(self.db, self.retention, stop)
        );
    }
}

async fn migrate_with_retries(database: &Database) {
    let mut logged: Option<(String, Instant)> = None;
    while let Err(error) = database.migrate().await {
        let error = error_chain(&error);
        let is_news = logged
            .as_ref()
            .is_none_or(|(before, at)| *before != error || at.elapsed() > REPEAT_INTERVAL);
        if is_news {
            error!("waiting for the database, lockouts are answered with 503 until then: {error}");
            logged = Some((error, Instant::now()));
        }
        sleep(RETRY_INTERVAL).await;
    }
    info!("the database is ready");
}
