//! The backlog: what waits in the inbox, and what is in quarantine, as people see and move it.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::StoreError;
use super::inbox::READER;

/// Beyond this, waiting callbacks are not counted.
pub(crate) const COUNT_LIMIT: i64 = 100_000;
/// The accounts with quarantined parts that a summary names.
const ACCOUNTS_LIMIT: i64 = 20;

/// What waits, and what could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Backlog {
    /// The callbacks in the inbox, counted up to 100,000.
    pub(crate) inbox_callbacks: i64,
    /// Those of them that could not be processed and are tried again.
    pub(crate) inbox_problems: i64,
    /// The seconds since the oldest of them was appended.
    pub(crate) inbox_oldest_seconds: i64,
    /// The parts of callbacks in quarantine.
    pub(crate) quarantined: i64,
    /// The accounts of those parts, those with most parts first, up to 20.
    pub(crate) quarantined_accounts: Vec<QuarantinedAccount>,
}

/// The quarantined parts of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct QuarantinedAccount {
    /// The account, or `unknown`.
    pub(crate) waba_id: String,
    /// The number of its parts.
    pub(crate) parts: i64,
    /// The reason of one of them.
    pub(crate) reason: String,
}

/// Fetches the backlog.
pub(crate) async fn fetch(db: &PgPool) -> Result<Backlog, StoreError> {
    let inbox = sqlx::query!(
        r#"select count(*) as "callbacks!", (select count(*) from inbox where problem is not null)
                  as "problems!",
                  coalesce(extract(epoch from now() - min(appended_at)), 0)::bigint as "oldest!"
             from (select appended_at from inbox order by capture_id limit $1) i"#,
        COUNT_LIMIT,
    )
    .fetch_one(db)
    .await?;
    let quarantined_accounts = sqlx::query_as!(
        QuarantinedAccount,
        r#"select waba_id, count(*) as "parts!", max(reason) as "reason!"
             from quarantine
            group by waba_id
            order by count(*) desc, waba_id
            limit $1"#,
        ACCOUNTS_LIMIT,
    )
    .fetch_all(db)
    .await?;
    let quarantined = sqlx::query_scalar!(r#"select count(*) as "count!" from quarantine"#)
        .fetch_one(db)
        .await?;
    Ok(Backlog {
        inbox_callbacks: inbox.callbacks,
        inbox_problems: inbox.problems,
        inbox_oldest_seconds: inbox.oldest.max(0),
        quarantined,
        quarantined_accounts,
    })
}

/// A callback in the inbox. The fields are columns.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WaitingCallback {
    /// The id of its capture.
    pub(crate) capture_id: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) appended_at: OffsetDateTime,
    /// Failed attempts to process it.
    pub(crate) attempts: i32,
    /// The time of the next one, if one failed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) retry_at: Option<OffsetDateTime>,
    /// The reason of the last failure.
    pub(crate) problem: Option<String>,
    /// The body.
    #[serde(skip)]
    pub(crate) body: Vec<u8>,
}

/// Lists callbacks in the inbox, the oldest first; with `ids`, only these.
pub(crate) async fn list(
    db: &PgPool,
    ids: Option<&[i64]>,
    limit: i64,
) -> Result<Vec<WaitingCallback>, StoreError> {
    let callbacks = sqlx::query_as!(
        WaitingCallback,
        "select i.capture_id, c.received_at, i.appended_at, i.attempts, i.retry_at, i.problem,
                c.body
           from inbox i
           join captures c on c.id = i.capture_id
          where $1::bigint[] is null or i.capture_id = any($1)
          order by i.capture_id
          limit $2",
        ids,
        limit,
    );
    Ok(callbacks.fetch_all(db).await?)
}

/// The callbacks that are left in the inbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    /// Those without a problem.
    pub(crate) waiting: i64,
    /// Those with a problem.
    pub(crate) problems: i64,
}

/// Returns the largest id in the inbox.
pub(crate) async fn last_id(db: &PgPool) -> Result<i64, StoreError> {
    let last = sqlx::query_scalar!(r#"select coalesce(max(capture_id), 0) as "last!" from inbox"#);
    Ok(last.fetch_one(db).await?)
}

/// Counts what is left up to this id.
pub(crate) async fn count_until(db: &PgPool, last: i64) -> Result<Left, StoreError> {
    let left = sqlx::query_as!(
        Left,
        r#"select count(*) filter (where problem is null) as "waiting!", count(problem) as "problems!"
             from inbox
            where capture_id <= $1"#,
        last,
    );
    Ok(left.fetch_one(db).await?)
}

/// Makes callbacks with a problem due now, all or these. Returns their number.
pub(crate) async fn retry(db: &PgPool, ids: Option<&[i64]>) -> Result<u64, StoreError> {
    let retried = sqlx::query!(
        "update inbox set retry_at = null
          where problem is not null and ($1::bigint[] is null or capture_id = any($1))",
        ids,
    )
    .execute(db)
    .await?;
    Ok(retried.rows_affected())
}

/// Takes callbacks out of the inbox for good. Their captures stay for their time.
pub(crate) async fn drop_callbacks(db: &PgPool, ids: &[i64]) -> Result<u64, StoreError> {
    let dropped = sqlx::query!("delete from inbox where capture_id = any($1)", ids)
        .execute(db)
        .await?;
    Ok(dropped.rows_affected())
}

/// Puts the captures of quarantined parts into the inbox again, so that this version reads them, and
/// takes these parts out of quarantine: what is still unreadable comes back. Returns the number of
/// captures.
pub(crate) async fn retry_quarantined(
    db: &PgPool,
    captures: Option<&[i64]>,
) -> Result<u64, StoreError> {
    let retried = sqlx::query!(
        "with retried as (
           delete from quarantine q
            where ($1::bigint[] is null or q.capture_id = any($1))
              and exists (select from captures where id = q.capture_id)
           returning q.capture_id
         )
         insert into inbox (capture_id, reader)
         select distinct capture_id, $2::smallint from retried
             on conflict do nothing",
        captures,
        READER,
    )
    .execute(db)
    .await?;
    Ok(retried.rows_affected())
}
