//! Ten thousand checks due at once, before two replicas on one database.

use std::collections::{HashMap, HashSet};
use std::time::Duration as StdDuration;

use lockwatch::lockout::schedule::LOOKUPS_PER_HOUR;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::service::Service;
use lockwatch::simulator::{Request, Scenario, Simulator};
use lockwatch::store::incident_life::resolve_by_hand;
use time::{Duration, OffsetDateTime};
use tokio::time::{Instant, sleep};

use super::{IN_FLIGHT, hanging, lock};
use crate::support::database::TestDatabase;
use crate::support::{ACCESS_TOKEN, APP_SECRET, TestApp, service};

const ACCOUNTS: usize = 661;
/// Has this many numbers: ten hours' look-ups.
const OF_LARGE: i64 = 1_500;
const LARGE: &str = "500001";
/// Has twenty, of which none answers.
const HANGING: &str = "500002";
/// Is locked while all others wait.
const LATE: &str = "600000";
const NUMBER_OF_LATE: &str = "60000000001";
const HOUR: usize = LOOKUPS_PER_HOUR as usize;

fn account(request: &Request) -> &str {
    &request.node_id[..6]
}

/// How often each account was asked for.
fn by_account(requests: &[Request]) -> HashMap<&str, usize> {
    requests.iter().fold(HashMap::new(), |mut counts, request| {
        *counts.entry(account(request)).or_default() += 1;
        counts
    })
}

/// Two replicas before ten thousand due checks. Every tenth answer is slow.
async fn storm() -> (TestApp, Service) {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    lock(&db, 1..=1, i32::try_from(OF_LARGE).unwrap()).await;
    lock(&db, 2..=2, 20).await;
    lock(&db, 3..=81, 100).await;
    lock(&db, 82..=661, 1).await;
    let numbers: Vec<String> = sqlx::query_scalar("select phone_number_id from affected_numbers")
        .fetch_all(&db)
        .await
        .unwrap();
    assert_eq!(numbers.len(), 10_000);

    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for (n, number) in numbers.iter().enumerate() {
        let scenario = match n % 10 {
            _ if number.starts_with(HANGING) => hanging(),
            0 => Scenario::Slow(StdDuration::from_millis(300), Box::new(Scenario::Available)),
            _ => Scenario::Available,
        };
        simulator.script(number, [scenario]);
    }
    simulator.script(NUMBER_OF_LATE, [Scenario::Available]);
    let other = service(database.database(), &simulator, &[APP_SECRET]).await;
    (TestApp::start_on(database, simulator).await, other)
}

/// Waits longer than other tests do.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + StdDuration::from_secs(300);
    while !condition().await {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        sleep(StdDuration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; .ci/run runs it"]
async fn ten_thousand_due_checks_keep_the_budget_and_starve_nobody() {
    let started = Instant::now();
    let (app, other) = storm().await;

    until("the first 3,000", async || {
        app.simulator.requests().len() >= 3_000
    })
    .await;
    let failed = Instant::now();
    app.deliver(
        &StatusCallback::new()
            .at(OffsetDateTime::now_utc())
            .failed(LATE, NUMBER_OF_LATE, "x")
            .into_body(),
    )
    .await;
    let of_late = || {
        app.simulator
            .requests()
            .into_iter()
            .find(|request| account(request) == LATE)
    };
    app.eventually("the late one's look-up", async || of_late().is_some())
        .await;
    let late = of_late().unwrap().at - failed;
    assert!(
        late < StdDuration::from_secs(3),
        "whoever is locked in the middle of it waits {late:?}"
    );

    let unasked =
        "select count(*) from affected_numbers where waba_id > '500002' and check_attempt = 0";
    until("a look-up of every number of the others", async || {
        app.count(unasked).await == 0
    })
    .await;
    until("the budget's end", async || {
        by_account(&app.simulator.requests())[LARGE] >= HOUR
    })
    .await;
    let requests = app.simulator.requests();
    println!(
        "{} look-ups in {:?}, the late one's after {late:?}",
        requests.len(),
        started.elapsed()
    );

    let asked = by_account(&requests);
    assert!(asked.values().all(|times| *times <= HOUR), "{asked:?}");
    assert_eq!(asked[LARGE], HOUR);
    assert!(
        app.simulator.most_in_flight() <= 2 * IN_FLIGHT,
        "{}",
        app.simulator.most_in_flight()
    );
    assert_eq!(app.simulator.most_in_flight_per_node(), 1, "one per number");
    let mut known = HashSet::from([LATE]);
    let firsts = requests
        .iter()
        .enumerate()
        .filter(|(_, request)| known.insert(account(request)));
    let (last_first, _) = firsts.last().unwrap();
    println!("the last account's first look-up was number {last_first}");
    assert!(
        last_first < 2 * ACCOUNTS,
        "an account waited for {last_first} look-ups of others"
    );

    everybody_else_recovers(&app).await;
    the_large_account_goes_on(&app).await;
    other.stop().await;
    app.service.stop().await;
}

async fn everybody_else_recovers(app: &TestApp) {
    for incident in app.incidents().await {
        if incident.waba_id != LARGE {
            resolve_by_hand(&app.db, incident.id, None).await.unwrap();
        }
    }
}

/// Hour by hour, within its budget, until every number was looked up.
async fn the_large_account_goes_on(app: &TestApp) {
    let numbers =
        "select count(distinct phone_number_id) from health_checks where waba_id = '500001'";
    let look_ups = "select count(*) from health_checks where waba_id = '500001'";
    let mut hours = 1;
    while app.count(numbers).await < OF_LARGE {
        let (asked, saved) = (app.simulator.requests().len(), app.count(look_ups).await);
        app.let_time_pass(Duration::minutes(61)).await;
        until("another hour's look-ups", async || {
            app.count(look_ups).await >= saved + LOOKUPS_PER_HOUR
        })
        .await;
        let asked = app.simulator.requests().len() - asked;
        assert!(asked <= HOUR, "{asked} in an hour");
        hours += 1;
    }
    // When few numbers are left, a repetition may be a moment ahead of them: once, not hour after hour.
    assert!(hours <= OF_LARGE / LOOKUPS_PER_HOUR + 1, "{hours} hours");
}
