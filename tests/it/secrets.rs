//! Secrets, tokens and recipients: whatever Lockwatch writes, they are not in it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::meta::signature::{HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::checks;
use lockwatch::store::incidents::{self, IncidentFilter};
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
/// A phone number, somebody in a group, and a business-scoped user id.
const PEOPLE: [&str; 3] = ["4915112345678", "447700900123", "13491208655302741918"];

/// Everything that was written, by where.
#[derive(Default)]
struct Written(BTreeMap<String, String>);

impl Written {
    fn keep(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.insert(place.into(), text.into());
    }

    /// Fails where one of these words stands, in base64 as well.
    fn holds_none_of(&self, words: &[&str]) {
        for (place, text) in &self.0 {
            let decoded = decoded(text);
            for word in words {
                assert!(!text.contains(word), "{word} is in {place}: {text}");
                assert!(
                    !decoded.iter().any(|text| text.contains(word)),
                    "{word} is in {place}, in base64: {text}"
                );
            }
        }
    }
}

/// Whatever base64 there may be in a text, decoded from each of its places.
fn decoded(text: &str) -> Vec<String> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let engine = GeneralPurpose::new(&alphabet::STANDARD, config);
    let runs = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '+' && c != '/')
        .filter(|run| run.len() >= 8);
    let places = runs.flat_map(|run| (0..4).map(move |start| &run[start..]));
    places
        .filter_map(|run| {
            engine
                .decode(&run[..run.len() - usize::from(run.len() % 4 == 1)])
                .ok()
        })
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_log_metric_or_error_holds_a_secret_a_token_or_a_full_recipient() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    // The worst that Meta could answer: the token itself.
    simulator.script(NUMBER, [Scenario::RepeatsToken]);
    simulator.script(OTHER_NUMBER, [Scenario::Payment]);
    let database = TestDatabase::create().await;
    let secrets = format!("{APP_SECRET},{SECOND_SECRET}");
    let mut serve = Serve::on_database(
        &database.url,
        &[
            ("META_APP_SECRET", secrets.as_str()),
            ("META_VERIFY_TOKEN", VERIFY_TOKEN),
            ("META_ACCESS_TOKEN", ACCESS_TOKEN),
            ("META_GRAPH_URL", &simulator.url()),
            ("LOCKWATCH_ADMIN_TOKEN", ADMIN_TOKEN),
            ("RUST_LOG", "trace"),
        ],
    );
    let client = client();
    let mut written = Written::default();

    // Whom it is for stands in every place that Meta has, and in our own text.
    let errors = |person: &str| {
        json!([{"code": 131_031, "title": format!("for {person}"), "message": person,
        "error_data": {"details": format!("+{person} cannot be reached")}}])
    };
    let mut callback = StatusCallback::new();
    for (n, person) in PEOPLE.iter().enumerate() {
        let scoped = format!("US.{person}");
        let status = json!({"id": message_id(person, &format!("3EB0C431C26A1916E{n}")), "status": "failed",
            "recipient_id": if n == 2 { scoped.as_str() } else { person }, "timestamp": "1764000000",
            "biz_opaque_callback_data": format!("order for {person}"), "errors": errors(person)});
        callback = callback.status(WABA, NUMBER, status);
    }
    let group = json!({"id": message_id(PEOPLE[0], "3EB0C431C26A1916EF"), "status": "failed", "recipient_type": "group",
        "recipient_id": "120363001234567890@g.us", "recipient_participant_id": PEOPLE[1], "timestamp": "1764000001",
        "errors": errors(PEOPLE[1])});
    let body = callback.status(WABA, OTHER_NUMBER, group).into_body();
    let post = async |body: &[u8], signature: &str| {
        let request = client
            .post(&serve.webhook)
            .header(HEADER, signature)
            .body(body.to_vec());
        request.send().await.unwrap().text().await.unwrap()
    };
    assert_eq!(post(&body, &sign(SECOND_SECRET, &body)).await, "");
    written.keep(
        "a refused signature",
        post(&body, &sign("not-the-app-secret", &body)).await,
    );
    for query in [
        "hub.verify_token=wrong",
        &format!("hub.verify_token={VERIFY_TOKEN}"),
    ] {
        let url = format!(
            "{}?hub.mode=subscribe&hub.challenge=1&{query}",
            serve.webhook
        );
        written.keep(
            query,
            client.get(url).send().await.unwrap().text().await.unwrap(),
        );
    }
    written
        .0
        .remove(&format!("hub.verify_token={VERIFY_TOKEN}"));

    let db = database.database().pool();
    eventually("both numbers are looked up", async || {
        let Some(incident) = incidents::list(&db, &IncidentFilter::default(), 1)
            .await
            .unwrap()
            .pop()
        else {
            return false;
        };
        checks::list(&db, incident.id, None, 10)
            .await
            .unwrap()
            .len()
            >= 2
    })
    .await;
    let id = incidents::list(&db, &IncidentFilter::default(), 1)
        .await
        .unwrap()[0]
        .id;

    let api = format!("/api/v1/incidents/{id}");
    let pages = [
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
        "/metrics".to_owned(),
        "/readyz".to_owned(),
        "/openapi.json".to_owned(),
        "/nothing".to_owned(),
    ];
    for page in &pages {
        for (who, authorization) in [
            ("somebody", "Bearer wrong".to_owned()),
            ("us", format!("Bearer {ADMIN_TOKEN}")),
        ] {
            for accept in ["text/html", "*/*"] {
                let request = client
                    .get(format!("{}{page}", serve.admin))
                    .header(ACCEPT, accept);
                let response = request
                    .header(AUTHORIZATION, authorization.clone())
                    .send()
                    .await
                    .unwrap();
                let headers = format!("{:?}", response.headers());
                written.keep(
                    format!("{page} for {who}, {accept}"),
                    headers + &response.text().await.unwrap(),
                );
            }
        }
    }
    // What was searched for is shown again, to whoever typed it.
    let found = written
        .0
        .remove("/?q=4915112345678 for us, text/html")
        .unwrap();
    written.0.remove("/?q=4915112345678 for us, */*");
    assert!(found.contains("None that fits."));
    let shown = &written.0[&format!("{api}/deliveries for us, */*")];
    assert!(
        shown.contains("*********5678") && shown.contains("order for *************"),
        "{shown}"
    );
    let resolve = client
        .post(format!("{}{api}/resolve", serve.admin))
        .header(CONTENT_TYPE, "text/plain")
        .body("x");
    let resolve = resolve
        .header(AUTHORIZATION, format!("Bearer {ADMIN_TOKEN}"))
        .header(HOST, "x")
        .send()
        .await
        .unwrap();
    written.keep("resolve", resolve.text().await.unwrap());

    for arguments in [
        &["incidents", "list"][..],
        &["incidents", "list", "--json"],
        &["incidents", "list", "--csv"],
        &["incidents", "show", &id.to_string()],
        &["incidents", "show", &id.to_string(), "--json"],
        &["captures", "list"],
        &["captures", "list", "--json"],
        &["captures", "export", "--redact"],
        &["serve", "--listen", "nonsense"],
        &["serve", "--help"],
        &["check", NUMBER],
        &["incidents", "show", "999"],
    ] {
        let output = lockwatch(arguments)
            .env("DATABASE_URL", &database.url)
            .env("META_APP_SECRET", &secrets)
            .env("META_VERIFY_TOKEN", VERIFY_TOKEN)
            .env("META_ACCESS_TOKEN", ACCESS_TOKEN)
            .env("META_GRAPH_URL", simulator.url())
            .env("LOCKWATCH_ADMIN_TOKEN", ADMIN_TOKEN)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        assert!(!text.is_empty(), "{arguments:?}");
        written.keep(arguments.join(" "), text);
    }

    // The test can fail: asked for, they are shown, and that is in the log.
    let request = client.get(format!("{}{api}/deliveries?reveal=recipients", serve.admin));
    let revealed = request
        .header(AUTHORIZATION, format!("Bearer {ADMIN_TOKEN}"))
        .send()
        .await
        .unwrap();
    let revealed = revealed.text().await.unwrap();
    assert!(PEOPLE.iter().all(|person| revealed.contains(person) && decoded(&revealed).concat().contains(person)));
    serve.logged(&format!(
        "recipients of incident {id} were shown in full on request"
    ));

    serve.signal(Signal::TERM);
    assert!(serve.wait().success());
    let log = serve.whole_log().join("\n");
    assert!(log.contains("TRACE"), "the log is at its most talkative");
    written.keep("the log", log);
    written.holds_none_of(&[
        APP_SECRET,
        SECOND_SECRET,
        VERIFY_TOKEN,
        ACCESS_TOKEN,
        ADMIN_TOKEN,
    ]);
    written.holds_none_of(&PEOPLE);
}
