//! Failed deliveries are recorded exactly once, for any batch, order and repetition.

use futures_util::future::join_all;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use reqwest::StatusCode;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, OTHER_NUMBER, TestApp, WABA, client, eventually, one_failure,
};

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc().replace_nanosecond(0).unwrap()
}

#[tokio::test]
async fn a_failure_is_stored_with_every_field_from_meta() {
    let app = TestApp::start().await;
    let status = json!({
        "id": "wamid.1",
        "status": "failed",
        "timestamp": "1763399138",
        "recipient_id": "16505551234",
        "recipient_participant_id": "16505550000",
        "biz_opaque_callback_data": "campaign-42",
        "errors": [{
            "code": "131031",
            "title": "Business Account locked",
            "message": "locked",
            "error_data": {"details": "Business account has been locked."},
        }],
    });
    app.deliver(
        &StatusCallback::new()
            .status(WABA, NUMBER, status)
            .into_body(),
    )
    .await;
    let row: String = app
        .text("select to_json(d)::text from failed_deliveries d")
        .await
        .unwrap();
    let row: Value = serde_json::from_str(&row).unwrap();
    for (column, value) in [
        ("waba_id", json!(WABA)),
        ("phone_number_id", json!(NUMBER)),
        ("message_id", json!("wamid.1")),
        ("recipient_id", json!("16505551234")),
        ("participant_id", json!("16505550000")),
        ("error_code", json!(131_031)),
        ("error_title", json!("Business Account locked")),
        ("error_message", json!("locked")),
        ("error_details", json!("Business account has been locked.")),
        ("callback_data", json!("campaign-42")),
    ] {
        assert_eq!(row[column], value, "{column}");
    }
    let with_times = "
        select count(*) from failed_deliveries
         where failed_at = to_timestamp(1763399138)
           and received_at > now() - interval '1 minute'";
    assert_eq!(app.count(with_times).await, 1);
    assert_eq!(
        app.text("select display_phone_number from affected_numbers")
            .await
            .as_deref(),
        Some("15550783881")
    );
}

#[tokio::test]
async fn a_repeated_callback_changes_nothing() {
    let app = TestApp::start().await;
    let body = StatusCallback::new()
        .timestamp(now())
        .failed(WABA, NUMBER, "a")
        .failed(WABA, NUMBER, "b")
        .into_body();
    for _ in 0..3 {
        app.deliver(&body).await;
    }
    let other_batch = StatusCallback::new()
        .timestamp(now())
        .failed(WABA, NUMBER, "b")
        .failed(WABA, OTHER_NUMBER, "b")
        .into_body();
    app.deliver(&other_batch).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 3);
    assert_eq!(app.incident().await.failure_count, 3);
    assert_eq!(
        app.count(
            "select failure_count from affected_numbers where phone_number_id = '106540352242922'"
        )
        .await,
        2
    );
}

/// Counts the minutes and hours of incidents whose count differs from their deliveries.
const MISCOUNTED: &str = "
    select (select count(*)
              from (select incident_id, date_bin('1 minute', failed_at, 'epoch') as minute,
                           count(*) as n
                      from failed_deliveries group by 1, 2) d
              full join failures_by_minute m using (incident_id, minute)
             where m.failure_count is distinct from d.n)
         + (select count(*)
              from (select incident_id, date_bin('1 hour', failed_at, 'epoch') as hour,
                           count(*) as n
                      from failed_deliveries group by 1, 2) d
              full join failures_by_hour h using (incident_id, hour)
             where h.failure_count is distinct from d.n)";

/// The body of a callback with failures, each with an id and its age in seconds.
fn failures_by_age(failures: &[(&str, i64)]) -> Vec<u8> {
    let mut callback = StatusCallback::new();
    for (id, seconds) in failures {
        let at = now() - time::Duration::seconds(*seconds);
        callback = callback.timestamp(at).failed(WABA, NUMBER, id);
    }
    callback.into_body()
}

#[tokio::test]
async fn late_and_repeated_failures_are_counted_in_their_minute() {
    let app = TestApp::start().await;
    for body in [
        failures_by_age(&[("a", 9200), ("b", 9200), ("c", 100)]),
        failures_by_age(&[("d", 30)]),
    ] {
        app.deliver(&body).await;
        app.deliver(&body).await;
    }
    app.execute("update incidents set resolved_at = now(), resolution = 'manual'")
        .await;
    app.deliver(&failures_by_age(&[("late", 150), ("a", 9200)]))
        .await;
    assert_eq!(
        app.count("select sum(failure_count)::bigint from failures_by_minute")
            .await,
        5
    );
    assert_eq!(app.count(MISCOUNTED).await, 0);
}

#[tokio::test]
async fn an_incident_resolved_meanwhile_gets_no_more_failures() {
    let app = TestApp::start().await;
    app.fail("first").await;
    app.wait_for_cause("unreported").await;
    // A resolution locks the account first, then the incident.
    let mut resolution = app.db.begin().await.unwrap();
    sqlx::query("select from accounts for update")
        .execute(&mut *resolution)
        .await
        .unwrap();
    let resolve = async {
        app.eventually("the batch waits for the account", async || {
            app.waiting_recorders().await == 1
        })
        .await;
        let sql = "update incidents set resolved_at = now(), resolution = 'manual'";
        sqlx::query(sql).execute(&mut *resolution).await.unwrap();
        resolution.commit().await.unwrap();
    };
    let later = OffsetDateTime::now_utc() + time::Duration::seconds(5);
    tokio::join!(app.fail_at("second", later), resolve);
    let incidents = app.incidents().await;
    let counts: Vec<_> = incidents
        .iter()
        .map(|incident| (incident.failure_count, incident.resolved_at.is_some()))
        .collect();
    assert_eq!(counts, [(1, true), (1, false)]);
    assert_eq!(incidents[1].previous_incident_id, Some(incidents[0].id));
}

#[tokio::test]
async fn a_late_failure_joins_the_incident_of_its_time() {
    let app = TestApp::start().await;
    app.fail("first").await;
    app.execute("update incidents set resolved_at = now(), resolution = 'manual'")
        .await;
    for (n, seconds) in [5, -60, 6, -61].into_iter().enumerate() {
        app.fail_at(
            &format!("then {n}"),
            OffsetDateTime::now_utc() + time::Duration::seconds(seconds),
        )
        .await;
    }
    let counts: Vec<_> = app
        .incidents()
        .await
        .iter()
        .map(|incident| incident.failure_count)
        .collect();
    assert_eq!(counts, [3, 2]);
}

#[tokio::test]
async fn a_batch_that_fails_at_its_commit_is_not_acknowledged() {
    let app = TestApp::start().await;
    for is_account_known in [false, true] {
        let fails_late = "
            create function fail_late() returns trigger language plpgsql as
                'begin raise exception using errcode = ''40001''; end';
            create constraint trigger fail_late after insert on failed_deliveries
                deferrable initially deferred for each row execute function fail_late()";
        sqlx::raw_sql(fails_late).execute(&app.db).await.unwrap();
        assert_eq!(
            app.post(&one_failure("wamid.1")).await.status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "account known: {is_account_known}"
        );
        assert_eq!(
            app.count("select count(*) from failed_deliveries where message_id = 'wamid.1'")
                .await,
            0
        );
        sqlx::raw_sql("drop function fail_late cascade")
            .execute(&app.db)
            .await
            .unwrap();
        app.fail("the account is known from here on").await;
    }
}

#[tokio::test]
async fn a_batch_is_divided_by_account_and_number() {
    let app = TestApp::start().await;
    let body = StatusCallback::new()
        .timestamp(now())
        .failed(WABA, NUMBER, "1")
        .sent(WABA, NUMBER, "2")
        .failed(WABA, OTHER_NUMBER, "3")
        .failed("1033", "2077", "4")
        .failed("0", "3088", "5")
        .into_body();
    app.deliver(&body).await;
    let accounts: Vec<_> = app
        .incidents()
        .await
        .into_iter()
        .map(|incident| (incident.waba_id.to_string(), incident.failure_count))
        .collect();
    let expected =
        [(WABA, 2), ("1033", 1), ("phone:3088", 1)].map(|(waba, n)| (waba.to_owned(), n));
    assert_eq!(accounts.len(), 3);
    assert!(
        expected.iter().all(|account| accounts.contains(account)),
        "{accounts:?}"
    );
    assert_eq!(app.count("select count(*) from affected_numbers").await, 4);
}

#[tokio::test]
async fn a_hostile_status_harms_no_other_and_causes_no_503() {
    let app = TestApp::start().await;
    let failed = |id: Value| {
        json!({
            "id": id,
            "status": "failed",
            "recipient_id": "1\u{0}",
            "biz_opaque_callback_data": "\u{0}x",
            "errors": [{"code": 131_031, "title": "a\u{0}b", "message": "m".repeat(10_000)}],
        })
    };
    let statuses = [
        failed(json!("nul\u{0}")),
        failed(json!("x".repeat(9000))),
        failed(json!(format!("{}y", "x".repeat(9000)))),
        failed(json!("HERE")),
        json!({"errors": "131031"}),
        failed(json!("last")),
    ];
    let mut callback = StatusCallback::new().timestamp(now());
    for status in statuses {
        callback = callback.status(WABA, NUMBER, status);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = String::from_utf8(callback.into_body()).unwrap();
    let text = text.replace(
        "\"HERE\"",
        &format!("\"\\ud800 lone\",\"deep\":{deep},\"huge\":1e999999,\"raw\":\"\u{1}\""),
    );
    let mut body = text.into_bytes();
    let last = body
        .windows(4)
        .position(|window| window == b"last")
        .unwrap();
    body[last] = 0xff;
    app.deliver(&body).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 5);
    assert_eq!(app.count("select count(*) from quarantine").await, 1);
    assert_eq!(app.incident().await.failure_count, 5);
    app.deliver(&body).await;
    assert_eq!(
        app.count("select count(*) from quarantine").await,
        1,
        "the same bytes are quarantined once"
    );
}

#[tokio::test]
async fn an_unreadable_body_is_quarantined_byte_for_byte() {
    let app = TestApp::start().await;
    let body = b"{\"entry\": 131031, \xff}\n";
    app.deliver(body).await;
    let (quarantined, reason, account): (Vec<u8>, String, String) =
        sqlx::query_as("select body, reason, waba_id from quarantine")
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert_eq!(quarantined, body);
    assert_eq!(
        (reason.as_str(), account.as_str()),
        ("the body is not a JSON object", "unknown")
    );

    app.deliver(b"{\"entry\":[{\"changes\":[131031]}]}").await;
    app.deliver(b"{\"entry\":[{\"id\":\"77\",\"changes\":[131031]}]}")
        .await;
    assert_eq!(
        app.count("select count(*) from quarantine where waba_id = '77' and body = '131031'")
            .await,
        1
    );
    assert_eq!(app.count("select count(*) from quarantine").await, 3);
}

#[tokio::test]
async fn a_row_that_the_database_refuses_harms_no_other() {
    let app = TestApp::start().await;
    app.execute("alter table failed_deliveries add check (message_id <> 'wamid.poison')")
        .await;
    let mut callback = StatusCallback::new().timestamp(now());
    for n in 0..20 {
        callback = callback.failed(WABA, NUMBER, &format!("wamid.{n}"));
        if n == 13 {
            callback = callback.failed(WABA, NUMBER, "wamid.poison");
        }
    }
    let body = callback.into_body();
    let neighbour = one_failure("wamid.beside");
    let (first, second) = tokio::join!(app.post(&body), app.post(&neighbour));
    assert_eq!(
        (first.status(), second.status()),
        (StatusCode::OK, StatusCode::OK)
    );
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        21
    );
    assert_eq!(app.incident().await.failure_count, 21);
    let quarantined: Vec<u8> = sqlx::query_scalar("select body from quarantine")
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(quarantined, body);
}

#[tokio::test]
async fn many_bad_statuses_are_quarantined_as_one_body() {
    let app = TestApp::start().await;
    app.execute("alter table failed_deliveries add check (message_id not like 'poison%')")
        .await;
    let mut callback = StatusCallback::new()
        .timestamp(now())
        .failed(WABA, NUMBER, "good");
    for n in 0..100 {
        callback = callback.failed(WABA, NUMBER, &format!("poison.{n}"));
    }
    app.deliver(&callback.into_body()).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 1);
    assert_eq!(app.count("select count(*) from quarantine").await, 1);

    let mut callback = StatusCallback::new()
        .timestamp(now())
        .failed(WABA, NUMBER, "HERE");
    for _ in 0..1000 {
        callback = callback.status(
            WABA,
            NUMBER,
            json!({"errors": "131031", "padding": "x".repeat(2000)}),
        );
    }
    let mut body = callback.into_body();
    let marker = body
        .windows(4)
        .position(|window| window == b"HERE")
        .unwrap();
    body[marker] = 0xff;
    app.deliver(&body).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 2);
    assert_eq!(app.count("select count(*) from quarantine").await, 2);
}

/// Returns a callback of 3 MB, the most that Meta sends, with 1,000 failures.
fn largest_callback() -> Vec<u8> {
    let mut callback = StatusCallback::new().timestamp(now());
    for n in 0..1000 {
        let delivered = json!({"id": "x".repeat(1750), "status": "delivered"});
        callback = callback
            .failed(WABA, NUMBER, &format!("wamid.{n:0>900}"))
            .status(WABA, NUMBER, delivered);
    }
    let body = callback.into_body();
    let length = body.len();
    assert!((2_900_000..3_200_000).contains(&length), "{length} bytes");
    body
}

#[tokio::test]
async fn the_largest_callback_is_recorded_within_64_mib() {
    let database = TestDatabase::create().await;
    let serve = Serve::on_database(&database.url, &[]);
    let body = largest_callback();
    let post = async |body: Vec<u8>| {
        let request = client()
            .post(&serve.webhook)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body);
        request.send().await.unwrap().status()
    };
    eventually("a first callback is recorded", async || {
        post(one_failure("wamid.first")).await == StatusCode::OK
    })
    .await;
    let before = peak_memory_kib(serve.child.id());
    assert_eq!(post(body).await, StatusCode::OK);
    let growth = peak_memory_kib(serve.child.id()) - before;
    assert!(growth < 64 * 1024, "memory grew by {growth} KiB");
    let db = database.database().pool();
    let rows: i64 = sqlx::query_scalar("select failure_count from incidents")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(rows, 1001);
}

/// The peak memory of a process so far, in KiB.
fn peak_memory_kib(pid: u32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The account and number of the n-th callback: five accounts, with two numbers each.
fn sender_of(callback: usize) -> (String, String) {
    let (account, number) = (callback % 5, callback / 5 % 2);
    (
        format!("10229012934039{account}"),
        format!("10654035224{account}{number}"),
    )
}

/// Posts 200 distinct callbacks five times each, all at once, to the two processes in turn.
async fn post_to_both(processes: &[Serve; 2]) {
    let client = client();
    let posts = (0..1000).map(|n| {
        let callback = n % 200;
        let (account, number) = sender_of(callback);
        let body = StatusCallback::new()
            .timestamp(now())
            .failed(&account, &number, &format!("wamid.{callback}.a"))
            .failed(&account, &number, &format!("wamid.{callback}.b"))
            .into_body();
        let request = client
            .post(&processes[n / 200 % 2].webhook)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body);
        async move { request.send().await.unwrap().status() }
    });
    let answers = join_all(posts).await;
    assert!(
        answers.iter().all(|status| *status == StatusCode::OK),
        "{answers:?}"
    );
}

#[tokio::test]
async fn two_processes_on_one_database_record_each_failure_once() {
    let database = TestDatabase::create().await;
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for callback in 0..10 {
        let (_, number) = sender_of(callback);
        let delay = std::time::Duration::from_millis(300);
        let slow = Scenario::Delayed(delay, Box::new(Scenario::Payment));
        simulator.set_scenarios(&number, [slow]);
    }
    let url = simulator.url();
    let settings = [
        ("META_GRAPH_URL", url.as_str()),
        ("META_ACCESS_TOKEN", ACCESS_TOKEN),
    ];
    let processes = [
        Serve::on_database(&database.url, &settings),
        Serve::on_database(&database.url, &settings),
    ];
    for process in &processes {
        process.wait_for_log("the database is ready");
    }
    post_to_both(&processes).await;

    let db = database.database().pool();
    let count = async |sql: &'static str| {
        sqlx::query_scalar::<_, i64>(sql)
            .fetch_one(&db)
            .await
            .unwrap()
    };
    assert_eq!(count("select count(*) from failed_deliveries").await, 400);
    assert_eq!(count("select count(*) from incidents").await, 5);
    assert_eq!(
        count("select count(*) from incidents where failure_count = 80").await,
        5
    );
    assert_eq!(count(MISCOUNTED).await, 0);
    assert_eq!(
        count("select count(*) from affected_numbers where failure_count = 40").await,
        10
    );
    eventually("five incidents have a cause", async || {
        count("select count(*) from incidents where cause = 'payment'").await == 5
    })
    .await;
    assert_eq!(
        simulator.most_in_flight_per_node(),
        1,
        "one look-up in flight per number"
    );
    eventually("ten look-ups are recorded", async || {
        count("select count(*) from health_checks").await == 10
    })
    .await;
    assert_eq!(
        simulator.requests().len(),
        10,
        "one look-up per number in all"
    );
}
