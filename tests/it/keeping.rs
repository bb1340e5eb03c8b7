//! Which callbacks are kept, what is known about them, and when they leave.

use futures_util::future::join_all;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use reqwest::StatusCode;
use time::OffsetDateTime;

use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, WABA, client, eventually, one_failure,
    resume_processing, settle, start_service,
};

async fn post(serve: &Serve, secret: &str, body: &[u8]) -> StatusCode {
    let request = client()
        .post(&serve.webhook)
        .header(SIGNATURE_HEADER, sign(secret, body))
        .body(body.to_vec());
    request.send().await.unwrap().status()
}

/// A callback that cannot be read, in its own bytes.
fn unreadable(n: usize) -> Vec<u8> {
    format!("{{\"entry\":131031,\"n\":{n}}}").into_bytes()
}

#[tokio::test]
async fn a_callback_with_a_lockout_is_kept_as_it_came_each_time() {
    let database = TestDatabase::create().await;
    let secrets = format!("an-old-secret-of-the-tests,{APP_SECRET}");
    let serve = Serve::on_database(&database.url, &[("META_APP_SECRET", &secrets)]);
    serve.wait_for_log("the database is ready");
    let callback = StatusCallback::new()
        .failed(WABA, NUMBER, "1")
        .failed("1033", "2077", "2");
    let mut body = callback.into_body();
    body.extend(b" \t\r\n");
    for _ in 0..3 {
        assert_eq!(post(&serve, APP_SECRET, &body).await, StatusCode::OK);
    }
    let other = one_failure("3");
    let old_secret = "an-old-secret-of-the-tests";
    assert_eq!(post(&serve, old_secret, &other).await, StatusCode::OK);
    let db = database.database().pool();
    settle(&db).await;
    let kept: Vec<(Vec<u8>, String, i32)> =
        sqlx::query_as("select body, signature, app_secret from captures order by id")
            .fetch_all(&db)
            .await
            .unwrap();
    let expected = (body.clone(), sign(APP_SECRET, &body), 2);
    let from_old_secret = (other.clone(), sign(old_secret, &other), 1);
    assert_eq!(
        kept,
        [
            expected.clone(),
            expected.clone(),
            expected,
            from_old_secret
        ]
    );
    let linked = "select count(*) from failed_deliveries d
                    join (select min(id) as id from captures) first on first.id = d.capture_id
                    join captures c on c.id = first.id and c.received_at = d.received_at
                   where d.message_id in ('1', '2')";
    let linked: i64 = sqlx::query_scalar(linked).fetch_one(&db).await.unwrap();
    assert_eq!(linked, 2, "failures refer to the callback that came first");
}

/// The failures that refer to each capture, in the order in which the captures came.
async fn linked(app: &TestApp) -> Vec<String> {
    let sql = "select coalesce(string_agg(d.message_id, ' ' order by d.message_id), '-')
                 from captures c
                 left join failed_deliveries d on d.capture_id = c.id
                group by c.id
                order by c.id";
    sqlx::query_scalar(sql).fetch_all(&app.db).await.unwrap()
}

/// A callback in which messages of the usual number failed at one time, always the same bytes.
fn failures(message_ids: &[&str]) -> Vec<u8> {
    let at = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
    message_ids
        .iter()
        .fold(StatusCallback::new().timestamp(at), |callback, id| {
            callback.failed(WABA, NUMBER, id)
        })
        .into_body()
}

#[tokio::test]
async fn every_callback_is_a_row_and_a_failure_refers_to_the_first_that_reported_it() {
    let app = TestApp::start().await;
    let rounds: [&[&str]; 5] = [&["1"], &["2"], &["1", "2"], &["2", "3"], &["3", "4", "4"]];
    for _ in 0..3 {
        for ids in rounds {
            app.deliver(&failures(ids)).await;
        }
    }
    let mut expected = vec!["1", "2", "-", "3", "4"];
    expected.resize(15, "-");
    assert_eq!(linked(&app).await, expected);
}

#[tokio::test]
async fn what_comes_to_two_replicas_at_once_is_kept_each_time_and_recorded_once() {
    let app = TestApp::start().await;
    let other = start_service(app.database.database(), &app.simulator, &[APP_SECRET]).await;
    let bodies: Vec<Vec<u8>> = (0..8)
        .map(|n| failures(&[&format!("{n}"), &format!("{}", n + 1)]))
        .chain((0..8).map(unreadable))
        .collect();
    let urls = [
        app.url("/webhook"),
        format!("http://{}/webhook", other.address),
    ];
    let deliveries = (0..20).flat_map(|round| bodies.iter().zip(urls.iter().cycle().skip(round)));
    join_all(deliveries.map(async |(body, url)| {
        let request = app
            .client
            .post(url)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, body))
            .body(body.clone());
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    }))
    .await;
    app.settle().await;
    let times = "select count(*) from (select from captures group by body having count(*) = 20) b";
    assert_eq!(app.count(times).await, 16);
    assert_eq!(app.count("select count(*) from captures").await, 320);
    assert_eq!(app.count("select count(*) from quarantine").await, 8);
    assert_eq!(
        app.count(
            "select count(*) from quarantine q
               join captures c on c.id = q.capture_id and c.body = q.body"
        )
        .await,
        8
    );
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 9);
    assert_eq!(
        app.count(
            "select count(*) from failed_deliveries d
               join captures c on c.id = d.capture_id
                              and c.body like convert_to('%\"' || d.message_id || '\"%', 'UTF8')"
        )
        .await,
        9
    );
    other.stop().await;
}

#[tokio::test]
async fn a_body_that_came_before_captures_were_kept_is_kept_from_then_on() {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    let body = failures(&["1", "2"]);
    for (setting, times) in [("off", 2), ("lockouts", 3)] {
        let serve = Serve::on_database(&database.url, &[("LOCKWATCH_CAPTURE", setting)]);
        serve.wait_for_log("the database is ready");
        for _ in 0..times {
            assert_eq!(post(&serve, APP_SECRET, &body).await, StatusCode::OK);
        }
        settle(&db).await;
    }
    let kept: Vec<Vec<u8>> = sqlx::query_scalar("select body from captures")
        .fetch_all(&db)
        .await
        .unwrap();
    assert_eq!(kept, [&body[..]; 3]);
    let recorded: Vec<Option<i64>> = sqlx::query_scalar("select capture_id from failed_deliveries")
        .fetch_all(&db)
        .await
        .unwrap();
    assert_eq!(recorded, [None, None], "they came when nothing was kept");
}

#[tokio::test]
async fn what_is_kept_is_chosen_by_a_setting() {
    let sent = StatusCallback::new().sent(WABA, NUMBER, "1").into_body();
    let other_code = StatusCallback::new()
        .sent(WABA, NUMBER, "131031")
        .into_body();
    let failed = one_failure("2");
    let half = StatusCallback::new()
        .failed(WABA, NUMBER, "3")
        .status(WABA, NUMBER, serde_json::json!({"errors": "131031"}))
        .into_body();
    let unreadable = unreadable(0);
    let all = [&sent, &other_code, &failed, &half, &unreadable];
    for (setting, expected, failures_with_capture) in [
        ("off", &all[3..], 1),
        ("lockouts", &all[2..], 2),
        ("all", &all[..], 2),
    ] {
        let database = TestDatabase::create().await;
        let serve = Serve::on_database(&database.url, &[("LOCKWATCH_CAPTURE", setting)]);
        serve.wait_for_log("the database is ready");
        for body in all {
            assert_eq!(post(&serve, APP_SECRET, body).await, StatusCode::OK);
        }
        let db = database.database().pool();
        settle(&db).await;
        let bodies: Vec<Vec<u8>> = sqlx::query_scalar("select body from captures order by id")
            .fetch_all(&db)
            .await
            .unwrap();
        assert_eq!(bodies.iter().collect::<Vec<_>>(), expected, "{setting}");
        let counts: (i64, i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from failed_deliveries),
                    (select count(capture_id) from failed_deliveries),
                    (select count(*) from failed_deliveries join captures c on c.id = capture_id),
                    (select count(*) from quarantine join captures c on c.id = capture_id)",
        )
        .fetch_one(&db)
        .await
        .unwrap();
        let linked = failures_with_capture;
        assert_eq!(counts, (2, linked, linked, 2), "{setting}");
    }
}

#[tokio::test]
async fn where_all_is_kept_nothing_is_acknowledged_without_the_database() {
    let sent = StatusCallback::new().sent(WABA, NUMBER, "1").into_body();
    for (setting, expected) in [
        ("all", StatusCode::SERVICE_UNAVAILABLE),
        ("lockouts", StatusCode::OK),
    ] {
        let nowhere = Serve::on_database(
            "postgresql://nobody@127.0.0.1:1/x",
            &[("LOCKWATCH_CAPTURE", setting)],
        );
        assert_eq!(
            post(&nowhere, APP_SECRET, &sent).await,
            expected,
            "{setting}"
        );
    }
}

#[tokio::test]
async fn a_callback_that_is_refused_for_a_while_stays_whole_and_is_recorded_once() {
    let app = TestApp::start().await;
    app.execute(
        "alter table failed_deliveries
           add constraint no_poison check (message_id <> 'wamid.poison')",
    )
    .await;
    let mut callback = StatusCallback::new();
    for n in 0..8 {
        let id = if n == 5 {
            "wamid.poison".to_owned()
        } else {
            n.to_string()
        };
        callback = callback.failed(WABA, NUMBER, &id);
    }
    let body = callback.into_body();
    for _ in 0..3 {
        app.acknowledged(&body).await;
    }
    app.eventually("all three have a problem", async || {
        app.count("select count(problem) from inbox").await == 3
    })
    .await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 0);
    let kept: Vec<Vec<u8>> = sqlx::query_scalar("select body from captures")
        .fetch_all(&app.db)
        .await
        .unwrap();
    assert_eq!(kept, [&body[..]; 3]);
    let mut processor = app.stop_processing().await;
    app.execute("alter table failed_deliveries drop constraint no_poison")
        .await;
    app.execute("update inbox set retry_at = null").await;
    resume_processing(&mut processor).await;
    app.settle().await;
    assert_eq!(linked(&app).await, ["0 1 2 3 4 6 7 wamid.poison", "-", "-"]);
    assert_eq!(app.incident().await.failure_count, 8);
    assert_eq!(app.count("select count(*) from quarantine").await, 0);
}

async fn rows_of(app: &TestApp, table: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
    sqlx::query_scalar(sql).fetch_one(&app.db).await.unwrap()
}

#[tokio::test]
async fn what_is_older_than_its_time_leaves_and_incidents_stay() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for number in [NUMBER, "2077"] {
        simulator.set_scenarios(number, [Scenario::Payment]);
    }
    let app = TestApp::start_on(TestDatabase::create().await, simulator).await;
    for batch in 0..3 {
        let mut callback = StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed("1033", "2077", &format!("resolved.{batch}"));
        for n in 0..900 {
            callback = callback.failed(WABA, NUMBER, &format!("{batch}.{n}"));
        }
        app.deliver(&callback.into_body()).await;
    }
    for n in 0..150 {
        app.deliver(&unreadable(n)).await;
    }
    app.eventually("two causes", async || {
        app.count("select count(*) from incidents where cause = 'payment'")
            .await
            == 2
    })
    .await;
    app.execute(
        "update incidents set ended_at = now(), resolved_at = now(), resolution = 'manual'
          where waba_id = '1033'",
    )
    .await;
    // No further look-up: its answer would be newer evidence.
    app.execute("update affected_numbers set check_due_at = null")
        .await;
    // The incident goes on: a failure in the middle, and one at the end.
    app.let_time_pass(time::Duration::days(5)).await;
    app.fail("middle").await;
    app.let_time_pass(time::Duration::days(4)).await;
    app.fail("fresh").await;
    app.deliver(b"{\"entry\":131031}").await;
    let incidents = "select string_agg(waba_id || ' ' || failure_count || ' ' || cause, ', ' order by waba_id) from incidents";
    let before = app.text(incidents).await;
    let counts = async || {
        (
            rows_of(&app, "failed_deliveries").await,
            rows_of(&app, "captures").await,
            rows_of(&app, "quarantine").await,
        )
    };
    assert_eq!(counts().await, (2705, 156, 151));

    let eight = Serve::on_database(&app.database.url, &[("LOCKWATCH_RETENTION_DAYS", "8")]);
    eight.wait_for_log("rows older than 8 days deleted");
    eventually("only the newer ones are left", async || {
        counts().await == (2, 3, 1)
    })
    .await;
    assert_eq!(app.text(incidents).await, before);
    // The open incident's evidence is what its cause rests on.
    let old_checks = "select string_agg(waba_id, ',') from health_checks where checked_at < now() - interval '8 days'";
    assert_eq!(app.text(old_checks).await.as_deref(), Some(WABA));
    let dangling = "select count(*) from failed_deliveries d where not exists (select from captures c where c.id = d.capture_id)";
    assert_eq!(app.count(dangling).await, 0);
}

#[tokio::test]
async fn a_capture_stays_beyond_its_time_while_inbox_or_quarantine_need_it() {
    let app = TestApp::start().await;
    app.execute(
        "alter table failed_deliveries
           add constraint no_poison check (message_id <> 'wamid.poison')",
    )
    .await;
    app.deliver(&one_failure("wamid.recorded")).await;
    app.deliver(&unreadable(1)).await;
    app.deliver(&unreadable(2)).await;
    let poison = one_failure("wamid.poison");
    app.acknowledged(&poison).await;
    app.eventually("it has a problem", async || {
        app.count("select count(problem) from inbox").await == 1
    })
    .await;
    app.let_time_pass(time::Duration::days(9)).await;
    app.execute("update quarantine set received_at = now() where body like '%\"n\":2}'")
        .await;
    let eight = Serve::on_database(&app.database.url, &[("LOCKWATCH_RETENTION_DAYS", "8")]);
    eight.wait_for_log("rows older than 8 days deleted");
    let left: Vec<Vec<u8>> = sqlx::query_scalar("select body from captures order by id")
        .fetch_all(&app.db)
        .await
        .unwrap();
    assert_eq!(left, [unreadable(2), poison.clone()]);
    assert_eq!(rows_of(&app, "quarantine").await, 1);

    app.execute("alter table failed_deliveries drop constraint no_poison")
        .await;
    app.execute("update inbox set retry_at = null").await;
    app.settle().await;
    let recorded: Vec<u8> = sqlx::query_scalar(
        "select c.body from failed_deliveries d join captures c on c.id = d.capture_id",
    )
    .fetch_one(&app.db)
    .await
    .unwrap();
    assert_eq!(recorded, poison);
}
