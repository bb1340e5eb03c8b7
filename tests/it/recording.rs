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
    resume_processing, settle,
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
    app.execute(
        "update incidents set ended_at = now(), resolved_at = now(), resolution = 'manual'",
    )
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

/// Waits until a callback of another account, posted now, is recorded: the processor has then passed
/// everything that came before it.
async fn pass_by(app: &TestApp, message_id: &str) {
    let body = StatusCallback::new()
        .timestamp(now())
        .failed("1033", "2077", message_id);
    app.acknowledged(&body.into_body()).await;
    app.eventually("another account's failure is recorded", async || {
        let recorded = "select exists (select from failed_deliveries where message_id = $1)";
        let recorded = sqlx::query_scalar(recorded).bind(message_id);
        recorded.fetch_one(&app.db).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn an_incident_resolved_meanwhile_gets_no_more_failures() {
    let app = TestApp::start().await;
    app.fail("first").await;
    app.wait_for_cause("unreported").await;
    // A resolution locks the account first.
    let mut resolution = app.db.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 131031))")
        .bind(WABA)
        .execute(&mut *resolution)
        .await
        .unwrap();
    let later = OffsetDateTime::now_utc() + time::Duration::seconds(5);
    let second = StatusCallback::new()
        .timestamp(later)
        .failed(WABA, NUMBER, "second");
    app.acknowledged(&second.into_body()).await;
    pass_by(&app, "beside").await;
    assert_eq!(app.count("select count(*) from inbox").await, 1);
    let sql = "update incidents set ended_at = now(), resolved_at = now(), resolution = 'manual'
                where waba_id = $1";
    sqlx::query(sql)
        .bind(WABA)
        .execute(&mut *resolution)
        .await
        .unwrap();
    resolution.commit().await.unwrap();
    app.settle().await;
    let mut incidents = app.incidents().await;
    incidents.retain(|incident| incident.waba_id == WABA);
    let counts: Vec<_> = incidents
        .iter()
        .map(|incident| (incident.failure_count, incident.resolved_at.is_some()))
        .collect();
    assert_eq!(counts, [(1, true), (1, false)]);
    assert_eq!(incidents[1].previous_incident_id, Some(incidents[0].id));
}

#[tokio::test]
async fn a_callback_waits_for_its_account_and_no_other_waits() {
    let app = TestApp::start().await;
    app.fail("first").await;
    app.wait_for_cause("unreported").await;
    for (n, lock) in [
        "select pg_advisory_xact_lock(hashtextextended('102290129340398', 131031))",
        "select from incidents where waba_id = '102290129340398' for update",
        "select from affected_numbers where waba_id = '102290129340398' for update",
    ]
    .into_iter()
    .enumerate()
    {
        let mut holder = app.db.begin().await.unwrap();
        sqlx::query(lock).execute(&mut *holder).await.unwrap();
        let held = [format!("held.{n}"), format!("held too.{n}")];
        app.acknowledged(&one_failure(&held[0])).await;
        pass_by(&app, &format!("beside.{n}")).await;
        let both = StatusCallback::new()
            .timestamp(now())
            .failed("1033", "2077", &format!("with the held one.{n}"))
            .failed(WABA, NUMBER, &held[1]);
        app.acknowledged(&both.into_body()).await;
        pass_by(&app, &format!("beside too.{n}")).await;
        let recorded = "select count(*) from failed_deliveries
                         where message_id like '%held%.' || $1";
        let recorded = async || -> i64 {
            let recorded = sqlx::query_scalar(recorded).bind(n.to_string());
            recorded.fetch_one(&app.db).await.unwrap()
        };
        assert_eq!(recorded().await, 0, "{lock}");
        assert_eq!(app.count("select count(*) from inbox").await, 2, "{lock}");
        assert_eq!(
            app.count("select count(problem) from inbox").await,
            0,
            "nothing is wrong with them: {lock}"
        );
        holder.rollback().await.unwrap();
        app.settle().await;
        assert_eq!(recorded().await, 3, "{lock}");
    }
    let counts: Vec<i64> = app
        .incidents()
        .await
        .iter()
        .map(|incident| incident.failure_count)
        .collect();
    assert_eq!(counts, [7, 9]);
}

#[tokio::test]
async fn a_late_failure_joins_the_incident_of_its_time() {
    let app = TestApp::start().await;
    app.fail("first").await;
    app.execute(
        "update incidents set ended_at = now(), resolved_at = now(), resolution = 'manual'",
    )
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

/// Lets every commit fail that has inserted into a table, until [`let_commits_work`]. Counts them in
/// a sequence, which no rollback sets back.
async fn let_commits_fail(app: &TestApp, table: &str) {
    let sql = format!(
        "create sequence failed_commits;
         create function fail_late() returns trigger language plpgsql as
             'begin
                perform nextval(''failed_commits'');
                raise exception using errcode = ''40001'';
              end';
         create constraint trigger fail_late after insert on {table}
             deferrable initially deferred for each row execute function fail_late()"
    );
    let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
    sql.execute(&app.db).await.unwrap();
}

async fn let_commits_work(app: &TestApp) {
    sqlx::raw_sql("drop function fail_late cascade; drop sequence failed_commits")
        .execute(&app.db)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_append_that_fails_at_its_commit_is_not_acknowledged() {
    let app = TestApp::start().await;
    for table in ["inbox", "captures"] {
        let before = app.count("select count(*) from captures").await;
        let_commits_fail(&app, table).await;
        let body = one_failure(&format!("wamid.{table}"));
        let response = app.post(&body).await;
        assert_eq!(
            response.status(),
            StatusCode::SERVICE_UNAVAILABLE,
            "{table}"
        );
        assert_eq!(response.headers()["retry-after"], "5");
        let text = response.text().await.unwrap();
        assert_eq!(text, "not stored: the database did not commit\n");
        assert_eq!(
            app.count("select last_value from failed_commits").await,
            1,
            "it was this commit that failed"
        );
        assert_eq!(app.count("select count(*) from inbox").await, 0);
        assert_eq!(app.count("select count(*) from captures").await, before);
        let_commits_work(&app).await;
        app.deliver(&body).await;
        assert_eq!(app.count("select count(*) from captures").await, before + 1);
    }
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 2);
}

#[tokio::test]
async fn a_record_that_fails_at_its_commit_stays_in_the_inbox_and_is_made_once() {
    let app = TestApp::start().await;
    for (n, is_account_known) in [false, true].into_iter().enumerate() {
        let_commits_fail(&app, "failed_deliveries").await;
        app.acknowledged(&one_failure(&format!("wamid.{n}"))).await;
        app.eventually("it is tried again and again", async || {
            app.count("select last_value from failed_commits").await >= 3
        })
        .await;
        let note = format!("account known: {is_account_known}");
        let recorded = "select count(*) from failed_deliveries";
        assert_eq!(app.count(recorded).await, n as i64, "{note}");
        assert_eq!(
            app.count("select count(*) from incidents").await,
            i64::from(is_account_known),
            "{note}"
        );
        assert_eq!(
            app.count("select count(*) from inbox where problem is null")
                .await,
            1,
            "the callback is not to blame, {note}"
        );
        let_commits_work(&app).await;
        app.settle().await;
        assert_eq!(app.count(recorded).await, n as i64 + 1, "{note}");
        assert_eq!(app.incident().await.failure_count, n as i64 + 1, "{note}");
        assert_eq!(app.count(MISCOUNTED).await, 0);
    }
    assert_eq!(
        app.count("select count(*) from incident_changes where kind = 'opened'")
            .await,
        1
    );
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
    app.fail("wamid.first").await;
    app.execute(
        "alter table failed_deliveries
           add constraint no_poison check (message_id <> 'wamid.poison')",
    )
    .await;
    let mut callback = StatusCallback::new().timestamp(now());
    for n in 0..20 {
        callback = callback.failed(WABA, NUMBER, &format!("wamid.{n}"));
        if n == 13 {
            callback = callback.failed(WABA, NUMBER, "wamid.poison");
        }
    }
    let body = callback.into_body();
    let neighbours: Vec<Vec<u8>> = (0..6)
        .map(|n| one_failure(&format!("wamid.beside.{n}")))
        .collect();
    // All of them are in one batch.
    let mut processor = app.stop_processing().await;
    for neighbour in &neighbours[..3] {
        app.acknowledged(neighbour).await;
    }
    app.acknowledged(&body).await;
    for neighbour in &neighbours[3..] {
        app.acknowledged(neighbour).await;
    }
    assert_eq!(app.count("select count(*) from inbox").await, 7);
    resume_processing(&mut processor).await;
    app.eventually("only the poison is left", async || {
        app.count("select count(*) from inbox").await == 1
            && app.count("select count(problem) from inbox").await == 1
    })
    .await;
    let (waiting, problem, attempts, is_delayed): (Vec<u8>, String, i32, bool) = sqlx::query_as(
        "select body, problem, attempts, retry_at > now()
           from inbox join captures c on c.id = capture_id",
    )
    .fetch_one(&app.db)
    .await
    .unwrap();
    assert_eq!(waiting, body);
    assert!(problem.contains("no_poison"), "{problem}");
    assert_eq!((attempts, is_delayed), (1, true));
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 7);
    assert_eq!(app.incident().await.failure_count, 7);
    assert_eq!(app.count("select count(*) from quarantine").await, 0);

    app.execute("alter table failed_deliveries drop constraint no_poison")
        .await;
    app.execute("update inbox set retry_at = null").await;
    app.settle().await;
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        28
    );
    assert_eq!(app.incident().await.failure_count, 28);
    assert_eq!(app.count(MISCOUNTED).await, 0);
}

#[tokio::test]
async fn while_a_table_takes_nothing_few_callbacks_are_blamed_and_none_is_lost() {
    let app = TestApp::start().await;
    app.execute("alter table failed_deliveries add constraint closed check (false)")
        .await;
    let mut processor = app.stop_processing().await;
    let bodies: Vec<Vec<u8>> = (0..40)
        .map(|n| one_failure(&format!("wamid.{n}")))
        .collect();
    for body in &bodies {
        app.acknowledged(body).await;
    }
    resume_processing(&mut processor).await;
    app.eventually("some are blamed", async || {
        app.count("select count(problem) from inbox").await >= 8
    })
    .await;
    assert_eq!(app.count("select count(problem) from inbox").await, 8);
    assert_eq!(
        app.count("select max(attempts)::bigint from inbox").await,
        1
    );
    app.execute("alter table failed_deliveries drop constraint closed")
        .await;
    // What was blamed is due at once when others are recorded.
    app.settle().await;
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        40
    );
    assert_eq!(app.incident().await.failure_count, 40);
    assert_eq!(app.count(MISCOUNTED).await, 0);
}

#[tokio::test]
async fn a_sequence_set_back_meanwhile_costs_nothing_that_was_acknowledged() {
    let app = TestApp::start().await;
    for n in 0..10 {
        app.fail(&format!("before.{n}")).await;
    }
    app.execute("select setval('failed_deliveries_id_seq', 1, false)")
        .await;
    app.fail("after the first").await;
    app.execute("select setval('captures_id_seq', 1, false)")
        .await;
    let body = one_failure("after the second");
    app.eventually("the append works again", async || {
        app.post(&body).await.status() == StatusCode::OK
    })
    .await;
    app.settle().await;
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        12
    );
    assert_eq!(app.incident().await.failure_count, 12);
}

#[tokio::test]
async fn many_bad_statuses_are_quarantined_as_one_body() {
    let app = TestApp::start().await;
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
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 1);
    let quarantined: Vec<Vec<u8>> = sqlx::query_scalar(
        "select q.body from quarantine q join captures c on c.id = q.capture_id",
    )
    .fetch_all(&app.db)
    .await
    .unwrap();
    assert_eq!(quarantined, [body]);
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
    let db = database.database().pool();
    settle(&db).await;
    let growth = peak_memory_kib(serve.child.id()) - before;
    assert!(growth < 64 * 1024, "memory grew by {growth} KiB");
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
    settle(&db).await;
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
