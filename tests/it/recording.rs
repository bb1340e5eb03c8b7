//! Failed deliveries become rows: each exactly once, whatever comes with it, however it is sent.

use futures_util::future::join_all;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{HEADER, sign};
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
async fn a_failure_is_stored_with_what_meta_said_about_it() {
    let app = TestApp::start().await;
    let status = json!({
        "id": "wamid.1", "status": "failed", "timestamp": "1763399138", "recipient_id": "16505551234",
        "recipient_participant_id": "16505550000", "biz_opaque_callback_data": "campaign-42",
        "errors": [{"code": "131031", "title": "Business Account locked", "message": "locked",
                    "error_data": {"details": "Business account has been locked."}}]});
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
    let times = "select count(*) from failed_deliveries where failed_at = to_timestamp(1763399138) and received_at > now() - interval '1 minute'";
    assert_eq!(app.count(times).await, 1);
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
        .at(now())
        .failed(WABA, NUMBER, "a")
        .failed(WABA, NUMBER, "b")
        .into_body();
    for _ in 0..3 {
        app.deliver(&body).await;
    }
    let other_batch = StatusCallback::new()
        .at(now())
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

/// Minutes and hours of incidents whose count is not that of their deliveries.
const MISCOUNTED: &str = "
    select (select count(*)
              from (select incident_id, date_bin('1 minute', failed_at, 'epoch') as minute, count(*) as n
                      from failed_deliveries group by 1, 2) d
              full join failures_by_minute m using (incident_id, minute)
             where m.failure_count is distinct from d.n)
         + (select count(*)
              from (select incident_id, date_bin('1 hour', failed_at, 'epoch') as hour, count(*) as n
                      from failed_deliveries group by 1, 2) d
              full join failures_by_hour h using (incident_id, hour)
             where h.failure_count is distinct from d.n)";

#[tokio::test]
async fn failures_are_counted_by_minute_and_hour_whenever_and_however_often_they_come() {
    let app = TestApp::start().await;
    let at = |seconds: i64| now() - time::Duration::seconds(seconds);
    let callback = |failures: &[(&str, i64)]| {
        let add = |callback: StatusCallback, (id, ago): &(&str, i64)| {
            callback.at(at(*ago)).failed(WABA, NUMBER, id)
        };
        failures.iter().fold(StatusCallback::new(), add).into_body()
    };
    for body in [
        callback(&[("a", 9200), ("b", 9200), ("c", 100)]),
        callback(&[("d", 30)]),
    ] {
        app.deliver(&body).await;
        app.deliver(&body).await;
    }
    app.execute("update incidents set resolved_at = now(), resolution = 'manual'")
        .await;
    app.deliver(&callback(&[("late", 150), ("a", 9200)])).await;
    assert_eq!(
        app.count("select sum(failure_count)::bigint from failures_by_minute")
            .await,
        5
    );
    assert_eq!(app.count(MISCOUNTED).await, 0);
}

#[tokio::test]
async fn an_incident_resolved_while_a_batch_waits_for_its_account_takes_nothing_more() {
    let app = TestApp::start().await;
    app.fail("first").await;
    app.caused("unreported").await;
    // As whoever resolves does it: the account first, then the incident.
    let mut somebody = app.db.begin().await.unwrap();
    sqlx::query("select from accounts for update")
        .execute(&mut *somebody)
        .await
        .unwrap();
    let resolve = async {
        app.eventually("the batch waits", async || {
            app.waiting_recorders().await == 1
        })
        .await;
        let sql = "update incidents set resolved_at = now(), resolution = 'manual'";
        sqlx::query(sql).execute(&mut *somebody).await.unwrap();
        somebody.commit().await.unwrap();
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
async fn a_late_failure_joins_the_incident_it_belongs_to_while_the_next_is_open() {
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
async fn what_fails_at_the_very_commit_is_not_acknowledged() {
    let app = TestApp::start().await;
    for known in [false, true] {
        let fails_late = "
            create function fail_late() returns trigger language plpgsql as
                'begin raise exception using errcode = ''40001''; end';
            create constraint trigger fail_late after insert on failed_deliveries
                deferrable initially deferred for each row execute function fail_late()";
        sqlx::raw_sql(fails_late).execute(&app.db).await.unwrap();
        assert_eq!(
            app.post(&one_failure("wamid.1")).await.status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "{known}"
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
async fn a_batch_of_several_accounts_and_numbers_is_taken_apart() {
    let app = TestApp::start().await;
    let body = StatusCallback::new()
        .at(now())
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
        .map(|i| (i.waba_id.to_string(), i.failure_count))
        .collect();
    let expected =
        [(WABA, 2), ("1033", 1), ("phone:3088", 1)].map(|(waba, n)| (waba.to_owned(), n));
    assert_eq!(accounts.len(), 3);
    assert!(
        expected.iter().all(|one| accounts.contains(one)),
        "{accounts:?}"
    );
    assert_eq!(app.count("select count(*) from affected_numbers").await, 4);
}

#[tokio::test]
async fn hostile_elements_cost_no_neighbour_and_are_never_a_503() {
    let app = TestApp::start().await;
    let failed = |id: Value| {
        json!({"id": id, "status": "failed", "recipient_id": "1\u{0}", "biz_opaque_callback_data": "\u{0}x",
               "errors": [{"code": 131_031, "title": "a\u{0}b", "message": "m".repeat(10_000)}]})
    };
    let statuses = [
        failed(json!("nul\u{0}")),
        failed(json!("x".repeat(9000))),
        failed(json!(format!("{}y", "x".repeat(9000)))),
        failed(json!("HERE")),
        json!({"errors": "131031"}),
        failed(json!("last")),
    ];
    let mut callback = StatusCallback::new().at(now());
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
    let last = body.windows(4).position(|four| four == b"last").unwrap();
    body[last] = 0xff;
    app.deliver(&body).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 5);
    assert_eq!(app.count("select count(*) from quarantine").await, 1);
    assert_eq!(app.incident().await.failure_count, 5);
    app.deliver(&body).await;
    assert_eq!(
        app.count("select count(*) from quarantine").await,
        1,
        "the same bytes are kept once"
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_quarantined_byte_for_byte() {
    let app = TestApp::start().await;
    let body = b"{\"entry\": 131031, \xff}\n";
    app.deliver(body).await;
    let (kept, reason, account): (Vec<u8>, String, String) =
        sqlx::query_as("select body, reason, waba_id from quarantine")
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert_eq!(kept, body);
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
async fn a_value_that_the_database_refuses_costs_no_neighbour() {
    let app = TestApp::start().await;
    app.execute("alter table failed_deliveries add check (message_id <> 'wamid.poison')")
        .await;
    let mut callback = StatusCallback::new().at(now());
    for n in 0..20 {
        callback = callback.failed(WABA, NUMBER, &format!("wamid.{n}"));
        if n == 13 {
            callback = callback.failed(WABA, NUMBER, "wamid.poison");
        }
    }
    let body = callback.into_body();
    let beside = one_failure("wamid.beside");
    let (first, second) = tokio::join!(app.post(&body), app.post(&beside));
    assert_eq!(
        (first.status(), second.status()),
        (StatusCode::OK, StatusCode::OK)
    );
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        21
    );
    assert_eq!(app.incident().await.failure_count, 21);
    let kept: Vec<u8> = sqlx::query_scalar("select body from quarantine")
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(kept, body);
}

#[tokio::test]
async fn many_refused_or_unreadable_elements_are_kept_as_one_body() {
    let app = TestApp::start().await;
    app.execute("alter table failed_deliveries add check (message_id not like 'poison%')")
        .await;
    let mut callback = StatusCallback::new().at(now()).failed(WABA, NUMBER, "good");
    for n in 0..100 {
        callback = callback.failed(WABA, NUMBER, &format!("poison.{n}"));
    }
    app.deliver(&callback.into_body()).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 1);
    assert_eq!(app.count("select count(*) from quarantine").await, 1);

    let mut callback = StatusCallback::new().at(now()).failed(WABA, NUMBER, "HERE");
    for _ in 0..1000 {
        callback = callback.status(
            WABA,
            NUMBER,
            json!({"errors": "131031", "padding": "x".repeat(2000)}),
        );
    }
    let mut body = callback.into_body();
    let here = body.windows(4).position(|four| four == b"HERE").unwrap();
    body[here] = 0xff;
    app.deliver(&body).await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 2);
    assert_eq!(app.count("select count(*) from quarantine").await, 2);
}

#[tokio::test]
async fn metas_largest_callback_is_recorded_in_one_go() {
    let database = TestDatabase::create().await;
    let serve = Serve::on_database(&database.url, &[]);
    let body = {
        let mut callback = StatusCallback::new().at(now());
        for n in 0..1000 {
            callback = callback.failed(WABA, NUMBER, &format!("wamid.{n:0>900}"));
            callback = callback.status(
                WABA,
                NUMBER,
                json!({"id": "x".repeat(1750), "status": "delivered"}),
            );
        }
        callback.into_body()
    };
    assert!(
        (2_900_000..3_200_000).contains(&body.len()),
        "{} bytes",
        body.len()
    );
    let post = async |body: Vec<u8>| {
        let request = client()
            .post(&serve.webhook)
            .header(HEADER, sign(APP_SECRET, &body))
            .body(body);
        request.send().await.unwrap().status()
    };
    let ready = async || post(one_failure("wamid.first")).await == StatusCode::OK;
    eventually("a first callback", ready).await;
    let before = peak_memory(serve.child.id());
    assert_eq!(post(body).await, StatusCode::OK);
    let growth = peak_memory(serve.child.id()) - before;
    assert!(growth < 64 * 1024, "memory grew by {growth} KiB");
    let db = database.database().pool();
    let rows: i64 = sqlx::query_scalar("select failure_count from incidents")
        .fetch_one(&db)
        .await
        .unwrap();
    assert_eq!(rows, 1001);
}

/// The most memory a process has ever had, in KiB.
fn peak_memory(pid: u32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// 200 distinct callbacks of 5 accounts, each sent 5 times, all at once, to two processes.
#[tokio::test]
async fn two_processes_on_one_database_record_each_failure_once() {
    let database = TestDatabase::create().await;
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let accounts: Vec<String> = (0..5).map(|n| format!("10229012934039{n}")).collect();
    let number = |account: usize, n: usize| format!("10654035224{account}{n}");
    for account in 0..5 {
        for n in 0..2 {
            let slow = Scenario::Slow(
                std::time::Duration::from_millis(300),
                Box::new(Scenario::Payment),
            );
            simulator.script(&number(account, n), [slow]);
        }
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
    let client = client();
    for process in &processes {
        process.logged("the database is ready");
    }

    let posts = (0..1000).map(|n| {
        let callback = n % 200;
        let (account, n_number) = (callback % 5, callback / 5 % 2);
        let body = StatusCallback::new()
            .at(now())
            .failed(
                &accounts[account],
                &number(account, n_number),
                &format!("wamid.{callback}.a"),
            )
            .failed(
                &accounts[account],
                &number(account, n_number),
                &format!("wamid.{callback}.b"),
            )
            .into_body();
        let request = client
            .post(&processes[n / 200 % 2].webhook)
            .header(HEADER, sign(APP_SECRET, &body))
            .body(body);
        async move { request.send().await.unwrap().status() }
    });
    let answers = join_all(posts).await;
    assert!(
        answers.iter().all(|status| *status == StatusCode::OK),
        "{answers:?}"
    );

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
    let found = async || count("select count(*) from incidents where cause = 'payment'").await == 5;
    eventually("five causes", found).await;
    assert_eq!(
        simulator.most_in_flight_per_node(),
        1,
        "one look-up in flight per number"
    );
    let looked_up = async || count("select count(*) from health_checks").await == 10;
    eventually("ten look-ups", looked_up).await;
    assert_eq!(simulator.requests().len(), 10, "and one per number in all");
}
