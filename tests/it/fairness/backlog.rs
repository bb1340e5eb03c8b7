//! A backlog: ten thousand health checks are due when two replicas start on one database.

use std::collections::{HashMap, HashSet};
use std::time::Duration as StdDuration;

use lockwatch::lockout::schedule::CALLS_PER_HOUR;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::service::Service;
use lockwatch::simulator::{Request, Scenario, Simulator};
use lockwatch::store::by_hand;
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

use super::{IN_FLIGHT_LIMIT, hanging_answer, lock_accounts};
use crate::support::database::TestDatabase;
use crate::support::{ACCESS_TOKEN, APP_SECRET, TestApp, eventually_within, start_service};

const ACCOUNTS: usize = 661;
/// The account with [`LARGE_ACCOUNT_NUMBERS`].
const LARGE_ACCOUNT: &str = "500001";
/// The look-ups of ten hours.
const LARGE_ACCOUNT_NUMBERS: i64 = 1_500;
/// The account with twenty numbers, of which none answers.
const HANGING_ACCOUNT: &str = "500002";
/// The account that is locked while all others wait.
const LATE_ACCOUNT: &str = "600000";
const LATE_NUMBER: &str = "60000000001";
const HOURLY_LIMIT: usize = CALLS_PER_HOUR as usize;
/// The calls of an hour that may be no look-ups of numbers: some read the account's fields, and
/// repeats may not use the reserve.
const OTHER_CALLS: i64 = 20;
const BACKLOG_TIMEOUT: StdDuration = StdDuration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; .ci/run runs it"]
async fn ten_thousand_due_checks_are_worked_off_fairly() {
    let started = Instant::now();
    let (app, other) = start_with_backlog().await;
    wait_until("3,000 look-ups are made", async || {
        app.simulator.requests().len() >= 3_000
    })
    .await;
    let delay = delay_of_late_account(&app).await;
    assert!(
        delay < StdDuration::from_secs(3),
        "an account that is locked during the backlog waits {delay:?}"
    );

    let unchecked =
        "select count(*) from affected_numbers where waba_id > '500002' and check_attempt = 0";
    wait_until(
        "every number of the other accounts is looked up",
        async || app.count(unchecked).await == 0,
    )
    .await;
    wait_until("the budget of the large account is spent", async || {
        count_by_account(&app.simulator.requests())[LARGE_ACCOUNT]
            >= HOURLY_LIMIT - OTHER_CALLS as usize
    })
    .await;
    let requests = app.simulator.requests();
    println!(
        "{} look-ups in {:?}, the late account's after {delay:?}",
        requests.len(),
        started.elapsed()
    );
    assert_limits(&app, &requests);
    assert_first_look_ups_come_first(&requests);

    resolve_other_incidents(&app).await;
    work_off_large_account(&app).await;
    other.stop().await;
    app.service.stop().await;
}

/// Starts two replicas with ten thousand due health checks. Every tenth answer is slow.
async fn start_with_backlog() -> (TestApp, Service) {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    let large = i32::try_from(LARGE_ACCOUNT_NUMBERS).unwrap();
    lock_accounts(&db, 1..=1, large).await;
    lock_accounts(&db, 2..=2, 20).await;
    lock_accounts(&db, 3..=81, 100).await;
    lock_accounts(&db, 82..=661, 1).await;
    let numbers: Vec<String> = sqlx::query_scalar("select phone_number_id from affected_numbers")
        .fetch_all(&db)
        .await
        .unwrap();
    assert_eq!(numbers.len(), 10_000);

    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for (n, number) in numbers.iter().enumerate() {
        let scenario = match n % 10 {
            _ if number.starts_with(HANGING_ACCOUNT) => hanging_answer(),
            0 => Scenario::Delayed(StdDuration::from_millis(300), Box::new(Scenario::Available)),
            _ => Scenario::Available,
        };
        simulator.set_scenarios(number, [scenario]);
    }
    simulator.set_scenarios(LATE_NUMBER, [Scenario::Available]);
    let other = start_service(database.database(), &simulator, &[APP_SECRET]).await;
    (TestApp::start_on(database, simulator).await, other)
}

/// Locks another account, and returns the time until its look-up.
async fn delay_of_late_account(app: &TestApp) -> StdDuration {
    let find_request = || {
        let requests = app.simulator.requests();
        requests
            .into_iter()
            .find(|request| account_of(request) == LATE_ACCOUNT)
    };
    let failed = Instant::now();
    let callback = StatusCallback::new()
        .timestamp(OffsetDateTime::now_utc())
        .failed(LATE_ACCOUNT, LATE_NUMBER, "x");
    app.deliver(&callback.into_body()).await;
    app.eventually("the late account is looked up", async || {
        find_request().is_some()
    })
    .await;
    find_request().unwrap().at - failed
}

fn assert_limits(app: &TestApp, requests: &[Request]) {
    let counts = count_by_account(requests);
    assert!(
        counts.values().all(|count| *count <= HOURLY_LIMIT),
        "{counts:?}"
    );
    let large = counts[LARGE_ACCOUNT];
    assert!(
        (HOURLY_LIMIT - OTHER_CALLS as usize..=HOURLY_LIMIT).contains(&large),
        "{large}"
    );
    let most_in_flight = app.simulator.most_in_flight();
    assert!(most_in_flight <= 2 * IN_FLIGHT_LIMIT, "{most_in_flight}");
    assert_eq!(
        app.simulator.most_in_flight_per_node(),
        1,
        "one look-up of a number at a time"
    );
}

fn assert_first_look_ups_come_first(requests: &[Request]) {
    let mut seen = HashSet::from([LATE_ACCOUNT]);
    let (last, _) = requests
        .iter()
        .enumerate()
        .filter(|(_, request)| seen.insert(account_of(request)))
        .last()
        .unwrap();
    println!("the last account's first look-up was number {last}");
    assert!(
        last < 2 * ACCOUNTS,
        "an account waited for {last} look-ups of others"
    );
}

fn account_of(request: &Request) -> &str {
    &request.node_id[..6]
}

/// The number of look-ups of each account.
fn count_by_account(requests: &[Request]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for request in requests {
        *counts.entry(account_of(request)).or_default() += 1;
    }
    counts
}

async fn resolve_other_incidents(app: &TestApp) {
    for incident in app.incidents().await {
        if incident.waba_id != LARGE_ACCOUNT {
            by_hand::resolve(&app.db, incident.id, None, None)
                .await
                .unwrap()
                .unwrap();
        }
    }
}

/// Lets hour after hour pass, within the budget of each, until every number has been looked up.
async fn work_off_large_account(app: &TestApp) {
    let numbers =
        "select count(distinct phone_number_id) from health_checks where waba_id = '500001'";
    let look_ups = "select count(*) from health_checks where waba_id = '500001'";
    let mut hours = 1;
    while app.count(numbers).await < LARGE_ACCOUNT_NUMBERS {
        let requests_before = app.simulator.requests().len();
        let saved_before = app.count(look_ups).await;
        app.let_time_pass(Duration::minutes(61)).await;
        wait_until("the look-ups of another hour are saved", async || {
            app.count(look_ups).await >= saved_before + CALLS_PER_HOUR - OTHER_CALLS
        })
        .await;
        let requests = app.simulator.requests().len() - requests_before;
        assert!(requests <= HOURLY_LIMIT, "{requests} look-ups in an hour");
        hours += 1;
    }
    // When few numbers are left, a repeat may come shortly before them, but in one hour only.
    assert!(
        hours <= LARGE_ACCOUNT_NUMBERS / (CALLS_PER_HOUR - OTHER_CALLS) + 1,
        "{hours} hours"
    );
}

/// Waits until a condition holds, longer than other tests do.
async fn wait_until(event: &str, condition: impl AsyncFn() -> bool) {
    eventually_within(BACKLOG_TIMEOUT, event, condition).await;
}
