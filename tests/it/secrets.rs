//! Secrets, tokens and recipients: they are in nothing that Lockwatch writes.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::checks;
use lockwatch::store::incidents::{self, IncidentFilter};
use reqwest::Client;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use rustix::process::Signal;
use serde_json::json;

use crate::support::database::TestDatabase;
use crate::support::process::{Serve, lockwatch};
use crate::support::{NUMBER, OTHER_NUMBER, WABA, client, eventually};

const APP_SECRET: &str = "canary-app-secret-4711";
const SECOND_SECRET: &str = "canary-other-secret-4712";
const VERIFY_TOKEN: &str = "canary-verify-token-4713";
const ACCESS_TOKEN: &str = "EAAcanaryAccessToken4714";
const ADMIN_TOKEN: &str = "canary-admin-token-4715";
/// Nobody listens there: every delivery fails, and its error must not repeat the URL.
const ALERT_URLS: [&str; 3] = [
    "http://localhost:1/services/canary-slack-4716",
    "http://localhost:1/hook?token=canary-hook-4717",
    "http://canary-user:canary-password-4718@localhost:1",
];
const SMTP_URL: &str = "smtp://canary-mail:canary-password-4719@localhost:1";
const WEBHOOK_KEY: &str = "Y2FuYXJ5LXdlYmhvb2sta2V5LTQ3MjAtNDcyMA==";
/// What stands in these settings and must stand nowhere else.
const ALERT_CANARIES: [&str; 6] = [
    "canary-slack-4716",
    "canary-hook-4717",
    "canary-password-4718",
    "canary-password-4719",
    WEBHOOK_KEY,
    "canary-webhook-key",
];
/// A phone number, a participant of a group, and a business-scoped user id.
const RECIPIENTS: [&str; 3] = ["4915112345678", "447700900123", "13491208655302741918"];

/// Every output of Lockwatch, by its source.
#[derive(Default)]
struct Outputs(BTreeMap<String, String>);

impl Outputs {
    fn add(&mut self, source: impl Into<String>, text: impl Into<String>) {
        self.0.insert(source.into(), text.into());
    }

    /// Fails if one of these words is in an output, in plain text or in base64.
    fn assert_free_of(&self, words: &[&str]) {
        for (source, text) in &self.0 {
            let decoded = decode_base64(text);
            for word in words {
                assert!(!text.contains(word), "{word} is in {source}: {text}");
                assert!(
                    !decoded.iter().any(|text| text.contains(word)),
                    "{word} is in {source}, in base64: {text}"
                );
            }
        }
    }
}

/// Decodes everything in a text that may be base64, from each of the four offsets of its start.
fn decode_base64(text: &str) -> Vec<String> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, config);
    let mut decoded = Vec::new();
    for run in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '+' && c != '/') {
        if run.len() < 8 {
            continue;
        }
        for start in 0..4 {
            let rest = &run[start..];
            // A single last character holds no byte.
            let rest = &rest[..rest.len() - usize::from(rest.len() % 4 == 1)];
            if let Ok(bytes) = engine.decode(rest) {
                decoded.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
    decoded
}

/// A running `serve` with a canary for each secret.
struct Lab {
    simulator: Simulator,
    database: TestDatabase,
    serve: Serve,
    client: Client,
    outputs: Outputs,
}

/// The environment of each process, with every canary.
fn settings(simulator: &Simulator) -> [(&'static str, String); 12] {
    let [slack, hook, prometheus] = ALERT_URLS.map(ToOwned::to_owned);
    [
        ("META_APP_SECRET", format!("{APP_SECRET},{SECOND_SECRET}")),
        ("META_VERIFY_TOKEN", VERIFY_TOKEN.to_owned()),
        ("META_ACCESS_TOKEN", ACCESS_TOKEN.to_owned()),
        ("META_GRAPH_URL", simulator.url()),
        ("LOCKWATCH_ADMIN_TOKEN", ADMIN_TOKEN.to_owned()),
        ("LOCKWATCH_ALERT_SLACK_URL", slack),
        ("LOCKWATCH_ALERT_WEBHOOK_URL", hook),
        (
            "LOCKWATCH_ALERT_WEBHOOK_SECRET",
            format!("whsec_{WEBHOOK_KEY}"),
        ),
        ("LOCKWATCH_ALERTMANAGER_URL", prometheus),
        ("LOCKWATCH_SMTP_URL", SMTP_URL.to_owned()),
        ("LOCKWATCH_ALERT_EMAIL_TO", "a@example.com".to_owned()),
        ("LOCKWATCH_ALERT_EMAIL_FROM", "b@example.com".to_owned()),
    ]
}

/// A callback with the recipients in every field of Meta's and in the business's own text.
fn failures_of_recipients() -> Vec<u8> {
    let errors = |recipient: &str| {
        json!([{
            "code": 131_031,
            "title": format!("for {recipient}"),
            "message": recipient,
            "error_data": {"details": format!("+{recipient} cannot be reached")},
        }])
    };
    let [phone, participant, user] = RECIPIENTS;
    let mut callback = StatusCallback::new();
    for (n, (recipient, id)) in [
        (phone, phone.to_owned()),
        (participant, participant.to_owned()),
        (user, format!("US.{user}")),
    ]
    .into_iter()
    .enumerate()
    {
        let status = json!({
            "id": message_id(recipient, &format!("3EB0C431C26A1916E{n}")),
            "status": "failed",
            "recipient_id": id,
            "timestamp": "1764000000",
            "biz_opaque_callback_data": format!("order for {recipient}"),
            "errors": errors(recipient),
        });
        callback = callback.status(WABA, NUMBER, status);
    }
    let group = json!({
        "id": message_id(phone, "3EB0C431C26A1916EF"),
        "status": "failed",
        "recipient_type": "group",
        "recipient_id": "120363001234567890@g.us",
        "recipient_participant_id": participant,
        "timestamp": "1764000001",
        "errors": errors(participant),
    });
    callback.status(WABA, OTHER_NUMBER, group).into_body()
}

impl Lab {
    async fn start() -> Self {
        let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
        // The worst possible answer of Meta: it repeats the token.
        simulator.set_scenarios(NUMBER, [Scenario::TokenInError]);
        simulator.set_scenarios(OTHER_NUMBER, [Scenario::Payment]);
        let database = TestDatabase::create().await;
        let settings = settings(&simulator);
        let mut environment = vec![("RUST_LOG", "trace")];
        for (name, value) in &settings {
            environment.push((name, value.as_str()));
        }
        let serve = Serve::on_database(&database.url, &environment);
        Self {
            simulator,
            database,
            serve,
            client: client(),
            outputs: Outputs::default(),
        }
    }

    async fn post(&self, body: &[u8], secret: &str) -> String {
        let request = self
            .client
            .post(&self.serve.webhook)
            .header(SIGNATURE_HEADER, sign(secret, body))
            .body(body.to_vec());
        request.send().await.unwrap().text().await.unwrap()
    }

    /// Delivers the failures, and collects the answers to bad signatures and to handshakes.
    async fn collect_webhook_answers(&mut self) {
        let body = failures_of_recipients();
        assert_eq!(self.post(&body, SECOND_SECRET).await, "");
        let refusal = self.post(&body, "not-the-app-secret").await;
        self.outputs.add("a refused signature", refusal);
        for (source, token) in [
            ("a refused handshake", "wrong"),
            ("a handshake", VERIFY_TOKEN),
        ] {
            let url = format!(
                "{}?hub.mode=subscribe&hub.challenge=1&hub.verify_token={token}",
                self.serve.webhook
            );
            let answer = self.client.get(url).send().await.unwrap();
            self.outputs.add(source, answer.text().await.unwrap());
        }
    }

    /// Waits until both numbers are looked up. Returns the incident's id.
    async fn wait_for_lookups(&self) -> i64 {
        let db = self.database.database().pool();
        let incidents = async || {
            incidents::list(&db, &IncidentFilter::default(), 1)
                .await
                .unwrap()
        };
        eventually("both numbers are looked up", async || {
            let Some(incident) = incidents().await.pop() else {
                return false;
            };
            let checks = checks::list(&db, incident.id, None, 10).await.unwrap();
            checks.len() >= 2
        })
        .await;
        incidents().await[0].id
    }

    /// Collects every kind of page, as a stranger and as an admin.
    async fn collect_admin_pages(&mut self, id: i64) {
        let api = format!("/api/v1/incidents/{id}");
        for path in [
            "/".to_owned(),
            format!("/incidents/{id}"),
            "/?q=4915112345678".to_owned(),
            "/api/v1/incidents".to_owned(),
            "/api/v1/incidents?format=csv".to_owned(),
            api.clone(),
            format!("{api}/deliveries"),
            format!("{api}/deliveries?format=csv"),
            format!("{api}/checks"),
            format!("{api}/checks?format=csv"),
            format!("{api}?access_token=x"),
            format!("{api}/deliveries?limit=x"),
            "/alerts".to_owned(),
            "/metrics".to_owned(),
            "/readyz".to_owned(),
            "/openapi.json".to_owned(),
            "/nothing".to_owned(),
        ] {
            for (reader, token) in [("a stranger", "wrong"), ("an admin", ADMIN_TOKEN)] {
                for accept in ["text/html", "*/*"] {
                    let response = self
                        .client
                        .get(format!("{}{path}", self.serve.admin))
                        .header(ACCEPT, accept)
                        .header(AUTHORIZATION, format!("Bearer {token}"))
                        .send()
                        .await
                        .unwrap();
                    let headers = format!("{:?}", response.headers());
                    let text = headers + &response.text().await.unwrap();
                    self.outputs
                        .add(format!("{path} for {reader}, {accept}"), text);
                }
            }
        }
        let masked = &self.outputs.0[&format!("{api}/deliveries for an admin, */*")];
        assert!(
            masked.contains("*********5678") && masked.contains("order for *************"),
            "{masked}"
        );
    }

    /// Removes the pages on which the admin sees his own search again.
    fn remove_own_search(&mut self) {
        let outputs = &mut self.outputs.0;
        let page = outputs.remove("/?q=4915112345678 for an admin, text/html");
        assert!(page.unwrap().contains("No incident matches."));
        outputs.remove("/?q=4915112345678 for an admin, */*");
    }

    async fn collect_refused_resolution(&mut self, id: i64) {
        let url = format!("{}/api/v1/incidents/{id}/resolve", self.serve.admin);
        let refusal = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "text/plain")
            .body("x")
            .header(AUTHORIZATION, format!("Bearer {ADMIN_TOKEN}"))
            .header(HOST, "x")
            .send()
            .await
            .unwrap();
        self.outputs
            .add("a refused resolution", refusal.text().await.unwrap());
    }

    fn collect_command_outputs(&mut self, id: i64) {
        let id = id.to_string();
        for arguments in [
            &["incidents", "list"][..],
            &["incidents", "list", "--json"],
            &["incidents", "list", "--csv"],
            &["incidents", "show", &id],
            &["incidents", "show", &id, "--json"],
            &["incidents", "acknowledge", &id, "--by", "somebody"],
            &["alerts", "list"],
            &["alerts", "list", "--json"],
            &["alerts", "test"],
            &["accounts", "list"],
            &["captures", "list"],
            &["captures", "list", "--json"],
            &["captures", "export", "--redact"],
            &["serve", "--listen", "nonsense"],
            &["serve", "--help"],
            &["check", NUMBER],
            &["incidents", "show", "999"],
        ] {
            let output = lockwatch(arguments)
                .env("DATABASE_URL", &self.database.url)
                .envs(settings(&self.simulator))
                .output()
                .unwrap();
            let bytes = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(!text.is_empty(), "{arguments:?}");
            self.outputs.add(arguments.join(" "), text);
        }
    }

    /// Proves that the test can fail: a reveal shows every recipient, and is logged.
    async fn assert_reveal_shows_recipients(&self, id: i64) {
        let path = format!("/api/v1/incidents/{id}/deliveries?reveal=recipients");
        let response = self
            .client
            .get(format!("{}{path}", self.serve.admin))
            .header(AUTHORIZATION, format!("Bearer {ADMIN_TOKEN}"))
            .send()
            .await
            .unwrap();
        let text = response.text().await.unwrap();
        let decoded = decode_base64(&text).concat();
        for recipient in RECIPIENTS {
            assert!(text.contains(recipient), "{recipient}: {text}");
            assert!(
                decoded.contains(recipient),
                "{recipient}, in base64: {text}"
            );
        }
        self.serve.wait_for_log(&format!(
            "recipients of incident {id} were shown in full on request"
        ));
    }

    /// Lets every channel fail, and collects what is kept of it.
    async fn collect_alerts(&mut self) {
        for channel in ["slack", "webhook", "email", "alertmanager"] {
            let press = self
                .client
                .post(format!("{}/alerts/{channel}/test", self.serve.admin))
                .header(AUTHORIZATION, format!("Bearer {ADMIN_TOKEN}"));
            assert!(
                press.send().await.unwrap().status().is_success(),
                "{channel}"
            );
        }
        let db = self.database.database().pool();
        let failed = "select count(*) from alert_channels where failed_at is not null";
        eventually("every channel fails", async || {
            let failed: i64 = sqlx::query_scalar(failed).fetch_one(&db).await.unwrap();
            failed == 4
        })
        .await;
        for rows in [
            "select string_agg(a::text, ' ') from alerts a",
            "select string_agg(a::text, ' ') from alert_channels a",
        ] {
            let text: String = sqlx::query_scalar(rows).fetch_one(&db).await.unwrap();
            self.outputs.add(rows, text);
        }
    }

    /// Stops `serve` and collects its log.
    fn collect_log(&mut self) {
        self.serve.signal(Signal::TERM);
        assert!(self.serve.wait().success());
        let log = self.serve.whole_log().join("\n");
        assert!(
            log.contains("TRACE"),
            "the log is not at its most verbose level"
        );
        self.outputs.add("the log", log);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_holds_a_secret_a_token_or_a_full_recipient() {
    let mut lab = Lab::start().await;
    lab.collect_webhook_answers().await;
    let id = lab.wait_for_lookups().await;
    lab.collect_alerts().await;
    lab.collect_admin_pages(id).await;
    lab.remove_own_search();
    lab.collect_refused_resolution(id).await;
    lab.collect_command_outputs(id);
    lab.assert_reveal_shows_recipients(id).await;
    lab.collect_log();
    lab.outputs.assert_free_of(&[
        APP_SECRET,
        SECOND_SECRET,
        VERIFY_TOKEN,
        ACCESS_TOKEN,
        ADMIN_TOKEN,
    ]);
    lab.outputs.assert_free_of(&ALERT_CANARIES);
    lab.outputs.assert_free_of(&RECIPIENTS);
}
