//! The data from which the timeline of an incident is drawn.

use lockwatch::report::timeline::{NumberHealth, Timeline};
use lockwatch::report::{self, timeline};
use time::{Duration, OffsetDateTime};

use crate::support::TestApp;

/// Draws the timeline of the only incident.
async fn draw(app: &TestApp, now: OffsetDateTime) -> Timeline {
    let report = report::find_incident(&app.db, app.incident().await.id)
        .await
        .unwrap()
        .unwrap();
    timeline::load_timeline(&app.db, &report, now, timeline::CHART_BINS)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_failure_is_drawn_in_the_bin_of_its_time() {
    let app = TestApp::start().await;
    let now = OffsetDateTime::now_utc();
    let width = Duration::minutes(5);
    // Three hours are drawn as 36 bins of five minutes.
    let seconds = width.whole_seconds();
    let start = (now.unix_timestamp() / seconds - 36) * seconds;
    let start = OffsetDateTime::from_unix_timestamp(start).unwrap();
    for minute in 0..10 {
        app.fail_at(&format!("{minute}"), start + Duration::minutes(minute))
            .await;
    }
    let timeline = draw(&app, now).await;
    assert_eq!((timeline.bins.start, timeline.bins.width), (start, width));
    assert_eq!(timeline.failures[..3], [5, 5, 0]);
    assert_eq!(timeline.failures.iter().sum::<u64>(), 10);
}

#[tokio::test]
async fn a_lane_shows_the_worst_of_each_bin_and_the_latest() {
    let app = TestApp::start().await;
    app.fail_at("a", OffsetDateTime::now_utc() - Duration::hours(10))
        .await;
    app.wait_for_cause("unreported").await;
    app.execute(
        "insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome,
                                    can_send_message, duration_ms)
         select incident_id, waba_id, phone_number_id,
                date_bin('1 hour', now(), 'epoch') + c.at, c.outcome, c.verdict, 1
           from affected_numbers,
                (values (interval '-5 hours', 'answered', 'BLOCKED'),
                        ('-299 minutes', 'answered', 'AVAILABLE'),
                        ('-298 minutes', 'unreachable', null),
                        ('-180 minutes', 'answered', 'LIMITED'),
                        ('-120 minutes', 'unreachable', null))
                as c(at, outcome, verdict)",
    )
    .await;
    let timeline = draw(&app, OffsetDateTime::now_utc()).await;
    let words: Vec<&str> = timeline.lanes[0]
        .stretches()
        .into_iter()
        .map(|(_, _, health)| health.word())
        .collect();
    assert_eq!(
        words,
        [
            "BLOCKED",
            "unreachable",
            "LIMITED",
            "unreachable",
            "AVAILABLE"
        ]
    );
    assert_eq!(
        timeline.lanes[0].latest.map(NumberHealth::word),
        Some("AVAILABLE")
    );
}
