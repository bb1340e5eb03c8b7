//! The oracle: the promises that must hold once the database has settled, whatever faults came
//! before.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::ledger::{Failure, LedgerEntries};

/// The promises that need the database only. Each has a query that finds its offenders.
const PROMISES: [(&str, &str); 14] = [
    (
        "a failure is stored once",
        "select waba_id || ' ' || message_id from failed_deliveries
          group by waba_id, phone_number_id, message_id having count(*) > 1",
    ),
    (
        "an account has at most one open incident, and it is the latest one",
        "select i.waba_id || ' ' || i.id from incidents i
           join incidents later on later.waba_id = i.waba_id and later.opened_at > i.opened_at
          where i.ended_at is null or i.ended_at > later.opened_at",
    ),
    (
        "an incident names the previous incident of its account",
        "select id::text
           from (select id, previous_incident_id,
                        lag(id) over (partition by waba_id order by opened_at) as before
                   from incidents) i
          where previous_incident_id is distinct from before",
    ),
    (
        "an incident is opened once, and resolved as often as it is reopened, or once more",
        "select i.id::text from incidents i
           left join (select incident_id as id,
                             count(*) filter (where kind = 'opened') as opened,
                             count(*) filter (where kind = 'resolved')
                             - count(*) filter (where kind = 'reopened') as resolved
                        from incident_changes group by 1) c using (id)
          where (c.opened, c.resolved)
                is distinct from (1::bigint, (i.resolved_at is not null)::int::bigint)",
    ),
    (
        "two accounts share no incident id",
        "select id::text from incidents group by id having count(*) > 1",
    ),
    (
        "the inbox is empty",
        "select concat(capture_id, ' ', problem) from inbox",
    ),
    (
        "an incident counts its failures and spans their times",
        "select i.id::text from incidents i
           left join (select incident_id as id, count(*) as n,
                             min(failed_at) as first, max(failed_at) as last
                        from failed_deliveries group by incident_id) d using (id)
          where (i.failure_count, i.opened_at, i.last_failure_at)
                is distinct from (d.n, d.first, d.last)",
    ),
    (
        "an affected number counts its failures and spans their times",
        "select incident_id || ' ' || phone_number_id from affected_numbers n
           full join (select incident_id, waba_id, phone_number_id,
                             count(*) as n, min(failed_at) as first, max(failed_at) as last
                        from failed_deliveries group by 1, 2, 3) d
                using (incident_id, waba_id, phone_number_id)
          where (n.failure_count, n.first_failure_at, n.last_failure_at)
                is distinct from (d.n, d.first, d.last)",
    ),
    (
        "a minute counts its failures",
        "select incident_id || ' ' || minute from failures_by_minute m
           full join (select incident_id, waba_id, date_trunc('minute', failed_at) as minute,
                             count(*) as n
                        from failed_deliveries group by 1, 2, 3) d
                using (incident_id, waba_id, minute)
          where m.failure_count is distinct from d.n",
    ),
    (
        "an hour counts its failures",
        "select incident_id || ' ' || hour from failures_by_hour h
           full join (select incident_id, waba_id, date_trunc('hour', failed_at) as hour,
                             count(*) as n
                        from failed_deliveries group by 1, 2, 3) d
                using (incident_id, waba_id, hour)
          where h.failure_count is distinct from d.n",
    ),
    (
        "a number has a health check due, within 70 minutes, exactly while its incident is open",
        "select n.incident_id || ' ' || n.phone_number_id from affected_numbers n
           join incidents i on i.id = n.incident_id and i.waba_id = n.waba_id
          where (i.resolved_at is null) <> (n.check_due_at is not null)
             or n.check_due_at > now() + interval '70 minutes'",
    ),
    (
        "an incident with an answered health check has its cause",
        "select i.id::text from incidents i
           join affected_numbers n on n.incident_id = i.id and n.waba_id = i.waba_id
          where i.cause = 'pending' and n.latest_check_id is not null",
    ),
    (
        "an account is looked up at most 150 times an hour",
        "select waba_id from health_checks
          where outcome <> 'not_asked' and checked_at > now() - interval '1 hour'
          group by waba_id having count(*) > 150",
    ),
    // Every body that was sent is readable, and a fault of the server is not a fault of the data.
    (
        "nothing is in quarantine",
        "select waba_id || ': ' || reason from quarantine",
    ),
];

/// The broken promises, each with a few of its offenders.
#[derive(Debug, Default)]
pub struct BrokenPromises(Vec<String>);

impl BrokenPromises {
    /// # Panics
    /// If a promise is broken.
    pub fn assert_none(self) {
        assert!(self.0.is_empty(), "broken promises:\n{}", self.0.join("\n"));
    }

    /// Adds a promise if it has offenders.
    fn add<T: std::fmt::Debug>(&mut self, promise: &str, offenders: impl IntoIterator<Item = T>) {
        let offenders: Vec<T> = offenders.into_iter().collect();
        if let Some(few) = offenders.chunks(5).next() {
            let count = offenders.len();
            self.0
                .push(format!("{promise}: {count} offenders, such as {few:?}"));
        }
    }
}

/// Checks that every acknowledged failure is recorded, or waits in the inbox. This must hold at any
/// time, without a delay.
pub async fn check_acknowledged(db: &mut PgConnection, ledger: &LedgerEntries) -> BrokenPromises {
    let mut broken = BrokenPromises::default();
    // The inbox first: what is processed in between is then recorded.
    let waiting: Vec<Vec<u8>> =
        sqlx::query_scalar("select c.body from inbox i join captures c on c.id = i.capture_id")
            .fetch_all(&mut *db)
            .await
            .unwrap();
    let waiting: HashSet<[u8; 32]> = waiting
        .iter()
        .map(|body| Sha256::digest(body).into())
        .collect();
    let stored: BTreeSet<String> = sqlx::query_scalar("select message_id from failed_deliveries")
        .fetch_all(db)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let processed = ledger
        .tallies
        .iter()
        .filter(|(_, tally)| tally.acknowledged > 0 && !waiting.contains(&tally.digest));
    let lost = processed
        .flat_map(|(callback, _)| callback.iter())
        .map(|failure| &ledger.failures[*failure])
        .filter(|failure| !stored.contains(&failure.message_id));
    let promise = "an acknowledged failure is recorded, or waits in the inbox";
    broken.add(promise, lost);
    broken
}

/// Checks every other promise, after everything that was sent has been acknowledged.
pub async fn check_settled(
    db: &mut PgConnection,
    ledger: &LedgerEntries,
    answers: &Answers,
) -> BrokenPromises {
    let mut broken = BrokenPromises::default();
    for (promise, query) in PROMISES {
        let offenders: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut *db).await.unwrap();
        broken.add(promise, offenders);
    }
    check_deliveries(db, ledger, &mut broken).await;
    check_captures(db, ledger, &mut broken).await;
    check_resolutions(db, ledger, &mut broken).await;
    check_causes(db, answers, &mut broken).await;
    broken
}

/// Summarizes the size of a history in one line.
pub async fn summarize(db: &mut PgConnection, ledger: &LedgerEntries) -> String {
    let counts = "select format('%s failures in %s callbacks, %s incidents, %s of them resolved, '
                                '%s look-ups',
                                (select count(*) from failed_deliveries),
                                (select count(*) from captures),
                                (select count(*) from incidents),
                                (select count(resolved_at) from incidents),
                                (select count(*) from health_checks))";
    let counts: String = sqlx::query_scalar(counts).fetch_one(db).await.unwrap();
    format!("{counts}; requests: {:?}", ledger.outcomes)
}

#[derive(Debug, sqlx::FromRow)]
struct Delivery {
    waba_id: String,
    phone_number_id: String,
    message_id: String,
    failed_at: OffsetDateTime,
    received_at: OffsetDateTime,
    incident_id: i64,
}

impl Delivery {
    fn equals(&self, failure: &Failure) -> bool {
        self.waba_id == failure.waba_id
            && self.phone_number_id == failure.phone_number_id
            // By the clock of a database that was wrong, Meta's time lay in the future.
            && (self.failed_at == failure.failed_at || self.failed_at == self.received_at)
    }
}

/// Checks that exactly the failures that were sent are stored, unchanged, and in the right
/// incident.
async fn check_deliveries(
    db: &mut PgConnection,
    ledger: &LedgerEntries,
    broken: &mut BrokenPromises,
) {
    let columns = "select waba_id, phone_number_id, message_id, failed_at, received_at, incident_id
                     from failed_deliveries";
    let stored: Vec<Delivery> = sqlx::query_as(columns).fetch_all(&mut *db).await.unwrap();
    let mut not_stored: HashMap<&str, &Failure> = ledger
        .failures
        .iter()
        .map(|failure| (failure.message_id.as_str(), failure))
        .collect();
    let ends = ends_by_account(db).await;
    let (mut unknown, mut misplaced) = (Vec::new(), Vec::new());
    for delivery in &stored {
        let sent = not_stored.remove(delivery.message_id.as_str());
        if !sent.is_some_and(|failure| delivery.equals(failure)) {
            unknown.push(delivery);
        }
        let ends = &ends[&delivery.waba_id];
        let has_ended =
            |end: Option<OffsetDateTime>| end.is_some_and(|at| at <= delivery.failed_at);
        let position = ends.partition_point(|(end, _)| has_ended(*end));
        if ends.get(position).map(|(_, id)| *id) != Some(delivery.incident_id) {
            misplaced.push(delivery);
        }
    }
    broken.add(
        "a stored failure was sent and signed, once, with these values",
        unknown,
    );
    broken.add("a failure is in its incident", misplaced);
    broken.add(
        "every failure is in the database after a resend",
        not_stored.values(),
    );
}

/// The incidents of each account, by their ends; an open one is last.
///
/// A history lasts for minutes, so no incident ends by seven days of silence, and a failure belongs
/// to the first incident that ended after it: this needs no rule of ours.
async fn ends_by_account(
    db: &mut PgConnection,
) -> HashMap<String, Vec<(Option<OffsetDateTime>, i64)>> {
    let rows: Vec<(String, Option<OffsetDateTime>, i64)> = sqlx::query_as(
        "select waba_id, ended_at, id from incidents order by waba_id, ended_at nulls last",
    )
    .fetch_all(db)
    .await
    .unwrap();
    let mut ends: HashMap<String, Vec<(Option<OffsetDateTime>, i64)>> = HashMap::new();
    for (waba_id, ended_at, id) in rows {
        ends.entry(waba_id).or_default().push((ended_at, id));
    }
    ends
}

/// Checks that a body is captured at least as often as it was acknowledged, and at most as often as
/// it was sent.
async fn check_captures(
    db: &mut PgConnection,
    ledger: &LedgerEntries,
    broken: &mut BrokenPromises,
) {
    let captures: Vec<(Vec<u8>, i64)> =
        sqlx::query_as("select sha256(body), count(*) from captures group by 1")
            .fetch_all(db)
            .await
            .unwrap();
    let captures: HashMap<Vec<u8>, i64> = captures.into_iter().collect();
    let sent: HashMap<&[u8], _> = ledger
        .tallies
        .values()
        .map(|tally| (&tally.digest[..], tally.acknowledged..=tally.sent))
        .collect();
    let unknown = captures
        .keys()
        .filter(|digest| !sent.contains_key(&digest[..]));
    broken.add("a captured body was sent", unknown.map(hex::encode));
    let miscounted = sent.iter().filter(|(digest, counts)| {
        !counts.contains(&captures.get(**digest).copied().unwrap_or_default())
    });
    broken.add(
        "a body is captured as often as it was acknowledged, and not more often than it was sent",
        miscounted.map(|(digest, counts)| (hex::encode(digest), counts)),
    );
}

/// The causes that the simulator was told to answer for each number.
pub type Answers = BTreeMap<String, BTreeSet<&'static str>>;

/// Checks that an incident has a cause that Meta gave for one of its numbers, or none.
async fn check_causes(db: &mut PgConnection, answers: &Answers, broken: &mut BrokenPromises) {
    let causes: Vec<(i64, String, Vec<String>)> = sqlx::query_as(
        "select i.id, i.cause, array_agg(n.phone_number_id)
           from incidents i
           join affected_numbers n on n.incident_id = i.id and n.waba_id = i.waba_id
          group by i.id, i.cause",
    )
    .fetch_all(db)
    .await
    .unwrap();
    let invented = causes.iter().filter(|(_, cause, numbers)| {
        let is_told = |number: &String| answers[number].contains(cause.as_str());
        !["pending", "unreported"].contains(&cause.as_str()) && !numbers.iter().any(is_told)
    });
    broken.add("a cause is what Meta answered", invented);
}

/// Checks that an incident whose manual resolution was confirmed is resolved manually, with its
/// note.
async fn check_resolutions(
    db: &mut PgConnection,
    ledger: &LedgerEntries,
    broken: &mut BrokenPromises,
) {
    let manual = "select id, resolution_note from incidents where resolution = 'manual'";
    let notes: HashMap<i64, Option<String>> = sqlx::query_as(manual)
        .fetch_all(db)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let undone = ledger.resolutions.iter().filter(|resolution| {
        notes.get(&resolution.incident_id) != Some(&Some(resolution.note.clone()))
    });
    broken.add("a resolved incident stays resolved", undone);
}
