//! What must be true of the database once it has settled, whatever happened to it before.

use std::collections::{BTreeSet, HashMap};

use lockwatch::lockout::incident::{Span, belongs_to};
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::ledger::{Book, Failure};

/// Promises that the database alone can judge: each with a query for what breaks it.
const PROMISES: [(&str, &str); 11] = [
    (
        "a failure is there once",
        "select waba_id || ' ' || message_id from failed_deliveries
          group by waba_id, phone_number_id, message_id having count(*) > 1",
    ),
    (
        "an account has one open incident at most, and it is the last",
        "select i.waba_id || ' ' || i.id from incidents i
           join incidents later on later.waba_id = i.waba_id and later.id > i.id
          where i.resolved_at is null or i.resolved_at > later.resolved_at",
    ),
    (
        "an incident names the one before it",
        "select id::text from (select id, previous_incident_id,
                                      lag(id) over (partition by waba_id order by id) as before from incidents) i
          where previous_incident_id is distinct from before",
    ),
    (
        "an incident counts and spans its failures",
        "select i.id::text from incidents i
           left join (select incident_id as id, count(*) as n, min(failed_at) as first, max(failed_at) as last
                        from failed_deliveries group by incident_id) d using (id)
          where (i.failure_count, i.opened_at, i.last_failure_at) is distinct from (d.n, d.first, d.last)",
    ),
    (
        "a number counts and spans its failures",
        "select incident_id || ' ' || phone_number_id from affected_numbers n
           full join (select incident_id, waba_id, phone_number_id,
                             count(*) as n, min(failed_at) as first, max(failed_at) as last
                        from failed_deliveries group by 1, 2, 3) d using (incident_id, waba_id, phone_number_id)
          where (n.failure_count, n.first_failure_at, n.last_failure_at) is distinct from (d.n, d.first, d.last)",
    ),
    (
        "a minute counts its failures",
        "select incident_id || ' ' || minute from failures_by_minute m
           full join (select incident_id, waba_id, date_trunc('minute', failed_at) as minute, count(*) as n
                        from failed_deliveries group by 1, 2, 3) d using (incident_id, waba_id, minute)
          where m.failure_count is distinct from d.n",
    ),
    (
        "an hour counts its failures",
        "select incident_id || ' ' || hour from failures_by_hour h
           full join (select incident_id, waba_id, date_trunc('hour', failed_at) as hour, count(*) as n
                        from failed_deliveries group by 1, 2, 3) d using (incident_id, waba_id, hour)
          where h.failure_count is distinct from d.n",
    ),
    (
        "a number has a check due, not too late, exactly while its incident is open",
        "select n.incident_id || ' ' || n.phone_number_id from affected_numbers n
           join incidents i on i.id = n.incident_id and i.waba_id = n.waba_id
          where (i.resolved_at is null) <> (n.check_due_at is not null)
             or n.check_due_at > now() + interval '70 minutes'",
    ),
    (
        "an incident with an answer has its cause",
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
    // All of it can be read, and trouble with the server is not the data's fault.
    ("nothing is in quarantine", "select waba_id || ': ' || reason from quarantine"),
];

/// The promises that are broken, with a few who break them.
#[derive(Debug, Default)]
pub struct Broken(Vec<String>);

impl Broken {
    fn unless_empty<T: std::fmt::Debug>(
        &mut self,
        promise: &str,
        offenders: impl IntoIterator<Item = T>,
    ) {
        let offenders: Vec<T> = offenders.into_iter().collect();
        if let Some(few) = offenders.chunks(5).next() {
            self.0.push(format!(
                "{promise}, but not {} such as {few:?}",
                offenders.len()
            ));
        }
    }

    /// # Panics
    /// If there are any.
    pub fn none(self) {
        assert!(self.0.is_empty(), "broken promises:\n{}", self.0.join("\n"));
    }
}

/// Whether what was acknowledged is there: at any time, and at once.
pub async fn acknowledged(db: &mut PgConnection, book: &Book) -> Broken {
    let mut broken = Broken::default();
    let stored: BTreeSet<String> = sqlx::query_scalar("select message_id from failed_deliveries")
        .fetch_all(db)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let lost = book
        .failures
        .iter()
        .filter(|f| f.acknowledged && !stored.contains(&f.message_id));
    broken.unless_empty("an acknowledged failure is in the database", lost);
    broken
}

/// Everything else, once all that was sent was acknowledged.
pub async fn settled(db: &mut PgConnection, book: &Book) -> Broken {
    let mut broken = Broken::default();
    for (promise, query) in PROMISES {
        let offenders: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut *db).await.unwrap();
        broken.unless_empty(promise, offenders);
    }
    deliveries(db, book, &mut broken).await;
    captures(db, book, &mut broken).await;
    resolutions(db, book, &mut broken).await;
    broken
}

/// How much of a history it was.
pub async fn summary(db: &mut PgConnection, book: &Book) -> String {
    let counts = "select format('%s failures in %s callbacks, %s incidents, %s of them resolved, %s look-ups',
                                (select count(*) from failed_deliveries), (select count(*) from captures),
                                (select count(*) from incidents), (select count(resolved_at) from incidents),
                                (select count(*) from health_checks))";
    let counts: String = sqlx::query_scalar(counts).fetch_one(db).await.unwrap();
    format!("{counts}; requests: {:?}", book.outcomes)
}

type Delivery = (String, String, String, OffsetDateTime, OffsetDateTime, i64);

/// What was sent is there as it was sent and where it belongs, and nothing else.
async fn deliveries(db: &mut PgConnection, book: &Book, broken: &mut Broken) {
    let columns = "select waba_id, phone_number_id, message_id, failed_at, received_at, incident_id
                     from failed_deliveries";
    let stored: Vec<Delivery> = sqlx::query_as(columns).fetch_all(&mut *db).await.unwrap();
    let mut sent: HashMap<&str, &Failure> = book
        .failures
        .iter()
        .map(|f| (f.message_id.as_str(), f))
        .collect();
    let history = history(db).await;
    let (mut strange, mut misplaced) = (Vec::new(), Vec::new());
    for delivery in &stored {
        let (waba_id, phone_number_id, message_id, failed_at, received_at, incident_id) = delivery;
        let as_sent = sent.remove(message_id.as_str()).is_some_and(|failure| {
            (
                &failure.waba_id,
                &failure.phone_number_id,
                &failure.failed_at,
            ) == (waba_id, phone_number_id, failed_at)
        });
        if !as_sent {
            strange.push(delivery);
        }
        if !is_at_home(*incident_id, *failed_at, *received_at, &history[waba_id]) {
            misplaced.push(delivery);
        }
    }
    broken.unless_empty(
        "what is in the database was sent and signed, once, and as it is there",
        strange,
    );
    broken.unless_empty("a failure is in its incident", misplaced);
    broken.unless_empty(
        "everything is in the database after a resend",
        sent.values(),
    );
}

/// Whether a failure is where the rule put it when it was recorded.
///
/// The incident that was open then is, if it was resolved since, the first that was resolved after the
/// failure: the rule's answer never changes. Unless Meta's clock was ahead, and the incident was resolved after
/// the failure came and before the time that it bears.
fn is_at_home(
    id: i64,
    failed_at: OffsetDateTime,
    received_at: OffsetDateTime,
    history: &[Span],
) -> bool {
    let resolved_before_it_failed = || {
        let resolved_at = history
            .iter()
            .find(|incident| incident.id == id)
            .and_then(|incident| incident.resolved_at);
        resolved_at.is_some_and(|resolved_at| received_at < resolved_at && resolved_at <= failed_at)
    };
    belongs_to(failed_at, history) == Some(id) || resolved_before_it_failed()
}

async fn history(db: &mut PgConnection) -> HashMap<String, Vec<Span>> {
    let incidents: Vec<(String, i64, Option<OffsetDateTime>)> =
        sqlx::query_as("select waba_id, id, resolved_at from incidents")
            .fetch_all(db)
            .await
            .unwrap();
    let mut history: HashMap<String, Vec<Span>> = HashMap::new();
    for (waba_id, id, resolved_at) in incidents {
        history
            .entry(waba_id)
            .or_default()
            .push(Span { id, resolved_at });
    }
    history
}

/// A body is kept once, counted at least as often as it was acknowledged and at most as often as it was sent.
async fn captures(db: &mut PgConnection, book: &Book, broken: &mut Broken) {
    let kept: Vec<(Vec<u8>, i64)> = sqlx::query_as("select digest, times_received from captures")
        .fetch_all(db)
        .await
        .unwrap();
    let mut tallies: HashMap<&[u8], _> = book
        .tallies
        .values()
        .map(|tally| (&tally.digest[..], tally))
        .collect();
    let miscounted = kept.iter().filter(|(digest, times)| {
        tallies
            .remove(&digest[..])
            .is_none_or(|tally| !(tally.acknowledged..=tally.sent).contains(times))
    });
    broken.unless_empty(
        "a capture counts how often its body came",
        miscounted.map(|(digest, n)| (hex::encode(digest), n)),
    );
    broken.unless_empty(
        "an acknowledged body is kept",
        tallies.values().filter(|tally| tally.acknowledged > 0),
    );
}

/// What a person was told to have resolved is resolved, by hand and with the person's words.
async fn resolutions(db: &mut PgConnection, book: &Book, broken: &mut Broken) {
    let resolved = "select id, resolution_note from incidents where resolution = 'manual'";
    let notes: HashMap<i64, Option<String>> = sqlx::query_as(resolved)
        .fetch_all(db)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let undone = book
        .resolved
        .iter()
        .filter(|(id, note)| notes.get(id) != Some(&Some(note.clone())));
    broken.unless_empty("what was resolved stays resolved", undone);
}
