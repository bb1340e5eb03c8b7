//! The incidents of failed messages: finds the right one for each, opens, ends and reopens them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::failures::{Fresh, Item, PlacedItem};
use super::sum_by;
use crate::lockout::incident::{History, Resolution, Span};
use crate::meta::ids::WabaId;
use crate::store::incident_life::{self, NewIncident, OpenedBy};
use crate::store::{StoreError, Word};

/// Failed messages in their incidents.
pub(super) struct Placed<'b> {
    pub(super) items: Vec<PlacedItem<'b>>,
    /// The incidents among them that are resolved: their numbers are not looked up.
    pub(super) resolved: Vec<i64>,
    /// Whether an incident is open again.
    pub(super) reopened: bool,
    /// Whether an incident was opened, ended or reopened.
    pub(super) changed: bool,
}

/// The incidents of an account that failures of a batch may concern.
#[derive(Default)]
struct Account {
    /// Positions below `stored.len()` are the stored incidents; the others are new.
    history: History,
    stored: Vec<StoredIncident>,
    /// The ids by position, once the new ones are stored as well.
    ids: Vec<i64>,
}

struct StoredIncident {
    id: i64,
    ended_at: Option<OffsetDateTime>,
    is_resolved: bool,
    /// Whether only silence ended it, or nothing yet.
    is_movable: bool,
}

impl Account {
    /// Returns whether a failure at this time belongs to a stored incident and changes nothing about
    /// it but its counts and times.
    fn holds(&self, failed_at: OffsetDateTime) -> bool {
        let stored = self
            .history
            .find(failed_at)
            .map(|position| &self.stored[position]);
        stored.is_some_and(|incident| incident.ended_at.is_none() || !incident.is_movable)
    }
}

/// Finds the incident of each failed message. Opens the incidents that are missing; where that, or
/// the move of an end, is at stake, messages that are recorded already are left out.
pub(super) async fn place<'b>(
    db: &mut PgConnection,
    mut items: Vec<Item<'b>>,
    now: OffsetDateTime,
) -> Result<Placed<'b>, StoreError> {
    let times: Vec<Time<'_>> = items.iter().map(Item::time).collect();
    let mut accounts = load(db, &times).await?;
    let moving: BTreeSet<&WabaId> = items
        .iter()
        .filter(|item| !accounts[&item.failure.waba_id].holds(item.failure.failed_at))
        .map(|item| &item.failure.waba_id)
        .collect();
    if !moving.is_empty() {
        let is_moving = |item: &Item<'_>| moving.contains(&item.failure.waba_id);
        let concerned = items.iter().copied().filter(is_moving);
        let mut recorded = recorded_digests(db, &concerned.collect::<Vec<_>>()).await?;
        items.retain(|item| {
            let key = (item.failure.waba_id.clone(), item.failure.digest.to_vec());
            !is_moving(item) || recorded.insert(key)
        });
    }
    let times: Vec<Time<'_>> = items.iter().map(Item::time).collect();
    let positions = find_positions(&mut accounts, &times);
    let mut changes = Changes::default();
    for waba_id in &moving {
        let account = accounts.get(*waba_id).expect("every account was loaded");
        changes.collect(waba_id, account, now);
    }
    let (reopened, changed) = (!changes.reopened.is_empty(), !changes.are_empty());
    changes.apply(db, &mut accounts).await?;
    let placed = items
        .into_iter()
        .zip(positions)
        .map(|(item, position)| PlacedItem {
            item,
            incident_id: accounts[&item.failure.waba_id].ids[position],
        });
    let items = placed.collect();
    Ok(Placed {
        items,
        resolved: resolved_ids(&accounts, &changes),
        reopened,
        changed,
    })
}

/// Evidence of a lock: its account and its time.
type Time<'b> = (&'b WabaId, OffsetDateTime);

/// Adds evidence to its accounts in the order of the times, and returns the position of the incident
/// of each.
fn find_positions(accounts: &mut BTreeMap<WabaId, Account>, times: &[Time<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|evidence| times[*evidence].1);
    let mut positions = vec![0; times.len()];
    for evidence in order {
        let (waba_id, at) = times[evidence];
        let account = accounts.get_mut(waba_id).expect("every account was loaded");
        positions[evidence] = account.history.add_failure(at);
    }
    positions
}

/// The incidents of some evidence that is no message.
pub(super) struct PlacedEvidence {
    pub(super) ids: Vec<i64>,
    /// The incidents among them that are resolved: their numbers are not looked up.
    pub(super) resolved: Vec<i64>,
}

/// Finds the incident of each error of an account, and opens those that are missing.
pub(super) async fn place_errors(
    db: &mut PgConnection,
    times: &[Time<'_>],
    now: OffsetDateTime,
) -> Result<PlacedEvidence, StoreError> {
    let mut accounts = load(db, times).await?;
    let positions = find_positions(&mut accounts, times);
    let mut changes = Changes {
        opened_by: OpenedBy::Error,
        ..Changes::default()
    };
    for (waba_id, account) in &accounts {
        changes.collect(waba_id, account, now);
    }
    changes.apply(db, &mut accounts).await?;
    let ids: Vec<i64> = times
        .iter()
        .zip(positions)
        .map(|((waba_id, _), position)| accounts[*waba_id].ids[position])
        .collect();
    incident_life::note_error(db, &ids, times).await?;
    Ok(PlacedEvidence {
        ids,
        resolved: resolved_ids(&accounts, &changes),
    })
}

/// Returns the incidents of these accounts that are resolved now.
fn resolved_ids(accounts: &BTreeMap<WabaId, Account>, changes: &Changes) -> Vec<i64> {
    let stored = accounts.values().flat_map(|account| &account.stored);
    let resolved = stored
        .filter(|incident| incident.is_resolved)
        .map(|incident| incident.id)
        .filter(|id| !changes.reopened.iter().any(|(open, _)| open == id));
    let ended_now = changes.quiet.iter().map(|(id, ..)| *id);
    resolved.chain(ended_now).collect()
}

/// The changes that follow from new evidence.
#[derive(Default)]
struct Changes {
    opened_by: OpenedBy,
    quiet: Vec<(i64, WabaId, OffsetDateTime)>,
    reopened: Vec<(i64, WabaId)>,
    /// Ends that moved, and are still in the past.
    moved: Vec<(i64, WabaId, OffsetDateTime)>,
    new: Vec<NewIncident>,
}

impl Changes {
    fn collect(&mut self, waba_id: &WabaId, account: &Account, now: OffsetDateTime) {
        let history = &account.history;
        for (position, span) in history.spans().iter().enumerate() {
            let (end, is_open) = (history.end(position), history.is_open(position, now));
            let Some(stored) = account.stored.get(position) else {
                self.new.push(NewIncident {
                    waba_id: waba_id.clone(),
                    opened_at: span.opened_at,
                    last_evidence_at: span.last_evidence_at,
                    ended_at: (!is_open).then_some(end),
                    opened_by: self.opened_by,
                });
                continue;
            };
            match stored.ended_at {
                None if !is_open => self.quiet.push((stored.id, waba_id.clone(), end)),
                Some(_) if stored.is_movable && is_open => {
                    self.reopened.push((stored.id, waba_id.clone()));
                }
                Some(before) if stored.is_movable && before != end => {
                    self.moved.push((stored.id, waba_id.clone(), end));
                }
                _ => {}
            }
        }
    }

    fn are_empty(&self) -> bool {
        self.quiet.is_empty() && self.reopened.is_empty() && self.new.is_empty()
    }

    /// Writes them, and learns the ids of the new incidents. The open incident of an account ends
    /// before the next one opens.
    async fn apply(
        &mut self,
        db: &mut PgConnection,
        accounts: &mut BTreeMap<WabaId, Account>,
    ) -> Result<(), StoreError> {
        for (id, waba_id, end) in &self.quiet {
            incident_life::end_by_silence(db, *id, waba_id, *end).await?;
        }
        for (id, waba_id) in &self.reopened {
            incident_life::reopen(db, *id, waba_id).await?;
        }
        for (id, waba_id, end) in &self.moved {
            incident_life::move_end(db, *id, waba_id, *end).await?;
        }
        if !self.new.is_empty() {
            let ids = incident_life::open(db, &self.new).await?;
            // Both are in the order of accounts and positions.
            for (incident, id) in self.new.iter().zip(ids) {
                let account = accounts.get_mut(&incident.waba_id);
                account.expect("every account was loaded").ids.push(id);
            }
        }
        Ok(())
    }
}

/// Loads the incidents that this evidence may concern: those that end after the earliest of it.
async fn load(
    db: &mut PgConnection,
    times: &[Time<'_>],
) -> Result<BTreeMap<WabaId, Account>, StoreError> {
    let earliest = sum_by(times.iter().copied(), |earliest, at| {
        *earliest = at.min(*earliest);
    });
    let rows = sqlx::query!(
        r#"select i.id, i.waba_id as "waba_id: WabaId", i.opened_at, i.last_evidence_at, i.ended_at,
                  i.resolution as "resolution: Word<Resolution>"
             from unnest($1::text[], $2::timestamptz[]) as a(waba_id, earliest)
             join incidents i on i.waba_id = a.waba_id and i.kind = 'lock'
                             and (i.ended_at is null or i.ended_at > a.earliest)"#,
        &earliest.keys().map(|id| id.as_str()).collect::<Vec<_>>() as &[&str],
        &earliest.values().copied().collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let mut spans: BTreeMap<WabaId, Vec<Span>> = BTreeMap::new();
    let accounts = earliest
        .keys()
        .map(|id| ((*id).clone(), Account::default()));
    let mut accounts: BTreeMap<WabaId, Account> = accounts.collect();
    for row in rows {
        let is_movable = row
            .resolution
            .as_ref()
            .is_none_or(|r| *r == Resolution::Quiet);
        let account = accounts.entry(row.waba_id.clone()).or_default();
        account.ids.push(row.id);
        account.stored.push(StoredIncident {
            id: row.id,
            ended_at: row.ended_at,
            is_resolved: row.resolution.is_some(),
            is_movable,
        });
        spans.entry(row.waba_id).or_default().push(Span {
            opened_at: row.opened_at,
            last_evidence_at: row.last_evidence_at,
            ended_at: row.ended_at.filter(|_| !is_movable),
        });
    }
    for (waba_id, spans) in spans {
        accounts.entry(waba_id).or_default().history = History::new(spans);
    }
    Ok(accounts)
}

/// Returns the account and digest of those that are recorded.
async fn recorded_digests(
    db: &mut PgConnection,
    items: &[Item<'_>],
) -> Result<HashSet<(WabaId, Vec<u8>)>, StoreError> {
    let digests = sqlx::query!(
        r#"select d.waba_id as "waba_id: WabaId", d.digest
             from unnest($1::text[], $2::bytea[]) as f(waba_id, digest)
             join failed_deliveries d on d.waba_id = f.waba_id and d.digest = f.digest"#,
        &items
            .iter()
            .map(|item| item.failure.waba_id.as_str())
            .collect::<Vec<_>>() as &[&str],
        &items
            .iter()
            .map(|item| item.failure.digest.as_slice())
            .collect::<Vec<_>>() as &[&[u8]],
    )
    .fetch_all(db)
    .await?;
    Ok(digests
        .into_iter()
        .map(|row| (row.waba_id, row.digest))
        .collect())
}

/// The new failures of an incident.
struct IncidentCount {
    first: OffsetDateTime,
    last: OffsetDateTime,
    count: i64,
}

/// Adds the new failures to their incidents.
pub(super) async fn count(db: &mut PgConnection, fresh: &[Fresh]) -> Result<(), StoreError> {
    let counts = fresh.iter().map(|f| {
        let (first, last, count) = (f.first, f.last, f.count);
        (
            (f.incident_id, &f.waba_id),
            IncidentCount { first, last, count },
        )
    });
    let counts = sum_by(counts, |sum, more| {
        sum.first = sum.first.min(more.first);
        sum.last = sum.last.max(more.last);
        sum.count += more.count;
    });
    sqlx::query!(
        "update incidents i
            set failure_count    = i.failure_count + f.n,
                opened_at        = least(i.opened_at, f.first),
                last_failure_at  = greatest(i.last_failure_at, f.last),
                last_evidence_at = greatest(i.last_evidence_at, f.last)
           from unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::timestamptz[],
                       $5::bigint[]) as f(incident_id, waba_id, first, last, n)
          where i.id = f.incident_id and i.waba_id = f.waba_id",
        &counts.keys().map(|(id, _)| *id).collect::<Vec<_>>(),
        &counts.keys().map(|(_, id)| id.as_str()).collect::<Vec<_>>() as &[&str],
        &counts.values().map(|c| c.first).collect::<Vec<_>>(),
        &counts.values().map(|c| c.last).collect::<Vec<_>>(),
        &counts.values().map(|c| c.count).collect::<Vec<_>>(),
    )
    .execute(db)
    .await?;
    Ok(())
}

/// Returns the accounts of which somebody else's transaction holds a row that a batch may change.
pub(super) async fn accounts_with_locked_rows(
    db: &mut PgConnection,
    waba_ids: &[&str],
) -> Result<Vec<WabaId>, StoreError> {
    let held = sqlx::query_scalar!(
        r#"with free_accounts as materialized (
             select waba_id from accounts where waba_id = any($1)
                for no key update skip locked
           ), free_incidents as materialized (
             select id from incidents where waba_id = any($1) and resolved_at is null
                for no key update skip locked
           ), free_numbers as materialized (
             select n.incident_id, n.phone_number_id
               from incidents i
               join affected_numbers n on n.incident_id = i.id and n.waba_id = i.waba_id
              where i.waba_id = any($1) and i.resolved_at is null
                for no key update of n skip locked
           )
           select waba_id as "waba_id!: WabaId" from accounts
            where waba_id = any($1) and waba_id not in (select waba_id from free_accounts)
            union
           select waba_id from incidents
            where waba_id = any($1) and resolved_at is null
              and id not in (select id from free_incidents)
            union
           select n.waba_id
             from incidents i
             join affected_numbers n on n.incident_id = i.id and n.waba_id = i.waba_id
            where i.waba_id = any($1) and i.resolved_at is null
              and (n.incident_id, n.phone_number_id) not in (select * from free_numbers)"#,
        waba_ids as &[&str],
    )
    .fetch_all(db)
    .await?;
    Ok(held)
}
