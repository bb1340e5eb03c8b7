//! The dashboard as HTML. What only a browser can tell is in `browser`.

use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::simulator::Scenario;
use reqwest::StatusCode;
use serde_json::json;
use time::OffsetDateTime;

use crate::support::{NUMBER, OTHER_NUMBER, TestApp, WABA};

async fn page(app: &TestApp, path: &str) -> String {
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

/// What a reader sees of a page: its text, with single spaces.
fn text(html: &str) -> String {
    let mut text = String::new();
    for part in html.split('<') {
        text.push(' ');
        text.push_str(part.split_once('>').map_or(part, |(_, after)| after));
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn without_incidents_the_page_tells_how_to_connect_meta() {
    let app = TestApp::start().await;
    let text = text(&page(&app, "/").await);
    for part in [
        "No open incident",
        "META_VERIFY_TOKEN",
        "/webhook",
        "messages",
        "subscribed_apps",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(self::text(&page(&app, "/?q=5").await).contains("None that fits."));
}

#[tokio::test]
async fn the_list_tells_in_ten_seconds_what_is_locked_since_when_why_and_what_to_do() {
    let app = TestApp::start().await;
    app.simulator.script(NUMBER, [Scenario::Payment]);
    let now = OffsetDateTime::now_utc();
    let mut callback = StatusCallback::new()
        .at(now)
        .failed(WABA, OTHER_NUMBER, "other");
    for n in 0..1200 {
        callback = callback.failed(WABA, NUMBER, &n.to_string());
    }
    app.deliver(&callback.into_body()).await;
    app.caused("payment").await;
    let html = page(&app, "/").await;
    let text = text(&html);
    for part in [
        "1 account is locked",
        WABA,
        "Payment problem",
        "(141006)",
        "1,201",
        "Locked since",
        "Next step",
        "Meta's advice",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(html.contains("<svg class=\"spark\""), "a sparkline");

    app.execute(
        "update incidents set resolved_at = now(), resolution = 'manual', resolution_note = 'paid'",
    )
    .await;
    let text = self::text(&page(&app, "/").await);
    assert!(
        text.contains("No open incident") && text.contains("resolved by hand"),
        "{text}"
    );
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
        assert_eq!(
            self::text(&page(&app, &format!("/?{query}")).await).contains("1,201"),
            is_found,
            "{query}"
        );
    }
    let filtered = page(&app, "/?since=2026-01-01&waba_id=1&cause=payment").await;
    for kept in [
        "name=\"since\" value=\"2026-01-01T00:00:00Z\"",
        "name=\"waba_id\" value=\"1\"",
    ] {
        assert!(
            filtered.contains(kept),
            "the form keeps what it has no field for: {filtered}"
        );
    }
}

#[tokio::test]
async fn an_incidents_page_shows_its_timeline_why_what_to_do_and_the_text_for_the_appeal() {
    let app = TestApp::start().await;
    app.simulator.script(NUMBER, [Scenario::Policy]);
    let id = message_id("16505551234", "3EB0C431C26A1916E07E");
    let body = StatusCallback::new()
        .at(OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, &id)
        .into_body();
    app.deliver(&body).await;
    let incident = app.caused("policy_violation").await.id;
    let html = page(&app, &format!("/incidents/{incident}")).await;
    assert!(
        html.contains("<svg class=\"timeline\"") && html.contains("class=\"health blocked\""),
        "{html}"
    );
    let text = text(&html);
    for part in [
        &format!("Account {WABA} is locked"),
        "What to do now",
        "Request Review",
        "first failure",
        "cause recorded",
        "We say so because of health check",
        "WhatsApp Business Account ID: 102290129340398",
        "Error: 131031 Business Account locked",
        "Meta's answer as it came",
        "*******1234",
        "Mark as resolved",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!html.contains(&id) && !html.contains("16505551234"));
    assert!(
        page(&app, &format!("/incidents/{incident}?reveal=recipients"))
            .await
            .contains(&id)
    );

    let url = app.admin(&format!("/incidents/{incident}/resolve"));
    let submit = || {
        let request = app
            .client
            .post(&url)
            .header("accept", "text/html")
            .body("note=Meta+%3Cgranted%3E+it");
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .send()
    };
    let resolved = submit().await.unwrap();
    assert_eq!(resolved.url().path(), format!("/incidents/{incident}"));
    let html = resolved.text().await.unwrap();
    assert!(
        html.contains("Meta &lt;granted&gt; it") && !html.contains("Mark as resolved"),
        "{html}"
    );
    let again = submit().await.unwrap();
    assert_eq!(again.status(), StatusCode::CONFLICT);
    assert!(again.text().await.unwrap().contains("was resolved before"));
}

#[tokio::test]
async fn received_text_is_never_markup() {
    let app = TestApp::start().await;
    let hostile = "</td></textarea></title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u{202e}\u{2066}";
    let status = json!({
        "id": hostile, "status": "failed", "recipient_id": hostile, "recipient_participant_id": hostile,
        "biz_opaque_callback_data": hostile,
        "errors": [{"code": 131031, "title": hostile, "message": hostile, "error_data": {"details": hostile}}],
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
        let html = page(&app, &path).await;
        assert_eq!(html.matches("<script").count(), 1, "{path}: only ours");
        assert!(
            !html.contains("<img") && !html.contains('\u{202e}') && !html.contains('\u{2066}'),
            "{path}: {html}"
        );
        assert!(html.contains("&lt;script&gt;alert(3)"), "{path}");
    }
}
