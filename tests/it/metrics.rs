//! The Prometheus metrics: each event is counted once, and no label holds received text.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockwatch::lockout::cause::LockoutCause;
use lockwatch::lockout::codes::Kind;
use lockwatch::lockout::incident::Resolution;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::graph_error::Denial;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::service::Service;
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::Database;
use reqwest::StatusCode;
use serde_json::json;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::support::database::TestDatabase;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, OTHER_NUMBER, TestApp, VERIFY_TOKEN, WABA, client,
    one_failure, resume_processing, start_service,
};

/// One answer of `/metrics`, parsed as strictly as Prometheus does it.
struct Scrape {
    text: String,
    /// Values by the names and label values of their series.
    values: BTreeMap<(String, String), f64>,
}

impl Scrape {
    async fn fetch(service: &Service) -> Self {
        let response = client()
            .get(format!("http://{}/metrics", service.admin_address))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(response.headers()["content-type"], content_type);
        Self::parse(response.text().await.unwrap())
    }

    /// Fails unless each family is described before its series, each series comes once, and the
    /// text ends with the end mark.
    fn parse(text: String) -> Self {
        let mut values = BTreeMap::new();
        let (mut family, mut families) = ("", BTreeSet::new());
        for line in text.strip_suffix("# EOF\n").expect("an end mark").lines() {
            match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
                ["#", "HELP", name, help] => {
                    assert!(
                        name.starts_with("lockwatch_") && families.insert(name),
                        "described twice: {line}"
                    );
                    assert!(
                        help.len() > 10 && help.ends_with('.') && !help.contains('\\'),
                        "{line}"
                    );
                    family = name;
                }
                ["#", "TYPE", name, "counter" | "gauge" | "histogram"] => assert_eq!(name, family),
                ["#", "UNIT", name, unit] => {
                    assert!(name == family && name.ends_with(unit), "{line}");
                }
                [series, value] => {
                    let (name, label) = parse_series(series);
                    assert!(name.starts_with(family), "{line}");
                    let key = (name.to_owned(), label.to_owned());
                    let before = values.insert(key, value.parse().unwrap());
                    assert!(before.is_none(), "twice: {line}");
                }
                _ => panic!("{line:?} is neither a comment nor a series"),
            }
        }
        Self { text, values }
    }

    fn value(&self, series: &str) -> f64 {
        *self
            .values
            .get(&(format!("lockwatch_{series}"), String::new()))
            .expect(series)
    }

    /// Every label value of a series, with its value.
    fn labels<'a>(&'a self, series: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.values
            .iter()
            .filter(move |((name, _), _)| name.strip_prefix("lockwatch_") == Some(series))
            .map(|((_, label), value)| (label.as_str(), *value))
    }

    /// The label values of a series whose value is not zero.
    fn nonzero<'a>(&'a self, series: &'a str) -> Vec<(&'a str, f64)> {
        self.labels(series)
            .filter(|(_, value)| *value != 0.0)
            .collect()
    }

    fn has(&self, series: &str) -> bool {
        self.labels(series).next().is_some()
    }
}

/// Splits a series into its name and label value: one of our words, or the limit of a bucket.
fn parse_series(series: &str) -> (&str, &str) {
    let (name, label) = series.split_once('{').unwrap_or((series, "=\"\"}"));
    let (_, value) = label
        .strip_suffix("\"}")
        .unwrap()
        .split_once("=\"")
        .unwrap();
    let is_word = value.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let is_limit = label.starts_with("le=") && (value == "+Inf" || value.parse::<f64>().is_ok());
    let is_version = label == concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert!(is_word || is_limit || is_version, "{series}");
    (name, value)
}

/// The rules that are shipped use names that exist.
#[tokio::test]
async fn the_rules_for_prometheus_use_series_that_exist() {
    let app = TestApp::start().await;
    let scrape = Scrape::fetch(&app.service).await;
    let rules = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/monitoring/lockwatch.rules.yml"
    );
    let rules = std::fs::read_to_string(rules).unwrap();
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let used: BTreeSet<&str> = words
        .filter_map(|word| word.strip_prefix("lockwatch_"))
        .collect();
    assert!(used.len() > 6, "{used:?}");
    for series in used {
        assert!(scrape.has(series), "{series}");
    }
}

#[tokio::test]
async fn every_series_exists_from_the_start() {
    let app = TestApp::start().await;
    let scrape = Scrape::fetch(&app.service).await;
    for (series, expected) in [
        (
            "callbacks_total",
            "recorded nothing_found bad_signature encoded wrong_path wrong_method too_large incomplete \
             busy not_recorded abandoned",
        ),
        ("handshakes_total", "verified wrong_token malformed"),
        ("failures_total", "recorded repeated"),
        (
            "lookups_total",
            "answered no_health state not_asked refused throttled unreachable",
        ),
        ("pool_connections", "idle busy"),
        (
            "incidents_open",
            &LockoutCause::ALL.map(LockoutCause::as_str).join(" "),
        ),
        (
            "incidents_denied",
            &Denial::ALL.map(Denial::as_str).join(" "),
        ),
        (
            "incidents_opened_total",
            &Kind::ALL.map(Kind::as_str).join(" "),
        ),
        (
            "incidents_resolved_total",
            &Resolution::ALL.map(Resolution::as_str).join(" "),
        ),
        (
            "troubles",
            "callbacks_silent subscription_lost token_expiring inbox_stuck quarantined \
             lookups_failing",
        ),
        ("alerts_open", "waiting dead"),
    ] {
        let labels: BTreeSet<_> = scrape.labels(series).map(|(label, _)| label).collect();
        assert_eq!(labels, expected.split(' ').collect(), "{series}");
    }
    for series in [
        "batch_callbacks_count",
        "batch_failures_count",
        "commit_seconds_count",
        "process_seconds_count",
        "inbox_wait_seconds_count",
        "lookup_seconds_count",
    ] {
        assert_eq!(scrape.value(series), 0.0, "{series}");
    }
    for series in [
        "batches_failed_total",
        "batches_divided_total",
        "quarantined_total",
        "checks_overdue",
        "inbox_callbacks",
        "inbox_problems",
        "inbox_oldest_seconds",
        "quarantine_parts",
    ] {
        assert_eq!(scrape.value(series), 0.0, "{series}");
    }
    let counted = scrape
        .values
        .iter()
        .filter(|((name, _), value)| name.ends_with("_total") && **value != 0.0);
    assert_eq!(counted.count(), 0);
    assert_eq!(
        (scrape.value("database_up"), scrape.value("ready")),
        (1.0, 1.0)
    );
    assert_eq!(scrape.value("pool_connections_max"), 8.0);
}

#[tokio::test]
async fn every_callback_and_handshake_is_counted_once_by_its_outcome() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let signed = || {
        app.unsigned_request(&body)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
    };
    app.deliver(&body).await;
    app.deliver(&body).await;
    app.deliver(br#"{"entry":[]}"#).await;
    for signature in ["", "sha256=00", &sign("another-app-secret-here", &body)] {
        let refused = app
            .unsigned_request(&body)
            .header(SIGNATURE_HEADER, signature)
            .send()
            .await
            .unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    }
    signed()
        .header("content-encoding", "gzip")
        .send()
        .await
        .unwrap();
    app.post(&vec![b' '; 4 * 1024 * 1024 + 1]).await;
    let hello = format!("hub.mode=subscribe&hub.challenge=1&hub.verify_token={VERIFY_TOKEN}");
    for query in [
        &hello[..],
        &hello,
        &format!("{hello}x"),
        "",
        "a=b",
        "hub.mode=subscribe",
    ] {
        app.client
            .get(app.url(&format!("/webhook?{query}")))
            .send()
            .await
            .unwrap();
    }
    let scrape = Scrape::fetch(&app.service).await;
    let expected = [
        ("bad_signature", 3.0),
        ("encoded", 1.0),
        ("nothing_found", 1.0),
        ("recorded", 2.0),
        ("too_large", 1.0),
    ];
    assert_eq!(scrape.nonzero("callbacks_total"), expected);
    assert_eq!(
        scrape.nonzero("handshakes_total"),
        [("malformed", 3.0), ("verified", 2.0), ("wrong_token", 1.0)]
    );
}

#[tokio::test]
async fn a_callback_whose_sender_disconnects_is_abandoned() {
    let app = TestApp::start().await;
    app.fail("wamid.1").await;
    let mut locker = app.db.begin().await.unwrap();
    sqlx::query("lock table captures in access exclusive mode")
        .execute(&mut *locker)
        .await
        .unwrap();
    let body = one_failure("wamid.2");
    assert!(
        timeout(Duration::from_millis(300), app.post(&body))
            .await
            .is_err(),
        "it waits for the table"
    );
    app.eventually("it is counted as abandoned", async || {
        Scrape::fetch(&app.service).await.nonzero("callbacks_total")
            == [("abandoned", 1.0), ("recorded", 1.0)]
    })
    .await;
    locker.rollback().await.unwrap();

    // An abandoned callback may be stored or not. When Meta retries it, it is recorded.
    app.deliver(&body).await;
    assert_eq!(app.incident().await.failure_count, 2);
}

#[tokio::test]
async fn half_a_callback_is_counted() {
    let app = TestApp::start().await;
    let mut stream = TcpStream::connect(app.service.address).await.unwrap();
    let head = format!(
        "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n{SIGNATURE_HEADER}: {}\r\n\r\n{{",
        sign("a", b"")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    // Either the body's reader or the connection notices the end first.
    let is_counted = async || {
        let scrape = Scrape::fetch(&app.service).await;
        let outcomes = scrape.nonzero("callbacks_total");
        outcomes == [("incomplete", 1.0)] || outcomes == [("abandoned", 1.0)]
    };
    app.eventually("it is counted", is_counted).await;
}

#[tokio::test]
#[ignore = "fills a quarter of a gigabyte; .ci/run runs it"]
async fn a_callback_evicted_from_memory_is_counted_as_busy() {
    let app = TestApp::start().await;
    const BODY_BYTES: usize = 4 * 1024 * 1024;
    let mut streams = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(app.service.address).await.unwrap();
        let signature = sign("a guess", b"");
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: {BODY_BYTES}\r\n\
             {SIGNATURE_HEADER}: {signature}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; BODY_BYTES - 1]).await.unwrap();
        streams.push(stream);
    }
    app.eventually("one of them is evicted", async || {
        app.deliver(b"{}").await;
        Scrape::fetch(&app.service)
            .await
            .nonzero("callbacks_total")
            .contains(&("busy", 1.0))
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_counted_as_recorded_once_then_as_repeated() {
    let app = TestApp::start().await;
    let body = StatusCallback::new()
        .failed(WABA, NUMBER, "a")
        .failed(WABA, NUMBER, "b")
        .failed(WABA, NUMBER, "a");
    let body = body.into_body();
    app.deliver(&body).await;
    app.deliver(&body).await;
    app.deliver(
        &StatusCallback::new()
            .failed("2044", OTHER_NUMBER, "c")
            .into_body(),
    )
    .await;
    // Counted a moment after the commit.
    app.eventually("all are counted", async || {
        let scrape = Scrape::fetch(&app.service).await;
        scrape.value("inbox_wait_seconds_count") >= 3.0
    })
    .await;
    let scrape = Scrape::fetch(&app.service).await;
    assert_eq!(
        scrape.nonzero("failures_total"),
        [("recorded", 3.0), ("repeated", 4.0)]
    );
    for (series, value) in [
        ("batch_callbacks_count", 3.0),
        ("batch_callbacks_sum", 3.0),
        ("batch_failures_count", 3.0),
        ("batch_failures_sum", 7.0),
        ("commit_seconds_count", 3.0),
        ("process_seconds_count", 3.0),
        ("inbox_wait_seconds_count", 3.0),
        ("batches_failed_total", 0.0),
        ("batches_divided_total", 0.0),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    let buckets = scrape.nonzero("batch_failures_bucket");
    assert!(
        buckets.contains(&("1.0", 1.0)) && buckets.contains(&("4.0", 3.0)),
        "{buckets:?}"
    );
    for series in ["commit", "process", "inbox_wait"] {
        let sum = scrape.value(&format!("{series}_seconds_sum"));
        assert!((0.0001..20.0).contains(&sum), "{series}: {sum}");
    }
}

#[tokio::test]
async fn a_quarantined_body_is_counted_once() {
    let app = TestApp::start().await;
    for _ in 0..2 {
        app.deliver(br#"{"entry":[{"changes":[131031, {"a": 131031}]}]}"#)
            .await;
        app.deliver(br#"{"entry":[{"id":"77","changes":[131031]}]}"#)
            .await;
    }
    let quarantined = app.count("select count(*) from quarantine").await;
    assert!(quarantined > 1, "{quarantined}");
    app.eventually("all callbacks are counted", async || {
        let scrape = Scrape::fetch(&app.service).await;
        scrape.value("inbox_wait_seconds_count") >= 4.0
    })
    .await;
    let scrape = Scrape::fetch(&app.service).await;
    assert_eq!(scrape.value("quarantined_total"), quarantined as f64);
    assert_eq!(scrape.value("quarantine_parts"), quarantined as f64);
    assert_eq!(scrape.nonzero("failures_total"), []);
    app.execute("delete from quarantine").await;
    let scrape = Scrape::fetch(&app.service).await;
    assert_eq!(
        (
            scrape.value("quarantined_total"),
            scrape.value("quarantine_parts")
        ),
        (quarantined as f64, 0.0),
        "a counter of the process, and a gauge of the database"
    );
}

#[tokio::test]
async fn a_callback_that_waits_for_its_account_is_observed_once() {
    let app = TestApp::start().await;
    app.fail("first").await;
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 131031))")
        .bind(WABA)
        .execute(&mut *holder)
        .await
        .unwrap();
    app.acknowledged(&one_failure("held")).await;
    // Others are processed meanwhile, one by one, so it is tried many times.
    for n in 0..20 {
        let beside = StatusCallback::new().failed("2044", OTHER_NUMBER, &n.to_string());
        app.acknowledged(&beside.into_body()).await;
        app.eventually("only the held one is left", async || {
            app.count("select count(*) from inbox").await == 1
        })
        .await;
    }
    app.eventually("the first is observed", async || {
        let scrape = Scrape::fetch(&app.service).await;
        scrape.value("inbox_wait_seconds_count") >= 21.0
    })
    .await;
    let waits = async || {
        Scrape::fetch(&app.service)
            .await
            .value("inbox_wait_seconds_count")
    };
    assert_eq!(waits().await, 21.0, "not yet");
    holder.rollback().await.unwrap();
    app.settle().await;
    app.eventually("it is observed", async || waits().await == 22.0)
        .await;
}

#[tokio::test]
async fn what_waits_in_the_inbox_is_measured() {
    let app = TestApp::start().await;
    app.fail("first").await;
    app.eventually("it is counted", async || {
        let scrape = Scrape::fetch(&app.service).await;
        scrape.value("inbox_wait_seconds_count") == 1.0
    })
    .await;
    let before = Scrape::fetch(&app.service).await;
    app.execute(
        "alter table failed_deliveries
           add constraint no_poison check (message_id <> 'wamid.poison')",
    )
    .await;
    let mut processor = app.stop_processing().await;
    for id in ["wamid.beside", "wamid.poison"] {
        app.acknowledged(&one_failure(id)).await;
    }
    let waiting = Scrape::fetch(&app.service).await;
    assert_eq!(waiting.value("inbox_callbacks"), 2.0);
    assert_eq!(waiting.value("inbox_problems"), 0.0);
    resume_processing(&mut processor).await;
    app.eventually("one has a problem", async || {
        let scrape = Scrape::fetch(&app.service).await;
        scrape.value("inbox_callbacks") == 1.0 && scrape.value("inbox_problems") == 1.0
    })
    .await;
    app.let_time_pass(time::Duration::minutes(5)).await;
    let after = Scrape::fetch(&app.service).await;
    let oldest = after.value("inbox_oldest_seconds");
    assert!((300.0..330.0).contains(&oldest), "{oldest}");
    let more = |series: &str| after.value(series) - before.value(series);
    assert!(more("batches_divided_total") >= 2.0, "{}", after.text);
    assert_eq!(more("inbox_wait_seconds_count"), 1.0);
    assert_eq!(more("process_seconds_count"), 1.0);
    assert_eq!(more("commit_seconds_count"), 2.0);
    assert_eq!(after.nonzero("failures_total"), [("recorded", 2.0)]);
}

#[tokio::test]
async fn lookups_are_counted_by_outcome() {
    let app = TestApp::start().await;
    let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
    for (number, scenario) in [
        ("11", Scenario::Payment),
        ("12", Scenario::Available),
        ("13", Scenario::NoHealth),
        ("14", Scenario::ExpiredToken),
        ("15", Scenario::Throttled(19)),
        ("16", Scenario::ServerError),
    ] {
        app.simulator.set_scenarios(number, [scenario]);
        callback = callback.failed(&format!("20{number}"), number, "a");
    }
    app.deliver(&callback.into_body()).await;
    app.eventually("all numbers are looked up", async || {
        Scrape::fetch(&app.service)
            .await
            .value("lookup_seconds_count")
            >= 6.0
    })
    .await;
    let scrape = Scrape::fetch(&app.service).await;
    let lookups = scrape.nonzero("lookups_total");
    assert_eq!(
        lookups[..4],
        [
            ("answered", 2.0),
            ("no_health", 1.0),
            ("refused", 1.0),
            ("throttled", 1.0)
        ]
    );
    // The server error may have been retried by now.
    assert_eq!((lookups.len(), lookups[4].0), (5, "unreachable"));
    assert!(scrape.value("lookup_seconds_sum") > 0.0);
}

#[tokio::test]
async fn a_lookup_without_a_token_is_counted_as_not_asked() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let app = TestApp::start_with(TestDatabase::create().await, simulator, None).await;
    app.fail("a").await;
    app.wait_for_cause("lookup_denied").await;
    let scrape = Scrape::fetch(&app.service).await;
    assert_eq!(scrape.nonzero("lookups_total"), [("not_asked", 1.0)]);
    assert_eq!(
        scrape.value("lookup_seconds_count"),
        0.0,
        "no request was sent"
    );
}

async fn has_open_incidents(app: &TestApp, expected: &[(&str, f64)]) -> bool {
    let scrape = Scrape::fetch(&app.service).await;
    scrape.nonzero("incidents_open") == expected
}

/// Locks two accounts and waits until their incidents have the causes `payment` and `unreported`.
async fn lock_two_accounts(app: &TestApp) {
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    app.fail("a").await;
    let callback = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed("2044", OTHER_NUMBER, "b");
    app.deliver(&callback.into_body()).await;
    app.eventually("both incidents have a cause", async || {
        has_open_incidents(app, &[("payment", 1.0), ("unreported", 1.0)]).await
    })
    .await;
}

#[tokio::test]
async fn open_incidents_are_counted_by_cause() {
    let app = TestApp::start().await;
    lock_two_accounts(&app).await;
    let open = async |expected| has_open_incidents(&app, expected).await;
    app.execute(
        "update incidents set cause = 'a_word_of_a_later_version' where cause = 'unreported'",
    )
    .await;
    assert!(open(&[("other_restriction", 1.0), ("payment", 1.0)]).await);
    app.execute(
        "update incidents set ended_at = now(), resolved_at = now(), resolution = 'manual'
          where cause = 'payment'",
    )
    .await;
    assert!(open(&[("other_restriction", 1.0)]).await);
}

#[tokio::test]
async fn overdue_checks_are_counted_without_those_of_paused_accounts() {
    let app = TestApp::start().await;
    lock_two_accounts(&app).await;
    let overdue = async || Scrape::fetch(&app.service).await.value("checks_overdue");
    assert_eq!(overdue().await, 0.0);
    // The lease is held by a process that died.
    app.execute(
        "update affected_numbers
            set check_due_at = now() - interval '3 minutes',
                check_lease_until = now() + interval '1 hour'",
    )
    .await;
    assert_eq!(overdue().await, 2.0);
    app.execute(
        "update accounts set lookups_paused_until = now() + interval '1 hour'
          where waba_id = '2044'",
    )
    .await;
    assert_eq!(overdue().await, 1.0, "a paused account is not overdue");
    app.execute("update affected_numbers set check_due_at = now() - interval '1 minute'")
        .await;
    assert_eq!(overdue().await, 0.0, "one minute is not overdue");
}

#[tokio::test]
async fn received_text_never_becomes_a_series() {
    let app = TestApp::start().await;
    app.fail("wamid.first").await;
    let before = Scrape::fetch(&app.service).await;
    let mut callback = StatusCallback::new();
    for n in 0..300 {
        let (waba, number) = (format!("77{n:04}"), format!("88{n:04}"));
        callback = callback.failed(&waba, &number, &format!("wamid.strange\"}}\n{n}"));
    }
    for id in [
        "lockwatch_x{y=\"z\"} 1",
        "\n# EOF\n",
        "strange",
        "0",
        "\u{0}",
        "ümläut",
    ] {
        let status = json!({
            "id": id,
            "status": "failed",
            "recipient_id": id,
            "biz_opaque_callback_data": id,
            "errors": [{"code": 131_031, "title": id, "message": id}],
        });
        callback = callback.status(id, id, status);
    }
    app.deliver(&callback.into_body()).await;
    let handshake = app
        .client
        .get(app.url("/webhook?hub.mode=strange"))
        .header("user-agent", "strange");
    handshake.send().await.unwrap();
    app.eventually("all are counted", async || {
        let scrape = Scrape::fetch(&app.service).await;
        scrape.nonzero("failures_total")[0].1 >= 301.0
    })
    .await;
    let after = Scrape::fetch(&app.service).await;
    let series = |scrape: &Scrape| scrape.values.keys().cloned().collect::<Vec<_>>();
    assert_eq!(series(&before), series(&after));
    // Any digits may stand in a value.
    let name = |line: &str| {
        line.rsplit_once(' ')
            .map_or(String::new(), |(name, _)| name.to_owned())
    };
    let names: Vec<String> = after.text.lines().map(name).collect();
    for received in ["strange", "770", "880", "wamid", WABA, NUMBER] {
        assert!(
            !names.iter().any(|name| name.contains(received)),
            "{received} in {}",
            after.text
        );
    }
}

#[tokio::test]
async fn without_a_database_metrics_answer_fast_and_omit_its_series() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for port in [1, silent.local_addr().unwrap().port()] {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
        let unreachable =
            Database::parse(&format!("postgresql://nobody@127.0.0.1:{port}/nothing")).unwrap();
        let service = start_service(unreachable, &simulator, &[APP_SECRET]).await;
        let post = async |body: Vec<u8>| {
            let url = format!("http://{}/webhook", service.address);
            client()
                .post(url)
                .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
                .body(body)
                .send()
                .await
                .unwrap()
        };
        assert_eq!(
            post(one_failure("wamid.1")).await.status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(post(b"{}".to_vec()).await.status(), StatusCode::OK);
        let started = Instant::now();
        let scrape = Scrape::fetch(&service).await;
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
        assert_eq!(
            (scrape.value("database_up"), scrape.value("ready")),
            (0.0, 0.0)
        );
        assert!(
            ["incidents_open", "checks_overdue", "inbox_callbacks"]
                .iter()
                .all(|series| !scrape.has(series)),
            "{}",
            scrape.text
        );
        assert_eq!(
            scrape.nonzero("callbacks_total"),
            [("not_recorded", 1.0), ("nothing_found", 1.0)]
        );
        assert_eq!(scrape.value("batches_failed_total"), 1.0);
        assert_eq!(
            (
                scrape.value("commit_seconds_count"),
                scrape.nonzero("failures_total")
            ),
            (0.0, vec![])
        );
        service.stop().await;
    }
}

#[tokio::test]
async fn a_database_without_this_versions_tables_is_up_and_not_ready() {
    let app = TestApp::start().await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    app.execute("delete from _sqlx_migrations").await;
    let scrape = Scrape::fetch(&app.service).await;
    assert_eq!(
        (scrape.value("database_up"), scrape.value("ready")),
        (1.0, 0.0)
    );
    assert_eq!(scrape.nonzero("incidents_open"), [("unreported", 1.0)]);
}
