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
use crate::store::{StoreError, Word, interval, try_lock};

/// What is looked at in one transaction.
const DISPATCH_LIMIT: i64 = 500;
/// One process decides at a time: what is told of an incident has an order.
const DISPATCH_LOCK: i64 = 131_031_004;
/// Two processes do not remind at once.
const REMINDER_LOCK: i64 = 131_031_002;

/// Decides whom to tell of the changes and notices that wait for that, and writes alerts. Call it
/// from a task that nobody cancels.
///
/// # Errors
/// What was decided before the error stays.
pub async fn dispatch(db: &PgPool, subscribers: &[Subscriber]) -> Result<(), StoreError> {
    let mut round = Round::default();
    while round.is_more_there {
        let mut transaction = db.begin().await?;
        if try_lock(&mut transaction, DISPATCH_LOCK).await?.is_none() {
            return Ok(());
        }
        decide_changes(&mut transaction, subscribers, &mut round).await?;
        if !round.is_more_there {
            decide_notices(&mut transaction, subscribers).await?;
        }
        transaction.commit().await?;
    }
    Ok(())
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
}

impl Default for Round {
    fn default() -> Self {
        Self {
            after: 0,
            is_more_there: true,
            waiting: BTreeSet::new(),
            told: BTreeSet::new(),
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
                  n.muted_at is not null as "is_muted!", now() as "now!",
                  (select max(a.created_at) from alerts a
                    where a.incident_id = i.id and a.waba_id = i.waba_id
                      and a.kind in ('incident.opened', 'incident.cause_changed'))
                    as cause_told_at
             from incident_changes c
             join incidents i on i.id = c.incident_id and i.waba_id = c.waba_id
             join accounts n on n.waba_id = c.waba_id
            where c.dispatched_at is null and c.id > $2
            order by c.id
            limit $1"#,
        DISPATCH_LIMIT,
        round.after,
    )
    .fetch_all(&mut *db)
    .await?;
    round.after = rows.last().map_or(round.after, |row| row.id);
    round.is_more_there = i64::try_from(rows.len()) == Ok(DISPATCH_LIMIT);
    let (mut decided, mut alerts) = (Vec::new(), Vec::new());
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
                is_muted: row.is_muted,
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
                let channels =
                    Subscriber::wanting(subscribers, kind, row.waba_id.as_str(), &row.labels);
                alerts.push(NewAlert {
                    topic,
                    waba_id: row.waba_id.to_string(),
                    kind,
                    channels,
                });
                decided.push(row.id);
                round.told.insert(row.incident_id);
            }
        }
    }
    insert(db, &alerts).await?;
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
) -> Result<(), StoreError> {
    let rows = sqlx::query!(
        r#"select e.id, e.waba_id, e.field, e.event, e.state, e.detail, e.occurred_at, e.expires_at,
                  e.received_at, e.evidence_of is not null as "is_evidence!",
                  exists (select from incidents i
                           where i.waba_id = e.waba_id and i.resolved_at is null)
                    as "has_open_incident!",
                  coalesce(n.labels, '{}') as "labels!", n.muted_at is not null as "is_muted!"
             from account_events e
             left join accounts n using (waba_id)
            where e.dispatched_at is null
            order by e.id
            limit $1"#,
        DISPATCH_LIMIT,
    )
    .fetch_all(&mut *db)
    .await?;
    if rows.is_empty() {
        return Ok(());
    }
    let mut alerts = Vec::new();
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
            && !row.is_muted
            && is_notice_told(
                &notice,
                row.received_at,
                row.is_evidence,
                row.has_open_incident,
            );
        if is_told {
            let kind = AlertKind::Notice;
            let channels = Subscriber::wanting(subscribers, kind, &row.waba_id, &row.labels);
            alerts.push(NewAlert {
                topic: Topic::Event(row.id),
                waba_id: row.waba_id,
                kind,
                channels,
            });
        }
    }
    insert(db, &alerts).await?;
    sqlx::query!(
        "update account_events set dispatched_at = now() where id = any($1)",
        &ids
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Notes a reminder for each incident that is still open and not acknowledged a day after its
/// opening or its last reminder. Returns their number. Call it from a task that nobody cancels.
///
/// # Errors
/// Nothing is changed.
pub async fn note_reminders(db: &PgPool) -> Result<u64, StoreError> {
    let mut transaction = db.begin().await?;
    if try_lock(&mut transaction, REMINDER_LOCK).await?.is_none() {
        return Ok(0);
    }
    let reminders = sqlx::query!(
        "insert into incident_changes (incident_id, waba_id, kind)
         select i.id, i.waba_id, 'reminded'
           from incidents i
           join accounts n using (waba_id)
          where i.resolved_at is null and i.ended_at is null and i.acknowledged_at is null
            and n.muted_at is null
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

/// What is to be told, and to whom.
#[derive(Debug)]
pub(in crate::store) struct NewAlert {
    pub(in crate::store) topic: Topic,
    pub(in crate::store) waba_id: String,
    pub(in crate::store) kind: AlertKind,
    pub(in crate::store) channels: Vec<String>,
}

impl NewAlert {
    /// Returns whether it says nothing that the message of the beginning will not say, too.
    fn may_be_folded(&self) -> bool {
        match self.kind {
            AlertKind::Resolved | AlertKind::CauseChanged | AlertKind::Over(_) => true,
            AlertKind::Opened
            | AlertKind::Reopened
            | AlertKind::Reminder
            | AlertKind::Notice
            | AlertKind::Began(_) => false,
        }
    }
}

/// Inserts alerts, in their order. What is over before its beginning was told is told by that
/// message.
pub(in crate::store) async fn insert(
    db: &mut PgConnection,
    alerts: &[NewAlert],
) -> Result<(), StoreError> {
    let mut rows = Rows::default();
    let mut beginning = BTreeSet::new();
    for alert in alerts {
        let (mut change, mut incident, mut event, mut trouble) = (None, None, None, None);
        match alert.topic {
            Topic::Change { id, incident_id } => (change, incident) = (Some(id), Some(incident_id)),
            Topic::Event(id) => event = Some(id),
            Topic::Trouble(id) => trouble = Some(id),
            Topic::Test => {}
        }
        for channel in &alert.channels {
            let thing = (incident, trouble, channel);
            if alert.kind == AlertKind::Opened {
                beginning.insert(thing);
            }
            rows.changes.push(change);
            rows.incidents.push(incident);
            rows.events.push(event);
            rows.troubles.push(trouble);
            rows.accounts.push(&alert.waba_id);
            rows.channels.push(channel);
            rows.kinds.push(alert.kind.name().into_owned());
            rows.may_be_folded.push(alert.may_be_folded());
            rows.is_folded
                .push(alert.may_be_folded() && beginning.contains(&thing));
        }
    }
    if rows.channels.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into alerts (change_id, incident_id, event_id, trouble_id, waba_id, channel, kind,
                             state, ended_at)
         select n.change, n.incident, n.event, n.trouble, n.account, n.channel, n.kind,
                case when is_untold then 'folded' else 'waiting' end,
                case when is_untold then now() end
           from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[],
                       $6::text[], $7::text[], $8::boolean[], $9::boolean[])
                with ordinality
                as n(change, incident, event, trouble, account, channel, kind, may_be_folded,
                     is_folded, position)
          cross join lateral (
                  select n.is_folded or n.may_be_folded and exists (
                             select from alerts a
                              where a.waba_id = n.account and a.channel = n.channel
                                and a.state = 'waiting' and a.lease_until is null
                                and (a.incident_id = n.incident and a.kind = 'incident.opened'
                                     or a.trouble_id = n.trouble))
                         as is_untold) told
          order by n.position",
        &rows.changes as &[Option<i64>],
        &rows.incidents as &[Option<i64>],
        &rows.events as &[Option<i64>],
        &rows.troubles as &[Option<i64>],
        &rows.accounts as &[&str],
        &rows.channels as &[&str],
        &rows.kinds,
        &rows.may_be_folded,
        &rows.is_folded,
    )
    .execute(db)
    .await?;
    Ok(())
}

/// The columns of new alerts.
#[derive(Debug, Default)]
struct Rows<'a> {
    changes: Vec<Option<i64>>,
    incidents: Vec<Option<i64>>,
    events: Vec<Option<i64>>,
    troubles: Vec<Option<i64>>,
    accounts: Vec<&'a str>,
    channels: Vec<&'a str>,
    kinds: Vec<String>,
    may_be_folded: Vec<bool>,
    is_folded: Vec<bool>,
}
