//! Migrations: brings the tables up to date, whichever process starts first.

use std::time::Duration;

use sqlx::migrate::MigrateError as SqlxMigrateError;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::database::{Database, PING_TIMEOUT, Session, bounded};
use super::error::{MigrateError, StoreError};
use crate::MIGRATOR;
use crate::error_chain::error_chain;

/// The longest time that the migrations may take together, and that a statement of theirs may take.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest time that connecting for a migration may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time that a migration waits for a lock before it tries again. While it waits for a
/// table, every statement behind it waits too.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The tables whose ids come from a sequence.
const NUMBERED_TABLES: [&str; 9] = [
    "incidents",
    "incident_changes",
    "account_events",
    "alerts",
    "troubles",
    "failed_deliveries",
    "health_checks",
    "quarantine",
    "captures",
];

impl Database {
    /// Creates or updates the tables. Several processes may call this at once: an advisory lock
    /// lets one of them go first. Tables of a newer version are left alone, so that an old replica
    /// can start beside a new one. Where every migration is applied, nothing is created: the role
    /// needs no right to.
    ///
    /// # Errors
    /// The database is unreachable, a migration failed, or the tables are of another build.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        let is_direct = timeout(CONNECT_TIMEOUT, self.keeps_prepared_statements())
            .await
            .unwrap_or(Err(StoreError::TimedOut));
        if !is_direct.map_err(MigrateError::Unreachable)? {
            return Err(MigrateError::OldPooler);
        }
        let session = Session::new("lockwatch migrate", MIGRATION_TIMEOUT, LOCK_TIMEOUT);
        let mut connection = timeout(CONNECT_TIMEOUT, self.connect(&session))
            .await
            .map_err(|_| MigrateError::Unreachable(StoreError::TimedOut))?
            .map_err(MigrateError::Unreachable)?;
        let migrated = timeout(MIGRATION_TIMEOUT, migrate_patiently(&mut connection)).await;
        // Closing releases the advisory lock at once, also after an error.
        let _ = timeout(PING_TIMEOUT, connection.close()).await;
        migrated.map_err(|_| MigrateError::Unreachable(StoreError::TimedOut))?
    }

    /// Brings the sequences of ids to the largest id of their tables. Logs what it did, and what it
    /// could not do.
    pub(crate) async fn advance_sequences(&self) {
        let session = Session::new("lockwatch migrate", MIGRATION_TIMEOUT, LOCK_TIMEOUT);
        let advanced = bounded(async {
            let mut connection = self.connect(&session).await?;
            advance_all_sequences(&mut connection).await;
            Ok(connection.close().await?)
        });
        if let Err(error) = advanced.await {
            warn!(
                "the sequences could not be checked: {}",
                error_chain(&error)
            );
        }
    }
}

/// Migrates, and tries again after each lock that was not to be had.
async fn migrate_patiently(connection: &mut PgConnection) -> Result<(), MigrateError> {
    loop {
        match migrate_once(connection).await {
            Err(MigrateError::Failed(error)) if is_lock_timeout(&error) => {
                sleep(LOCK_RETRY_INTERVAL).await;
            }
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    advance_all_sequences(connection).await;
    Ok(())
}

async fn advance_all_sequences(connection: &mut PgConnection) {
    for table in NUMBERED_TABLES {
        if let Err(error) = advance_sequence(connection, table).await {
            let error = error_chain(&error);
            warn!("the sequence of {table} could not be checked: {error}");
        }
    }
}

async fn migrate_once(connection: &mut PgConnection) -> Result<(), MigrateError> {
    if is_complete(connection).await? {
        return Ok(());
    }
    // `run` cannot be used: the compiler does not accept its future as `Send`, so it cannot be
    // spawned.
    Ok(MIGRATOR.run_direct(None, connection, false).await?)
}

/// Returns whether every migration of this build is applied.
///
/// # Errors
/// A migration of the same number was another one.
async fn is_complete(connection: &mut PgConnection) -> Result<bool, MigrateError> {
    let has_table = has_migrations_table(connection).await;
    if !has_table.map_err(SqlxMigrateError::Execute)? {
        return Ok(false);
    }
    let applied: Vec<(i64, Vec<u8>, bool)> =
        sqlx::query_as("select version, checksum, success from _sqlx_migrations")
            .fetch_all(connection)
            .await
            .map_err(SqlxMigrateError::Execute)?;
    for migration in MIGRATOR.iter() {
        let row = applied
            .iter()
            .find(|(version, ..)| *version == migration.version);
        match row {
            Some((_, checksum, _)) if **checksum != *migration.checksum => {
                return Err(MigrateError::OtherBuild(migration.version));
            }
            Some((.., true)) => {}
            // A half-applied migration is an error of `run_direct`.
            Some((.., false)) | None => return Ok(false),
        }
    }
    Ok(true)
}

/// Returns whether there is a table of migrations. To read one that is not there would be an error
/// in the server's log.
async fn has_migrations_table(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(connection)
        .await
}

const LOCK_NOT_AVAILABLE: &str = "55P03";

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    let found = error.as_database_error().and_then(|error| error.code());
    found.as_deref() == Some(code)
}

fn is_lock_timeout(error: &SqlxMigrateError) -> bool {
    match error {
        SqlxMigrateError::Execute(error) | SqlxMigrateError::ExecuteMigration(error, _) => {
            has_code(error, LOCK_NOT_AVAILABLE)
        }
        _ => false,
    }
}

/// Brings a sequence to the largest id of its table. After a copy of the rows alone, as by logical
/// replication or COPY, it starts at 1, and every insert would fail until it has passed them.
async fn advance_sequence(connection: &mut PgConnection, table: &str) -> sqlx::Result<()> {
    let is_behind = format!(
        "select coalesce((select max(id) from {table})
                         > coalesce(pg_sequence_last_value('{table}_id_seq'), 0), false)"
    );
    if !sqlx::query_scalar(AssertSqlSafe(is_behind))
        .fetch_one(&mut *connection)
        .await?
    {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    // Nobody inserts in between: the sequence never goes back.
    let lock = format!("lock table {table} in share row exclusive mode");
    sqlx::raw_sql(AssertSqlSafe(lock))
        .execute(&mut *transaction)
        .await?;
    let advance = format!(
        "select setval('{table}_id_seq', greatest(pg_sequence_last_value('{table}_id_seq'),
                                                  (select max(id) from {table})))"
    );
    let advance = sqlx::query_scalar(AssertSqlSafe(advance));
    let id: i64 = advance.fetch_one(&mut *transaction).await?;
    transaction.commit().await?;
    warn!("the sequence of {table} was behind its rows, as after a copy; it continues after {id}");
    Ok(())
}

/// Returns whether the newest migration of this build is applied.
pub(super) async fn is_migrated(connection: &mut PgConnection) -> sqlx::Result<bool> {
    if !has_migrations_table(connection).await? {
        return Ok(false);
    }
    let newest = MIGRATOR.iter().map(|migration| migration.version).max();
    // `query!` cannot be used: the table belongs to sqlx and comes with the first migration.
    sqlx::query_scalar(
        "select exists (select from _sqlx_migrations where version = $1 and success)",
    )
    .bind(newest.unwrap_or_default())
    .fetch_one(connection)
    .await
}
