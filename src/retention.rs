//! Retention: what is older than its time leaves the database, a little at a time.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::retention::{Deleted, delete_batch};
use crate::store::{Pool, bounded};

/// Between one clean-up and the next.
const PAUSE: Duration = Duration::from_secs(3600);
/// Between two batches, for everybody else.
const BREATH: Duration = Duration::from_millis(50);

/// Cleans up at once and then every hour, until told to stop. Several replicas may.
pub async fn run(db: Pool, age: Duration, stop: CancellationToken) {
    while !stop.is_cancelled() {
        clean_up(&db, age, &stop).await;
        stop.run_until_cancelled(sleep(PAUSE)).await;
    }
}

/// Deletes everything older than `age`. What fails is left for the next time.
async fn clean_up(db: &Pool, age: Duration, stop: &CancellationToken) {
    let mut deleted = Deleted::default();
    while !stop.is_cancelled() {
        match bounded(delete_batch(db, age)).await {
            Ok(batch) if batch.rows() == 0 => break,
            Ok(batch) => deleted.add(batch),
            Err(error) => {
                warn!(cause = error.cause(), "old rows stay for now: {error}");
                break;
            }
        }
        sleep(BREATH).await;
    }
    let Deleted { failed_deliveries, health_checks, quarantine, captures } = deleted;
    if deleted.rows() > 0 {
        info!(
            failed_deliveries,
            health_checks,
            quarantine,
            captures,
            "{} rows older than {} days deleted",
            deleted.rows(),
            age.as_secs() / 86_400
        );
    }
}
