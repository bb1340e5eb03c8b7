//! Captures are exported to files, and replayed over HTTP or into a database.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lockwatch::meta::capture::Capture;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, Signature, Verifier, sign};
use rustix::process::{Pid, Signal, kill_process};
use secrecy::SecretString;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::database::TestDatabase;
use crate::support::process::{Serve, lockwatch};
use crate::support::{APP_SECRET, NUMBER, TestApp, WABA, eventually, settle};

/// Runs a command to its end. Returns its exit code, standard output and standard error.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    (
        status.code(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

/// Exports the captures of a database with these flags.
fn export(database: &str, flags: &[&str]) -> String {
    let (code, stdout, stderr) =
        run(lockwatch(&[&["captures", "export"], flags].concat()).env("DATABASE_URL", database));
    assert_eq!(code, Some(0), "{stderr}");
    stdout
}

fn replay(file: &Path, to: &str, flags: &[&str]) -> (Option<i32>, String, String) {
    let arguments = [&["replay", file.to_str().unwrap(), "--to", to], flags].concat();
    run(lockwatch(&arguments).env("META_APP_SECRET", APP_SECRET))
}

fn replay_into(database: &str, file: &Path) -> (Option<i32>, String, String) {
    let arguments = ["replay", "--into-database", file.to_str().unwrap()];
    run(lockwatch(&arguments).env("DATABASE_URL", database))
}

fn write_jsonl(text: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new()
        .suffix(".jsonl")
        .tempfile()
        .unwrap();
    file.write_all(text.as_ref()).unwrap();
    file
}

/// Every recorded row as text, without ids, and without times of receipt where those differ. A body
/// that was captured several times is there once.
async fn recorded_rows(database: &str, with_receipt: bool) -> Vec<String> {
    let mut db = PgConnection::connect(database).await.unwrap();
    let receipt = if with_receipt { "" } else { " - 'received_at'" };
    let sql = format!(
        "select line from (
           select 'delivery ' || (to_jsonb(d) - 'id' - 'incident_id' - 'capture_id'{receipt}
                                  || jsonb_build_object('incident', i.opened_at,
                                                        'capture', encode(sha256(c.body), 'hex')))::text
                  as line
             from failed_deliveries d
             join incidents i on i.id = d.incident_id
             left join captures c on c.id = d.capture_id
           union all
           select 'incident ' || jsonb_build_array(waba_id, opened_at, last_failure_at,
                                                   failure_count, ended_at)::text
             from incidents
           union all
           select 'number ' || jsonb_build_array(waba_id, phone_number_id, display_phone_number,
                                                 first_failure_at, last_failure_at,
                                                 failure_count)::text
             from affected_numbers
           union all
           select 'capture ' || (to_jsonb(c) - 'id' - 'app_secret'{receipt})::text
             from captures c
            where not exists (select from captures b where b.body = c.body and b.id < c.id)
           union all
           select 'quarantine ' || (to_jsonb(q) - 'id' - 'capture_id'{receipt})::text
             from quarantine q
         ) lines order by line collate \"C\""
    );
    let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_all(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
    rows
}

/// An export of a demo's captures, with the rows that the demo recorded.
struct DemoExport {
    captures: tempfile::NamedTempFile,
    rows: Vec<String>,
    rows_without_receipt: Vec<String>,
}

/// Runs a demo until it has recorded everything, and exports its captures.
async fn export_demo() -> DemoExport {
    let mut demo = lockwatch(&["demo"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let psql = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.starts_with("psql "))
        .unwrap();
    let url = psql.split('\'').nth(1).unwrap();
    let export = DemoExport {
        captures: write_jsonl(export(url, &[])),
        rows: recorded_rows(url, true).await,
        rows_without_receipt: recorded_rows(url, false).await,
    };
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    let is_delivery = |row: &&String| row.starts_with("delivery");
    assert_eq!(export.rows.iter().filter(is_delivery).count(), 19);
    export
}

/// The rows up to their signature, which depends on the secret.
fn without_signatures(rows: &[String]) -> Vec<&str> {
    rows.iter()
        .map(|row| row.split("\"signature\"").next().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_over_http_records_the_same_rows() {
    let demo = export_demo().await;
    let database = TestDatabase::create().await;
    let serve = Serve::on_database(&database.url, &[]);
    serve.wait_for_log("the database is ready");
    let (code, summary, stderr) = replay(demo.captures.path(), &serve.webhook, &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{summary}");
    assert!(
        summary.starts_with("5 callbacks replayed in ") && summary.contains("\n  200         5\n"),
        "{summary}"
    );
    settle(&database.database().pool()).await;
    // The demo has another secret than this server.
    assert_eq!(
        without_signatures(&recorded_rows(&database.url, false).await),
        without_signatures(&demo.rows_without_receipt)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_into_a_database_records_the_same_rows() {
    let demo = export_demo().await;
    let database = TestDatabase::create().await;
    let (code, summary, stderr) = replay_into(&database.url, demo.captures.path());
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{summary}");
    assert!(summary.contains("recorded         5"), "{summary}");
    assert_eq!(
        recorded_rows(&database.url, true).await,
        demo.rows,
        "with times of receipt and signatures"
    );
    assert_eq!(replay_into(&database.url, demo.captures.path()).0, Some(0));
    assert_eq!(
        recorded_rows(&database.url, true).await,
        demo.rows,
        "a second replay changes the rows"
    );
}

/// A body with escapes as Meta writes them, odd white space, and a newline at the end.
const ODD_BODY: &[u8] = concat!(
    r#"{ "object":"whatsapp_business_account","#,
    "\t",
    r#""entry" : [{"id":"102290129340398","changes":[{"field":"messages","#,
    r#""value":{"metadata":{"display_phone_number":"15550783881","#,
    r#""phone_number_id":"106540352242922"},"#,
    "\n  ",
    r#""statuses":[{"id":"wamid.odd","status":"failed","timestamp":"1790000000","#,
    r#""recipient_id":"16505551234","#,
    r#""biz_opaque_callback_data":"\u00e4 \/ \ud83d\udc4d","#,
    r#""errors":[{"code":131031,"title":"Business Account locked"}]}]}}]}]}"#,
    "\n",
)
.as_bytes();

/// Delivers `ODD_BODY` and exports it.
async fn export_odd_body(app: &TestApp) -> tempfile::NamedTempFile {
    app.deliver(ODD_BODY).await;
    write_jsonl(export(&app.database.url, &[]))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_keeps_the_bytes_and_the_signature_of_a_body() {
    let app = TestApp::start().await;
    let file = export_odd_body(&app).await;
    let capture = Capture::from_line(&fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(capture.body, ODD_BODY);
    let signature = Signature::parse(capture.signature().unwrap().as_bytes()).unwrap();
    let verifier = Verifier::new(&[SecretString::from(APP_SECRET)]);
    assert_eq!(verifier.verify(&capture.body, &signature), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_the_original_signature_needs_no_secret() {
    let app = TestApp::start().await;
    let file = export_odd_body(&app).await;
    let other = TestApp::start().await;
    let (code, summary, stderr) = run(&mut lockwatch(&[
        "replay",
        file.path().to_str().unwrap(),
        "--to",
        &other.url("/"),
        "--original-signature",
    ]));
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{summary}");
    let body: Vec<u8> = sqlx::query_scalar("select body from captures")
        .fetch_one(&other.db)
        .await
        .unwrap();
    assert_eq!(body, ODD_BODY);
    other.settle().await;
    let data = other
        .text("select callback_data from failed_deliveries")
        .await;
    assert_eq!(data.as_deref(), Some("ä / 👍"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_into_a_database_verifies_the_original_signature() {
    let app = TestApp::start().await;
    let file = export_odd_body(&app).await;
    let database = TestDatabase::create().await;
    let replay_with_secret = |secret| {
        let mut command = lockwatch(&[
            "replay",
            "--into-database",
            "--original-signature",
            file.path().to_str().unwrap(),
        ]);
        command.env("DATABASE_URL", &database.url);
        run(command.env("META_APP_SECRET", secret))
    };
    let (code, summary, _) = replay_with_secret("another-secret-of-the-tests");
    assert_eq!(code, Some(1));
    assert!(
        summary.contains("refused         1  first") && summary.contains(":1: bad signature"),
        "{summary}"
    );
    assert_eq!(replay_with_secret(APP_SECRET).0, Some(0));
    assert_eq!(
        recorded_rows(&database.url, true).await,
        recorded_rows(&app.database.url, true).await
    );
}

/// Returns a text, followed by its base64 decoded from every offset.
fn with_decoded_base64(text: &str) -> String {
    let mut all = text.to_owned();
    for start in 0..text.len() {
        let rest = &text.as_bytes()[start..];
        let length = rest
            .iter()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
            .count();
        let decoded = BASE64.decode(&rest[..length / 4 * 4]).unwrap_or_default();
        all.extend(decoded.iter().map(|byte| char::from(*byte)));
        all.push(' ');
    }
    all
}

/// Delivers every body of `tests/captures`, and the first recorded failure again in another batch.
async fn deliver_all_captures(app: &TestApp) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            app.deliver(&fs::read(path).unwrap()).await;
        }
    }
    let first: Vec<u8> = sqlx::query_scalar("select body from captures order by id limit 1")
        .fetch_one(&app.db)
        .await
        .unwrap();
    let repeated = String::from_utf8(first)
        .unwrap()
        .replacen("{\"object\"", "{ \"object\"", 1);
    app.deliver(repeated.as_bytes()).await;
}

/// Returns the recipients of all failed deliveries, as digits where a recipient is mostly digits.
async fn recorded_recipients(app: &TestApp) -> Vec<String> {
    let recipients: Vec<String> = sqlx::query_scalar(
        "select distinct recipient
           from failed_deliveries d, unnest(array[d.recipient_id, d.participant_id]) recipient
          where recipient is not null",
    )
    .fetch_all(&app.db)
    .await
    .unwrap();
    let mut names = Vec::new();
    for recipient in recipients {
        let digits: String = recipient.chars().filter(char::is_ascii_digit).collect();
        let is_number = digits.len() * 2 > recipient.len();
        names.push(if is_number { digits } else { recipient });
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redacted_export_names_no_recipient() {
    let app = TestApp::start().await;
    deliver_all_captures(&app).await;
    let text = export(&app.database.url, &["--redact"]);
    let again = export(&app.database.url, &["--redact"]);
    assert_eq!(text, again, "the pseudonyms changed");
    let mut bodies = String::new();
    for line in text.lines() {
        let capture = Capture::from_line(line.as_bytes()).unwrap();
        bodies += std::str::from_utf8(&capture.body).unwrap();
        bodies.push('\n');
    }
    let readable = with_decoded_base64(&bodies);
    let recipients = recorded_recipients(&app).await;
    assert!(recipients.len() > 20);
    for recipient in recipients {
        assert!(!readable.contains(&recipient), "{recipient} is left");
    }
    assert!(
        !text.contains(SIGNATURE_HEADER),
        "the signature no longer fits the body"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redacted_export_replays_to_the_same_counts() {
    let app = TestApp::start().await;
    deliver_all_captures(&app).await;
    let file = write_jsonl(export(&app.database.url, &["--redact"]));
    let other = TestApp::start().await;
    for _ in 0..2 {
        let (code, summary, _) =
            replay(file.path(), &other.url("/webhook"), &["--concurrency", "4"]);
        assert_eq!(code, Some(0), "{summary}");
        other.settle().await;
    }
    // By account: to which of two incidents a failure between them belongs depends on which came
    // first.
    let counts = "
        select string_agg(waba_id || ' ' || failure_count, ', ' order by waba_id)
          from (select waba_id, sum(failure_count) as failure_count
                  from incidents group by waba_id) accounts";
    assert_eq!(other.text(counts).await, app.text(counts).await);
    let failures = "select count(*) from failed_deliveries";
    assert_eq!(other.count(failures).await, app.count(failures).await);
}

/// Noon (UTC) of the day before yesterday.
fn noon() -> OffsetDateTime {
    OffsetDateTime::now_utc().date().midnight().assume_utc() - time::Duration::hours(36)
}

/// Delivers three bodies: one with failures of two accounts, which was received at `noon`, one with
/// a failure of one of them, and one that is quarantined. Returns the first.
async fn deliver_three_bodies(app: &TestApp) -> Vec<u8> {
    let both = StatusCallback::new()
        .failed(WABA, NUMBER, "1")
        .failed("1033", "2077", "2")
        .into_body();
    app.deliver(&both).await;
    let single = StatusCallback::new().failed("1033", "2077", "3");
    app.deliver(&single.into_body()).await;
    app.deliver(br#"{"entry":[{"id":"77","changes":[131031]}]}"#)
        .await;
    // The retention job runs: the capture must not be older than it allows.
    app.execute(
        "update captures
            set received_at = date_trunc('day', now(), 'UTC') - interval '36 hours'
          where id = (select min(id) from captures)",
    )
    .await;
    both
}

/// Runs `captures list` with these flags.
fn list_captures(app: &TestApp, flags: &[&str]) -> (Option<i32>, String, String) {
    let arguments = [&["captures", "list"], flags].concat();
    run(lockwatch(&arguments).env("DATABASE_URL", &app.database.url))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_filtered_by_time_account_and_incident() {
    let app = TestApp::start().await;
    deliver_three_bodies(&app).await;
    let time = |seconds: i64| {
        let time = noon() + time::Duration::seconds(seconds);
        time.format(&Rfc3339).unwrap()
    };
    let next_day = (noon().date() + time::Duration::DAY).to_string();
    let incidents = app.incidents().await;
    let incident = incidents
        .iter()
        .find(|incident| incident.waba_id == WABA)
        .unwrap()
        .id
        .to_string();
    for (flags, expected) in [
        (&[][..], 3),
        (&["--since", &next_day], 2),
        (&["--until", &time(1)], 1),
        (&["--since", &time(0), "--until", &next_day], 1),
        (&["--until", &time(0)], 0),
        (&["--waba-id", "1033"], 2),
        (&["--waba-id", WABA], 1),
        (&["--waba-id", "77"], 1),
        (&["--incident", &incident], 1),
        (&["--since", "3d"], 3),
        (&["--since", "10m", "--waba-id", "1033"], 1),
        (&["--quarantined"], 1),
        (&["--quarantined", "--waba-id", WABA], 0),
    ] {
        let exported = export(&app.database.url, flags);
        assert_eq!(exported.lines().count(), expected, "{flags:?}");
    }
}

/// Retention may delete captures during an export. The others are exported all the same.
#[tokio::test]
async fn an_export_skips_only_deleted_captures() {
    let database = TestDatabase::create().await;
    let mut db = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql(
        "insert into captures (body, received_at)
         select convert_to(rpad(n::text, 600), 'UTF8'), at
           from (select n, now() - interval '1 day' + n * interval '1 second' as at
                   from generate_series(1, 2000) as n) rows",
    )
    .execute(&mut db)
    .await
    .unwrap();
    let mut export = lockwatch(&["captures", "export"])
        .env("DATABASE_URL", &database.url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(export.stdout.take().unwrap()).lines();
    // The first batch is more than the pipe holds: the export now waits for its reader.
    assert!(lines.next().unwrap().unwrap().contains("\"1 "));
    sqlx::raw_sql("delete from captures where id between 501 and 1000")
        .execute(&mut db)
        .await
        .unwrap();
    assert_eq!(lines.count(), 1499);
    assert!(export.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_into_a_folder_can_be_replayed() {
    let app = TestApp::start().await;
    deliver_three_bodies(&app).await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/b");
    let mut command = lockwatch(&["captures", "export", "--out", out.to_str().unwrap()]);
    let (code, stdout, stderr) = run(command.env("DATABASE_URL", &app.database.url));
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (Some(0), "", "3 captures exported.\n")
    );
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
    let (code, summary, _) = replay(&out, &app.url("/webhook"), &[]);
    assert!(
        code == Some(0) && summary.contains("  200         3"),
        "{summary}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_are_listed_newest_first() {
    let app = TestApp::start().await;
    let first = deliver_three_bodies(&app).await;
    app.deliver(&first).await;
    app.execute(
        "alter table failed_deliveries add constraint no_poison check (message_id <> 'poison')",
    )
    .await;
    let poison = StatusCallback::new().failed(WABA, NUMBER, "poison");
    app.acknowledged(&poison.into_body()).await;
    let (_, json, _) = list_captures(&app, &["--json"]);
    let listed: serde_json::Value = serde_json::from_str(&json).unwrap();
    let listed = listed.as_array().unwrap();
    let ids: Vec<i64> = listed.iter().map(|c| c["id"].as_i64().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a > b) && ids.len() == 5, "{ids:?}");
    let columns = |n: usize| {
        let capture = &listed[n];
        [
            "waba_ids",
            "failure_count",
            "body_bytes",
            "digest",
            "app_secret",
            "waiting",
            "quarantined",
        ]
        .map(|column| capture[column].clone())
    };
    let both = [
        json!([WABA, "1033"]),
        json!(2),
        json!(first.len()),
        json!(hex::encode(Sha256::digest(&first))),
        json!(1),
        json!(false),
        json!(false),
    ];
    assert_eq!((columns(1), columns(4)), (both.clone(), both));
    assert_eq!(listed[0]["waiting"], true);
    let [waba_ids, failures, .., quarantined] = columns(2);
    assert_eq!(
        (waba_ids, failures, quarantined),
        (json!(["77"]), json!(0), json!(true))
    );
    let (_, table, _) = list_captures(&app, &[]);
    let lines: Vec<&str> = table.lines().collect();
    let header: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(
        header,
        ["ID", "RECEIVED", "ACCOUNT", "BYTES", "FAILURES", "STATE"]
    );
    assert!(
        lines[1].contains("in the inbox") && lines[3].contains("quarantined"),
        "{table}"
    );
    let (_, table, _) = list_captures(&app, &["--quarantined"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines.len() == 2 && lines[1].contains("quarantined"),
        "{table}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_filter_of_captures_is_refused() {
    let app = TestApp::start().await;
    for (flags, code, message) in [
        (&["--since", "soon"][..], 2, "not a time"),
        (&["--since", "2026-11-31"], 2, "not a time"),
        (&["--since", "4294967295d"], 2, "not a time"),
        (
            &["--since", "1h", "--until", "2h"],
            2,
            "--since is not before --until",
        ),
        (&["--incident", "999999"], 1, "there is no incident 999999"),
    ] {
        let (exit, _, stderr) = list_captures(&app, flags);
        assert!(
            exit == Some(code) && stderr.contains(message),
            "{flags:?}: {stderr}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_can_be_copied_from_the_list_into_a_filter() {
    let app = TestApp::start().await;
    deliver_three_bodies(&app).await;
    app.execute(
        "update captures set received_at = date_trunc('second', received_at)
          where id > (select min(id) from captures)",
    )
    .await;
    let (_, table, _) = list_captures(&app, &["--limit", "1"]);
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    let time = words[1..4].join(" ");
    let since = export(&app.database.url, &["--since", &time]);
    assert!(since.lines().count() >= 1, "--since {time}");
    let (_, until, _) = list_captures(&app, &["--until", &time]);
    assert!(!until.contains(&time), "--until {time} lists that time");
}

fn failure_body(id: &str) -> Vec<u8> {
    StatusCallback::new().failed(WABA, NUMBER, id).into_body()
}

fn indented_body(id: &str) -> String {
    let body: serde_json::Value = serde_json::from_slice(&failure_body(id)).unwrap();
    format!("{body:#}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_or_line_is_named_and_skipped() {
    let app = TestApp::start().await;
    let folder = tempfile::tempdir().unwrap();
    let capture = |id: &str| Capture::from_body(failure_body(id)).to_line();
    let put = |name: &str, text: &[u8]| fs::write(folder.path().join(name), text).unwrap();
    let lines = format!(
        "{}\nnot a capture\n\n{}\r\n{{\"v\":1}}\n{}",
        capture("1"),
        capture("2"),
        capture("3")
    );
    put("a.jsonl", lines.as_bytes());
    put("b.json", indented_body("4").as_bytes());
    put("c.json", b"{\n  \"entry\": [\n}\n");
    put("d.json", b"");
    put("e.json", b"{\"hello\": 1}");
    put("f.log", b"no capture file");
    fs::create_dir(folder.path().join("g")).unwrap();
    let two_bodies = [failure_body("5"), b"\n".to_vec(), failure_body("6")].concat();
    put("g/h.json", &two_bodies);
    let (code, summary, stderr) = replay(folder.path(), &app.url("/webhook"), &[]);
    assert_eq!(code, Some(1));
    let mut expected = Vec::new();
    for (place, error) in [
        ("a.jsonl:2", "not JSON: expected ident (column 2)"),
        (
            "a.jsonl:5",
            "a capture that cannot be read: it needs either `body` or `body_base64`",
        ),
        ("c.json:3", "not JSON: expected value (column 1)"),
        ("d.json", "empty"),
        (
            "e.json:1",
            "neither a capture (an object with `v`) nor a callback (an object with `entry`)",
        ),
    ] {
        let path = folder.path().join(place).display().to_string();
        expected.push(format!("lockwatch: {path}: {error}"));
    }
    expected.push("lockwatch: 5 could not be read, see above".to_owned());
    assert_eq!(stderr.lines().collect::<Vec<_>>(), expected);
    assert!(summary.contains("  200         6\n"), "{summary}");
    app.settle().await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_body_is_replayed_with_every_byte_of_its_file() {
    let app = TestApp::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.json");
    let indented = indented_body("4");
    fs::write(&path, &indented).unwrap();
    assert_eq!(replay(&path, &app.url("/webhook"), &[]).0, Some(0));
    app.settle().await;
    let body: Vec<u8> = sqlx::query_scalar("select body from captures")
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(body, indented.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_path_and_an_empty_folder_are_errors() {
    let app = TestApp::start().await;
    let webhook = app.url("/webhook");
    let folder = tempfile::tempdir().unwrap();
    let (code, summary, stderr) = replay(&folder.path().join("absent"), &webhook, &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("absent: No such file"), "{stderr}{summary}");
    let (_, _, stderr) = replay(folder.path(), &webhook, &[]);
    assert!(stderr.contains("holds no .json or .jsonl file"), "{stderr}");
}

/// Runs `replay -` with this text as its standard input. Returns its exit code and its output.
fn replay_from_stdin(text: &[u8], flags: &[&str]) -> (Option<i32>, String) {
    let mut child = lockwatch(&[&["replay", "-"], flags].concat())
        .env("META_APP_SECRET", APP_SECRET)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text).unwrap();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), stdout)
}

/// Two lines: `ODD_BODY` as a capture, and a bare callback without failures.
fn two_lines() -> String {
    let capture = Capture::from_body(ODD_BODY).to_line();
    format!("{capture}\n{{\"entry\":[]}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_callbacks_and_sends_nothing() {
    let app = TestApp::start().await;
    let (code, summary) = replay_from_stdin(two_lines().as_bytes(), &["--dry-run"]);
    assert_eq!(code, Some(0));
    assert_eq!(
        summary,
        concat!(
            "2 callbacks read, nothing sent\n",
            "  lockouts                        1\n",
            "  nothing about a lockout         1\n"
        )
    );
    assert_eq!(app.count("select count(*) from captures").await, 0);
    assert_eq!(app.count("select count(*) from inbox").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_and_bare_bodies_are_replayed_from_stdin() {
    let app = TestApp::start().await;
    let webhook = app.url("/webhook");
    for text in [two_lines().as_bytes(), ODD_BODY] {
        let (code, summary) = replay_from_stdin(text, &["--to", &webhook]);
        assert_eq!(code, Some(0), "{summary}");
    }
    app.settle().await;
    let kept: Vec<Vec<u8>> = sqlx::query_scalar("select body from captures")
        .fetch_all(&app.db)
        .await
        .unwrap();
    assert_eq!(kept, [ODD_BODY, ODD_BODY]);
    let failures = app.count("select count(*) from failed_deliveries").await;
    assert_eq!(failures, 1);
    let exported = export(&app.database.url, &[]);
    assert_eq!(exported.lines().count(), 1, "each body is exported once");
}

/// The time that the receiver takes to answer.
const RECEIVER_LATENCY: Duration = Duration::from_millis(30);

/// Starts a receiver that answers with these statuses and `retry-after` headers, and repeats the
/// last one. Returns its URL and its count of requests.
async fn start_receiver(answers: &'static [(u16, &'static str)]) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let requests = Arc::clone(&count);
    let answer = move || {
        let index = requests.fetch_add(1, Ordering::SeqCst);
        let (status, retry_after) = answers[index.min(answers.len() - 1)];
        let headers = [
            ("retry-after", retry_after),
            ("location", "http://127.0.0.1:9/"),
        ];
        async move {
            tokio::time::sleep(RECEIVER_LATENCY).await;
            (StatusCode::from_u16(status).unwrap(), headers, "because")
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/webhook", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/webhook", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, count)
}

/// A file with the same capture, repeated.
fn write_captures(count: usize) -> tempfile::NamedTempFile {
    let line = Capture::from_body(ODD_BODY).to_line() + "\n";
    write_jsonl(line.repeat(count))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_503_is_retried_after_the_time_that_the_receiver_asks() {
    let captures = write_captures(3);
    let (url, count) = start_receiver(&[(503, "1"), (503, "0"), (200, "")]).await;
    let started = Instant::now();
    let (code, summary, _) = replay(captures.path(), &url, &["--concurrency", "1"]);
    assert!(
        code == Some(0) && summary.contains("  200         3\n"),
        "{summary}"
    );
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(count.load(Ordering::SeqCst), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_refusal_is_reported_and_not_retried() {
    let captures = write_captures(3);
    for (answers, status) in [
        (&[(200, ""), (401, ""), (200, "")][..], "401"),
        (&[(200, ""), (301, ""), (204, "")], "204"),
    ] {
        let (url, _) = start_receiver(answers).await;
        let (code, summary, _) = replay(captures.path(), &url, &["--concurrency", "1"]);
        assert_eq!(code, Some(1), "{summary}");
        let line = format!("  {status}         1  first {}:", captures.path().display());
        assert!(summary.contains(&line), "{summary}");
    }
    let (url, _) = start_receiver(&[(401, "")]).await;
    let (_, summary, _) = replay(captures.path(), &url, &[]);
    assert!(summary.contains(":1: because"), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_gives_up_when_its_receiver_is_unreachable() {
    let captures = write_captures(1000);
    let free_address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, summary, stderr) = replay(captures.path(), &format!("http://{free_address}"), &[]);
    assert_eq!(code, Some(1));
    assert!(summary.contains("Connection refused"), "{summary}{stderr}");
    assert!(
        stderr.contains("no answer, trying again") && stderr.contains("given up: nothing after "),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_waits_can_be_interrupted() {
    let captures = write_captures(3);
    for (answers, flags) in [
        (&[(503, "60")][..], ["--concurrency", "1"]),
        (&[(200, "")], ["--rate", "0.01"]),
    ] {
        let (url, count) = start_receiver(answers).await;
        let arguments = ["replay", captures.path().to_str().unwrap(), "--to", &url];
        let child = lockwatch(&[&arguments[..], &flags].concat())
            .env("META_APP_SECRET", APP_SECRET)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("a first callback is sent", async || {
            count.load(Ordering::SeqCst) > 0
        })
        .await;
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let signalled = Instant::now();
        let output = child.wait_with_output().unwrap();
        let elapsed = signalled.elapsed();
        assert_eq!(output.status.code(), Some(1));
        assert!(elapsed < Duration::from_secs(10), "{flags:?}: {elapsed:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.contains("interrupted: nothing after ") && stderr.contains(":1 was sent"),
            "{stderr}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_keeps_to_its_rate() {
    let captures = write_captures(11);
    let (url, count) = start_receiver(&[(200, "")]).await;
    let started = Instant::now();
    let (code, summary, _) = replay(captures.path(), &url, &["--rate", "10/s"]);
    let elapsed = started.elapsed();
    assert_eq!(code, Some(0));
    assert!(elapsed >= Duration::from_secs(1), "{elapsed:?}");
    assert_eq!(count.load(Ordering::SeqCst), 11);
    let (_, after) = summary.split_once("p50 ").unwrap();
    let (median, _) = after.split_once(" ms").unwrap();
    let median_ms: f64 = median.parse().unwrap();
    assert!(
        median_ms >= RECEIVER_LATENCY.as_secs_f64() * 1000.0,
        "{summary}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_prints_the_header_for_the_bytes_of_a_file() {
    let app = TestApp::start().await;
    let file = write_jsonl(ODD_BODY);
    let secret = write_jsonl(format!("{APP_SECRET}\n"));
    let path = file.path().to_str().unwrap();
    let expected = format!("X-Hub-Signature-256: {}\n", sign(APP_SECRET, ODD_BODY));
    let signed = run(lockwatch(&["sign", path]).env(
        "META_APP_SECRET",
        format!("{APP_SECRET},another-secret-of-tests"),
    ));
    assert_eq!(signed, (Some(0), expected.clone(), String::new()));
    let (_, from_file, _) = run(&mut lockwatch(&[
        "sign",
        path,
        "--app-secret-file",
        secret.path().to_str().unwrap(),
    ]));
    assert_eq!(from_file, expected);
    assert_eq!(run(&mut lockwatch(&["sign", path])).0, Some(2), "no secret");
    assert_eq!(
        run(lockwatch(&["sign", "/nowhere"]).env("META_APP_SECRET", APP_SECRET)).0,
        Some(1)
    );
    let (name, value) = expected.trim_end().split_once(": ").unwrap();
    let answer = app
        .unsigned_request(ODD_BODY)
        .header(name, value)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[test]
fn a_replay_without_a_needed_option_is_refused() {
    let file = write_jsonl(ODD_BODY);
    let path = file.path().to_str().unwrap();
    for (arguments, message) in [
        (
            vec!["replay", path],
            "no target is given: use --to URL, --into-database, or --dry-run",
        ),
        (vec!["replay", "--to", "http://127.0.0.1:9"], "PATH"),
        (
            vec!["replay", path, "--to", "ftp://127.0.0.1:9"],
            "starts with http:// or https://",
        ),
        (
            vec!["replay", path, "--to", "127.0.0.1:9"],
            "starts with http:// or https://",
        ),
        (
            vec!["replay", path, "--to", "localhost:9"],
            "starts with http:// or https://",
        ),
        (
            vec!["replay", path, "--to", "http://127.0.0.1:9", "--rate", "-1"],
            "not a number of callbacks a second",
        ),
        (
            vec!["replay", path, "--to", "http://127.0.0.1:9", "--rate", "0"],
            "not a number of callbacks a second",
        ),
        (
            vec![
                "replay",
                path,
                "--to",
                "http://127.0.0.1:9",
                "--into-database",
            ],
            "cannot be used with",
        ),
        (
            vec!["replay", path, "--to", "http://127.0.0.1:9"],
            "META_APP_SECRET is not set: set it to sign callbacks, or use --app-secret-file",
        ),
    ] {
        let (code, stdout, stderr) = run(&mut lockwatch(&arguments));
        assert_eq!(
            (code, stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}

/// Waits for a process to end. Returns its peak memory in KiB.
fn wait_for_peak_memory(mut child: Child) -> i64 {
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line
            .and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
    peak
}

/// A file of captures without failures.
fn write_quiet_captures(count: usize) -> tempfile::NamedTempFile {
    let mut builder = tempfile::Builder::new();
    let file = builder.suffix(".jsonl").tempfile().unwrap();
    let mut writer = BufWriter::new(file);
    for n in 0..count {
        let body = StatusCallback::new()
            .sent(WABA, NUMBER, &format!("wamid.{n}"))
            .into_body();
        writeln!(writer, "{}", Capture::from_body(body).to_line()).unwrap();
    }
    writer.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of posting 110,000 callbacks; .ci/run does it"]
async fn memory_does_not_grow_with_the_number_of_captures() {
    let database = TestDatabase::create().await;
    let serve = Serve::on_database(&database.url, &[]);
    serve.wait_for_log("the database is ready");
    let peak_memory_kib = |captures: usize| {
        let file = write_quiet_captures(captures);
        let path = file.path().to_str().unwrap();
        let child = lockwatch(&["replay", path, "--to", &serve.webhook])
            .env("META_APP_SECRET", APP_SECRET)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_peak_memory(child)
    };
    let (few, many) = (peak_memory_kib(10_000), peak_memory_kib(100_000));
    assert!(
        many < few + 4096,
        "{few} KiB for ten thousand captures, {many} KiB for a hundred thousand"
    );
}

/// The number of processors that wait for a lock in this database.
async fn waiting_processors(app: &TestApp) -> i64 {
    app.count(
        "select count(*) from pg_stat_activity
          where datname = current_database()
            and application_name = 'lockwatch processor'
            and wait_event_type = 'Lock'",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_waits_for_a_busy_database_and_loses_nothing() {
    let app = TestApp::start().await;
    let mut accounts = BTreeMap::new();
    let mut lines = String::new();
    for n in 0..50 {
        let account = format!("10{}", n % 3);
        *accounts.entry(account.clone()).or_insert(0_i64) += 1;
        let body = StatusCallback::new()
            .failed(&account, NUMBER, &format!("wamid.{n}"))
            .into_body();
        lines += &(Capture::from_body(body).to_line() + "\n");
    }
    let file = write_jsonl(lines);
    let mut lock = PgConnection::connect(&app.database.url).await.unwrap();
    sqlx::raw_sql("begin; lock table failed_deliveries in access exclusive mode")
        .execute(&mut lock)
        .await
        .unwrap();
    let child = lockwatch(&["replay", "--into-database", file.path().to_str().unwrap()])
        .env("DATABASE_URL", &app.database.url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    app.eventually("all of them wait in the inbox", async || {
        app.count("select count(*) from inbox").await == 50
    })
    .await;
    app.eventually("a processor waits for the table", async || {
        waiting_processors(&app).await > 0
    })
    .await;
    app.eventually("the processor gives up and retries", async || {
        waiting_processors(&app).await == 0
    })
    .await;
    assert_eq!(app.count("select count(*) from inbox").await, 50);
    sqlx::raw_sql("rollback").execute(&mut lock).await.unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let counts: BTreeMap<String, i64> = app
        .incidents()
        .await
        .into_iter()
        .map(|incident| (incident.waba_id.to_string(), incident.failure_count))
        .collect();
    assert_eq!(counts, accounts);
}
