//! The oracle: the promises that must hold once the database has settled, whatever faults came
//! before.

use std::collections::{BTreeSet, HashMap};

use lockwatch::lockout::incident::{IncidentSpan, incident_for_failure};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::ledger::{Failure, LedgerEntries};

/// The promises that need the database only. Each has a query that finds its offenders.
const PROMISES: [(&str, &str); 11] = [
    (
        "a failure is stored once",
        "select waba_id || ' ' || message_id from failed_deliveries
          group by waba_id, phone_number_id, message_id having count(*) > 1",
    ),
    (
        "an account has at most one open incident, and it is the latest one",
        "select i.waba_id || ' ' || i.id from incidents i
           join incidents later on later.waba_id = i.waba_id and later.id > i.id
          where i.resolved_at is null or i.resolved_at > later.resolved_at",
    ),
    (
        "an incident names the previous incident of its account",
        "select id::text
           from (select id, previous_incident_id,
                        lag(id) over (partition by waba_id order by id) as before from incidents) i
          where previous_incident_id is distinct from before",
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

/// Checks that every acknowledged failure is stored. This must hold at any time, without a delay.
pub async fn check_acknowledged(db: &mut PgConnection, ledger: &LedgerEntries) -> BrokenPromises {
    let mut broken = BrokenPromises::default();
    let stored: BTreeSet<String> = sqlx::query_scalar("select message_id from failed_deliveries")
        .fetch_all(db)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let lost = ledger
        .failures
        .iter()
        .filter(|failure| failure.is_acknowledged && !stored.contains(&failure.message_id));
    broken.add("an acknowledged failure is in the database", lost);
    broken
}

/// Checks every other promise, after everything that was sent has been acknowledged.
pub async fn check_settled(db: &mut PgConnection, ledger: &LedgerEntries) -> BrokenPromises {
    let mut broken = BrokenPromises::default();
    for (promise, query) in PROMISES {
        let offenders: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut *db).await.unwrap();
        broken.add(promise, offenders);
    }
    check_deliveries(db, ledger, &mut broken).await;
    check_captures(db, ledger, &mut broken).await;
    check_resolutions(db, ledger, &mut broken).await;
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
            && self.failed_at == failure.failed_at
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
    let incidents = incidents_by_account(db).await;
    let (mut unknown, mut misplaced) = (Vec::new(), Vec::new());
    for delivery in &stored {
        let sent = not_stored.remove(delivery.message_id.as_str());
        if !sent.is_some_and(|failure| delivery.equals(failure)) {
            unknown.push(delivery);
        }
        if !is_in_right_incident(delivery, &incidents[&delivery.waba_id]) {
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

/// Returns whether a failure is in the incident that the rule chose when it was recorded.
///
/// The rule chose the incident that was open then. If that incident was resolved since, it is the
/// first one that was resolved after the failure: the answer of the rule never changes. There is
/// one exception: Meta's clock was ahead, and the incident was resolved after the failure was
/// received and before the time that the failure bears.
fn is_in_right_incident(delivery: &Delivery, incidents: &[IncidentSpan]) -> bool {
    if incident_for_failure(delivery.failed_at, incidents) == Some(delivery.incident_id) {
        return true;
    }
    let resolved_at = incidents
        .iter()
        .find(|incident| incident.id == delivery.incident_id)
        .and_then(|incident| incident.resolved_at);
    resolved_at.is_some_and(|resolved_at| {
        delivery.received_at < resolved_at && resolved_at <= delivery.failed_at
    })
}

async fn incidents_by_account(db: &mut PgConnection) -> HashMap<String, Vec<IncidentSpan>> {
    let rows: Vec<(String, i64, Option<OffsetDateTime>)> =
        sqlx::query_as("select waba_id, id, resolved_at from incidents")
            .fetch_all(db)
            .await
            .unwrap();
    let mut incidents: HashMap<String, Vec<IncidentSpan>> = HashMap::new();
    for (waba_id, id, resolved_at) in rows {
        incidents
            .entry(waba_id)
            .or_default()
            .push(IncidentSpan { id, resolved_at });
    }
    incidents
}

/// Checks that a body is captured once, and counted at least as often as it was acknowledged and at
/// most as often as it was sent.
async fn check_captures(
    db: &mut PgConnection,
    ledger: &LedgerEntries,
    broken: &mut BrokenPromises,
) {
    let captures: Vec<(Vec<u8>, i64)> =
        sqlx::query_as("select digest, times_received from captures")
            .fetch_all(db)
            .await
            .unwrap();
    let mut tallies: HashMap<&[u8], _> = ledger
        .tallies
        .values()
        .map(|tally| (&tally.digest[..], tally))
        .collect();
    let mut miscounted = Vec::new();
    for (digest, times) in &captures {
        let counts = tallies
            .remove(&digest[..])
            .map(|tally| tally.acknowledged..=tally.sent);
        if !counts.is_some_and(|counts| counts.contains(times)) {
            miscounted.push((hex::encode(digest), times));
        }
    }
    broken.add(
        "a capture counts how often its body was received",
        miscounted,
    );
    broken.add(
        "an acknowledged body is captured",
        tallies.values().filter(|tally| tally.acknowledged > 0),
    );
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
