//! The queue of a channel: takes the alerts that are due, and notes what became of them.

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::Topic;
use crate::lockout::alerting::{self, Pace};
use crate::store::{StoreError, interval};

/// The most alerts that are told together.
const DIGEST_LIMIT: i64 = 50_000;
/// The most tests that are taken at once.
const TESTS_LIMIT: i64 = 1;
/// The lease of alerts that are being delivered. Five, one after another, take less.
const LEASE: std::time::Duration = std::time::Duration::from_secs(90);

/// An alert that this process delivers.
#[derive(Debug, Clone)]
pub struct DueAlert {
    /// Its id.
    pub id: i64,
    /// What it tells of.
    pub topic: Topic,
    /// The name of its kind.
    pub kind: String,
    /// The tries, this one included.
    pub attempts: i32,
    /// Since when it is tried.
    pub tried_since: OffsetDateTime,
}

/// The alerts of a channel to deliver now.
#[derive(Debug, Clone)]
pub enum Due {
    /// Each by itself.
    Each(Vec<DueAlert>),
    /// All together.
    Digest(Vec<DueAlert>),
}

/// Takes the alerts of a channel that are due. The first few of a minute go at once, each by
/// itself; what comes after them goes together, a minute after the first of those.
///
/// # Errors
/// Nothing is taken.
pub async fn claim(db: &PgPool, channel: &str) -> Result<Due, StoreError> {
    let mut transaction = db.begin().await?;
    // Processes count one after another: the lock comes in a statement of its own, since a statement
    // sees what was committed before it.
    sqlx::query!(
        r#"select 1 as "locked!" from pg_advisory_xact_lock(hashtextextended($1, 131031001))"#,
        channel
    )
    .fetch_one(&mut *transaction)
    .await?;
    let state = sqlx::query!(
        r#"select count(*) filter (where state = 'waiting' and is_free) as "waiting!",
                  count(*) filter (where not in_digest
                                     and (state = 'accepted' or lease_until >= now()))
                    as "told!",
                  coalesce(min(created_at) filter (where state = 'waiting' and is_free)
                             <= now() - $2::interval, false) as "is_old!"
             from (select *, coalesce(lease_until < now(), true) and next_attempt_at <= now()
                             as is_free
                     from alerts
                    where channel = $1 and kind <> 'test'
                      and (state = 'waiting' or ended_at > now() - $2::interval)) recent"#,
        channel,
        interval(alerting::DIGEST_INTERVAL),
    )
    .fetch_one(&mut *transaction)
    .await?;
    let due = match alerting::pace(state.told, state.waiting, state.is_old) {
        Pace::Digest => {
            Due::Digest(take(&mut transaction, channel, Part::Digest, DIGEST_LIMIT).await?)
        }
        Pace::Each(limit) => {
            let mut due = take(&mut transaction, channel, Part::Each, limit).await?;
            // A person waits for the answer to a test.
            due.extend(take(&mut transaction, channel, Part::Tests, TESTS_LIMIT).await?);
            Due::Each(due)
        }
    };
    transaction.commit().await?;
    Ok(due)
}

/// What is taken of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Each,
    Digest,
    Tests,
}

async fn take(
    db: &mut PgConnection,
    channel: &str,
    part: Part,
    limit: i64,
) -> Result<Vec<DueAlert>, StoreError> {
    let rows = sqlx::query!(
        "update alerts a
            set lease_until = now() + $3, attempts = a.attempts + 1, in_digest = $4
           from (select id, waba_id from alerts
                  where state = 'waiting' and channel = $1 and (kind = 'test') = $5
                    and next_attempt_at <= now()
                    and (lease_until is null or lease_until < now())
                  order by id
                  limit $2
                    for update skip locked) due
          where a.id = due.id and a.waba_id = due.waba_id
         returning a.id, a.change_id, a.incident_id, a.event_id, a.trouble_id, a.kind, a.attempts,
                   a.tried_since",
        channel,
        limit,
        interval(LEASE),
        part == Part::Digest,
        part == Part::Tests,
    )
    .fetch_all(db)
    .await?;
    let mut due: Vec<DueAlert> = rows
        .into_iter()
        .map(|row| {
            let topic = match (row.change_id, row.incident_id, row.event_id, row.trouble_id) {
                (Some(id), Some(incident_id), ..) => Topic::Change { id, incident_id },
                (_, _, Some(id), _) => Topic::Event(id),
                (.., Some(id)) => Topic::Trouble(id),
                _ => Topic::Test,
            };
            DueAlert {
                id: row.id,
                topic,
                kind: row.kind,
                attempts: row.attempts,
                tried_since: row.tried_since,
            }
        })
        .collect();
    due.sort_by_key(|alert| alert.id);
    Ok(due)
}

/// What became of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver took it.
    Accepted,
    /// It is tried again after this time.
    Retry(std::time::Duration),
    /// It is given up.
    Dead,
}

/// Notes what became of a try of these alerts, and what the receiver answered.
///
/// # Errors
/// Nothing is changed.
pub async fn note_outcome(
    db: &PgPool,
    channel: &str,
    ids: &[i64],
    outcome: &Outcome,
    answer: &str,
) -> Result<(), StoreError> {
    let (state, pause) = match outcome {
        Outcome::Accepted => ("accepted", std::time::Duration::ZERO),
        Outcome::Retry(pause) => ("waiting", *pause),
        Outcome::Dead => ("dead", std::time::Duration::ZERO),
    };
    sqlx::query!(
        "update alerts
            set state = $2, last_answer = $3, lease_until = null, next_attempt_at = now() + $4,
                ended_at = case when $2 = 'waiting' then null else now() end
          where id = any($1) and state = 'waiting'",
        ids,
        state,
        answer,
        interval(pause),
    )
    .execute(db)
    .await?;
    note_answer(db, channel, *outcome == Outcome::Accepted, answer).await
}

/// Notes how a channel answered last.
pub async fn note_answer(
    db: &PgPool,
    channel: &str,
    is_accepted: bool,
    answer: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into alert_channels as c (channel, accepted_at, failed_at, last_answer)
         values ($1, case when $2 then now() end, case when not $2 then now() end, $3)
             on conflict (channel) do update
            set accepted_at = coalesce(excluded.accepted_at, c.accepted_at),
                failed_at   = coalesce(excluded.failed_at, c.failed_at),
                last_answer = excluded.last_answer",
        channel,
        is_accepted,
        answer,
    )
    .execute(db)
    .await?;
    Ok(())
}
