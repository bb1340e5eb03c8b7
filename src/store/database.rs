//! The connection to Postgres: URL, pools, timeouts, migrations, readiness.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};
use tokio::time::timeout;

use super::error::{MigrateError, StoreError};
use crate::MIGRATOR;

/// Connections for the service's own work, except for the recorder, which has its own connection.
const POOL_CONNECTIONS: u32 = 8;
/// Connections for pages. Readers of pages, however many, do not take connections from the work.
const PAGES_POOL_CONNECTIONS: u32 = 4;

/// The longest time that a connection may take to roll back an open transaction of its last user.
const ROLLBACK_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest time that the server may work on a statement of a pool.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that users of a pool wait for the server, connecting included. It also covers a
/// server that does not answer at all.
const WORK_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest time that a pool waits for a free connection, or for the server to accept a new one.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for pages. A reader waits longer before an error is shown.
const PAGES_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that a statement of a pool waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The same limits for the recorder. They are shorter than Meta waits for an answer.
const RECORDER_STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
const RECORDER_LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest time that a migration may take, and its statements too.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest time that connecting for a migration may take.
const MIGRATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time that a connection may take to answer a ping.
pub(super) const PING_TIMEOUT: Duration = Duration::from_millis(300);

/// A valid database URL.
#[derive(Debug, Clone)]
pub struct Database {
    options: PgConnectOptions,
}

/// The error for a URL that is not one of Postgres.
#[derive(Debug, thiserror::Error)]
#[error("not a Postgres URL (postgresql://user:password@host:5432/database): {0}")]
pub struct BadDatabaseUrl(String);

impl Database {
    /// Parses a Postgres URL. Its `sslmode` decides about TLS.
    ///
    /// # Errors
    /// [`BadDatabaseUrl`], which never repeats the URL: it may contain a password.
    pub fn parse(url: &str) -> Result<Self, BadDatabaseUrl> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(BadDatabaseUrl(
                "it does not start with postgresql://".to_owned(),
            ));
        }
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| BadDatabaseUrl(error.to_string()))?
            .disable_statement_logging();
        Ok(Self { options })
    }

    /// The host, port and name of the database, without the password.
    #[must_use]
    pub fn location(&self) -> String {
        let host = match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.options.get_host(), self.options.get_port()),
        };
        format!(
            "{host}, database {}",
            self.options
                .get_database()
                .unwrap_or(self.options.get_username())
        )
    }

    /// Connects once. Its error says why there is no connection; a pool would only report a
    /// timeout.
    ///
    /// # Errors
    /// There is no connection.
    pub(crate) async fn check_connection(&self) -> Result<(), StoreError> {
        bounded(async {
            let connection = self
                .session_options("lockwatch", STATEMENT_TIMEOUT, STATEMENT_TIMEOUT)
                .connect()
                .await?;
            Ok(connection.close().await?)
        })
        .await
    }

    /// Creates the pool for everything except pages and the recorder. It connects when it is first
    /// used.
    #[must_use]
    pub fn pool(&self) -> PgPool {
        self.build_pool(POOL_CONNECTIONS, ACQUIRE_TIMEOUT)
    }

    /// Creates the pool for pages.
    #[must_use]
    pub fn pages_pool(&self) -> PgPool {
        self.build_pool(PAGES_POOL_CONNECTIONS, PAGES_ACQUIRE_TIMEOUT)
    }

    /// Opens a connection for the recorder, with timeouts shorter than Meta waits. It is never
    /// pooled.
    ///
    /// # Errors
    /// There is no connection. The caller limits the time.
    pub(super) async fn connect_recorder(&self) -> Result<PgConnection, StoreError> {
        let options = self
            .session_options(
                "lockwatch recorder",
                RECORDER_STATEMENT_TIMEOUT,
                RECORDER_LOCK_TIMEOUT,
            )
            .options([
                // Its statements are planned only once, because planning takes longer than a small
                // batch. A plan made while the tables are empty must stay right when they grow, so
                // it must use indexes.
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                ("jit", "off"),
                // A statement that waited for a lock must read what the previous holder committed.
                ("default_transaction_isolation", "read committed"),
            ]);
        Ok(options.connect().await?)
    }

    fn session_options(&self, name: &str, statement: Duration, lock: Duration) -> PgConnectOptions {
        self.options.clone().application_name(name).options([
            ("statement_timeout", statement.as_millis().to_string()),
            ("lock_timeout", lock.as_millis().to_string()),
            ("idle_in_transaction_session_timeout", "10000".to_owned()),
            ("synchronous_commit", "on".to_owned()),
            ("client_min_messages", "warning".to_owned()),
        ])
    }

    fn build_pool(&self, connections: u32, acquire_timeout: Duration) -> PgPool {
        let options = self
            .session_options("lockwatch", STATEMENT_TIMEOUT, LOCK_TIMEOUT)
            // The filters of a list are unknown when its statement is prepared: one plan for all
            // filters would scan the table.
            .options([("plan_cache_mode", "force_custom_plan")]);
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(check_writable(connection)))
            .after_release(|connection, _| Box::pin(roll_back(connection)))
            .connect_lazy_with(options)
    }

    /// Creates or updates the tables. Several processes may call this at once: an advisory lock
    /// lets one of them go first. Tables of a newer version are left alone, so that an old replica
    /// can start beside a new one.
    ///
    /// # Errors
    /// The database is unreachable, or a migration failed.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        let options =
            self.session_options("lockwatch migrate", MIGRATION_TIMEOUT, MIGRATION_TIMEOUT);
        let mut connection = timeout(MIGRATION_CONNECT_TIMEOUT, options.connect())
            .await
            .map_err(|_| MigrateError::Unreachable(StoreError::TimedOut))?
            .map_err(|error| MigrateError::Unreachable(error.into()))?;
        // `run` cannot be used: the compiler does not accept its future as `Send`, so it cannot be
        // spawned.
        let migrated = timeout(
            MIGRATION_TIMEOUT,
            MIGRATOR.run_direct(None, &mut connection, false),
        )
        .await;
        // Closing releases the advisory lock at once, also after an error.
        let _ = timeout(PING_TIMEOUT, connection.close()).await;
        Ok(migrated.map_err(|_| MigrateError::Unreachable(StoreError::TimedOut))??)
    }
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

/// The readiness of the database for reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The database has this version's tables and accepts writes.
    Ready,
    /// The database has the tables but accepts no writes: it is a standby, or full.
    ReadOnly,
    /// The database lacks this version's tables.
    Unmigrated,
}

/// Asks the database whether it has this version's tables and can be written.
pub async fn readiness(db: &PgPool) -> Result<Readiness, StoreError> {
    let mut connection = db.acquire().await?;
    if !is_migrated(&mut connection).await? {
        return Ok(Readiness::Unmigrated);
    }
    if is_read_only(&mut connection).await? {
        return Ok(Readiness::ReadOnly);
    }
    Ok(Readiness::Ready)
}

async fn is_migrated(connection: &mut PgConnection) -> sqlx::Result<bool> {
    const UNDEFINED_TABLE: &str = "42P01";
    let newest = MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or_default();
    // `query!` cannot be used: the table belongs to sqlx and comes with the first migration.
    let migrated = sqlx::query_scalar(
        "select exists (select from _sqlx_migrations where version = $1 and success)",
    )
    .bind(newest)
    .fetch_one(connection)
    .await;
    match migrated {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(UNDEFINED_TABLE) => {
            Ok(false)
        }
        migrated => migrated,
    }
}

async fn is_read_only(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("select current_setting('transaction_read_only')::boolean")
        .fetch_one(connection)
        .await
}

/// Returns whether the server syncs its log to disk. Without that, a crash of its machine loses
/// failures that were acknowledged.
pub async fn is_durable(db: &PgPool) -> Result<bool, StoreError> {
    let fsync: String = sqlx::query_scalar("select current_setting('fsync')")
        .fetch_one(db)
        .await?;
    Ok(fsync == "on")
}
