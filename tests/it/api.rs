//! The admin API: its answers, and who may use the admin listener.

use std::collections::BTreeSet;

use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::Database;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::lockwatch;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, OTHER_NUMBER, TestApp, WABA, one_failure, resume_processing,
    start_service,
};

const RECIPIENT: &str = "16505551234";

/// Locks the accounts `77n` with one failure each, in this order.
async fn lock_accounts(app: &TestApp, numbers: impl IntoIterator<Item = u32>) {
    for n in numbers {
        let now = OffsetDateTime::now_utc();
        let callback = StatusCallback::new().timestamp(now).failed(
            &format!("77{n}"),
            NUMBER,
            &format!("wamid.{n}"),
        );
        app.deliver(&callback.into_body()).await;
    }
}

fn ids_of(list: &Value) -> Vec<i64> {
    list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].as_i64().unwrap())
        .collect()
}

async fn get(app: &TestApp, path: &str) -> Response {
    app.client.get(app.admin(path)).send().await.unwrap()
}

async fn get_as(app: &TestApp, path: &str, accept: &str) -> (HeaderMap, String) {
    let response = app
        .client
        .get(app.admin(path))
        .header(ACCEPT, accept)
        .send()
        .await
        .unwrap();
    (response.headers().clone(), response.text().await.unwrap())
}

async fn post_resolution(app: &TestApp, id: i64, kind: &str, body: String) -> (u16, Value) {
    let response = app
        .client
        .post(app.admin(&format!("/api/v1/incidents/{id}/resolve")))
        .header(CONTENT_TYPE, kind)
        .body(body)
        .send()
        .await
        .unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

/// Sends bytes to the admin listener and returns everything that comes back.
async fn send_raw(app: &TestApp, request: &str) -> String {
    let mut stream = TcpStream::connect(app.service.admin_address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    String::from_utf8_lossy(&response).into_owned()
}

/// Locks an account with two numbers and waits until both are looked up. Returns the incident's id.
async fn lock_two_numbers(app: &TestApp) -> i64 {
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let body = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, "a")
        .failed(WABA, OTHER_NUMBER, "b")
        .into_body();
    app.deliver(&body).await;
    let id = app.wait_for_cause("payment").await.id;
    app.eventually("both numbers are looked up", async || {
        app.checks().await.len() == 2
    })
    .await;
    id
}

#[tokio::test]
async fn an_incident_has_its_cause_evidence_and_next_steps() {
    let app = TestApp::start().await;
    let id = lock_two_numbers(&app).await;
    let incident = app.api(&format!("/incidents/{id}")).await;
    assert_eq!(
        (&incident["waba_id"], &incident["cause"]),
        (&json!(WABA), &json!("payment"))
    );
    assert_eq!(incident["cause_error_code"], 141_006);
    assert_eq!(incident["evidence"]["id"], incident["cause_check_id"]);
    assert_eq!(incident["evidence"]["phone_number_id"], NUMBER);
    let step = incident["next_steps"][1].as_str().unwrap();
    assert!(step.contains("payment method"), "{incident:#}");
}

#[tokio::test]
async fn an_incident_shows_the_latest_check_of_each_number() {
    let app = TestApp::start().await;
    let id = lock_two_numbers(&app).await;
    let incident = app.api(&format!("/incidents/{id}")).await;
    assert_eq!(
        (
            &incident["affected_number_count"],
            &incident["failure_count"]
        ),
        (&json!(2), &json!(2))
    );
    let mut verdicts = BTreeSet::new();
    for number in incident["affected_numbers"].as_array().unwrap() {
        verdicts.insert((
            number["phone_number_id"].as_str().unwrap(),
            number["latest_check"]["can_send_message"].as_str().unwrap(),
        ));
    }
    assert_eq!(
        verdicts,
        BTreeSet::from([(NUMBER, "BLOCKED"), (OTHER_NUMBER, "AVAILABLE")])
    );
}

#[tokio::test]
async fn the_list_holds_the_same_object_as_the_single_incident() {
    let app = TestApp::start().await;
    let id = lock_two_numbers(&app).await;
    let incident = app.api(&format!("/incidents/{id}")).await;
    let listed = app.api("/incidents").await;
    assert_eq!(listed["data"][0], incident);
    assert_eq!(listed["next_cursor"], Value::Null);
}

#[tokio::test]
async fn a_check_shows_metas_answer_without_the_token() {
    let app = TestApp::start().await;
    let id = lock_two_numbers(&app).await;
    let checks = app.api(&format!("/incidents/{id}/checks")).await;
    let response = checks["data"][0]["response"].as_str().unwrap();
    assert!(
        response.contains("health_status") && !response.contains(ACCESS_TOKEN),
        "{response}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_prints_the_same_objects() {
    let app = TestApp::start().await;
    lock_accounts(&app, 1..=3).await;
    let unreported = "select count(*) from incidents where cause = 'unreported'";
    app.eventually("all incidents have a cause", async || {
        app.count(unreported).await == 3
    })
    .await;
    let run = |arguments: &[&str]| {
        let output = lockwatch(arguments)
            .env("DATABASE_URL", &app.database.url)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let listed: Value = serde_json::from_str(&run(&["incidents", "list", "--json"])).unwrap();
    assert_eq!(listed, app.api("/incidents").await["data"]);
    let id = listed[0]["id"].to_string();
    let shown: Value = serde_json::from_str(&run(&["incidents", "show", &id, "--json"])).unwrap();
    assert_eq!(shown, app.api(&format!("/incidents/{id}")).await);
    let csv = get(&app, "/api/v1/incidents?format=csv&waba_id=772").await;
    assert_eq!(
        run(&["incidents", "list", "--csv", "--waba-id", "772"]),
        csv.text().await.unwrap()
    );
    let document = get(&app, "/openapi.json").await.text().await.unwrap();
    assert_eq!(run(&["openapi"]), document);
}

#[tokio::test]
async fn pages_have_no_gap_or_repetition_while_incidents_arrive() {
    let app = TestApp::start().await;
    lock_accounts(&app, 1..=7).await;
    let mut seen = Vec::new();
    let mut path = "/incidents?limit=3".to_owned();
    for more in 8.. {
        let page = app.api(&path).await;
        seen.extend(ids_of(&page));
        lock_accounts(&app, [more]).await;
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("/incidents?limit=3&cursor={cursor}");
    }
    let newest_first: Vec<i64> = app
        .incidents()
        .await
        .iter()
        .take(7)
        .map(|incident| incident.id)
        .rev()
        .collect();
    assert_eq!(seen, newest_first);
}

#[tokio::test]
async fn deliveries_come_in_pages_newest_first() {
    let app = TestApp::start().await;
    lock_accounts(&app, [1]).await;
    let id = app.incident().await.id;
    for n in 0..5 {
        let callback = StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed("771", NUMBER, &format!("more {n}"));
        app.deliver(&callback.into_body()).await;
    }
    let path = format!("/incidents/{id}/deliveries?limit=4");
    let first = app.api(&path).await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = app.api(&format!("{path}&cursor={cursor}")).await;
    assert_eq!(
        (
            ids_of(&first).len(),
            ids_of(&second).len(),
            &second["next_cursor"]
        ),
        (4, 2, &Value::Null)
    );
    assert!(ids_of(&first).iter().min() > ids_of(&second).iter().max());

    let response = get(&app, &format!("/api/v1/incidents?cursor={cursor}")).await;
    assert_eq!(
        response.status(),
        StatusCode::BAD_REQUEST,
        "the cursor is of another list"
    );
}

#[tokio::test]
async fn each_filter_selects_its_incidents() {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, [Scenario::Available]);
    app.simulator
        .set_scenarios(OTHER_NUMBER, [Scenario::Payment]);
    app.simulator.set_account(OTHER_NUMBER, "773");
    lock_accounts(&app, 1..=2).await;
    app.deliver(
        &StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed("773", OTHER_NUMBER, "p")
            .into_body(),
    )
    .await;
    let pending = "select count(*) from incidents where cause = 'pending'";
    app.eventually("all incidents have a cause", async || {
        app.count(pending).await == 0
    })
    .await;
    app.execute(
        "update incidents set opened_at = opened_at - interval '2 days' where waba_id = '771'",
    )
    .await;
    app.execute(
        "update incidents set ended_at = now(), resolved_at = now(), resolution = 'quiet'
          where waba_id = '772'",
    )
    .await;
    for (query, expected) in [
        ("", &["773", "772", "771"][..]),
        ("state=all", &["773", "772", "771"]),
        ("state=open", &["773", "771"]),
        ("state=resolved", &["772"]),
        ("waba_id=771", &["771"]),
        ("waba_id=77", &[]),
        ("cause=payment", &["773"]),
        ("cause=unreported&state=open", &["771"]),
        ("since=1d", &["773", "772"]),
        ("until=1d", &["771"]),
        ("since=3d&until=1d", &["771"]),
        ("since=2020-01-01", &["773", "772", "771"]),
        ("until=2020-01-01T00:00:00%2B02:00", &[]),
        ("since=1h&until=2h", &[]),
        ("since=-9999-01-01&until=9999-12-31", &["773", "772", "771"]),
        ("since=2600000d", &["773", "772", "771"]),
    ] {
        let list = app.api(&format!("/incidents?{query}")).await;
        let accounts: Vec<&str> = list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["waba_id"].as_str().unwrap())
            .collect();
        assert_eq!(accounts, expected, "{query}");
    }
}

#[tokio::test]
async fn a_bad_parameter_is_named_with_the_reason() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    for (path, parameter, reason) in [
        ("?state=closed", "state", "not one of open, resolved, all"),
        ("?state=", "state", "not one of"),
        (
            "?cause=rain",
            "cause",
            "not one of policy_violation, payment",
        ),
        ("?limit=0", "limit", "from 1 to 200"),
        ("?limit=201", "limit", "from 1 to 200"),
        ("?limit=ten", "limit", "from 1 to 200"),
        ("?limit=5&limit=6", "limit", "given twice"),
        ("?cursor=xx", "cursor", "not a cursor of this list"),
        (
            "?cursor=d0000000000000001",
            "cursor",
            "not a cursor of this list",
        ),
        ("?since=yesterday", "since", "not a time"),
        ("?since=2026-13-01", "since", "not a time"),
        ("?waba_id=", "waba_id", "is empty"),
        ("?waba_id=a%00b", "waba_id", "control character"),
        ("?format=xml", "format", "not one of json, csv"),
        ("?stat=open", "stat", "not a parameter of this request"),
        (
            "?reveal=recipients",
            "reveal",
            "not a parameter of this request",
        ),
        (
            "/1/deliveries?reveal=all",
            "reveal",
            "not one of recipients",
        ),
        ("/1/deliveries?state=open", "state", "not a parameter"),
        ("/1/checks?limit=-1", "limit", "from 1 to 200"),
        ("/1?x=1", "x", "not a parameter"),
    ] {
        let path = path.replace("/1", &format!("/{id}"));
        let response = get(&app, &format!("/api/v1/incidents{path}")).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(
            (&problem["status"], &problem["parameter"]),
            (&json!(400), &json!(parameter)),
            "{path}"
        );
        assert!(
            problem["detail"].as_str().unwrap().contains(reason),
            "{path}: {problem}"
        );
    }
}

#[tokio::test]
async fn an_unknown_path_or_method_is_a_problem_document() {
    let app = TestApp::start().await;
    for (method, path, status) in [
        (Method::GET, "/api/v1/incidents/999", 404),
        (Method::GET, "/api/v1/incidents/abc", 404),
        (Method::GET, "/api/v1/incidents/-1", 404),
        (Method::GET, "/api/v1/incidents/99999999999999999999", 404),
        (Method::GET, "/api/v1/incidents/999/deliveries", 404),
        (Method::GET, "/api/v1/incidents/999/checks", 404),
        (Method::POST, "/api/v1/incidents/999/resolve", 404),
        (Method::GET, "/api/v1/nothing", 404),
        (Method::GET, "/webhook", 404),
        (Method::DELETE, "/api/v1/incidents", 405),
        (Method::GET, "/api/v1/incidents/1/resolve", 405),
        (Method::PUT, "/", 405),
    ] {
        let response = app
            .client
            .request(method.clone(), app.admin(path))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{method} {path}");
        assert_eq!(
            response.headers()[CONTENT_TYPE],
            "application/problem+json",
            "{method} {path}"
        );
        assert!(
            status != 405 || response.headers().contains_key("allow"),
            "{method} {path}"
        );
        let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(problem["status"], status);
    }
}

#[tokio::test]
async fn a_missing_incident_is_an_html_page_for_a_browser() {
    let app = TestApp::start().await;
    let page = app
        .client
        .get(app.admin("/incidents/999"))
        .header(ACCEPT, "text/html")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (
            page.status(),
            page.headers()[CONTENT_TYPE].to_str().unwrap()
        ),
        (StatusCode::NOT_FOUND, "text/html; charset=utf-8")
    );
    assert!(
        page.text()
            .await
            .unwrap()
            .contains("there is no incident 999")
    );
}

#[tokio::test]
async fn recipients_are_masked_until_a_reveal_is_requested() {
    let app = TestApp::start().await;
    let id = message_id(RECIPIENT, "3EB0C431C26A1916E07E");
    app.deliver(
        &StatusCallback::new()
            .recipient(RECIPIENT)
            .failed(WABA, NUMBER, &id)
            .into_body(),
    )
    .await;
    let path = format!("/incidents/{}/deliveries", app.incident().await.id);
    let masked = &app.api(&path).await["data"][0];
    assert_eq!(masked["recipient_id"], "*******1234");
    let shown = masked["message_id"].as_str().unwrap();
    assert!(shown.contains("****") && shown.len() == id.len(), "{shown}");
    let revealed = &app.api(&format!("{path}?reveal=recipients")).await["data"][0];
    assert_eq!(
        (&revealed["recipient_id"], &revealed["message_id"]),
        (&json!(RECIPIENT), &json!(id))
    );
    for format in ["json", "csv"] {
        let response = get(&app, &format!("/api/v1{path}?format={format}")).await;
        let text = response.text().await.unwrap();
        assert!(
            text.contains("*******1234") && !text.contains(RECIPIENT) && !text.contains(&id),
            "{text}"
        );
    }
}

#[tokio::test]
async fn no_csv_cell_is_a_formula() {
    let app = TestApp::start().await;
    let status = json!({
        "id": "=cmd|' /C calc'!A0",
        "status": "failed",
        "recipient_id": "@SUM(1+1)",
        "timestamp": "1760000000",
        "errors": [{
            "code": 131031,
            "title": "+1+cmd",
            "message": "-2+3",
            "error_data": {"details": "\t=1, \"quoted\"\nline"},
        }],
    });
    let callback = StatusCallback::new().status(WABA, NUMBER, status);
    app.deliver(&callback.into_body()).await;
    let id = app.incident().await.id;
    let path = format!("/api/v1/incidents/{id}/deliveries?reveal=recipients");
    let (headers, text) = get_as(&app, &path, "text/csv").await;
    assert_eq!(
        headers[CONTENT_TYPE],
        "text/csv; charset=utf-8; header=present"
    );
    let mut lines = text.split("\r\n");
    let header = "id,incident_id,waba_id,phone_number_id,message_id,recipient_id";
    assert!(lines.next().unwrap().starts_with(header));
    let row = lines.next().unwrap();
    for cell in [
        "'=cmd|' /C calc'!A0",
        "'@SUM(1+1)",
        "'+1+cmd",
        "'-2+3",
        "=1, \"\"quoted\"\"",
    ] {
        assert!(row.contains(cell), "{cell}: {row}");
    }
}

#[tokio::test]
async fn a_list_is_csv_only_when_the_client_prefers_it() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    for accept in ["application/json, text/csv;q=0.5", "*/*", "text/html, */*"] {
        let (headers, _) = get_as(&app, "/api/v1/incidents", accept).await;
        assert_eq!(headers[CONTENT_TYPE], "application/json", "{accept}");
    }
    for (path, start) in [
        ("/api/v1/incidents?format=json".to_owned(), "{"),
        ("/api/v1/incidents".to_owned(), "id,waba_id,opened_at,"),
        (format!("/api/v1/incidents/{id}/checks"), "id,incident_id,"),
    ] {
        let (_, text) = get_as(&app, &path, "text/csv").await;
        assert!(text.starts_with(start), "{path}: {text}");
    }
}

#[tokio::test]
async fn a_csv_without_a_limit_holds_all_deliveries() {
    let app = TestApp::start().await;
    app.fail("first").await;
    let id = app.incident().await.id;
    let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
    for n in 0..450 {
        callback = callback.failed(WABA, NUMBER, &n.to_string());
    }
    app.deliver(&callback.into_body()).await;
    let path = format!("/api/v1/incidents/{id}/deliveries?format=csv");
    let (headers, text) = get_as(&app, &path, "").await;
    assert_eq!(
        (text.matches("\r\n").count(), headers.contains_key("link")),
        (452, false),
        "a header and 451 rows"
    );
}

#[tokio::test]
async fn a_csv_with_a_limit_links_to_the_next_page() {
    let app = TestApp::start().await;
    lock_accounts(&app, 1..=2).await;
    let path = "/api/v1/incidents?format=csv&limit=1&state=open";
    let (headers, _) = get_as(&app, path, "").await;
    let link = headers["link"].to_str().unwrap();
    let next = link
        .strip_prefix('<')
        .unwrap()
        .strip_suffix(">; rel=\"next\"")
        .unwrap();
    assert!(
        next.contains("state=open") && next.contains("limit=1"),
        "{next}"
    );
    assert!(get_as(&app, next, "").await.1.contains(",771,"));
}

#[tokio::test]
async fn a_bad_resolution_is_refused_with_the_reason() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    let json_type = "application/json; charset=utf-8";
    for (kind, body, status, reason) in [
        ("text/plain", "{}".to_owned(), 415, "application/json"),
        (
            "application/x-www-form-urlencoded",
            "note=x".to_owned(),
            415,
            "application/json",
        ),
        (json_type, "[\"x\"]".to_owned(), 400, "not an object"),
        (json_type, "{\"note\":".to_owned(), 400, "EOF"),
        (
            json_type,
            "{\"note\": 5}".to_owned(),
            400,
            "expected a string",
        ),
        (
            json_type,
            "{\"reason\": \"x\"}".to_owned(),
            400,
            "unknown field `reason`",
        ),
        (
            json_type,
            json!({"note": "x".repeat(2001)}).to_string(),
            400,
            "2000 characters",
        ),
        (
            json_type,
            json!({"note": "x".repeat(70_000)}).to_string(),
            413,
            "64 KiB",
        ),
    ] {
        let (code, problem) = post_resolution(&app, id, kind, body).await;
        assert_eq!(code, status, "{problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains(reason),
            "{problem}"
        );
    }
    assert!(app.incident().await.resolved_at.is_none());
}

#[tokio::test]
async fn an_incident_is_resolved_once_and_keeps_its_note() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    let json_type = "application/json; charset=utf-8";
    let body = json!({"note": " Meta gave\0in 🎉 "}).to_string();
    let (code, incident) = post_resolution(&app, id, json_type, body).await;
    assert_eq!(
        (code, &incident["resolution"], &incident["resolution_note"]),
        (200, &json!("manual"), &json!("Meta gave\u{fffd}in 🎉"))
    );
    let (code, problem) = post_resolution(&app, id, json_type, String::new()).await;
    assert_eq!(code, 409, "{problem}");
    assert_eq!(
        app.incident().await.resolution_note.as_deref(),
        Some("Meta gave\u{fffd}in 🎉")
    );
}

#[tokio::test]
async fn an_incident_can_be_resolved_without_a_note() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    let response = app
        .client
        .post(app.admin(&format!("/api/v1/incidents/{id}/resolve")))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_public_listener_serves_no_admin_path() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    for path in [
        "/",
        "/metrics",
        "/readyz",
        "/openapi.json",
        "/api/v1/incidents",
        "/assets/style.css",
        &format!("/incidents/{id}"),
    ] {
        assert_eq!(
            app.client.get(app.url(path)).send().await.unwrap().status(),
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    let resolve = app
        .client
        .post(app.url(&format!("/api/v1/incidents/{id}/resolve")))
        .send()
        .await
        .unwrap();
    assert_eq!(resolve.status(), StatusCode::NOT_FOUND);
}

async fn get_with_authorization(
    app: &TestApp,
    path: &str,
    authorization: Option<&str>,
) -> Response {
    let mut request = app
        .client
        .get(app.admin(path))
        .header(HOST, "lockwatch.example");
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    request.send().await.unwrap()
}

async fn assert_token_is_asked_for(app: &TestApp, path: &str, authorization: Option<&str>) {
    let refused = get_with_authorization(app, path, authorization).await;
    assert_eq!(
        refused.status(),
        StatusCode::UNAUTHORIZED,
        "{path} {authorization:?}"
    );
    let challenges: Vec<_> = refused
        .headers()
        .get_all("www-authenticate")
        .iter()
        .collect();
    assert!(
        challenges.len() == 2 && challenges[0].to_str().unwrap().starts_with("Basic "),
        "{challenges:?}"
    );
    assert!(!refused.text().await.unwrap().contains("an-admin-token"));
}

#[tokio::test]
async fn with_a_token_only_readiness_is_open() {
    let app = TestApp::start_with_admin_token("an-admin-token").await;
    let ready = get_with_authorization(&app, "/readyz", None).await;
    assert_eq!(ready.status(), StatusCode::OK);
    // "any:an-admin-token" and "any:wrong"
    let (right, wrong) = ("Basic YW55OmFuLWFkbWluLXRva2Vu", "Basic YW55Ondyb25n");
    for (path, expected) in [
        ("/", StatusCode::OK),
        ("/api/v1/incidents", StatusCode::OK),
        ("/metrics", StatusCode::OK),
        ("/openapi.json", StatusCode::OK),
        ("/assets/style.css", StatusCode::OK),
        ("/nothing", StatusCode::NOT_FOUND),
    ] {
        for bad in [
            None,
            Some("Bearer wrong"),
            Some("Bearer an-admin-token2"),
            Some(wrong),
            Some("Bearer "),
        ] {
            assert_token_is_asked_for(&app, path, bad).await;
        }
        for good in ["Bearer an-admin-token", right] {
            let response = get_with_authorization(&app, path, Some(good)).await;
            assert_eq!(response.status(), expected, "{path} {good}");
        }
    }
    let resolve = app
        .client
        .post(app.admin("/api/v1/incidents/1/resolve"))
        .send()
        .await
        .unwrap();
    assert_eq!(resolve.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn without_a_token_another_host_name_is_refused() {
    let app = TestApp::start().await;
    for host in ["evil.example", "localhost.evil.example:80", "0.0.0.0", ""] {
        for path in ["/", "/api/v1/incidents", "/metrics"] {
            let response = send_raw(
                &app,
                &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            )
            .await;
            assert!(
                response.starts_with("HTTP/1.1 403") || response.starts_with("HTTP/1.1 400"),
                "{host} {path}: {response}"
            );
        }
    }
    let without = send_raw(&app, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(
        without.starts_with("HTTP/1.0 403") || without.starts_with("HTTP/1.1 403"),
        "{without}"
    );
    let ready = send_raw(
        &app,
        "GET /readyz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(
        ready.starts_with("HTTP/1.1 200"),
        "a probe may use any host name: {ready}"
    );
    for host in ["localhost", "127.0.0.1:1", "[::1]:65535"] {
        let response = send_raw(
            &app,
            &format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert!(response.starts_with("HTTP/1.1 200"), "{host}");
    }
}

#[tokio::test]
async fn only_a_page_of_ours_may_resolve() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    let port = app.service.admin_address.port();
    let own = format!("http://localhost:{port}");
    let other_port = format!("http://localhost:{}", port.wrapping_add(1));
    let post = async |path: &str, headers: &[(&str, &str)]| {
        let mut request = app
            .client
            .post(app.admin(path))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
            .body("note=x")
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let (api, form) = (
        format!("/api/v1/incidents/{id}/resolve"),
        format!("/incidents/{id}/resolve"),
    );
    for path in [&api, &form] {
        for headers in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "cross-site"), ("origin", own.as_str())],
            &[("origin", "https://evil.example")],
            &[("origin", "null")],
            &[("origin", &other_port)],
        ] {
            assert_eq!(post(path, headers).await, 403, "{path} {headers:?}");
        }
    }
    assert!(app.incident().await.resolved_at.is_none());
    // The origin is accepted. The 415 comes later: a form is not JSON.
    for headers in [
        &[][..],
        &[("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "none")],
        &[("origin", own.as_str())],
    ] {
        assert_eq!(post(&api, headers).await, 415, "{headers:?}");
    }
    assert_eq!(
        post(&form, &[("origin", own.as_str())]).await,
        200,
        "redirected to the incident's page"
    );
    assert!(app.incident().await.resolved_at.is_some());
}

fn assert_security_headers(path: &str, headers: &HeaderMap) {
    let csp = headers["content-security-policy"].to_str().unwrap();
    assert!(
        csp.starts_with("default-src 'none'") && csp.contains("frame-ancestors 'none'"),
        "{path}: {csp}"
    );
    assert!(
        !csp.contains("unsafe") && !csp.contains('*'),
        "{path}: {csp}"
    );
    assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
    assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
    let cache_control = if path.starts_with("/assets/") {
        "private, max-age=31536000, immutable"
    } else {
        "no-store"
    };
    assert_eq!(headers["cache-control"], cache_control, "{path}");
}

#[tokio::test]
async fn every_answer_has_the_security_headers() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    for path in [
        "/",
        "/assets/style.css",
        "/assets/page.js",
        "/assets/icon.svg",
        "/metrics",
        "/readyz",
        "/openapi.json",
        "/api/v1/incidents",
        "/api/v1/incidents?limit=0",
        "/nothing",
        "/api/v1/incidents/999",
        &format!("/incidents/{id}"),
    ] {
        let response = get(&app, path).await;
        assert_security_headers(path, response.headers());
        assert!(response.headers().contains_key(CONTENT_TYPE), "{path}");
    }
    let refused = app
        .client
        .get(app.admin("/"))
        .header(HOST, "evil.example")
        .send()
        .await
        .unwrap();
    assert_security_headers("a refused host name", refused.headers());
}

#[tokio::test]
async fn without_a_database_the_api_answers_503() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let unreachable = Database::parse("postgresql://nobody@127.0.0.1:1/none").unwrap();
    let service = start_service(unreachable, &simulator, &[APP_SECRET]).await;
    let url = |path: &str| format!("http://localhost:{}{path}", service.admin_address.port());
    let client = crate::support::client();
    for path in ["/api/v1/incidents", "/api/v1/incidents/1", "/"] {
        let response = client.get(url(path)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(response.headers()["retry-after"], "5");
        let text = response.text().await.unwrap();
        let says_why = ["the database failed", "the database did not answer in time"]
            .iter()
            .any(|words| text.contains(words));
        assert!(says_why && !text.contains("127.0.0.1:1"), "{text}");
    }
    let page = client
        .get(url("/"))
        .header(ACCEPT, "text/html")
        .send()
        .await
        .unwrap();
    assert_eq!(page.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        page.text()
            .await
            .unwrap()
            .contains("<h1>Service Unavailable</h1>")
    );
    service.stop().await;
}

#[tokio::test]
async fn the_status_says_what_waits() {
    let app = TestApp::start().await;
    app.fail("a").await;
    assert_eq!(
        app.api("/status").await,
        json!({
            "ready": true,
            "obstacle": null,
            "open_incidents": 1,
            "inbox_callbacks": 0,
            "inbox_problems": 0,
            "inbox_oldest_seconds": 0,
            "quarantined": 0,
            "quarantined_accounts": [], "troubles": [],
        })
    );
    for n in 0..2 {
        let unreadable = format!("{{\"entry\":[{{\"id\":\"77\",\"changes\":[131031,{n}]}}]}}");
        app.deliver(unreadable.as_bytes()).await;
    }
    app.deliver(b"{\"entry\":[{\"id\":\"77\",\"changes\":[[131031]]}]}")
        .await;
    app.deliver(b"{\"entry\":131031}").await;
    app.execute(
        "alter table failed_deliveries
           add constraint no_poison check (message_id <> 'poison')",
    )
    .await;
    let mut processor = app.stop_processing().await;
    app.acknowledged(&one_failure("poison")).await;
    app.acknowledged(&one_failure("waits")).await;
    assert_eq!(app.api("/status").await["inbox_callbacks"], 2);
    resume_processing(&mut processor).await;
    app.eventually("only the poison is left", async || {
        let status = app.api("/status").await;
        status["inbox_callbacks"] == 1 && status["inbox_problems"] == 1
    })
    .await;
    app.let_time_pass(Duration::minutes(5)).await;
    let status = app.api("/status").await;
    let oldest = status["inbox_oldest_seconds"].as_i64().unwrap();
    assert!((300..330).contains(&oldest), "{status}");
    assert_eq!(
        (&status["quarantined"], &status["quarantined_accounts"]),
        (
            &json!(3),
            &json!([
                {"waba_id": "77", "parts": 2, "reason": "the change is not an object"},
                {"waba_id": "unknown", "parts": 1, "reason": "`entry` is not a list"},
            ])
        )
    );
    app.execute("alter table captures add constraint closed check (false) not valid")
        .await;
    let refused = app.post(&one_failure("refused")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let status = app.api("/status").await;
    assert_eq!(
        (&status["ready"], &status["obstacle"]),
        (&json!(false), &json!("the last append to the inbox failed"))
    );
}

#[tokio::test]
async fn the_openapi_document_matches_its_snapshot() {
    let document = lockwatch::http::api::openapi();
    let parsed: Value = serde_json::from_str(&document).unwrap();
    assert!(parsed["openapi"].as_str().unwrap().starts_with("3.1"));
    for reference in document.split("\"$ref\": \"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(
            parsed.pointer(pointer).is_some(),
            "{pointer} is not described"
        );
    }
    insta::assert_snapshot!(
        "openapi",
        document.replace(env!("CARGO_PKG_VERSION"), "VERSION")
    );
}

#[tokio::test]
async fn an_admin_token_is_compared_byte_for_byte() {
    // With a letter outside ASCII, and with spaces.
    let app = TestApp::start_with_admin_token("pässword with spaces").await;
    let bearer =
        reqwest::header::HeaderValue::from_bytes("Bearer pässword with spaces".as_bytes()).unwrap();
    let get = async |value| {
        app.client
            .get(app.admin("/"))
            .header(AUTHORIZATION, value)
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(get(bearer).await, StatusCode::OK);
    let latin =
        reqwest::header::HeaderValue::from_bytes(b"Bearer p\xe4ssword with spaces").unwrap();
    assert_eq!(get(latin).await, StatusCode::UNAUTHORIZED);
}
