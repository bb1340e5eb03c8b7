//! Retention: what is older than its time leaves the database, a little at a time.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::retention::{Kind, delete_some};
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
    let mut rows = 0;
    for kind in Kind::ALL {
        while !stop.is_cancelled() {
            match bounded(delete_some(db, kind, age)).await {
                Ok(0) => break,
                Ok(deleted) => rows += deleted,
                Err(error) => {
                    warn!(
                        cause = error.cause(),
                        "old {kind:?} stay for another hour: {error}"
                    );
                    break;
                }
            }
            sleep(BREATH).await;
        }
    }
    if rows > 0 {
        info!(
            rows,
            "{rows} rows older than {} days deleted",
            age.as_secs() / 86_400
        );
    }
}
