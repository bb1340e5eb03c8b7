//! The connection to Postgres: hosts, pools, timeouts.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::error::StoreError;
use super::url::{self, BadDatabaseUrl, ParsedUrl};

/// Connections for the service's own work, except for inbox and processor, which have their own.
const POOL_CONNECTIONS: u32 = 8;
/// Connections for pages. Readers of pages, however many, do not take connections from the work.
const PAGES_POOL_CONNECTIONS: u32 = 4;

/// The longest time that a connection may take to roll back an open transaction of its last user.
const ROLLBACK_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest time that the server may work on a statement of a pool.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that users of a pool wait for the server, connecting included. It also covers a
/// server that does not answer at all.
const WORK_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest time that a pool waits for a free connection, or for the server to accept a new one.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for pages. A reader waits longer before an error is shown.
const PAGES_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that a statement of a pool waits for a lock.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The same limits for appending. They are shorter than Meta waits for an answer.
const INBOX_STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
const INBOX_LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time that one of several hosts may take to accept a connection and answer.
const HOST_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between two looks at the primary, with several hosts.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time that a connection may take to answer a ping.
pub(super) const PING_TIMEOUT: Duration = Duration::from_millis(300);

/// A valid database URL, with one or several hosts. Clones share what is known about the hosts.
#[derive(Debug, Clone)]
pub struct Database {
    /// The connection to each host, in the order of the URL.
    hosts: Arc<[PgConnectOptions]>,
    ignored_parameters: Arc<[String]>,
    /// The position of the host that accepted writes last.
    primary: Arc<AtomicUsize>,
    /// The pools, which follow the primary.
    pools: Arc<Mutex<Vec<PgPool>>>,
}

impl Database {
    /// Parses a Postgres URL. Its `sslmode` decides about TLS. With several hosts
    /// (`postgresql://user@host1,host2/database`) the first that accepts writes is used.
    ///
    /// # Errors
    /// [`BadDatabaseUrl`], which never repeats the URL: it may contain a password.
    pub fn parse(url: &str) -> Result<Self, BadDatabaseUrl> {
        let ParsedUrl { hosts, ignored } = url::parse(url)?;
        Ok(Self {
            hosts: hosts.into(),
            ignored_parameters: ignored.into(),
            primary: Arc::default(),
            pools: Arc::default(),
        })
    }

    /// The parameters of the URL that libpq knows and that have no effect here.
    pub(crate) fn ignored_parameters(&self) -> &[String] {
        &self.ignored_parameters
    }

    /// The hosts, ports and name of the database, without the password.
    #[must_use]
    pub fn location(&self) -> String {
        let addresses: Vec<String> = self.hosts.iter().map(address).collect();
        let first = &self.hosts[0];
        let name = first.get_database().unwrap_or(first.get_username());
        format!("{}, database {name}", addresses.join(", "))
    }

    /// Connects once. Its error says why there is no connection; a pool would only report a
    /// timeout.
    ///
    /// # Errors
    /// There is no connection.
    pub(crate) async fn check_connection(&self) -> Result<(), StoreError> {
        let session = Session::new("lockwatch", STATEMENT_TIMEOUT, STATEMENT_TIMEOUT);
        bounded(async {
            let connection = self.connect(&session).await?;
            Ok(connection.close().await?)
        })
        .await
    }

    /// Opens a connection to the first host that accepts writes, the last primary before the
    /// others. With a single host its state is not asked for: a command may read from a standby.
    ///
    /// # Errors
    /// No host accepts a connection and writes. The caller limits the time.
    pub(super) async fn connect(&self, session: &Session) -> Result<PgConnection, StoreError> {
        if let [host] = &*self.hosts {
            return Ok(session.options(host).connect().await?);
        }
        let last = self.primary.load(Ordering::Relaxed);
        let others = (0..self.hosts.len()).filter(|position| *position != last);
        let mut failure = StoreError::TimedOut;
        for position in std::iter::once(last).chain(others) {
            let options = session.options(&self.hosts[position]);
            match with_timeout(HOST_TIMEOUT, connect_writable(&options)).await {
                Ok(connection) => {
                    self.follow(position);
                    return Ok(connection);
                }
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }

    /// Lets the pools connect to this host from now on.
    fn follow(&self, position: usize) {
        let pools = self.lock_pools();
        if self.primary.swap(position, Ordering::Relaxed) == position {
            return;
        }
        let host = &self.hosts[position];
        for pool in pools.iter() {
            pool.set_connect_options(pool_session().options(host));
        }
        info!("the database's primary is {} now", address(host));
    }

    /// Watches which host is the primary, so that the pools follow it, until told to stop.
    pub(crate) async fn watch_primary(self, stop: CancellationToken) {
        if self.hosts.len() == 1 {
            return stop.cancelled().await;
        }
        let session = Session::new("lockwatch watch", STATEMENT_TIMEOUT, LOCK_TIMEOUT);
        let mut connection = None;
        while stop
            .run_until_cancelled(sleep(WATCH_INTERVAL))
            .await
            .is_some()
        {
            if let Some(open) = &mut connection
                && matches!(
                    with_timeout(PING_TIMEOUT, is_read_only(open)).await,
                    Ok(false)
                )
            {
                continue;
            }
            connection = bounded(self.connect(&session)).await.ok();
        }
    }

    /// Closes the connections of all pools, as soon as their users have given them back.
    pub(crate) async fn close_pools(&self) {
        let pools = self.lock_pools().clone();
        for pool in pools {
            pool.close().await;
        }
    }

    fn lock_pools(&self) -> MutexGuard<'_, Vec<PgPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the pool for everything except pages, inbox and processor. It connects when it is
    /// first used.
    #[must_use]
    pub fn pool(&self) -> PgPool {
        self.build_pool(POOL_CONNECTIONS, ACQUIRE_TIMEOUT)
    }

    /// Creates the pool for pages.
    #[must_use]
    pub fn pages_pool(&self) -> PgPool {
        self.build_pool(PAGES_POOL_CONNECTIONS, PAGES_ACQUIRE_TIMEOUT)
    }

    /// Opens the connection that appends to the inbox, with timeouts shorter than Meta waits. It is
    /// never pooled.
    ///
    /// # Errors
    /// There is no connection. The caller limits the time.
    pub(super) async fn connect_inbox(&self) -> Result<PgConnection, StoreError> {
        let session = Session::new(
            "lockwatch inbox",
            INBOX_STATEMENT_TIMEOUT,
            INBOX_LOCK_TIMEOUT,
        );
        self.connect(&session.planned_once()).await
    }

    /// Opens the processor's connection. It is never pooled.
    ///
    /// # Errors
    /// There is no connection. The caller limits the time.
    pub(super) async fn connect_processor(&self) -> Result<PgConnection, StoreError> {
        let session = Session::new("lockwatch processor", STATEMENT_TIMEOUT, LOCK_TIMEOUT);
        self.connect(&session.planned_once()).await
    }

    fn build_pool(&self, connections: u32, acquire_timeout: Duration) -> PgPool {
        let mut pools = self.lock_pools();
        let host = &self.hosts[self.primary.load(Ordering::Relaxed)];
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(check_writable(connection)))
            .after_release(|connection, _| Box::pin(roll_back(connection)))
            .connect_lazy_with(pool_session().options(host));
        pools.push(pool.clone());
        pool
    }
}

fn address(host: &PgConnectOptions) -> String {
    match host.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", host.get_host(), host.get_port()),
    }
}

/// The settings of a session. They are startup options: a server that was restarted has them too.
pub(super) struct Session {
    name: &'static str,
    settings: Vec<(&'static str, String)>,
}

impl Session {
    pub(super) fn new(
        name: &'static str,
        statement_timeout: Duration,
        lock_timeout: Duration,
    ) -> Self {
        Self {
            name,
            settings: vec![
                (
                    "statement_timeout",
                    statement_timeout.as_millis().to_string(),
                ),
                ("lock_timeout", lock_timeout.as_millis().to_string()),
                ("idle_in_transaction_session_timeout", "10000".to_owned()),
                ("synchronous_commit", "on".to_owned()),
                ("client_min_messages", "warning".to_owned()),
            ],
        }
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.settings.retain(|(set, _)| *set != name);
        self.settings.push((name, value.to_owned()));
        self
    }

    /// Lets the server plan each statement only once, because planning takes longer than a small
    /// batch. A plan made while the tables are empty must stay right when they grow, so it must use
    /// indexes.
    fn planned_once(self) -> Self {
        self.set("plan_cache_mode", "force_generic_plan")
            .set("enable_seqscan", "off")
            .set("jit", "off")
    }

    fn options(&self, host: &PgConnectOptions) -> PgConnectOptions {
        host.clone()
            .application_name(self.name)
            .options(self.settings.iter().map(|(name, value)| (name, value)))
    }
}

/// The session of a pool.
fn pool_session() -> Session {
    Session::new("lockwatch", STATEMENT_TIMEOUT, LOCK_TIMEOUT)
        // The filters of a list are unknown when its statement is prepared: one plan for all
        // filters would scan the table.
        .set("plan_cache_mode", "force_custom_plan")
}

/// Connects to a host, unless it is a standby or otherwise read-only.
async fn connect_writable(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    let mut connection = options.connect().await?;
    if is_read_only(&mut connection).await? {
        return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into());
    }
    Ok(connection)
}

/// Accepts a pooled connection that answers and can write.
///
/// A silently dead connection would occupy its place for ever, and a connection to a server that is
/// no longer the primary would refuse every write. Such a connection gets an error, which closes it
/// at once; `false` would first send a termination message to the server and wait for the result.
async fn check_writable(connection: &mut PgConnection) -> sqlx::Result<bool> {
    if with_timeout(PING_TIMEOUT, is_read_only(connection)).await? {
        return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into());
    }
    Ok(true)
}

/// Rolls back the open transaction of a connection that returns to its pool. After a cancelled
/// `BEGIN`, the next user would be inside that transaction. The `begin` avoids a warning in the
/// server's log for each rollback without a transaction.
async fn roll_back(connection: &mut PgConnection) -> sqlx::Result<bool> {
    with_timeout(ROLLBACK_TIMEOUT, connection.execute("begin; rollback")).await?;
    Ok(true)
}

/// Limits the time of a pool's hook. A timeout is an error, which closes the connection.
async fn with_timeout<T>(
    limit: Duration,
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Limits the time of some work on a pool. After a timeout the work is rolled back when its
/// connection returns to the pool, or the connection is closed. Its outcome is unknown, as after
/// any lost answer.
///
/// # Errors
/// [`StoreError::TimedOut`], or the error of the work.
pub(crate) async fn bounded<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(WORK_TIMEOUT, work)
        .await
        .unwrap_or(Err(StoreError::TimedOut))
}

/// Returns whether the server refuses writes: it is a standby, or full.
pub(super) async fn is_read_only(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("select current_setting('transaction_read_only')::boolean")
        .fetch_one(connection)
        .await
}
