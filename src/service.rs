//! The running service: recorder, follow-up and listeners, wired together and taken down in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::followup::FollowUp;
use crate::graph::Graph;
use crate::http::webhook::Webhook;
use crate::http::{self, admin_router, connection_limit, public_router};
use crate::recorder::recorder;
use crate::store::{self, Database, Pool};

/// How long stopping may take in all.
const STOP: Duration = Duration::from_secs(18);
/// Connections to the admin listener: people and probes.
const ADMIN_CONNECTIONS: usize = 64;
/// How often an absent database is tried.
const RETRY: Duration = Duration::from_secs(1);

/// What the service needs.
#[derive(Debug)]
pub struct Settings {
    /// The database. It may be away for now.
    pub database: Database,
    /// The public address.
    pub listen: SocketAddr,
    /// The admin address.
    pub admin_listen: SocketAddr,
    /// The app secrets that sign callbacks.
    pub app_secrets: Vec<SecretString>,
    /// The verify token of the handshake.
    pub verify_token: SecretString,
    /// The Graph API client.
    pub graph: Graph,
}

/// A service that runs until [`stop`](Self::stop).
#[derive(Debug)]
pub struct Service {
    /// Where the public listener is.
    pub address: SocketAddr,
    /// Where the admin listener is.
    pub admin_address: SocketAddr,
    db: Pool,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
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
        let Settings { database, listen, admin_listen, app_secrets, verify_token, graph } = settings;
        let public = bind(listen).await?;
        let admin = bind(admin_listen).await?;
        let address = public.local_addr().map_err(|source| CannotListen { address: listen, source })?;
        let admin_address = admin.local_addr().map_err(|source| CannotListen { address: admin_listen, source })?;

        let stop = CancellationToken::new();
        let db = database.pool();
        let checks_due = Arc::new(Notify::new());
        let (recorder, recorder_task) = recorder(database.clone(), Arc::clone(&checks_due));
        let webhook = Webhook::new(&app_secrets, verify_token, recorder);
        let follow_up = FollowUp::new(db.clone(), Arc::new(graph), checks_due);

        let tasks = vec![
            tokio::spawn(webhook.clone().report_refusals(stop.clone())),
            tokio::spawn(http::serve(public, public_router(webhook), connection_limit(), stop.clone())),
            tokio::spawn(http::serve(admin, admin_router(db.clone()), ADMIN_CONNECTIONS, stop.clone())),
            tokio::spawn(recorder_task.run()),
            tokio::spawn(follow_up_when_migrated(database, db.clone(), follow_up, stop.clone())),
        ];
        Ok(Self { address, admin_address, db, stop, tasks })
    }

    /// Stops listening, lets requests and look-ups under way finish, and closes the database.
    pub async fn stop(self) {
        self.stop.cancel();
        let finish = async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    error!(%error, "a part of the service ended badly");
                }
            }
            self.db.close().await;
        };
        if timeout(STOP, finish).await.is_err() {
            warn!("not everything finished within {} s", STOP.as_secs());
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, CannotListen> {
    TcpListener::bind(address).await.map_err(|source| CannotListen { address, source })
}

async fn follow_up_when_migrated(database: Database, db: Pool, follow_up: FollowUp, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = migrate_patiently(&database) => {}
    }
    if let Ok(false) = store::bounded(store::is_durable(&db)).await {
        warn!("the database runs with fsync off: a crash of its machine loses what was acknowledged");
    }
    follow_up.run(stop).await;
}

async fn migrate_patiently(database: &Database) {
    let mut said = false;
    while let Err(error) = database.migrate().await {
        if !std::mem::replace(&mut said, true) {
            let mut causes = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                causes = format!("{causes}: {cause}");
                source = cause.source();
            }
            error!("waiting for the database, lockouts are answered with 503 until then: {causes}");
        }
        sleep(RETRY).await;
    }
    info!("the database is ready");
}
