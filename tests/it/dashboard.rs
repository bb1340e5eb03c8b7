//! The dashboard as HTML. Tests that need a browser are in `browser`.

use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::simulator::Scenario;
use reqwest::StatusCode;
use serde_json::json;
use time::OffsetDateTime;

use crate::support::{NUMBER, OTHER_NUMBER, TestApp, WABA};

async fn get_page(app: &TestApp, path: &str) -> String {
    let response = app
        .client
        .get(app.admin(path))
        .header("accept", "text/html")
        .send()
        .await
        .unwrap();
    assert_eq!(
        response.headers()["content-type"],
        "text/html; charset=utf-8",
        "{path}"
    );
    response.text().await.unwrap()
}

/// Returns the text of a page without its tags, with single spaces.
fn visible_text(html: &str) -> String {
    let mut text = String::new();
    for part in html.split('<') {
        text.push(' ');
        text.push_str(part.split_once('>').map_or(part, |(_, after)| after));
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn get_text(app: &TestApp, path: &str) -> String {
    visible_text(&get_page(app, path).await)
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[tokio::test]
async fn without_incidents_the_list_explains_how_to_connect_meta() {
    let app = TestApp::start().await;
    assert_has(
        &get_text(&app, "/").await,
        &[
            "No open incident",
            "META_VERIFY_TOKEN",
            "/webhook",
            "messages",
            "subscribed_apps",
        ],
    );
    assert_has(&get_text(&app, "/?q=5").await, &["No incident matches."]);
}

/// Fails 1,201 messages of two numbers of one account and waits for the cause `payment`.
async fn lock_for_payment(app: &TestApp) {
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let mut callback = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed(WABA, OTHER_NUMBER, "other");
    for n in 0..1200 {
        callback = callback.failed(WABA, NUMBER, &n.to_string());
    }
    app.deliver(&callback.into_body()).await;
    app.wait_for_cause("payment").await;
}

/// Locks an account for payment, and resolves its incident.
async fn lock_and_resolve(app: &TestApp) {
    lock_for_payment(app).await;
    app.execute(
        "update incidents set ended_at = now(), resolved_at = now(), resolution = 'manual',
                              resolution_note = 'paid'",
    )
    .await;
}

#[tokio::test]
async fn the_list_shows_the_locked_account_its_cause_and_next_step() {
    let app = TestApp::start().await;
    lock_for_payment(&app).await;
    let html = get_page(&app, "/").await;
    assert_has(
        &visible_text(&html),
        &[
            "1 account is locked",
            WABA,
            "Payment problem",
            "(141006)",
            "1,201",
            "Locked since",
            "Next step",
            "Meta's advice",
        ],
    );
    assert!(
        html.contains("<svg class=\"spark\""),
        "no sparkline in {html}"
    );
}

#[tokio::test]
async fn the_list_shows_a_resolved_incident() {
    let app = TestApp::start().await;
    lock_and_resolve(&app).await;
    assert_has(
        &get_text(&app, "/").await,
        &["No open incident", "resolved by hand"],
    );
}

#[tokio::test]
async fn the_list_is_filtered_by_text_cause_and_state() {
    let app = TestApp::start().await;
    lock_and_resolve(&app).await;
    for (query, is_found) in [
        ("q=102290", true),
        ("q=15550783881", true),
        ("q=%2B1+555-078-3881", true),
        ("q=999", false),
        ("cause=payment", true),
        ("cause=unreported", false),
        ("state=open", false),
        ("state=resolved&cause=payment&q=1022", true),
    ] {
        let text = get_text(&app, &format!("/?{query}")).await;
        assert_eq!(text.contains("1,201"), is_found, "{query}");
    }
}

#[tokio::test]
async fn the_filter_form_keeps_parameters_without_a_field() {
    let app = TestApp::start().await;
    lock_and_resolve(&app).await;
    assert_has(
        &get_page(&app, "/?since=2026-01-01&waba_id=1&cause=payment").await,
        &[
            "name=\"since\" value=\"2026-01-01T00:00:00Z\"",
            "name=\"waba_id\" value=\"1\"",
        ],
    );
}

/// Fails a message and waits for the cause `policy_violation`. Returns the incident page's path.
async fn lock_for_policy(app: &TestApp, message_id: &str) -> String {
    app.simulator.set_scenarios(NUMBER, [Scenario::Policy]);
    app.fail(message_id).await;
    let incident = app.wait_for_cause("policy_violation").await;
    format!("/incidents/{}", incident.id)
}

#[tokio::test]
async fn an_incident_page_shows_timeline_evidence_steps_and_appeal() {
    let app = TestApp::start().await;
    let path = lock_for_policy(&app, "a").await;
    let html = get_page(&app, &path).await;
    assert_has(
        &html,
        &["<svg class=\"timeline\"", "class=\"health blocked\""],
    );
    assert_has(
        &visible_text(&html),
        &[
            &format!("Account {WABA} is locked"),
            "What to do now",
            "Request Review",
            "first failure",
            "cause recorded",
            "The cause comes from health check",
            "WhatsApp Business Account ID: 102290129340398",
            "Error: 131031 Business Account locked",
            "Meta's raw answer",
            "Mark as resolved",
        ],
    );
}

#[tokio::test]
async fn an_incident_page_masks_recipients_until_a_reveal() {
    let app = TestApp::start().await;
    let message = message_id("16505551234", "3EB0C431C26A1916E07E");
    let path = lock_for_policy(&app, &message).await;
    let html = get_page(&app, &path).await;
    assert_has(&visible_text(&html), &["*******1234"]);
    assert!(!html.contains(&message) && !html.contains("16505551234"));
    assert_has(
        &get_page(&app, &format!("{path}?reveal=recipients")).await,
        &[&message],
    );
}

#[tokio::test]
async fn an_incident_is_resolved_once_with_its_form() {
    let app = TestApp::start().await;
    let path = lock_for_policy(&app, "a").await;
    let submit = async || {
        app.client
            .post(app.admin(&format!("{path}/resolve")))
            .header("accept", "text/html")
            .header("content-type", "application/x-www-form-urlencoded")
            .body("note=Meta+%3Cgranted%3E+it")
            .send()
            .await
            .unwrap()
    };
    let resolved = submit().await;
    assert_eq!(resolved.url().path(), path);
    let html = resolved.text().await.unwrap();
    assert!(
        html.contains("Meta &lt;granted&gt; it") && !html.contains("Mark as resolved"),
        "{html}"
    );
    let again = submit().await;
    assert_eq!(again.status(), StatusCode::CONFLICT);
    assert_has(&again.text().await.unwrap(), &["was resolved before"]);
}

#[tokio::test]
async fn received_text_is_never_markup() {
    let app = TestApp::start().await;
    let hostile = concat!(
        "</td></textarea></title><script>alert(1)</script>\"'>",
        "<img src=x onerror=alert(2)>\u{202e}\u{2066}"
    );
    let status = json!({
        "id": hostile,
        "status": "failed",
        "recipient_id": hostile,
        "recipient_participant_id": hostile,
        "biz_opaque_callback_data": hostile,
        "errors": [{
            "code": 131031,
            "title": hostile,
            "message": hostile,
            "error_data": {"details": hostile},
        }],
    });
    let account = "<script>alert(3)</script>\u{202e}";
    app.deliver(
        &StatusCallback::new()
            .status(account, "<img src=x>", status)
            .into_body(),
    )
    .await;
    let id = app.incident().await.id;
    for path in [
        "/".to_owned(),
        format!("/?q={account}"),
        format!("/incidents/{id}"),
        format!("/incidents/{id}?reveal=recipients"),
    ] {
        let html = get_page(&app, &path).await;
        assert_eq!(html.matches("<script").count(), 1, "{path}: only ours");
        assert!(
            !html.contains("<img") && !html.contains('\u{202e}') && !html.contains('\u{2066}'),
            "{path}: {html}"
        );
        assert!(html.contains("&lt;script&gt;alert(3)"), "{path}");
    }
}
