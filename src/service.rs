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

use crate::followup::FollowUp;
use crate::graph::Graph;
use crate::http::webhook::Webhook;
use crate::http::{self, admin_router, connection_limit, public_router};
use crate::metrics::Metrics;
use crate::recorder::{Capturing, recorder};
use crate::retention;
use crate::store::{self, Database, Pool};
use crate::with_causes;

/// How long stopping may take; an embedded database stops after it, and both within 20 s.
const STOP: Duration = Duration::from_secs(12);
/// Connections to the admin listener: people and probes.
const ADMIN_CONNECTIONS: usize = 64;
/// Connections that may wait to be accepted. One that finds no room there is back only a second later.
const BACKLOG: u32 = 4096;
/// How often an absent database is tried.
const RETRY: Duration = Duration::from_secs(1);
/// And how often it is said again that it is absent.
const REPEAT_ERROR: Duration = Duration::from_secs(60);

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
pub struct CannotListen {
    address: SocketAddr,
    source: io::Error,
}

impl Service {
    /// Starts listening at once. Without a database callbacks about lockouts are answered with 503 until
    /// it comes; its tables are then brought up to date.
    ///
    /// # Errors
    /// An address is taken or not ours.
    pub async fn start(settings: Settings) -> Result<Self, CannotListen> {
        let Settings {
            database,
            listen,
            admin_listen,
            admin_token,
            app_secrets,
            verify_token,
            graph,
            capturing,
            retention,
        } = settings;
        let public = bind(listen)?;
        let admin = bind(admin_listen)?;
        let address = public.local_addr().map_err(|source| CannotListen {
            address: listen,
            source,
        })?;
        let admin_address = admin.local_addr().map_err(|source| CannotListen {
            address: admin_listen,
            source,
        })?;

        let stop = CancellationToken::new();
        let db = database.pool();
        let checks_due = Arc::new(Notify::new());
        let metrics = Metrics::new();
        let (recorder, recorder_task) = recorder(
            database.clone(),
            Arc::clone(&checks_due),
            metrics.recorder.clone(),
        );
        let webhook = Webhook::new(
            &app_secrets,
            verify_token,
            recorder,
            capturing,
            metrics.webhook.clone(),
        );
        let follow_up = FollowUp::new(
            db.clone(),
            Arc::new(graph),
            checks_due,
            metrics.follow_up.clone(),
        );

        let mut tasks = JoinSet::new();
        tasks.spawn(webhook.clone().report_refusals(stop.clone()));
        tasks.spawn(http::serve(
            public,
            public_router(webhook),
            connection_limit(),
            stop.clone(),
        ));
        let pages = database.pages_pool();
        let admin_router = admin_router(db.clone(), pages.clone(), admin_token.as_ref(), metrics);
        tasks.spawn(http::serve(
            admin,
            admin_router,
            ADMIN_CONNECTIONS,
            stop.clone(),
        ));
        tasks.spawn(on_a_thread_of_its_own("recorder", recorder_task.run()));
        tasks.spawn(work_when_migrated(
            database,
            db.clone(),
            follow_up,
            retention,
            stop.clone(),
        ));
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
    pub async fn broken(&mut self) {
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
        if timeout(STOP, finish).await.is_err() {
            warn!("not everything finished within {} s", STOP.as_secs());
        }
    }
}

/// Runs a task beside all others. On the common threads the recorder would wait for every request that is
/// being read each time the database answers, and everybody waits for the recorder.
async fn on_a_thread_of_its_own(name: &str, task: impl Future<Output = ()> + Send + 'static) {
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

fn bind(address: SocketAddr) -> Result<TcpListener, CannotListen> {
    let listen = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| CannotListen { address, source })
}

async fn work_when_migrated(
    database: Database,
    db: Pool,
    follow_up: FollowUp,
    retention: Duration,
    stop: CancellationToken,
) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = migrate_patiently(&database) => {}
    }
    if let Ok(false) = store::bounded(store::is_durable(&db)).await {
        warn!(
            "the database runs with fsync off: a crash of its machine loses what was acknowledged"
        );
    }
    tokio::join!(
        follow_up.run(stop.clone()),
        retention::run(db, retention, stop)
    );
}

async fn migrate_patiently(database: &Database) {
    let mut said: Option<(String, Instant)> = None;
    while let Err(error) = database.migrate().await {
        let error = with_causes(&error);
        if said
            .as_ref()
            .is_none_or(|(before, at)| *before != error || at.elapsed() > REPEAT_ERROR)
        {
            error!("waiting for the database, lockouts are answered with 503 until then: {error}");
            said = Some((error, Instant::now()));
        }
        sleep(RETRY).await;
    }
    info!("the database is ready");
}
