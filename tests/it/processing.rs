//! From the inbox to incidents: what is in the way of one callback delays no other, and nothing
//! that was acknowledged is lost.

use std::process::Output;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::OffsetDateTime;

use crate::support::database::TestDatabase;
use crate::support::process::{Serve, lockwatch};
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, OTHER_NUMBER, TestApp, WABA, eventually_within, one_failure,
    start_service,
};

const DAY: time::Duration = time::Duration::DAY;

fn days_ago(days: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() - DAY * i32::try_from(days).unwrap()
}

fn failed_at(message_id: &str, at: OffsetDateTime) -> Vec<u8> {
    StatusCallback::new()
        .timestamp(at)
        .failed(WABA, NUMBER, message_id)
        .into_body()
}

fn run(arguments: &[&str]) -> Output {
    lockwatch(arguments).output().unwrap()
}

/// Holds something of the test account in an open transaction.
async fn hold(app: &TestApp, sql: &str) -> PgConnection {
    let mut holder = PgConnection::connect(&app.database.url).await.unwrap();
    let sql = AssertSqlSafe(format!("begin; {sql}"));
    sqlx::raw_sql(sql).execute(&mut holder).await.unwrap();
    holder
}

/// What somebody's transaction may hold for a long time.
const HELD: [&str; 4] = [
    "select pg_advisory_xact_lock(hashtextextended('102290129340398', 131031))",
    "update incidents set resolution_note = 'x' where waba_id = '102290129340398'",
    "update affected_numbers set check_due_at = check_due_at where waba_id = '102290129340398'",
    "select from accounts where waba_id = '102290129340398' for update; \
     select from incidents where waba_id = '102290129340398' for update",
];

#[tokio::test]
async fn an_account_that_somebody_holds_delays_no_answer_and_no_other_account() {
    let app = TestApp::start().await;
    app.fail("before").await;
    app.wait_for_cause("unreported").await;
    for (round, held) in HELD.iter().enumerate() {
        let mut holder = hold(&app, held).await;
        let mut slowest = Duration::ZERO;
        for n in 0..20 {
            let started = Instant::now();
            app.acknowledged(&one_failure(&format!("held.{round}.{n}")))
                .await;
            slowest = slowest.max(started.elapsed());
            let other = StatusCallback::new()
                .timestamp(OffsetDateTime::now_utc())
                .failed(&format!("20{round}0{n}"), &format!("30{round}0{n}"), "1");
            app.acknowledged(&other.into_body()).await;
        }
        assert!(slowest < Duration::from_millis(500), "{held}: {slowest:?}");
        let started = Instant::now();
        let others = format!("select count(*) from incidents where waba_id like '20{round}0%'");
        eventually_within(
            Duration::from_secs(2),
            "the others' incidents",
            async || {
                let count = sqlx::query_scalar::<_, i64>(AssertSqlSafe(others.clone()));
                count.fetch_one(&app.db).await.unwrap() == 20
            },
        )
        .await;
        assert!(started.elapsed() < Duration::from_millis(1500), "{held}");
        let waiting = "select count(*) from inbox where problem is null";
        assert_eq!(app.count(waiting).await, 20, "{held}");
        sqlx::raw_sql("rollback")
            .execute(&mut holder)
            .await
            .unwrap();
        app.settle().await;
        let recorded = "select count(*) from failed_deliveries where waba_id = '102290129340398'";
        assert_eq!(
            app.count(recorded).await,
            1 + 20 * (i64::try_from(round).unwrap() + 1)
        );
    }
}

#[tokio::test]
async fn failures_after_an_outage_open_a_new_incident_that_is_looked_up() {
    let app = TestApp::start().await;
    app.fail_at("old", days_ago(1)).await;
    app.wait_for_cause("unreported").await;
    app.let_time_pass(DAY * 9).await;
    app.eventually("the old incident is over", async || {
        app.incident().await.resolved_at.is_some()
    })
    .await;
    let requests = app.simulator.requests().len();
    for n in 0..10 {
        let at =
            OffsetDateTime::now_utc() - time::Duration::hours(48) + time::Duration::hours(4) * n;
        app.acknowledged(&failed_at(&format!("new.{n}"), at)).await;
    }
    app.settle().await;
    let incidents = app.incidents().await;
    assert_eq!(incidents.len(), 2);
    assert_eq!(
        (incidents[0].failure_count, incidents[1].failure_count),
        (1, 10)
    );
    assert_eq!(
        (incidents[1].ended_at, incidents[1].resolved_at),
        (None, None)
    );
    assert_eq!(incidents[1].previous_incident_id, Some(incidents[0].id));
    let opened = "select count(*) from incident_changes where kind = 'opened'";
    assert_eq!(app.count(opened).await, 2);
    app.eventually("the new one is looked up", async || {
        app.simulator.requests().len() > requests
    })
    .await;
}

#[tokio::test]
async fn lockouts_forty_days_apart_are_two_incidents_also_while_graph_is_away() {
    let app = TestApp::start_with_graph_url("http://127.0.0.1:1").await;
    for (id, days) in [("now", 0), ("forty", 40), ("now too", 1), ("forty-two", 42)] {
        app.fail_at(id, days_ago(days)).await;
    }
    let incidents = app.incidents().await;
    let counts: Vec<i64> = incidents
        .iter()
        .map(|incident| incident.failure_count)
        .collect();
    assert_eq!(counts, [2, 2]);
    let old = incidents
        .iter()
        .min_by_key(|incident| incident.opened_at)
        .unwrap();
    let new = incidents
        .iter()
        .max_by_key(|incident| incident.opened_at)
        .unwrap();
    assert_eq!(old.ended_at, Some(old.last_failure_at + DAY * 7));
    assert_eq!(new.ended_at, None);
    assert_eq!(
        new.previous_incident_id,
        Some(old.id),
        "linked, although it came first"
    );
    app.execute("update incidents set created_at = created_at - interval '1 minute'")
        .await;
    app.eventually("nobody waits for ever for an answer", async || {
        let resolved =
            "select count(*) from incidents where resolution = 'quiet' and cause = 'pending'";
        app.count(resolved).await == 1
    })
    .await;
}

#[tokio::test]
async fn an_incident_that_is_over_when_it_is_first_seen_shows_its_whole_story() {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    app.fail_at("long ago", days_ago(30)).await;
    app.eventually("it is resolved", async || {
        app.incident().await.resolved_at.is_some()
    })
    .await;
    let incident = app.incident().await;
    assert_eq!(incident.cause, "payment");
    assert_eq!(
        incident.resolution.as_ref().map(|word| word.as_str()),
        Some("quiet")
    );
    assert_eq!(incident.ended_at, Some(incident.last_failure_at + DAY * 7));
    let changes = "select string_agg(kind, ' ' order by id) from incident_changes";
    assert_eq!(
        app.text(changes).await.as_deref(),
        Some("opened cause_found resolved")
    );
    assert_eq!(app.simulator.requests().len(), 1);
}

#[tokio::test]
async fn a_late_failure_opens_a_quiet_incident_again() {
    let app = TestApp::start().await;
    app.fail_at("first", days_ago(8)).await;
    app.eventually("it is over", async || {
        app.incident().await.resolved_at.is_some()
    })
    .await;
    let requests = app.simulator.requests().len();
    app.fail_at("late", days_ago(3)).await;
    let incident = app.incident().await;
    assert_eq!(
        (
            incident.failure_count,
            incident.ended_at,
            incident.resolved_at
        ),
        (2, None, None)
    );
    app.eventually("it is looked up again", async || {
        app.simulator.requests().len() > requests
    })
    .await;
    let reopened = "select count(*) from incident_changes where kind = 'reopened'";
    assert_eq!(app.count(reopened).await, 1);
    app.fail_at("later still", days_ago(4)).await;
    assert_eq!(app.count(reopened).await, 1);
}

#[tokio::test]
async fn a_number_that_joins_an_incident_as_it_ends_is_not_looked_up() {
    let app = TestApp::start().await;
    app.fail_at("first", days_ago(6)).await;
    app.wait_for_cause("unreported").await;
    app.let_time_pass(DAY * 2).await;
    let body = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc() - DAY * 15 / 2)
        .failed(WABA, OTHER_NUMBER, "late")
        .timestamp(OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, "now")
        .into_body();
    app.deliver(&body).await;
    let counts: Vec<i64> = app
        .incidents()
        .await
        .iter()
        .map(|i| i.failure_count)
        .collect();
    assert_eq!(counts, [2, 1]);
    let due = "select count(*) from affected_numbers n
                 join incidents i on i.id = n.incident_id
                where i.resolved_at is not null and n.check_due_at is not null";
    assert_eq!(app.count(due).await, 0);
}

#[tokio::test]
async fn a_message_that_two_apps_report_in_two_ways_is_one_row() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let database = TestDatabase::create().await;
    let other_secret = "the-secret-of-the-other-app";
    let secrets = [APP_SECRET, other_secret];
    let service = start_service(database.database(), &simulator, &secrets).await;
    let now = OffsetDateTime::now_utc();
    let failed = |id: &str, recipient: (&str, &str), group: Option<&str>| {
        let mut status = json!({
            "id": id,
            "status": "failed",
            "timestamp": now.unix_timestamp().to_string(),
            "errors": [{"code": 131_031, "title": "Business Account locked"}],
        });
        status[recipient.0] = json!(recipient.1);
        if let Some(participant) = group {
            status["recipient_participant_id"] = json!(participant);
        }
        let body = StatusCallback::new()
            .status(WABA, NUMBER, status)
            .into_body();
        String::from_utf8(body).unwrap()
    };
    let by_phone = failed("wamid.1", ("recipient_id", "16505551234"), None);
    let by_user = failed(
        "wamid.1",
        ("recipient_user_id", "US.13491208655302741918"),
        None,
    );
    let by_parent = failed("wamid.1", ("recipient_parent_user_id", "US.ENT.1"), None);
    let escaped = by_phone.replace("wamid.1", "wamid\\u002e1");
    let with_number = by_phone.replace(&format!("\"{NUMBER}\""), NUMBER);
    let bodies = [
        (APP_SECRET, by_phone),
        (other_secret, by_user),
        (other_secret, by_parent),
        (APP_SECRET, escaped),
        (APP_SECRET, with_number),
        (
            APP_SECRET,
            failed("wamid.2", ("recipient_id", "group"), Some("1")),
        ),
        (
            APP_SECRET,
            failed("wamid.2", ("recipient_id", "group"), Some("2")),
        ),
    ];
    let client = crate::support::client();
    for (secret, body) in bodies {
        let request = client
            .post(format!("http://{}/webhook", service.address))
            .header(SIGNATURE_HEADER, sign(secret, body.as_bytes()))
            .body(body);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    }
    let db = database.database().pool();
    crate::support::settle(&db).await;
    let rows: Vec<String> =
        sqlx::query_scalar("select message_id from failed_deliveries order by message_id")
            .fetch_all(&db)
            .await
            .unwrap();
    assert_eq!(rows, ["wamid.1", "wamid.2", "wamid.2"]);
    service.stop().await;
}

/// Acknowledges some callbacks of two accounts at once; one of them is `wamid.poison`.
async fn acknowledge_with_poison(app: &TestApp) {
    let others: Vec<Vec<u8>> = (0..40)
        .map(|n| {
            let account = if n % 2 == 0 { WABA } else { "1033" };
            StatusCallback::new()
                .timestamp(OffsetDateTime::now_utc())
                .failed(account, OTHER_NUMBER, &format!("wamid.{n}"))
                .into_body()
        })
        .collect();
    let poison = one_failure("wamid.poison");
    let bodies = others.iter().chain([&poison]);
    join_all(bodies.map(|body| app.acknowledged(body))).await;
}

#[tokio::test]
async fn a_refused_callback_waits_with_its_problem_and_its_neighbours_are_recorded() {
    let app = TestApp::start().await;
    let refusal = "alter table failed_deliveries add constraint no_poison
                   check (message_id <> 'wamid.poison')";
    app.execute(refusal).await;
    acknowledge_with_poison(&app).await;
    app.eventually("the neighbours are recorded", async || {
        app.count("select count(*) from failed_deliveries").await == 40
    })
    .await;
    app.eventually("the poison waits", async || {
        app.count("select count(*) from inbox where attempts > 0 and retry_at > now()")
            .await
            == 1
    })
    .await;
    let problem = app.text("select problem from inbox").await.unwrap();
    assert!(problem.contains("no_poison"), "{problem}");
    let status = app.api("/status").await;
    assert_eq!(
        (&status["inbox_callbacks"], &status["inbox_problems"]),
        (&json!(1), &json!(1))
    );

    app.execute("alter table failed_deliveries drop constraint no_poison")
        .await;
    let retried = run(&["inbox", "retry", "--database-url", &app.database.url]);
    assert!(retried.status.success());
    app.settle().await;
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        41
    );
    let counted = "select sum(failure_count)::bigint from incidents";
    assert_eq!(app.count(counted).await, 41);
}

#[tokio::test]
async fn tables_that_refuse_everything_lose_nothing() {
    let app = TestApp::start().await;
    for (breaks, mends) in [
        (
            "alter table failed_deliveries rename to renamed",
            "alter table renamed rename to failed_deliveries",
        ),
        (
            "create table tenants (waba_id text primary key);
             alter table failed_deliveries add constraint tenant
               foreign key (waba_id) references tenants not valid",
            "alter table failed_deliveries drop constraint tenant; drop table tenants",
        ),
        (
            "alter table incidents add constraint none check (failure_count < 0) not valid",
            "alter table incidents drop constraint none",
        ),
    ] {
        let before = app.count("select count(*) from failed_deliveries").await;
        sqlx::raw_sql(breaks).execute(&app.db).await.unwrap();
        for n in 0..30 {
            app.acknowledged(&one_failure(&format!("{before}.{n}")))
                .await;
        }
        app.eventually("it is tried and refused", async || {
            app.count("select count(*) from inbox where problem is not null")
                .await
                >= 8
        })
        .await;
        assert_eq!(
            app.count("select count(*) from inbox").await,
            30,
            "{breaks}"
        );
        sqlx::raw_sql(mends).execute(&app.db).await.unwrap();
        app.settle().await;
        assert_eq!(
            app.count("select count(*) from failed_deliveries").await,
            before + 30
        );
    }
    assert_eq!(app.incident().await.failure_count, 90);
    assert_eq!(app.count("select count(*) from quarantine").await, 0);
}

#[tokio::test]
async fn sequences_that_were_set_back_are_advanced_while_it_runs() {
    let app = TestApp::start().await;
    for round in 0..2 {
        for n in 0..5 {
            let body = StatusCallback::new()
                .timestamp(OffsetDateTime::now_utc())
                .failed(&format!("10{round}{n}"), NUMBER, "1")
                .into_body();
            let mut status = app.post(&body).await.status();
            // An append that meets an old id is refused once.
            if status == StatusCode::SERVICE_UNAVAILABLE {
                status = app.post(&body).await.status();
            }
            assert_eq!(status, StatusCode::OK);
        }
        app.settle().await;
        assert_eq!(
            app.count("select count(*) from incidents").await,
            5 * (round + 1)
        );
        app.execute(
            "select setval('failed_deliveries_id_seq', 1, false),
                    setval('captures_id_seq', 1, false), setval('incidents_id_seq', 1, false),
                    setval('incident_changes_id_seq', 1, false)",
        )
        .await;
    }
    let distinct = "select count(distinct id) from incidents";
    assert_eq!(
        app.count(distinct).await,
        10,
        "no two accounts share an incident id"
    );
}

#[tokio::test]
async fn quarantined_captures_are_read_again_on_request() {
    let app = TestApp::start().await;
    app.deliver(b"{\"entry\":131031}").await;
    app.deliver(&one_failure("good")).await;
    let status = app.api("/status").await;
    assert_eq!(status["quarantined"], json!(1));
    assert_eq!(
        status["quarantined_accounts"][0]["waba_id"],
        json!("unknown")
    );
    // As if a later version could read it: the same capture with a readable body.
    let readable = one_failure("readable now");
    sqlx::query("update captures set body = $1 where id = (select capture_id from quarantine)")
        .bind(&readable)
        .execute(&app.db)
        .await
        .unwrap();
    let retried = run(&["captures", "retry", "--database-url", &app.database.url]);
    assert!(retried.status.success());
    app.settle().await;
    assert_eq!(app.count("select count(*) from quarantine").await, 0);
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 2);
}

#[tokio::test]
async fn a_callback_is_dropped_only_when_a_person_says_so() {
    let app = TestApp::start().await;
    let refusal = "alter table failed_deliveries add check (message_id <> 'wamid.poison')";
    app.execute(refusal).await;
    app.acknowledged(&one_failure("wamid.poison")).await;
    app.eventually("it has a problem", async || {
        app.count("select count(*) from inbox where problem is not null")
            .await
            == 1
    })
    .await;
    let id = app.count("select capture_id from inbox").await.to_string();
    let url = &app.database.url;
    let listed = run(&["inbox", "list", "--json", "--database-url", url]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed[0]["capture_id"].to_string(), id);
    let refused = run(&["inbox", "drop", &id, "--database-url", url]);
    assert_eq!(
        refused.status.code(),
        Some(2),
        "nobody is there to be asked"
    );
    let unknown = run(&["inbox", "drop", &id, "999", "--yes", "--database-url", url]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(app.count("select count(*) from inbox").await, 1);
    let dropped = run(&["inbox", "drop", &id, "--yes", "--database-url", url]);
    assert!(dropped.status.success());
    let said = String::from_utf8_lossy(&dropped.stderr).into_owned();
    assert!(
        said.contains(&format!("1 failed message of {WABA}")),
        "{said}"
    );
    assert_eq!(app.count("select count(*) from inbox").await, 0);
    assert_eq!(app.count("select count(*) from captures").await, 1);
}

#[tokio::test]
async fn an_older_reader_leaves_the_callbacks_of_a_newer_one_alone() {
    let app = TestApp::start().await;
    app.execute(
        "with c as (insert into captures (received_at, body) values (now(), '131031') returning id)
         insert into inbox (capture_id, reader) select id, 2 from c",
    )
    .await;
    app.acknowledged(&one_failure("ours")).await;
    app.eventually("ours is recorded", async || {
        app.count("select count(*) from failed_deliveries").await == 1
    })
    .await;
    assert_eq!(
        app.count("select count(*) from inbox where reader = 2")
            .await,
        1
    );
}

#[tokio::test]
async fn what_one_process_appended_another_processes() {
    let app = TestApp::start().await;
    let mut serve = Serve::on_database(&app.database.url, &[]);
    serve.wait_for_log("the database is ready");
    // Only its inbox works: somebody holds the processor's lock.
    let mut holder = PgConnection::connect(&app.database.url).await.unwrap();
    let lock = "select 1 from pg_advisory_lock(131031000)";
    sqlx::query(lock).execute(&mut holder).await.unwrap();
    let body = one_failure("1");
    let request = crate::support::client()
        .post(&serve.webhook)
        .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
        .body(body);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(app.count("select count(*) from inbox").await, 1);
    serve.child.kill().unwrap();
    holder.close().await.unwrap();
    app.settle().await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 1);
}

/// Waits until the processor waits for somebody's lock, and ends its session there.
async fn kill_waiting_processor(app: &TestApp, table: &str) {
    app.eventually(table, async || {
        app.count(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
              where datname = current_database() and application_name = 'lockwatch processor'
                and wait_event_type = 'Lock'",
        )
        .await
            > 0
    })
    .await;
}

#[tokio::test]
async fn a_processor_that_dies_at_any_statement_records_everything_once() {
    let app = TestApp::start().await;
    let mut processor_lock = PgConnection::connect(&app.database.url).await.unwrap();
    let tables = [
        "accounts",
        "incidents",
        "incident_changes",
        "failed_deliveries",
        "affected_numbers",
        "failures_by_minute",
        "failures_by_hour",
        "quarantine",
        "captures",
        "inbox",
    ];
    for (round, table) in tables.iter().enumerate() {
        let lock = "select 1 from pg_advisory_lock(131031000)";
        sqlx::query(lock)
            .execute(&mut processor_lock)
            .await
            .unwrap();
        let body = StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed(WABA, NUMBER, &format!("known.{round}"))
            .failed(&format!("new.{round}"), OTHER_NUMBER, "1")
            .status(WABA, NUMBER, json!({"errors": "131031", "round": round}))
            .into_body();
        app.acknowledged(&body).await;
        app.acknowledged(b"{\"entry\":[{\"id\":\"131031\",\"changes\":[]}]}")
            .await;
        let mut holder = hold(&app, &format!("lock table {table} in share mode")).await;
        let unlock = "select pg_advisory_unlock(131031000)";
        sqlx::query(unlock)
            .execute(&mut processor_lock)
            .await
            .unwrap();
        kill_waiting_processor(&app, table).await;
        sqlx::raw_sql("rollback")
            .execute(&mut holder)
            .await
            .unwrap();
        app.settle().await;
        let rounds = i64::try_from(round).unwrap() + 1;
        for (sql, expected) in [
            ("select count(*) from failed_deliveries", 2 * rounds),
            (
                "select sum(failure_count)::bigint from incidents",
                2 * rounds,
            ),
            (
                "select sum(failure_count)::bigint from affected_numbers",
                2 * rounds,
            ),
            (
                "select sum(failure_count)::bigint from failures_by_minute",
                2 * rounds,
            ),
            (
                "select sum(failure_count)::bigint from failures_by_hour",
                2 * rounds,
            ),
            ("select count(*) from incidents", 1 + rounds),
            (
                "select count(*) from incident_changes where kind = 'opened'",
                1 + rounds,
            ),
            ("select count(*) from quarantine", rounds),
            ("select count(*) from captures", rounds),
        ] {
            assert_eq!(app.count(sql).await, expected, "killed at {table}: {sql}");
        }
    }
}

#[tokio::test]
async fn many_callbacks_of_a_held_account_leave_room_for_others() {
    let app = TestApp::start().await;
    app.fail("before").await;
    let mut holder = hold(&app, HELD[0]).await;
    let held: Vec<Vec<u8>> = (0..1500)
        .map(|n| one_failure(&format!("held.{n}")))
        .collect();
    join_all(held.iter().map(|body| app.acknowledged(body))).await;
    let other = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed("1033", OTHER_NUMBER, "1");
    app.acknowledged(&other.into_body()).await;
    eventually_within(
        Duration::from_secs(2),
        "the other account's incident",
        async || {
            app.count("select count(*) from incidents where waba_id = '1033'")
                .await
                == 1
        },
    )
    .await;
    assert_eq!(app.count("select count(*) from inbox").await, 1500);
    sqlx::raw_sql("rollback")
        .execute(&mut holder)
        .await
        .unwrap();
    app.settle().await;
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        1502
    );
}

#[tokio::test]
async fn two_incidents_a_month_apart_survive_export_and_replay() {
    let app = TestApp::start().await;
    for (id, days) in [("1", 45), ("2", 40), ("3", 5), ("4", 1)] {
        app.fail_at(id, days_ago(days)).await;
        app.fail_at(id, days_ago(days)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let exported = folder.path().join("captures.jsonl");
    let export = run(&["captures", "export", "--database-url", &app.database.url]);
    std::fs::write(&exported, export.stdout).unwrap();
    let empty = TestDatabase::create().await;
    let path = exported.to_str().unwrap();
    let replayed = run(&[
        "replay",
        path,
        "--into-database",
        "--database-url",
        &empty.url,
    ]);
    assert!(replayed.status.success(), "{replayed:?}");
    let db = empty.database().pool();
    let spans = "select array_agg(failure_count || ' ' || (ended_at is null) order by opened_at)
                   from incidents";
    for pool in [&app.db, &db] {
        let spans: Vec<String> = sqlx::query_scalar(spans).fetch_one(pool).await.unwrap();
        assert_eq!(spans, ["2 false", "2 true"]);
    }
    let waiting: i64 = sqlx::query_scalar("select count(*) from inbox")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(waiting, 0, "it returns when everything is processed");
}
