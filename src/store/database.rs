//! The connection to Postgres: URL, pools, time-outs, migrations, readiness.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, PgPool};
use tokio::time::timeout;

use super::error::{MigrateError, StoreError};
use crate::MIGRATOR;

/// Connections for the service's own work, but for the recorder, which has its own.
const POOL_CONNECTIONS: u32 = 8;
/// Connections for those who look at pages: however many they are, the work goes on.
const PAGES_POOL_CONNECTIONS: u32 = 4;

/// How long a connection may take to roll back what its borrower left open.
const ROLLBACK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the server may be at a statement of the pool's.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the pool's users wait for the server, connecting included: it may be silent altogether.
const WORK_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a connection may take to say that it is alive.
pub(super) const PING_TIMEOUT: Duration = Duration::from_millis(300);

/// A database URL that was understood.
#[derive(Debug, Clone)]
pub struct Database {
    options: PgConnectOptions,
}

/// The URL is not one of Postgres.
#[derive(Debug, thiserror::Error)]
#[error("not a Postgres URL (postgresql://user:password@host:5432/database): {0}")]
pub struct BadDatabaseUrl(String);

impl Database {
    /// Reads a Postgres URL. TLS is as it says in `sslmode`.
    ///
    /// # Errors
    /// [`BadDatabaseUrl`], which never repeats the URL: it may hold a password.
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

    /// Where the data lives, without the password.
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

    fn session_options(&self, name: &str, statement: Duration, lock: Duration) -> PgConnectOptions {
        self.options.clone().application_name(name).options([
            ("statement_timeout", statement.as_millis().to_string()),
            ("lock_timeout", lock.as_millis().to_string()),
            ("idle_in_transaction_session_timeout", "10000".to_owned()),
            ("synchronous_commit", "on".to_owned()),
            ("client_min_messages", "warning".to_owned()),
        ])
    }

    /// Connects once and says what stands in the way: a pool would only say that time ran out.
    ///
    /// # Errors
    /// Where no connection comes about.
    pub async fn reach(&self) -> Result<(), StoreError> {
        bounded(async {
            let connection = self
                .session_options("lockwatch", STATEMENT_TIMEOUT, STATEMENT_TIMEOUT)
                .connect()
                .await?;
            Ok(connection.close().await?)
        })
        .await
    }

    /// Opens a connection for the recorder, with bounds shorter than Meta waits. Never pooled.
    ///
    /// # Errors
    /// No connection comes about; the caller bounds the time.
    pub(super) async fn connect_recorder(&self) -> Result<PgConnection, StoreError> {
        let statement_timeout = Duration::from_secs(2);
        let lock_timeout = Duration::from_secs(1);
        let options = self
            .session_options("lockwatch recorder", statement_timeout, lock_timeout)
            .options([
                // Its statements are planned once: planning takes longer than a small batch. A plan made
                // while the tables are empty must also be right when they no longer are, so it goes by index.
                ("plan_cache_mode", "force_generic_plan"),
                ("enable_seqscan", "off"),
                ("jit", "off"),
                // A statement behind a lock reads what the holder before it committed.
                ("default_transaction_isolation", "read committed"),
            ]);
        Ok(options.connect().await?)
    }

    /// The pool for everything else. It connects when it is first used.
    #[must_use]
    pub fn pool(&self) -> PgPool {
        self.build_pool(POOL_CONNECTIONS, Duration::from_secs(2))
    }

    /// The pool for pages. Who looks waits longer before being turned away.
    #[must_use]
    pub fn pages_pool(&self) -> PgPool {
        self.build_pool(PAGES_POOL_CONNECTIONS, Duration::from_secs(5))
    }

    fn build_pool(&self, connections: u32, acquire_timeout: Duration) -> PgPool {
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(acquire_timeout)
            .test_before_acquire(false)
            // A silently dead connection would keep its permit for ever, and one to a server that is no longer
            // the primary would refuse every write. An error closes a connection outright, where `false` would
            // say goodbye and wait for the answer.
            .before_acquire(|connection, _| {
                Box::pin(async move {
                    match with_timeout(PING_TIMEOUT, is_read_only(connection)).await? {
                        false => Ok(true),
                        true => Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into()),
                    }
                })
            })
            // A cancelled `BEGIN` would leave the next borrower inside somebody else's transaction. The `begin`
            // spares the server's log a warning for every rollback of nothing.
            .after_release(|connection, _| {
                Box::pin(async move {
                    with_timeout(ROLLBACK_TIMEOUT, connection.execute("begin; rollback")).await?;
                    Ok(true)
                })
            })
            // What people filter by is not known when a statement is prepared: one plan for all would scan.
            .connect_lazy_with(
                self.session_options("lockwatch", STATEMENT_TIMEOUT, Duration::from_secs(2))
                    .options([("plan_cache_mode", "force_custom_plan")]),
            )
    }

    /// Creates or updates the tables. Several processes may do so at once: an advisory lock lets one go
    /// first. Tables of a newer version are left alone, so that an old replica can start beside a new one.
    ///
    /// # Errors
    /// The database is away, or a migration failed.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
        let options =
            self.session_options("lockwatch migrate", MIGRATION_TIMEOUT, MIGRATION_TIMEOUT);
        let mut connection = timeout(Duration::from_secs(5), options.connect())
            .await
            .map_err(|_| MigrateError::Away(StoreError::TimedOut))?
            .map_err(|error| MigrateError::Away(error.into()))?;
        // Not `run`: its future is not `Send` enough to be spawned.
        let migrated = timeout(
            MIGRATION_TIMEOUT,
            MIGRATOR.run_direct(None, &mut connection, false),
        )
        .await;
        // Closing releases the advisory lock at once, whatever happened.
        let _ = timeout(PING_TIMEOUT, connection.close()).await;
        Ok(migrated.map_err(|_| MigrateError::Away(StoreError::TimedOut))??)
    }
}

/// Bounds what the pool's hooks do; in time or an error, which closes the connection.
async fn with_timeout<T>(
    limit: Duration,
    work: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Bounds some work on the pool. What is cut off is rolled back when its connection comes back, or the
/// connection is closed; so its outcome is unknown, as after any lost answer.
///
/// # Errors
/// [`StoreError::TimedOut`], or the work's own.
pub async fn bounded<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(WORK_TIMEOUT, work)
        .await
        .unwrap_or(Err(StoreError::TimedOut))
}

/// How far the database is of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It has this version's tables and takes writes.
    Ready,
    /// It has the tables, and takes no writes: a standby, or full.
    ReadOnly,
    /// It lacks this version's tables.
    Unmigrated,
}

/// Asks the database how far it is of use.
///
/// # Errors
/// It does not answer.
pub async fn readiness(db: &PgPool) -> Result<Readiness, StoreError> {
    let mut connection = db.acquire().await?;
    let newest = MIGRATOR
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or_default();
    // Not `query!`: the table is sqlx's own and comes with the first migration.
    let migrated = sqlx::query_scalar(
        "select exists (select from _sqlx_migrations where version = $1 and success)",
    )
    .bind(newest)
    .fetch_one(&mut *connection)
    .await;
    match migrated {
        Err(error)
            if error
                .as_database_error()
                .is_some_and(|e| e.code().as_deref() == Some("42P01")) =>
        {
            return Ok(Readiness::Unmigrated);
        }
        Ok(false) => return Ok(Readiness::Unmigrated),
        migrated => migrated?,
    };
    let read_only = is_read_only(&mut connection).await?;
    Ok(if read_only {
        Readiness::ReadOnly
    } else {
        Readiness::Ready
    })
}

async fn is_read_only(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select current_setting('transaction_read_only')::boolean")
        .fetch_one(connection)
        .await
}

/// Whether the server syncs its log to disk. Without, a crash of its machine loses what was acknowledged.
///
/// # Errors
/// The database does not answer.
pub async fn is_durable(db: &PgPool) -> Result<bool, StoreError> {
    let fsync: String = sqlx::query_scalar("select current_setting('fsync')")
        .fetch_one(db)
        .await?;
    Ok(fsync == "on")
}
