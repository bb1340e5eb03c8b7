//! Whose turn it is to be looked up: within the budget, and nobody waits for another's backlog.

mod storm;

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

/// Look-ups of one process at once, and of one account among them.
const IN_FLIGHT: usize = 32;
const OF_ONE_ACCOUNT: usize = 4;

/// Locks accounts with so many numbers each, all of them due.
async fn lock(db: &Pool, accounts: RangeInclusive<i32>, numbers: i32) {
    sqlx::query(
        "with a as (
           insert into accounts (waba_id)
           select '5' || lpad(n::text, 5, '0') from generate_series($1, $2) n
           returning waba_id
         ), i as (
           insert into incidents (waba_id, opened_at, last_failure_at)
           select waba_id, now(), now() from a order by waba_id
           returning id, waba_id
         )
         insert into affected_numbers (incident_id, waba_id, phone_number_id, first_failure_at, last_failure_at,
                                       failure_count, check_due_at)
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

fn hanging() -> Scenario {
    Scenario::Slow(StdDuration::from_secs(3600), Box::new(Scenario::Available))
}

#[tokio::test]
async fn every_incident_has_its_first_look_up_before_any_backlog() {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    lock(&db, 1..=3, 1_000).await;
    lock(&db, 4..=40, 2).await;
    let first = claim_due(&db, IN_FLIGHT, &[]).await.unwrap();
    let mut under_way: Vec<WabaId> = first.iter().map(|claim| claim.waba_id.clone()).collect();
    assert_eq!(
        under_way.iter().collect::<HashSet<_>>().len(),
        IN_FLIGHT,
        "one of each account"
    );
    let second = claim_due(&db, 8, &under_way).await.unwrap();
    assert!(
        second
            .iter()
            .all(|claim| !under_way.contains(&claim.waba_id)),
        "then of those that have none"
    );
    under_way.extend(second.into_iter().map(|claim| claim.waba_id));
    for _ in 0..4 {
        let more = claim_due(&db, 1_000, &under_way).await.unwrap();
        under_way.extend(more.into_iter().map(|claim| claim.waba_id));
    }
    let most = under_way
        .iter()
        .filter(|waba_id| waba_id.as_str() == "500001")
        .count();
    assert_eq!(most, OF_ONE_ACCOUNT, "no account has more than its share");
    assert_eq!(
        under_way.len(),
        3 * 4 + 37 * 2,
        "and all that are left have theirs"
    );
}

#[tokio::test]
async fn first_look_ups_come_before_repeats() {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    lock(&db, 1..=300, 1).await;
    let answered =
        "update affected_numbers set check_answers = 3, check_due_at = now() - interval '1 day'";
    sqlx::query(answered).execute(&db).await.unwrap();
    sqlx::query("update incidents set cause = 'unreported'")
        .execute(&db)
        .await
        .unwrap();
    lock(&db, 301..=301, 3).await;
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
async fn an_account_that_rests_holds_up_no_other() {
    let database = TestDatabase::create().await;
    let db = database.database().pool();
    lock(&db, 1..=5, 200).await;
    for cause in ["pending", "payment"] {
        sqlx::query("update incidents set cause = $1")
            .bind(cause)
            .execute(&db)
            .await
            .unwrap();
        let rest = "update accounts set lookups_paused_until = now() + interval '1 hour'";
        sqlx::query(rest).execute(&db).await.unwrap();
        assert!(
            claim_due(&db, IN_FLIGHT, &[]).await.unwrap().is_empty(),
            "all rest"
        );
        sqlx::query("update accounts set lookups_paused_until = null where waba_id = '500005'")
            .execute(&db)
            .await
            .unwrap();
        let mut claims = claim_due(&db, IN_FLIGHT, &[]).await.unwrap();
        let under_way: Vec<WabaId> = claims.iter().map(|claim| claim.waba_id.clone()).collect();
        claims.extend(claim_due(&db, IN_FLIGHT, &under_way).await.unwrap());
        assert_eq!(claims.len(), OF_ONE_ACCOUNT, "{cause}: one does not");
        assert!(claims.iter().all(|claim| claim.waba_id == "500005"));
    }
}

#[tokio::test]
async fn an_account_whose_nodes_hang_leaves_room_for_others() {
    let app = TestApp::start().await;
    for n in 1..=500 {
        app.simulator.script(&format!("500001{n:05}"), [hanging()]);
    }
    lock(&app.db, 1..=1, 500).await;
    app.eventually("its share", async || {
        app.simulator.requests().len() == OF_ONE_ACCOUNT
    })
    .await;
    sleep(StdDuration::from_millis(1500)).await;
    assert_eq!(
        app.simulator.requests().len(),
        OF_ONE_ACCOUNT,
        "and no more"
    );
    let failed = Instant::now();
    app.fail("another account's").await;
    app.eventually("its look-up", async || {
        app.simulator.requests().iter().any(|r| r.node_id == NUMBER)
    })
    .await;
    assert!(
        failed.elapsed() < StdDuration::from_millis(900),
        "{:?}",
        failed.elapsed()
    );
}

#[tokio::test]
async fn at_most_32_look_ups_are_under_way_at_once() {
    let app = TestApp::start().await;
    for n in 1..=50 {
        app.simulator.script(&format!("5{n:05}00001"), [hanging()]);
    }
    lock(&app.db, 1..=50, 1).await;
    app.eventually("as many as may be", async || {
        app.simulator.requests().len() == IN_FLIGHT
    })
    .await;
    sleep(StdDuration::from_millis(1500)).await;
    assert_eq!(app.simulator.most_in_flight(), IN_FLIGHT);
}

#[tokio::test]
async fn an_account_is_looked_up_at_most_150_times_an_hour() {
    let app = TestApp::start().await;
    let mut callback = StatusCallback::new().at(OffsetDateTime::now_utc());
    for n in 0..200 {
        callback = callback.failed(WABA, &format!("20{n:03}"), "x");
    }
    app.deliver(&callback.failed("4055", "99", "y").into_body())
        .await;
    app.eventually("150 look-ups", async || {
        app.count("select count(*) from health_checks where waba_id <> '4055'")
            .await
            == 150
    })
    .await;
    app.eventually("the other account's", async || {
        app.count("select count(*) from health_checks where waba_id = '4055'")
            .await
            == 1
    })
    .await;
    let resting =
        "select count(*) from accounts where lookups_paused_until > now() + interval '50 minutes'";
    app.eventually("rest", async || app.count(resting).await == 1)
        .await;
    assert_eq!(app.simulator.requests().len(), 151);
    app.let_time_pass(Duration::minutes(61)).await;
    let looked_up =
        "select count(distinct phone_number_id) from health_checks where waba_id <> '4055'";
    app.eventually("the others", async || app.count(looked_up).await == 200)
        .await;
}
