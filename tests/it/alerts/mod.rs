//! Alerts: somebody is told, with the reason in the first message, at least once, by real
//! receivers.

mod channels;
mod life;
mod real;
mod survival;
mod troubles;

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use lockwatch::alerts::Alerting;
use lockwatch::alerts::channel::{Channel, WebhookSecret};
use lockwatch::simulator::{Scenario, Simulator};
use rustix::process::Signal;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

use crate::support::database::TestDatabase;
use crate::support::process::{Serve, lockwatch};
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, WABA, client, eventually, settings,
};

const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A message that a receiver got.
#[derive(Debug, Clone)]
struct Received {
    headers: HeaderMap,
    raw: Bytes,
    body: Value,
}

/// A receiver on a loopback port. It gives these answers, then 200.
#[derive(Clone, Default)]
struct Receiver {
    address: String,
    answers: Arc<Mutex<VecDeque<(StatusCode, &'static str)>>>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    async fn start(answers: impl IntoIterator<Item = (StatusCode, &'static str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            received: Arc::default(),
        };
        let router = Router::new()
            .route("/{*path}", post(receive))
            .with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        receiver
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// What was told, in the words of the webhook.
    fn types(&self) -> Vec<String> {
        let received = self.received();
        let kind = |message: &Received| message.body["type"].as_str().unwrap_or("?").to_owned();
        received.iter().map(kind).collect()
    }
}

async fn receive(
    State(receiver): State<Receiver>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 1], &'static str) {
    let message = Received {
        headers,
        body: serde_json::from_slice(&body).unwrap(),
        raw: body,
    };
    receiver.received.lock().unwrap().push(message);
    let answer = receiver.answers.lock().unwrap().pop_front();
    let (status, text) = answer.unwrap_or((StatusCode::OK, "ok"));
    (status, [("retry-after", "0")], text)
}

fn webhook(receiver: &Receiver) -> Channel {
    let url = format!("{}/hook?token=canary-of-the-url", receiver.address);
    let secret = WebhookSecret::parse(WEBHOOK_SECRET).unwrap();
    Channel::webhook("webhook", &url.into(), secret).unwrap()
}

fn slack(receiver: &Receiver) -> Channel {
    let url = format!("{}/services/T/B/x", receiver.address);
    Channel::slack("slack", &url.into()).unwrap()
}

async fn start_with(channels: Vec<Channel>, scenarios: Vec<Scenario>) -> TestApp {
    let alerting = Alerting {
        channels,
        ..Alerting::default()
    };
    start_alerting(alerting, scenarios).await
}

async fn start_alerting(alerting: Alerting, scenarios: Vec<Scenario>) -> TestApp {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, scenarios);
    let database = TestDatabase::create().await;
    let mut settings = settings(
        database.database(),
        &simulator.url(),
        &[APP_SECRET],
        Some(ACCESS_TOKEN),
    );
    settings.alerting = Alerting {
        external_url: Some("https://lockwatch.example/".to_owned()),
        ..alerting
    };
    TestApp::start_with_settings(database, simulator, settings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_message_says_what_and_why_and_the_end_is_told() {
    let (hook, chat) = (Receiver::start([]).await, Receiver::start([]).await);
    let channels = vec![webhook(&hook), slack(&chat)];
    let app = start_with(channels, vec![Scenario::Policy]).await;
    let failed_at = OffsetDateTime::now_utc() - Duration::minutes(2);
    app.fail_at("a", failed_at).await;
    eventually("both are told", async || {
        hook.received().len() == 1 && chat.received().len() == 1
    })
    .await;
    let message = &hook.received()[0];
    let data = &message.body["data"];
    assert_eq!(message.body["type"], "incident.opened");
    assert_eq!(data["incident"]["cause"], "policy_violation");
    assert_eq!(data["url"], "https://lockwatch.example/incidents/1");
    let text = data["text"].as_str().unwrap();
    for part in [
        "Why: Policy violation. ",
        "2 min ago",
        "1 message has failed, of 15550783881.",
        "First: ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for header in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        assert!(message.headers.contains_key(header), "{header}");
    }
    let slack = &chat.received()[0].body;
    assert_eq!(
        slack["text"],
        format!("Account {WABA} is locked: Policy violation")
    );
    let shown = slack["attachments"][0]["text"].as_str().unwrap();
    assert!(shown.contains("<https://lockwatch.example/incidents/1|"));

    let url = format!(
        "http://{}/api/v1/incidents/1/resolve",
        app.service.admin_address
    );
    client().post(url).send().await.unwrap();
    eventually("the end is told", async || hook.received().len() == 2).await;
    assert_eq!(hook.types(), ["incident.opened", "incident.resolved"]);
    let all = app
        .text("select string_agg(a::text, ' ') from alerts a")
        .await;
    assert!(!all.unwrap().contains("canary"));
    assert!(!text.contains("16505551234"), "no recipient");
}

/// The look-up takes too long: the first message comes without the cause, the second has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_cause_is_told_by_itself() {
    let hook = Receiver::start([]).await;
    let late = vec![Scenario::ServerError, Scenario::Payment];
    let app = start_with(vec![webhook(&hook)], late).await;
    app.fail("a").await;
    let failed = "select count(*) from health_checks";
    eventually("a failed look-up", async || app.count(failed).await == 1).await;
    app.execute("update affected_numbers set check_due_at = now() + interval '1 hour'")
        .await;
    app.execute("update incident_changes set at = at - interval '10 s'")
        .await;
    eventually("the opening is told", async || hook.received().len() == 1).await;
    assert_eq!(
        hook.received()[0].body["data"]["incident"]["cause"],
        "pending"
    );
    app.execute("update affected_numbers set check_due_at = now()")
        .await;
    eventually("the cause is told", async || hook.received().len() == 2).await;
    assert_eq!(hook.types()[1], "incident.cause_changed");
    assert_eq!(
        hook.received()[1].body["data"]["incident"]["cause"],
        "payment"
    );
}

/// One channel is down, the other is told at once; and what nobody takes is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_is_tried_again_and_holds_up_no_other() {
    let down = [
        (StatusCode::SERVICE_UNAVAILABLE, "later"),
        (StatusCode::TOO_MANY_REQUESTS, "slow down"),
    ];
    let (hook, chat) = (Receiver::start(down).await, Receiver::start([]).await);
    let channels = vec![webhook(&hook), slack(&chat)];
    let app = start_with(channels, vec![Scenario::Available]).await;
    app.fail("a").await;
    eventually("the other is told", async || chat.received().len() == 1).await;
    for tries in 1..=3_i64 {
        eventually("a try", async || hook.received().len() as i64 == tries).await;
        let settled = "select count(*) from alerts where channel = 'webhook'
                          and lease_until is null";
        eventually("its outcome", async || app.count(settled).await == 1).await;
        app.execute("update alerts set next_attempt_at = now() where state = 'waiting'")
            .await;
    }
    let states = "select string_agg(state || attempts, ' ' order by channel) from alerts";
    eventually("it is taken", async || {
        app.text(states).await.as_deref() == Some("accepted1 accepted3")
    })
    .await;
    let ids: Vec<_> = hook
        .received()
        .iter()
        .map(|message| message.headers["webhook-id"].clone())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_refused_again_is_given_up_and_shown() {
    let gone = [(StatusCode::GONE, "no_service")];
    let chat = Receiver::start(gone).await;
    let app = start_with(vec![slack(&chat)], vec![Scenario::Available]).await;
    app.fail("a").await;
    let dead =
        "select count(*) from alerts where state = 'dead' and last_answer = '410 no_service'";
    eventually("it is given up", async || app.count(dead).await == 1).await;
    let url = format!("http://{}/", app.service.admin_address);
    let page = client().get(url).header("accept", "text/html").send().await;
    let page = page.unwrap().text().await.unwrap();
    assert!(page.contains("slack does not take alerts"), "{page}");
    assert!(!page.contains("Nobody is told"));
}

/// What was over when it was first seen, and what happened before there were channels, is not told.
#[tokio::test(flavor = "multi_thread")]
async fn old_lockouts_wake_nobody() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Available]).await;
    app.fail_number("9", "9", OffsetDateTime::now_utc() - Duration::days(40))
        .await;
    app.fail("a").await;
    let undecided = "select count(*) from incident_changes where dispatched_at is null";
    eventually("all is decided", async || app.count(undecided).await == 0).await;
    eventually("the new one is told", async || hook.received().len() == 1).await;
    assert_eq!(hook.received()[0].body["data"]["incident"]["waba_id"], WABA);
}

/// Two processes with the same channel, one of them killed, and forty accounts at once: a few
/// messages, and everybody is in them.
#[tokio::test(flavor = "multi_thread")]
async fn forty_accounts_are_a_few_messages_and_a_killed_process_loses_none() {
    let hook = Receiver::start([]).await;
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Available]);
    let database = TestDatabase::create().await;
    let (graph_url, url) = (simulator.url(), format!("{}/hook", hook.address));
    let start = || {
        let settings = [
            ("META_APP_SECRET", APP_SECRET),
            ("META_ACCESS_TOKEN", ACCESS_TOKEN),
            ("META_GRAPH_URL", &graph_url),
            ("LOCKWATCH_ALERT_WEBHOOK_URL", &url),
            ("LOCKWATCH_ALERT_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ];
        let serve = Serve::on_database(&database.url, &settings);
        serve.wait_for_log("the database is ready");
        serve
    };
    let (mut first, second) = (start(), start());
    let accounts: Vec<String> = (0..40).map(|n| format!("88{n:03}")).collect();
    for (n, account) in accounts.iter().enumerate() {
        let body = lockwatch::meta::compose::StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed(account, NUMBER, "a")
            .into_body();
        let signature = lockwatch::meta::signature::sign(APP_SECRET, &body);
        let request = client()
            .post(&second.webhook)
            .header(lockwatch::meta::signature::SIGNATURE_HEADER, signature);
        assert_eq!(request.body(body).send().await.unwrap().status(), 200);
        if n == 20 {
            first.signal(Signal::KILL);
            first.wait();
        }
    }
    let db = database.database().pool();
    let told = || {
        let mut told = BTreeSet::new();
        for message in hook.received() {
            let data = &message.body["data"];
            let all = data["incidents"].as_array().cloned();
            let all = all.unwrap_or_else(|| vec![data["incident"].clone()]);
            told.extend(all.iter().map(|incident| incident["waba_id"].to_string()));
        }
        told.len()
    };
    let written = "select count(*) from alerts";
    let count =
        async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&db).await.unwrap() };
    eventually("an alert for each", async || count(written).await == 40).await;
    let singles = "select count(*) from alerts where state = 'accepted'";
    eventually("five go at once", async || count(singles).await >= 4).await;
    assert!(hook.received().len() <= 7, "{:?}", hook.types());
    // A minute later, when also the lease of what the killed one had taken is over.
    let later = "update alerts set created_at = created_at - interval '60 s',
                                   ended_at = ended_at - interval '60 s', lease_until = null";
    sqlx::query(later).execute(&db).await.unwrap();
    eventually("every account is told", async || told() == accounts.len()).await;
    let digests = hook.received();
    let digest = &digests.last().unwrap().body;
    assert_eq!(digest["type"], "digest");
    let text = digest["data"]["text"].as_str().unwrap();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.contains(" more."), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_test_command_prints_what_the_receiver_answers() {
    let chat = Receiver::start([
        (StatusCode::OK, "ok"),
        (StatusCode::FORBIDDEN, "invalid_token"),
    ]);
    let chat = chat.await;
    let url = format!("{}/services/T/B/x", chat.address);
    let run = async |arguments: &[&str], url: &str| {
        let mut command = lockwatch(arguments);
        command.env("LOCKWATCH_ALERT_SLACK_URL", url);
        let output = spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let accepted = run(&["alerts", "test"], &url).await;
    assert_eq!(accepted, (Some(0), "slack: accepted: 200 ok\n".to_owned()));
    let (code, text) = run(&["alerts", "test", "slack"], &url).await;
    assert_eq!(code, Some(1));
    assert!(
        text.starts_with("slack: not accepted: 403 invalid_token\n"),
        "{text}"
    );
    let sent = &chat.received()[0].body;
    assert_eq!(sent["text"], "Lockwatch: a test alert. Nothing is locked.");
    assert!(json!(sent).to_string().contains("alerts arrive here"));
    let (code, text) = run(&["alerts", "test", "pager"], &url).await;
    assert_eq!(code, Some(2));
    assert!(
        text.contains("there is no channel pager; there is slack"),
        "{text}"
    );
    let (code, text) = run(&["alerts", "test"], "http://chat.example/x").await;
    assert_eq!(code, Some(2));
    assert!(
        text.contains("LOCKWATCH_ALERT_SLACK_URL must be a URL"),
        "{text}"
    );
    assert!(
        !text.contains("chat.example"),
        "it may hold a secret: {text}"
    );
}
