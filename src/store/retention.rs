//! What is older than its time leaves, in small batches. Incidents and their counts stay.

use std::time::Duration;

use sqlx::PgPool;

use super::{StoreError, interval};

/// Rows per statement: short enough to be in nobody's way.
const BATCH: i64 = 1000;
/// And bytes, where there are bodies.
const BATCH_BYTES: i64 = 16 * 1024 * 1024;

/// What has its time, in the order in which it leaves: captures are last, so that nothing refers to one
/// that is gone, or not for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Failed deliveries.
    Deliveries,
    /// Health checks, except those that an open incident rests on: its cause is derived from them.
    Checks,
    /// What could not be read.
    Quarantine,
    /// Callbacks that were kept.
    Captures,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [
        Self::Deliveries,
        Self::Checks,
        Self::Quarantine,
        Self::Captures,
    ];
}

/// Deletes some rows that were received longer ago than `age`, the oldest first, and says how many. None:
/// nothing is left to do.
///
/// # Errors
/// The database does not answer.
pub async fn delete_some(db: &PgPool, kind: Kind, age: Duration) -> Result<u64, StoreError> {
    let age = interval(age);
    let deletion = match kind {
        Kind::Deliveries => sqlx::query!(
            "delete from failed_deliveries d
              using (select id, waba_id from failed_deliveries where received_at < now() - $1::interval
                      order by received_at limit $2 for update skip locked) old
              where d.id = old.id and d.waba_id = old.waba_id",
            age,
            BATCH
        ),
        Kind::Checks => sqlx::query!(
            "delete from health_checks h
              using (select c.id, c.waba_id from health_checks c
                      where c.checked_at < now() - $1::interval
                        and not exists (select from incidents i
                                         where i.id = c.incident_id and i.waba_id = c.waba_id and i.resolved_at is null
                                           and (i.cause_check_id = c.id
                                                or exists (select from affected_numbers n
                                                            where n.incident_id = i.id and n.waba_id = i.waba_id
                                                              and n.latest_check_id = c.id)))
                      order by c.checked_at limit $2 for update skip locked) old
              where h.id = old.id and h.waba_id = old.waba_id",
            age,
            BATCH
        ),
        Kind::Quarantine => sqlx::query!(
            "delete from quarantine q
              using (select id, waba_id, sum(octet_length(body)) over (order by received_at, id) - octet_length(body) as before
                       from (select id, waba_id, received_at, body from quarantine
                              where received_at < now() - $1::interval order by received_at limit $2) oldest) old
              where q.id = old.id and q.waba_id = old.waba_id and old.before < $3",
            age,
            BATCH,
            BATCH_BYTES
        ),
        Kind::Captures => sqlx::query!(
            "delete from captures c
              using (select id, waba_id, sum(octet_length(body)) over (order by received_at, id) - octet_length(body) as before
                       from (select id, waba_id, received_at, body from captures
                              where received_at < now() - $1::interval
                              order by received_at limit $2 for update skip locked) oldest) old
              where c.id = old.id and c.waba_id = old.waba_id and old.before < $3",
            age,
            BATCH,
            BATCH_BYTES
        ),
    };
    Ok(deletion.execute(db).await?.rows_affected())
}
