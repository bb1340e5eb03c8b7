//! What pictures of an incident are drawn from.

use lockwatch::report::{self, timeline};
use time::{Duration, OffsetDateTime};

use crate::support::TestApp;

#[tokio::test]
async fn a_failure_is_drawn_in_the_stretch_of_time_in_which_it_happened() {
    let app = TestApp::start().await;
    let now = OffsetDateTime::now_utc();
    let five = Duration::minutes(5);
    // Three hours are drawn five minutes at a time.
    let start = now.unix_timestamp() / five.whole_seconds() * five.whole_seconds() - 36 * five.whole_seconds();
    let start = OffsetDateTime::from_unix_timestamp(start).unwrap();
    for minute in 0..10 {
        app.fail_at(&format!("{minute}"), start + Duration::minutes(minute)).await;
    }
    let report = report::incident(&app.db, app.incident().await.id).await.unwrap().unwrap();
    let drawn = timeline::timeline(&app.db, &report, now, timeline::PICTURE).await.unwrap();
    assert_eq!((drawn.bins.start, drawn.bins.width), (start, five));
    assert_eq!(drawn.failures[..3], [5, 5, 0]);
    assert_eq!(drawn.failures.iter().sum::<u64>(), 10);
}
