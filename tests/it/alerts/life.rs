//! What people are told of an incident while it stays open, and of Meta's warnings before there is
//! one.

use lockwatch::simulator::Scenario;
use reqwest::StatusCode;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::task::spawn_blocking;

use super::{Receiver, start_with, webhook};
use crate::support::process::lockwatch;
use crate::support::{TestApp, WABA, client, eventually};

/// Lets a day pass for reminders.
const A_DAY_LATER: &str = "with later as (
                               update incidents set created_at = created_at - interval '24 h')
                           update incident_changes set at = at - interval '24 h'";

/// An event of the test account.
fn account_event(at: OffsetDateTime, value: &Value) -> Vec<u8> {
    json!({"object": "whatsapp_business_account", "entry": [{
        "id": WABA,
        "time": at.unix_timestamp(),
        "changes": [{"field": "account_update", "value": value}],
    }]})
    .to_string()
    .into_bytes()
}

async fn post_admin(app: &TestApp, path: &str, user: Option<&str>) -> StatusCode {
    let request = client().post(app.admin(path));
    let request = match user {
        Some(user) => request.basic_auth(user, Some("any")),
        None => request,
    };
    request.send().await.unwrap().status()
}

/// The history of an incident by the API, the earliest first: kind, detail and who did it.
async fn history(app: &TestApp, id: i64) -> Vec<String> {
    let changes = app.api(&format!("/incidents/{id}/changes")).await;
    let changes = changes["data"].as_array().unwrap().iter().rev();
    let word = |change: &Value, name: &str| change[name].as_str().unwrap_or("-").to_owned();
    changes
        .map(|change| {
            ["kind", "detail", "by"]
                .map(|name| word(change, name))
                .join(" ")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_incident_is_told_again_every_day_until_it_is_acknowledged() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Payment]).await;
    app.fail("a").await;
    eventually("the opening is told", async || hook.types().len() == 1).await;
    for day in 1..=2 {
        app.execute(A_DAY_LATER).await;
        eventually("a reminder", async || hook.types().len() == 1 + day).await;
    }
    assert_eq!(
        hook.types()[1..],
        ["incident.reminder", "incident.reminder"]
    );
    let title = hook.received()[1].body["data"]["title"].clone();
    assert_eq!(
        title,
        format!("Still: account {WABA} is locked: Payment problem")
    );

    let path = "/api/v1/incidents/1/acknowledge";
    assert_eq!(post_admin(&app, path, Some("Ada")).await, StatusCode::OK);
    assert_eq!(post_admin(&app, path, None).await, StatusCode::CONFLICT);
    let incident = app.api("/incidents/1").await;
    assert_eq!(incident["acknowledged_by"], "Ada");
    app.execute(A_DAY_LATER).await;
    // What comes next is the end: no reminder came before it.
    let resolve = "/api/v1/incidents/1/resolve";
    let watched = "select count(*) from troubles where kind = 'quarantined'";
    app.execute(
        "insert into quarantine (waba_id, received_at, reason, body, digest, capture_id)
         values ('9', now(), 'unreadable', '', '', 0)",
    )
    .await;
    eventually("the watch has gone by", async || {
        app.count(watched).await == 1
    })
    .await;
    assert_eq!(post_admin(&app, resolve, Some("Bob")).await, StatusCode::OK);
    eventually("the end is told", async || {
        hook.types().contains(&"incident.resolved".to_owned())
    })
    .await;
    let reminders = hook.types();
    let reminders = reminders.iter().filter(|kind| *kind == "incident.reminder");
    assert_eq!(reminders.count(), 2);
    let changes = history(&app, 1).await;
    assert_eq!(
        changes,
        [
            "opened - -",
            "cause_found payment -",
            "reminded - -",
            "reminded - -",
            "acknowledged - Ada",
            "resolved manual Bob",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_by_hand_is_kept_with_its_name() {
    let app = start_with(vec![], vec![Scenario::Available]).await;
    app.fail("a").await;
    let url = app.database.url.clone();
    let run = async |arguments: &[&str]| {
        let mut command = lockwatch(&[&["incidents"], arguments].concat());
        command.env("DATABASE_URL", &url);
        let output = spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = run(&["acknowledge", "1", "--by", "Ada"]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("is acknowledged."), "{text}");
    let (code, text) = run(&["acknowledge", "1"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("was acknowledged before"), "{text}");
    assert_eq!(run(&["resolve", "1", "--by", "Bob"]).await.0, Some(0));
    let (code, text) = run(&["acknowledge", "1"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("was resolved before"), "{text}");
    assert_eq!(run(&["reopen", "1", "--by", "Cleo"]).await.0, Some(0));
    let incident = app.api("/incidents/1").await;
    assert_eq!(incident["acknowledged_at"], Value::Null, "it is open anew");
    let (_, shown) = run(&["show", "1"]).await;
    for part in [
        "History",
        "acknowledged",
        "Ada",
        "resolved by hand",
        "Bob",
        "Cleo",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let page = app
        .client
        .get(app.admin("/incidents/1"))
        .header("accept", "text/html");
    let page = page.send().await.unwrap().text().await.unwrap();
    for part in [
        "open again",
        "by <bdi>Cleo</bdi>",
        "/incidents/1/acknowledge",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

/// Nobody hears of a muted account; its incidents are recorded all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_muted_account_is_told_to_nobody() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Available]).await;
    let mute = async |arguments: &[&str]| {
        let mut command = lockwatch(&[&["accounts", "mute", "7"], arguments].concat());
        command.env("DATABASE_URL", &app.database.url);
        let output = spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        assert!(output.status.success());
    };
    mute(&[]).await;
    let now = OffsetDateTime::now_utc();
    app.fail_number("7", "7", now).await;
    app.fail_number("8", "8", now).await;
    eventually("the other is told", async || hook.types().len() == 1).await;
    let undecided = "select count(*) from incident_changes where dispatched_at is null";
    eventually("all is decided", async || app.count(undecided).await == 0).await;
    assert_eq!(app.count("select count(*) from incidents").await, 2);
    assert_eq!(
        app.count("select count(*) from alerts where waba_id = '7'")
            .await,
        0
    );
    mute(&["--off"]).await;
    let resolved = post_admin(&app, "/api/v1/incidents/1/resolve", None).await;
    assert_eq!(resolved, StatusCode::OK);
    eventually("it is told again", async || hook.types().len() == 2).await;
}

/// The end is in the past of when the lockout was first seen, since Lockwatch was away.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_learned_late_is_told_where_the_lock_was() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Payment]).await;
    let now = OffsetDateTime::now_utc();
    app.fail_at("a", now - Duration::hours(6)).await;
    eventually("the lock is told", async || hook.types().len() == 1).await;
    let reinstated = json!({"event": "DISABLED_UPDATE", "ban_info": {
        "waba_ban_state": "REINSTATE",
    }});
    app.deliver(&account_event(now - Duration::hours(3), &reinstated))
        .await;
    eventually("its end is told", async || hook.types().len() == 2).await;
    assert_eq!(hook.types()[1], "incident.resolved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_of_metas_is_told_before_there_is_a_lock() {
    let hook = Receiver::start([]).await;
    let app = start_with(vec![webhook(&hook)], vec![Scenario::Available]).await;
    let now = OffsetDateTime::now_utc();
    let ban = |state: &str| {
        json!({"event": "DISABLED_UPDATE", "ban_info": {
            "waba_ban_state": state, "waba_ban_date": "December 24, 2030",
        }})
    };
    // An old one, as a replay brings it, wakes nobody.
    app.deliver(&account_event(
        now - Duration::days(3),
        &ban("SCHEDULE_FOR_DISABLE"),
    ))
    .await;
    app.deliver(&account_event(now, &ban("SCHEDULE_FOR_DISABLE")))
        .await;
    eventually("the warning is told", async || hook.types().len() == 1).await;
    let warning = hook.received()[0].body.clone();
    assert_eq!(warning["type"], "account.notice");
    assert_eq!(warning["data"]["notice"]["state"], "SCHEDULE_FOR_DISABLE");
    assert_eq!(warning["data"]["severity"], "warning");
    let title = format!("Meta is about to disable account {WABA}");
    assert_eq!(warning["data"]["title"], title);
    // The ban itself opens an incident, and is told as that alone.
    app.deliver(&account_event(now, &ban("DISABLE"))).await;
    eventually("the lock is told", async || hook.types().len() == 2).await;
    assert_eq!(hook.types()[1], "incident.opened");
    let undecided = "select count(*) from account_events where dispatched_at is null";
    eventually("all is decided", async || app.count(undecided).await == 0).await;
    assert_eq!(app.count("select count(*) from alerts").await, 2);
}
