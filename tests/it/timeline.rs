//! What pictures of an incident are drawn from.

use lockwatch::report::timeline::NumberHealth;
use lockwatch::report::{self, timeline};
use time::{Duration, OffsetDateTime};

use crate::support::TestApp;

#[tokio::test]
async fn a_failure_is_drawn_in_the_stretch_of_time_in_which_it_happened() {
    let app = TestApp::start().await;
    let now = OffsetDateTime::now_utc();
    let five = Duration::minutes(5);
    // Three hours are drawn five minutes at a time.
    let start = now.unix_timestamp() / five.whole_seconds() * five.whole_seconds()
        - 36 * five.whole_seconds();
    let start = OffsetDateTime::from_unix_timestamp(start).unwrap();
    for minute in 0..10 {
        app.fail_at(&format!("{minute}"), start + Duration::minutes(minute))
            .await;
    }
    let report = report::incident(&app.db, app.incident().await.id)
        .await
        .unwrap()
        .unwrap();
    let drawn = timeline::timeline(&app.db, &report, now, timeline::PICTURE_BINS)
        .await
        .unwrap();
    assert_eq!((drawn.bins.start, drawn.bins.width), (start, five));
    assert_eq!(drawn.failures[..3], [5, 5, 0]);
    assert_eq!(drawn.failures.iter().sum::<u64>(), 10);
}

#[tokio::test]
async fn a_lane_shows_the_worst_of_each_stretch_of_time_and_its_word_the_latest() {
    let app = TestApp::start().await;
    app.fail_at("a", OffsetDateTime::now_utc() - Duration::hours(10))
        .await;
    app.caused("unreported").await;
    let id = app.incident().await.id;
    app.execute(
        "insert into health_checks (incident_id, waba_id, phone_number_id, checked_at, outcome, can_send_message, duration_ms)
         select incident_id, waba_id, phone_number_id, date_bin('1 hour', now(), 'epoch') + c.at, c.outcome, c.verdict, 1
           from affected_numbers,
                (values (interval '-5 hours', 'answered', 'BLOCKED'), ('-299 minutes', 'answered', 'AVAILABLE'),
                        ('-298 minutes', 'unreachable', null), ('-180 minutes', 'answered', 'LIMITED'),
                        ('-120 minutes', 'unreachable', null))
                as c(at, outcome, verdict)",
    )
    .await;
    let report = report::incident(&app.db, id).await.unwrap().unwrap();
    let drawn = timeline::timeline(
        &app.db,
        &report,
        OffsetDateTime::now_utc(),
        timeline::PICTURE_BINS,
    )
    .await
    .unwrap();
    let words: Vec<&str> = drawn.lanes[0]
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
        drawn.lanes[0].latest.map(NumberHealth::word),
        Some("AVAILABLE")
    );
}
