//! The running service: starts inbox, processor, follow-up and the listeners, connects them, and
//! stops them in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::alerts::{self, Alerting};
use crate::change_log;
use crate::error_chain::error_chain;
use crate::followup::FollowUp;
use crate::graph::Graph;
use crate::heard::Heard;
use crate::http::listener::{connection_limit, serve};
use crate::http::webhook::Webhook;
use crate::http::{Shown, admin_router, public_router};
use crate::inbox::{Capturing, inbox};
use crate::meta::codes::WatchedCodes;
use crate::meta::interest::Interest;
use crate::metrics::{ChangeMetrics, Metrics};
use crate::processor::Processor;
use crate::progress::Progress;
use crate::sending::{SendingAgain, sending_again};
use crate::store::{self, Database, MigrateError, Pool};
use crate::woken::Woken;
use crate::{retention, self_check};

/// The longest time that [`Service::stop`] takes. An embedded database stops afterwards, and both
/// together take at most 20 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// Connections to the admin listener, which serves people and probes.
const ADMIN_CONNECTIONS_LIMIT: usize = 64;
/// Connections that may wait to be accepted. A peer for which there is no room retries only after a
/// second.
const ACCEPT_BACKLOG: u32 = 4096;
/// The time between two attempts to reach an unavailable database.
const MIGRATE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// An error that stays the same is logged again after this time.
const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// The settings of a service.
#[derive(Debug)]
pub struct Settings {
    /// The database. It may be unavailable at the start.
    pub database: Database,
    /// The public address.
    pub listen: SocketAddr,
    /// The admin address.
    pub admin_listen: SocketAddr,
    /// The token of the admin listener. Without a token, the admin address must be loopback.
    pub admin_token: Option<SecretString>,
    /// The app secrets that sign callbacks.
    pub app_secrets: Vec<SecretString>,
    /// The token that Meta sends when it verifies the callback URL.
    pub verify_token: SecretString,
    /// The Graph API client.
    pub graph: Graph,
    /// The codes of the failures to record.
    pub codes: WatchedCodes,
    /// The callbacks to keep byte for byte.
    pub capturing: Capturing,
    /// The time after which captures, deliveries, checks and quarantine are deleted.
    pub retention: Duration,
    /// Whom to tell.
    pub alerting: Alerting,
}

/// A service that runs until [`stop`](Self::stop).
#[derive(Debug)]
pub struct Service {
    /// The address of the public listener.
    pub address: SocketAddr,
    /// The address of the admin listener.
    pub admin_address: SocketAddr,
    pools: [Pool; 2],
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// A listener cannot be bound to its address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl Service {
    /// Starts the service, which listens at once. While the database does not answer, callbacks
    /// about lockouts get 503. As soon as it answers, its tables are migrated.
    ///
    /// # Errors
    /// An address is in use, or does not belong to this machine.
    pub async fn start(settings: Settings) -> Result<Self, ListenError> {
        let public = bind(settings.listen)?;
        let admin = bind(settings.admin_listen)?;
        let address = local_address(&public, settings.listen)?;
        let admin_address = local_address(&admin, settings.admin_listen)?;

        let stop = CancellationToken::new();
        let db = settings.database.pool();
        let pages = settings.database.pages_pool();
        let (woken, progress) = (Woken::default(), Progress::default());
        let metrics = Metrics::new();
        let (inbox, inbox_task) = inbox(
            settings.database.clone(),
            woken.clone(),
            progress.clone(),
            metrics.inbox.clone(),
        );
        let interest = Interest::new(settings.codes.clone());
        let (sent_watch, sending_again) = sending_again();
        let heard = Heard::default();
        let processor = Processor::new(
            settings.database.clone(),
            interest.clone(),
            settings.capturing,
            woken.clone(),
            progress.clone(),
            metrics.processor.clone(),
        );
        let webhook = Webhook::new(
            &settings.app_secrets,
            settings.verify_token,
            interest,
            (inbox, settings.capturing),
            (sent_watch, heard.clone()),
            metrics.webhook.clone(),
        );
        let graph = Arc::new(settings.graph);
        let follow_up = FollowUp::new(
            db.clone(),
            Arc::clone(&graph),
            woken.clone(),
            metrics.follow_up.clone(),
        );
        let roster = watch::Sender::new(Arc::new(settings.alerting.roster()));
        let shown = Shown {
            codes: settings.codes,
            roster: roster.subscribe(),
        };
        let admin_token = settings.admin_token.as_ref();
        let admin_router = admin_router(
            db.clone(),
            pages.clone(),
            admin_token,
            shown,
            metrics.clone(),
            progress.clone(),
        );
        let public_router = public_router(webhook.clone());
        let public = serve(public, public_router, connection_limit(), stop.clone());
        let admin = serve(admin, admin_router, ADMIN_CONNECTIONS_LIMIT, stop.clone());
        let primary = settings.database.clone().watch_primary(stop.clone());
        let migrated = CancellationToken::new();
        let alerts = alerts::run(
            db.clone(),
            settings.alerting,
            roster,
            progress,
            metrics.alerts.clone(),
            migrated.clone(),
            stop.clone(),
        );
        let background = Background {
            database: settings.database,
            db: db.clone(),
            processor,
            follow_up,
            sending_again,
            heard,
            graph,
            woken,
            retention: settings.retention,
            metrics: metrics.changes.clone(),
            migrated,
        };

        let mut tasks = JoinSet::new();
        tasks.spawn(webhook.log_refusals(stop.clone()));
        tasks.spawn(primary);
        tasks.spawn(public);
        tasks.spawn(admin);
        tasks.spawn(run_on_own_thread("inbox", inbox_task.run()));
        // From the start: that the database is away is told as well.
        tasks.spawn(alerts);
        tasks.spawn(background.run(stop.clone()));
        Ok(Self {
            address,
            admin_address,
            pools: [db, pages],
            stop,
            tasks,
        })
    }

    /// Returns when a task of the service has ended, which is a failure. The whole service should
    /// then stop: monitoring would notice a missing service, but not half a service.
    pub async fn wait_for_failure(&mut self) {
        let ended = self.tasks.join_next().await;
        error!(?ended, "a task of the service has ended unexpectedly");
    }

    /// Stops listening, waits for requests and look-ups in flight, and closes the database
    /// connections.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let finish = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    error!(%error, "a task of the service failed");
                }
            }
            for pool in self.pools {
                pool.close().await;
            }
        };
        if timeout(STOP_TIMEOUT, finish).await.is_err() {
            let seconds = STOP_TIMEOUT.as_secs();
            warn!("the service did not stop within {seconds} s");
        }
    }
}

/// Runs a task on a thread of its own. Every callback waits for the inbox, and on the shared
/// threads other requests would delay it after each answer of the database.
async fn run_on_own_thread(name: &str, task: impl Future<Output = ()> + Send + 'static) {
    let (sender, ended) = oneshot::channel();
    // A service that is dropped, and not stopped, leaves no thread with its connection behind.
    let dropped = CancellationToken::new();
    let _guard = dropped.clone().drop_guard();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        runtime.block_on(dropped.run_until_cancelled(task));
        let _ = sender.send(());
    });
    thread.expect("a thread");
    let _ = ended.await;
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

/// The work that needs the tables. It starts when they are migrated.
struct Background {
    database: Database,
    db: Pool,
    processor: Processor,
    follow_up: FollowUp,
    sending_again: SendingAgain,
    heard: Heard,
    graph: Arc<Graph>,
    woken: Woken,
    retention: Duration,
    metrics: ChangeMetrics,
    /// Cancelled when the tables are there.
    migrated: CancellationToken,
}

impl Background {
    async fn run(self, stop: CancellationToken) {
        let migrated = stop.run_until_cancelled(migrate_with_retries(&self.database));
        match migrated.await {
            Some(Ok(())) => {
                info!("the database is ready");
                self.migrated.cancel();
            }
            // Retries would not help. The end of this task ends the service.
            Some(Err(error)) => return error!("{error}"),
            None => return,
        }
        if let Ok(false) = store::bounded(store::is_durable(&self.db)).await {
            warn!(
                "the database runs with fsync off: \
                 a crash of its machine loses acknowledged callbacks"
            );
        }
        tokio::join!(
            run_on_own_thread("processor", self.processor.run(stop.clone())),
            self.follow_up.run(stop.clone()),
            self.sending_again.run(self.db.clone(), stop.clone()),
            self.heard.run(self.db.clone(), stop.clone()),
            self_check::run(self.db.clone(), self.graph, stop.clone()),
            change_log::run(self.db.clone(), self.woken, self.metrics, stop.clone()),
            retention::run(self.db, self.retention, stop)
        );
    }
}

/// Migrates once the database can be reached.
///
/// # Errors
/// No retry would help: the tables are of another build, or a pooler is too old.
async fn migrate_with_retries(database: &Database) -> Result<(), MigrateError> {
    let mut logged: Option<(String, Instant)> = None;
    while let Err(error) = database.migrate().await {
        if error.is_fatal() {
            return Err(error);
        }
        let error = error_chain(&error);
        let is_news = logged
            .as_ref()
            .is_none_or(|(before, at)| *before != error || at.elapsed() > LOG_REPEAT_INTERVAL);
        if is_news {
            error!("waiting for the database, lockouts get 503 until it answers: {error}");
            logged = Some((error, Instant::now()));
        }
        sleep(MIGRATE_RETRY_INTERVAL).await;
    }
    Ok(())
}
