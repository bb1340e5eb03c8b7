//! Meta's notices about accounts: they open, explain and end incidents, in whatever order they
//! come.

use lockwatch::meta::compose::StatusCallback;
use lockwatch::simulator::{Scenario, Simulator};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::support::database::TestDatabase;
use crate::support::{ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, WABA, eventually, settings};

/// Starts an app whose test number gives these answers.
async fn start_with_answers(script: impl IntoIterator<Item = Scenario>) -> TestApp {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, script);
    app
}

/// An entry with one event of an account.
fn event_entry(waba_id: &str, at: OffsetDateTime, value: &Value) -> Value {
    let changes = json!([{"field": "account_update", "value": value}]);
    json!({"id": waba_id, "time": at.unix_timestamp(), "changes": changes})
}

fn callback(entries: &[Value]) -> Vec<u8> {
    json!({"object": "whatsapp_business_account", "entry": entries})
        .to_string()
        .into_bytes()
}

/// A callback with one event of the test account.
fn account_event(at: OffsetDateTime, value: &Value) -> Vec<u8> {
    callback(&[event_entry(WABA, at, value)])
}

fn ban(state: &str) -> Value {
    json!({"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": state}})
}

/// A restriction of templates that ends by itself.
fn restriction(end: OffsetDateTime) -> Value {
    json!({"event": "ACCOUNT_RESTRICTION", "restriction_info": [{
        "restriction_type": "RESTRICTED_BIZ_INITIATED_MESSAGING",
        "expiration": end.unix_timestamp(),
    }]})
}

#[tokio::test]
async fn an_error_of_the_account_opens_an_incident_once() {
    let app = start_with_answers([Scenario::Policy]).await;
    app.simulator.set_account(NUMBER, WABA);
    let body = json!({"object": "whatsapp_business_account", "entry": [{
        "id": WABA,
        "changes": [{"field": "messages", "value": {
            "messaging_product": "whatsapp",
            "metadata": {"phone_number_id": NUMBER, "display_phone_number": "15550001111"},
            "errors": [{"code": 131_031, "title": "Business Account locked"}],
        }}],
    }]});
    let body = body.to_string();
    for _ in 0..2 {
        app.deliver(body.as_bytes()).await;
    }
    let incident = app.wait_for_cause("policy_violation").await;
    assert_eq!(incident.failure_count, 0);
    assert_eq!(
        app.text("select opened_by from incidents").await.unwrap(),
        "error"
    );
    let events = "select count(*) from account_events";
    assert_eq!(app.count(events).await, 1, "Meta repeats a callback");
    app.fail("a").await;
    let incident = app.incident().await;
    assert_eq!(incident.failure_count, 1);
    app.let_time_pass(Duration::days(8)).await;
    app.deliver(body.as_bytes()).await;
    assert_eq!(app.count(events).await, 2, "a week later it is another one");
}

#[tokio::test]
async fn a_notice_explains_a_lock_whenever_it_comes_and_health_does_not_end_it() {
    let now = OffsetDateTime::now_utc();
    let violation = json!({
        "event": "ACCOUNT_VIOLATION",
        "violation_info": {"violation_type": "SCAM", "remediation": "Ask for a review."},
    });
    let violation = account_event(now - Duration::hours(12), &violation);
    for comes_first in [true, false] {
        let app = start_with_answers([Scenario::Available]).await;
        if comes_first {
            app.deliver(&violation).await;
            assert_eq!(app.incidents().await.len(), 0);
        }
        app.fail("a").await;
        if !comes_first {
            app.wait_for_cause("unreported").await;
            for _ in 0..2 {
                app.deliver(&violation).await;
            }
        }
        let incident = app.wait_for_cause("policy_violation").await;
        assert_eq!(
            incident.cause_summary.as_deref(),
            Some("Meta's notice ACCOUNT_VIOLATION (SCAM): Ask for a review.")
        );
        assert_eq!(incident.cause_check_id, None);
        assert_eq!(app.count("select count(*) from account_events").await, 1);
        // The health was clear all along: that is no recovery.
        for _ in 0..3 {
            app.run_next_check(Duration::hours(2)).await;
        }
        assert_eq!(app.incident().await.resolved_at, None);
        let shown = &app.api("/incidents").await["data"][0]["account_events"][0];
        assert_eq!(shown["event"], "ACCOUNT_VIOLATION");
    }
}

#[tokio::test]
async fn a_block_that_health_has_shown_recovers_although_there_was_a_notice() {
    let app = start_with_answers([Scenario::Policy, Scenario::Available]).await;
    let violation = json!({"event": "ACCOUNT_VIOLATION"});
    let at = OffsetDateTime::now_utc() - Duration::hours(1);
    app.deliver(&account_event(at, &violation)).await;
    app.fail_at("a", OffsetDateTime::now_utc() - Duration::minutes(1))
        .await;
    app.wait_for_cause("policy_violation").await;
    eventually("the first check", async || {
        app.count("select count(*) from health_checks").await == 1
    })
    .await;
    for _ in 0..2 {
        app.run_next_check(Duration::hours(2)).await;
    }
    app.wait_for_recovery().await;
}

#[tokio::test]
async fn a_lifted_or_ended_notice_explains_no_later_lock() {
    let now = OffsetDateTime::now_utc();
    let days_ago = |days| now - Duration::days(days);
    let ended = json!({"event": "ACCOUNT_RESTRICTION", "restriction_info": [{
        "restriction_type": "RESTRICTED_CUSTOMER_INITIATED_MESSAGING",
        "expiration": days_ago(1).unix_timestamp().to_string(),
    }]});
    let app = start_with_answers([Scenario::Available]).await;
    // Reordered on the way.
    app.deliver(&account_event(days_ago(3), &ban("REINSTATE")))
        .await;
    app.deliver(&account_event(days_ago(5), &ban("DISABLE")))
        .await;
    app.deliver(&account_event(days_ago(8), &ended)).await;
    app.deliver(&account_event(days_ago(2), &ban("SCHEDULE_FOR_DISABLE")))
        .await;
    app.fail("a").await;
    let incidents = || async { app.api("/incidents").await["data"].clone() };
    eventually("the cause of the new lock", async || {
        incidents().await[0]["cause"] == "unreported"
    })
    .await;
    let banned = &incidents().await[1];
    let ended_at = OffsetDateTime::parse(banned["ended_at"].as_str().unwrap(), &Rfc3339).unwrap();
    assert_eq!(ended_at.unix_timestamp(), days_ago(3).unix_timestamp());
    assert_eq!(
        (
            &banned["opened_by"],
            &banned["failure_count"],
            &banned["cause"]
        ),
        (&json!("event"), &json!(0), &json!("policy_violation"))
    );
    let also = incidents().await[0]["also_found"].clone();
    let also = also.as_array().unwrap();
    let scheduled = |found: &&Value| {
        found["summary"]
            .as_str()
            .unwrap()
            .contains("SCHEDULE_FOR_DISABLE")
    };
    assert!(also.iter().any(|found| scheduled(&found)), "{also:?}");
}

/// The entry of one failed message of an account's number.
fn failure_entry(waba_id: &str, at: OffsetDateTime) -> Value {
    let id = format!("wamid.{}", at.unix_timestamp());
    let body = StatusCallback::new()
        .timestamp(at)
        .failed(waba_id, NUMBER, &id)
        .into_body();
    let callback: Value = serde_json::from_slice(&body).unwrap();
    callback["entry"][0].clone()
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for next in 0..n {
        all = all
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..=order.len()).map(move |place| {
                    let mut order = order.clone();
                    order.insert(place, next);
                    order
                })
            })
            .collect();
    }
    all
}

/// Each account hears the same five things in another order, one callback each, told twice.
#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_ban_failures_lifting_and_expiry_gives_the_same_incidents() {
    let app = TestApp::start().await;
    let now = OffsetDateTime::now_utc();
    let minutes_ago = |minutes| now - Duration::minutes(minutes);
    let story = |waba_id: &str| {
        [
            event_entry(waba_id, minutes_ago(50), &ban("DISABLE")),
            failure_entry(waba_id, minutes_ago(40)),
            event_entry(waba_id, minutes_ago(30), &ban("REINSTATE")),
            failure_entry(waba_id, minutes_ago(20)),
            event_entry(waba_id, minutes_ago(15), &restriction(minutes_ago(10))),
        ]
    };
    let orders = permutations(5);
    let accounts: Vec<String> = (0..orders.len()).map(|n| format!("7700{n:03}")).collect();
    for step in 0..5 {
        let told = accounts.iter().zip(&orders);
        let entries: Vec<Value> = told
            .map(|(account, order)| story(account)[order[step]].clone())
            .collect();
        for _ in 0..2 {
            app.deliver(&callback(&entries)).await;
        }
    }
    let open = "select count(*) from incidents where resolved_at is null";
    eventually("every incident is resolved", async || {
        app.count(open).await == 0
    })
    .await;
    let stories: Vec<String> = sqlx::query_scalar(
        "select string_agg(format('%s %s %s %s from %s to %s', opened_by, cause, resolution,
                                  failure_count, extract(epoch from opened_at)::bigint,
                                  extract(epoch from ended_at)::bigint), '; ' order by opened_at)
           from incidents group by waba_id order by waba_id",
    )
    .fetch_all(&app.db)
    .await
    .unwrap();
    let at = |minutes| minutes_ago(minutes).unix_timestamp();
    let expected = format!(
        "event policy_violation reinstated 1 from {} to {}; \
         failure policy_violation expired 1 from {} to {}",
        at(50),
        at(30),
        at(20),
        at(10)
    );
    assert_eq!(stories.len(), orders.len());
    for (story, order) in stories.iter().zip(&orders) {
        assert_eq!(*story, expected, "told in the order {order:?}");
    }
    for wrong in [
        "select count(*) from failed_deliveries d join incidents i on i.id = d.incident_id
          where d.failed_at < i.opened_at or d.failed_at >= i.ended_at",
        "select count(*) from incidents i
          where failure_count <> (select sum(failure_count) from affected_numbers
                                   where incident_id = i.id)",
        "select count(*) from incidents i
          where failure_count <> (select coalesce(sum(failure_count), 0) from failures_by_minute
                                   where incident_id = i.id)",
        "select count(*) from incidents i
          where failure_count <> (select coalesce(sum(failure_count), 0) from failures_by_hour
                                   where incident_id = i.id)",
    ] {
        assert_eq!(app.count(wrong).await, 0, "{wrong}");
    }
}

#[tokio::test]
async fn an_announced_end_ends_the_incident_after_one_more_check() {
    for (scenario, is_over) in [(Scenario::Available, true), (Scenario::Policy, false)] {
        let app = start_with_answers([scenario]).await;
        let end = OffsetDateTime::now_utc() + Duration::hours(1);
        app.deliver(&account_event(OffsetDateTime::now_utc(), &restriction(end)))
            .await;
        app.fail("a").await;
        app.wait_for_cause("policy_violation").await;
        let checks = "select count(*) from health_checks";
        eventually("the first check", async || app.count(checks).await == 1).await;
        app.run_next_check(Duration::minutes(20)).await;
        assert_eq!(app.incident().await.resolved_at, None);
        app.let_time_pass(Duration::minutes(40) + Duration::seconds(5))
            .await;
        let after_the_end = "select count(*) from health_checks
                              where checked_at > (select expires_at from account_events)";
        eventually("a check after the end", async || {
            app.count(after_the_end).await > 0
        })
        .await;
        if !is_over {
            assert_eq!(app.incident().await.ended_at, None, "Meta still blocks it");
            // It goes on: neither a failure nor a notice about something else divides it.
            app.let_time_pass(Duration::hours(3)).await;
            app.fail("b").await;
            let scheduled = account_event(OffsetDateTime::now_utc(), &ban("SCHEDULE_FOR_DISABLE"));
            app.deliver(&scheduled).await;
            assert_eq!(app.incident().await.failure_count, 2);
            continue;
        }
        eventually("the end", async || {
            app.incident().await.resolved_at.is_some()
        })
        .await;
        let incident = app.incident().await;
        assert_eq!(incident.resolution.unwrap(), "expired");
        let expires_at = "select extract(epoch from expires_at)::bigint from account_events";
        let ended_at = incident.ended_at.unwrap();
        assert_eq!(ended_at.unix_timestamp(), app.count(expires_at).await);
    }
}

#[tokio::test]
async fn a_ban_without_a_failure_stays_until_something_ends_it() {
    let app = start_with_answers([Scenario::Available]).await;
    app.deliver(&account_event(OffsetDateTime::now_utc(), &ban("DISABLE")))
        .await;
    let incident = app.wait_for_cause("policy_violation").await;
    assert_eq!(
        (incident.failure_count, incident.opened_by.as_str()),
        (0, "event")
    );
    app.let_time_pass(Duration::days(40)).await;
    app.wait_until_silence_ends_another().await;
    let open = "select count(*) from incidents where resolved_at is null and failure_count = 0";
    assert_eq!(app.count(open).await, 1, "silence says nothing");
    app.deliver(&account_event(OffsetDateTime::now_utc(), &ban("REINSTATE")))
        .await;
    let reinstated = "select count(*) from incidents where resolution = 'reinstated'";
    assert_eq!(app.count(reinstated).await, 1);
}

#[tokio::test]
async fn samples_of_metas_test_button_open_nothing() {
    let app = start_with_answers([Scenario::Available]).await;
    let now = OffsetDateTime::now_utc();
    app.deliver(&callback(&[event_entry("0", now, &ban("DISABLE"))]))
        .await;
    assert_eq!(app.count("select count(*) from account_events").await, 1);
    assert_eq!(app.incidents().await.len(), 0);
}

/// The processor may see the failure before the look-up of the announced end is saved, or after it.
#[tokio::test]
async fn a_failure_right_after_an_announced_end_shows_that_it_goes_on() {
    let app = start_with_answers([Scenario::Available]).await;
    let now = OffsetDateTime::now_utc();
    let end = now - Duration::minutes(30);
    app.deliver(&account_event(now - Duration::hours(5), &restriction(end)))
        .await;
    app.fail_at("a", now - Duration::hours(4)).await;
    eventually("it is over", async || {
        app.incident().await.resolved_at.is_some()
    })
    .await;
    app.fail_at("b", now - Duration::minutes(10)).await;
    let incident = app.incident().await;
    assert_eq!((incident.failure_count, incident.ended_at), (2, None));
}

/// An error of the account names its reason, and a sent message ends it.
#[tokio::test]
async fn an_error_of_the_account_names_its_reason_and_ends_when_messages_are_sent() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(WABA, [Scenario::Available]);
    let database = TestDatabase::create().await;
    let url = simulator.url();
    let mut settings = settings(database.database(), &url, &[APP_SECRET], Some(ACCESS_TOKEN));
    settings.codes = "account".parse().unwrap();
    let app = TestApp::start_with_settings(database, simulator, settings).await;
    let errors = json!([{"code": 368, "title": "Temporarily blocked for policies violations"}]);
    let changes = json!([{"field": "messages", "value": {"errors": errors}}]);
    app.deliver(&callback(&[json!({"id": WABA, "changes": changes})]))
        .await;
    let incident = app.wait_for_cause("policy_violation").await;
    assert_eq!(incident.opened_by, "error");
    let later = OffsetDateTime::now_utc() + Duration::seconds(2);
    let sent = StatusCallback::new().timestamp(later);
    app.deliver(&sent.sent(WABA, NUMBER, "b").into_body()).await;
    eventually("sending again", async || {
        app.incident().await.ended_at.is_some()
    })
    .await;
}

/// A lifting that comes late divides the incident, with the look-ups of each part.
#[tokio::test]
async fn each_part_of_a_divided_incident_keeps_its_own_look_ups() {
    let app = start_with_answers([Scenario::UnverifiedBlocked, Scenario::Available]).await;
    app.fail("a").await;
    app.wait_for_cause("business_verification").await;
    app.let_time_pass(Duration::hours(10)).await;
    app.fail("b").await;
    let lifted_at = OffsetDateTime::now_utc() - Duration::hours(5);
    app.deliver(&account_event(lifted_at, &ban("REINSTATE")))
        .await;
    let parts = "select string_agg(format('%s %s %s', cause, coalesce(resolution, 'open'),
                                          (select count(*) > 0 from health_checks
                                            where incident_id = i.id)), ', ' order by opened_at)
                   from incidents i";
    eventually("both parts", async || {
        app.text(parts).await.as_deref()
            == Some("business_verification reinstated t, unreported open t")
    })
    .await;
    let linked =
        "select count(*) from incidents i join incidents p on p.id = i.previous_incident_id
                   where p.opened_at < i.opened_at";
    assert_eq!(app.count(linked).await, 1);
}
