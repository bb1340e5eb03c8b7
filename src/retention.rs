//! Retention: deletes rows that are older than the retention period, in small batches.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::error_chain::error_chain;
use crate::store::retention::{RetainedTable, delete_batch};
use crate::store::{Pool, bounded};

/// The pause between two clean-ups.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(3600);
/// The pause between two batches: others use the database in the meantime.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Cleans up at once and then every hour, until told to stop. Several replicas may run this at
/// once.
pub async fn run(db: Pool, age: Duration, stop: CancellationToken) {
    while !stop.is_cancelled() {
        clean_up(&db, age, &stop).await;
        stop.run_until_cancelled(sleep(CLEANUP_INTERVAL)).await;
    }
}

/// Deletes everything older than `age`. After an error, the rest of that table is left for the next
/// clean-up.
async fn clean_up(db: &Pool, age: Duration, stop: &CancellationToken) {
    let mut rows = 0;
    for table in RetainedTable::ALL {
        while !stop.is_cancelled() {
            match bounded(delete_batch(db, table, age)).await {
                Ok(0) => break,
                Ok(deleted) => rows += deleted,
                Err(error) => {
                    let error = error_chain(&error);
                    warn!("old rows of {table} stay for another hour: {error}");
                    break;
                }
            }
            sleep(BATCH_INTERVAL).await;
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
