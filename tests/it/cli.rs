//! The program from outside: its output, exit codes and signals.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lockwatch::lockout::cause::LockoutCause;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::database::TestDatabase;
use crate::support::process::{Serve, lockwatch, postgres_programs, write_script};
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, VERIFY_TOKEN, WABA, client, eventually, one_failure,
};

/// Runs a command to its end. Returns its exit code, standard output and standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn every_command_prints_its_help() {
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
        vec!["captures", "list", "--help"],
        vec!["captures", "export", "--help"],
        vec!["replay", "--help"],
        vec!["sign", "--help"],
    ] {
        let (code, stdout, stderr) = run(&mut lockwatch(&arguments));
        assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(stdout.contains("Usage: lockwatch"), "{arguments:?}");
        assert!(
            stdout.lines().all(|line| line.chars().count() <= 100),
            "{arguments:?}"
        );
    }
}

#[test]
fn wrong_configuration_is_one_clear_line_and_exit_2() {
    let secrets = [
        ("META_APP_SECRET", APP_SECRET),
        ("META_VERIFY_TOKEN", VERIFY_TOKEN),
    ];
    let [app_secret, verify_token] = secrets;
    let with = |name, value| [&secrets[..], &[(name, value)]].concat();
    for (settings, message) in [
        (vec![verify_token], "META_APP_SECRET is not set"),
        (vec![app_secret], "META_VERIFY_TOKEN is not set"),
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
            with("META_APP_SECRET", "0123456789abcdef, <the other secret>"),
            "META_APP_SECRET number 2 contains white space",
        ),
        (
            vec![verify_token, ("META_APP_SECRET_FILE", "/dev/null")],
            "META_APP_SECRET_FILE /dev/null is an empty file",
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
            with("META_ACCESS_TOKEN", "EAAG token"),
            "META_ACCESS_TOKEN is empty or contains white space",
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
        let (code, stdout, stderr) = run(lockwatch(&["serve"]).envs(settings.clone()));
        assert_eq!((code, stdout.as_str()), (2, ""), "{settings:?}: {stderr}");
        assert!(stderr.contains(message), "{settings:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    assert_eq!(run(&mut lockwatch(&["incidents", "show", "x"])).0, 2);
    assert_eq!(run(&mut lockwatch(&["serves"])).0, 2);
    assert_eq!(run(&mut lockwatch(&[])).0, 2);
}

#[test]
fn without_a_database_a_command_fails_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [vec!["incidents", "list"], vec!["migrate"]] {
        let (code, _, stderr) = run(lockwatch(&arguments).env("LOCKWATCH_DATA_DIR", folder.path()));
        assert_eq!(code, 1);
        assert!(
            stderr.contains("DATABASE_URL is not set, and no lockwatch serve runs on"),
            "{stderr}"
        );
    }
    let unreachable = "postgresql://u:hunter2@127.0.0.1:1/x";
    let (code, _, stderr) = run(lockwatch(&["incidents", "list"]).env("DATABASE_URL", unreachable));
    assert_eq!(code, 1);
    assert!(
        stderr.contains("Connection refused") && !stderr.contains("hunter2"),
        "{stderr}"
    );
}

/// Runs the program on a terminal of 80 columns. Returns its output without colours.
#[cfg(target_os = "linux")]
fn run_on_a_narrow_terminal(arguments: &str, url: &str) -> String {
    let program = env!("CARGO_BIN_EXE_lockwatch");
    let command = format!("stty cols 80 && exec '{program}' {arguments}");
    let mut script = Command::new("script");
    let (code, shown, _) = run(script
        .args(["-qec", &command, "/dev/null"])
        .env("DATABASE_URL", url));
    assert_eq!(code, 0, "{shown}");
    anstream::adapter::strip_str(&shown).to_string()
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn tables_and_the_timeline_fit_a_narrow_terminal() {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    app.fail("a").await;
    app.wait_for_cause("payment").await;
    app.execute("update incidents set cause = 'business_verification', failure_count = 1234567")
        .await;
    let id = app.incident().await.id;
    for arguments in ["incidents list".to_owned(), format!("incidents show {id}")] {
        let shown = run_on_a_narrow_terminal(&arguments, &app.database.url);
        for line in shown.lines() {
            assert!(line.trim_end().chars().count() <= 80, "{line:?} in {shown}");
        }
        let row = shown
            .lines()
            .find(|line| line.contains("business_verification"))
            .unwrap();
        assert!(
            arguments.contains("show") || row.contains(WABA) && row.contains("1234567"),
            "not in one line: {shown}"
        );
    }
    let shown = run_on_a_narrow_terminal(&format!("incidents show {id}"), &app.database.url);
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
fn completions_are_printed_for_each_supported_shell() {
    for (shell, part) in [
        ("bash", "complete -F _lockwatch"),
        ("zsh", "#compdef lockwatch"),
        ("fish", "complete -c lockwatch"),
    ] {
        let (code, script, _) = run(&mut lockwatch(&["completions", shell]));
        assert!(
            code == 0 && script.contains(part) && script.contains("incidents"),
            "{shell}"
        );
    }
    assert_eq!(run(&mut lockwatch(&["completions", "cmd"])).0, 2);
}

/// Locks an account, waits for the cause `payment`, and returns the incident's id.
async fn lock_for_payment(app: &TestApp, message_id: &str) -> String {
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    app.fail(message_id).await;
    app.wait_for_cause("payment").await.id.to_string()
}

fn run_on_database(app: &TestApp, arguments: &[&str]) -> (i32, String, String) {
    run(lockwatch(arguments).env("DATABASE_URL", &app.database.url))
}

#[tokio::test]
async fn incidents_are_listed_as_a_table_or_as_json() {
    let app = TestApp::start().await;
    lock_for_payment(&app, "a").await;
    let (code, table, _) = run_on_database(&app, &["incidents", "list"]);
    assert_eq!(code, 0);
    assert!(
        table.contains("102290129340398") && table.contains("payment") && table.contains("open"),
        "{table}"
    );
    let (_, json, _) = run_on_database(&app, &["incidents", "list", "--json", "--state", "open"]);
    let listed: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&listed[0]["cause"], &listed[0]["failure_count"]),
        (&"payment".into(), &1.into())
    );
}

#[tokio::test]
async fn an_incident_is_shown_as_text_or_as_json() {
    let app = TestApp::start().await;
    let id = lock_for_payment(&app, "wamid.\u{1b}[31m").await;
    let (_, text, _) = run_on_database(&app, &["incidents", "show", &id]);
    for part in [
        "WABA 102290129340398 is BLOCKED (141006)",
        "Next steps",
        NUMBER,
        "15550783881",
        "answered",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (_, json, _) = run_on_database(&app, &["incidents", "show", &id, "--json"]);
    let incident: Value = serde_json::from_str(&json).unwrap();
    let number = &incident["affected_numbers"][0];
    assert_eq!(number["phone_number_id"], NUMBER);
    assert_eq!(number["latest_check"]["can_send_message"], "BLOCKED");
    assert!(incident["next_steps"].as_array().unwrap().len() > 1);
    assert_eq!(run_on_database(&app, &["incidents", "show", "999999"]).0, 1);
}

#[tokio::test]
async fn an_incident_is_resolved_once_with_a_note() {
    let app = TestApp::start().await;
    let id = lock_for_payment(&app, "a").await;
    let arguments = ["incidents", "resolve", &id, "--note", "paid"];
    assert_eq!(run_on_database(&app, &arguments).0, 0);
    let incident = app.incident().await;
    assert_eq!(
        (
            incident.resolution.as_ref().map(|word| word.as_str()),
            incident.resolution_note.as_deref()
        ),
        (Some("manual"), Some("paid"))
    );
    let (code, _, stderr) = run_on_database(&app, &["incidents", "resolve", &id]);
    assert_eq!(
        (code, stderr),
        (
            1,
            format!("lockwatch: incident {id} was resolved before; nothing changed\n")
        )
    );
}

#[tokio::test]
async fn listed_incidents_are_filtered_by_state_cause_and_time() {
    let app = TestApp::start().await;
    let id = lock_for_payment(&app, "a").await;
    run_on_database(&app, &["incidents", "resolve", &id, "--note", "paid"]);
    let list = |flags: &[&str]| run_on_database(&app, &[&["incidents", "list"], flags].concat());
    assert_eq!(list(&["--state", "open", "--json"]).1.trim(), "[]");
    let (_, csv, _) = list(&["--csv", "--cause", "payment", "--since", "1h"]);
    assert!(
        csv.starts_with("id,waba_id,") && csv.contains(",manual,paid,"),
        "{csv}"
    );
    assert_eq!(
        list(&["--until", "1h"]),
        (0, String::new(), "No such incidents.\n".to_owned())
    );
    assert_eq!(list(&["--since", "1h", "--until", "2h"]).0, 2);
    assert_eq!(list(&["--json", "--csv"]).0, 2);
}

#[tokio::test]
async fn commands_close_their_connections_before_they_end() {
    let database = TestDatabase::create().await;
    for _ in 0..5 {
        for arguments in [
            ["incidents", "list"],
            ["captures", "list"],
            ["inbox", "list"],
        ] {
            let (code, _, stderr) = run(lockwatch(&arguments).env("DATABASE_URL", &database.url));
            assert_eq!(code, 0, "{stderr}");
        }
    }
    let db = database.database().pool();
    let count =
        async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&db).await.unwrap() };
    eventually("the server has ended their sessions", async || {
        const OTHERS: &str = "select count(*) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()";
        count(OTHERS).await == 0
    })
    .await;
    const ABANDONED: &str =
        "select sessions_abandoned from pg_stat_database where datname = current_database()";
    assert_eq!(count(ABANDONED).await, 0);
}

#[tokio::test]
async fn migrate_succeeds_on_a_migrated_database() {
    let app = TestApp::start().await;
    assert_eq!(run_on_database(&app, &["migrate"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_a_number_up_at_once() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let check = |scenario, flags: &[&str]| {
        simulator.set_scenarios(NUMBER, [scenario]);
        let settings = [
            ("META_GRAPH_URL", simulator.url()),
            ("META_APP_SECRET", APP_SECRET.into()),
            ("META_ACCESS_TOKEN", ACCESS_TOKEN.into()),
        ];
        run(lockwatch(&[&["check", NUMBER], flags].concat()).envs(settings))
    };
    let (code, stdout, _) = check(Scenario::Payment, &[]);
    assert_eq!(code, 3, "blocked");
    for part in ["WABA", "BLOCKED", "(141006)", "payment", "Meta's advice"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, _) = check(Scenario::Payment, &["--json"]);
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, &json["cause"], &json["can_send_message"]),
        (3, &"payment".into(), &"BLOCKED".into())
    );
    let (code, stdout, _) = check(Scenario::Unverified, &[]);
    assert_eq!(code, 0, "within a limit");
    for part in ["Meta reports no block", "Also found", "(141010)"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, _) = check(Scenario::Restricted, &[]);
    assert_eq!(code, 3, "Meta named the state");
    for part in ["policy_violation", "(368) Temporarily blocked"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, _) = check(Scenario::ExpiredToken, &[]);
    assert_eq!(code, 4, "refused");
    for part in [LockoutCause::LookupDenied.as_str(), "Session has expired"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let (code, stdout, stderr) = check(Scenario::Garbage, &[]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("not a JSON object"), "{stderr}");
}

#[test]
fn check_needs_an_access_token() {
    let (code, _, stderr) = run(lockwatch(&["check", NUMBER]).env("META_APP_SECRET", APP_SECRET));
    assert_eq!(code, 2);
    assert!(stderr.contains("META_ACCESS_TOKEN is not set"), "{stderr}");
}

#[test]
fn the_demo_finds_six_causes() {
    let (code, stdout, stderr) = run(&mut lockwatch(&["demo", "--exit"]));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    let causes = [
        "payment",
        "policy_violation",
        "business_verification",
        "phone_registration",
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
    assert!(!stdout.contains('\u{1b}'), "colours without a terminal");
}

/// The command for `serve` on free ports, with its two secrets and nothing else.
fn serve_command() -> Command {
    let mut command = lockwatch(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ]);
    command.envs([
        ("META_APP_SECRET", APP_SECRET),
        ("META_VERIFY_TOKEN", VERIFY_TOKEN),
    ]);
    command
}

#[tokio::test]
async fn healthcheck_succeeds_while_serve_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Serve::on_folder(folder.path(), &[]);
    serve.wait_for_log("the database is ready");
    let address = serve
        .webhook
        .trim_start_matches("http://")
        .trim_end_matches("/webhook")
        .to_owned();
    let admin = serve.admin.trim_start_matches("http://").to_owned();
    let alive = ["healthcheck", "--listen", &address];
    let ready = ["healthcheck", "--ready", "--admin-listen", &admin];
    assert_eq!(run(&mut lockwatch(&alive)).0, 0);
    assert_eq!(run(&mut lockwatch(&ready)).0, 0);
    serve.signal(Signal::INT);
    assert_eq!(serve.wait().code(), Some(0));
    assert_ne!(run(&mut lockwatch(&alive)).0, 0);
}

#[tokio::test]
async fn commands_find_the_database_of_serve_in_its_data_folder() {
    let folder = tempfile::tempdir().unwrap();
    let serve = Serve::on_folder(folder.path(), &[]);
    serve.wait_for_log("the database is ready");
    let mut list = lockwatch(&["incidents", "list"]);
    assert_eq!(run(list.env("LOCKWATCH_DATA_DIR", folder.path())).0, 0);
}

#[tokio::test]
async fn a_second_serve_on_the_same_data_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = Serve::on_folder(folder.path(), &[]);
    first.wait_for_log("the database is ready");
    let (code, _, stderr) = run(serve_command().env("LOCKWATCH_DATA_DIR", folder.path()));
    assert_eq!(code, 1);
    assert!(
        stderr.contains("another lockwatch is running on"),
        "{stderr}"
    );
}

#[test]
fn the_embedded_postgres_ignores_the_users_pg_variables() {
    let settings = [
        ("PGPORT", "5433"),
        ("PGHOST", "/nonexistent"),
        ("PGSSLMODE", "require"),
        ("PGUSER", "somebody"),
    ];
    let (code, stdout, stderr) = run(lockwatch(&["demo", "--exit"]).envs(settings));
    assert_eq!(code, 0, "{stdout}{stderr}");
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A device on which every write fails: no space left.
fn open_full_device() -> fs::File {
    fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_works_although_its_log_cannot_be_written() {
    let app = TestApp::start().await;
    let (address, admin) = (free_address(), free_address());
    let mut child = lockwatch(&["serve", "--listen", &address, "--admin-listen", &admin])
        .envs([
            ("META_APP_SECRET", APP_SECRET),
            ("META_VERIFY_TOKEN", VERIFY_TOKEN),
            ("DATABASE_URL", &app.database.url),
        ])
        .stdout(open_full_device())
        .stderr(open_full_device())
        .spawn()
        .unwrap();
    let body = one_failure("wamid.1");
    eventually("a callback is answered with 200", async || {
        client()
            .post(format!("http://{address}/webhook"))
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body.clone())
            .send()
            .await
            .is_ok_and(|answer| answer.status() == StatusCode::OK)
    })
    .await;
    app.settle().await;
    assert_eq!(app.incident().await.failure_count, 1);
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    assert_eq!(
        child.wait().unwrap().code(),
        Some(0),
        "SIGHUP stops it in order"
    );
}

#[test]
fn a_closed_standard_output_causes_no_panic() {
    let mut child = lockwatch(&["demo", "--exit"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.as_str()), (Some(1), ""));
}

#[test]
fn sigterm_stops_serve_while_its_postgres_is_starting() {
    let (bin, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let real = postgres_programs();
    let slow = format!("[ \"$1\" = --version ] && exec {real}/postgres --version\nexec sleep 60");
    write_script(&bin.path().join("postgres"), &slow);
    let initdb = format!("exec {real}/initdb \"$@\"");
    write_script(&bin.path().join("initdb"), &initdb);
    let mut child = serve_command()
        .env("PG_BIN_DIR", bin.path())
        .env("LOCKWATCH_DATA_DIR", data.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !data.path().join("postgres/postgres.log").exists() {
        assert!(Instant::now() < deadline, "Postgres does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let signalled = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let elapsed = signalled.elapsed();
    assert!(elapsed < Duration::from_secs(20), "{elapsed:?}");
}

#[tokio::test]
async fn a_request_in_flight_is_answered_before_the_stop() {
    let app = TestApp::start().await;
    let mut serve = Serve::on_database(&app.database.url, &[]);
    serve.wait_for_log("the database is ready");
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
        .header(SIGNATURE_HEADER, signature)
        .body(reqwest::Body::wrap_stream(stream));
    let request = tokio::spawn(request.send());
    sender.send(Ok(head.to_vec())).unwrap();
    // Connections are accepted in order. Once a later one is answered, the first is accepted too.
    let webhook = serve.webhook.clone();
    eventually("a connection", async || {
        client().get(&webhook).send().await.is_ok()
    })
    .await;
    serve.signal(Signal::TERM);
    serve.wait_for_log("stopping");
    sender.send(Ok(tail.to_vec())).unwrap();
    drop(sender);
    assert_eq!(request.await.unwrap().unwrap().status(), StatusCode::OK);
    let started = Instant::now();
    assert_eq!(serve.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(20));
    app.settle().await;
    assert_eq!(app.incident().await.failure_count, 1);
}

/// Ends the connections of a running `serve`, lets it look for new ones, and returns its log.
async fn log_of_lost_connections(settings: &[(&str, &str)]) -> String {
    let database = TestDatabase::create().await;
    let mut serve = Serve::on_database(&database.url, settings);
    serve.wait_for_log("the database is ready");
    let page = async || client().get(&serve.admin).send().await.unwrap().status();
    assert_eq!(page().await, StatusCode::OK);
    let db = database.database().pool();
    sqlx::query(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity
          where datname = current_database() and pid <> pg_backend_pid()",
    )
    .execute(&db)
    .await
    .unwrap();
    assert_eq!(page().await, StatusCode::OK);
    serve.signal(Signal::TERM);
    serve.wait();
    serve.whole_log().join("\n")
}

#[tokio::test]
async fn the_default_log_leaves_out_what_the_pool_says_of_lost_connections() {
    const NOISE: &str = "before_acquire";
    let everything = log_of_lost_connections(&[("RUST_LOG", "info")]).await;
    assert!(everything.contains(NOISE), "{everything}");
    let log = log_of_lost_connections(&[]).await;
    assert!(!log.contains(NOISE), "{log}");
}

// Multi-threaded: the simulated Meta must answer while this thread waits for a line of the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_json_log_holds_no_secret_and_no_recipient() {
    let app = TestApp::start().await;
    app.simulator
        .set_scenarios(NUMBER, [Scenario::TokenInError]);
    let url = app.simulator.url();
    let settings = [
        ("LOCKWATCH_LOG_FORMAT", "json"),
        ("RUST_LOG", "lockwatch=trace,info"),
        ("META_GRAPH_URL", url.as_str()),
        ("META_ACCESS_TOKEN", ACCESS_TOKEN),
    ];
    app.service.stop().await;
    let mut serve = Serve::on_database(&app.database.url, &settings);
    serve.wait_for_log("the database is ready");
    let post = async |secret, body: Vec<u8>| {
        client()
            .post(&serve.webhook)
            .header(SIGNATURE_HEADER, sign(secret, &body))
            .body(body)
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(
        post(APP_SECRET, one_failure("wamid.canary")).await,
        StatusCode::OK
    );
    assert_eq!(
        post("not-this-secret", b"x".to_vec()).await,
        StatusCode::UNAUTHORIZED
    );
    serve.wait_for_log("cannot be looked up");
    serve.wait_for_log("Is META_APP_SECRET this app's?");
    serve.signal(Signal::TERM);
    serve.wait();
    let log = serve.whole_log();
    assert!(log.len() > 5);
    for line in log {
        let object: Value = serde_json::from_str(&line).unwrap();
        assert!(object["message"].is_string(), "{line}");
        assert!(
            !line.contains("no transaction in progress"),
            "a needless warning: {line}"
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

#[test]
fn the_story_ends_as_meta_tells_it() {
    let (code, stdout, stderr) = run(&mut lockwatch(&["demo", "--story", "--exit"]));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    for part in [
        "incident 1 opened",
        "cause found policy_violation",
        "incident 1 resolved reinstated",
        "m Meta's notice",
        "ACCOUNT_VIOLATION SCAM",
        "98",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
}
