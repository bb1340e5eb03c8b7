//! The dashboard in a real browser: what people see and do there, and what received text cannot do to them.

use axum::Router;
use axum::response::Html;
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::simulator::Scenario;
use lockwatch::store::incident_life::resolve_by_hand;
use rustix::process::Signal;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;

use crate::support::browser::{Browser, ENTER, TAB};
use crate::support::process::Serve;
use crate::support::{NUMBER, OTHER_NUMBER, TestApp, WABA};

const UNVERIFIED: &str = "204455667788990";
const PAST: &str = "309988776655443";

async fn start() -> (TestApp, Browser) {
    (TestApp::start().await, Browser::start().await)
}

fn minutes_ago(minutes: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() - Duration::minutes(minutes)
}

/// Two open incidents and a resolved one. The first has two numbers, 27 failures in an hour and a few checks.
async fn seed(app: &TestApp) {
    app.simulator.script("309", [Scenario::Policy]);
    app.fail_of(PAST, "309", minutes_ago(60)).await;
    app.caused("policy_violation").await;
    app.let_time_pass(Duration::days(3)).await;
    resolve_by_hand(
        &app.db,
        app.incident().await.id,
        Some("Meta granted the review"),
    )
    .await
    .unwrap();
    app.execute("update incidents set resolved_at = opened_at + interval '20 hours'")
        .await;

    app.simulator.script(
        NUMBER,
        [
            Scenario::ServerError,
            Scenario::Available,
            Scenario::Payment,
        ],
    );
    app.simulator
        .script(OTHER_NUMBER, [Scenario::ExpiredToken, Scenario::Available]);
    let mut storm = StatusCallback::new();
    for n in 0..24 {
        let at = minutes_ago(n * n / 9);
        storm = storm.at(at).failed(
            WABA,
            NUMBER,
            &message_id("16505551234", &format!("3EB0C431C26A1916E{n:03}")),
        );
    }
    for n in 0..3 {
        storm = storm
            .at(minutes_ago(2))
            .failed(WABA, OTHER_NUMBER, &format!("wamid.{n}"));
    }
    app.deliver(&storm.into_body()).await;
    let numbers = "select count(distinct phone_number_id) from health_checks";
    app.eventually("first answers", async || app.count(numbers).await == 3)
        .await;
    for _ in 0..3 {
        app.next_check(Duration::minutes(35)).await;
    }
    let payment = "select count(*) from incidents where cause = 'payment'";
    app.eventually("payment", async || app.count(payment).await == 1)
        .await;

    app.simulator.script("204", [Scenario::Unverified]);
    app.fail_of(UNVERIFIED, "204", minutes_ago(12)).await;
    let unverified = "select count(*) from incidents where cause = 'business_verification'";
    app.eventually("another cause", async || app.count(unverified).await == 1)
        .await;
}

/// The page of an account's incident.
async fn page_of(app: &TestApp, waba_id: &str) -> String {
    let incidents = app.incidents().await;
    let incident = incidents
        .iter()
        .find(|incident| incident.waba_id == waba_id)
        .unwrap();
    app.admin(&format!("/incidents/{}", incident.id))
}

/// The browser complained about this, however often, and about nothing else.
async fn assert_no_complaint_but(browser: &Browser, expected: &[&str]) {
    let mut log = browser.log().await;
    // Over plain HTTP it does without that header, and says so each time.
    log.retain(|line| !line.contains("The Cross-Origin-Opener-Policy header has been ignored"));
    for expected in expected {
        assert!(
            log.iter().any(|line| line.contains(expected)),
            "no {expected} in {log:#?}"
        );
        log.retain(|line| !line.contains(expected));
    }
    assert_eq!(log, [] as [&str; 0]);
}

async fn assert_no_complaint(browser: &Browser) {
    assert_no_complaint_but(browser, &[]).await;
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// Fails with whatever a script of ours finds wrong in the page.
async fn assert_nothing_wrong(browser: &Browser, script: &str, arguments: Value) {
    let found = browser.execute(script, arguments).await;
    assert_eq!(found, json!([]), "{}", browser.text("title").await);
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_list_tells_what_is_locked_and_what_to_do_and_then_what_was() {
    let (app, browser) = start().await;
    seed(&app).await;
    browser.open(&app.admin("/")).await;
    browser.screenshot("list").await;
    assert_eq!(browser.text("h1").await, "2 accounts are locked");
    assert_eq!(browser.texts("h2").await, ["Open", "Resolved"]);
    assert_eq!(
        browser.texts("h3").await,
        [UNVERIFIED, WABA].map(|id| format!("Account {id}"))
    );
    let card = &browser.texts(".card").await[1];
    assert_has(
        card,
        &[
            "open",
            "Payment problem",
            "payment method",
            "Locked since",
            "UTC (2 h 43 min ago)",
            "27",
        ],
    );
    assert_has(
        card,
        &[
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
        "a few bars: {bars}"
    );
    let row = browser.texts("#resolved tbody tr > *").await;
    assert_eq!(
        (&row[0][..], &row[1][..], &row[3][..], &row[4][..]),
        (PAST, "Policy violation", "20 h", "1")
    );
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn an_empty_list_tells_how_to_connect_meta() {
    let (app, browser) = start().await;
    browser.open(&app.admin("/")).await;
    browser.screenshot("empty").await;
    assert_eq!(browser.text("h1").await, "No open incident");
    let welcome = browser.text("#welcome").await;
    assert_has(
        &welcome,
        &[
            "App Dashboard",
            "https://…/webhook",
            "META_VERIFY_TOKEN",
            "messages",
            "subscribed_apps",
        ],
    );
    assert_eq!(browser.count("form").await, 0, "there is nothing to filter");

    // Whoever waits for the first one sees it come.
    app.fail("a").await;
    app.caused("unreported").await;
    refresh(&browser).await;
    browser
        .until("document.querySelector('h1').innerText === '1 account is locked'")
        .await;
    browser
        .until("document.querySelectorAll('.card').length === 1")
        .await;
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn an_incident_tells_when_what_happened_and_why_we_say_so() {
    let (app, browser) = start().await;
    seed(&app).await;
    browser.open(&page_of(&app, WABA).await).await;
    browser.screenshot("incident").await;
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

    for (mark, most) in [
        (".bar", 60),
        ("g.blocked rect", 1),
        ("g.refused rect", 1),
        ("text.lane", 2),
    ] {
        let count = browser.count(&format!("svg.timeline {mark}")).await;
        assert!((1..=most).contains(&count), "{count} {mark}");
    }
    let markers =
        "[...document.querySelectorAll('svg.timeline text.marker')].map(text => text.textContent)";
    let markers: Vec<String> = serde_json::from_value(browser.evaluate(markers).await).unwrap();
    assert!(
        markers[0].starts_with("first failure ") && markers[1].starts_with("cause recorded "),
        "{markers:?}"
    );
    let in_words = browser
        .evaluate("document.getElementById('timeline-text').textContent")
        .await;
    assert_has(
        in_words.as_str().unwrap(),
        &["27 failures from ", "BLOCKED from ", "refused from "],
    );

    let why = browser.text("#why").await;
    assert_has(
        &why,
        &[
            "payment",
            "WABA",
            "BLOCKED",
            "141006",
            "We say so because of health check",
            "AVAILABLE",
        ],
    );
    assert_has(
        &browser.text("#numbers").await,
        &[NUMBER, OTHER_NUMBER, "BLOCKED", "24", "3"],
    );
    let appeal = browser
        .evaluate("document.getElementById('appeal-text').value")
        .await;
    assert_has(
        appeal.as_str().unwrap(),
        &[WABA, NUMBER, "24 messages failed", "131031", "[fill in]"],
    );

    let checks = browser.count("#checks details").await;
    assert!(checks >= 4, "{checks}");
    assert!(browser.count("#checks pre").await > 0);
    browser.click("#checks details:first-of-type summary").await;
    assert_has(
        &browser.text("#checks details[open]").await,
        &["Meta's answer as it came:", "\"health_status\""],
    );

    browser.open(&page_of(&app, PAST).await).await;
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
    assert_eq!(
        browser.count("#steps, #resolve").await,
        0,
        "there is nothing left to do"
    );
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn deliveries_come_in_pages_and_recipients_in_full_only_on_request() {
    let (app, browser) = start().await;
    let mut storm = StatusCallback::new().at(OffsetDateTime::now_utc());
    for n in 0..45 {
        storm = storm.failed(
            WABA,
            NUMBER,
            &message_id("16505551234", &format!("3EB0C431C26A1916E{n:03}")),
        );
    }
    app.deliver(&storm.into_body()).await;
    app.caused("unreported").await;
    browser.open(&page_of(&app, WABA).await).await;
    let rows = async || browser.texts("#deliveries tbody tr").await;
    let mut seen = rows().await;
    for (link, more) in [("Older deliveries", 20), ("Older deliveries", 5)] {
        assert_eq!(browser.text("#deliveries .older").await, link);
        browser.follow("#deliveries .older").await;
        assert_eq!(rows().await.len(), more);
        seen.extend(rows().await);
    }
    assert_eq!(
        browser.count("#deliveries .older").await,
        0,
        "there are no more"
    );
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 45, "each once");
    let whole = browser.text("body").await;
    assert_has(&whole, &["Recipients are masked.", "*******1234"]);
    assert!(!whole.contains("16505551234"), "{whole}");

    browser
        .follow("#deliveries a[href*='reveal=recipients']")
        .await;
    browser.screenshot("incident-revealed").await;
    assert_eq!(rows().await.len(), 5, "the same page");
    assert_has(
        &browser.text("#deliveries").await,
        &[
            "that was logged",
            "16505551234",
            "wamid.HBgLMTY1MDU1NTEyMzQ",
        ],
    );
    assert_has(&browser.text("#asof").await, &["not refreshed"]);
    let appeal = browser
        .evaluate("document.getElementById('appeal-text').value")
        .await;
    assert_has(
        appeal.as_str().unwrap(),
        &["Example message ID: wamid.HBgLMTY1MDU1NTEyMzQ"],
    );
    browser.follow("#deliveries p a").await;
    assert!(!browser.text("body").await.contains("16505551234"));
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_filter_finds_by_text_state_and_cause_and_says_when_nothing_fits() {
    let (app, browser) = start().await;
    seed(&app).await;
    browser.open(&app.admin("/")).await;
    let found = async || browser.texts("h3 a, #resolved th a").await;
    let account = |id: &str| format!("Account {id}");
    let choose = async |field: &str, word: &str| {
        browser
            .click(&format!("[name={field}] option[value={word}]"))
            .await
    };
    let send = async || browser.follow(".filter button").await;

    browser.type_into("[name=q]", &OTHER_NUMBER[3..]).await;
    browser.press(ENTER).await;
    browser.until("location.search.includes('q=')").await;
    assert_eq!(found().await, [account(WABA)], "by a part of a number");
    assert_eq!(
        browser
            .evaluate("document.querySelector('[name=q]').value")
            .await,
        OTHER_NUMBER[3..]
    );
    browser.follow(".clear").await;
    assert_eq!(found().await, [&account(UNVERIFIED), &account(WABA), PAST]);

    choose("state", "resolved").await;
    send().await;
    assert_eq!(
        (found().await, browser.texts("h2").await),
        (vec![PAST.to_owned()], vec!["Resolved".to_owned()])
    );
    choose("state", "all").await;
    choose("cause", "business_verification").await;
    send().await;
    assert_eq!(found().await, [account(UNVERIFIED)]);
    browser.type_into("[name=q]", PAST).await;
    send().await;
    browser.screenshot("list-nothing-fits").await;
    assert_eq!(found().await, [] as [&str; 0]);
    assert_eq!(browser.texts(".none").await, ["None that fits."; 2]);
    assert_eq!(
        browser.text("h1").await,
        "2 accounts are locked",
        "whatever is looked for"
    );
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn an_incident_is_resolved_with_a_note_and_a_second_tab_is_told() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.caused("unreported").await;
    let page = page_of(&app, WABA).await;
    browser.open(&page).await;
    let (second, first) = browser.open_tab().await;
    browser.open(&page).await;
    browser.type_into("#note", "me too").await;
    browser.turn_to(&first).await;
    browser
        .type_into("#note", "Meta granted <the> review & more")
        .await;
    browser.follow("#resolve button").await;
    assert_eq!(
        browser.evaluate("location.href").await,
        page[..],
        "back on the page"
    );
    assert_has(
        &browser.text("main").await,
        &[
            "was locked",
            "resolved by hand",
            "Meta granted <the> review & more",
        ],
    );
    assert_no_complaint(&browser).await;

    browser.turn_to(&second).await;
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
    assert_no_complaint_but(&browser, &["status of 409 (Conflict)"]).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn the_text_for_the_appeal_is_copied() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.caused("unreported").await;
    let permissions = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    browser
        .devtools("Browser.grantPermissions", permissions)
        .await;
    browser.open(&page_of(&app, WABA).await).await;
    browser.click("[data-copy]").await;
    browser
        .until("document.querySelector('[data-copied]').innerText === 'Copied.'")
        .await;
    let copied = browser.evaluate("navigator.clipboard.readText()").await;
    assert_has(copied.as_str().unwrap(), &[WABA, NUMBER, "131031"]);
    assert_eq!(
        copied,
        browser
            .evaluate("document.getElementById('appeal-text').value")
            .await
    );
    assert_no_complaint(&browser).await;
}

/// Lets the page's script look for news at once: it also does when somebody returns to the page.
async fn refresh(browser: &Browser) {
    browser
        .evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        .await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn what_is_new_appears_by_itself_and_takes_nothing_away() {
    let (app, browser) = start().await;
    app.simulator.script(NUMBER, [Scenario::Payment]);
    app.fail("a").await;
    app.caused("payment").await;
    browser.open(&page_of(&app, WABA).await).await;
    browser.evaluate("window.isTheSame = true").await;
    browser.click("#checks summary").await;
    browser.type_into("#note", "half a sen").await;

    app.fail("b").await;
    app.next_check(Duration::hours(2)).await;
    refresh(&browser).await;
    browser
        .until("document.querySelector('#facts .big').innerText === '2'")
        .await;
    browser
        .until("document.querySelectorAll('#checks details').length === 2")
        .await;
    browser
        .until("document.querySelectorAll('#deliveries tbody tr').length === 2")
        .await;
    assert_has(
        &browser.text("#checks details[open]").await,
        &["Meta's answer as it came:"],
    );
    assert_eq!(browser.evaluate("document.activeElement.id").await, "note");
    browser.press("tence").await;
    assert_eq!(
        browser
            .evaluate("document.getElementById('note').value")
            .await,
        "half a sentence"
    );
    assert_eq!(
        browser.evaluate("window.isTheSame").await,
        true,
        "the page was not loaded again"
    );
    browser.press(ENTER).await;
    browser
        .until("document.querySelector('h1').innerText.includes('was locked')")
        .await;
    assert_eq!(
        app.incident().await.resolution_note.as_deref(),
        Some("half a sentence")
    );
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_page_says_that_it_is_old_when_lockwatch_does_not_answer() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.caused("unreported").await;
    browser.open(&app.admin("/")).await;
    let TestApp { service, .. } = app;
    service.stop().await;
    refresh(&browser).await;
    browser.until("/^Lockwatch does not answer. As of .* UTC$/.test(document.getElementById('asof').innerText)").await;
    browser.screenshot("list-no-answer").await;
    assert_eq!(
        browser.text("h1").await,
        "1 account is locked",
        "what was known stays"
    );
    assert_no_complaint_but(&browser, &["ERR_CONNECTION_REFUSED"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_page_says_that_it_is_old_when_lockwatch_hangs() {
    let (app, browser) = start().await;
    app.fail("a").await;
    let serve = Serve::on_database(&app.database.url, &[]);
    browser
        .open(&serve.admin.replace("127.0.0.1", "localhost"))
        .await;
    serve.signal(Signal::STOP);
    refresh(&browser).await;
    browser
        .until("document.getElementById('asof').classList.contains('stale')")
        .await;
    serve.signal(Signal::CONT);
    refresh(&browser).await;
    browser
        .until("!document.getElementById('asof').classList.contains('stale')")
        .await;
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn what_is_over_goes_from_an_open_page_and_what_is_held_says_so() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.caused("unreported").await;
    browser.open(&page_of(&app, WABA).await).await;
    // A table that was scrolled or clicked is not in use; a selection is.
    browser
        .evaluate("document.querySelector('#numbers .scroll').focus()")
        .await;
    browser
        .evaluate("document.getSelection().selectAllChildren(document.querySelector('#facts'))")
        .await;
    app.fail("b").await;
    refresh(&browser).await;
    browser
        .until("document.querySelector('#numbers td.right').innerText === '2'")
        .await;
    assert_eq!(
        browser
            .evaluate("document.activeElement === document.querySelector('#numbers .scroll')")
            .await,
        true
    );
    assert_eq!(browser.count("#facts.held").await, 1);
    assert!(
        browser.text("#appeal-text").await.is_empty(),
        "a text field has no text of its own"
    );
    assert_has(
        browser
            .evaluate("document.getElementById('appeal-text').value")
            .await
            .as_str()
            .unwrap(),
        &["Failed messages: 2"],
    );
    browser
        .evaluate("document.getSelection().removeAllRanges()")
        .await;
    refresh(&browser).await;
    browser
        .until("!document.querySelector('#facts.held')")
        .await;

    browser.type_into("#note", "half a sen").await;
    resolve_by_hand(&app.db, app.incident().await.id, None)
        .await
        .unwrap();
    refresh(&browser).await;
    browser
        .until("document.querySelector('h1').innerText.includes('was locked')")
        .await;
    assert_eq!(
        (
            browser.count("#steps").await,
            browser.count("#resolve.gone").await
        ),
        (0, 1)
    );
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn without_script_everything_is_there_and_the_list_loads_itself_again() {
    let (app, browser) = start().await;
    seed(&app).await;
    let pages = [
        app.admin("/"),
        page_of(&app, WABA).await,
        page_of(&app, PAST).await,
    ];
    // Without what tells the time.
    let words = async || -> Vec<String> {
        let text = browser.text("main").await;
        text.lines()
            .filter(|line| !line.contains("ago") && !line.contains("in "))
            .map(str::to_owned)
            .collect()
    };
    let mut with_script = Vec::new();
    for page in &pages {
        browser.open(page).await;
        browser
            .evaluate("document.documentElement.classList.remove('scripted')")
            .await;
        with_script.push(words().await);
    }
    browser
        .devtools(
            "Emulation.setScriptExecutionDisabled",
            json!({"value": true}),
        )
        .await;
    for (page, with_script) in pages.iter().zip(with_script) {
        browser.open(page).await;
        assert_eq!(words().await, with_script, "{page}");
    }
    assert_eq!(
        browser.count("noscript meta").await,
        0,
        "what is typed there must stay"
    );

    browser.open(&app.admin("/")).await;
    assert_eq!(browser.count("noscript meta").await, 1);
    app.fail_of("555", NUMBER, OffsetDateTime::now_utc()).await;
    // Half a minute passes at once.
    let half_a_minute = json!({"policy": "pauseIfNetworkFetchesPending", "budget": 40_000});
    browser
        .devtools("Emulation.setVirtualTimePolicy", half_a_minute)
        .await;
    browser
        .until("document.querySelector('h1').innerText === '3 accounts are locked'")
        .await;
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn every_text_can_be_read_in_the_light_and_in_the_dark() {
    let (app, browser) = start().await;
    let empty = TestApp::start().await;
    seed(&app).await;
    let pages = [
        ("list", app.admin("/")),
        ("incident", page_of(&app, WABA).await),
        ("incident-resolved", page_of(&app, PAST).await),
        ("problem", app.admin("/incidents/0")),
        ("empty", empty.admin("/")),
    ];
    let colours =
        "(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))";
    let mut light = Vec::new();
    for (_, page) in &pages {
        browser.open(page).await;
        light.push(browser.evaluate(colours).await);
        assert_nothing_wrong(&browser, TOO_FAINT, json!([])).await;
    }
    browser.turn_dark().await;
    for ((name, page), light) in pages.iter().zip(light) {
        browser.open(page).await;
        browser.screenshot(&format!("{name}-dark")).await;
        let dark = browser.evaluate(colours).await;
        assert!(dark[0] != light[0] && dark[1] != light[1], "{light} {dark}");
        assert_nothing_wrong(&browser, TOO_FAINT, json!([])).await;
    }
    assert_no_complaint_but(&browser, &["404 (Not Found)"]).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn everything_fits_a_small_telephone_also_in_large_letters() {
    let (app, browser) = start().await;
    let empty = TestApp::start().await;
    seed(&app).await;
    let pages = [
        ("list", app.admin("/")),
        ("incident", page_of(&app, WABA).await),
        ("incident-resolved", page_of(&app, PAST).await),
        ("problem", app.admin("/incidents/0")),
        ("empty", empty.admin("/")),
    ];
    browser.narrow_to(360).await;
    for letters in ["16px", "32px"] {
        for (name, page) in &pages {
            browser.open(page).await;
            assert_eq!(
                browser
                    .evaluate("getComputedStyle(document.body).fontSize")
                    .await,
                letters
            );
            assert_nothing_wrong(&browser, OUT_OF_SIGHT, json!([360])).await;
            // A picture of the whole page makes the letters usual again.
            if letters == "16px" {
                browser.screenshot(&format!("{name}-360")).await;
            }
        }
        browser.double_the_text().await;
    }
    browser
        .devtools(
            "Page.setFontSizes",
            json!({"fontSizes": {"standard": 16, "fixed": 13}}),
        )
        .await;
    browser.turn_dark().await;
    for (name, page) in &pages[..2] {
        browser.open(page).await;
        browser.screenshot(&format!("{name}-360-dark")).await;
        let next =
            "document.querySelector('.next, #steps').getBoundingClientRect().top < 2 * innerHeight";
        assert_eq!(browser.evaluate(next).await, true, "what to do comes soon");
    }
    assert_no_complaint_but(&browser, &["404 (Not Found)"]).await;
}

/// Where the focus is, once it was seen that people see it.
async fn focused(browser: &Browser) -> String {
    let focus = browser.execute(FOCUS, json!([])).await;
    assert_eq!(focus["hidden"], false, "{focus}");
    focus["name"].as_str().unwrap().to_owned()
}

/// Presses Tab until the focus is there.
async fn tab_to(browser: &Browser, name: &str) -> Vec<String> {
    let mut passed = Vec::new();
    while passed.last().is_none_or(|last| last != name) {
        assert!(passed.len() < 60, "no {name} in {passed:?}");
        browser.press(TAB).await;
        passed.push(focused(browser).await);
    }
    passed
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn everything_is_done_by_keyboard_and_the_focus_is_seen() {
    let (app, browser) = start().await;
    app.fail("a").await;
    app.caused("unreported").await;
    browser.open(&app.admin("/")).await;
    let passed = tab_to(&browser, &format!("Account {WABA}")).await;
    assert_eq!(
        passed[..6],
        [
            "Skip to the content",
            "Lockwatch",
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
    browser.until("document.activeElement.id === 'main'").await;
    let passed = tab_to(&browser, &format!("Account {WABA}")).await;
    assert_eq!(
        passed[0], "q",
        "what is at the top of each page was skipped"
    );

    browser.press(ENTER).await;
    browser
        .until("document.getElementById('note') !== null")
        .await;
    let passed = tab_to(&browser, "note").await;
    assert!(passed.contains(&"Copy".to_owned()), "{passed:?}");
    browser.press("by hand").await;
    assert_eq!(tab_to(&browser, "Resolve").await.len(), 1);
    browser.screenshot("incident-focus").await;
    browser.press(ENTER).await;
    browser
        .until("document.querySelector('h1').innerText.includes('was locked')")
        .await;
    assert_eq!(
        app.incident().await.resolution_note.as_deref(),
        Some("by hand")
    );
    tab_to(&browser, "Readiness").await;
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn pages_make_sense_to_a_screen_reader() {
    let (app, browser) = start().await;
    browser.open(&app.admin("/")).await;
    assert_nothing_wrong(&browser, UNHEARD, json!([])).await;
    seed(&app).await;
    let (open, resolved) = (page_of(&app, WABA).await, page_of(&app, PAST).await);
    for page in [app.admin("/"), open, resolved, app.admin("/incidents/0")] {
        browser.open(&page).await;
        assert_nothing_wrong(&browser, UNHEARD, json!([])).await;
    }
    assert_no_complaint_but(&browser, &["404 (Not Found)"]).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn hostile_text_stays_text_and_keeps_its_place() {
    let (app, browser) = start().await;
    let long = "W".repeat(64);
    // Short enough for an id.
    let ids = [
        "<script>pwned=1</script>",
        "\"><img src=x onerror=pwned=1>",
        "</title><script>pwned=1</script>",
        "\u{202e}\u{2066}1234567890",
        &long,
    ];
    let text = format!("</textarea></pre></svg>{} {}", ids.concat(), long.repeat(8));
    for id in ids {
        let mut callback: Value = serde_json::from_slice(
            &StatusCallback::new()
                .at(OffsetDateTime::now_utc())
                .status(
                    id,
                    id,
                    json!({"id": text, "status": "failed", "recipient_id": text, "biz_opaque_callback_data": text,
                           "recipient_participant_id": text,
                           "errors": [{"code": 131_031, "title": text, "message": text, "error_data": {"details": text}}]}),
                )
                .into_body(),
        )
        .unwrap();
        callback["entry"][0]["changes"][0]["value"]["metadata"]["display_phone_number"] =
            json!(text);
        app.deliver(callback.to_string().as_bytes()).await;
    }
    let unchecked = "select count(*) from incidents where cause = 'pending'";
    app.eventually("answers", async || app.count(unchecked).await == 0)
        .await;
    // What a Meta gone bad would answer.
    let entity = json!({"entity_type": text, "id": text, "can_send_message": text, "additional_info": [text],
                        "errors": [{"error_code": 1, "error_description": text, "possible_solution": text}]});
    sqlx::query("update health_checks set response = $1, error = $1, can_send_message = $1, outcome = 'answered', entities = $2")
        .bind(&text)
        .bind(json!([entity]))
        .execute(&app.db)
        .await
        .unwrap();
    sqlx::query(
        "update incidents set cause = 'other_restriction', cause_summary = $1, cause_severity = $1, possible_solution = $1,
                cause_entity_type = $1, cause_entity_id = $1, cause_error_code = 1",
    )
    .bind(&text)
    .execute(&app.db)
    .await
    .unwrap();

    let mut pages = vec![
        app.admin("/"),
        app.admin("/?q=%3Cscript%3Epwned%3D1%3C/script%3E"),
    ];
    let incidents = app.incidents().await;
    for incident in &incidents {
        pages.push(app.admin(&format!("/incidents/{}?reveal=recipients", incident.id)));
    }
    // And one that is over, for the note.
    resolve_by_hand(&app.db, incidents[0].id, Some(&text))
        .await
        .unwrap();
    let problems = [
        "/incidents/%3Cscript%3Epwned=1%3C/script%3E",
        "/?%3Cscript%3Epwned=1%3C/script%3E=1",
    ];
    pages.extend(problems.map(|path| app.admin(path)));
    for width in [1200, 360] {
        if width < 1200 {
            browser.narrow_to(width).await;
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
            assert_nothing_wrong(&browser, HARM, json!([])).await;
            assert_nothing_wrong(&browser, OUT_OF_SIGHT, json!([width])).await;
        }
    }
    assert_no_complaint_but(&browser, &["404 (Not Found)", "400 (Bad Request)"]).await;
}

/// A page of somebody else's, on a port of its own.
async fn serve_page(html: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().fallback(|| async { Html(html) });
    tokio::spawn(axum::serve(listener, router).into_future());
    port
}

const ADMIN_TOKEN: &str = "an-admin-token-of-the-tests";

/// Behind a name of its own and without TLS: to a browser no safe place.
async fn start_far_away() -> (TestApp, Browser) {
    let app = TestApp::guarded(ADMIN_TOKEN).await;
    app.simulator.script(NUMBER, [Scenario::Available]);
    app.fail("a").await;
    app.caused("unreported").await;
    let here = "--host-resolver-rules=MAP *.example 127.0.0.1";
    (app, Browser::start_with(&[here]).await)
}

fn far(app: &TestApp, path: &str) -> String {
    format!(
        "http://lockwatch.example:{}{path}",
        app.service.admin_address.port()
    )
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn over_plain_http_under_another_name_all_works_but_the_clipboard() {
    let (app, browser) = start_far_away().await;
    let path = format!("/incidents/{}", app.incident().await.id);
    browser
        .open(&far(&app, &path).replace("//", &format!("//any:{ADMIN_TOKEN}@")))
        .await;
    assert_eq!(browser.evaluate("isSecureContext").await, false);
    app.fail("b").await;
    refresh(&browser).await;
    browser
        .until("document.querySelector('#facts .big').innerText === '2'")
        .await;

    browser.click("[data-copy]").await;
    browser.until("document.querySelector('[data-copied]').innerText === 'Selected: copy it with Ctrl+C.'").await;
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
    assert_no_complaint(&browser).await;
}

#[tokio::test]
#[ignore = "needs Debian's chromium and chromium-driver; .ci/run installs them"]
async fn a_form_on_another_site_changes_nothing() {
    // With a token, where browsers name the other site as Origin at best, and on localhost, where they say
    // in words that it is another.
    let (app, browser) = start_far_away().await;
    let local = TestApp::start().await;
    local.fail("a").await;
    local.caused("unreported").await;
    browser
        .open(&far(&app, "/").replace("//", &format!("//any:{ADMIN_TOKEN}@")))
        .await;
    for policy in ["same-origin", "no-referrer", "unsafe-url"] {
        for (victim, url) in [(&app, far(&app, "/")), (&local, local.admin("/"))] {
            let id = victim.incident().await.id;
            let port = serve_page(format!(
                "<!doctype html><link rel=icon href=data:,><meta name=referrer content={policy}>
                 <form method=post action={url}incidents/{id}/resolve><input name=note value=evil><button>Win</button></form>"
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
                    &["Forbidden", "another site's page"],
                );
                assert_no_complaint_but(&browser, &["403 (Forbidden)"]).await;
                assert_eq!(victim.incident().await.resolved_at, None, "{site} {policy}");
            }
        }
    }
    browser.screenshot("problem-forbidden").await;
}

/// Texts with less than 4.5:1 between them and what they stand on
/// ([WCAG 2.2, 1.4.3](https://www.w3.org/TR/WCAG22/#contrast-minimum)).
const TOO_FAINT: &str = r#"
    // A mixed colour is told in parts of one, any other in parts of 255.
    const read = colour => {
      const parts = colour.match(/[\d.]+/g).map(Number);
      return { rgb: parts.slice(0, 3).map(part => colour.startsWith("color(") ? part : part / 255), alpha: parts[3] ?? 1 };
    };
    const luminance = ({ rgb }) => {
      const [r, g, b] = rgb.map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4);
      return .2126 * r + .7152 * g + .0722 * b;
    };
    const ground = element => {
      const colour = read(getComputedStyle(element).backgroundColor);
      return colour.alpha === 1 || element === document.documentElement ? colour : ground(element.parentElement);
    };
    const contrast = (element, ink) => {
      const [dark, light] = [luminance(read(ink)), luminance(ground(element))].sort((a, b) => a - b);
      return (light + .05) / (dark + .05);
    };
    const inks = element => {
      const { color, fill } = getComputedStyle(element);
      const isSvg = element instanceof SVGElement;
      return [isSvg ? fill : color, ...(element.placeholder ? [getComputedStyle(element, "::placeholder").color] : [])];
    };
    document.querySelectorAll("details").forEach(details => details.open = true);
    const hasText = element => [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim())
      || element.matches("input, textarea, select");
    return [...document.body.querySelectorAll("*")]
      .filter(element => hasText(element) && element.checkVisibility() && !element.matches("title, desc, noscript"))
      .flatMap(element => inks(element).map(ink => [contrast(element, ink), element]))
      .filter(([contrast]) => !(contrast >= 4.5))
      .map(([contrast, element]) => `${contrast.toFixed(2)} ${element.outerHTML.slice(0, 120)}`);
"#;

/// What is beside the screen or cut, outside of the tables that scroll.
const OUT_OF_SIGHT: &str = r#"
    const [width] = arguments;
    document.querySelectorAll("details").forEach(details => details.open = true);
    const wrong = [];
    if (document.documentElement.scrollWidth > width) wrong.push(`the page is ${document.documentElement.scrollWidth} px wide`);
    for (const element of document.body.querySelectorAll("*")) {
      const isMeantSo = element.closest(".scroll > *, .sr, .skip, defs, option") !== null;
      const { left, right, width: itsWidth } = element.getBoundingClientRect();
      if (isMeantSo || itsWidth === 0) continue;
      const isCut = getComputedStyle(element).overflowX === "hidden" && element.scrollWidth > element.clientWidth + 1;
      // A picture's words stay in its frame.
      const frame = element.closest("svg.timeline")?.parentElement.getBoundingClientRect() ?? { left: 0, right: width };
      if (left < frame.left - .5 || right > frame.right + .5 || isCut) {
        wrong.push(`${left} to ${right}: ${element.outerHTML.slice(0, 120)}`);
      }
    }
    return wrong;
"#;

/// What received text must not achieve.
const HARM: &str = r#"
    const wrong = [];
    if (typeof pwned !== "undefined") wrong.push("a script ran");
    if (document.scripts.length !== 1) wrong.push("another script");
    for (const made of document.querySelectorAll("img, iframe, object, embed, style, base, body meta, body link")) {
      wrong.push(made.outerHTML);
    }
    for (const element of document.querySelectorAll("*")) {
      for (const { name } of element.attributes) if (name.startsWith("on") || name === "style") wrong.push(element.outerHTML);
    }
    const turned = document.documentElement.innerHTML.match(/.{0,40}[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069].{0,40}/u);
    if (turned) wrong.push(`a turned line: ${turned[0]}`);
    return wrong;
"#;

/// What somebody who does not see the page would miss.
const UNHEARD: &str = r#"
    const wrong = [];
    const all = selector => [...document.querySelectorAll(selector)];
    const expect = (holds, what) => holds || wrong.push(what.outerHTML?.slice(0, 160) ?? what);
    expect(document.documentElement.lang === "en", "no language");
    expect(document.title.length > 12, `the title ${document.title}`);
    expect(all("h1").length === 1, `${all("h1").length} h1`);
    for (const landmark of ["header", "main", "footer"]) {
      expect(all(`body > ${landmark}`).length === 1, `no ${landmark}`);
    }
    const levels = all("h1, h2, h3, h4, h5, h6").map(heading => Number(heading.tagName[1]));
    levels.forEach((level, place) => expect(level <= (levels[place - 1] ?? 0) + 1, `headings ${levels}`));
    for (const field of all("input, select, textarea")) expect(field.labels.length === 1 && field.labels[0].innerText, field);
    for (const cell of all("th")) expect(["col", "row"].includes(cell.scope), cell);
    for (const region of all("[role=region], section, nav, [role=search]")) {
      const names = region.getAttribute("aria-labelledby")?.split(" ").map(id => document.getElementById(id)?.textContent);
      const isNamed = names?.every(name => name) || region.getAttribute("aria-label");
      expect(isNamed || region.matches(".welcome, .problem, [role=search]"), region);
    }
    for (const picture of all("svg, img")) {
      expect(picture.getAttribute("aria-hidden") === "true" || picture.role === "img" && picture.getAttribute("aria-labelledby"), picture);
    }
    for (const named of all("a, button, summary")) expect(named.hidden || named.innerText.trim(), named);
    for (const link of all("a[target=_blank]")) expect(link.textContent.includes("opens a new tab"), link);
    const ids = all("[id]").map(element => element.id);
    ids.filter((id, place) => ids.indexOf(id) < place).forEach(id => wrong.push(`twice: ${id}`));
    for (const link of all("a[href^='#']")) expect(document.getElementById(link.hash.slice(1)), link);
    return wrong;
"#;

/// What has the focus, and whether anybody can see that.
const FOCUS: &str = r#"
    const element = document.activeElement;
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    const { left, top, width, height } = element.getBoundingClientRect();
    const isOnScreen = width > 0 && left >= 0 && left < innerWidth && top + height > 0 && top < innerHeight;
    return {
      name: element.name || element.id || element.innerText.trim() || element.ariaLabel,
      hidden: outlineStyle === "none" || parseFloat(outlineWidth) < 2 || !isOnScreen,
    };
"#;
