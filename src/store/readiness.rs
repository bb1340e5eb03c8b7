//! The state of the database: its tables, and whether it can be written and survives a crash.

use sqlx::PgPool;

use super::database::is_read_only;
use super::error::StoreError;
use super::migration::is_migrated;

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

/// Returns whether the server syncs its log to disk. Without that, a crash of its machine loses
/// failures that were acknowledged.
pub async fn is_durable(db: &PgPool) -> Result<bool, StoreError> {
    let fsync: String = sqlx::query_scalar("select current_setting('fsync')")
        .fetch_one(db)
        .await?;
    Ok(fsync == "on")
}
