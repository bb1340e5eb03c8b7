//! The channels: what each sends, and what becomes of it.

use std::fs;

use axum::http::StatusCode;
use lockwatch::alerts::Alerting;
use lockwatch::alerts::channel::Channel;
use lockwatch::alerts::file::AlertsFile;
use lockwatch::simulator::Scenario;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

use super::{Receiver, slack, start_alerting, start_with, webhook};
use crate::support::process::lockwatch;
use crate::support::{TestApp, WABA, client, eventually};

/// Starts with the channels of a file that is kept in this folder.
async fn start_with_file(folder: &tempfile::TempDir, text: &str) -> TestApp {
    let path = folder.path().join("alerts.toml");
    fs::write(&path, text).unwrap();
    let alerting = Alerting {
        file: Some(AlertsFile::read(path, std::iter::empty()).unwrap()),
        ..Alerting::default()
    };
    start_alerting(alerting, vec![Scenario::Payment]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_channels_is_read_again_and_an_error_keeps_the_old_ones() {
    let (one, two) = (Receiver::start([]).await, Receiver::start([]).await);
    let folder = tempfile::tempdir().unwrap();
    let table = |name: &str, receiver: &Receiver| {
        format!("[slack.{name}]\nurl = \"{}/x\"\n", receiver.address)
    };
    let app = start_with_file(&folder, &table("one", &one)).await;
    app.fail_number("1", "1", time::OffsetDateTime::now_utc())
        .await;
    eventually("the first is told", async || one.received().len() == 1).await;

    let path = folder.path().join("alerts.toml");
    fs::write(&path, table("two", &two) + "colour = \"red\"\n").unwrap();
    let page = async || {
        let page = client()
            .get(app.admin("/alerts"))
            .header("accept", "text/html");
        page.send().await.unwrap().text().await.unwrap()
    };
    eventually("the error is shown", async || {
        page().await.contains("line 3: unknown field `colour`")
    })
    .await;
    app.fail_number("2", "2", time::OffsetDateTime::now_utc())
        .await;
    eventually("the first is told still", async || {
        one.received().len() == 2
    })
    .await;

    fs::write(&path, table("two", &two)).unwrap();
    eventually("the other is shown", async || {
        let page = page().await;
        page.contains("/alerts/two/test") && !page.contains("unknown field")
    })
    .await;
    app.fail_number("3", "3", time::OffsetDateTime::now_utc())
        .await;
    eventually("the other is told", async || two.received().len() == 1).await;
    assert_eq!(one.received().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_told_of_what_they_choose() {
    let receivers = [
        Receiver::start([]).await,
        Receiver::start([]).await,
        Receiver::start([]).await,
    ];
    let [all, eu, ends] = &receivers;
    let url = |receiver: &Receiver| format!("url = \"{}/x\"", receiver.address);
    let text = format!(
        "[slack.all]\n{}\n[slack.eu]\n{}\nlabels = [\"eu\"]\naccounts = [\"7\"]\n\
         [slack.ends]\n{}\nkinds = [\"incident.resolved\"]\n",
        url(all),
        url(eu),
        url(ends)
    );
    let folder = tempfile::tempdir().unwrap();
    let app = start_with_file(&folder, &text).await;
    let csv = folder.path().join("accounts.csv");
    fs::write(&csv, "waba_id,name,labels\n5,Shop,eu | big\n6,,us\n").unwrap();
    let database = app.database.url.clone();
    let imported = spawn_blocking(move || {
        let mut command = lockwatch(&["accounts", "import", csv.to_str().unwrap()]);
        command.env("DATABASE_URL", database).output().unwrap()
    });
    assert!(imported.await.unwrap().status.success());
    for account in ["5", "6", "7"] {
        app.fail_number(account, account, time::OffsetDateTime::now_utc())
            .await;
    }
    eventually("all are told", async || {
        all.received().len() == 3 && eu.received().len() == 2
    })
    .await;
    let resolved = client().post(app.admin("/api/v1/incidents/1/resolve"));
    assert_eq!(resolved.send().await.unwrap().status(), 200);
    eventually("the end is told", async || ends.received().len() == 1).await;
    eventually("to all that want it", async || {
        all.received().len() == 4 && eu.received().len() == 3
    })
    .await;
    let text = |receiver: &Receiver, n: usize| receiver.received()[n].body["text"].to_string();
    assert!(
        text(ends, 0).contains("Over: account Shop (5)"),
        "{}",
        text(ends, 0)
    );
    assert!((0..3).all(|n| !text(eu, n).contains("account 6")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_or_sends_elsewhere_holds_up_no_other() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut socket, _)) = silent.accept().await {
            let mut buffer = [0; 1024];
            let _ = socket.read(&mut buffer).await;
            open.push(socket);
        }
    });
    let good = Receiver::start([]).await;
    let moved = Receiver::start([(StatusCode::FOUND, "there")]).await;
    let hanging = Channel::slack("hanging", &format!("http://{address}/x").into()).unwrap();
    let moved_channel = Channel::slack("moved", &format!("{}/x", moved.address).into()).unwrap();
    let channels = vec![hanging, slack(&good), moved_channel];
    let app = start_with(channels, vec![Scenario::Payment]).await;
    app.fail("a").await;
    eventually("the good one is told", async || good.received().len() == 1).await;
    let dead = "select count(*) from alerts where state = 'dead' and last_answer = '302 there'";
    eventually("nobody follows", async || app.count(dead).await == 1).await;
    let waits = "select count(*) from alerts where channel = 'hanging' and state = 'waiting'
                    and last_answer like '%timed out%'";
    eventually("the hanging one is tried again", async || {
        app.count(waits).await == 1
    })
    .await;
}

/// Receivers repeat what they got: "Cannot POST /hooks/…".
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_repeats_a_secret_is_kept_without_it() {
    let echo = "Cannot POST /hooks/canary-path?key=canary-query canary-value";
    let receiver = Receiver::start([(StatusCode::NOT_FOUND, echo)]).await;
    let text = format!(
        "[json.own]\nurl = \"{}/hooks/canary-path?key=canary-query\"\n\
         body = {{ key = \"{{token}}\" }}\nvalues = {{ token = \"canary-value\" }}\n",
        receiver.address
    );
    let folder = tempfile::tempdir().unwrap();
    let app = start_with_file(&folder, &text).await;
    app.fail("a").await;
    let answer = "select last_answer from alerts where state = 'dead'";
    let count = "select count(*) from alerts where state = 'dead'";
    eventually("it is given up", async || app.count(count).await == 1).await;
    let answer = app.text(answer).await.unwrap();
    assert_eq!(answer, "404 Cannot POST /hooks/…?key=… …");
}

/// The button of the page takes the same way as any other alert.
#[tokio::test(flavor = "multi_thread")]
async fn a_test_from_the_page_shows_what_the_receiver_answers() {
    let hook = Receiver::start([(StatusCode::FORBIDDEN, "invalid_token")]).await;
    let app = start_with(vec![webhook(&hook)], vec![]).await;
    let press = client().post(app.admin("/alerts/webhook/test"));
    assert!(
        press
            .send()
            .await
            .unwrap()
            .url()
            .path()
            .ends_with("/alerts")
    );
    let unknown = client().post(app.admin("/alerts/pager/test"));
    assert_eq!(
        unknown.send().await.unwrap().status(),
        StatusCode::NOT_FOUND
    );
    eventually("the answer is shown", async || {
        let page = client()
            .get(app.admin("/alerts"))
            .header("accept", "text/html");
        let page = page.send().await.unwrap().text().await.unwrap();
        page.contains("403 invalid_token") && page.contains("given up") && page.contains("never")
    })
    .await;
    assert_eq!(hook.types(), ["test"]);
}

/// An Alertmanager is told what is wrong now, and for a while what is over.
#[tokio::test(flavor = "multi_thread")]
async fn states_are_repeated_and_end() {
    let prometheus = Receiver::start([]).await;
    let channel = Channel::alertmanager("prom", &prometheus.address.clone().into()).unwrap();
    let app = start_with(vec![channel], vec![Scenario::Payment]).await;
    app.fail("a").await;
    eventually("it fires", async || prometheus.received().len() == 1).await;
    let first = prometheus.received()[0].body[0].clone();
    assert_eq!(
        first["labels"],
        json!({
            "alertname": "WhatsAppAccountLocked", "waba_id": WABA, "incident": "1",
            "kind": "lock", "severity": "critical",
        })
    );
    assert_eq!(first["annotations"]["cause"], "Payment problem");
    assert_eq!(
        first["generatorURL"],
        "https://lockwatch.example/incidents/1"
    );
    let resolved = client().post(app.admin("/api/v1/incidents/1/resolve"));
    assert_eq!(resolved.send().await.unwrap().status(), 200);
    eventually("its end is told", async || {
        let last = prometheus.received().pop().unwrap().body[0].clone();
        last["endsAt"].as_str() < first["endsAt"].as_str() && last["labels"] == first["labels"]
    })
    .await;
    assert_eq!(
        app.count("select count(*) from alerts").await,
        0,
        "it has no queue"
    );
    let press = client().post(app.admin("/alerts/prom/test"));
    assert!(
        press
            .send()
            .await
            .unwrap()
            .url()
            .path()
            .ends_with("/alerts")
    );
    eventually("the test arrives", async || {
        let received = prometheus.received();
        received
            .iter()
            .any(|message| message.body[0]["labels"]["alertname"] == "LockwatchTest")
    })
    .await;
}

/// What the services document: the required members, and their limits.
#[tokio::test(flavor = "multi_thread")]
async fn presets_send_what_the_services_document() {
    let receiver = Receiver::start([]).await;
    let text: String = [
        (
            "pagerduty",
            "routing_key = \"0123456789abcdef0123456789abcdef\"",
        ),
        ("telegram", "token = \"1:a\", chat_id = \"-100\""),
        ("ntfy", "topic = \"locks\""),
        ("discord", ""),
        ("teams", ""),
        ("google_chat", ""),
    ]
    .iter()
    .map(|(preset, values)| {
        format!(
            "[json.{preset}]\npreset = \"{preset}\"\nurl = \"{}/{preset}\"\n\
             values = {{ {values} }}\n",
            receiver.address
        )
    })
    .collect();
    let folder = tempfile::tempdir().unwrap();
    let app = start_with_file(&folder, &text).await;
    app.fail("a").await;
    eventually("each is told", async || receiver.received().len() == 6).await;
    let body = |has: &str| -> Value {
        let received = receiver.received();
        let found = received
            .iter()
            .find(|message| message.body.get(has).is_some());
        found.unwrap_or_else(|| panic!("{has}")).body.clone()
    };
    let length = |value: &Value| value.as_str().unwrap().chars().count();
    let link = "https://lockwatch.example/incidents/1";
    // https://developer.pagerduty.com/docs/send-alert-event
    let pagerduty = body("event_action");
    assert_eq!(pagerduty["event_action"], "trigger");
    assert_eq!(length(&pagerduty["routing_key"]), 32);
    assert!(length(&pagerduty["dedup_key"]) <= 255);
    let payload = &pagerduty["payload"];
    assert!(length(&payload["summary"]) <= 1024 && payload["source"].is_string());
    assert_eq!(payload["severity"], "critical");
    assert_eq!(pagerduty["links"][0]["href"], link);
    // https://core.telegram.org/bots/api#sendmessage
    let telegram = body("chat_id");
    assert!(length(&telegram["text"]) <= 4096);
    assert_eq!(telegram["chat_id"], "-100");
    // https://docs.ntfy.sh/publish/#publish-as-json
    let ntfy = body("topic");
    assert!((1..=5).contains(&ntfy["priority"].as_i64().unwrap()));
    assert!(ntfy["message"].as_str().unwrap().len() <= 4096);
    assert_eq!(
        (&ntfy["topic"], &ntfy["click"]),
        (&json!("locks"), &json!(link))
    );
    // https://discord.com/developers/docs/resources/webhook#execute-webhook
    let discord = body("content");
    assert!(length(&discord["content"]) <= 2000);
    assert_eq!(discord["allowed_mentions"], json!({"parse": []}));
    // https://learn.microsoft.com/en-us/connectors/teams/#microsoft-teams-webhook
    let teams = body("attachments");
    let card = &teams["attachments"][0];
    assert_eq!(teams["type"], "message");
    assert_eq!(
        card["contentType"],
        "application/vnd.microsoft.card.adaptive"
    );
    assert_eq!(card["content"]["type"], "AdaptiveCard");
    assert_eq!(card["content"]["actions"][0]["url"], link);
    // https://developers.google.com/workspace/chat/quickstart/webhooks
    let received = receiver.received();
    let chat = received
        .iter()
        .find(|message| message.body.as_object().unwrap().len() == 1)
        .unwrap();
    assert!(chat.body["text"].as_str().unwrap().len() <= 32_000);
}
