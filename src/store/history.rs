//! The incidents of accounts as the rule for them sees them, with Meta's notices.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{StoreError, Word, events, interval};
use crate::lockout::cause::notice_times;
use crate::lockout::codes::Kind;
use crate::lockout::incident::{EXPIRY_GRACE, History, NoticeTimes, Resolution, Span};
use crate::meta::ids::WabaId;

/// Incidents of an account and kind.
pub(super) type Key = (WabaId, Kind);

/// The incidents of an account and kind that some evidence may concern.
#[derive(Default)]
pub(super) struct Account {
    /// Positions below `stored.len()` are the stored incidents; the others are new.
    pub(super) history: History,
    pub(super) stored: Vec<StoredIncident>,
    /// The ids by position, once the new ones are stored as well.
    pub(super) ids: Vec<i64>,
    /// Whether Meta has sent a notice about the account.
    pub(super) has_notices: bool,
}

pub(super) struct StoredIncident {
    pub(super) id: i64,
    pub(super) ended_at: Option<OffsetDateTime>,
    pub(super) is_resolved: bool,
    /// Whether its end follows from evidence that may still arrive, or it has none.
    pub(super) is_movable: bool,
}

impl Account {
    /// Returns whether a failure at this time belongs to a stored incident and changes nothing
    /// about it but its counts and times.
    pub(super) fn holds(&self, failed_at: OffsetDateTime) -> bool {
        let stored = self
            .history
            .find(failed_at)
            .map(|position| &self.stored[position]);
        stored.is_some_and(|incident| incident.ended_at.is_none() || !incident.is_movable)
    }

    /// The position of an incident.
    pub(super) fn position(&self, id: i64) -> Option<usize> {
        self.ids.iter().position(|known| *known == id)
    }
}

/// Loads the incidents that end after these times, or so shortly before that an announced end may
/// be none.
pub(super) async fn load(
    db: &mut PgConnection,
    earliest: &BTreeMap<(&WabaId, Kind), OffsetDateTime>,
) -> Result<BTreeMap<Key, Account>, StoreError> {
    let rows = sqlx::query!(
        r#"select a.waba_id as "waba_id!: WabaId", a.kind as "kind!: Word<Kind>", i.id as "id?",
                  i.opened_at as "opened_at?", i.last_evidence_at as "last_evidence_at?",
                  i.ended_at, i.reopened_at, i.failure_count as "failure_count?",
                  i.resolution as "resolution: Word<Resolution>",
                  a.kind = 'lock' and exists (select from account_events
                                               where waba_id = a.waba_id
                                                 and field = 'account_update')
                    as "has_notices!"
             from unnest($1::text[], $2::text[], $3::timestamptz[]) as a(waba_id, kind, earliest)
             left join incidents i on i.waba_id = a.waba_id and i.kind = a.kind
                                  and (i.ended_at is null
                                       or i.ended_at > a.earliest - $4::interval)"#,
        &earliest
            .keys()
            .map(|(id, _)| id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &earliest
            .keys()
            .map(|(_, kind)| kind.as_str())
            .collect::<Vec<_>>() as &[&str],
        &earliest.values().copied().collect::<Vec<_>>(),
        interval(EXPIRY_GRACE),
    )
    .fetch_all(&mut *db)
    .await?;
    let mut accounts: BTreeMap<Key, Account> = BTreeMap::new();
    let mut spans: BTreeMap<Key, Vec<Span>> = BTreeMap::new();
    for row in rows {
        let kind = row.kind.known().unwrap_or(Kind::Lock);
        let key = (row.waba_id, kind);
        let account = accounts.entry(key.clone()).or_default();
        let spans = spans.entry(key).or_default();
        account.has_notices |= row.has_notices;
        let Some(((id, opened_at), last_evidence_at)) =
            row.id.zip(row.opened_at).zip(row.last_evidence_at)
        else {
            continue;
        };
        let is_movable = row
            .resolution
            .as_ref()
            .is_none_or(|resolution| resolution.known().is_some_and(Resolution::is_movable));
        account.ids.push(id);
        account.stored.push(StoredIncident {
            id,
            ended_at: row.ended_at,
            is_resolved: row.resolution.is_some(),
            is_movable,
        });
        spans.push(Span {
            opened_at,
            last_evidence_at,
            ended_at: row.ended_at.filter(|_| !is_movable),
            reopened_at: row.reopened_at,
            has_failures: row.failure_count.is_some_and(|count| count > 0),
        });
    }
    for (key, spans) in spans {
        let account = accounts.entry(key.clone()).or_default();
        let notices = if account.has_notices {
            let evidence = earliest.get(&(&key.0, key.1)).copied();
            let starts = spans.iter().map(|span| span.opened_at).chain(evidence);
            let start = starts.min().unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let notices = events::lock_notices(db, &key.0, start).await?;
            notice_times(&notices, &proven_ends(db, &key.0).await?)
        } else {
            NoticeTimes::default()
        };
        account.history = History::new(spans, notices);
    }
    Ok(accounts)
}

/// Returns when the locks of an account were proven to be over: what Meta announced before holds no
/// longer.
pub(super) async fn proven_ends(
    db: &mut PgConnection,
    waba_id: &WabaId,
) -> Result<Vec<OffsetDateTime>, StoreError> {
    let ends = sqlx::query_scalar!(
        r#"select ended_at as "ended_at!"
             from incidents
            where waba_id = $1 and kind = 'lock' and ended_at is not null
              and resolution in ('recovered', 'sending_again')
            order by ended_at"#,
        waba_id.as_str(),
    );
    Ok(ends.fetch_all(db).await?)
}

/// Loads the incidents of one account and kind that end after this time.
pub(super) async fn load_account(
    db: &mut PgConnection,
    (waba_id, kind): (&WabaId, Kind),
    earliest: OffsetDateTime,
) -> Result<Account, StoreError> {
    let mut accounts = load(db, &BTreeMap::from([((waba_id, kind), earliest)])).await?;
    Ok(accounts
        .remove(&(waba_id.clone(), kind))
        .unwrap_or_default())
}
