//! Dispatch: decides whom to tell of a change, of a notice or of a trouble, and writes an alert for
//! each channel.

use std::collections::BTreeSet;

use sqlx::{PgConnection, PgPool};

use crate::lockout::alerting::{
    AlertKind, Decision, News, REMINDER_INTERVAL, Subscriber, decide, is_notice_told,
};
use crate::lockout::cause::{LockoutCause, Notice};
use crate::lockout::change::ChangeKind;
use crate::meta::ids::WabaId;
use crate::store::{StoreError, Word, interval};

/// What is looked at in one transaction.
const DISPATCH_LIMIT: i64 = 500;
/// Two processes do not remind at once.
const REMINDER_LOCK: i64 = 131_031_002;

/// Decides whom to tell of the changes and notices that wait for that, and writes alerts. Returns
/// their number. Call it from a task that nobody cancels.
///
/// # Errors
/// Nothing is changed.
pub async fn dispatch(db: &PgPool, subscribers: &[Subscriber]) -> Result<usize, StoreError> {
    let mut transaction = db.begin().await?;
    let mut round = Round::default();
    while round.is_more_there {
        decide_changes(&mut transaction, subscribers, &mut round).await?;
    }
    let notices = decide_notices(&mut transaction, subscribers).await?;
    transaction.commit().await?;
    Ok(round.alerts + notices)
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
    alerts: usize,
}

impl Default for Round {
    fn default() -> Self {
        Self {
            after: 0,
            is_more_there: true,
            waiting: BTreeSet::new(),
            told: BTreeSet::new(),
            alerts: 0,
        }
    }
}

async fn decide_changes(
    db: &mut PgConnection,
    subscribers: &[Subscriber],
    round: &mut Round,
) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        r#"select c.id, c.incident_id, c.waba_id as "waba_id: WabaId", c.kind, c.detail, c.at,
                  i.cause as "cause: Word<LockoutCause>", i.ended_at, i.created_at, n.labels,
                  now() as "now!",
                  (select max(a.created_at) from alerts a
                    where a.incident_id = i.id and a.waba_id = i.waba_id
                      and a.kind in ('incident.opened', 'incident.cause_changed'))
                    as cause_told_at
             from incident_changes c
             join incidents i on i.id = c.incident_id and i.waba_id = c.waba_id
             join accounts n on n.waba_id = c.waba_id
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
                let topic = Topic::Change {
                    id: row.id,
                    incident_id: row.incident_id,
                };
                let waba_id = row.waba_id.as_str();
                let channels = Subscriber::wanting(subscribers, kind, waba_id, &row.labels);
                round.alerts += insert(db, topic, waba_id, kind, &channels).await?;
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

async fn decide_notices(
    db: &mut PgConnection,
    subscribers: &[Subscriber],
) -> Result<usize, StoreError> {
    let rows = sqlx::query!(
        r#"select e.id, e.waba_id, e.field, e.event, e.state, e.detail, e.occurred_at, e.expires_at,
                  e.received_at, e.evidence_of is not null as "is_evidence!",
                  exists (select from incidents i
                           where i.waba_id = e.waba_id and i.resolved_at is null)
                    as "has_open_incident!",
                  coalesce((select labels from accounts where waba_id = e.waba_id), '{}')
                    as "labels!"
             from account_events e
            where e.dispatched_at is null
            order by e.id
            limit $1
              for update of e skip locked"#,
        DISPATCH_LIMIT,
    )
    .fetch_all(&mut *db)
    .await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let mut alerts = 0;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    for row in rows {
        let notice = Notice {
            field: row.field,
            event: row.event,
            state: row.state,
            detail: row.detail,
            occurred_at: row.occurred_at,
            expires_at: row.expires_at,
        };
        // Meta's test button sends its samples for the account "0".
        let is_told = row.waba_id != "0"
            && is_notice_told(
                &notice,
                row.received_at,
                row.is_evidence,
                row.has_open_incident,
            );
        if is_told {
            let kind = AlertKind::Notice;
            let channels = Subscriber::wanting(subscribers, kind, &row.waba_id, &row.labels);
            alerts += insert(db, Topic::Event(row.id), &row.waba_id, kind, &channels).await?;
        }
    }
    sqlx::query!(
        "update account_events set dispatched_at = now() where id = any($1)",
        &ids
    )
    .execute(db)
    .await?;
    Ok(alerts)
}

/// Notes a reminder for each incident that is still open and not acknowledged a day after its
/// opening or its last reminder. Returns their number. Call it from a task that nobody cancels.
///
/// # Errors
/// Nothing is changed.
pub async fn note_reminders(db: &PgPool) -> Result<u64, StoreError> {
    let mut transaction = db.begin().await?;
    let is_mine = sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock($1) as "is_mine!""#,
        REMINDER_LOCK
    )
    .fetch_one(&mut *transaction)
    .await?;
    if !is_mine {
        return Ok(0);
    }
    let reminders = sqlx::query!(
        "insert into incident_changes (incident_id, waba_id, kind)
         select i.id, i.waba_id, 'reminded'
           from incidents i
          where i.resolved_at is null and i.ended_at is null and i.acknowledged_at is null
            and i.created_at < now() - $1::interval
            and not exists (select from incident_changes c
                             where c.incident_id = i.id and c.waba_id = i.waba_id
                               and c.kind in ('opened', 'reopened', 'reminded')
                               and c.at > now() - $1::interval)
          order by i.id
          limit $2",
        interval(REMINDER_INTERVAL),
        DISPATCH_LIMIT,
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(reminders.rows_affected())
}

/// What an alert tells of, by its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// A change of an incident.
    Change {
        /// The change.
        id: i64,
        /// Its incident.
        incident_id: i64,
    },
    /// An account event.
    Event(i64),
    /// A trouble.
    Trouble(i64),
    /// Nothing: it tests its channel.
    Test,
}

/// Inserts an alert for each channel. What is over before its beginning was told is told by that
/// message.
pub(in crate::store) async fn insert(
    db: &mut PgConnection,
    topic: Topic,
    waba_id: &str,
    kind: AlertKind,
    channels: &[String],
) -> Result<usize, StoreError> {
    let (mut change, mut incident, mut event, mut trouble) = (None, None, None, None);
    match topic {
        Topic::Change { id, incident_id } => (change, incident) = (Some(id), Some(incident_id)),
        Topic::Event(id) => event = Some(id),
        Topic::Trouble(id) => trouble = Some(id),
        Topic::Test => {}
    }
    let may_be_folded = match kind {
        AlertKind::Resolved | AlertKind::CauseChanged | AlertKind::Over(_) => true,
        AlertKind::Opened
        | AlertKind::Reopened
        | AlertKind::Reminder
        | AlertKind::Notice
        | AlertKind::Began(_) => false,
    };
    let name = kind.name();
    let inserted = sqlx::query!(
        "insert into alerts (change_id, incident_id, event_id, trouble_id, waba_id, channel, kind,
                             state, ended_at)
         select $1, $2, $3, $4, $5, channel, $6,
                case when is_untold then 'folded' else 'waiting' end,
                case when is_untold then now() end
           from unnest($7::text[]) as channels(channel)
          cross join lateral (
                  select $8 and exists (
                             select from alerts
                              where waba_id = $5 and channel = channels.channel
                                and state = 'waiting' and lease_until is null
                                and (incident_id = $2 and kind = 'incident.opened'
                                     or trouble_id = $4))
                         as is_untold) told
             on conflict do nothing",
        change,
        incident,
        event,
        trouble,
        waba_id,
        name.as_ref(),
        channels,
        may_be_folded,
    )
    .execute(db)
    .await?;
    Ok(usize::try_from(inserted.rows_affected()).unwrap_or(usize::MAX))
}
