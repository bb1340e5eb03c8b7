//! The database: the only place that knows SQL.
//!
//! Transactions live in tasks that nobody cancels (the recorder, the follow-up, a command): dropping a
//! future while its `BEGIN` is in flight leaves sqlx 0.9 with a connection inside a transaction that
//! nobody commits. A change to an account's incidents first locks the account (`lock_account`).

pub mod bodies;
pub mod captures;
pub mod checks;
pub mod claims;
mod columns;
pub mod conclusion;
mod database;
pub mod deliveries;
mod error;
pub mod incident_life;
pub mod incidents;
pub mod overview;
pub mod record;
pub mod retention;
pub mod timeline;

use std::time::Duration;

use sqlx::PgConnection;
pub use sqlx::PgPool as Pool;
use sqlx::postgres::types::PgInterval;

pub use self::columns::Word;
pub use self::database::{BadDatabaseUrl, Database, Readiness, bounded, is_durable, readiness};
pub use self::error::{MigrateError, StoreError};
use crate::meta::ids::WabaId;

/// Locks an account until the end of the transaction: the one lock that orders all changes to its
/// incidents. What is read after it, in later statements, is what the holder before it left.
async fn lock_account(transaction: &mut PgConnection, waba_id: &WabaId) -> Result<(), StoreError> {
    sqlx::query!(
        "select from accounts where waba_id = $1 for update",
        waba_id.as_str()
    )
    .execute(transaction)
    .await?;
    Ok(())
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval {
        months: 0,
        days: 0,
        microseconds,
    }
}
