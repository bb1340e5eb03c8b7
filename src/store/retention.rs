//! Retention: deletes rows that are older than the retention period, in small batches. Incidents
//! and their counts stay.

use std::fmt;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgQueryResult;
use sqlx::postgres::types::PgInterval;

use super::{StoreError, interval};

/// The rows of a batch. Such a statement is short enough to delay nobody.
const BATCH_ROWS: i64 = 1000;
/// The bytes of the bodies in a batch.
const BATCH_BYTES: i64 = 16 * 1024 * 1024;

/// A table with a retention period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetainedTable {
    /// Failed deliveries.
    Deliveries,
    /// Health checks, except the evidence of an open incident: its cause is derived from them.
    Checks,
    /// Parts of callbacks in quarantine.
    Quarantine,
    /// Alerts that have ended.
    Alerts,
    /// Troubles that are over.
    Troubles,
    /// Longest silences.
    Gaps,
    /// Captures.
    Captures,
}

impl RetainedTable {
    /// Every table, in the order in which rows are deleted. Captures are last, so that no row
    /// refers to a deleted capture for long.
    pub(crate) const ALL: [Self; 7] = [
        Self::Deliveries,
        Self::Checks,
        Self::Quarantine,
        Self::Alerts,
        Self::Troubles,
        Self::Gaps,
        Self::Captures,
    ];
}

impl fmt::Display for RetainedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deliveries => "failed_deliveries",
            Self::Checks => "health_checks",
            Self::Quarantine => "quarantine",
            Self::Alerts => "alerts",
            Self::Troubles => "troubles",
            Self::Gaps => "callback_gaps",
            Self::Captures => "captures",
        })
    }
}

/// Deletes rows that were received longer ago than `age`, one batch of them. Returns
/// their count: zero means that no such row is left.
pub(crate) async fn delete_batch(
    db: &PgPool,
    table: RetainedTable,
    age: Duration,
) -> Result<u64, StoreError> {
    let age = interval(age);
    let deleted = match table {
        RetainedTable::Deliveries => delete_deliveries(db, age).await?,
        RetainedTable::Checks => delete_checks(db, age).await?,
        RetainedTable::Quarantine => delete_quarantine(db, age).await?,
        RetainedTable::Alerts => delete_alerts(db, age).await?,
        RetainedTable::Troubles => delete_troubles(db, age).await?,
        RetainedTable::Gaps => delete_gaps(db, age).await?,
        RetainedTable::Captures => delete_captures(db, age).await?,
    };
    Ok(deleted.rows_affected())
}

async fn delete_deliveries(db: &PgPool, age: PgInterval) -> sqlx::Result<PgQueryResult> {
    sqlx::query!(
        "delete from failed_deliveries d
          using (select incident_id, id, waba_id
                   from failed_deliveries
                  where received_at < now() - $1::interval
                  limit $2
                    for update skip locked) old
          where d.incident_id = old.incident_id and d.id = old.id and d.waba_id = old.waba_id",
        age,
        BATCH_ROWS,
    )
    .execute(db)
    .await
}

async fn delete_alerts(db: &PgPool, age: PgInterval) -> sqlx::Result<PgQueryResult> {
    sqlx::query!(
        "delete from alerts a
          using (select id, waba_id
                   from alerts
                  where created_at < now() - $1::interval and state <> 'waiting'
                  limit $2
                    for update skip locked) old
          where a.id = old.id and a.waba_id = old.waba_id",
        age,
        BATCH_ROWS,
    )
    .execute(db)
    .await
}

async fn delete_troubles(db: &PgPool, age: PgInterval) -> sqlx::Result<PgQueryResult> {
    sqlx::query!(
        "delete from troubles
          where id in (select id from troubles where ended_at < now() - $1::interval limit $2)",
        age,
        BATCH_ROWS,
    )
    .execute(db)
    .await
}

async fn delete_gaps(db: &PgPool, age: PgInterval) -> sqlx::Result<PgQueryResult> {
    sqlx::query!(
        "delete from callback_gaps g
          using (select waba_id, day from callback_gaps
                  where day < (now() - $1::interval)::date
                  limit $2) old
          where g.waba_id = old.waba_id and g.day = old.day",
        age,
        BATCH_ROWS,
    )
    .execute(db)
    .await
}

async fn delete_checks(db: &PgPool, age: PgInterval) -> sqlx::Result<PgQueryResult> {
    sqlx::query!(
        "delete from health_checks h
          using (select c.id, c.waba_id
                   from health_checks c
                  where c.checked_at < now() - $1::interval
                    and not exists (
                          select from incidents i
                           where i.id = c.incident_id and i.waba_id = c.waba_id
                             and i.resolved_at is null
                             and (i.cause_check_id = c.id
                                  or exists (select from affected_numbers n
                                              where n.incident_id = i.id
                                                and n.waba_id = i.waba_id
                                                and n.latest_check_id = c.id)))
                  order by c.checked_at
                  limit $2
                    for update skip locked) old
          where h.id = old.id and h.waba_id = old.waba_id",
        age,
        BATCH_ROWS,
    )
    .execute(db)
    .await
}

async fn delete_quarantine(db: &PgPool, age: PgInterval) -> sqlx::Result<PgQueryResult> {
    sqlx::query!(
        "delete from quarantine q
          using (select id, waba_id,
                        sum(octet_length(body)) over (order by received_at, id)
                        - octet_length(body) as before
                   from (select id, waba_id, received_at, body
                           from quarantine
                          where received_at < now() - $1::interval
                          order by received_at
                          limit $2
                            for update skip locked) oldest) old
          where q.id = old.id and q.waba_id = old.waba_id and old.before < $3",
        age,
        BATCH_ROWS,
        BATCH_BYTES,
    )
    .execute(db)
    .await
}

/// Spares what the inbox or the quarantine refers to.
async fn delete_captures(db: &PgPool, age: PgInterval) -> sqlx::Result<PgQueryResult> {
    sqlx::query!(
        "delete from captures c
          using (select id, sum(octet_length(body)) over (order by id) - octet_length(body) as before
                   from (select id, body
                           from captures o
                          where received_at < now() - $1::interval
                            and not exists (select from inbox where capture_id = o.id)
                            and not exists (select from quarantine where capture_id = o.id)
                          limit $2
                            for update skip locked) oldest) old
          where c.id = old.id and old.before < $3",
        age,
        BATCH_ROWS,
        BATCH_BYTES,
    )
    .execute(db)
    .await
}
