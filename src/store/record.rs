//! Recording: failed deliveries, exactly once each, into the right incidents.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;

use super::captures::{Captures, NewCapture, Sighting, UNKNOWN_ACCOUNT};
use super::{RecorderConnection, StoreError};
use crate::lockout::incident::{Span, belongs_to};
use crate::meta::callback::Unreadable;
use crate::meta::failure::{ACCOUNT_LOCKED, FailedDelivery};
use crate::meta::ids::{Text, WabaId};

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
    /// Incidents that were opened, with their accounts.
    pub opened: Vec<(i64, WabaId)>,
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

/// A failure, and the callback it came in if that is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Item<'b> {
    /// The failure.
    pub failure: &'b FailedDelivery,
    /// The callback.
    pub capture: Option<&'b NewCapture>,
}

/// Records failures in one transaction, with the captures of their callbacks: each failure is there once,
/// counted in its incident, when this returns.
///
/// # Errors
/// Nothing is recorded. [`StoreError::BadData`] means that one of these failures is to blame.
pub async fn failures(
    connection: &mut RecorderConnection,
    items: &[Item<'_>],
    captures: &mut Captures<'_>,
) -> Result<Recorded, StoreError> {
    let db = &mut connection.0;
    let accounts: BTreeSet<&WabaId> = items.iter().map(|item| &item.failure.waba_id).collect();
    let accounts: Vec<String> = accounts.into_iter().map(ToString::to_string).collect();
    let wanted: BTreeSet<&[u8; 32]> = items.iter().filter_map(|item| Some(&item.capture?.digest)).collect();
    let sightings = captures.take(|digest| wanted.contains(digest));
    loop {
        let mut transaction = db.begin().await?;
        let locked =
            sqlx::query!("select waba_id from accounts where waba_id = any($1) order by waba_id for update", &accounts)
                .fetch_all(&mut *transaction)
                .await?;
        if locked.len() == accounts.len() {
            let mut recorded = write(&mut transaction, items, &sightings).await?;
            transaction.commit().await?;
            captures.kept(&sightings);
            recorded.repeated = (items.len() as u64).saturating_sub(recorded.new);
            return Ok(recorded);
        }
        // New accounts come into being outside the transaction: created inside, they would be locked out
        // of order, and two replicas could wait for each other.
        transaction.rollback().await?;
        sqlx::query!(
            "insert into accounts (waba_id) select unnest($1::text[]) order by 1 on conflict do nothing",
            &accounts
        )
        .execute(&mut *db)
        .await?;
    }
}

/// Writes failures of accounts that are locked.
async fn write(db: &mut PgConnection, items: &[Item<'_>], captures: &[Sighting<'_>]) -> Result<Recorded, StoreError> {
    let failures: Vec<&FailedDelivery> = items.iter().map(|item| item.failure).collect();
    let history = history(db, &failures).await?;
    let incident_of = |failure: &FailedDelivery, opened: &BTreeMap<&WabaId, i64>| {
        let known = history.get(&failure.waba_id).map_or(&[][..], Vec::as_slice);
        belongs_to(failure.failed_at, known).or_else(|| opened.get(&failure.waba_id).copied())
    };

    let homeless: Vec<_> = failures.iter().copied().filter(|f| incident_of(f, &BTreeMap::new()).is_none()).collect();
    let opened = if homeless.is_empty() { BTreeMap::new() } else { open(db, &homeless).await? };
    let placed: Vec<Placed<'_>> = items
        .iter()
        .filter_map(|item| Some(Placed { incident_id: incident_of(item.failure, &opened)?, item }))
        .collect();
    let mut recorded = insert(db, &placed, captures).await?;
    recorded.opened = opened.into_iter().map(|(waba_id, id)| (id, waba_id.clone())).collect();
    Ok(recorded)
}

/// The incidents that these failures may belong to, by account.
async fn history(
    db: &mut PgConnection,
    failures: &[&FailedDelivery],
) -> Result<BTreeMap<WabaId, Vec<Span>>, StoreError> {
    let mut earliest: BTreeMap<&WabaId, OffsetDateTime> = BTreeMap::new();
    for failure in failures {
        let at = earliest.entry(&failure.waba_id).or_insert(failure.failed_at);
        *at = failure.failed_at.min(*at);
    }
    let accounts: Vec<&WabaId> = earliest.keys().copied().collect();
    let rows = sqlx::query!(
        r#"select a.position as "position!", i.id, i.resolved_at
             from unnest($1::text[], $2::timestamptz[]) with ordinality as a(waba_id, earliest, position)
             join incidents i on i.waba_id = a.waba_id and (i.resolved_at is null or i.resolved_at > a.earliest)"#,
        &accounts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        &earliest.values().copied().collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let mut history: BTreeMap<WabaId, Vec<Span>> = BTreeMap::new();
    for row in rows {
        let position = usize::try_from(row.position - 1).expect("ordinality counts from one");
        let span = Span { id: row.id, resolved_at: row.resolved_at };
        history.entry(accounts[position].clone()).or_default().push(span);
    }
    Ok(history)
}

/// Opens incidents for failures that belong to none. One that is already recorded opens nothing.
async fn open<'f>(
    db: &mut PgConnection,
    failures: &[&'f FailedDelivery],
) -> Result<BTreeMap<&'f WabaId, i64>, StoreError> {
    let known: HashSet<Vec<u8>> = sqlx::query_scalar!(
        "select d.digest
           from unnest($1::text[], $2::bytea[]) as f(waba_id, digest)
           join failed_deliveries d on d.waba_id = f.waba_id and d.digest = f.digest",
        &failures.iter().map(|f| f.waba_id.to_string()).collect::<Vec<_>>(),
        &failures.iter().map(|f| f.digest.to_vec()).collect::<Vec<_>>(),
    )
    .fetch_all(&mut *db)
    .await?
    .into_iter()
    .collect();

    let mut spans: BTreeMap<&WabaId, (OffsetDateTime, OffsetDateTime)> = BTreeMap::new();
    for failure in failures.iter().filter(|f| !known.contains(f.digest.as_slice())) {
        let (first, last) = spans.entry(&failure.waba_id).or_insert((failure.failed_at, failure.failed_at));
        *first = failure.failed_at.min(*first);
        *last = failure.failed_at.max(*last);
    }
    let rows = sqlx::query!(
        "insert into incidents (waba_id, opened_at, last_failure_at, previous_incident_id)
         select a.waba_id, a.opened_at, a.last_failure_at,
                (select p.id from incidents p where p.waba_id = a.waba_id order by p.resolved_at desc, p.id desc limit 1)
           from unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) as a(waba_id, opened_at, last_failure_at)
         returning id, waba_id",
        &spans.keys().map(ToString::to_string).collect::<Vec<_>>(),
        &spans.values().map(|(first, _)| *first).collect::<Vec<_>>(),
        &spans.values().map(|(_, last)| *last).collect::<Vec<_>>(),
    )
    .fetch_all(db)
    .await?;
    let opened: BTreeMap<String, i64> = rows.into_iter().map(|row| (row.waba_id, row.id)).collect();
    Ok(spans.into_keys().filter_map(|waba_id| Some((waba_id, *opened.get(waba_id.as_str())?))).collect())
}

/// A failure in its incident.
struct Placed<'f> {
    incident_id: i64,
    item: &'f Item<'f>,
}

/// Inserts what is not there yet and adds exactly that to the counts. The captures come along in the same
/// statement: a round trip of their own would cost more than they do.
async fn insert(
    db: &mut PgConnection,
    placed: &[Placed<'_>],
    captures: &[Sighting<'_>],
) -> Result<Recorded, StoreError> {
    fn column<'f, T>(placed: &[Placed<'f>], value: impl Fn(&'f FailedDelivery) -> T) -> Vec<T> {
        placed.iter().map(|placed| value(placed.item.failure)).collect()
    }
    let optional = |text: &Option<Text>| text.as_ref().map(|text| text.as_str().to_owned());
    let row = sqlx::query!(
        r#"with kept as (
             insert into captures as c (waba_id, digest, body, signature, app_secret, received_at, last_received_at,
                                        failure_count, times_received)
             select *
               from unnest($18::text[], $19::bytea[], $20::bytea[], $21::text[], $22::int[], $23::timestamptz[],
                           $24::timestamptz[], $25::int[], $26::bigint[])
                 on conflict (digest, waba_id) do update
                set times_received   = c.times_received + excluded.times_received,
                    received_at      = least(c.received_at, excluded.received_at),
                    last_received_at = greatest(c.last_received_at, excluded.last_received_at)
             returning id, waba_id, digest
           ), incoming as (
             select f.*, coalesce(k.id, (select c.id from captures c
                                          where c.waba_id = f.capture_account and c.digest = f.capture)) as capture_id
               from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                           $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::text[], $13::text[],
                           $14::bytea[], $15::text[], $16::bytea[])
                    as f(incident_id, waba_id, phone_number_id, display_phone_number, message_id, recipient_id,
                         participant_id, failed_at, received_at, error_title, error_message, error_details,
                         callback_data, digest, capture_account, capture)
               left join kept k on k.digest = f.capture and k.waba_id = f.capture_account
           ), fresh as (
             insert into failed_deliveries (incident_id, waba_id, phone_number_id, message_id, recipient_id,
                                            participant_id, failed_at, received_at, error_code, error_title,
                                            error_message, error_details, callback_data, digest, capture_id)
             select incident_id, waba_id, phone_number_id, message_id, recipient_id, participant_id, failed_at,
                    received_at, $17, error_title, error_message, error_details, callback_data, digest, capture_id
               from incoming
                 on conflict (waba_id, digest) do nothing
             returning incident_id, waba_id, phone_number_id, failed_at
           ), per_number as (
             select incident_id, waba_id, phone_number_id, min(failed_at) as first, max(failed_at) as last, count(*) as n
               from fresh
              group by incident_id, waba_id, phone_number_id
           ), displays as (
             select incident_id, phone_number_id, max(display_phone_number) as display
               from incoming
              group by incident_id, phone_number_id
           ), counted as (
             update incidents i
                set failure_count   = i.failure_count + f.n,
                    opened_at       = least(i.opened_at, f.first),
                    last_failure_at = greatest(i.last_failure_at, f.last)
               from (select incident_id, waba_id, min(first) as first, max(last) as last, sum(n) as n
                       from per_number
                      group by incident_id, waba_id) f
              where i.id = f.incident_id and i.waba_id = f.waba_id
           ), numbers as (
             insert into affected_numbers as a (incident_id, waba_id, phone_number_id, display_phone_number,
                                                first_failure_at, last_failure_at, failure_count, check_due_at)
             select p.incident_id, p.waba_id, p.phone_number_id, d.display, p.first, p.last, p.n,
                    case when i.resolved_at is null then now() end
               from per_number p
               join incidents i on i.id = p.incident_id and i.waba_id = p.waba_id
               join displays d on d.incident_id = p.incident_id and d.phone_number_id = p.phone_number_id
                 on conflict (incident_id, phone_number_id, waba_id) do update
                set first_failure_at     = least(a.first_failure_at, excluded.first_failure_at),
                    last_failure_at      = greatest(a.last_failure_at, excluded.last_failure_at),
                    failure_count        = a.failure_count + excluded.failure_count,
                    display_phone_number = coalesce(excluded.display_phone_number, a.display_phone_number)
             returning xmax = 0 and check_due_at is not null as due
           )
           select (select count(*) from fresh) as "new!", exists (select from numbers where due) as "check_due!""#,
        &placed.iter().map(|placed| placed.incident_id).collect::<Vec<_>>(),
        &column(placed, |f| f.waba_id.to_string()),
        &column(placed, |f| f.phone_number_id.to_string()),
        &column(placed, |f| optional(&f.display_phone_number)) as &[Option<String>],
        &column(placed, |f| f.message_id.as_str().to_owned()),
        &column(placed, |f| optional(&f.recipient_id)) as &[Option<String>],
        &column(placed, |f| optional(&f.participant_id)) as &[Option<String>],
        &column(placed, |f| f.failed_at),
        &column(placed, |f| f.received_at),
        &column(placed, |f| optional(&f.error_title)) as &[Option<String>],
        &column(placed, |f| optional(&f.error_message)) as &[Option<String>],
        &column(placed, |f| optional(&f.error_details)) as &[Option<String>],
        &column(placed, |f| optional(&f.callback_data)) as &[Option<String>],
        &column(placed, |f| f.digest.to_vec()),
        &placed.iter().map(|p| p.item.capture.map(NewCapture::account)).collect::<Vec<_>>() as &[Option<&str>],
        &placed.iter().map(|p| Some(p.item.capture?.digest.as_slice())).collect::<Vec<_>>() as &[Option<&[u8]>],
        i32::try_from(ACCOUNT_LOCKED).expect("131031 fits"),
        &captures.iter().map(|c| c.capture.account()).collect::<Vec<_>>() as &[&str],
        &captures.iter().map(|c| c.capture.digest.as_slice()).collect::<Vec<_>>() as &[&[u8]],
        &captures.iter().map(|c| c.capture.body.as_ref()).collect::<Vec<_>>() as &[&[u8]],
        &captures.iter().map(|c| c.capture.signature.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
        &captures.iter().map(|c| c.capture.app_secret).collect::<Vec<_>>() as &[Option<i32>],
        &captures.iter().map(|c| c.first).collect::<Vec<_>>(),
        &captures.iter().map(|c| c.last).collect::<Vec<_>>(),
        &captures.iter().map(|c| c.capture.failure_count).collect::<Vec<_>>(),
        &captures.iter().map(|c| c.times).collect::<Vec<_>>(),
    )
    .fetch_one(db)
    .await?;
    let new = u64::try_from(row.new).expect("a count is not negative");
    Ok(Recorded { new, check_due: row.check_due, ..Recorded::default() })
}

/// Bytes for the quarantine, and what they came in.
#[derive(Debug)]
pub struct Quarantined<'b> {
    /// What could not be read, and why.
    pub unreadable: Unreadable,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// The callback it came in, if that is kept.
    pub capture: Option<&'b NewCapture>,
}

/// Keeps in one transaction what failures left over: the captures that none of them brought along, and
/// bytes that could not be read. The same bytes are kept once.
///
/// # Errors
/// Nothing is kept.
pub async fn rest(
    connection: &mut RecorderConnection,
    quarantined: &[Quarantined<'_>],
    captures: &mut Captures<'_>,
) -> Result<Recorded, StoreError> {
    let sightings = captures.take(|_| true);
    let mut transaction = connection.0.begin().await?;
    insert(&mut transaction, &[], &sightings).await?;
    let account =
        |q: &Quarantined<'_>| q.unreadable.waba_id.as_ref().map_or(UNKNOWN_ACCOUNT, WabaId::as_str).to_owned();
    let kept = sqlx::query!(
        "insert into quarantine (waba_id, received_at, reason, body, digest, capture_id)
         select q.waba_id, q.received_at, q.reason, q.body, q.digest, c.id
           from unnest($1::text[], $2::timestamptz[], $3::text[], $4::bytea[], $5::bytea[], $6::text[], $7::bytea[])
                as q(waba_id, received_at, reason, body, digest, capture_account, capture)
           left join captures c on c.waba_id = q.capture_account and c.digest = q.capture
          order by q.digest, q.waba_id
             on conflict (waba_id, digest) do nothing",
        &quarantined.iter().map(account).collect::<Vec<_>>(),
        &quarantined.iter().map(|q| q.received_at).collect::<Vec<_>>(),
        &quarantined.iter().map(|q| q.unreadable.reason.to_string()).collect::<Vec<_>>(),
        &quarantined.iter().map(|q| q.unreadable.bytes.as_ref()).collect::<Vec<_>>() as &[&[u8]],
        &quarantined.iter().map(|q| Sha256::digest(&q.unreadable.bytes).to_vec()).collect::<Vec<_>>(),
        &quarantined.iter().map(|q| q.capture.map(NewCapture::account)).collect::<Vec<_>>() as &[Option<&str>],
        &quarantined.iter().map(|q| q.capture.map(|c| c.digest.as_slice())).collect::<Vec<_>>() as &[Option<&[u8]>],
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    captures.kept(&sightings);
    Ok(Recorded { quarantined: kept.rows_affected(), ..Recorded::default() })
}
