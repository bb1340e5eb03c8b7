//! Alerts: what people are to be told, on its way to each channel, and what became of it.
//!
//! [`dispatch`](dispatch()) decides and writes, [`claim`] takes what is due, and [`note_outcome`]
//! keeps what the receiver answered.

mod dispatch;
mod queue;

use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

pub(super) use self::dispatch::{NewAlert, insert};
pub use self::dispatch::{Topic, dispatch, note_reminders};
pub use self::queue::{Due, DueAlert, Outcome, claim, note_answer, note_outcome};
use super::{StoreError, interval};
use crate::lockout::trouble::ALL_ACCOUNTS;

/// An alert that waits for longer than it is tried has lost its channel.
const ABANDONED_AFTER: Duration = Duration::from_secs(30 * 60 * 60);

/// An alert, as people read it. The fields are columns.
#[derive(Debug, Clone, Serialize)]
pub struct Alert {
    /// Its id.
    pub id: i64,
    /// The incident, if it tells of one.
    pub incident_id: Option<i64>,
    /// The account, or `all`.
    pub waba_id: String,
    /// The channel.
    pub channel: String,
    /// What it tells, such as `incident.opened`.
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

/// Lists alerts, the newest first.
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

/// Makes alerts due that wait or were given up: all of them, or these. Returns their number.
pub async fn retry(db: &PgPool, ids: &[i64]) -> Result<u64, StoreError> {
    let retried = sqlx::query!(
        "update alerts
            set state = 'waiting', next_attempt_at = now(), ended_at = null, tried_since = now()
          where state in ('waiting', 'dead') and (cardinality($1::bigint[]) = 0 or id = any($1))",
        ids,
    )
    .execute(db)
    .await?;
    Ok(retried.rows_affected())
}

/// Writes an alert that only tests a channel.
pub async fn insert_test(db: &PgPool, channel: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into alerts (waba_id, channel, kind) values ($1, $2, 'test')",
        ALL_ACCOUNTS,
        channel,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Gives up alerts of channels that are none of these, and that no other process has tried for
/// long. Returns their number.
pub async fn give_up_abandoned(db: &PgPool, channels: &[String]) -> Result<u64, StoreError> {
    let abandoned = sqlx::query!(
        "update alerts
            set state = 'dead', ended_at = now(),
                last_answer = coalesce(last_answer, 'no process has this channel')
          where state = 'waiting' and tried_since < now() - $1::interval and channel <> all($2)
            and coalesce(lease_until < now(), true)",
        interval(ABANDONED_AFTER),
        channels,
    )
    .execute(db)
    .await?;
    Ok(abandoned.rows_affected())
}

/// What a channel has taken, and what waits for it.
#[derive(Debug, Clone, Default)]
pub struct ChannelState {
    /// The channel.
    pub channel: String,
    /// The alerts that wait.
    pub waiting: i64,
    /// Those of them that a try has failed for.
    pub failing: i64,
    /// Those that were given up in the last day.
    pub dead: i64,
    /// When it last took one.
    pub accepted_at: Option<OffsetDateTime>,
    /// When it last did not.
    pub failed_at: Option<OffsetDateTime>,
    /// What the receiver answered last.
    pub last_answer: Option<String>,
}

impl ChannelState {
    /// Returns whether the receiver did not take what it was sent last.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing > 0 || self.failed_at > self.accepted_at
    }
}

/// Returns the state of every channel that was ever sent something, or is to be.
pub async fn channel_states(db: &PgPool) -> Result<Vec<ChannelState>, StoreError> {
    let states = sqlx::query_as!(
        ChannelState,
        r#"select channel as "channel!", coalesce(waiting, 0) as "waiting!",
                  coalesce(failing, 0) as "failing!", coalesce(dead, 0) as "dead!",
                  accepted_at, failed_at, last_answer
             from alert_channels
             full join (select channel, count(*) filter (where state = 'waiting') as waiting,
                               count(*) filter (where state = 'waiting' and attempts > 0
                                                  and lease_until is null) as failing,
                               count(*) filter (where state = 'dead'
                                                  and ended_at > now() - interval '1 day') as dead
                          from alerts
                         where state in ('waiting', 'dead')
                         group by channel) open using (channel)
            order by channel"#
    );
    Ok(states.fetch_all(db).await?)
}
