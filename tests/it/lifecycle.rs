//! The life of an incident: the incident that a failure belongs to, and the end of an incident.

use futures_util::future::join_all;
use lockwatch::lockout::change::{Change, ChangeKind};
use lockwatch::lockout::incident::Resolution;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::simulator::Scenario;
use lockwatch::store::incident_life::{ManualResolution, resolve_by_hand, resolve_quiet};
use lockwatch::store::incidents::list_numbers;
use time::{Duration, OffsetDateTime};

use crate::support::{NUMBER, OTHER_NUMBER, TestApp, WABA, waba};

fn minutes_ago(minutes: i64) -> OffsetDateTime {
    (OffsetDateTime::now_utc() - Duration::minutes(minutes))
        .replace_nanosecond(0)
        .unwrap()
}

fn resolved(incident_id: i64, resolution: Resolution) -> Change {
    Change {
        incident_id,
        waba_id: waba(),
        kind: ChangeKind::Resolved(resolution),
    }
}

async fn wait_for_recovery(app: &TestApp) {
    app.eventually("the incident is recovered", async || {
        resolution(app).await.as_deref() == Some("recovered")
    })
    .await;
}

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
        resolve_by_hand(&app.db, first.id, Some("appeal granted"))
            .await
            .unwrap(),
        ManualResolution::Resolved(resolved(first.id, Resolution::Manual))
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
}

#[tokio::test]
async fn a_repeated_failure_opens_no_new_incident() {
    let app = TestApp::start().await;
    let soon = OffsetDateTime::now_utc() + Duration::minutes(5);
    app.fail_at("a", soon).await;
    resolve_by_hand(&app.db, app.incident().await.id, None)
        .await
        .unwrap();
    app.fail_at("a", soon).await;
    assert_eq!(app.incident().await.failure_count, 1);
}

#[tokio::test]
async fn a_late_failure_joins_its_resolved_incident() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(60)).await;
    app.wait_for_cause("unreported").await;
    let id = app.incident().await.id;
    resolve_by_hand(&app.db, id, None).await.unwrap();
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
    // Later than every resolution here, so that each failure belongs to the open incident.
    let at = OffsetDateTime::now_utc() + Duration::hours(1);
    refuse_misplaced_failures(&app).await;
    let deliver_all = async {
        for round in 0..20 {
            let ids: Vec<String> = (0..10).map(|n| format!("{round}.{n}")).collect();
            join_all(ids.iter().map(|id| app.fail_at(id, at))).await;
        }
    };
    tokio::select! {
        () = deliver_all => {}
        () = resolve_forever(&app) => unreachable!("it never ends"),
    }
    let deliveries = app.count("select count(*) from failed_deliveries").await;
    assert_eq!(deliveries, 200);
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
    let unlinked = "select count(*) from incidents i
                     where id > (select min(id) from incidents) and previous_incident_id is null";
    assert_eq!(app.count(unlinked).await, 0);
}

/// Makes the database refuse a failure of a resolved incident.
async fn refuse_misplaced_failures(app: &TestApp) {
    sqlx::raw_sql(
        "create function misplaced() returns trigger language plpgsql as $$ begin
           if (select resolved_at from incidents where id = new.incident_id) is not null then
             raise exception 'a failure was put into a resolved incident';
           end if;
           return new;
         end $$;
         create trigger misplaced before insert on failed_deliveries
           for each row execute function misplaced()",
    )
    .execute(&app.db)
    .await
    .unwrap();
}

async fn resolve_forever(app: &TestApp) {
    loop {
        for incident in app.incidents().await {
            if incident.resolved_at.is_none() {
                resolve_by_hand(&app.db, incident.id, None).await.unwrap();
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
    wait_for_recovery(&app).await;
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
    wait_for_recovery(&app).await;
}

#[tokio::test]
async fn seven_quiet_days_resolve_an_incident_with_a_cause() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(1)).await;
    app.wait_for_cause("unreported").await;
    // No further look-up: another answer would resolve the incident first, as recovered.
    app.execute("update affected_numbers set check_due_at = null")
        .await;
    app.let_time_pass(Duration::days(6)).await;
    assert_eq!(resolve_quiet(&app.db).await.unwrap(), []);
    app.let_time_pass(Duration::days(1)).await;
    let id = app.incident().await.id;
    assert_eq!(
        resolve_quiet(&app.db).await.unwrap(),
        [resolved(id, Resolution::Quiet)]
    );
    assert_eq!(resolution(&app).await.as_deref(), Some("quiet"));
}

#[tokio::test]
async fn quiet_days_do_not_resolve_an_incident_without_a_cause() {
    let app = TestApp::start().await;
    app.simulator.set_scenarios(NUMBER, [Scenario::ServerError]);
    app.fail_at("a", minutes_ago(8 * 24 * 60)).await;
    assert_eq!(resolve_quiet(&app.db).await.unwrap(), []);
    assert_eq!(app.incident().await.cause, "pending");
}

#[tokio::test]
async fn resolving_twice_or_an_unknown_incident_is_reported() {
    let app = TestApp::start().await;
    app.fail("a").await;
    let id = app.incident().await.id;
    assert_eq!(
        resolve_by_hand(&app.db, id, None).await.unwrap(),
        ManualResolution::Resolved(resolved(id, Resolution::Manual))
    );
    assert_eq!(
        resolve_by_hand(&app.db, id, Some("again")).await.unwrap(),
        ManualResolution::AlreadyResolved
    );
    assert_eq!(app.incident().await.resolution_note, None);
    assert_eq!(
        resolve_by_hand(&app.db, id + 1, None).await.unwrap(),
        ManualResolution::Unknown
    );
}
