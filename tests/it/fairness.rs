//! The fair order of look-ups: they stay within the budget, and no account waits for the backlog of
//! another.

mod backlog;

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration as StdDuration;

use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::ids::WabaId;
use lockwatch::simulator::Scenario;
use lockwatch::store::Pool;
use lockwatch::store::claims::claim_due;
use time::{Duration, OffsetDateTime};
use tokio::time::{Instant, sleep};

use crate::support::database::TestDatabase;
use crate::support::{NUMBER, TestApp, WABA};

/// The number of look-ups that one process may have in flight.
const IN_FLIGHT_LIMIT: usize = 32;
/// The number of look-ups of one account among them.
const ACCOUNT_LIMIT: usize = 4;

/// Locks accounts with this number of numbers each. A health check of every number is due.
async fn lock_accounts(db: &Pool, accounts: RangeInclusive<i32>, numbers: i32) {
    sqlx::query(
        "with a as (
           insert into accounts (waba_id)
           select '5' || lpad(n::text, 5, '0') from generate_series($1, $2) n
           returning waba_id
         ), i as (
           insert into incidents (waba_id, opened_at, last_failure_at, last_evidence_at)
           select waba_id, now(), now(), now() from a order by waba_id
           returning id, waba_id
         )
         insert into affected_numbers (incident_id, waba_id, phone_number_id, first_failure_at,
                                       last_failure_at, failure_count, check_due_at)
         select id, waba_id, waba_id || lpad(n::text, 5, '0'), now(), now(), 1, clock_timestamp()
           from i, generate_series(1, $3) n
          order by id, n",
    )
    .bind(accounts.start())
    .bind(accounts.end())
    .bind(numbers)
    .execute(db)
    .await
    .unwrap();
}

/// An answer that does not come within any timeout.
fn hanging_answer() -> Scenario {
    Scenario::Delayed(StdDuration::from_secs(3600), Box::new(Scenario::Available))
}

#[tokio::test]
async fn first_look_ups_come_before_any_backlog() {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    lock_accounts(&db, 1..=3, 1_000).await;
    lock_accounts(&db, 4..=40, 2).await;
    let first = claim_due(&db, IN_FLIGHT_LIMIT, &[]).await.unwrap();
    let mut in_flight: Vec<WabaId> = first.iter().map(|claim| claim.waba_id.clone()).collect();
    assert_eq!(
        in_flight.iter().collect::<HashSet<_>>().len(),
        IN_FLIGHT_LIMIT,
        "one look-up of each account"
    );
    let second = claim_due(&db, 8, &in_flight).await.unwrap();
    assert!(
        second
            .iter()
            .all(|claim| !in_flight.contains(&claim.waba_id)),
        "then the accounts without a look-up"
    );
    in_flight.extend(second.into_iter().map(|claim| claim.waba_id));
    for _ in 0..4 {
        let more = claim_due(&db, 1_000, &in_flight).await.unwrap();
        in_flight.extend(more.into_iter().map(|claim| claim.waba_id));
    }
    let of_large_account = in_flight
        .iter()
        .filter(|waba_id| waba_id.as_str() == "500001")
        .count();
    assert_eq!(
        of_large_account, ACCOUNT_LIMIT,
        "no account exceeds its limit"
    );
    assert_eq!(
        in_flight.len(),
        3 * 4 + 37 * 2,
        "every other account has all its look-ups"
    );
}

#[tokio::test]
async fn first_look_ups_come_before_repeats() {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    lock_accounts(&db, 1..=300, 1).await;
    let repeats =
        "update affected_numbers set check_answers = 3, check_due_at = now() - interval '1 day'";
    sqlx::query(repeats).execute(&db).await.unwrap();
    sqlx::query("update incidents set cause = 'unreported'")
        .execute(&db)
        .await
        .unwrap();
    lock_accounts(&db, 301..=301, 3).await;
    sqlx::query("update incidents set cause = 'payment'")
        .execute(&db)
        .await
        .unwrap();
    let claims = claim_due(&db, 4, &[]).await.unwrap();
    assert_eq!(
        claims
            .iter()
            .filter(|claim| claim.waba_id == "500301")
            .count(),
        3
    );
}

#[tokio::test]
async fn a_paused_account_delays_no_other() {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    lock_accounts(&db, 1..=5, 200).await;
    for cause in ["pending", "payment"] {
        sqlx::query("update incidents set cause = $1")
            .bind(cause)
            .execute(&db)
            .await
            .unwrap();
        let pause_all = "update accounts set lookups_paused_until = now() + interval '1 hour'";
        sqlx::query(pause_all).execute(&db).await.unwrap();
        let claims = claim_due(&db, IN_FLIGHT_LIMIT, &[]).await.unwrap();
        assert!(claims.is_empty(), "every account is paused");
        let resume_one = "update accounts set lookups_paused_until = null where waba_id = '500005'";
        sqlx::query(resume_one).execute(&db).await.unwrap();
        let mut claims = claim_due(&db, IN_FLIGHT_LIMIT, &[]).await.unwrap();
        let in_flight: Vec<WabaId> = claims.iter().map(|claim| claim.waba_id.clone()).collect();
        claims.extend(claim_due(&db, IN_FLIGHT_LIMIT, &in_flight).await.unwrap());
        assert_eq!(
            claims.len(),
            ACCOUNT_LIMIT,
            "{cause}: one account is not paused"
        );
        assert!(claims.iter().all(|claim| claim.waba_id == "500005"));
    }
}

#[tokio::test]
async fn an_account_with_hanging_nodes_delays_no_other() {
    let app = TestApp::start().await;
    for n in 1..=500 {
        app.simulator
            .set_scenarios(&format!("500001{n:05}"), [hanging_answer()]);
    }
    lock_accounts(&app.db, 1..=1, 500).await;
    app.eventually("the account is at its limit", async || {
        app.simulator.requests().len() == ACCOUNT_LIMIT
    })
    .await;
    sleep(StdDuration::from_millis(1500)).await;
    assert_eq!(
        app.simulator.requests().len(),
        ACCOUNT_LIMIT,
        "the account stays at its limit"
    );
    let failed = Instant::now();
    app.fail("of another account").await;
    app.eventually("the other account is looked up", async || {
        let requests = app.simulator.requests();
        requests.iter().any(|request| request.node_id == NUMBER)
    })
    .await;
    assert!(
        failed.elapsed() < StdDuration::from_millis(900),
        "{:?}",
        failed.elapsed()
    );
}

#[tokio::test]
async fn at_most_32_look_ups_are_in_flight() {
    let app = TestApp::start().await;
    for n in 1..=50 {
        app.simulator
            .set_scenarios(&format!("5{n:05}00001"), [hanging_answer()]);
    }
    lock_accounts(&app.db, 1..=50, 1).await;
    app.eventually("the process is at its limit", async || {
        app.simulator.requests().len() == IN_FLIGHT_LIMIT
    })
    .await;
    sleep(StdDuration::from_millis(1500)).await;
    assert_eq!(app.simulator.most_in_flight(), IN_FLIGHT_LIMIT);
}

#[tokio::test]
async fn an_account_is_looked_up_at_most_150_times_an_hour() {
    let app = TestApp::start().await;
    let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
    for n in 0..200 {
        callback = callback.failed(WABA, &format!("20{n:03}"), "x");
    }
    app.deliver(&callback.failed("4055", "99", "y").into_body())
        .await;
    app.eventually("the account is looked up 150 times", async || {
        app.count("select count(*) from health_checks where waba_id <> '4055'")
            .await
            == 150
    })
    .await;
    app.eventually("the other account is looked up", async || {
        app.count("select count(*) from health_checks where waba_id = '4055'")
            .await
            == 1
    })
    .await;
    let paused =
        "select count(*) from accounts where lookups_paused_until > now() + interval '50 minutes'";
    app.eventually("the account is paused", async || {
        app.count(paused).await == 1
    })
    .await;
    assert_eq!(app.simulator.requests().len(), 151);
    app.let_time_pass(Duration::minutes(61)).await;
    let looked_up =
        "select count(distinct phone_number_id) from health_checks where waba_id <> '4055'";
    app.eventually("every number is looked up", async || {
        app.count(looked_up).await == 200
    })
    .await;
}
