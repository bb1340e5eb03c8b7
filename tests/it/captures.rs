//! Bodies as Meta sends them (`tests/captures`), each through the real router into a real database.
//!
//! A new case is a file in that folder and a snapshot: see the README.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use lockwatch::meta::capture::{Capture, has_capture_fields};
use lockwatch::simulator::{Scenario, Simulator};

use crate::support::database::TestDatabase;
use crate::support::{ACCESS_TOKEN, APP_SECRET, TestApp, eventually};

/// Meta's answers about the numbers in the files. It knows no other number.
const ANSWERS: [(&str, Scenario); 5] = [
    ("106540352242922", Scenario::Payment),
    ("106540352242923", Scenario::Available),
    ("206540352242924", Scenario::Policy),
    ("118620431337001", Scenario::UnverifiedBlocked),
    ("110200345501442", Scenario::ExpiredToken),
];

fn captures_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")
}

/// Returns each file's name and the body in it, sorted by name.
pub fn load_bodies() -> Vec<(String, Vec<u8>)> {
    let mut bodies = Vec::new();
    for entry in fs::read_dir(captures_folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            bodies.push((name, body_of(fs::read(&path).unwrap())));
        }
    }
    bodies.sort();
    assert!(bodies.len() >= 40, "only {} bodies", bodies.len());
    bodies
}

/// Returns the body in a file: of a capture, or the file itself.
fn body_of(text: Vec<u8>) -> Vec<u8> {
    if has_capture_fields(&text) {
        Capture::from_line(&text).unwrap().body.to_vec()
    } else {
        text
    }
}

async fn start_app() -> TestApp {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for (number, scenario) in ANSWERS {
        simulator.set_scenarios(number, [scenario]);
    }
    TestApp::start_on(TestDatabase::create().await, simulator).await
}

const NOT_LOOKED_UP: &str = "
    select count(*)
      from affected_numbers n
      join incidents i on i.id = n.incident_id and i.resolved_at is null
     where not exists (
           select from health_checks h
            where h.incident_id = n.incident_id and h.phone_number_id = n.phone_number_id)";

/// Every row as a line of text, without the times that Meta did not give. A body that was captured
/// several times is there once.
const RECORDED_ROWS: &str = "
    select line from (
        select 1 as part, waba_id as a, '' as b, format(
               'incident of %s: %s failures, cause %s %s%s, from %s to %s',
               waba_id, failure_count, cause, coalesce(cause_severity, '-'),
               coalesce(' (' || cause_error_code || ')', ''),
               case when opened_at > now() - interval '1 hour' then 'now'
                    else to_char(opened_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') end,
               case when last_failure_at > now() - interval '1 hour' then 'now'
                    else to_char(last_failure_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') end)
               as line
          from incidents
        union all
        select 2, waba_id, phone_number_id, format(
               'number %s (%s) of %s: %s failures',
               phone_number_id, coalesce(display_phone_number, '-'), waba_id, failure_count)
          from affected_numbers
        union all
        select 3, d.waba_id, d.message_id || coalesce(d.participant_id, ''), format(
               E'failed delivery %s\n'
               '  account %s, number %s, recipient %s, participant %s, %s\n'
               '  %s %s | %s | %s\n'
               '  callback data %s, %s',
               d.message_id, d.waba_id, d.phone_number_id, coalesce(d.recipient_id, '-'),
               coalesce(d.participant_id, '-'),
               case when d.failed_at = d.received_at then 'when received'
                    else to_char(d.failed_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') end,
               d.error_code, coalesce(d.error_title, '-'), coalesce(d.error_message, '-'),
               coalesce(d.error_details, '-'), coalesce(d.callback_data, '-'),
               case when c.id is null then 'no capture' else 'captured' end)
          from failed_deliveries d
          left join captures c on c.id = d.capture_id
        union all
        select 4, q.waba_id, encode(q.digest, 'hex'), format(
               'quarantine of %s: %s, %s bytes, %s',
               q.waba_id, q.reason, octet_length(q.body),
               case when c.id is null then 'no capture' else 'captured' end)
          from quarantine q
          left join captures c on c.id = q.capture_id
        union all
        select distinct 5, '', encode(sha256(body), 'hex'), format(
               'capture of %s bytes', octet_length(body))
          from captures
        union all
        select 6, waba_id, encode(digest, 'hex'), format(
               'event of %s: %s %s, %s, until %s, %s', waba_id, field, event,
               coalesce(state, '-'), coalesce(expires_at::text, '-'), coalesce(detail, '-'))
          from account_events
    ) lines order by part, a collate \"C\", b collate \"C\", line collate \"C\"";

/// Waits until every number is looked up, and returns everything that was recorded as text.
async fn recorded_text(app: &TestApp) -> String {
    eventually("every number is looked up", async || {
        app.count(NOT_LOOKED_UP).await == 0
    })
    .await;
    eventually("what is over is resolved", async || {
        let over =
            "select count(*) from incidents where ended_at is not null and resolved_at is null";
        app.count(over).await == 0
    })
    .await;
    let rows: Vec<String> = sqlx::query_scalar(RECORDED_ROWS)
        .fetch_all(&app.db)
        .await
        .unwrap();
    if rows.is_empty() {
        "nothing".to_owned()
    } else {
        rows.join("\n")
    }
}

/// What was recorded in all, whatever incidents it is in: to which of two incidents a failure between
/// them belongs depends on which of the three came first.
const RECORDED_TOTALS: &str = "
    select line from (
        select format('account %s: %s failures, from %s to %s', waba_id, sum(failure_count),
               case when min(opened_at) > now() - interval '1 hour' then 'now'
                    else min(opened_at)::text end,
               case when max(last_failure_at) > now() - interval '1 hour' then 'now'
                    else max(last_failure_at)::text end) as line
          from incidents group by waba_id
        union all
        select format('number %s (%s) of %s: %s failures', phone_number_id,
               coalesce(max(display_phone_number), '-'), waba_id, sum(failure_count))
          from affected_numbers group by waba_id, phone_number_id
    ) lines order by line collate \"C\"";

/// Counts the failures outside of the span of their incident, and the incidents whose count is wrong
/// or that overlap with another one.
const MISPLACED: &str = "
    select (select count(*)
              from failed_deliveries d
              join incidents i on i.id = d.incident_id
             where d.failed_at < i.opened_at or d.failed_at >= i.ended_at)
         + (select count(*)
              from incidents a
              join incidents b on b.waba_id = a.waba_id and b.opened_at > a.opened_at
             where a.ended_at is null or a.ended_at > b.opened_at)
         + (select count(*)
              from incidents i
             where i.failure_count <> (select count(*) from failed_deliveries
                                        where incident_id = i.id))";

/// Returns everything that was recorded as text, without incidents.
async fn recorded_totals(app: &TestApp) -> String {
    assert_eq!(app.count(MISPLACED).await, 0);
    let mut lines: Vec<String> = sqlx::query_scalar(RECORDED_TOTALS)
        .fetch_all(&app.db)
        .await
        .unwrap();
    let recorded = recorded_text(app).await;
    let rows = recorded.lines().map(str::to_owned);
    lines.extend(
        rows.filter(|line| !line.starts_with("incident of") && !line.starts_with("number ")),
    );
    lines.join("\n")
}

/// Delivers a body three times. Returns its name and what was recorded.
async fn deliver_three_times((name, body): (String, Vec<u8>)) -> (String, String) {
    let app = start_app().await;
    app.deliver(&body).await;
    let recorded = recorded_text(&app).await;
    for _ in 0..2 {
        app.deliver(&body).await;
    }
    assert_eq!(
        recorded_text(&app).await,
        recorded,
        "a repetition of {name} changes the rows"
    );
    app.service.stop().await;
    (name, recorded)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_body_is_recorded_as_in_its_snapshot() {
    let outcomes: Vec<_> = stream::iter(load_bodies())
        .map(deliver_three_times)
        .buffer_unordered(4)
        .collect()
        .await;
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(captures_folder().join("snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (name, recorded) in outcomes {
        settings.bind(|| insta::assert_snapshot!(name, recorded));
    }
}

#[test]
fn every_snapshot_has_a_body() {
    let mut snapshots = BTreeSet::new();
    for entry in fs::read_dir(captures_folder().join("snapshots")).unwrap() {
        snapshots.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    for (name, _) in load_bodies() {
        snapshots.remove(&format!("{name}.snap"));
    }
    assert!(
        snapshots.is_empty(),
        "snapshots without a body: {snapshots:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn order_and_repetition_do_not_change_the_rows() {
    let mut outcomes = Vec::new();
    for seed in 0..3 {
        let mut bodies = load_bodies();
        if seed > 0 {
            bodies.extend(bodies.clone());
            fastrand::Rng::with_seed(seed).shuffle(&mut bodies);
        }
        let app = start_app().await;
        stream::iter(&bodies)
            .for_each_concurrent(8, async |(_, body)| app.deliver(body).await)
            .await;
        outcomes.push(recorded_totals(&app).await);
        app.service.stop().await;
    }
    assert_eq!(outcomes[1], outcomes[0]);
    assert_eq!(outcomes[2], outcomes[0]);
}
