//! The database: the only place that knows SQL.
//!
//! Every function fails with a [`StoreError`] when the database does not answer. An `# Errors`
//! section stands only where there is more to say.
//!
//! Transactions live in tasks that nobody cancels (the processor, the follow-up, a command). If a
//! future is dropped while its `BEGIN` is in flight, sqlx 0.9 leaves the connection inside a
//! transaction that nobody commits. A change to an account's incidents first locks the account
//! (`lock_account`).

pub(crate) mod accounts;
pub mod alerts;
pub(crate) mod backlog;
pub mod by_hand;
pub(crate) mod captures;
pub mod changes;
pub mod checks;
pub mod claims;
mod columns;
pub mod conclusion;
mod database;
pub(crate) mod deliveries;
mod division;
mod error;
pub(crate) mod events;
mod history;
pub mod inbox;
pub mod incident_life;
pub mod incidents;
pub mod limits;
mod migration;
pub(crate) mod overview;
mod pooler;
pub mod process;
mod readiness;
pub(crate) mod retention;
pub(crate) mod self_checks;
pub mod sending;
pub mod timeline;
pub mod troubles;
mod url;

use std::time::Duration;

use sqlx::PgConnection;
pub use sqlx::PgPool as Pool;
use sqlx::postgres::types::PgInterval;
use time::OffsetDateTime;

pub use self::columns::Word;
pub use self::database::Database;
pub(crate) use self::database::bounded;
pub use self::error::{MigrateError, StoreError};
pub use self::readiness::{Readiness, is_durable, readiness};
pub use self::url::BadDatabaseUrl;
use crate::meta::ids::WabaId;

/// Locks an account until the end of the transaction. This one lock orders all changes to the
/// account's incidents. Statements after it read everything that the previous holder committed.
///
/// It is an advisory lock: the processor tries it without waiting, and nobody else's row lock on an
/// account is in its way.
async fn lock_account(transaction: &mut PgConnection, waba_id: &WabaId) -> Result<(), StoreError> {
    sqlx::query!(
        r#"select 1 as "locked!" from pg_advisory_xact_lock(hashtextextended($1, 131031))"#,
        waba_id.as_str()
    )
    .fetch_one(transaction)
    .await?;
    Ok(())
}

/// Tries a lock that one process holds at a time, until the end of the transaction. Returns the time
/// of the transaction if it is ours.
async fn try_lock(
    transaction: &mut PgConnection,
    lock: i64,
) -> Result<Option<OffsetDateTime>, StoreError> {
    let tried = sqlx::query!(
        r#"select pg_try_advisory_xact_lock($1) as "is_ours!", now() as "now!""#,
        lock
    )
    .fetch_one(transaction)
    .await?;
    Ok(tried.is_ours.then_some(tried.now))
}

fn interval(duration: Duration) -> PgInterval {
    let microseconds = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    PgInterval {
        months: 0,
        days: 0,
        microseconds,
    }
}
