//! The dashboard in a real browser: pages, actions, accessibility, and harmless received text.

use axum::Router;
use axum::response::Html;
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::simulator::Scenario;
use lockwatch::store::by_hand;
use rustix::process::Signal;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;

use crate::support::browser::{Browser, ENTER, TAB};
use crate::support::process::Serve;
use crate::support::{NUMBER, OTHER_NUMBER, TestApp, WABA};

const UNVERIFIED_WABA: &str = "204455667788990";
const RESOLVED_WABA: &str = "309988776655443";

/// True on the page of a resolved incident.
const IS_RESOLVED: &str = "document.querySelector('h1').innerText.includes('was locked')";

async fn start() -> (TestApp, Browser) {
    (TestApp::start().await, Browser::start().await)
}

fn minutes_ago(minutes: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() - Duration::minutes(minutes)
}

/// Records an incident of three days ago, which was resolved after 20 hours.
async fn seed_resolved_incident(app: &TestApp) {
    app.simulator.set_scenarios("309", [Scenario::Policy]);
    app.fail_number(RESOLVED_WABA, "309", minutes_ago(60)).await;
    app.wait_for_cause("policy_violation").await;
    app.let_time_pass(Duration::days(3)).await;
    let id = app.incident().await.id;
    by_hand::resolve(&app.db, id, Some("Meta granted the review"), None)
        .await
        .unwrap()
        .unwrap();
    app.execute("update incidents set (ended_at, resolved_at) = (opened_at + interval '20 hours', opened_at + interval '20 hours')")
        .await;
}

/// A callback with 24 failures of one number within an hour, and three of another.
fn storm() -> Vec<u8> {
    let mut callback = StatusCallback::new();
    for n in 0..24 {
        let id = message_id("16505551234", &format!("3EB0C431C26A1916E{n:03}"));
        callback = callback
            .timestamp(minutes_ago(n * n / 9))
            .failed(WABA, NUMBER, &id);
    }
    for n in 0..3 {
        callback =
            callback
                .timestamp(minutes_ago(2))
                .failed(WABA, OTHER_NUMBER, &format!("wamid.{n}"));
    }
    callback.into_body()
}

/// Records two open incidents and a resolved one. The first open one has two numbers, 27 failures
/// within an hour, and several checks.
async fn seed(app: &TestApp) {
    seed_resolved_incident(app).await;
    app.simulator.set_scenarios(
        NUMBER,
        [
            Scenario::ServerError,
            Scenario::Available,
            Scenario::Payment,
        ],
    );
    app.simulator
        .set_scenarios(OTHER_NUMBER, [Scenario::UnknownNode, Scenario::Available]);
    app.deliver(&storm()).await;
    let numbers = "select count(distinct phone_number_id) from health_checks";
    app.eventually("every number is looked up", async || {
        app.count(numbers).await == 3
    })
    .await;
    for _ in 0..3 {
        app.run_next_check(Duration::minutes(35)).await;
    }
    let payment = "select count(*) from incidents where cause = 'payment'";
    app.eventually("the cause payment", async || app.count(payment).await == 1)
        .await;

    app.simulator
        .set_scenarios("204", [Scenario::UnverifiedBlocked]);
    app.fail_number(UNVERIFIED_WABA, "204", minutes_ago(12))
        .await;
    let unverified = "select count(*) from incidents where cause = 'business_verification'";
    app.eventually("the cause business_verification", async || {
        app.count(unverified).await == 1
    })
    .await;
}

/// The URL of the page of an account's incident.
async fn incident_url(app: &TestApp, waba_id: &str) -> String {
    let incidents = app.incidents().await;
    let incident = incidents
        .iter()
        .find(|incident| incident.waba_id == waba_id)
        .unwrap();
    app.admin(&format!("/incidents/{}", incident.id))
}

/// Fails unless the browser's log holds each of these texts, once or more, and nothing else.
async fn assert_logged_only(browser: &Browser, expected: &[&str]) {
    let mut log = browser.log().await;
    // The browser ignores this header over plain HTTP, and logs that each time.
    log.retain(|line| !line.contains("The Cross-Origin-Opener-Policy header has been ignored"));
    for text in expected {
        assert!(
            log.iter().any(|line| line.contains(text)),
            "no {text} in {log:#?}"
        );
        log.retain(|line| !line.contains(text));
    }
    assert_eq!(log, [] as [&str; 0]);
}

async fn assert_nothing_logged(browser: &Browser) {
    assert_logged_only(browser, &[]).await;
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// Fails if one of the scripts below finds a defect in the page.
async fn assert_no_defect(browser: &Browser, script: &str, arguments: Value) {
    let defects = browser.execute(script, arguments).await;
    assert_eq!(defects, json!([]), "{}", browser.text("title").await);
}

/// The value of a form field.
async fn value_of(browser: &Browser, selector: &str) -> String {
    let value = browser
        .evaluate(&format!("document.querySelector(\"{selector}\").value"))
        .await;
    value.as_str().unwrap().to_owned()
}

/// Waits until an element has this text.
async fn wait_for_text(browser: &Browser, selector: &str, text: &str) {
    let condition = format!("document.querySelector('{selector}').innerText === '{text}'");
    browser.wait_until(&condition).await;
}

/// Waits until a selector finds this number of elements.
async fn wait_for_count(browser: &Browser, selector: &str, count: usize) {
    let condition = format!("document.querySelectorAll('{selector}').length === {count}");
    browser.wait_until(&condition).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_list_shows_open_incidents_first_then_resolved_ones() {
    let (app, browser) = start().await;
    seed(&app).await;
    browser.open(&app.admin("/")).await;
    browser.screenshot("list").await;
    assert_eq!(browser.text("h1").await, "2 accounts are locked");
    assert_eq!(browser.texts("h2").await, ["Open", "Resolved"]);
    assert_eq!(
        browser.texts("h3").await,
        [UNVERIFIED_WABA, WABA].map(|id| format!("Account {id}"))
    );
    assert_has(
        &browser.texts(".card").await[1],
        &[
            "open",
            "Payment problem",
            "payment method",
            "Locked since",
            "UTC (2 h 43 min ago)",
            "27",
            "Numbers",
            "15550783881",
            "Next step",
            "add a new payment method",
        ],
    );
    let bars = browser
        .evaluate("document.querySelectorAll('.card .spark path')[1].getAttribute('d')")
        .await;
    assert!(
        bars.as_str().unwrap().matches('z').count() > 3,
        "too few bars: {bars}"
    );
    let row = browser.texts("#resolved tbody tr > *").await;
    assert_eq!(
        (&row[0][..], &row[1][..], &row[3][..], &row[4][..]),
        (RESOLVED_WABA, "Policy violation", "20 h", "1")
    );
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn an_empty_list_explains_how_to_connect_meta() {
    let (app, browser) = start().await;
    browser.open(&app.admin("/")).await;
    browser.screenshot("empty").await;
    assert_eq!(browser.text("h1").await, "No open incident");
    assert_has(
        &browser.text("#welcome").await,
        &[
            "App Dashboard",
            "https://…/webhook",
            "META_VERIFY_TOKEN",
            "messages",
            "subscribed_apps",
        ],
    );
    assert_eq!(browser.count("form").await, 0, "a filter of nothing");
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_first_incident_appears_on_an_open_empty_list() {
    let (app, browser) = start().await;
    browser.open(&app.admin("/")).await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    refresh(&browser).await;
    wait_for_text(&browser, "h1", "1 account is locked").await;
    wait_for_count(&browser, ".card", 1).await;
    assert_nothing_logged(&browser).await;
}

async fn assert_headline_facts_and_steps(browser: &Browser) {
    assert_has(
        &browser.text("#headline").await,
        &[WABA, "is locked", "open", "Payment problem: "],
    );
    assert_has(
        &browser.text("#facts").await,
        &[
            "Locked since",
            "27",
            "Latest failure",
            "Numbers affected",
            "2",
        ],
    );
    assert_has(
        &browser.text("#steps").await,
        &[
            "Meta's advice: ",
            "Billing & payments",
            "Open Business Support Home",
        ],
    );
}

async fn assert_timeline(browser: &Browser) {
    for (mark, max_count) in [
        (".bar", 60),
        ("g.blocked rect", 1),
        ("g.refused rect", 1),
        ("text.lane", 2),
    ] {
        let count = browser.count(&format!("svg.timeline {mark}")).await;
        assert!((1..=max_count).contains(&count), "{count} {mark}");
    }
    let markers =
        "[...document.querySelectorAll('svg.timeline text.marker')].map(text => text.textContent)";
    let markers: Vec<String> = serde_json::from_value(browser.evaluate(markers).await).unwrap();
    assert!(
        markers[0].starts_with("first failure ") && markers[1].starts_with("cause recorded "),
        "{markers:?}"
    );
    let description = browser
        .evaluate("document.getElementById('timeline-text').textContent")
        .await;
    assert_has(
        description.as_str().unwrap(),
        &["27 failures from ", "BLOCKED from ", "refused from "],
    );
}

async fn assert_evidence_numbers_and_appeal(browser: &Browser) {
    assert_has(
        &browser.text("#why").await,
        &[
            "payment",
            "WABA",
            "BLOCKED",
            "141006",
            "The cause comes from health check",
            "AVAILABLE",
        ],
    );
    assert_has(
        &browser.text("#numbers").await,
        &[NUMBER, OTHER_NUMBER, "BLOCKED", "24", "3"],
    );
    assert_has(
        &value_of(browser, "#appeal-text").await,
        &[WABA, NUMBER, "24 messages failed", "131031", "[fill in]"],
    );
}

async fn assert_checks_unfold(browser: &Browser) {
    let checks = browser.count("#checks details").await;
    assert!(checks >= 4, "{checks}");
    assert!(browser.count("#checks pre").await > 0);
    browser.click("#checks details:first-of-type summary").await;
    assert_has(
        &browser.text("#checks details[open]").await,
        &["Meta's raw answer:", "\"health_status\""],
    );
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn an_open_incident_shows_its_facts_timeline_and_evidence() {
    let (app, browser) = start().await;
    seed(&app).await;
    browser.open(&incident_url(&app, WABA).await).await;
    browser.screenshot("incident").await;
    assert_headline_facts_and_steps(&browser).await;
    assert_timeline(&browser).await;
    assert_evidence_numbers_and_appeal(&browser).await;
    assert_checks_unfold(&browser).await;
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_resolved_incident_shows_its_end_and_no_next_steps() {
    let (app, browser) = start().await;
    seed_resolved_incident(&app).await;
    browser.open(&incident_url(&app, RESOLVED_WABA).await).await;
    browser.screenshot("incident-resolved").await;
    assert_has(
        &browser.text("#headline").await,
        &["was locked", "resolved by hand", "Policy violation"],
    );
    assert_has(
        &browser.text("#facts").await,
        &["Resolved", "(after 20 h)", "Meta granted the review"],
    );
    assert_eq!(browser.count("svg.timeline line.marker.resolved").await, 1);
    assert_eq!(browser.count("#steps, #resolve").await, 0);
    assert_nothing_logged(&browser).await;
}

/// Opens the page of an incident with 45 failed deliveries to 16505551234.
async fn open_incident_with_45_deliveries(app: &TestApp, browser: &Browser) {
    let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
    for n in 0..45 {
        let id = message_id("16505551234", &format!("3EB0C431C26A1916E{n:03}"));
        callback = callback.failed(WABA, NUMBER, &id);
    }
    app.deliver(&callback.into_body()).await;
    app.wait_for_cause("unreported").await;
    browser.open(&incident_url(app, WABA).await).await;
}

async fn delivery_rows(browser: &Browser) -> Vec<String> {
    browser.texts("#deliveries tbody tr").await
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn deliveries_come_in_pages_without_repetition() {
    let (app, browser) = start().await;
    open_incident_with_45_deliveries(&app, &browser).await;
    let mut seen = delivery_rows(&browser).await;
    for count in [20, 5] {
        assert_eq!(browser.text("#deliveries .older").await, "Older deliveries");
        browser.follow("#deliveries .older").await;
        let rows = delivery_rows(&browser).await;
        assert_eq!(rows.len(), count);
        seen.extend(rows);
    }
    assert_eq!(
        browser.count("#deliveries .older").await,
        0,
        "the last page has a link to older ones"
    );
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 45);
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn recipients_are_shown_in_full_only_on_request() {
    let (app, browser) = start().await;
    open_incident_with_45_deliveries(&app, &browser).await;
    browser.follow("#deliveries .older").await;
    browser.follow("#deliveries .older").await;
    let page = browser.text("body").await;
    assert_has(&page, &["Recipients are masked.", "*******1234"]);
    assert!(!page.contains("16505551234"), "{page}");

    browser
        .follow("#deliveries a[href*='reveal=recipients']")
        .await;
    browser.screenshot("incident-revealed").await;
    assert_eq!(delivery_rows(&browser).await.len(), 5, "another page");
    assert_has(
        &browser.text("#deliveries").await,
        &[
            "that was logged",
            "16505551234",
            "wamid.HBgLMTY1MDU1NTEyMzQ",
        ],
    );
    assert_has(&browser.text("#asof").await, &["not refreshed"]);
    assert_has(
        &value_of(&browser, "#appeal-text").await,
        &["Example message ID: wamid.HBgLMTY1MDU1NTEyMzQ"],
    );
    browser.follow("#deliveries p a").await;
    assert!(!browser.text("body").await.contains("16505551234"));
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_list_is_filtered_by_text_state_and_cause() {
    let (app, browser) = start().await;
    seed(&app).await;
    browser.open(&app.admin("/")).await;
    let listed = async || browser.texts("h3 a, #resolved th a").await;
    let choose = async |field: &str, word: &str| {
        let option = format!("[name={field}] option[value={word}]");
        browser.click(&option).await;
    };
    let submit = async || browser.follow(".filter button").await;
    let (open, unverified) = (
        format!("Account {WABA}"),
        format!("Account {UNVERIFIED_WABA}"),
    );

    browser.type_into("[name=q]", &OTHER_NUMBER[3..]).await;
    browser.press(ENTER).await;
    browser.wait_until("location.search.includes('q=')").await;
    assert_eq!(listed().await, [&open[..]], "by a part of a number");
    assert_eq!(value_of(&browser, "[name=q]").await, OTHER_NUMBER[3..]);
    browser.follow(".clear").await;
    assert_eq!(listed().await, [&unverified, &open, RESOLVED_WABA]);

    choose("state", "resolved").await;
    submit().await;
    assert_eq!(listed().await, [RESOLVED_WABA]);
    assert_eq!(browser.texts("h2").await, ["Resolved"]);
    choose("state", "all").await;
    choose("cause", "business_verification").await;
    submit().await;
    assert_eq!(listed().await, [&unverified[..]]);
    browser.type_into("[name=q]", RESOLVED_WABA).await;
    submit().await;
    browser.screenshot("list-nothing-fits").await;
    assert_eq!(listed().await, [] as [&str; 0]);
    assert_eq!(browser.texts(".none").await, ["No incident matches."; 2]);
    assert_eq!(
        browser.text("h1").await,
        "2 accounts are locked",
        "the filter changed the headline"
    );
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn an_incident_is_resolved_with_a_note_and_only_once() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    let page = incident_url(&app, WABA).await;
    browser.open(&page).await;
    let (second, first) = browser.open_tab().await;
    browser.open(&page).await;
    browser.type_into("#note", "me too").await;
    browser.switch_to_tab(&first).await;
    browser
        .type_into("#note", "Meta granted <the> review & more")
        .await;
    browser.follow("#resolve button").await;
    assert_eq!(
        browser.evaluate("location.href").await,
        page[..],
        "not back on the page"
    );
    assert_has(
        &browser.text("main").await,
        &[
            "was locked",
            "resolved by hand",
            "Meta granted <the> review & more",
        ],
    );
    assert_nothing_logged(&browser).await;

    browser.switch_to_tab(&second).await;
    browser.follow("#resolve button").await;
    browser.screenshot("problem").await;
    let id = app.incident().await.id;
    assert_has(
        &browser.text("main").await,
        &[&format!(
            "Incident {id} was resolved before; nothing changed"
        )],
    );
    assert_eq!(
        app.incident().await.resolution_note.as_deref(),
        Some("Meta granted <the> review & more")
    );
    browser.follow("main a").await;
    assert_eq!(browser.text("h1").await, "No open incident");
    assert_logged_only(&browser, &["status of 409 (Conflict)"]).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_appeal_text_is_copied() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    let permissions = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    browser
        .devtools("Browser.grantPermissions", permissions)
        .await;
    browser.open(&incident_url(&app, WABA).await).await;
    browser.click("[data-copy]").await;
    wait_for_text(&browser, "[data-copied]", "Copied.").await;
    let copied = browser.evaluate("navigator.clipboard.readText()").await;
    assert_has(copied.as_str().unwrap(), &[WABA, NUMBER, "131031"]);
    assert_eq!(copied, value_of(&browser, "#appeal-text").await);
    assert_nothing_logged(&browser).await;
}

/// Makes the page refresh itself at once, as it does when a user returns to it.
async fn refresh(browser: &Browser) {
    browser
        .evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        .await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_refresh_adds_news_and_keeps_the_users_input() {
    let (app, browser) = start().await;
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    app.fail("a").await;
    app.wait_for_cause("payment").await;
    browser.open(&incident_url(&app, WABA).await).await;
    browser.evaluate("window.isTheSame = true").await;
    browser.click("#checks summary").await;
    browser.type_into("#note", "half a sen").await;

    app.fail("b").await;
    app.run_next_check(Duration::hours(2)).await;
    refresh(&browser).await;
    wait_for_text(&browser, "#facts .big", "2").await;
    wait_for_count(&browser, "#checks details", 2).await;
    wait_for_count(&browser, "#deliveries tbody tr", 2).await;
    assert_has(
        &browser.text("#checks details[open]").await,
        &["Meta's raw answer:"],
    );
    assert_eq!(browser.evaluate("document.activeElement.id").await, "note");
    browser.press("tence").await;
    assert_eq!(value_of(&browser, "#note").await, "half a sentence");
    assert_eq!(
        browser.evaluate("window.isTheSame").await,
        true,
        "the page was loaded again"
    );
    browser.press(ENTER).await;
    browser.wait_until(IS_RESOLVED).await;
    assert_eq!(
        app.incident().await.resolution_note.as_deref(),
        Some("half a sentence")
    );
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_page_says_that_it_is_stale_when_lockwatch_is_down() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    browser.open(&app.admin("/")).await;
    let TestApp { service, .. } = app;
    service.stop().await;
    refresh(&browser).await;
    let is_stale = "/^Lockwatch does not answer. As of .* UTC$/\
        .test(document.getElementById('asof').innerText)";
    browser.wait_until(is_stale).await;
    browser.screenshot("list-no-answer").await;
    assert_eq!(
        browser.text("h1").await,
        "1 account is locked",
        "the old content is gone"
    );
    assert_logged_only(&browser, &["ERR_CONNECTION_REFUSED"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_page_says_that_it_is_stale_while_lockwatch_hangs() {
    let (app, browser) = start().await;
    app.fail("a").await;
    let serve = Serve::on_database(&app.database.url, &[]);
    browser
        .open(&serve.admin.replace("127.0.0.1", "localhost"))
        .await;
    serve.signal(Signal::STOP);
    refresh(&browser).await;
    browser
        .wait_until("document.getElementById('asof').classList.contains('stale')")
        .await;
    serve.signal(Signal::CONT);
    refresh(&browser).await;
    browser
        .wait_until("!document.getElementById('asof').classList.contains('stale')")
        .await;
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_refresh_leaves_out_a_section_with_selected_text() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    browser.open(&incident_url(&app, WABA).await).await;
    // A selection holds a section back. The focus on a table does not.
    browser
        .evaluate("document.querySelector('#numbers .scroll').focus()")
        .await;
    browser
        .evaluate("document.getSelection().selectAllChildren(document.querySelector('#facts'))")
        .await;
    app.fail("b").await;
    refresh(&browser).await;
    wait_for_text(&browser, "#numbers td.right", "2").await;
    assert_eq!(
        browser
            .evaluate("document.activeElement === document.querySelector('#numbers .scroll')")
            .await,
        true
    );
    assert_eq!(browser.count("#facts.held").await, 1);
    assert!(
        browser.text("#appeal-text").await.is_empty(),
        "a text field has a value and no text"
    );
    assert_has(
        &value_of(&browser, "#appeal-text").await,
        &["Failed messages: 2"],
    );
    browser
        .evaluate("document.getSelection().removeAllRanges()")
        .await;
    refresh(&browser).await;
    browser
        .wait_until("!document.querySelector('#facts.held')")
        .await;
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn an_open_page_loses_its_steps_when_the_incident_is_resolved() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    browser.open(&incident_url(&app, WABA).await).await;
    browser.type_into("#note", "half a sen").await;
    by_hand::resolve(&app.db, app.incident().await.id, None, None)
        .await
        .unwrap()
        .unwrap();
    refresh(&browser).await;
    browser.wait_until(IS_RESOLVED).await;
    assert_eq!(browser.count("#steps").await, 0);
    assert_eq!(browser.count("#resolve.gone").await, 1);
    assert_nothing_logged(&browser).await;
}

async fn disable_scripts(browser: &Browser) {
    browser
        .devtools(
            "Emulation.setScriptExecutionDisabled",
            json!({"value": true}),
        )
        .await;
}

/// The lines of a page's text, without those that depend on the time.
async fn timeless_lines(browser: &Browser) -> Vec<String> {
    let text = browser.text("main").await;
    text.lines()
        .filter(|line| !line.contains("ago") && !line.contains("in "))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn pages_have_the_same_text_without_scripts() {
    let (app, browser) = start().await;
    seed(&app).await;
    let pages = [
        app.admin("/"),
        incident_url(&app, WABA).await,
        incident_url(&app, RESOLVED_WABA).await,
    ];
    let mut with_scripts = Vec::new();
    for page in &pages {
        browser.open(page).await;
        browser
            .evaluate("document.documentElement.classList.remove('scripted')")
            .await;
        with_scripts.push(timeless_lines(&browser).await);
    }
    disable_scripts(&browser).await;
    for (page, with_scripts) in pages.iter().zip(with_scripts) {
        browser.open(page).await;
        assert_eq!(timeless_lines(&browser).await, with_scripts, "{page}");
    }
    assert_eq!(
        browser.count("noscript meta").await,
        0,
        "an incident's page reloads itself and drops a typed note"
    );
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_list_reloads_itself_without_scripts() {
    let (app, browser) = start().await;
    seed(&app).await;
    disable_scripts(&browser).await;
    browser.open(&app.admin("/")).await;
    assert_eq!(browser.count("noscript meta").await, 1);
    app.fail_number("555", NUMBER, OffsetDateTime::now_utc())
        .await;
    // Lets half a minute pass at once.
    let virtual_time = json!({"policy": "pauseIfNetworkFetchesPending", "budget": 40_000});
    browser
        .devtools("Emulation.setVirtualTimePolicy", virtual_time)
        .await;
    wait_for_text(&browser, "h1", "3 accounts are locked").await;
    assert_nothing_logged(&browser).await;
}

/// Every kind of page with the name of its screenshot. `empty` has no incident.
async fn every_page(app: &TestApp, empty: &TestApp) -> [(&'static str, String); 5] {
    [
        ("list", app.admin("/")),
        ("incident", incident_url(app, WABA).await),
        ("incident-resolved", incident_url(app, RESOLVED_WABA).await),
        ("problem", app.admin("/incidents/0")),
        ("empty", empty.admin("/")),
    ]
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn every_text_has_enough_contrast_in_both_themes() {
    let (app, browser) = start().await;
    let empty = TestApp::start().await;
    seed(&app).await;
    let pages = every_page(&app, &empty).await;
    let colours =
        "(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))";
    let mut light_colours = Vec::new();
    for (_, page) in &pages {
        browser.open(page).await;
        light_colours.push(browser.evaluate(colours).await);
        assert_no_defect(&browser, CONTRAST_SCRIPT, json!([])).await;
    }
    browser.use_dark_theme().await;
    for ((name, page), light) in pages.iter().zip(light_colours) {
        browser.open(page).await;
        browser.screenshot(&format!("{name}-dark")).await;
        let dark = browser.evaluate(colours).await;
        assert!(dark[0] != light[0] && dark[1] != light[1], "{light} {dark}");
        assert_no_defect(&browser, CONTRAST_SCRIPT, json!([])).await;
    }
    assert_logged_only(&browser, &["404 (Not Found)"]).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn every_page_fits_a_phone_with_normal_and_large_text() {
    let (app, browser) = start().await;
    let empty = TestApp::start().await;
    seed(&app).await;
    let pages = every_page(&app, &empty).await;
    browser.emulate_phone(360).await;
    for font_size in ["16px", "32px"] {
        for (name, page) in &pages {
            browser.open(page).await;
            assert_eq!(
                browser
                    .evaluate("getComputedStyle(document.body).fontSize")
                    .await,
                font_size
            );
            assert_no_defect(&browser, OVERFLOW_SCRIPT, json!([360])).await;
            // A screenshot resets the font size.
            if font_size == "16px" {
                browser.screenshot(&format!("{name}-360")).await;
            }
        }
        browser.double_font_size().await;
    }
    assert_logged_only(&browser, &["404 (Not Found)"]).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_next_step_is_near_the_top_on_a_phone() {
    let (app, browser) = start().await;
    seed(&app).await;
    browser.emulate_phone(360).await;
    browser.use_dark_theme().await;
    for (name, page) in [
        ("list", app.admin("/")),
        ("incident", incident_url(&app, WABA).await),
    ] {
        browser.open(&page).await;
        browser.screenshot(&format!("{name}-360-dark")).await;
        let is_near_the_top =
            "document.querySelector('.next, #steps').getBoundingClientRect().top < 2 * innerHeight";
        assert_eq!(browser.evaluate(is_near_the_top).await, true, "{name}");
    }
    assert_nothing_logged(&browser).await;
}

/// Returns the name of the element with the focus. Fails if users cannot see the focus.
async fn focused_element(browser: &Browser) -> String {
    let focus = browser.execute(FOCUS_SCRIPT, json!([])).await;
    assert_eq!(focus["hidden"], false, "{focus}");
    focus["name"].as_str().unwrap().to_owned()
}

/// Presses Tab until the element of this name has the focus. Returns the names on the way.
async fn tab_to(browser: &Browser, name: &str) -> Vec<String> {
    let mut passed = Vec::new();
    while passed.last().is_none_or(|last| last != name) {
        assert!(passed.len() < 60, "no {name} in {passed:?}");
        browser.press(TAB).await;
        passed.push(focused_element(browser).await);
    }
    passed
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn everything_works_by_keyboard_with_a_visible_focus() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    browser.open(&app.admin("/")).await;
    let passed = tab_to(&browser, &format!("Account {WABA}")).await;
    assert_eq!(
        passed[..7],
        [
            "Skip to the content",
            "Lockwatch",
            "Alerts",
            "q",
            "state",
            "cause",
            "Filter"
        ]
    );

    browser.open(&app.admin("/")).await;
    browser.press(TAB).await;
    browser.screenshot("list-skip-link").await;
    browser.press(ENTER).await;
    browser
        .wait_until("document.activeElement.id === 'main'")
        .await;
    let passed = tab_to(&browser, &format!("Account {WABA}")).await;
    assert_eq!(passed[0], "Alerts", "the header was not skipped");

    browser.press(ENTER).await;
    browser
        .wait_until("document.getElementById('note') !== null")
        .await;
    let passed = tab_to(&browser, "note").await;
    assert!(passed.contains(&"Copy".to_owned()), "{passed:?}");
    browser.press("by hand").await;
    assert_eq!(tab_to(&browser, "Resolve").await.len(), 1);
    browser.screenshot("incident-focus").await;
    browser.press(ENTER).await;
    browser.wait_until(IS_RESOLVED).await;
    assert_eq!(
        app.incident().await.resolution_note.as_deref(),
        Some("by hand")
    );
    tab_to(&browser, "Readiness").await;
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn pages_are_accessible_to_a_screen_reader() {
    let (app, browser) = start().await;
    browser.open(&app.admin("/")).await;
    assert_no_defect(&browser, ACCESSIBILITY_SCRIPT, json!([])).await;
    seed(&app).await;
    let open = incident_url(&app, WABA).await;
    let resolved = incident_url(&app, RESOLVED_WABA).await;
    for page in [app.admin("/"), open, resolved, app.admin("/incidents/0")] {
        browser.open(&page).await;
        assert_no_defect(&browser, ACCESSIBILITY_SCRIPT, json!([])).await;
    }
    assert_logged_only(&browser, &["404 (Not Found)"]).await;
}

const HOSTILE_IDS: [&str; 5] = [
    "<script>pwned=1</script>",
    "\"><img src=x onerror=pwned=1>",
    "</title><script>pwned=1</script>",
    "\u{202e}\u{2066}1234567890",
    // As long as an id may be.
    "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW",
];

fn hostile_text() -> String {
    format!(
        "</textarea></pre></svg>{} {}",
        HOSTILE_IDS.concat(),
        "W".repeat(512)
    )
}

/// A callback with a failure whose every text is hostile.
fn hostile_callback(id: &str, text: &str) -> Vec<u8> {
    let status = json!({
        "id": text,
        "status": "failed",
        "recipient_id": text,
        "biz_opaque_callback_data": text,
        "recipient_participant_id": text,
        "errors": [{
            "code": 131_031,
            "title": text,
            "message": text,
            "error_data": {"details": text},
        }],
    });
    let callback = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .status(id, id, status);
    let mut callback: Value = serde_json::from_slice(&callback.into_body()).unwrap();
    callback["entry"][0]["changes"][0]["value"]["metadata"]["display_phone_number"] = json!(text);
    callback.to_string().into_bytes()
}

/// Fills the causes and checks with the answers of a hostile Meta.
async fn store_hostile_answers(app: &TestApp, text: &str) {
    let entity = json!({
        "entity_type": text,
        "id": text,
        "can_send_message": text,
        "additional_info": [text],
        "errors": [{"error_code": 1, "error_description": text, "possible_solution": text}],
    });
    sqlx::query(
        "update health_checks
            set response = $1, error = $1, can_send_message = $1, outcome = 'answered',
                entities = $2",
    )
    .bind(text)
    .bind(json!([entity]))
    .execute(&app.db)
    .await
    .unwrap();
    sqlx::query(
        "update incidents
            set cause = 'other_restriction', cause_summary = $1, cause_severity = $1,
                possible_solution = $1, cause_entity_type = $1, cause_entity_id = $1,
                cause_error_code = 1",
    )
    .bind(text)
    .execute(&app.db)
    .await
    .unwrap();
}

/// Records an incident for each hostile id, and resolves the first with a hostile note. Returns the
/// pages that show hostile text.
async fn seed_hostile_pages(app: &TestApp) -> Vec<String> {
    let text = hostile_text();
    for id in HOSTILE_IDS {
        app.deliver(&hostile_callback(id, &text)).await;
    }
    let pending = "select count(*) from incidents where cause = 'pending'";
    app.eventually("all incidents have a cause", async || {
        app.count(pending).await == 0
    })
    .await;
    store_hostile_answers(app, &text).await;
    let incidents = app.incidents().await;
    by_hand::resolve(&app.db, incidents[0].id, Some(&text), None)
        .await
        .unwrap()
        .unwrap();

    let mut paths = vec![
        "/".to_owned(),
        "/?q=%3Cscript%3Epwned%3D1%3C/script%3E".to_owned(),
    ];
    for incident in &incidents {
        paths.push(format!("/incidents/{}?reveal=recipients", incident.id));
    }
    paths.push("/incidents/%3Cscript%3Epwned=1%3C/script%3E".to_owned());
    paths.push("/?%3Cscript%3Epwned=1%3C/script%3E=1".to_owned());
    paths.iter().map(|path| app.admin(path)).collect()
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn hostile_text_is_shown_as_text_and_breaks_no_layout() {
    let (app, browser) = start().await;
    let pages = seed_hostile_pages(&app).await;
    for width in [1200, 360] {
        if width < 1200 {
            browser.emulate_phone(width).await;
        }
        for (number, page) in pages.iter().enumerate() {
            browser.open(page).await;
            browser
                .evaluate(
                    "document.querySelectorAll('details').forEach(details => details.open = true)",
                )
                .await;
            browser
                .screenshot(&format!("hostile-{width}-{number}"))
                .await;
            assert_no_defect(&browser, INJECTION_SCRIPT, json!([])).await;
            assert_no_defect(&browser, OVERFLOW_SCRIPT, json!([width])).await;
        }
    }
    assert_logged_only(&browser, &["404 (Not Found)", "400 (Bad Request)"]).await;
}

/// Serves a page of another site. Returns its port.
async fn serve_page(html: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().fallback(|| async { Html(html) });
    tokio::spawn(axum::serve(listener, router).into_future());
    port
}

const ADMIN_TOKEN: &str = "an-admin-token-of-the-tests";

fn with_token(url: &str) -> String {
    url.replace("//", &format!("//any:{ADMIN_TOKEN}@"))
}

/// Starts an app under another host name and without TLS: for a browser, no secure context.
async fn start_under_another_name() -> (TestApp, Browser) {
    let app = TestApp::start_with_admin_token(ADMIN_TOKEN).await;
    app.simulator.set_scenarios(NUMBER, [Scenario::Available]);
    app.fail("a").await;
    app.wait_for_cause("unreported").await;
    let rules = "--host-resolver-rules=MAP *.example 127.0.0.1";
    (app, Browser::start_with(&[rules]).await)
}

fn url_under_another_name(app: &TestApp, path: &str) -> String {
    format!(
        "http://lockwatch.example:{}{path}",
        app.service.admin_address.port()
    )
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn over_plain_http_everything_but_the_clipboard_works() {
    let (app, browser) = start_under_another_name().await;
    let path = format!("/incidents/{}", app.incident().await.id);
    browser
        .open(&with_token(&url_under_another_name(&app, &path)))
        .await;
    assert_eq!(browser.evaluate("isSecureContext").await, false);
    app.fail("b").await;
    refresh(&browser).await;
    wait_for_text(&browser, "#facts .big", "2").await;

    browser.click("[data-copy]").await;
    wait_for_text(&browser, "[data-copied]", "Selected: copy it with Ctrl+C.").await;
    assert_eq!(
        browser.evaluate("getSelection().toString()").await,
        browser.evaluate("document.activeElement.value").await
    );

    browser.type_into("#note", "from afar").await;
    browser.follow("#resolve button").await;
    assert_has(&browser.text("main").await, &["was locked", "from afar"]);
    assert_eq!(
        app.incident().await.resolution_note.as_deref(),
        Some("from afar")
    );
    assert_nothing_logged(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_form_on_another_site_is_refused() {
    // The first app has a token and another host name: browsers send at best an Origin header with
    // the name of the other site. The second is on localhost: browsers say that the request is
    // cross-site.
    let (app, browser) = start_under_another_name().await;
    let local = TestApp::start().await;
    local.fail("a").await;
    local.wait_for_cause("unreported").await;
    let url = url_under_another_name(&app, "/");
    browser.open(&with_token(&url)).await;
    for policy in ["same-origin", "no-referrer", "unsafe-url"] {
        for (victim, url) in [(&app, &url), (&local, &local.admin("/"))] {
            let id = victim.incident().await.id;
            let port = serve_page(format!(
                "<!doctype html><link rel=icon href=data:,><meta name=referrer content={policy}>
                 <form method=post action={url}incidents/{id}/resolve>
                 <input name=note value=evil><button>Win</button></form>"
            ))
            .await;
            for site in [
                "localhost",
                "127.0.0.1",
                "evil.example",
                "lockwatch.example",
            ] {
                browser.open(&format!("http://{site}:{port}/")).await;
                browser.follow("button").await;
                assert_has(
                    &browser.text("main").await,
                    &["Forbidden", "Another site's page"],
                );
                assert_logged_only(&browser, &["403 (Forbidden)"]).await;
                assert_eq!(victim.incident().await.resolved_at, None, "{site} {policy}");
            }
        }
    }
    browser.screenshot("problem-forbidden").await;
}

/// Finds texts with a contrast of less than 4.5:1 to their background
/// ([WCAG 2.2, 1.4.3](https://www.w3.org/TR/WCAG22/#contrast-minimum)).
const CONTRAST_SCRIPT: &str = r#"
    // The parts of a mixed colour go from 0 to 1, those of any other from 0 to 255.
    const read = colour => {
      const parts = colour.match(/[\d.]+/g).map(Number);
      const max = colour.startsWith("color(") ? 1 : 255;
      return { rgb: parts.slice(0, 3).map(part => part / max), alpha: parts[3] ?? 1 };
    };
    const linear = part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4;
    const luminance = ({ rgb }) => {
      const [r, g, b] = rgb.map(linear);
      return .2126 * r + .7152 * g + .0722 * b;
    };
    const background = element => {
      const colour = read(getComputedStyle(element).backgroundColor);
      const isOpaque = colour.alpha === 1 || element === document.documentElement;
      return isOpaque ? colour : background(element.parentElement);
    };
    const contrast = (element, ink) => {
      const both = [luminance(read(ink)), luminance(background(element))];
      const [dark, light] = both.sort((a, b) => a - b);
      return (light + .05) / (dark + .05);
    };
    const inks = element => {
      const { color, fill } = getComputedStyle(element);
      const found = [element instanceof SVGElement ? fill : color];
      if (element.placeholder) found.push(getComputedStyle(element, "::placeholder").color);
      return found;
    };
    document.querySelectorAll("details").forEach(details => details.open = true);
    const isText = node => node.nodeType === Node.TEXT_NODE && node.data.trim();
    const hasText = element =>
      [...element.childNodes].some(isText) || element.matches("input, textarea, select");
    return [...document.body.querySelectorAll("*")]
      .filter(element => hasText(element) && element.checkVisibility())
      .filter(element => !element.matches("title, desc, noscript"))
      .flatMap(element => inks(element).map(ink => [contrast(element, ink), element]))
      .filter(([contrast]) => !(contrast >= 4.5))
      .map(([contrast, element]) => `${contrast.toFixed(2)} ${element.outerHTML.slice(0, 120)}`);
"#;

/// Finds elements that are cut or beside the screen, outside of the tables that scroll.
const OVERFLOW_SCRIPT: &str = r#"
    const [width] = arguments;
    document.querySelectorAll("details").forEach(details => details.open = true);
    const defects = [];
    const pageWidth = document.documentElement.scrollWidth;
    if (pageWidth > width) defects.push(`the page is ${pageWidth} px wide`);
    for (const element of document.body.querySelectorAll("*")) {
      const isIntended = element.closest(".scroll > *, .sr, .skip, defs, option") !== null;
      const { left, right, width: itsWidth } = element.getBoundingClientRect();
      if (isIntended || itsWidth === 0) continue;
      const isCut = getComputedStyle(element).overflowX === "hidden"
        && element.scrollWidth > element.clientWidth + 1;
      // The words of a picture must stay in its frame.
      const picture = element.closest("svg.timeline")?.parentElement;
      const frame = picture?.getBoundingClientRect() ?? { left: 0, right: width };
      if (left < frame.left - .5 || right > frame.right + .5 || isCut) {
        defects.push(`${left} to ${right}: ${element.outerHTML.slice(0, 120)}`);
      }
    }
    return defects;
"#;

/// Finds markup and scripts that come from received text.
const INJECTION_SCRIPT: &str = r#"
    const defects = [];
    if (typeof pwned !== "undefined") defects.push("a script ran");
    if (document.scripts.length !== 1) defects.push("another script");
    const injected = "img, iframe, object, embed, style, base, body meta, body link";
    for (const element of document.querySelectorAll(injected)) defects.push(element.outerHTML);
    for (const element of document.querySelectorAll("*")) {
      for (const { name } of element.attributes) {
        if (name.startsWith("on") || name === "style") defects.push(element.outerHTML);
      }
    }
    const html = document.documentElement.innerHTML;
    const control = html.match(/.{0,40}[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069].{0,40}/u);
    if (control) defects.push(`a control character for the direction: ${control[0]}`);
    return defects;
"#;

/// Finds elements that a screen reader cannot announce.
const ACCESSIBILITY_SCRIPT: &str = r#"
    const defects = [];
    const all = selector => [...document.querySelectorAll(selector)];
    const expect = (holds, defect) => {
      if (!holds) defects.push(defect.outerHTML?.slice(0, 160) ?? defect);
    };
    expect(document.documentElement.lang === "en", "no language");
    expect(document.title.length > 12, `the title ${document.title}`);
    expect(all("h1").length === 1, `${all("h1").length} h1`);
    for (const landmark of ["header", "main", "footer"]) {
      expect(all(`body > ${landmark}`).length === 1, `no ${landmark}`);
    }
    const levels = all("h1, h2, h3, h4, h5, h6").map(heading => Number(heading.tagName[1]));
    levels.forEach((level, index) => {
      expect(level <= (levels[index - 1] ?? 0) + 1, `headings ${levels}`);
    });
    for (const field of all("input, select, textarea")) {
      expect(field.labels.length === 1 && field.labels[0].innerText, field);
    }
    for (const cell of all("th")) expect(["col", "row"].includes(cell.scope), cell);
    for (const region of all("[role=region], section, nav, [role=search]")) {
      const ids = region.getAttribute("aria-labelledby")?.split(" ");
      const names = ids?.map(id => document.getElementById(id)?.textContent);
      const isNamed = names?.every(name => name) || region.getAttribute("aria-label");
      expect(isNamed || region.matches(".welcome, .problem, [role=search]"), region);
    }
    for (const picture of all("svg, img")) {
      const isNamed = picture.role === "img" && picture.getAttribute("aria-labelledby");
      expect(picture.getAttribute("aria-hidden") === "true" || isNamed, picture);
    }
    for (const control of all("a, button, summary")) {
      expect(control.hidden || control.innerText.trim(), control);
    }
    for (const link of all("a[target=_blank]")) {
      expect(link.textContent.includes("opens a new tab"), link);
    }
    const ids = all("[id]").map(element => element.id);
    for (const id of ids.filter((id, index) => ids.indexOf(id) < index)) {
      defects.push(`twice: ${id}`);
    }
    for (const link of all("a[href^='#']")) {
      expect(document.getElementById(link.hash.slice(1)), link);
    }
    return defects;
"#;

/// Returns the element with the focus, and whether its focus is hidden.
const FOCUS_SCRIPT: &str = r#"
    const element = document.activeElement;
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    const { left, top, width, height } = element.getBoundingClientRect();
    const isInView = left >= 0 && left < innerWidth && top + height > 0 && top < innerHeight;
    const hasOutline = outlineStyle !== "none" && !(parseFloat(outlineWidth) < 2);
    return {
      name: element.name || element.id || element.innerText.trim() || element.ariaLabel,
      hidden: !hasOutline || !isInView || !(width > 0),
    };
"#;
