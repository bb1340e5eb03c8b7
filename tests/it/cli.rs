//! The program from outside: its words, exit codes and streams.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lockwatch::lockout::cause::LockoutCause;
use lockwatch::meta::signature::{HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::process::{Serve, lockwatch, postgres_programs, write_script};
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, VERIFY_TOKEN, WABA, client, eventually, one_failure,
};

fn output(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn every_command_explains_itself() {
    for arguments in [
        vec!["--help"],
        vec!["serve", "--help"],
        vec!["demo", "--help"],
        vec!["migrate", "--help"],
        vec!["healthcheck", "--help"],
        vec!["incidents", "list", "--help"],
        vec!["incidents", "show", "--help"],
        vec!["incidents", "resolve", "--help"],
        vec!["completions", "--help"],
        vec!["openapi", "--help"],
        vec!["check", "--help"],
    ] {
        let (code, stdout, stderr) = output(&mut lockwatch(&arguments));
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(stdout.contains("Usage: lockwatch"), "{arguments:?}");
        assert!(
            stdout.lines().all(|line| line.chars().count() <= 100),
            "{arguments:?}"
        );
    }
}

#[test]
fn wrong_usage_and_configuration_is_one_clear_line_and_exit_2() {
    let secrets = [
        ("META_APP_SECRET", APP_SECRET),
        ("META_VERIFY_TOKEN", VERIFY_TOKEN),
    ];
    let unset = |name: &str| {
        secrets
            .into_iter()
            .filter(|(n, _)| *n != name)
            .collect::<Vec<_>>()
    };
    let with = |name, value| [&secrets[..], &[(name, value)]].concat();
    for (settings, says) in [
        (unset("META_APP_SECRET"), "META_APP_SECRET is not set"),
        (unset("META_VERIFY_TOKEN"), "META_VERIFY_TOKEN is not set"),
        (
            with("META_APP_SECRET", ""),
            "META_APP_SECRET is set, but empty",
        ),
        (
            with("META_APP_SECRET", "short"),
            "META_APP_SECRET number 1 has fewer than 16",
        ),
        (
            with("META_APP_SECRET", "long-enough-for-a-secret,"),
            "META_APP_SECRET number 2 has fewer than 16",
        ),
        (
            with("META_APP_SECRET_FILE", "/nonexistent"),
            "META_APP_SECRET and META_APP_SECRET_FILE are both set",
        ),
        (
            with("META_ACCESS_TOKEN", ""),
            "META_ACCESS_TOKEN is set, but empty",
        ),
        (
            with("META_ACCESS_TOKEN_FILE", "/nonexistent"),
            "META_ACCESS_TOKEN_FILE /nonexistent",
        ),
        (
            with("META_ACCESS_TOKENS_FILE", "/nonexistent"),
            "META_ACCESS_TOKENS_FILE /nonexistent",
        ),
        (
            with("META_GRAPH_URL", "http://graph.facebook.com"),
            "META_GRAPH_URL must be https",
        ),
        (
            with("META_GRAPH_VERSION", "25"),
            "META_GRAPH_VERSION must look like",
        ),
        (
            with("LOCKWATCH_LISTEN", "8080"),
            "LOCKWATCH_LISTEN: invalid value '8080' for '--listen <IP:PORT>'",
        ),
        (
            with("LOCKWATCH_LISTEN", ""),
            "LOCKWATCH_LISTEN: invalid value '' for '--listen",
        ),
        (
            with("LOCKWATCH_ADMIN_LISTEN", "0.0.0.0:0"),
            "set LOCKWATCH_ADMIN_TOKEN as well",
        ),
        (
            with("LOCKWATCH_LOG_FORMAT", "xml"),
            "invalid value 'xml' for '--log-format",
        ),
        (
            with("DATABASE_URL", "mysql://root:hunter2@localhost"),
            "not a Postgres URL",
        ),
        (
            with("DATABASE_URL", ""),
            "DATABASE_URL: a value is required",
        ),
        (
            with("RUST_LOG", "loud"),
            "RUST_LOG \"loud\" is neither a level",
        ),
        (
            with("RUST_LOG", "lockwatch=debug,WARNING"),
            "is neither a level",
        ),
    ] {
        let (code, stdout, stderr) = output(lockwatch(&["serve"]).envs(settings.clone()));
        assert_eq!((code, stdout.as_str()), (2, ""), "{settings:?}: {stderr}");
        assert!(stderr.contains(says), "{settings:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
    assert_eq!(output(&mut lockwatch(&["incidents", "show", "x"])).0, 2);
    assert_eq!(output(&mut lockwatch(&["serves"])).0, 2);
    assert_eq!(output(&mut lockwatch(&[])).0, 2);
}

#[test]
fn without_a_database_a_command_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [vec!["incidents", "list"], vec!["migrate"]] {
        let (code, _, stderr) =
            output(lockwatch(&arguments).env("LOCKWATCH_DATA_DIR", folder.path()));
        assert_eq!(code, 1);
        assert!(
            stderr.contains("DATABASE_URL is not set, and no lockwatch serve runs on"),
            "{stderr}"
        );
    }
    let away = lockwatch(&["incidents", "list"])
        .env("DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/x")
        .output()
        .unwrap();
    let stderr = String::from_utf8(away.stderr).unwrap();
    assert!(
        away.status.code() == Some(1)
            && stderr.contains("Connection refused")
            && !stderr.contains("hunter2"),
        "{stderr}"
    );
}

/// What it prints on a terminal of 80 columns, without the colours.
#[cfg(target_os = "linux")]
fn on_a_narrow_terminal(arguments: &str, url: &str) -> String {
    let program = env!("CARGO_BIN_EXE_lockwatch");
    let command = format!("stty cols 80 && exec '{program}' {arguments}");
    let mut script = Command::new("script");
    let (code, shown, _) = output(
        script
            .args(["-qec", &command, "/dev/null"])
            .env("DATABASE_URL", url),
    );
    assert_eq!(code, 0, "{shown}");
    anstream::adapter::strip_str(&shown).to_string()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn tables_and_the_timeline_fit_a_narrow_terminal() {
    let app = TestApp::start().await;
    app.simulator.script(NUMBER, [Scenario::Payment]);
    app.fail("a").await;
    app.caused("payment").await;
    app.execute("update incidents set cause = 'business_verification', failure_count = 1234567")
        .await;
    let id = app.incident().await.id;
    for arguments in ["incidents list".to_owned(), format!("incidents show {id}")] {
        let shown = on_a_narrow_terminal(&arguments, &app.database.url);
        for line in shown.lines() {
            assert!(line.trim_end().chars().count() <= 80, "{line:?} in {shown}");
        }
        let row = shown
            .lines()
            .find(|line| line.contains("business_verification"))
            .unwrap();
        assert!(
            arguments.contains("show") || row.contains(WABA) && row.contains("1234567"),
            "in one line: {shown}"
        );
    }
    let shown = on_a_narrow_terminal(&format!("incidents show {id}"), &app.database.url);
    for part in [
        "failures",
        "█",
        "o opened, c cause recorded",
        "█ BLOCKED",
        "a column is 1 min",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn completions_are_printed_for_the_shells_there_are() {
    for (shell, part) in [
        ("bash", "complete -F _lockwatch"),
        ("zsh", "#compdef lockwatch"),
        ("fish", "complete -c lockwatch"),
    ] {
        let (code, script, _) = output(&mut lockwatch(&["completions", shell]));
        assert!(
            code == 0 && script.contains(part) && script.contains("incidents"),
            "{shell}"
        );
    }
    assert_eq!(output(&mut lockwatch(&["completions", "cmd"])).0, 2);
}

#[tokio::test]
async fn incidents_are_listed_shown_and_resolved() {
    let app = TestApp::start().await;
    app.simulator.script(NUMBER, [Scenario::Payment]);
    app.fail("wamid.\u{1b}[31m").await;
    app.caused("payment").await;
    let id = app.incident().await.id.to_string();
    let run =
        |arguments: &[&str]| output(lockwatch(arguments).env("DATABASE_URL", &app.database.url));

    let (code, table, _) = run(&["incidents", "list"]);
    assert_eq!(code, 0);
    assert!(
        table.contains("102290129340398") && table.contains("payment") && table.contains("open"),
        "{table}"
    );
    let (_, json, _) = run(&["incidents", "list", "--json", "--state", "open"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&listed[0]["cause"], &listed[0]["failure_count"]),
        (&"payment".into(), &1.into())
    );

    let (_, shown, _) = run(&["incidents", "show", &id]);
    for part in [
        "WABA 102290129340398 is BLOCKED (141006)",
        "Next steps",
        NUMBER,
        "15550783881",
        "answered",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let (_, json, _) = run(&["incidents", "show", &id, "--json"]);
    let shown: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(shown["affected_numbers"][0]["phone_number_id"], NUMBER);
    assert_eq!(
        shown["affected_numbers"][0]["latest_check"]["can_send_message"],
        "BLOCKED"
    );
    assert!(shown["next_steps"].as_array().unwrap().len() > 1);

    assert_eq!(run(&["incidents", "resolve", &id, "--note", "paid"]).0, 0);
    let incident = app.incident().await;
    assert_eq!(
        (
            incident.resolution.as_ref().map(|word| word.as_str()),
            incident.resolution_note.as_deref()
        ),
        (Some("manual"), Some("paid"))
    );
    let (code, _, stderr) = run(&["incidents", "resolve", &id]);
    assert_eq!(
        (code, stderr),
        (1, format!("lockwatch: incident {id} was resolved before\n"))
    );
    assert_eq!(run(&["incidents", "show", "999999"]).0, 1);
    assert_eq!(
        run(&["incidents", "list", "--state", "open", "--json"])
            .1
            .trim(),
        "[]"
    );
    let (_, csv, _) = run(&[
        "incidents",
        "list",
        "--csv",
        "--cause",
        "payment",
        "--since",
        "1h",
    ]);
    assert!(
        csv.starts_with("id,waba_id,") && csv.contains(",manual,paid,"),
        "{csv}"
    );
    assert_eq!(
        run(&["incidents", "list", "--until", "1h"]),
        (0, String::new(), "No such incidents.\n".to_owned())
    );
    assert_eq!(
        run(&["incidents", "list", "--since", "1h", "--until", "2h"]).0,
        2
    );
    assert_eq!(run(&["incidents", "list", "--json", "--csv"]).0, 2);
    assert_eq!(run(&["migrate"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_meta_now() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let check = |scenario, arguments: &[&str]| {
        simulator.script(NUMBER, [scenario]);
        let mut command = lockwatch(&[&["check", NUMBER], arguments].concat());
        let settings = [
            ("META_GRAPH_URL", simulator.url()),
            ("META_APP_SECRET", APP_SECRET.into()),
            ("META_ACCESS_TOKEN", ACCESS_TOKEN.into()),
        ];
        output(command.envs(settings))
    };
    let (code, stdout, _) = check(Scenario::Payment, &[]);
    assert_eq!(code, 0);
    for part in ["WABA", "BLOCKED", "(141006)", "payment", "Meta's advice"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, _) = check(Scenario::Payment, &["--json"]);
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, &json["cause"], &json["can_send_message"]),
        (0, &"payment".into(), &"BLOCKED".into())
    );
    let (code, stdout, _) = check(Scenario::ExpiredToken, &[]);
    assert_eq!(code, 0, "a refusal is an answer");
    assert!(
        stdout.contains(LockoutCause::LookupDenied.as_str()),
        "{stdout}"
    );
    let (code, stdout, stderr) = check(Scenario::Garbage, &[]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("not a JSON object"), "{stderr}");
    let unset = output(lockwatch(&["check", NUMBER]).env("META_APP_SECRET", APP_SECRET));
    assert!(
        unset.0 == 2 && unset.2.contains("META_ACCESS_TOKEN is not set"),
        "{unset:?}"
    );
}

#[test]
fn the_demo_finds_six_causes() {
    let (code, stdout, stderr) = output(&mut lockwatch(&["demo", "--exit"]));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let causes = [
        "payment",
        "policy_violation",
        "business_verification",
        "other_restriction",
        "unreported",
        "lookup_denied",
    ];
    for cause in causes {
        assert!(stdout.contains(cause), "{cause}: {stdout}");
    }
    assert!(
        stdout.lines().all(|line| line.chars().count() <= 120),
        "{stdout}"
    );
    assert!(!stdout.contains('\u{1b}'), "no colours without a terminal");
}

#[tokio::test]
async fn serve_starts_with_two_secrets_tells_where_data_lives_and_stops_politely() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Serve::on_folder(folder.path(), &[]);
    serve.logged("the database is ready");
    let address = serve
        .webhook
        .trim_start_matches("http://")
        .trim_end_matches("/webhook")
        .to_owned();
    let admin = serve.admin.trim_start_matches("http://").to_owned();
    for arguments in [
        vec!["healthcheck", "--listen", &address],
        vec!["healthcheck", "--ready", "--admin-listen", &admin],
    ] {
        assert_eq!(output(&mut lockwatch(&arguments)).0, 0, "{arguments:?}");
    }
    let data = [("LOCKWATCH_DATA_DIR", folder.path())];
    assert_eq!(output(lockwatch(&["incidents", "list"]).envs(data)).0, 0);
    let second = lockwatch(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ])
    .envs([
        ("META_APP_SECRET", APP_SECRET),
        ("META_VERIFY_TOKEN", VERIFY_TOKEN),
    ])
    .envs(data)
    .output()
    .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8(second.stderr)
            .unwrap()
            .contains("another lockwatch is running on")
    );

    serve.signal(Signal::INT);
    assert_eq!(serve.wait().code(), Some(0));
    assert_ne!(
        output(&mut lockwatch(&["healthcheck", "--listen", &address])).0,
        0
    );
}

#[test]
fn the_users_settings_for_another_postgres_do_not_reach_the_embedded_one() {
    let settings = [
        ("PGPORT", "5433"),
        ("PGHOST", "/nonexistent"),
        ("PGSSLMODE", "require"),
        ("PGUSER", "somebody"),
    ];
    let (code, stdout, stderr) = output(lockwatch(&["demo", "--exit"]).envs(settings));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let app = TestApp::start().await;
    let free = || {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string()
    };
    let (address, admin) = (free(), free());
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let mut child = lockwatch(&["serve", "--listen", &address, "--admin-listen", &admin])
        .envs([
            ("META_APP_SECRET", APP_SECRET),
            ("META_VERIFY_TOKEN", VERIFY_TOKEN),
            ("DATABASE_URL", &app.database.url),
        ])
        .stdout(full())
        .stderr(full())
        .spawn()
        .unwrap();
    let body = one_failure("wamid.1");
    let post = async || {
        let request = client()
            .post(format!("http://{address}/webhook"))
            .header(HEADER, sign(APP_SECRET, &body));
        request
            .body(body.clone())
            .send()
            .await
            .is_ok_and(|answer| answer.status() == StatusCode::OK)
    };
    eventually("a callback is taken", post).await;
    assert_eq!(app.incident().await.failure_count, 1);
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    assert_eq!(
        child.wait().unwrap().code(),
        Some(0),
        "the end of a terminal is an orderly one"
    );
}

#[test]
fn a_reader_who_leaves_early_is_no_reason_to_panic() {
    let mut child = lockwatch(&["demo", "--exit"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap()
        ),
        (Some(1), String::new())
    );
}

#[test]
fn sigterm_ends_it_while_its_postgres_is_still_starting() {
    let (bin, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let real = postgres_programs();
    let slow = format!("[ \"$1\" = --version ] && exec {real}/postgres --version\nexec sleep 60");
    write_script(&bin.path().join("postgres"), &slow);
    write_script(
        &bin.path().join("initdb"),
        &format!("exec {real}/initdb \"$@\""),
    );
    let mut child = lockwatch(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ])
    .envs([
        ("META_APP_SECRET", APP_SECRET),
        ("META_VERIFY_TOKEN", VERIFY_TOKEN),
    ])
    .envs([
        ("PG_BIN_DIR", bin.path()),
        ("LOCKWATCH_DATA_DIR", data.path()),
    ])
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !data.path().join("postgres/postgres.log").exists() {
        assert!(Instant::now() < deadline, "it does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let told = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(
        told.elapsed() < Duration::from_secs(20),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let app = TestApp::start().await;
    let mut serve = Serve::on_database(&app.database.url, &[]);
    serve.logged("the database is ready");
    let body = one_failure("wamid.1");
    let (head, tail) = body.split_at(40);
    let (sender, receiver) =
        tokio::sync::mpsc::unbounded_channel::<Result<Vec<u8>, std::io::Error>>();
    let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    });
    let signature = sign(APP_SECRET, &body);
    let request = client()
        .post(&serve.webhook)
        .header(HEADER, signature)
        .body(reqwest::Body::wrap_stream(stream));
    let request = tokio::spawn(request.send());
    sender.send(Ok(head.to_vec())).unwrap();
    // Connected, once the limit's first connection is taken: the accept loop has it.
    let webhook = serve.webhook.clone();
    eventually("a connection", async || {
        client().get(&webhook).send().await.is_ok()
    })
    .await;
    serve.signal(Signal::TERM);
    serve.logged("stopping");
    sender.send(Ok(tail.to_vec())).unwrap();
    drop(sender);
    assert_eq!(request.await.unwrap().unwrap().status(), StatusCode::OK);
    let started = Instant::now();
    assert_eq!(serve.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(app.incident().await.failure_count, 1);
}

// The simulated Meta has to answer while this thread waits for a line of the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_json_if_asked_for_and_holds_no_secret_and_no_recipient() {
    let app = TestApp::start().await;
    app.simulator.script(NUMBER, [Scenario::RepeatsToken]);
    let url = app.simulator.url();
    let settings = [
        ("LOCKWATCH_LOG_FORMAT", "json"),
        ("RUST_LOG", "lockwatch=trace,info"),
        ("META_GRAPH_URL", url.as_str()),
        ("META_ACCESS_TOKEN", ACCESS_TOKEN),
    ];
    app.service.stop().await;
    let mut serve = Serve::on_database(&app.database.url, &settings);
    serve.logged("the database is ready");
    let body = one_failure("wamid.canary");
    let post = client()
        .post(&serve.webhook)
        .header(HEADER, sign(APP_SECRET, &body))
        .body(body);
    assert_eq!(post.send().await.unwrap().status(), StatusCode::OK);
    let bad = client()
        .post(&serve.webhook)
        .header(HEADER, sign("not-this-secret", b"x"))
        .body("x");
    assert_eq!(bad.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    serve.logged("cannot be looked up");
    serve.logged("Is META_APP_SECRET this app's?");
    serve.signal(Signal::TERM);
    serve.wait();
    let log = serve.whole_log();
    assert!(log.len() > 5);
    for line in log {
        let object: Value = serde_json::from_str(&line).unwrap();
        assert!(object["message"].is_string(), "{line}");
        assert!(
            !line.contains("no transaction in progress"),
            "a warning that warns of nothing: {line}"
        );
        for canary in [
            APP_SECRET,
            VERIFY_TOKEN,
            ACCESS_TOKEN,
            "wamid.canary",
            "16505551234",
        ] {
            assert!(!line.contains(canary), "{line}");
        }
    }
}
