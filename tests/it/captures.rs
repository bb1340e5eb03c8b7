//! Bodies as Meta sends them (`tests/captures`), each through the real router into a real database.
//!
//! A new case is a file there and a snapshot: the README says how.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use lockwatch::meta::capture::{Capture, is_capture};
use lockwatch::simulator::{Scenario, Simulator};

use crate::support::database::TestDatabase;
use crate::support::{ACCESS_TOKEN, APP_SECRET, TestApp, eventually};

/// What Meta says about the numbers in the files; it does not know any other.
const NUMBERS: [(&str, Scenario); 5] = [
    ("106540352242922", Scenario::Payment),
    ("106540352242923", Scenario::Available),
    ("206540352242924", Scenario::Policy),
    ("118620431337001", Scenario::Unverified),
    ("110200345501442", Scenario::ExpiredToken),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")
}

/// The bodies by name.
pub fn bodies() -> Vec<(String, Vec<u8>)> {
    let mut bodies: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            let text = fs::read(&path).unwrap();
            let body = if is_capture(&text) {
                Capture::from_line(&text).unwrap().body.to_vec()
            } else {
                text
            };
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), body)
        })
        .collect();
    bodies.sort();
    assert!(bodies.len() >= 40, "{} bodies", bodies.len());
    bodies
}

async fn app() -> TestApp {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for (number, scenario) in NUMBERS {
        simulator.script(number, [scenario]);
    }
    TestApp::start_on(TestDatabase::create().await, simulator).await
}

/// Everything that was recorded, as text, once every number was looked up. Times that Meta did not give
/// are left out, and so is how often a body came.
async fn recorded(app: &TestApp) -> String {
    const UNASKED: &str = "select count(*) from affected_numbers n where not exists (select from health_checks h
                            where h.incident_id = n.incident_id and h.phone_number_id = n.phone_number_id)";
    eventually("every number is looked up", async || {
        app.count(UNASKED).await == 0
    })
    .await;
    let rows: Vec<String> = sqlx::query_scalar(
        "select line from (
           select 1 as part, waba_id as a, '' as b, format(
             'incident of %s: %s failures, cause %s %s%s, from %s to %s', waba_id, failure_count, cause,
             coalesce(cause_severity, '-'), coalesce(' (' || cause_error_code || ')', ''),
             case when opened_at > now() - interval '1 hour' then 'now' else to_char(opened_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') end,
             case when last_failure_at > now() - interval '1 hour' then 'now' else to_char(last_failure_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') end) as line
             from incidents
           union all
           select 2, waba_id, phone_number_id, format(
             'number %s (%s) of %s: %s failures', phone_number_id, coalesce(display_phone_number, '-'), waba_id, failure_count)
             from affected_numbers
           union all
           select 3, d.waba_id, d.message_id || coalesce(d.participant_id, ''), format(
             E'failed delivery %s\n  account %s, number %s, recipient %s, participant %s, %s\n  %s %s | %s | %s\n  callback data %s, capture of %s',
             d.message_id, d.waba_id, d.phone_number_id, coalesce(d.recipient_id, '-'), coalesce(d.participant_id, '-'),
             case when d.failed_at = d.received_at then 'when received' else to_char(d.failed_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') end,
             d.error_code, coalesce(d.error_title, '-'), coalesce(d.error_message, '-'), coalesce(d.error_details, '-'),
             coalesce(d.callback_data, '-'), c.waba_id)
             from failed_deliveries d
             left join captures c on c.id = d.capture_id
           union all
           select 4, q.waba_id, encode(q.digest, 'hex'), format(
             'quarantine of %s: %s, %s bytes, capture of %s', q.waba_id, q.reason, octet_length(q.body), c.waba_id)
             from quarantine q
             left join captures c on c.id = q.capture_id
           union all
           select 5, waba_id, encode(digest, 'hex'), format(
             'capture of %s: %s bytes, %s failures', waba_id, octet_length(body), failure_count)
             from captures
         ) lines order by part, a collate \"C\", b collate \"C\", line collate \"C\"",
    )
    .fetch_all(&app.db)
    .await
    .unwrap();
    if rows.is_empty() {
        "nothing".to_owned()
    } else {
        rows.join("\n")
    }
}

/// What becomes of one body, which comes three times.
async fn outcome((name, body): (String, Vec<u8>)) -> (String, String) {
    let app = app().await;
    app.deliver(&body).await;
    let first = recorded(&app).await;
    for _ in 0..2 {
        app.deliver(&body).await;
    }
    assert_eq!(
        recorded(&app).await,
        first,
        "{name}: a repetition changes nothing"
    );
    app.service.stop().await;
    (name, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_body_becomes_the_rows_of_its_snapshot() {
    let bodies = bodies();
    let names: BTreeSet<String> = bodies
        .iter()
        .map(|(name, _)| format!("{name}.snap"))
        .collect();
    let outcomes: Vec<_> = stream::iter(bodies)
        .map(outcome)
        .buffer_unordered(4)
        .collect()
        .await;

    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder().join("snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (name, outcome) in outcomes {
        settings.bind(|| insta::assert_snapshot!(name, outcome));
    }
    let snapshots = fs::read_dir(folder().join("snapshots")).unwrap();
    let snapshots = snapshots.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let orphans: Vec<String> = snapshots
        .filter(|snapshot| !names.contains(snapshot))
        .collect();
    assert!(orphans.is_empty(), "snapshots without a body: {orphans:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_and_any_repetition_ends_in_the_same_rows() {
    let mut ends = Vec::new();
    for seed in 0..3 {
        let mut bodies = bodies();
        if seed > 0 {
            bodies.extend(bodies.clone());
            fastrand::Rng::with_seed(seed).shuffle(&mut bodies);
        }
        let app = app().await;
        let deliveries =
            stream::iter(&bodies).for_each_concurrent(8, async |(_, body)| app.deliver(body).await);
        deliveries.await;
        ends.push(recorded(&app).await);
        app.service.stop().await;
    }
    assert_eq!(ends[1], ends[0]);
    assert_eq!(ends[2], ends[0]);
}
