//! The incidents of evidence: finds the right one for each failed message, error and ban; opens,
//! ends, divides and reopens them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::events::Evidence;
use super::failures::{Fresh, Item, PlacedItem};
use super::sum_by;
use crate::lockout::codes::Kind;
use crate::lockout::incident::{EXPIRY_GRACE, Resolution};
use crate::meta::ids::WabaId;
use crate::store::history::{self, Account, Key};
use crate::store::incident_life::{self, NewIncident, OpenedBy};
use crate::store::{StoreError, division};

/// Evidence in its incidents.
pub(super) struct Placed<'b> {
    pub(super) items: Vec<PlacedItem<'b>>,
    /// The incidents of the evidence that is no message.
    pub(super) others: Vec<i64>,
    /// The incidents among them that are resolved: their numbers are not looked up.
    pub(super) resolved: Vec<i64>,
    /// Whether an incident is open again.
    pub(super) reopened: bool,
    /// Whether an incident was opened, ended or reopened.
    pub(super) changed: bool,
    /// The accounts with a new incident about which Meta has said something before, and its
    /// opening.
    pub(super) explained: Vec<(WabaId, OffsetDateTime)>,
}

/// Finds the incident of each failed message and of other evidence. Opens the incidents that are
/// missing, and ends and divides those that Meta's notices since `noticed` have ended; where
/// that, or the move of an end, is at stake, messages that are recorded already are left out.
pub(super) async fn place<'b>(
    db: &mut PgConnection,
    mut items: Vec<Item<'b>>,
    others: &[Evidence<'b>],
    noticed: &BTreeMap<&'b WabaId, OffsetDateTime>,
    now: OffsetDateTime,
) -> Result<Placed<'b>, StoreError> {
    let times = items.iter().map(Item::time);
    let others_times = || others.iter().map(Evidence::time);
    let notices = noticed
        .iter()
        .map(|(waba_id, at)| ((*waba_id, Kind::Lock), *at));
    let mut moving: BTreeSet<(&WabaId, Kind)> = notices.clone().map(|(key, _)| key).collect();
    moving.extend(others_times().map(|(key, _)| key));
    let earliest = sum_by(
        times.chain(others_times()).chain(notices),
        |earliest, at| {
            *earliest = at.min(*earliest);
        },
    );
    let mut accounts = history::load(db, &earliest).await?;
    moving.extend(
        items
            .iter()
            .map(Item::time)
            .filter_map(|((waba_id, kind), at)| {
                let is_moving = !accounts[&(waba_id.clone(), kind)].holds(at);
                is_moving.then_some((waba_id, kind))
            }),
    );
    if !moving.is_empty() {
        let is_moving = |item: &Item<'_>| moving.contains(&item.time().0);
        let concerned = items.iter().copied().filter(is_moving);
        let mut recorded = recorded_digests(db, &concerned.collect::<Vec<_>>()).await?;
        items.retain(|item| {
            let key = (item.failure.waba_id.clone(), item.failure.digest.to_vec());
            !is_moving(item) || recorded.insert(key)
        });
    }
    let fresh: Vec<i64> = others.iter().map(|other| other.id).collect();
    let mut changes = Changes::default();
    for waba_id in noticed.keys() {
        let key = ((*waba_id).clone(), Kind::Lock);
        let account = accounts.get_mut(&key).expect("every account was loaded");
        changes.divide(db, waba_id, account, &fresh).await?;
    }
    let positions = find_positions(&mut accounts, &items, others);
    let (of_items, of_others) = positions.split_at(items.len());
    let opened_by = first_evidence(&accounts, &items, others, &positions);
    for (waba_id, kind) in &moving {
        let key = ((*waba_id).clone(), *kind);
        changes.collect(&key, &accounts[&key], &opened_by, now);
    }
    let (reopened, changed) = (!changes.reopened.is_empty(), !changes.are_empty());
    changes.apply(db, &mut accounts).await?;
    let id_of = |(waba_id, kind): (&WabaId, Kind), position: usize| {
        accounts[&(waba_id.clone(), kind)].ids[position]
    };
    let others = others_times().zip(of_others);
    let others = others
        .map(|((key, _), position)| id_of(key, *position))
        .collect();
    let items = items
        .into_iter()
        .zip(of_items)
        .map(|(item, position)| PlacedItem {
            item,
            incident_id: id_of(item.time().0, *position),
        });
    Ok(Placed {
        items: items.collect(),
        others,
        resolved: resolved_ids(&accounts, &changes),
        reopened,
        changed,
        explained: changes
            .new
            .iter()
            .filter(|new| accounts[&(new.waba_id.clone(), new.kind)].has_notices)
            .map(|new| (new.waba_id.clone(), new.opened_at))
            .collect(),
    })
}

/// Adds evidence to its accounts in the order of the times, and returns the position of the
/// incident of each: of the messages first.
fn find_positions(
    accounts: &mut BTreeMap<Key, Account>,
    items: &[Item<'_>],
    others: &[Evidence<'_>],
) -> Vec<usize> {
    let times = items.iter().map(Item::time);
    let times: Vec<_> = times.chain(others.iter().map(Evidence::time)).collect();
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|evidence| times[*evidence].1);
    let mut positions = vec![0; times.len()];
    for evidence in order {
        let ((waba_id, kind), at) = times[evidence];
        let account = accounts.get_mut(&(waba_id.clone(), kind));
        let history = &mut account.expect("every account was loaded").history;
        positions[evidence] = match evidence < items.len() {
            true => history.add_failure(at),
            false => history.add_evidence(at),
        };
    }
    positions
}

/// Returns what opened each incident that begins with new evidence.
fn first_evidence(
    accounts: &BTreeMap<Key, Account>,
    items: &[Item<'_>],
    others: &[Evidence<'_>],
    positions: &[usize],
) -> BTreeMap<(Key, usize), OpenedBy> {
    let failures = items.iter().map(|item| (item.time(), OpenedBy::Failure));
    let others = others.iter().map(|other| (other.time(), other.opened_by));
    let mut opened_by = BTreeMap::new();
    for ((((waba_id, kind), at), by), position) in failures.chain(others).zip(positions) {
        let key = (waba_id.clone(), kind);
        if accounts[&key].history.spans()[*position].opened_at == at {
            opened_by.entry((key, *position)).or_insert(by);
        }
    }
    opened_by
}

/// Returns the incidents of these accounts that are resolved now.
fn resolved_ids(accounts: &BTreeMap<Key, Account>, changes: &Changes) -> Vec<i64> {
    let stored = accounts.values().flat_map(|account| &account.stored);
    let resolved = stored
        .filter(|incident| incident.is_resolved)
        .map(|incident| incident.id)
        .filter(|id| !changes.reopened.iter().any(|(open, _)| open == id));
    let ended_now = changes.ended.iter().map(|end| end.id);
    resolved.chain(ended_now).collect()
}

/// The end of an incident that follows from the rule.
struct RuleEnd {
    id: i64,
    waba_id: WabaId,
    end: (OffsetDateTime, Resolution),
}

/// An incident that Meta ended while evidence went on: its earlier part becomes one of its own.
struct Division {
    id: i64,
    key: Key,
    /// The position of the earlier part.
    earlier: usize,
    before: OffsetDateTime,
    first_after: OffsetDateTime,
}

/// The changes that follow from new evidence.
#[derive(Default)]
struct Changes {
    ended: Vec<RuleEnd>,
    reopened: Vec<(i64, WabaId)>,
    /// Ends that moved, and are still in the past.
    moved: Vec<RuleEnd>,
    new: Vec<NewIncident>,
    divided: Vec<Division>,
}

impl Changes {
    /// Divides the incidents of an account that Meta's notices ended before their last evidence.
    /// The fresh events belong to none yet.
    async fn divide(
        &mut self,
        db: &mut PgConnection,
        waba_id: &WabaId,
        account: &mut Account,
        fresh: &[i64],
    ) -> Result<(), StoreError> {
        for (position, stored) in account.stored.iter().enumerate() {
            let mut after = OffsetDateTime::UNIX_EPOCH;
            while stored.is_movable
                && let Some((lifted_at, how)) = account.history.lifted_after(position, after)
            {
                after = lifted_at;
                let since = account.history.spans()[position].opened_at;
                let span = (since, lifted_at);
                let around = division::evidence_around(db, stored.id, waba_id, span, fresh).await?;
                let ends = around.last_before.zip(around.first_after);
                let is_refuted = |(_, first_after): &(OffsetDateTime, OffsetDateTime)| {
                    let shown_at = around.first_block_after.unwrap_or(*first_after);
                    let grace_end = lifted_at + EXPIRY_GRACE;
                    how == Resolution::Expired
                        && (*first_after < grace_end || shown_at < *first_after)
                };
                let Some((last_before, first_after)) = ends.filter(|ends| !is_refuted(ends)) else {
                    continue;
                };
                let earlier = account.history.divide(
                    position,
                    last_before,
                    first_after,
                    [around.has_failures_before, around.has_failures_after],
                );
                self.divided.push(Division {
                    id: stored.id,
                    key: (waba_id.clone(), Kind::Lock),
                    earlier,
                    before: lifted_at,
                    first_after,
                });
            }
        }
        Ok(())
    }

    fn collect(
        &mut self,
        key: &Key,
        account: &Account,
        opened_by: &BTreeMap<(Key, usize), OpenedBy>,
        now: OffsetDateTime,
    ) {
        let (waba_id, kind) = key;
        let history = &account.history;
        for (position, span) in history.spans().iter().enumerate() {
            let (end, is_open) = (history.ending(position), history.is_open(position, now));
            let Some(stored) = account.stored.get(position) else {
                let opened_by = opened_by.get(&(key.clone(), position)).copied();
                let of_part = match span.has_failures {
                    true => OpenedBy::Failure,
                    false => OpenedBy::Event,
                };
                self.new.push(NewIncident {
                    waba_id: waba_id.clone(),
                    kind: *kind,
                    opened_at: span.opened_at,
                    last_evidence_at: span.last_evidence_at,
                    ended_at: (!is_open).then_some(end.0),
                    opened_by: opened_by.unwrap_or(of_part),
                });
                continue;
            };
            let rule_end = || RuleEnd {
                id: stored.id,
                waba_id: waba_id.clone(),
                end,
            };
            match stored.ended_at {
                None if !is_open => self.ended.push(rule_end()),
                Some(_) if stored.is_movable && is_open => {
                    self.reopened.push((stored.id, waba_id.clone()));
                }
                Some(before) if stored.is_movable && before != end.0 => self.moved.push(rule_end()),
                _ => {}
            }
        }
    }

    fn are_empty(&self) -> bool {
        self.ended.is_empty() && self.reopened.is_empty() && self.new.is_empty()
    }

    /// Writes them, and learns the ids of the new incidents. The open incident of an account ends
    /// before the next one opens.
    async fn apply(
        &mut self,
        db: &mut PgConnection,
        accounts: &mut BTreeMap<Key, Account>,
    ) -> Result<(), StoreError> {
        for end in &self.ended {
            incident_life::end(db, end.id, &end.waba_id, end.end).await?;
        }
        for (id, waba_id) in &self.reopened {
            incident_life::reopen(db, *id, waba_id, None).await?;
        }
        for end in &self.moved {
            incident_life::move_end(db, end.id, &end.waba_id, end.end).await?;
        }
        if !self.new.is_empty() {
            let ids = incident_life::open(db, &self.new).await?;
            // Both are in the order of accounts and positions.
            for (incident, id) in self.new.iter().zip(ids) {
                let account = accounts.get_mut(&(incident.waba_id.clone(), incident.kind));
                account.expect("every account was loaded").ids.push(id);
            }
        }
        // The latest division of an incident comes last: each takes what is left before it.
        for division in &self.divided {
            let earlier = accounts[&division.key].ids[division.earlier];
            let waba_id = &division.key.0;
            let times = (division.before, division.first_after);
            division::divide(db, waba_id, division.id, earlier, times).await?;
        }
        Ok(())
    }
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
                opened_by        = case when f.first < i.opened_at then 'failure'
                                        else i.opened_by end,
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
