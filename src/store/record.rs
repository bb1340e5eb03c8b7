//! Recording: failed deliveries, exactly once each, into the right incidents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, timeout};

use super::bodies::{Bodies, Body};
use super::database::PING_TIMEOUT;
use super::{Database, StoreError, incident_life};
use crate::lockout::change::Change;
use crate::lockout::incident::{IncidentHistory, IncidentSpan};
use crate::meta::failure::{ACCOUNT_LOCKED, FailedDelivery};
use crate::meta::ids::{PhoneNumberId, Text, WabaId};

/// Meta sends a callback again for this long: how far back it is worth knowing an account's incidents.
const REDELIVERED: time::Duration = time::Duration::days(7);

/// What a transaction wrote.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Failures that were not there yet.
    pub new: u64,
    /// Failures that were there already, or came twice.
    pub repeated: u64,
    /// Bytes that were not in quarantine yet.
    pub quarantined: u64,
    /// Whether a number now waits for its first look-up.
    pub check_due: bool,
    /// Incidents that were opened.
    pub opened: Vec<Change>,
}

impl Recorded {
    /// Adds what another transaction wrote.
    pub fn add(&mut self, other: Self) {
        self.new += other.new;
        self.repeated += other.repeated;
        self.quarantined += other.quarantined;
        self.check_due |= other.check_due;
        self.opened.extend(other.opened);
    }
}

/// The recorder's connection: never pooled, and closed by dropping it wherever its state is in doubt.
#[derive(Debug)]
pub struct RecorderConnection {
    pub(super) connection: PgConnection,
    used: Instant,
    histories: Histories,
}

impl RecorderConnection {
    /// Opens a connection.
    ///
    /// # Errors
    /// No connection comes about; the caller bounds the time.
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        Ok(Self {
            connection: database.connect_recorder().await?,
            used: Instant::now(),
            histories: Histories::default(),
        })
    }

    /// Returns the same connection, or a new one where it has been idle and does not answer: a
    /// database that restarted meanwhile should not cost the next callback.
    ///
    /// # Errors
    /// No new connection comes about.
    pub async fn refreshed(mut self, database: &Database) -> Result<Self, StoreError> {
        const IDLE_LIMIT: Duration = Duration::from_secs(1);
        let is_idle = self.used.elapsed() > IDLE_LIMIT;
        self.used = Instant::now();
        if !is_idle
            || matches!(
                timeout(PING_TIMEOUT, self.connection.ping()).await,
                Ok(Ok(()))
            )
        {
            return Ok(self);
        }
        Self::open(database).await
    }
}

/// A failure, and the callback it came in.
#[derive(Debug, Clone, Copy)]
pub struct Item<'b> {
    /// The failure.
    pub failure: &'b FailedDelivery,
    /// The callback's position in its batch.
    pub callback: usize,
}

/// Records failures in one transaction, each with the callback that told of it first: each failure is there
/// once, counted in its incident, when this returns. A callback that told nothing new is left to
/// [`bodies::keep`](super::bodies::keep).
///
/// Where it is known which incidents are open, one statement does it all, provided that they still are.
/// Otherwise the accounts are locked first, and what to write is decided behind that lock.
///
/// # Errors
/// Nothing is recorded. [`StoreError::BadData`] means that one of these failures is to blame.
pub async fn failures(
    connection: &mut RecorderConnection,
    items: &[Item<'_>],
    bodies: &mut Bodies<'_>,
) -> Result<Recorded, StoreError> {
    let RecorderConnection {
        connection: db,
        histories,
        ..
    } = connection;
    let (mut recorded, kept) = match histories.write(db, items, bodies).await? {
        Some(written) => written,
        None => histories.learn_and_write(db, items, bodies).await?,
    };
    bodies.kept(kept);
    recorded.repeated = (items.len() as u64).saturating_sub(recorded.new);
    Ok(recorded)
}

/// What a transaction wrote, and which bodies it kept, with their ids.
type Written = (Recorded, Vec<(usize, i64)>);

/// What a connection has seen of the incidents of accounts that have an open one. It may be out of date:
/// an account's history is what it was for as long as the same incident is open, and that is looked at
/// again behind the account's lock.
#[derive(Debug, Default)]
pub(super) struct Histories(BTreeMap<WabaId, IncidentHistory>);

impl Histories {
    /// Accounts that are remembered; where there are more, all are asked for again.
    const MOST: usize = 10_000;

    /// Writes in one statement what belongs to incidents that are known; `None` where something is not
    /// known, or no longer so. Then nothing is written.
    async fn write(
        &mut self,
        db: &mut PgConnection,
        items: &[Item<'_>],
        bodies: &Bodies<'_>,
    ) -> Result<Option<Written>, StoreError> {
        let of =
            |failure: &FailedDelivery| self.0.get(&failure.waba_id)?.incident_of(failure.failed_at);
        let placed: Option<Vec<_>> = items
            .iter()
            .map(|item| {
                Some(Placed {
                    incident: of(item.failure)?,
                    item,
                })
            })
            .collect();
        let accounts: BTreeSet<&WabaId> = items.iter().map(|item| &item.failure.waba_id).collect();
        let open: Option<Vec<_>> = accounts
            .iter()
            .map(|id| Some((*id, self.0.get(*id)?.open_incident()?)))
            .collect();
        let (Some(placed), Some(open)) = (placed, open) else {
            return Ok(None);
        };
        let written = insert(db, &placed, bodies, &open).await?;
        if written.is_none() {
            self.0.retain(|waba_id, _| !accounts.contains(waba_id));
        }
        Ok(written)
    }

    /// Locks the accounts, and then reads and writes: what is read is what the holder before left.
    async fn learn_and_write(
        &mut self,
        db: &mut PgConnection,
        items: &[Item<'_>],
        bodies: &Bodies<'_>,
    ) -> Result<Written, StoreError> {
        let accounts: BTreeSet<&str> = items
            .iter()
            .map(|item| item.failure.waba_id.as_str())
            .collect();
        let accounts: Vec<&str> = accounts.into_iter().collect();
        loop {
            let mut transaction = db.begin().await?;
            let locked = sqlx::query!(
                "select waba_id from accounts where waba_id = any($1) order by waba_id for update",
                &accounts as &[&str]
            )
            .fetch_all(&mut *transaction)
            .await?;
            if locked.len() == accounts.len() {
                let (written, histories) = write(&mut transaction, items, bodies).await?;
                transaction.commit().await?;
                self.learn(histories);
                return Ok(written);
            }
            // New accounts come into being outside the transaction: created inside, they would be locked out
            // of order, and two replicas could wait for each other.
            transaction.rollback().await?;
            sqlx::query!(
                "insert into accounts (waba_id) select unnest($1::text[]) order by 1 on conflict do nothing",
                &accounts as &[&str]
            )
            .execute(&mut *db)
            .await?;
        }
    }

    fn learn(&mut self, histories: BTreeMap<WabaId, IncidentHistory>) {
        if self.0.len() + histories.len() > Self::MOST {
            self.0.clear();
        }
        self.0.extend(
            histories
                .into_iter()
                .filter(|(_, history)| history.open_incident().is_some()),
        );
    }
}

/// Writes failures of accounts that are locked. Returns as well what it found out about them.
async fn write(
    db: &mut PgConnection,
    items: &[Item<'_>],
    bodies: &Bodies<'_>,
) -> Result<(Written, BTreeMap<WabaId, IncidentHistory>), StoreError> {
    let mut histories = read(db, items).await?;
    let homeless: Vec<&FailedDelivery> = items
        .iter()
        .map(|item| item.failure)
        .filter(|failure| {
            histories[&failure.waba_id]
                .incident_of(failure.failed_at)
                .is_none()
        })
        .collect();
    let opened = if homeless.is_empty() {
        Vec::new()
    } else {
        incident_life::open(db, &homeless).await?
    };
    for Change {
        incident_id: id,
        waba_id,
        ..
    } in &opened
    {
        histories.entry(waba_id.clone()).and_modify(|history| {
            history.spans.push(IncidentSpan {
                id: *id,
                resolved_at: None,
            });
        });
    }
    let placed: Vec<Placed<'_>> = items
        .iter()
        .filter_map(|item| {
            let incident = histories[&item.failure.waba_id].incident_of(item.failure.failed_at)?;
            Some(Placed { incident, item })
        })
        .collect();
    let (recorded, kept) = insert(db, &placed, bodies, &[])
        .await?
        .expect("nothing has to be open");
    Ok(((Recorded { opened, ..recorded }, kept), histories))
}

/// The incidents that these failures may belong to, by account.
async fn read(
    db: &mut PgConnection,
    items: &[Item<'_>],
) -> Result<BTreeMap<WabaId, IncidentHistory>, StoreError> {
    let mut histories: BTreeMap<WabaId, IncidentHistory> = BTreeMap::new();
    for Item { failure, .. } in items {
        let since = failure.failed_at - REDELIVERED;
        match histories.get_mut(&failure.waba_id) {
            Some(history) => history.since = history.since.min(since),
            None => {
                histories.insert(
                    failure.waba_id.clone(),
                    IncidentHistory {
                        since,
                        spans: Vec::new(),
                    },
                );
            }
        }
    }
    let rows = sqlx::query!(
        r#"select a.position as "position!", i.id, i.resolved_at
             from unnest($1::text[], $2::timestamptz[]) with ordinality as a(waba_id, earliest, position)
             join incidents i on i.waba_id = a.waba_id and (i.resolved_at is null or i.resolved_at > a.earliest)"#,
        &histories.keys().map(WabaId::as_str).collect::<Vec<_>>() as &[&str],
        &histories.values().map(|history| history.since).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let mut spans: Vec<&mut Vec<IncidentSpan>> = histories
        .values_mut()
        .map(|history| &mut history.spans)
        .collect();
    for row in rows {
        let position = usize::try_from(row.position - 1).expect("ordinality counts from one");
        spans[position].push(IncidentSpan {
            id: row.id,
            resolved_at: row.resolved_at,
        });
    }
    Ok(histories)
}

/// A failure in its incident.
struct Placed<'f> {
    incident: IncidentSpan,
    item: &'f Item<'f>,
}

/// Inserts what is not there yet and adds exactly that to the counts, all in one statement: a round trip
/// costs more than most of its parts. The long arrays become rows in a select list, since in `from` each is
/// written into a table of its own first. `None`, and nothing is written, unless each of these accounts still
/// has this incident open; its account is locked before that is looked at.
///
/// A row lock hands over the newest row although the statement's snapshot may be older, and so do the
/// updates and the conflicts: nothing else here reads what another transaction may change.
async fn insert(
    db: &mut PgConnection,
    placed: &[Placed<'_>],
    bodies: &Bodies<'_>,
    open: &[(&WabaId, i64)],
) -> Result<Option<Written>, StoreError> {
    fn column<'f, T>(placed: &[Placed<'f>], value: impl Fn(&'f FailedDelivery) -> T) -> Vec<T> {
        placed
            .iter()
            .map(|placed| value(placed.item.failure))
            .collect()
    }
    fn optional(text: &Option<Text>) -> Option<&str> {
        text.as_ref().map(Text::as_str)
    }
    let mut numbers: BTreeMap<(IncidentSpan, &PhoneNumberId), &Option<Text>> = BTreeMap::new();
    for Placed {
        incident,
        item: Item { failure, .. },
    } in placed
    {
        let display = numbers
            .entry((*incident, &failure.phone_number_id))
            .or_insert(&None);
        if failure.display_phone_number.is_some() {
            *display = &failure.display_phone_number;
        }
    }
    let body_of: Vec<Option<usize>> = placed
        .iter()
        .map(|placed| bodies.place(placed.item.callback))
        .collect();
    let wanted: Vec<usize> = body_of
        .iter()
        .copied()
        .flatten()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let position = |place: &Option<usize>| {
        let position = wanted.binary_search(&(*place)?).ok()?;
        Some(i64::try_from(position).expect("a batch is small") + 1)
    };
    let bodies: Vec<&Body<'_>> = wanted.iter().map(|place| bodies.at(*place)).collect();
    let row = sqlx::query!(
        r#"with still_open as materialized (
             select from incidents i
               join accounts a on a.waba_id = i.waba_id
              where i.waba_id = any($30) and i.id = any($31) and i.resolved_at is null
              order by a.waba_id
                for update of a, i
           ), gate as materialized (
             select count(*) = cardinality($31::bigint[]) as passed from still_open
           ), ids as materialized (
             select position, known is null as is_new, coalesce(known, nextval('captures_id_seq')) as id
               from unnest($20::bigint[]) with ordinality as b(known, position)
              where (select passed from gate)
           ), fresh as (
             insert into failed_deliveries (incident_id, waba_id, phone_number_id, message_id, recipient_id,
                                            participant_id, failed_at, received_at, error_code, error_title,
                                            error_message, error_details, callback_data, digest, capture_id)
             select f.incident_id, f.waba_id, f.phone_number_id, f.message_id, f.recipient_id, f.participant_id,
                    f.failed_at, f.received_at, $15, f.error_title, f.error_message, f.error_details,
                    f.callback_data, f.digest, (select array_agg(id order by position) from ids)[f.body]
               from (select unnest($1::bigint[]) as incident_id, unnest($2::text[]) as waba_id,
                            unnest($3::text[]) as phone_number_id, unnest($4::text[]) as message_id,
                            unnest($5::text[]) as recipient_id, unnest($6::text[]) as participant_id,
                            unnest($7::timestamptz[]) as failed_at, unnest($8::timestamptz[]) as received_at,
                            unnest($9::text[]) as error_title, unnest($10::text[]) as error_message,
                            unnest($11::text[]) as error_details, unnest($12::text[]) as callback_data,
                            unnest($13::bytea[]) as digest, unnest($14::bigint[]) as body) f
              where (select passed from gate)
                 on conflict (waba_id, digest) do nothing
             returning incident_id, waba_id, phone_number_id, failed_at, capture_id
           ), kept as (
             insert into captures (id, waba_id, digest, body, signature, app_secret, received_at, last_received_at,
                                   failure_count, times_received, told_first)
             overriding system value
             select i.id, b.waba_id, b.digest, b.body, b.signature, b.app_secret, b.received_at, b.last_received_at,
                    b.failure_count, b.times_received, true
               from (select generate_series(1, cardinality($20::bigint[])) as position,
                            unnest($21::text[]) as waba_id, unnest($22::bytea[]) as digest,
                            unnest($23::bytea[]) as body, unnest($24::text[]) as signature,
                            unnest($25::int[]) as app_secret, unnest($26::timestamptz[]) as received_at,
                            unnest($27::timestamptz[]) as last_received_at, unnest($28::int[]) as failure_count,
                            unnest($29::bigint[]) as times_received) b
               join ids i using (position)
              where i.is_new and i.id in (select capture_id from fresh)
           ), per_number as (
             select incident_id, waba_id, phone_number_id, min(failed_at) as first, max(failed_at) as last, count(*) as n
               from fresh
              group by incident_id, waba_id, phone_number_id
           ), counted as (
             update incidents i
                set failure_count   = i.failure_count + f.n,
                    opened_at       = least(i.opened_at, f.first),
                    last_failure_at = greatest(i.last_failure_at, f.last)
               from (select incident_id, waba_id, min(first) as first, max(last) as last, sum(n) as n
                       from per_number
                      group by incident_id, waba_id) f
              where i.id = f.incident_id and i.waba_id = f.waba_id
           ), per_minute as (
             select incident_id, waba_id, date_bin('1 minute', failed_at, 'epoch') as minute, count(*) as n
               from fresh
              group by 1, 2, 3
           ), minutes as (
             insert into failures_by_minute as m (incident_id, waba_id, minute, failure_count)
             select * from per_minute
                 on conflict (incident_id, minute, waba_id) do update
                set failure_count = m.failure_count + excluded.failure_count
           ), hours as (
             insert into failures_by_hour as h (incident_id, waba_id, hour, failure_count)
             select incident_id, waba_id, date_bin('1 hour', minute, 'epoch'), sum(n)
               from per_minute
              group by 1, 2, 3
                 on conflict (incident_id, hour, waba_id) do update
                set failure_count = h.failure_count + excluded.failure_count
           ), numbers as (
             insert into affected_numbers as a (incident_id, waba_id, phone_number_id, display_phone_number,
                                                first_failure_at, last_failure_at, failure_count, check_due_at)
             select p.incident_id, p.waba_id, p.phone_number_id, n.display, p.first, p.last, p.n,
                    case when n.is_open then now() end
               from per_number p
               join unnest($16::bigint[], $17::text[], $18::text[], $19::boolean[])
                    as n(incident_id, phone_number_id, display, is_open) using (incident_id, phone_number_id)
                 on conflict (incident_id, phone_number_id, waba_id) do update
                set first_failure_at     = least(a.first_failure_at, excluded.first_failure_at),
                    last_failure_at      = greatest(a.last_failure_at, excluded.last_failure_at),
                    failure_count        = a.failure_count + excluded.failure_count,
                    display_phone_number = coalesce(excluded.display_phone_number, a.display_phone_number)
             returning xmax = 0 and check_due_at is not null as due
           )
           select (select passed from gate) as "passed!", (select count(*) from fresh) as "new!",
                  exists (select from numbers where due) as "check_due!",
                  array(select case when is_new and id in (select capture_id from fresh) then id end
                          from ids order by position) as "kept!: Vec<Option<i64>>""#,
        &placed.iter().map(|placed| placed.incident.id).collect::<Vec<_>>(),
        &column(placed, |f| f.waba_id.as_str()) as &[&str],
        &column(placed, |f| f.phone_number_id.as_str()) as &[&str],
        &column(placed, |f| f.message_id.as_str()) as &[&str],
        &column(placed, |f| optional(&f.recipient_id)) as &[Option<&str>],
        &column(placed, |f| optional(&f.participant_id)) as &[Option<&str>],
        &column(placed, |f| f.failed_at),
        &column(placed, |f| f.received_at),
        &column(placed, |f| optional(&f.error_title)) as &[Option<&str>],
        &column(placed, |f| optional(&f.error_message)) as &[Option<&str>],
        &column(placed, |f| optional(&f.error_details)) as &[Option<&str>],
        &column(placed, |f| optional(&f.callback_data)) as &[Option<&str>],
        &column(placed, |f| f.digest.as_slice()) as &[&[u8]],
        &body_of.iter().map(position).collect::<Vec<_>>() as &[Option<i64>],
        i32::try_from(ACCOUNT_LOCKED).expect("131031 fits"),
        &numbers.keys().map(|(incident, _)| incident.id).collect::<Vec<_>>(),
        &numbers.keys().map(|(_, number)| number.as_str()).collect::<Vec<_>>() as &[&str],
        &numbers.values().map(|display| optional(display)).collect::<Vec<_>>() as &[Option<&str>],
        &numbers.keys().map(|(incident, _)| incident.resolved_at.is_none()).collect::<Vec<_>>(),
        &bodies.iter().map(|b| b.id).collect::<Vec<_>>() as &[Option<i64>],
        &bodies.iter().map(|b| b.capture.account()).collect::<Vec<_>>() as &[&str],
        &bodies.iter().map(|b| b.capture.digest.as_slice()).collect::<Vec<_>>() as &[&[u8]],
        &bodies.iter().map(|b| b.capture.body.as_ref()).collect::<Vec<_>>() as &[&[u8]],
        &bodies.iter().map(|b| b.capture.signature.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &bodies.iter().map(|b| b.capture.app_secret).collect::<Vec<_>>() as &[Option<i32>],
        &bodies.iter().map(|b| b.first).collect::<Vec<_>>(),
        &bodies.iter().map(|b| b.last).collect::<Vec<_>>(),
        &bodies.iter().map(|b| b.capture.failure_count).collect::<Vec<_>>(),
        &bodies.iter().map(|b| b.times).collect::<Vec<_>>(),
        &open.iter().map(|(waba_id, _)| waba_id.as_str()).collect::<Vec<_>>() as &[&str],
        &open.iter().map(|(_, id)| *id).collect::<Vec<_>>(),
    )
    .fetch_one(db)
    .await?;
    if !row.passed {
        return Ok(None);
    }
    let new = u64::try_from(row.new).expect("a count is not negative");
    let kept = wanted
        .into_iter()
        .zip(row.kept)
        .filter_map(|(place, id)| Some((place, id?)))
        .collect();
    Ok(Some((
        Recorded {
            new,
            check_due: row.check_due,
            ..Recorded::default()
        },
        kept,
    )))
}
