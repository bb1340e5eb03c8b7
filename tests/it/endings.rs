//! The end of a lockout: messages are sent again, or a person says so, or that it was not over.

use lockwatch::lockout::incident::Resolution;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::Database;
use lockwatch::store::incidents::Incident;
use reqwest::StatusCode;
use serde_json::json;
use time::{Duration, OffsetDateTime};

use crate::support::database::TestDatabase;
use crate::support::proxy::LinkState;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, OTHER_NUMBER, TestApp, WABA, client, settings,
};

/// A callback: Meta sent a message of a number.
fn sent(number: &str, at: OffsetDateTime) -> Vec<u8> {
    let callback = StatusCallback::new().timestamp(at);
    callback.sent(WABA, number, "wamid.again").into_body()
}

/// The same, with the category that Meta charges for.
fn sent_of_category(at: OffsetDateTime, category: &str) -> Vec<u8> {
    let status = json!({
        "id": "wamid.again",
        "status": "sent",
        "timestamp": at.unix_timestamp().to_string(),
        "recipient_id": "16505551234",
        "pricing": {"billable": true, "pricing_model": "PMP", "category": category},
    });
    StatusCallback::new()
        .status(WABA, NUMBER, status)
        .into_body()
}

async fn start_with_answer(scenario: Scenario) -> TestApp {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, [scenario]);
    app
}

/// Waits until the only incident is over because messages are sent again since this time.
async fn wait_until_sending(app: &TestApp, since: OffsetDateTime) {
    let is_sending = |incident: &Incident| {
        let resolution = incident.resolution.as_ref();
        resolution.is_some_and(|resolution| *resolution == Resolution::SendingAgain)
    };
    app.eventually("sending again", async || is_sending(&app.incident().await))
        .await;
    let ended_at = app.incident().await.ended_at.unwrap();
    assert_eq!(ended_at.unix_timestamp(), since.unix_timestamp());
}

/// The message that proves the end is sent after the others, so these were looked at.
#[tokio::test]
async fn only_a_message_that_was_sent_later_ends_an_incident() {
    let app = start_with_answer(Scenario::Available).await;
    let now = OffsetDateTime::now_utc();
    let failed_at = now - Duration::minutes(10);
    app.fail_at("a", failed_at).await;
    app.wait_for_cause("unreported").await;
    let later = now - Duration::minutes(1);
    let status = || StatusCallback::new().timestamp(later);
    for nothing in [
        status().delivered(WABA, NUMBER, "b").into_body(),
        status().read(WABA, NUMBER, "b").into_body(),
        sent(NUMBER, failed_at - Duration::SECOND),
        sent(NUMBER, failed_at),
        sent(OTHER_NUMBER, later),
    ] {
        app.deliver(&nothing).await;
    }
    app.deliver(&sent(NUMBER, now)).await;
    wait_until_sending(&app, now).await;
    app.fail_at("c", now + Duration::SECOND).await;
    assert_eq!(app.incidents().await.len(), 2, "the next lock");
}

#[tokio::test]
async fn a_reply_proves_nothing_while_templates_are_stopped() {
    let app = start_with_answer(Scenario::Payment).await;
    let now = OffsetDateTime::now_utc();
    app.fail_at("a", now - Duration::minutes(10)).await;
    app.wait_for_cause("payment").await;
    // Not before the check, which showed the lock.
    let now = OffsetDateTime::now_utc() + Duration::seconds(2);
    let later = now - Duration::minutes(2);
    app.deliver(&sent_of_category(later, "service")).await;
    app.deliver(&sent(NUMBER, later)).await;
    app.deliver(&sent_of_category(now, "marketing")).await;
    wait_until_sending(&app, now).await;
}

/// Each number has to send, where each has a reason of its own.
#[tokio::test]
async fn a_number_proves_only_its_own_end() {
    let app = TestApp::start().await;
    let now = OffsetDateTime::now_utc();
    for number in [NUMBER, OTHER_NUMBER] {
        app.simulator
            .set_scenarios(number, [Scenario::NotRegistered]);
    }
    for number in [NUMBER, OTHER_NUMBER] {
        app.fail_number(WABA, number, now - Duration::minutes(9))
            .await;
    }
    app.wait_for_cause("phone_registration").await;
    app.deliver(&sent(NUMBER, now - Duration::minutes(1))).await;
    let own = "select count(*) from affected_numbers where sent_at is not null";
    app.eventually("the first number sends", async || app.count(own).await == 1)
        .await;
    assert_eq!(app.incident().await.ended_at, None);
    // Not before the check, which showed the lock.
    let now = OffsetDateTime::now_utc() + Duration::seconds(2);
    app.deliver(&sent(OTHER_NUMBER, now)).await;
    wait_until_sending(&app, now).await;
}

async fn post(address: impl std::fmt::Display, body: &[u8]) {
    let request = client()
        .post(format!("http://{address}/webhook"))
        .header(SIGNATURE_HEADER, sign(APP_SECRET, body))
        .body(body.to_vec());
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}

/// The message arrives at another replica than the failure, while that one's database is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_ends_an_incident_although_the_database_was_away() {
    let database = TestDatabase::create().await;
    let (link, url) = database.link().await;
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Available]);
    let replica = Database::parse(&url).unwrap();
    let replica = settings(replica, &simulator.url(), &[APP_SECRET], Some(ACCESS_TOKEN));
    let replica = lockwatch::service::Service::start(replica).await.unwrap();
    let app = TestApp::start_on(database, simulator).await;
    let now = OffsetDateTime::now_utc();
    app.fail_at("a", now - Duration::minutes(5)).await;
    app.wait_for_cause("unreported").await;
    // A replica learns of it within five seconds: one of these messages it takes notice of.
    app.eventually("the replica ends it", async || {
        link.set(LinkState::Reset);
        post(replica.address, &sent(NUMBER, now)).await;
        let is_open = app.incident().await.ended_at.is_none();
        link.set(LinkState::Open);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        !is_open
    })
    .await;
    wait_until_sending(&app, now).await;
    replica.stop().await;
}

#[tokio::test]
async fn a_wrong_end_can_be_undone_while_nothing_follows() {
    let app = start_with_answer(Scenario::Available).await;
    app.fail_at("a", OffsetDateTime::now_utc() - Duration::minutes(5))
        .await;
    let id = app.wait_for_cause("unreported").await.id;
    let act = async |id: i64, action: &str| {
        let admin = app.service.admin_address;
        let url = format!("http://{admin}/api/v1/incidents/{id}/{action}");
        client().post(url).send().await.unwrap().status()
    };
    assert_eq!(act(id, "reopen").await, StatusCode::CONFLICT, "it is open");
    assert_eq!(act(999, "reopen").await, StatusCode::NOT_FOUND);
    assert_eq!(act(id, "resolve").await, StatusCode::OK);
    app.let_time_pass(Duration::days(20)).await;
    assert_eq!(act(id, "reopen").await, StatusCode::OK);
    let open = app.incident().await;
    assert_eq!((open.ended_at, open.resolution), (None, None));
    let changes = app
        .text("select string_agg(kind, ' ' order by id) from incident_changes")
        .await;
    assert_eq!(
        changes.unwrap(),
        "opened cause_found resolved reopened",
        "what happened stays told"
    );
    // Its seven days start anew.
    app.let_time_pass(Duration::days(6)).await;
    app.wait_until_silence_ends_another().await;
    let is_open = "select count(*) from incidents where resolved_at is null";
    assert_eq!(app.count(is_open).await, 1);
    app.fail("b").await;
    assert_eq!(app.count(is_open).await, 1, "the failure belongs to it");
    assert_eq!(act(id, "resolve").await, StatusCode::OK);
    app.fail_at("c", OffsetDateTime::now_utc() + Duration::seconds(2))
        .await;
    assert_eq!(act(id, "reopen").await, StatusCode::CONFLICT, "one follows");
}
