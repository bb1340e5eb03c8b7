//! Account events, as people read them, and as evidence.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{StoreError, interval};
use crate::lockout::cause::{Meaning, NOTICE_WINDOW, Notice, meaning};
use crate::meta::ids::WabaId;

/// The most events that are shown with an incident.
const SHOWN_EVENT_LIMIT: i64 = 50;

/// One thing that Meta reported about an account itself. The fields are columns.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AccountEvent {
    /// The id of the event.
    pub id: i64,
    /// The field of the callback.
    #[schema(example = "account_update")]
    pub field: String,
    /// What happened, in Meta's word.
    #[schema(example = "DISABLED_UPDATE")]
    pub event: String,
    /// The state that it led to, in Meta's words.
    #[schema(example = "DISABLE")]
    pub state: Option<String>,
    /// Meta's other words.
    pub detail: Option<String>,
    /// The time of the event.
    #[serde(with = "time::serde::rfc3339")]
    pub occurred_at: OffsetDateTime,
    /// The end that Meta announced.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
}

impl AccountEvent {
    /// What happened, in the fewest of Meta's words: `DISABLE`, `PIN_CHANGED`.
    #[must_use]
    pub fn short_name(&self) -> &str {
        match self.event.as_str() {
            "DISABLED_UPDATE" => self.state.as_deref().unwrap_or("DISABLED_UPDATE"),
            "error" => "error of the account",
            event => event,
        }
    }

    /// Returns it as a notice, for the rules.
    pub(crate) fn to_notice(&self) -> Notice {
        Notice {
            field: self.field.clone(),
            event: self.event.clone(),
            state: self.state.clone(),
            detail: self.detail.clone(),
            occurred_at: self.occurred_at,
            expires_at: self.expires_at,
        }
    }

    /// Returns whether it says something about a lock.
    pub(crate) fn has_meaning(&self) -> bool {
        let meaning = meaning(&self.field, &self.event, self.state.as_deref());
        self.event == "error" || meaning != Meaning::Nothing
    }
}

/// An account event with what is known of its account.
#[derive(Debug, Clone, Serialize)]
pub struct AccountNotice {
    /// The account.
    pub waba_id: String,
    /// Its name.
    pub account_name: Option<String>,
    /// The business portfolio that owns it.
    pub portfolio_id: Option<String>,
    #[serde(flatten)]
    #[allow(missing_docs, reason = "the type has its own documentation")]
    pub event: AccountEvent,
}

/// Finds account events by their ids.
pub(crate) async fn find(db: &PgPool, ids: &[i64]) -> Result<Vec<AccountNotice>, StoreError> {
    let rows = sqlx::query!(
        r#"select e.id, e.waba_id, e.field, e.event, e.state, e.detail, e.occurred_at, e.expires_at,
                  a.name as "name?", a.portfolio_id as "portfolio_id?"
             from account_events e
             left join accounts a using (waba_id)
            where e.id = any($1)
            order by e.id"#,
        ids,
    )
    .fetch_all(db)
    .await?;
    let notices = rows.into_iter().map(|row| AccountNotice {
        waba_id: row.waba_id,
        account_name: row.name,
        portfolio_id: row.portfolio_id,
        event: AccountEvent {
            id: row.id,
            field: row.field,
            event: row.event,
            state: row.state,
            detail: row.detail,
            occurred_at: row.occurred_at,
            expires_at: row.expires_at,
        },
    });
    Ok(notices.collect())
}

/// Lists the events of these incidents, by the id of the incident, the earliest first: those of the
/// account from thirty days before the opening until the end.
pub(crate) async fn of_incidents(
    db: &PgPool,
    ids: &[i64],
) -> Result<BTreeMap<i64, Vec<AccountEvent>>, StoreError> {
    let rows = sqlx::query!(
        r#"select i.id as incident_id, e.id, e.field, e.event, e.state, e.detail, e.occurred_at,
                  e.expires_at
             from unnest($1::bigint[]) as wanted(id)
             join incidents i on i.id = wanted.id
            cross join lateral (
                    select *
                      from account_events
                     where waba_id = i.waba_id and occurred_at > i.opened_at - $2::interval
                       and (i.ended_at is null or occurred_at <= i.ended_at)
                     order by occurred_at desc, id desc
                     limit $3) e
            order by e.occurred_at, e.id"#,
        ids,
        interval(NOTICE_WINDOW),
        SHOWN_EVENT_LIMIT,
    )
    .fetch_all(db)
    .await?;
    let mut events: BTreeMap<i64, Vec<AccountEvent>> = BTreeMap::new();
    for row in rows {
        events
            .entry(row.incident_id)
            .or_default()
            .push(AccountEvent {
                id: row.id,
                field: row.field,
                event: row.event,
                state: row.state,
                detail: row.detail,
                occurred_at: row.occurred_at,
                expires_at: row.expires_at,
            });
    }
    Ok(events)
}

/// Returns the notices that can lock an account or lift that, as far as they may concern incidents
/// from this time on: with each that is still in force then, all that came after it.
pub(super) async fn lock_notices(
    db: &mut PgConnection,
    waba_id: &WabaId,
    since: OffsetDateTime,
) -> Result<Vec<Notice>, StoreError> {
    let notices = sqlx::query_as!(
        Notice,
        "select field, event, state, detail, occurred_at, expires_at
           from account_events
          where waba_id = $1 and field = 'account_update'
            and event in ('DISABLED_UPDATE', 'REINSTATED', 'ACCOUNT_RESTRICTION',
                          'ACCOUNT_VIOLATION')
            and occurred_at > least($2::timestamptz - $3::interval,
                                    (select min(occurred_at) - interval '1 s'
                                       from account_events
                                      where waba_id = $1 and field = 'account_update'
                                        and expires_at > $2))
          order by occurred_at, id",
        waba_id.as_str(),
        since,
        interval(NOTICE_WINDOW),
    );
    Ok(notices.fetch_all(db).await?)
}

/// Returns the notices of an account that may concern an incident that opened at this time, the
/// earliest first.
pub(super) async fn notices(
    db: &mut PgConnection,
    waba_id: &WabaId,
    opened_at: OffsetDateTime,
) -> Result<Vec<Notice>, StoreError> {
    let notices = sqlx::query_as!(
        Notice,
        "select field, event, state, detail, occurred_at, expires_at
           from account_events
          where waba_id = $1 and event <> 'error'
            and event not in ('DISABLED_UPDATE', 'REINSTATED', 'ACCOUNT_RESTRICTION',
                              'ACCOUNT_VIOLATION')
            and occurred_at > $2::timestamptz - $3::interval
          order by occurred_at desc
          limit 500",
        waba_id.as_str(),
        opened_at,
        interval(NOTICE_WINDOW),
    );
    let mut notices = notices.fetch_all(&mut *db).await?;
    notices.extend(lock_notices(db, waba_id, opened_at).await?);
    notices.sort_by_key(|notice| notice.occurred_at);
    Ok(notices)
}
