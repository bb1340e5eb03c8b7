//! The life of an incident: the incident that a failure belongs to, and the end of an incident.

use futures_util::future::join_all;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::simulator::Scenario;
use lockwatch::store::by_hand::{self, Refusal};
use lockwatch::store::incident_life::resolve_quiet;
use lockwatch::store::incidents::list_numbers;
use time::{Duration, OffsetDateTime};

use crate::support::{NUMBER, OTHER_NUMBER, TestApp, WABA, waba};

fn minutes_ago(minutes: i64) -> OffsetDateTime {
    (OffsetDateTime::now_utc() - Duration::minutes(minutes))
        .replace_nanosecond(0)
        .unwrap()
}

/// The changes of all incidents, in their order: the kind, and the cause or resolution.
async fn changes(app: &TestApp) -> Vec<String> {
    let sql = "select concat_ws(' ', kind, detail) from incident_changes order by id";
    sqlx::query_scalar(sql).fetch_all(&app.db).await.unwrap()
}

/// Counts the failures that are not within the span of their incident, and the incidents that
/// overlap with another one of their account.
const MISPLACED: &str = "
    select (select count(*)
              from failed_deliveries d
              join incidents i on i.id = d.incident_id
             where d.failed_at < i.opened_at or d.failed_at >= i.ended_at)
         + (select count(*)
              from incidents a
              join incidents b on b.waba_id = a.waba_id and b.opened_at > a.opened_at
             where a.ended_at is null or a.ended_at > b.opened_at)";

/// The resolution of the only incident.
async fn resolution(app: &TestApp) -> Option<String> {
    let resolution = app.incident().await.resolution?;
    Some(resolution.as_str().to_owned())
}

#[tokio::test]
async fn an_incident_spans_its_first_and_last_failure() {
    let app = TestApp::start().await;
    let (first, last) = (minutes_ago(90), minutes_ago(5));
    for (id, at) in [("b", minutes_ago(30)), ("c", last), ("a", first)] {
        app.fail_at(id, at).await;
    }
    let incident = app.incident().await;
    assert_eq!(
        (incident.opened_at, incident.last_failure_at),
        (first, last)
    );
    assert_eq!((incident.failure_count, incident.resolved_at), (3, None));
    let number = &list_numbers(&app.db, &[incident.id], 10).await.unwrap()[&incident.id].top[0];
    assert_eq!(
        (
            number.first_failure_at,
            number.last_failure_at,
            number.failure_count
        ),
        (first, last, 3)
    );
}

#[tokio::test]
async fn a_failure_after_the_resolution_opens_a_new_incident() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(60)).await;
    let first = app.incident().await;
    assert_eq!(
        by_hand::resolve(&app.db, first.id, Some("appeal granted"), None)
            .await
            .unwrap(),
        Ok(waba())
    );
    app.fail_at("b", OffsetDateTime::now_utc() + Duration::seconds(5))
        .await;

    let incidents = app.incidents().await;
    assert_eq!(incidents.len(), 2);
    assert_eq!(
        incidents[0].resolution.as_ref().map(|word| word.as_str()),
        Some("manual")
    );
    assert_eq!(
        incidents[0].resolution_note.as_deref(),
        Some("appeal granted")
    );
    assert_eq!(incidents[0].failure_count, 1);
    assert_eq!(
        (incidents[1].resolved_at, incidents[1].previous_incident_id),
        (None, Some(first.id))
    );
    let changes = changes(&app).await;
    let by_hand = changes.iter().filter(|change| *change == "resolved manual");
    assert_eq!(by_hand.count(), 1, "{changes:?}");
    let opened = changes.iter().filter(|change| *change == "opened");
    assert_eq!(opened.count(), 2, "{changes:?}");
}

#[tokio::test]
async fn a_repeated_failure_opens_no_new_incident() {
    let app = TestApp::start().await;
    let soon = OffsetDateTime::now_utc() + Duration::seconds(40);
    app.fail_at("a", soon).await;
    by_hand::resolve(&app.db, app.incident().await.id, None, None)
        .await
        .unwrap()
        .unwrap();
    // The second time also with a time after the resolution: it is the same failure.
    for seconds in [0, 10] {
        app.fail_at("a", soon + Duration::seconds(seconds)).await;
        assert_eq!(app.incident().await.failure_count, 1);
    }
}

#[tokio::test]
async fn a_late_failure_joins_its_resolved_incident() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(60)).await;
    app.wait_for_cause("unreported").await;
    let id = app.incident().await.id;
    by_hand::resolve(&app.db, id, None, None)
        .await
        .unwrap()
        .unwrap();
    let requests = app.simulator.requests().len();

    let earlier = minutes_ago(70);
    let late = StatusCallback::new()
        .timestamp(earlier)
        .failed(WABA, OTHER_NUMBER, "b")
        .failed(WABA, NUMBER, "c");
    app.deliver(&late.into_body()).await;
    let incident = app.incident().await;
    assert_eq!((incident.failure_count, incident.opened_at), (3, earlier));
    assert!(incident.resolved_at.is_some());
    assert_eq!(
        app.count("select count(*) from affected_numbers where check_due_at is not null")
            .await,
        0
    );
    assert_eq!(
        app.simulator.requests().len(),
        requests,
        "a late failure starts no look-up"
    );
}

#[tokio::test]
async fn resolving_under_load_misplaces_no_failure() {
    let app = TestApp::start().await;
    // The failures of a round have a time after every resolution of the rounds before: they open
    // the next incident, or join it although it is resolved by then.
    let start = OffsetDateTime::now_utc() + Duration::seconds(10);
    let deliver_all = async {
        for round in 0..20 {
            let ids: Vec<String> = (0..10).map(|n| format!("{round}.{n}")).collect();
            let at = start + Duration::seconds(2 * round);
            join_all(ids.iter().map(|id| app.fail_at(id, at))).await;
        }
    };
    tokio::select! {
        () = deliver_all => {}
        () = resolve_forever(&app) => unreachable!("it never ends"),
    }
    let deliveries = app.count("select count(*) from failed_deliveries").await;
    assert_eq!(deliveries, 200);
    assert_eq!(app.count(MISPLACED).await, 0);
    let miscounted = "select count(*) from incidents i where failure_count <>
                      (select count(*) from failed_deliveries d where d.incident_id = i.id)";
    assert_eq!(app.count(miscounted).await, 0);
    let miscounted = "select count(*) from affected_numbers n where failure_count <>
                      (select count(*) from failed_deliveries d
                        where d.incident_id = n.incident_id
                          and d.phone_number_id = n.phone_number_id)";
    assert_eq!(app.count(miscounted).await, 0);
    let incidents = app.count("select count(*) from incidents").await;
    assert!(incidents > 1, "some incidents were resolved meanwhile");
    let open = "select count(*) from incidents where resolved_at is null";
    assert!(app.count(open).await <= 1);
    let unlinked = "select count(*)
                      from (select previous_incident_id, lag(id) over (order by opened_at) as before
                              from incidents) i
                     where previous_incident_id is distinct from before";
    assert_eq!(app.count(unlinked).await, 0);
    let unchanged = "select count(*) from incidents i where not exists
                     (select from incident_changes c
                       where c.incident_id = i.id and c.kind = 'opened')";
    assert_eq!(app.count(unchanged).await, 0);
}

async fn resolve_forever(app: &TestApp) {
    loop {
        for incident in app.incidents().await {
            if incident.resolved_at.is_none() {
                by_hand::resolve(&app.db, incident.id, None, None)
                    .await
                    .unwrap()
                    .unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_recovered_incident_keeps_its_cause() {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(
        NUMBER,
        [Scenario::Payment, Scenario::Payment, Scenario::Available],
    );
    app.fail_at("a", minutes_ago(1)).await;
    app.wait_for_cause("payment").await;
    for _ in 0..2 {
        app.run_next_check(Duration::hours(2)).await;
        assert_eq!(
            app.incident().await.resolved_at,
            None,
            "still blocked, or clear only once"
        );
    }
    app.run_next_check(Duration::hours(2)).await;
    app.wait_for_recovery().await;
    let incident = app.incident().await;
    assert_eq!(
        (incident.cause.as_str(), incident.cause_error_code),
        ("payment", Some(141_006))
    );
    assert_eq!(
        app.count("select count(*) from affected_numbers where check_due_at is not null")
            .await,
        0
    );
}

#[tokio::test]
async fn recovery_needs_every_number_clear_since_the_last_failure() {
    let app = TestApp::start().await;
    app.simulator
        .set_scenarios(NUMBER, [Scenario::Payment, Scenario::Available]);
    app.simulator.set_scenarios(
        OTHER_NUMBER,
        [
            Scenario::Payment,
            Scenario::Payment,
            Scenario::Payment,
            Scenario::Available,
        ],
    );
    let both = StatusCallback::new()
        .timestamp(minutes_ago(1))
        .failed(WABA, NUMBER, "1")
        .failed(WABA, OTHER_NUMBER, "2");
    app.deliver(&both.into_body()).await;
    let wait_for_checks = async |n: i64| {
        app.eventually("the health checks are saved", async || {
            app.count("select count(*) from health_checks").await >= n
        })
        .await;
    };
    wait_for_checks(2).await;
    for round in 2..=3 {
        app.let_time_pass(Duration::hours(2)).await;
        wait_for_checks(round * 2).await;
        assert_eq!(
            app.incident().await.resolved_at,
            None,
            "the other number is still blocked"
        );
    }
    app.let_time_pass(Duration::hours(2)).await;
    wait_for_checks(8).await;
    app.fail("3").await;
    app.let_time_pass(Duration::hours(2)).await;
    wait_for_checks(10).await;
    assert_eq!(
        app.incident().await.resolved_at,
        None,
        "one clear check since the failure"
    );
    app.let_time_pass(Duration::hours(2)).await;
    app.wait_for_recovery().await;
}

/// Looks for incidents that are over by silence, as the service does now and then.
async fn end_quiet_incidents(app: &TestApp) {
    while resolve_quiet(&app.db).await.unwrap() {}
}

#[tokio::test]
async fn seven_quiet_days_end_an_incident_with_a_cause_and_one_without() {
    for (scenario, cause) in [
        (Scenario::Available, "unreported"),
        (Scenario::ServerError, "pending"),
    ] {
        let app = TestApp::start().await;
        app.simulator.set_scenarios(NUMBER, [scenario]);
        app.fail_at("a", minutes_ago(1)).await;
        app.eventually("the look-up is saved", async || {
            app.count("select count(*) from health_checks").await == 1
        })
        .await;
        assert_eq!(app.incident().await.cause, cause);
        // No further look-up: another answer would resolve the incident first, as recovered.
        app.execute("update affected_numbers set check_due_at = null")
            .await;
        app.let_time_pass(Duration::days(7) - Duration::minutes(2))
            .await;
        end_quiet_incidents(&app).await;
        assert_eq!(app.incident().await.ended_at, None, "{cause}");
        app.let_time_pass(Duration::minutes(2)).await;
        end_quiet_incidents(&app).await;
        let incident = app.incident().await;
        assert_eq!(resolution(&app).await.as_deref(), Some("quiet"), "{cause}");
        assert_eq!(
            incident.ended_at,
            Some(incident.last_failure_at + Duration::days(7)),
            "it was over when the silence was long enough"
        );
        assert_eq!(changes(&app).await.last().unwrap(), "resolved quiet");
    }
}

#[tokio::test]
async fn an_incident_that_was_over_when_first_seen_is_looked_up_once() {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let failed_at = minutes_ago(8 * 24 * 60);
    app.fail_at("a", failed_at).await;
    assert_eq!(
        app.incident().await.ended_at,
        Some(failed_at + Duration::days(7))
    );
    app.eventually("it is resolved", async || {
        resolution(&app).await.as_deref() == Some("quiet")
    })
    .await;
    let incident = app.incident().await;
    assert_eq!(incident.cause, "payment");
    assert_eq!(incident.ended_at, Some(failed_at + Duration::days(7)));
    assert_eq!(
        changes(&app).await,
        ["opened", "cause_found payment", "resolved quiet"]
    );
    assert_eq!(app.simulator.requests().len(), 1);
    let due = "select count(*) from affected_numbers where check_due_at is not null";
    assert_eq!(app.count(due).await, 0);
}

#[tokio::test]
async fn an_incident_that_was_over_when_first_seen_waits_a_minute_for_an_answer() {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, [Scenario::ServerError]);
    app.fail_at("a", minutes_ago(8 * 24 * 60)).await;
    app.eventually("the look-up is saved", async || {
        app.count("select count(*) from health_checks").await >= 1
    })
    .await;
    app.let_time_pass(Duration::seconds(30)).await;
    end_quiet_incidents(&app).await;
    assert_eq!(app.incident().await.resolved_at, None);
    app.let_time_pass(Duration::seconds(31)).await;
    // A look-up that is being saved holds the account: then the next search ends it.
    app.eventually("it is resolved", async || {
        end_quiet_incidents(&app).await;
        resolution(&app).await.as_deref() == Some("quiet")
    })
    .await;
    assert_eq!(app.incident().await.cause, "pending");
}

#[tokio::test]
async fn a_week_of_silence_between_two_failures_makes_two_incidents() {
    let app = TestApp::start().await;
    let (first, second) = (minutes_ago(9 * 24 * 60), minutes_ago(2 * 24 * 60));
    app.fail_at("a", first).await;
    app.fail_at("b", second - Duration::seconds(1)).await;
    assert_eq!(app.incident().await.failure_count, 2, "a second less");
    app.let_time_pass(Duration::days(6)).await;
    app.fail("c").await;
    let incidents = app.incidents().await;
    assert_eq!(incidents.len(), 2);
    assert_eq!(
        incidents[0].ended_at,
        Some(incidents[0].last_failure_at + Duration::days(7))
    );
    assert_eq!(
        incidents[0].resolution.as_ref().map(|word| word.as_str()),
        Some("quiet")
    );
    assert_eq!(
        (incidents[1].ended_at, incidents[1].previous_incident_id),
        (None, Some(incidents[0].id))
    );
    assert_eq!(app.count(MISPLACED).await, 0);
}

#[tokio::test]
async fn a_late_failure_opens_an_incident_again_that_only_silence_had_ended() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(8 * 24 * 60)).await;
    app.eventually("it is resolved", async || {
        resolution(&app).await.as_deref() == Some("quiet")
    })
    .await;
    let requests = app.simulator.requests().len();
    // Still long ago: the end moves and stays in the past.
    let moved = minutes_ago(8 * 24 * 60 - 10);
    app.fail_at("b", moved).await;
    let incident = app.incident().await;
    assert_eq!(incident.ended_at, Some(moved + Duration::days(7)));
    assert_eq!(resolution(&app).await.as_deref(), Some("quiet"));
    app.fail_at("c", minutes_ago(3 * 24 * 60)).await;
    let incident = app.incident().await;
    assert_eq!(
        (
            incident.ended_at,
            incident.resolved_at,
            incident.failure_count
        ),
        (None, None, 3)
    );
    assert!(changes(&app).await.contains(&"reopened".to_owned()));
    app.eventually("its number is looked up again", async || {
        app.simulator.requests().len() > requests
    })
    .await;
}

#[tokio::test]
async fn a_late_failure_never_opens_an_incident_again_that_a_person_resolved() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(60)).await;
    by_hand::resolve(&app.db, app.incident().await.id, Some("paid"), None)
        .await
        .unwrap()
        .unwrap();
    let ended_at = app.incident().await.ended_at;
    app.fail_at("b", minutes_ago(1)).await;
    let incident = app.incident().await;
    assert_eq!((incident.ended_at, incident.failure_count), (ended_at, 2));
    assert_eq!(incident.resolution_note.as_deref(), Some("paid"));
    assert!(!changes(&app).await.contains(&"reopened".to_owned()));
}

#[tokio::test]
async fn resolving_twice_or_an_unknown_incident_is_reported() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    assert_eq!(
        by_hand::resolve(&app.db, id, None, None).await.unwrap(),
        Ok(waba())
    );
    assert_eq!(
        by_hand::resolve(&app.db, id, Some("again"), None)
            .await
            .unwrap(),
        Err(Refusal::AlreadyResolved(id))
    );
    assert_eq!(app.incident().await.resolution_note, None);
    assert_eq!(
        by_hand::resolve(&app.db, id + 1, None, None).await.unwrap(),
        Err(Refusal::Unknown(id + 1))
    );
}
