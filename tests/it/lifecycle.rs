//! Which incident a failure belongs to, and when an incident is over.

use futures_util::future::join_all;
use lockwatch::lockout::change::{Change, ChangeKind};
use lockwatch::lockout::incident::Resolution;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::simulator::Scenario;
use lockwatch::store::incident_life::{ManualResolution, resolve_by_hand};
use lockwatch::store::incidents::numbers;
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

#[tokio::test]
async fn an_incident_spans_its_first_and_last_failure_in_whatever_order_they_come() {
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
    let number = &numbers(&app.db, &[incident.id], 10).await.unwrap()[&incident.id].top[0];
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
async fn a_failure_after_the_resolution_opens_an_incident_that_names_the_one_before() {
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
async fn a_repetition_after_the_resolution_opens_nothing() {
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
async fn a_late_failure_joins_the_resolved_incident_it_happened_in_and_asks_nobody() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(60)).await;
    app.caused("unreported").await;
    let id = app.incident().await.id;
    resolve_by_hand(&app.db, id, None).await.unwrap();
    let asked = app.simulator.requests().len();

    let earlier = minutes_ago(70);
    let late = StatusCallback::new()
        .at(earlier)
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
    assert_eq!(app.simulator.requests().len(), asked);
}

#[tokio::test]
async fn resolving_while_failures_stream_in_loses_and_misplaces_none() {
    let app = TestApp::start().await;
    // Later than any resolution here, so that each failure belongs to the incident that is open.
    let at = OffsetDateTime::now_utc() + Duration::hours(1);
    sqlx::raw_sql(
        "create function misplaced() returns trigger language plpgsql as $$ begin
           if (select resolved_at from incidents where id = new.incident_id) is not null then
             raise exception 'a failure was put into an incident that is over';
           end if;
           return new;
         end $$;
         create trigger misplaced before insert on failed_deliveries for each row execute function misplaced()",
    )
    .execute(&app.db)
    .await
    .unwrap();
    let stream = async {
        for round in 0..20 {
            let ids: Vec<String> = (0..10).map(|n| format!("{round}.{n}")).collect();
            join_all(ids.iter().map(|id| app.fail_at(id, at))).await;
        }
    };
    let resolving = async {
        loop {
            for incident in app
                .incidents()
                .await
                .into_iter()
                .filter(|incident| incident.resolved_at.is_none())
            {
                resolve_by_hand(&app.db, incident.id, None).await.unwrap();
            }
        }
    };
    tokio::select! {
        () = stream => {}
        () = resolving => unreachable!("it never ends"),
    }
    assert_eq!(
        app.count("select count(*) from failed_deliveries").await,
        200
    );
    let miscounted = "select count(*) from incidents i where failure_count <>
                      (select count(*) from failed_deliveries d where d.incident_id = i.id)";
    assert_eq!(app.count(miscounted).await, 0);
    let miscounted = "select count(*) from affected_numbers n where failure_count <>
                      (select count(*) from failed_deliveries d where d.incident_id = n.incident_id and d.phone_number_id = n.phone_number_id)";
    assert_eq!(app.count(miscounted).await, 0);
    assert!(
        app.count("select count(*) from incidents").await > 1,
        "some were resolved on the way"
    );
    assert!(
        app.count("select count(*) from incidents where resolved_at is null")
            .await
            <= 1
    );
    let unlinked = "select count(*) from incidents i where id > (select min(id) from incidents) and previous_incident_id is null";
    assert_eq!(app.count(unlinked).await, 0);
}

#[tokio::test]
async fn once_paid_the_incident_recovers_and_still_says_payment() {
    let app = TestApp::start().await;
    app.simulator.script(
        NUMBER,
        [Scenario::Payment, Scenario::Payment, Scenario::Available],
    );
    app.fail_at("a", minutes_ago(1)).await;
    app.caused("payment").await;
    for _ in 0..2 {
        app.next_check(Duration::hours(2)).await;
        assert_eq!(
            app.incident().await.resolved_at,
            None,
            "still locked, or clear only once"
        );
    }
    app.next_check(Duration::hours(2)).await;
    app.eventually("recovery", async || {
        app.incident()
            .await
            .resolution
            .as_ref()
            .map(|word| word.as_str())
            == Some("recovered")
    })
    .await;
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
async fn every_number_must_be_clear_and_a_failure_starts_the_wait_anew() {
    let app = TestApp::start().await;
    app.simulator
        .script(NUMBER, [Scenario::Payment, Scenario::Available]);
    app.simulator.script(
        OTHER_NUMBER,
        [
            Scenario::Payment,
            Scenario::Payment,
            Scenario::Payment,
            Scenario::Available,
        ],
    );
    let both = StatusCallback::new()
        .at(minutes_ago(1))
        .failed(WABA, NUMBER, "1")
        .failed(WABA, OTHER_NUMBER, "2");
    app.deliver(&both.into_body()).await;
    let checks = async |n: i64| {
        app.eventually("checks", async || {
            app.count("select count(*) from health_checks").await >= n
        })
        .await;
    };
    checks(2).await;
    for round in 2..=3 {
        app.let_time_pass(Duration::hours(2)).await;
        checks(round * 2).await;
        assert_eq!(
            app.incident().await.resolved_at,
            None,
            "the other number is still blocked"
        );
    }
    app.let_time_pass(Duration::hours(2)).await;
    checks(8).await;
    app.fail("3").await;
    app.let_time_pass(Duration::hours(2)).await;
    checks(10).await;
    assert_eq!(
        app.incident().await.resolved_at,
        None,
        "one clear check since the failure"
    );
    app.let_time_pass(Duration::hours(2)).await;
    app.eventually("recovery", async || {
        app.incident()
            .await
            .resolution
            .as_ref()
            .map(|word| word.as_str())
            == Some("recovered")
    })
    .await;
}

#[tokio::test]
async fn seven_quiet_days_end_an_incident_whose_cause_is_known() {
    let app = TestApp::start().await;
    app.fail_at("a", minutes_ago(1)).await;
    app.caused("unreported").await;
    // Nobody asks again: another answer would end it first, as recovered.
    app.execute("update affected_numbers set check_due_at = null")
        .await;
    app.let_time_pass(Duration::days(6)).await;
    assert_eq!(
        lockwatch::store::incident_life::resolve_quiet(&app.db)
            .await
            .unwrap(),
        []
    );
    app.let_time_pass(Duration::days(1)).await;
    let id = app.incident().await.id;
    assert_eq!(
        lockwatch::store::incident_life::resolve_quiet(&app.db)
            .await
            .unwrap(),
        [resolved(id, Resolution::Quiet)]
    );
    assert_eq!(
        app.incident()
            .await
            .resolution
            .as_ref()
            .map(|word| word.as_str()),
        Some("quiet")
    );
}

#[tokio::test]
async fn an_incident_without_its_cause_does_not_end_by_silence() {
    let app = TestApp::start().await;
    app.simulator.script(NUMBER, [Scenario::ServerError]);
    app.fail_at("a", minutes_ago(8 * 24 * 60)).await;
    assert_eq!(
        lockwatch::store::incident_life::resolve_quiet(&app.db)
            .await
            .unwrap(),
        []
    );
    assert_eq!(app.incident().await.cause, "pending");
}

#[tokio::test]
async fn resolving_twice_or_nothing_says_so() {
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
