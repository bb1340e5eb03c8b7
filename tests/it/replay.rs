//! Captures leave as files and come back: signed anew or as they were, over HTTP or without.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lockwatch::meta::capture::Capture;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{HEADER, Signature, Verifier, sign};
use rustix::process::Signal;
use secrecy::SecretString;
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::database::TestDatabase;
use crate::support::process::{Serve, lockwatch};
use crate::support::{APP_SECRET, NUMBER, TestApp, WABA, eventually};

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

/// Exports with these flags.
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

fn write(text: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new()
        .suffix(".jsonl")
        .tempfile()
        .unwrap();
    file.write_all(text.as_ref()).unwrap();
    file
}

/// What was recorded, except ids, and times of receipt where they cannot be the same.
async fn rows(database: &str, with_receipt: bool) -> Vec<String> {
    let mut db = PgConnection::connect(database).await.unwrap();
    let receipt = if with_receipt {
        ""
    } else {
        " - 'received_at' - 'last_received_at'"
    };
    let sql = format!(
        "select line from (
           select 'delivery ' || (to_jsonb(d) - 'id' - 'incident_id' - 'capture_id'{receipt} || jsonb_build_object(
                    'incident', i.opened_at, 'capture', encode(c.digest, 'hex')))::text as line
             from failed_deliveries d
             join incidents i on i.id = d.incident_id
             left join captures c on c.id = d.capture_id
           union all
           select 'incident ' || jsonb_build_array(waba_id, opened_at, last_failure_at, failure_count, resolved_at)::text
             from incidents
           union all
           select 'number ' || jsonb_build_array(waba_id, phone_number_id, display_phone_number, first_failure_at,
                                                 last_failure_at, failure_count)::text
             from affected_numbers
           union all
           select 'capture ' || (to_jsonb(c) - 'id' - 'times_received' - 'app_secret' - 'last_received_at'{receipt})::text
             from captures c
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

#[tokio::test(flavor = "multi_thread")]
async fn what_the_demo_recorded_comes_back_the_same_over_http_and_without() {
    let mut demo = lockwatch(&["demo"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(demo.stdout.take().unwrap()));
    let line = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.starts_with("psql "))
        .unwrap();
    let url = line.split('\'').nth(1).unwrap().to_owned();
    let captures = write(export(&url, &[]));
    let (exact, without_receipt) = (rows(&url, true).await, rows(&url, false).await);
    rustix::process::kill_process(rustix::process::Pid::from_child(&demo), Signal::INT).unwrap();
    lines.for_each(drop);
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    assert_eq!(
        exact
            .iter()
            .filter(|row| row.starts_with("delivery"))
            .count(),
        19
    );

    let database = TestDatabase::create().await;
    let serve = Serve::on_database(&database.url, &[]);
    serve.logged("the database is ready");
    let (code, summary, stderr) = replay(captures.path(), &serve.webhook, &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{summary}");
    assert!(
        summary.starts_with("5 callbacks replayed in ") && summary.contains("\n  200         5\n"),
        "{summary}"
    );
    // The demo's secret is another one, and so is the signature that was kept.
    let signatures = |rows: &[String]| {
        rows.iter()
            .map(|row| row.split("\"signature\"").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        signatures(&rows(&database.url, false).await),
        signatures(&without_receipt)
    );

    let rebuilt = TestDatabase::create().await;
    let into_database = || {
        let arguments = [
            "replay",
            "--into-database",
            captures.path().to_str().unwrap(),
        ];
        run(lockwatch(&arguments).env("DATABASE_URL", &rebuilt.url))
    };
    let (code, summary, stderr) = into_database();
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{summary}");
    assert!(summary.contains("recorded         5"), "{summary}");
    assert_eq!(
        rows(&rebuilt.url, true).await,
        exact,
        "times of receipt and signatures included"
    );
    assert_eq!(into_database().0, Some(0));
    assert_eq!(
        rows(&rebuilt.url, true).await,
        exact,
        "and again changes nothing"
    );
}

/// Escapes as Meta writes them, odd white space, and a newline at the end.
const ODD_BODY: &[u8] = br#"{ "object":"whatsapp_business_account",	"entry" : [{"id":"102290129340398","changes":[{"field":"messages","value":{"metadata":{"display_phone_number":"15550783881","phone_number_id":"106540352242922"},
  "statuses":[{"id":"wamid.odd","status":"failed","timestamp":"1790000000","recipient_id":"16505551234","biz_opaque_callback_data":"\u00e4 \/ \ud83d\udc4d","errors":[{"code":131031,"title":"Business Account locked"}]}]}}]}]}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_body_survives_bit_for_bit_and_its_own_signature_still_fits() {
    let app = TestApp::start().await;
    app.deliver(ODD_BODY).await;
    let file = write(export(&app.database.url, &[]));
    let capture = Capture::from_line(&fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(capture.body, ODD_BODY);
    let signature = Signature::parse(capture.signature().unwrap().as_bytes()).unwrap();
    assert_eq!(
        Verifier::new(&[SecretString::from(APP_SECRET)]).verify(&capture.body, &signature),
        Some(0)
    );

    let other = TestApp::start().await;
    let flags = ["--original-signature"];
    let arguments = [
        "replay",
        file.path().to_str().unwrap(),
        "--to",
        &other.url("/"),
    ];
    let (code, summary, stderr) = run(&mut lockwatch(&[&arguments[..], &flags].concat()));
    assert_eq!(
        (code, stderr.as_str()),
        (Some(0), ""),
        "no secret is needed: {summary}"
    );
    let kept: Vec<u8> = sqlx::query_scalar("select body from captures")
        .fetch_one(&other.db)
        .await
        .unwrap();
    assert_eq!(kept, ODD_BODY);
    let data = other
        .text("select callback_data from failed_deliveries")
        .await;
    assert_eq!(data.as_deref(), Some("ä / 👍"));

    // Without HTTP the original signature is verified, and a wrong one is told.
    let rebuilt = TestDatabase::create().await;
    let verified = |secret| {
        let arguments = [
            "replay",
            "--into-database",
            "--original-signature",
            file.path().to_str().unwrap(),
        ];
        run(lockwatch(&arguments).envs([
            ("DATABASE_URL", rebuilt.url.as_str()),
            ("META_APP_SECRET", secret),
        ]))
    };
    let (code, summary, _) = verified("another-secret-of-the-tests");
    assert_eq!(code, Some(1));
    assert!(
        summary.contains("refused         1  first") && summary.contains(":1: bad signature"),
        "{summary}"
    );
    assert_eq!(verified(APP_SECRET).0, Some(0));
    assert_eq!(
        rows(&rebuilt.url, true).await,
        rows(&app.database.url, true).await
    );
}

/// A text with every piece of base64 in it decoded, at every offset.
fn everything_in(text: &str) -> String {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_redacted_export_names_no_recipient_and_repeats_what_was_repeated() {
    let app = TestApp::start().await;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")).unwrap()
    {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            app.deliver(&fs::read(path).unwrap()).await;
        }
    }
    // One failure again, in another batch.
    let repeated: Vec<u8> = sqlx::query_scalar("select body from captures order by id limit 1")
        .fetch_one(&app.db)
        .await
        .unwrap();
    let repeated = String::from_utf8(repeated)
        .unwrap()
        .replacen("{\"object\"", "{ \"object\"", 1);
    app.deliver(repeated.as_bytes()).await;

    let text = export(&app.database.url, &["--redact"]);
    assert_eq!(
        text,
        export(&app.database.url, &["--redact"]),
        "the same pseudonyms every time"
    );
    let bodies: Vec<String> = text
        .lines()
        .map(|line| {
            String::from_utf8(Capture::from_line(line.as_bytes()).unwrap().body.to_vec()).unwrap()
        })
        .collect();
    let everything = everything_in(&bodies.join("\n"));
    let recipients: Vec<String> = sqlx::query_scalar(
        "select distinct recipient from failed_deliveries d, unnest(array[d.recipient_id, d.participant_id]) recipient
          where recipient is not null",
    )
    .fetch_all(&app.db)
    .await
    .unwrap();
    assert!(recipients.len() > 20);
    for recipient in recipients {
        let digits: String = recipient.chars().filter(char::is_ascii_digit).collect();
        let name = if digits.len() * 2 > recipient.len() {
            digits
        } else {
            recipient
        };
        assert!(!everything.contains(&name), "{name} is left");
    }
    assert!(
        !text.contains(HEADER),
        "a signature that does not fit is left out"
    );

    let other = TestApp::start().await;
    let file = write(&text);
    for _ in 0..2 {
        let (code, summary, _) =
            replay(file.path(), &other.url("/webhook"), &["--concurrency", "4"]);
        assert_eq!(code, Some(0), "{summary}");
    }
    let counts = "select string_agg(waba_id || ' ' || failure_count, ', ' order by waba_id, failure_count) from incidents";
    assert_eq!(other.text(counts).await, app.text(counts).await);
    let failures = "select count(*) from failed_deliveries";
    assert_eq!(other.count(failures).await, app.count(failures).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_filtered_by_time_account_incident_and_quarantine() {
    let app = TestApp::start().await;
    let both = StatusCallback::new()
        .failed(WABA, NUMBER, "1")
        .failed("1033", "2077", "2")
        .into_body();
    app.deliver(&both).await;
    app.deliver(
        &StatusCallback::new()
            .failed("1033", "2077", "3")
            .into_body(),
    )
    .await;
    app.deliver(br#"{"entry":[{"id":"77","changes":[131031]}]}"#)
        .await;
    // Retention is at work: nothing is older than it allows.
    app.execute("update captures set received_at = date_trunc('day', now(), 'UTC') - interval '36 hours' where failure_count = 2").await;
    let noon = OffsetDateTime::now_utc().date().midnight().assume_utc() - time::Duration::hours(36);
    let time = |after: i64| {
        (noon + time::Duration::seconds(after))
            .format(&Rfc3339)
            .unwrap()
    };
    let day = |after: i64| (noon.date() + time::Duration::days(after)).to_string();
    let incident = app
        .incidents()
        .await
        .into_iter()
        .find(|incident| incident.waba_id == WABA)
        .unwrap()
        .id
        .to_string();
    let count = |flags: &[&str]| export(&app.database.url, flags).lines().count();
    for (flags, expected) in [
        (&[][..], 3),
        (&["--since", &day(1)], 2),
        (&["--until", &time(1)], 1),
        (&["--since", &time(0), "--until", &day(1)], 1),
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
        assert_eq!(count(flags), expected, "{flags:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a/b");
    let (code, stdout, stderr) =
        run(
            lockwatch(&["captures", "export", "--out", out.to_str().unwrap()])
                .env("DATABASE_URL", &app.database.url),
        );
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

    let list = |flags: &[&str]| {
        run(lockwatch(&[&["captures", "list"], flags].concat())
            .env("DATABASE_URL", &app.database.url))
        .1
    };
    let listed: serde_json::Value = serde_json::from_str(&list(&["--json"])).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert_eq!(
        (
            &listed[2]["waba_id"],
            &listed[2]["failure_count"],
            &listed[2]["times_received"]
        ),
        (&WABA.into(), &2.into(), &2.into())
    );
    assert!(
        list(&["--quarantined"])
            .lines()
            .nth(1)
            .unwrap()
            .contains("yes")
    );
    for (flags, code, says) in [
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
        let arguments = [&["captures", "list"], flags].concat();
        let (exit, _, stderr) = run(lockwatch(&arguments).env("DATABASE_URL", &app.database.url));
        assert!(
            exit == Some(code) && stderr.contains(says),
            "{flags:?}: {stderr}"
        );
    }
    app.execute("update captures set received_at = date_trunc('second', received_at) where failure_count < 2").await;
    let shown = list(&["--limit", "1"]).lines().nth(1).unwrap().to_owned();
    let at = shown
        .split_whitespace()
        .skip(1)
        .take(3)
        .collect::<Vec<_>>()
        .join(" ");
    assert!(
        count(&["--since", &at]) >= 1,
        "times are taken as they are shown: {at}"
    );
    assert!(
        !list(&["--until", &at]).contains(&at),
        "the time itself is not before it: {at}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_or_line_is_named_and_the_others_go_on() {
    let app = TestApp::start().await;
    let folder = tempfile::tempdir().unwrap();
    let body = |id: &str| StatusCallback::new().failed(WABA, NUMBER, id).into_body();
    let line = |id: &str| Capture::from_body(body(id)).to_line();
    let put = |name: &str, text: &[u8]| fs::write(folder.path().join(name), text).unwrap();
    put(
        "a.jsonl",
        format!(
            "{}\nnot a capture\n\n{}\r\n{{\"v\":1}}\n{}",
            line("1"),
            line("2"),
            line("3")
        )
        .as_bytes(),
    );
    let pretty: serde_json::Value = serde_json::from_slice(&body("4")).unwrap();
    put("b.json", format!("{pretty:#}\n").as_bytes());
    put("c.json", b"{\n  \"entry\": [\n}\n");
    put("d.json", b"");
    put("e.json", b"{\"hello\": 1}");
    put("f.log", b"not looked at");
    fs::create_dir(folder.path().join("g")).unwrap();
    put("g/h.json", &[body("5"), b"\n".to_vec(), body("6")].concat());
    let (code, summary, stderr) = replay(folder.path(), &app.url("/webhook"), &[]);
    assert_eq!(code, Some(1));
    let at = |name: &str| folder.path().join(name).display().to_string();
    let expected = [
        format!(
            "lockwatch: {}:2: not JSON: expected ident (column 2)",
            at("a.jsonl")
        ),
        format!(
            "lockwatch: {}:5: a capture that cannot be read: it needs either `body` or `body_base64`",
            at("a.jsonl")
        ),
        format!(
            "lockwatch: {}:3: not JSON: expected value (column 1)",
            at("c.json")
        ),
        format!("lockwatch: {}: empty", at("d.json")),
        format!(
            "lockwatch: {}:1: neither a capture (an object with `v`) nor a callback (an object with `entry`)",
            at("e.json")
        ),
        "lockwatch: 5 could not be read, see above".to_owned(),
    ];
    assert_eq!(stderr.lines().collect::<Vec<_>>(), expected);
    assert!(summary.contains("  200         6\n"), "{summary}");
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 6);
    let pasted: Vec<u8> = sqlx::query_scalar(
        "select c.body from captures c join failed_deliveries d on d.capture_id = c.id where message_id = '4'",
    )
    .fetch_one(&app.db)
    .await
    .unwrap();
    assert_eq!(
        pasted,
        fs::read(folder.path().join("b.json")).unwrap(),
        "a bare body is every byte of its file"
    );

    let (code, summary, stderr) = replay(&folder.path().join("absent"), &app.url("/webhook"), &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("absent: No such file"), "{stderr}{summary}");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(
        replay(&empty, &app.url("/webhook"), &[])
            .2
            .contains("holds no .json or .jsonl file")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_is_read_and_a_dry_run_sends_nothing() {
    let app = TestApp::start().await;
    let lines = format!(
        "{}\n{}\n",
        Capture::from_body(ODD_BODY).to_line(),
        r#"{"entry":[]}"#
    );
    let pipe = |text: &[u8], flags: &[&str]| {
        let mut child = lockwatch(&[&["replay", "-"], flags].concat())
            .env("META_APP_SECRET", APP_SECRET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text).unwrap();
        let output = child.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, summary) = pipe(lines.as_bytes(), &["--dry-run"]);
    assert_eq!(code, Some(0));
    assert_eq!(
        summary,
        "2 callbacks read, nothing sent\n  lockouts                        1\n  nothing about a lockout         1\n"
    );
    assert_eq!(app.count("select count(*) from captures").await, 0);
    let webhook = app.url("/webhook");
    assert_eq!(pipe(lines.as_bytes(), &["--to", &webhook]).0, Some(0));
    assert_eq!(
        pipe(ODD_BODY, &["--to", &webhook]).0,
        Some(0),
        "a bare body, too"
    );
    let seen = app.count("select times_received from captures").await;
    assert_eq!(
        (
            seen,
            app.count("select count(*) from failed_deliveries").await
        ),
        (2, 1)
    );
}

/// What the receiver takes to answer.
const LATENCY: Duration = Duration::from_millis(30);

/// A receiver that answers with these, the last one for ever, and counts.
async fn receiver(answers: &'static [(u16, &'static str)]) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let answer = move || {
        let (status, retry_after) = answers[counting
            .fetch_add(1, Ordering::SeqCst)
            .min(answers.len() - 1)];
        let headers = [
            ("retry-after", retry_after),
            ("location", "http://127.0.0.1:9/"),
        ];
        async move {
            tokio::time::sleep(LATENCY).await;
            (StatusCode::from_u16(status).unwrap(), headers, "because")
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/webhook", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/webhook", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_asks_for_patience_gets_it_and_any_other_refusal_is_told() {
    let captures = write(format!("{}\n", Capture::from_body(ODD_BODY).to_line()).repeat(3));
    let (url, count) = receiver(&[(503, "1"), (503, "0"), (200, "")]).await;
    let started = Instant::now();
    let (code, summary, _) = replay(captures.path(), &url, &["--concurrency", "1"]);
    assert!(
        code == Some(0) && summary.contains("  200         3\n"),
        "{summary}"
    );
    assert!(started.elapsed() >= Duration::from_secs(1) && count.load(Ordering::SeqCst) == 5);

    for (answers, status) in [
        (&[(200, ""), (401, ""), (200, "")][..], "401"),
        (&[(200, ""), (301, ""), (204, "")], "204"),
    ] {
        let (url, _) = receiver(answers).await;
        let (code, summary, _) = replay(captures.path(), &url, &["--concurrency", "1"]);
        assert_eq!(code, Some(1), "{summary}");
        assert!(
            summary.contains(&format!(
                "  {status}         1  first {}:",
                captures.path().display()
            )),
            "{summary}"
        );
    }
    let (url, _) = receiver(&[(401, "")]).await;
    assert!(replay(captures.path(), &url, &[]).1.contains(":1: because"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_not_there_is_given_up() {
    let captures = write(format!("{}\n", Capture::from_body(ODD_BODY).to_line()).repeat(1000));
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (code, summary, stderr) = replay(captures.path(), &format!("http://{free}"), &[]);
    assert_eq!(code, Some(1));
    assert!(summary.contains("Connection refused"), "{summary}{stderr}");
    assert!(
        stderr.contains("no answer, trying again")
            && stderr.contains("given up: what comes after "),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_waits_for_its_receiver_can_be_interrupted() {
    let captures = write(format!("{}\n", Capture::from_body(ODD_BODY).to_line()).repeat(3));
    for (answers, flags) in [
        (&[(503, "60")][..], ["--concurrency", "1"]),
        (&[(200, "")], ["--rate", "0.01"]),
    ] {
        let (url, count) = receiver(answers).await;
        let mut child = lockwatch(
            &[
                &["replay", captures.path().to_str().unwrap(), "--to", &url],
                &flags[..],
            ]
            .concat(),
        )
        .env("META_APP_SECRET", APP_SECRET)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        eventually("a first callback", async || {
            count.load(Ordering::SeqCst) > 0
        })
        .await;
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::INT)
            .unwrap();
        let told = Instant::now();
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert!(
            told.elapsed() < Duration::from_secs(10),
            "{flags:?}: {:?}",
            told.elapsed()
        );
        assert!(
            stderr.contains("interrupted: what comes after ") && stderr.contains(":1 was not sent"),
            "{stderr}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept() {
    let captures = write(format!("{}\n", Capture::from_body(ODD_BODY).to_line()).repeat(11));
    let (url, count) = receiver(&[(200, "")]).await;
    let started = Instant::now();
    let (code, summary, _) = replay(captures.path(), &url, &["--rate", "10/s"]);
    assert_eq!(code, Some(0));
    let median: f64 = summary
        .split("p50 ")
        .nth(1)
        .unwrap()
        .split(" ms")
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(median >= LATENCY.as_secs_f64() * 1000.0, "{summary}");
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(count.load(Ordering::SeqCst), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn sign_prints_the_header_for_the_bytes_of_a_file() {
    let app = TestApp::start().await;
    let file = write(ODD_BODY);
    let secret = write(format!("{APP_SECRET}\n"));
    let path = file.path().to_str().unwrap();
    let expected = format!("X-Hub-Signature-256: {}\n", sign(APP_SECRET, ODD_BODY));
    let signed = run(lockwatch(&["sign", path]).env(
        "META_APP_SECRET",
        format!("{APP_SECRET},another-secret-of-tests"),
    ));
    assert_eq!(signed, (Some(0), expected.clone(), String::new()));
    let given = run(&mut lockwatch(&[
        "sign",
        path,
        "--app-secret-file",
        secret.path().to_str().unwrap(),
    ]));
    assert_eq!(given.1, expected);
    assert_eq!(run(&mut lockwatch(&["sign", path])).0, Some(2), "no secret");
    assert_eq!(
        run(lockwatch(&["sign", "/nowhere"]).env("META_APP_SECRET", APP_SECRET)).0,
        Some(1)
    );
    let (name, value) = expected.trim_end().split_once(": ").unwrap();
    let answer = app
        .unsigned(ODD_BODY)
        .header(name, value)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
}

#[test]
fn what_replay_needs_is_asked_for_first() {
    let file = write(ODD_BODY);
    let path = file.path().to_str().unwrap();
    for (arguments, says) in [
        (
            vec!["replay", path],
            "say where to: --to URL, --into-database, or --dry-run",
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
            "META_APP_SECRET is not set: to sign with, give it, or --app-secret-file",
        ),
    ] {
        let (code, stdout, stderr) = run(&mut lockwatch(&arguments));
        assert_eq!(
            (code, stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}: {stderr}"
        );
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
}

/// The most memory a process has had until its end, in KiB.
fn peak_memory_of(mut child: std::process::Child) -> i64 {
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of posting 110,000 callbacks; .ci/run does it"]
async fn a_hundred_thousand_captures_take_no_more_memory_than_ten_thousand() {
    let database = TestDatabase::create().await;
    let serve = Serve::on_database(&database.url, &[]);
    serve.logged("the database is ready");
    let peak = |captures: usize| {
        let mut file = std::io::BufWriter::new(
            tempfile::Builder::new()
                .suffix(".jsonl")
                .tempfile()
                .unwrap(),
        );
        for n in 0..captures {
            let body = StatusCallback::new()
                .sent(WABA, NUMBER, &format!("wamid.{n}"))
                .into_body();
            writeln!(file, "{}", Capture::from_body(body).to_line()).unwrap();
        }
        let file = file.into_inner().unwrap();
        let arguments = [
            "replay",
            file.path().to_str().unwrap(),
            "--to",
            &serve.webhook,
        ];
        let child = lockwatch(&arguments)
            .env("META_APP_SECRET", APP_SECRET)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        peak_memory_of(child)
    };
    let (few, many) = (peak(10_000), peak(100_000));
    assert!(
        many < few + 4096,
        "{few} KiB for ten thousand, {many} KiB for a hundred thousand"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_waits_for_a_database_that_is_busy_and_loses_nothing() {
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
    let file = write(lines);
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
    app.eventually("the recorder waits", async || {
        app.waiting_recorders().await > 0
    })
    .await;
    app.eventually("and tries again", async || {
        app.waiting_recorders().await == 0
    })
    .await;
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
