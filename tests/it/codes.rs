//! Other codes than 131031: each kind of trouble has an incident of its own, with its reason.

use lockwatch::meta::codes::WatchedCodes;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::simulator::{Scenario, Simulator};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::support::database::TestDatabase;
use crate::support::{ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, WABA, client, settings};

async fn start_with_codes(codes: &str) -> TestApp {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Available]);
    let database = TestDatabase::create().await;
    let mut settings = settings(
        database.database(),
        &simulator.url(),
        &[APP_SECRET],
        Some(ACCESS_TOKEN),
    );
    settings.codes = codes.parse().unwrap();
    TestApp::start_with_settings(database, simulator, settings).await
}

/// A callback with a failed message that carries these codes.
fn failed_with(message_id: &str, at: OffsetDateTime, codes: &[i64]) -> Vec<u8> {
    let errors: Vec<Value> = codes
        .iter()
        .map(|code| json!({"code": code, "title": format!("error {code}")}))
        .collect();
    let status = json!({
        "id": message_id,
        "status": "failed",
        "timestamp": at.unix_timestamp().to_string(),
        "recipient_id": "16505551234",
        "errors": errors,
    });
    let callback = StatusCallback::new().status(WABA, NUMBER, status);
    callback.into_body()
}

async fn page(app: &TestApp) -> String {
    let url = format!("http://{}/", app.service.admin_address);
    let response = client().get(url).header("accept", "text/html").send().await;
    response.unwrap().text().await.unwrap()
}

const INCIDENTS: &str = "select string_agg(format('%s %s %s', kind, cause, failure_count), ', '
                                           order by kind)
                           from incidents where ended_at is null";

#[tokio::test]
async fn each_kind_of_code_has_its_incident_and_its_cause() {
    let app = start_with_codes("account").await;
    assert!(page(&app).await.contains("Watched errors: 131031, 368, "));
    let at = OffsetDateTime::now_utc() - Duration::minutes(10);
    for (n, codes) in [
        &[131_031][..],
        &[131_042],
        &[133_010, 131_031],
        &[131_045],
        &[130_497],
        &[131_064, 131_064],
        &[131_026],
    ]
    .into_iter()
    .enumerate()
    {
        for _ in 0..2 {
            app.deliver(&failed_with(&format!("wamid.{n}"), at, codes))
                .await;
        }
    }
    let expected = "country other_restriction 1, limit other_restriction 1, lock payment 2, \
                    payment payment 1, registration phone_registration 1";
    // Meta's health check shows nothing; the codes say it.
    app.eventually("the causes", async || {
        app.text(INCIDENTS).await.as_deref() == Some(expected)
    })
    .await;
    app.deliver(&failed_with("wamid.368", at, &[368])).await;
    let graver = expected.replace("lock payment 2", "lock policy_violation 3");
    assert_eq!(app.text(INCIDENTS).await.unwrap(), graver);
    let codes = "select string_agg(distinct error_code::text, ' ' order by error_code::text)
                   from failed_deliveries";
    assert_eq!(
        app.text(codes).await.unwrap(),
        "130497 131031 131042 131045 131064 368"
    );

    let shown = page(&app).await;
    assert!(shown.contains("5 open incidents") && shown.contains(">Since<"));
    // A sent template ends what stops templates, and the lock; not the blocked countries.
    let sent = json!({
        "id": "wamid.again",
        "status": "sent",
        "timestamp": OffsetDateTime::now_utc().unix_timestamp().to_string(),
        "pricing": {"category": "utility"},
    });
    let sent = StatusCallback::new().status(WABA, NUMBER, sent);
    app.deliver(&sent.into_body()).await;
    app.eventually("all but one are over", async || {
        app.text(INCIDENTS).await.as_deref() == Some("country other_restriction 1")
    })
    .await;
}

#[tokio::test]
async fn other_codes_are_nothing_unless_they_are_watched() {
    let app = start_with_codes("131031").await;
    let calm = "No account is locked (131031). Other errors are not watched.";
    assert!(page(&app).await.contains(calm));
    for code in WatchedCodes::account_level().codes() {
        let id = format!("wamid.{code}");
        let at = OffsetDateTime::now_utc();
        app.deliver(&failed_with(&id, at, &[i64::from(*code)]))
            .await;
    }
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 1);
    assert_eq!(app.incident().await.kind, "lock");
}

#[tokio::test]
async fn a_failure_of_another_kind_opens_its_own_incident_again() {
    let app = start_with_codes("131042").await;
    let now = OffsetDateTime::now_utc();
    for (id, days_ago, code) in [("a", 20, 131_042), ("b", 10, 131_031), ("c", 1, 131_042)] {
        let at = now - Duration::days(days_ago);
        app.deliver(&failed_with(id, at, &[code])).await;
    }
    let previous =
        "select count(*) from incidents i join incidents p on p.id = i.previous_incident_id
                     where i.kind = 'payment' and p.kind = 'payment'";
    assert_eq!(app.count(previous).await, 1);
    assert_eq!(app.incidents().await.len(), 3);
}
