//! Alerts: dispatches the changes of incidents to channels, and keeps what became of each message.

use std::collections::BTreeSet;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use super::{StoreError, Word, interval};
use crate::lockout::alerting::{self, AlertKind, Decision, News, Pace, decide};
use crate::lockout::cause::LockoutCause;
use crate::lockout::change::ChangeKind;
use crate::meta::ids::WabaId;

/// Changes that are looked at in one transaction.
const DISPATCH_LIMIT: i64 = 500;
/// The most messages that are told together.
const DIGEST_LIMIT: i64 = 500;
/// The lease of a message that is being delivered. It is longer than a delivery can take.
const LEASE: std::time::Duration = std::time::Duration::from_secs(30);

/// Decides whom to tell of the changes that wait for that, and writes a message for each channel.
/// Returns the number of messages. Call it from a task that nobody cancels.
///
/// # Errors
/// Nothing is changed.
pub async fn dispatch(db: &PgPool, channels: &[&str]) -> Result<usize, StoreError> {
    let mut transaction = db.begin().await?;
    let mut round = Round::default();
    while round.is_more_there {
        decide_some(&mut transaction, channels, &mut round).await?;
    }
    transaction.commit().await?;
    Ok(round.messages)
}

/// What is known in a round over all undecided changes.
#[derive(Debug)]
struct Round {
    after: i64,
    is_more_there: bool,
    /// The incidents with a change that waits: later ones wait behind it.
    waiting: BTreeSet<i64>,
    /// The incidents of which people are told in this round.
    told: BTreeSet<i64>,
    messages: usize,
}

impl Default for Round {
    fn default() -> Self {
        Self {
            after: 0,
            is_more_there: true,
            waiting: BTreeSet::new(),
            told: BTreeSet::new(),
            messages: 0,
        }
    }
}

async fn decide_some(
    db: &mut PgConnection,
    channels: &[&str],
    round: &mut Round,
) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        r#"select c.id, c.incident_id, c.waba_id as "waba_id: WabaId", c.kind, c.detail, c.at,
                  i.cause as "cause: Word<LockoutCause>", i.ended_at, i.created_at, now() as "now!",
                  (select max(a.created_at) from alerts a
                    where a.incident_id = i.id and a.waba_id = i.waba_id
                      and a.kind in ('opened', 'cause_changed')) as cause_told_at
             from incident_changes c
             join incidents i on i.id = c.incident_id and i.waba_id = c.waba_id
            where c.dispatched_at is null and c.id > $2
            order by c.id
            limit $1
              for update of c skip locked"#,
        DISPATCH_LIMIT,
        round.after,
    )
    .fetch_all(&mut *db)
    .await?;
    round.after = rows.last().map_or(round.after, |row| row.id);
    round.is_more_there = i64::try_from(rows.len()) == Ok(DISPATCH_LIMIT);
    let mut decided = Vec::new();
    for row in rows {
        if round.waiting.contains(&row.incident_id) {
            continue;
        }
        let decision = match ChangeKind::parse(&row.kind, row.detail.as_deref()) {
            Some(kind) => decide(&News {
                kind,
                at: row.at,
                cause: row.cause.known().unwrap_or(LockoutCause::OtherRestriction),
                ended_at: row.ended_at,
                first_seen_at: row.created_at,
                cause_told_at: match round.told.contains(&row.incident_id) {
                    true => Some(row.now),
                    false => row.cause_told_at,
                },
                now: row.now,
            }),
            // A later version wrote it, and tells it.
            None => Decision::Wait,
        };
        match decision {
            Decision::Wait => {
                round.waiting.insert(row.incident_id);
            }
            Decision::Skip => decided.push(row.id),
            Decision::Tell(kind) => {
                let id = Identity {
                    change_id: row.id,
                    incident_id: row.incident_id,
                    waba_id: &row.waba_id,
                };
                round.messages += insert(db, &id, kind, channels).await?;
                decided.push(row.id);
                round.told.insert(row.incident_id);
            }
        }
    }
    sqlx::query!(
        "update incident_changes set dispatched_at = now() where id = any($1)",
        &decided
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The change that a message tells.
struct Identity<'i> {
    change_id: i64,
    incident_id: i64,
    waba_id: &'i WabaId,
}

/// Inserts a message for each channel. An end whose opening has not been told yet is told by the
/// message of the opening.
async fn insert(
    db: &mut PgConnection,
    id: &Identity<'_>,
    kind: AlertKind,
    channels: &[&str],
) -> Result<usize, StoreError> {
    let channels: Vec<String> = channels.iter().map(|name| (*name).to_owned()).collect();
    let inserted = sqlx::query!(
        "insert into alerts (change_id, incident_id, waba_id, channel, kind, state, ended_at)
         select $1, $2, $3, channel, $4,
                case when is_untold then 'folded' else 'waiting' end,
                case when is_untold then now() end
           from unnest($5::text[]) as channels(channel)
          cross join lateral (
                  select $4 in ('resolved', 'cause_changed')
                         and exists (select from alerts
                                      where incident_id = $2 and waba_id = $3
                                        and channel = channels.channel and kind = 'opened'
                                        and state = 'waiting' and lease_until is null)
                         as is_untold) told
             on conflict (change_id, channel, waba_id) do nothing",
        id.change_id,
        id.incident_id,
        id.waba_id.as_str(),
        kind.as_str(),
        &channels,
    )
    .execute(db)
    .await?;
    Ok(usize::try_from(inserted.rows_affected()).unwrap_or(usize::MAX))
}

/// A message that this process delivers.
#[derive(Debug, Clone)]
pub struct DueAlert {
    /// Its id.
    pub id: i64,
    /// The change that it tells.
    pub change_id: i64,
    /// The incident.
    pub incident_id: i64,
    /// The channel.
    pub channel: String,
    /// What it tells, as a word.
    pub kind: String,
    /// The tries before this one.
    pub attempts: i32,
    /// When it was written.
    pub created_at: OffsetDateTime,
}

/// The messages of a channel to deliver now.
#[derive(Debug, Clone)]
pub enum Due {
    /// Each by itself.
    Each(Vec<DueAlert>),
    /// All together.
    Digest(Vec<DueAlert>),
}

/// Takes the messages of a channel that are due. The first few of a minute go at once, each by
/// itself; what comes after them goes together, a minute after the first of those.
///
/// # Errors
/// Nothing is taken.
pub async fn claim(db: &PgPool, channel: &str) -> Result<Due, StoreError> {
    let mut transaction = db.begin().await?;
    // Processes count one after another.
    let state = sqlx::query!(
        r#"select count(*) filter (where state = 'waiting' and is_free) as "waiting!",
                  count(*) filter (where not in_digest
                                     and (state = 'accepted' or state = 'waiting' and not is_free))
                    as "told!",
                  coalesce(min(created_at) filter (where state = 'waiting' and is_free)
                             <= now() - $2::interval, false) as "is_old!",
                  pg_advisory_xact_lock(hashtextextended($1, 131031001)) is null as locked
             from (select *, coalesce(lease_until < now(), true) and next_attempt_at <= now()
                             as is_free
                     from alerts
                    where channel = $1
                      and (state = 'waiting' or ended_at > now() - $2::interval)) recent"#,
        channel,
        interval(alerting::DIGEST_INTERVAL),
    )
    .fetch_one(&mut *transaction)
    .await?;
    let (limit, is_digest) = match alerting::pace(state.told, state.waiting, state.is_old) {
        Pace::Each(limit) => (limit, false),
        Pace::Digest => (DIGEST_LIMIT, true),
    };
    let mut due = match limit {
        0 => vec![],
        limit => take(&mut transaction, channel, limit, is_digest).await?,
    };
    transaction.commit().await?;
    due.sort_by_key(|alert| alert.id);
    Ok(match is_digest {
        true => Due::Digest(due),
        false => Due::Each(due),
    })
}

async fn take(
    db: &mut PgConnection,
    channel: &str,
    limit: i64,
    is_digest: bool,
) -> Result<Vec<DueAlert>, StoreError> {
    let due = sqlx::query_as!(
        DueAlert,
        "update alerts a
            set lease_until = now() + $3, attempts = a.attempts + 1, in_digest = $4
           from (select id, waba_id from alerts
                  where state = 'waiting' and channel = $1 and next_attempt_at <= now()
                    and (lease_until is null or lease_until < now())
                  order by id
                  limit $2
                    for update skip locked) due
          where a.id = due.id and a.waba_id = due.waba_id
         returning a.id, a.change_id, a.incident_id, a.channel, a.kind, a.attempts, a.created_at",
        channel,
        limit,
        interval(LEASE),
        is_digest,
    );
    Ok(due.fetch_all(db).await?)
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

/// Notes what became of a try of these messages, and what the receiver answered.
pub async fn note_outcome(
    db: &PgPool,
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
    Ok(())
}

/// A message, as people read it. The fields are columns.
#[derive(Debug, Clone, Serialize)]
pub struct Alert {
    /// Its id.
    pub id: i64,
    /// The incident.
    pub incident_id: i64,
    /// The account.
    pub waba_id: String,
    /// The channel.
    pub channel: String,
    /// What it tells.
    pub kind: String,
    /// `waiting`, `accepted`, `dead`, or `folded` into another message.
    pub state: String,
    /// The tries so far.
    pub attempts: i32,
    /// The next try.
    #[serde(with = "time::serde::rfc3339")]
    pub next_attempt_at: OffsetDateTime,
    /// What the receiver answered last.
    pub last_answer: Option<String>,
    /// When it was written.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Lists messages, the newest first.
pub async fn list(db: &PgPool, limit: i64) -> Result<Vec<Alert>, StoreError> {
    let alerts = sqlx::query_as!(
        Alert,
        "select id, incident_id, waba_id, channel, kind, state, attempts, next_attempt_at,
                last_answer, created_at
           from alerts
          order by id desc
          limit $1",
        limit,
    );
    Ok(alerts.fetch_all(db).await?)
}

/// Makes messages due that wait or were given up: all of them, or these. Returns their number.
pub async fn retry(db: &PgPool, ids: &[i64]) -> Result<u64, StoreError> {
    let retried = sqlx::query!(
        "update alerts
            set state = 'waiting', next_attempt_at = now(), ended_at = null, created_at = now()
          where state in ('waiting', 'dead') and (cardinality($1::bigint[]) = 0 or id = any($1))",
        ids,
    )
    .execute(db)
    .await?;
    Ok(retried.rows_affected())
}

/// The messages of a channel that wait or were given up.
#[derive(Debug, Clone)]
pub struct ChannelState {
    /// The channel.
    pub channel: String,
    /// Those that wait after a failed try.
    pub failing: i64,
    /// Those that were given up.
    pub dead: i64,
    /// What the receiver answered last.
    pub last_answer: Option<String>,
}

/// Returns the channels with messages that nobody took.
pub async fn troubles(db: &PgPool) -> Result<Vec<ChannelState>, StoreError> {
    let states = sqlx::query_as!(
        ChannelState,
        r#"select channel, count(*) filter (where state = 'waiting') as "failing!",
                  count(*) filter (where state = 'dead') as "dead!",
                  (array_agg(last_answer order by id desc))[1] as last_answer
             from alerts
            where state = 'dead' or state = 'waiting' and attempts > 1
            group by channel
            order by channel"#
    );
    Ok(states.fetch_all(db).await?)
}
