//! Alerts outlive processes, receivers that are away, and storms.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use lockwatch::alerts::channel::Channel;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::{Scenario, Simulator};
use rustix::process::Signal;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::{Receiver, WEBHOOK_SECRET, slack, start_with, webhook};
use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, TestApp, WABA, client, eventually, eventually_within,
};

async fn count(db: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(db).await.unwrap()
}

/// Takes one connection, tells that it did, and never answers.
async fn start_silent_receiver() -> (String, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let connected = Arc::new(Notify::new());
    let tell = Arc::clone(&connected);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            held.push(socket);
            tell.notify_one();
        }
    });
    (url, connected)
}

/// Killed after the 200, while it waits to tell, and while the receiver has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_at_any_step_loses_no_alert() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    let graph_url = simulator.url();
    let start = |url: &str| {
        let settings = [
            ("META_ACCESS_TOKEN", ACCESS_TOKEN),
            ("META_GRAPH_URL", &graph_url),
            ("LOCKWATCH_ALERT_WEBHOOK_URL", url),
            ("LOCKWATCH_ALERT_WEBHOOK_SECRET", WEBHOOK_SECRET),
        ];
        let serve = Serve::on_database(&database.url, &settings);
        serve.wait_for_log("the database is ready");
        serve
    };
    let (silent, connected) = start_silent_receiver().await;

    let mut serve = start(&silent);
    let body = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed(WABA, NUMBER, "a")
        .into_body();
    let request = client()
        .post(&serve.webhook)
        .header(SIGNATURE_HEADER, sign(APP_SECRET, &body));
    assert_eq!(request.body(body).send().await.unwrap().status(), 200);
    serve.signal(Signal::KILL);
    serve.wait();

    let mut serve = start(&silent);
    eventually("there is an alert", async || {
        count(&db, "select count(*) from alerts").await == 1
    })
    .await;
    connected.notified().await;
    serve.signal(Signal::KILL);
    serve.wait();

    // Its lease is over half a minute later.
    let later = "update alerts set lease_until = now() - interval '1 s'";
    sqlx::query(later).execute(&db).await.unwrap();
    let hook = Receiver::start([]).await;
    let _serve = start(&format!("{}/hook", hook.address));
    let accepted = "select count(*) from alerts where state = 'accepted'";
    eventually("it is taken", async || count(&db, accepted).await == 1).await;
    assert_eq!(hook.types(), ["incident.opened"]);
    assert_eq!(count(&db, "select count(*) from alerts").await, 1);
    let id = hook.received()[0].headers["webhook-id"].clone();
    let change = "select id from incident_changes where kind = 'opened'";
    let change = count(&db, change).await;
    assert_eq!(id.to_str().unwrap(), format!("lockwatch_change_{change}"));
}

/// Down for an hour, then for more than a day; sent again by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_tried_for_a_day_and_then_by_hand() {
    let down = std::iter::repeat_n((StatusCode::BAD_GATEWAY, "down"), 3);
    let chat = Receiver::start(down).await;
    let app = start_with(vec![slack(&chat)], vec![Scenario::Payment]).await;
    app.fail("a").await;
    let tried = "select coalesce(sum(attempts), 0)::bigint from alerts where lease_until is null";
    let try_again = async |age: &'static str, n: i64| {
        eventually("a try", async || app.count(tried).await == n).await;
        app.execute(age).await;
    };
    let after_an_hour = "update alerts set next_attempt_at = now(),
                                tried_since = tried_since - interval '1 h'";
    let after_a_day = "update alerts set next_attempt_at = now(),
                              tried_since = tried_since - interval '24 h'";
    try_again(after_an_hour, 1).await;
    try_again(after_a_day, 2).await;
    let dead = "select count(*) from alerts where state = 'dead' and attempts = 3";
    eventually("it is given up", async || app.count(dead).await == 1).await;
    let url = app.database.url.clone();
    let retried = tokio::task::spawn_blocking(move || {
        let mut command = crate::support::process::lockwatch(&["alerts", "retry"]);
        command.env("DATABASE_URL", url).output().unwrap()
    });
    let retried = retried.await.unwrap();
    assert_eq!(
        String::from_utf8(retried.stdout).unwrap(),
        "1 alert is due now.\n"
    );
    eventually("it is taken", async || chat.received().len() == 4).await;
}

/// A lockout that is over before its opening was told is one message.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_before_the_opening_was_told_is_one_message() {
    let chat = Receiver::start([(StatusCode::BAD_GATEWAY, "down")]).await;
    let app = start_with(vec![slack(&chat)], vec![Scenario::Payment]).await;
    app.fail("a").await;
    eventually("a try", async || chat.received().len() == 1).await;
    let waits = "select count(*) from alerts where attempts = 1 and lease_until is null";
    eventually("it waits", async || app.count(waits).await == 1).await;
    let resolve = client().post(app.admin("/api/v1/incidents/1/resolve"));
    assert_eq!(resolve.send().await.unwrap().status(), 200);
    let folded = "select count(*) from alerts where state = 'folded'";
    eventually("the end is folded", async || app.count(folded).await == 1).await;
    app.execute("update alerts set next_attempt_at = now() where state = 'waiting'")
        .await;
    eventually("it is told", async || chat.received().len() == 2).await;
    let text = chat.received()[1].body["text"].to_string();
    assert!(
        text.contains("was locked, and that is over: Payment problem"),
        "{text}"
    );
}

/// The memory of a process in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

/// Posts failures of these accounts, a hundred in a body.
async fn lock_accounts(app: &TestApp, accounts: std::ops::Range<usize>) {
    let accounts: Vec<usize> = accounts.collect();
    for chunk in accounts.chunks(100) {
        let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
        for n in chunk {
            callback = callback.failed(&format!("7{n:06}"), &format!("8{n:06}"), "a");
        }
        app.acknowledged(&callback.into_body()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes"]
async fn five_thousand_accounts_are_a_handful_of_messages() {
    const ACCOUNTS: usize = 5000;
    let (hook, chat) = (Receiver::start([]).await, Receiver::start([]).await);
    let channels: Vec<Channel> = vec![webhook(&hook), slack(&chat)];
    let app = start_with(channels, vec![]).await;
    for n in 0..ACCOUNTS {
        let number = format!("8{n:06}");
        app.simulator.set_scenarios(&number, [Scenario::Payment]);
        app.simulator.set_account(&number, &format!("7{n:06}"));
    }
    let before = resident_mib();
    let started = Instant::now();
    lock_accounts(&app, 0..ACCOUNTS).await;
    app.settle().await;
    let recorded = started.elapsed();
    let limit = Duration::from_secs(240);
    let caused = "select count(*) from incidents where cause = 'payment'";
    eventually_within(limit, "each has its cause", async || {
        app.count(caused).await == ACCOUNTS as i64
    })
    .await;
    let caused = started.elapsed();
    let open = "select count(*) from alerts where state = 'waiting'";
    let undecided = "select count(*) from incident_changes where dispatched_at is null";
    eventually_within(limit, "all is told", async || {
        app.count(undecided).await == 0 && app.count(open).await == 0
    })
    .await;
    let told = "select count(distinct incident_id) from alerts where state = 'accepted'";
    assert_eq!(app.count(told).await, ACCOUNTS as i64);
    let budget = "select coalesce(max(n), 0) from (
                      select count(*) as n from health_checks group by waba_id) checks";
    assert!(app.count(budget).await <= 3, "look-ups of an account");
    let named: BTreeSet<String> = hook
        .received()
        .iter()
        .flat_map(|message| {
            let data = &message.body["data"];
            let single = data.get("incident").into_iter();
            let several = data["incidents"].as_array().into_iter().flatten();
            let both = single.chain(several);
            both.map(|incident| incident["waba_id"].to_string())
                .collect::<Vec<_>>()
        })
        .collect();
    eprintln!(
        "{ACCOUNTS} accounts: recorded in {recorded:?}, causes in {caused:?}, told in {:?}; \
         {} and {} messages, {} accounts named for programs; memory {before} to {} MiB",
        started.elapsed(),
        hook.received().len(),
        chat.received().len(),
        named.len(),
        resident_mib()
    );
    assert!(hook.received().len() <= 20, "{:?}", hook.types());
    assert!(chat.received().len() <= 20);
    assert!(named.len() > 500, "{}", named.len());
}
