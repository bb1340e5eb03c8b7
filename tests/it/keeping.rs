//! Which callbacks are kept, what is known about them, and when they leave.

use bytes::Bytes;
use futures_util::future::join_all;
use lockwatch::meta::callback::CallbackContents;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::bodies::{self, Bodies, NewCapture};
use lockwatch::store::record::{self, Item, RecorderConnection};
use reqwest::StatusCode;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, WABA, client, eventually, one_failure, start_service,
};

async fn post(serve: &Serve, secret: &str, body: &[u8]) -> StatusCode {
    let request = client()
        .post(&serve.webhook)
        .header(SIGNATURE_HEADER, sign(secret, body))
        .body(body.to_vec());
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn a_callback_with_a_lockout_is_kept_once_with_all_that_is_known() {
    let database = TestDatabase::create().await;
    let secrets = format!("an-old-secret-of-the-tests,{APP_SECRET}");
    let serve = Serve::on_database(&database.url, &[("META_APP_SECRET", &secrets)]);
    serve.wait_for_log("the database is ready");
    let body = StatusCallback::new()
        .failed(WABA, NUMBER, "1")
        .failed("1033", "2077", "2")
        .into_body();
    for _ in 0..3 {
        assert_eq!(post(&serve, APP_SECRET, &body).await, StatusCode::OK);
    }
    let db = database.database().pool();
    let (kept, digest, signature, secret, times, failures, account): (Vec<u8>, Vec<u8>, String, i32, i64, i32, String) =
        sqlx::query_as(
            "select body, digest, signature, app_secret, times_received, failure_count, waba_id from captures",
        )
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(kept, body);
    assert_eq!(digest, Sha256::digest(&body).as_slice());
    assert_eq!(
        (signature, secret, times, failures),
        (sign(APP_SECRET, &body), 2, 3, 2)
    );
    assert_eq!(account, WABA, "the first of its accounts");
    let linked = "select count(*) from failed_deliveries d join captures c on c.id = d.capture_id
                   where c.last_received_at > c.received_at and c.received_at = d.received_at";
    assert_eq!(
        sqlx::query_scalar::<_, i64>(linked)
            .fetch_one(&db)
            .await
            .unwrap(),
        2
    );
}

/// How often each body came and which failures came in it first, by the order of the bodies' arrival.
async fn kept(app: &TestApp) -> Vec<String> {
    let sql = "select format('%s times: %s', c.times_received, coalesce(string_agg(d.message_id, ' ' order by d.message_id), '-'))
                 from captures c
                 left join failed_deliveries d on d.capture_id = c.id
                group by c.id, c.waba_id
                order by c.received_at, c.id";
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
async fn a_body_is_one_row_whatever_is_new_in_it() {
    let app = TestApp::start().await;
    let rounds: [&[&str]; 5] = [&["1"], &["2"], &["1", "2"], &["2", "3"], &["3", "4", "4"]];
    for _ in 0..3 {
        for ids in rounds {
            app.deliver(&failures(ids)).await;
        }
    }
    assert_eq!(
        kept(&app).await,
        [
            "3 times: 1",
            "3 times: 2",
            "3 times: -",
            "3 times: 3",
            "3 times: 4"
        ]
    );
}

#[tokio::test]
async fn a_body_that_comes_to_two_replicas_at_once_is_one_row() {
    let app = TestApp::start().await;
    let other = start_service(app.database.database(), &app.simulator, &[APP_SECRET]).await;
    let bodies: Vec<Vec<u8>> = (0..8)
        .map(|n| failures(&[&format!("{n}"), &format!("{}", n + 1)]))
        .chain((0..8).map(|n| format!("{{\"entry\":131031,\"n\":{n}}}").into_bytes()))
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
    assert_eq!(app.count("select count(*) from captures").await, 16);
    assert_eq!(
        app.count("select count(*) from captures where times_received = 20")
            .await,
        16
    );
    assert_eq!(
        app.count("select count(*) from quarantine q join captures c on c.id = q.capture_id")
            .await,
        8
    );
    assert_eq!(
        app.count(
            "select count(*) from failed_deliveries d join captures c on c.id = d.capture_id"
        )
        .await,
        9
    );
    other.stop().await;
}

#[tokio::test]
async fn a_body_that_came_before_captures_were_kept_is_kept_from_then_on() {
    let database = TestDatabase::create().await;
    let body = failures(&["1", "2"]);
    for (setting, times) in [("off", 2), ("lockouts", 3)] {
        let serve = Serve::on_database(&database.url, &[("LOCKWATCH_CAPTURE", setting)]);
        serve.wait_for_log("the database is ready");
        for _ in 0..times {
            assert_eq!(post(&serve, APP_SECRET, &body).await, StatusCode::OK);
        }
    }
    let times: Vec<i64> = sqlx::query_scalar("select times_received from captures")
        .fetch_all(&database.database().pool())
        .await
        .unwrap();
    assert_eq!(times, [3]);
}

#[tokio::test]
async fn thousands_that_come_again_at_once_are_counted_in_time() {
    let app = TestApp::start().await;
    let now = OffsetDateTime::now_utc();
    let callbacks: Vec<(NewCapture, CallbackContents)> = (0..5000)
        .map(|n| {
            let body = Bytes::from(failures(&[&n.to_string()]));
            let findings = CallbackContents::parse(&body, now);
            let capture = NewCapture {
                waba_id: findings.waba_id.clone(),
                digest: Sha256::digest(&body).into(),
                body,
                received_at: now,
                signature: None,
                app_secret: None,
                failure_count: 1,
            };
            (capture, findings)
        })
        .collect();
    let items: Vec<Item<'_>> = callbacks
        .iter()
        .enumerate()
        .map(|(callback, (_, findings))| Item {
            failure: &findings.failures[0],
            callback,
        })
        .collect();
    let mut connection = RecorderConnection::open(&app.database.database())
        .await
        .unwrap();
    for _ in 0..2 {
        let mut bodies = Bodies::default();
        callbacks
            .iter()
            .for_each(|(capture, _)| bodies.add(Some(capture)));
        record::failures(&mut connection, &items, &mut bodies)
            .await
            .unwrap();
        bodies::keep(&mut connection, &items, &[], &mut bodies)
            .await
            .unwrap();
        // What is known of the tables decides how they are joined.
        app.execute("analyze").await;
    }
    assert_eq!(
        app.count("select count(*) from captures where times_received = 2")
            .await,
        5000
    );
}

#[tokio::test]
async fn a_body_that_leaves_while_it_is_counted_is_kept_anew() {
    let app = TestApp::start().await;
    let body = failures(&["1"]);
    app.deliver(&body).await;
    let mut retention = app.db.begin().await.unwrap();
    sqlx::query("delete from captures")
        .execute(&mut *retention)
        .await
        .unwrap();
    let leave = async {
        app.eventually("the count waits", async || {
            app.waiting_recorders().await == 1
        })
        .await;
        retention.commit().await.unwrap();
    };
    tokio::join!(app.deliver(&body), leave);
    assert_eq!(kept(&app).await, ["1 times: -"]);
}

#[tokio::test]
async fn captures_of_an_older_version_are_found_again() {
    let app = TestApp::start().await;
    let bodies = [
        failures(&["1"]),
        failures(&["1", "2"]),
        failures(&["2", "1"]),
        b"{\"entry\":131031}".to_vec(),
    ];
    let deliver_all = async || {
        for body in &bodies {
            app.deliver(body).await;
        }
    };
    deliver_all().await;
    for back in [
        "drop index captures_told_before",
        "alter table captures drop constraint captures_pkey, add primary key (digest, waba_id), drop column told_first",
        "delete from _sqlx_migrations where version >= 5",
    ] {
        app.execute(back).await;
    }
    app.database.database().migrate().await.unwrap();
    deliver_all().await;
    assert_eq!(
        kept(&app).await,
        ["2 times: 1", "2 times: 2", "2 times: -", "2 times: -"]
    );
}

#[tokio::test]
async fn what_is_kept_is_chosen_by_a_setting() {
    let sent = StatusCallback::new().sent(WABA, NUMBER, "1").into_body();
    let test_number = StatusCallback::new().sent("0", NUMBER, "1").into_body();
    let failed = one_failure("2");
    let unreadable = b"{\"entry\":131031}".to_vec();
    for (setting, kept) in [
        ("off", vec![]),
        ("lockouts", vec![&failed, &unreadable]),
        ("all", vec![&sent, &test_number, &failed, &unreadable]),
    ] {
        let database = TestDatabase::create().await;
        let serve = Serve::on_database(&database.url, &[("LOCKWATCH_CAPTURE", setting)]);
        serve.wait_for_log("the database is ready");
        for body in [&sent, &test_number, &failed, &unreadable] {
            assert_eq!(post(&serve, APP_SECRET, body).await, StatusCode::OK);
        }
        let db = database.database().pool();
        let bodies: Vec<Vec<u8>> = sqlx::query_scalar("select body from captures order by id")
            .fetch_all(&db)
            .await
            .unwrap();
        assert_eq!(bodies.iter().collect::<Vec<_>>(), kept, "{setting}");
        let accounts: Vec<String> = sqlx::query_scalar("select waba_id from captures order by id")
            .fetch_all(&db)
            .await
            .unwrap();
        let all = [
            WABA.to_owned(),
            format!("phone:{NUMBER}"),
            WABA.to_owned(),
            "unknown".to_owned(),
        ];
        assert_eq!(accounts, all[all.len() - kept.len()..], "{setting}");
        let linked = "select count(*) from (select capture_id from failed_deliveries union all select capture_id from quarantine) rows
                       where capture_id is not null";
        let linked: i64 = sqlx::query_scalar(linked).fetch_one(&db).await.unwrap();
        assert_eq!(linked, if setting == "off" { 0 } else { 2 }, "{setting}");
    }
}

#[tokio::test]
async fn where_all_is_kept_nothing_is_acknowledged_without_the_database() {
    let nowhere = Serve::on_database(
        "postgresql://nobody@127.0.0.1:1/x",
        &[("LOCKWATCH_CAPTURE", "all")],
    );
    let sent = StatusCallback::new().sent(WABA, NUMBER, "1").into_body();
    assert_eq!(
        post(&nowhere, APP_SECRET, &sent).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn a_refused_value_does_not_count_a_callback_twice() {
    let app = TestApp::start().await;
    app.execute("alter table failed_deliveries add check (message_id <> 'wamid.poison')")
        .await;
    let mut callback = StatusCallback::new();
    for n in 0..8 {
        callback = callback.failed(
            WABA,
            NUMBER,
            if n == 5 {
                "wamid.poison".to_owned()
            } else {
                n.to_string()
            }
            .as_str(),
        );
    }
    let body = callback.into_body();
    for times in 1..=3 {
        app.deliver(&body).await;
        assert_eq!(
            app.count("select times_received from captures").await,
            times
        );
    }
    // As if the process had been killed before it came to the last of them.
    app.execute("delete from failed_deliveries where message_id = '7'")
        .await;
    app.deliver(&body).await;
    assert_eq!(app.count("select count(*) from captures").await, 1);
    assert_eq!(
        app.count(
            "select count(*) from failed_deliveries d join captures c on c.id = d.capture_id"
        )
        .await,
        7
    );
    assert_eq!(
        app.count("select count(*) from quarantine q join captures c on c.id = q.capture_id")
            .await,
        1
    );
}

#[tokio::test]
async fn what_is_older_than_its_time_leaves_and_incidents_stay() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for number in [NUMBER, "2077"] {
        simulator.set_scenarios(number, [Scenario::Payment]);
    }
    let app = TestApp::start_on(TestDatabase::create().await, simulator).await;
    for batch in 0..3 {
        let mut callback =
            StatusCallback::new().failed("1033", "2077", &format!("resolved.{batch}"));
        for n in 0..900 {
            callback = callback.failed(WABA, NUMBER, &format!("{batch}.{n}"));
        }
        app.deliver(&callback.into_body()).await;
    }
    for n in 0..150 {
        app.deliver(format!("{{\"entry\":131031,\"n\":{n}}}").as_bytes())
            .await;
    }
    app.eventually("two causes", async || {
        app.count("select count(*) from incidents where cause = 'payment'")
            .await
            == 2
    })
    .await;
    app.execute(
        "update incidents set resolved_at = now(), resolution = 'manual' where waba_id = '1033'",
    )
    .await;
    app.let_time_pass(time::Duration::days(9)).await;
    app.fail("fresh").await;
    app.deliver(b"{\"entry\":131031}").await;
    let incidents = "select string_agg(waba_id || ' ' || failure_count || ' ' || cause, ', ' order by waba_id) from incidents";
    let before = app.text(incidents).await;
    let count = async |table: &str| {
        let sql = format!("select count(*) from {table}");
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql))
            .fetch_one(&app.db)
            .await
            .unwrap()
    };
    assert_eq!(
        (
            count("failed_deliveries").await,
            count("captures").await,
            count("quarantine").await
        ),
        (2704, 155, 151)
    );

    let eight = Serve::on_database(&app.database.url, &[("LOCKWATCH_RETENTION_DAYS", "8")]);
    eight.wait_for_log("rows older than 8 days deleted");
    let left = async || {
        (
            count("failed_deliveries").await,
            count("captures").await,
            count("quarantine").await,
        ) == (1, 2, 1)
    };
    eventually("only the fresh ones are left", left).await;
    assert_eq!(app.text(incidents).await, before);
    // The open incident's evidence is what its cause rests on.
    let old_checks = "select string_agg(waba_id, ',') from health_checks where checked_at < now() - interval '8 days'";
    assert_eq!(app.text(old_checks).await.as_deref(), Some(WABA));
    let dangling = "select count(*) from failed_deliveries d where not exists (select from captures c where c.id = d.capture_id)";
    assert_eq!(app.count(dangling).await, 0);
}
