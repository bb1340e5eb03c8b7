//! The change log: a line of the log for each change of an incident, written from its row.
//!
//! A change is committed with what makes it true. Its line is written afterwards, by whichever
//! process finds it first, so it is not lost where the answer to a commit is.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::error_chain::error_chain;
use crate::metrics::ChangeMetrics;
use crate::store::{Pool, bounded, changes};
use crate::woken::Woken;

/// The pause between two searches, unless the worker is woken.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Writes lines until told to stop.
pub async fn run(db: Pool, woken: Woken, metrics: ChangeMetrics, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match bounded(changes::log_new(&db)).await {
            Ok(None) => {}
            Ok(Some(logged)) => {
                for (of_kind, change) in logged {
                    metrics.count(of_kind, change);
                }
                continue;
            }
            Err(error) => debug!("changes are not logged for now: {}", error_chain(&error)),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(POLL_INTERVAL) => {}
            () = woken.changed.notified() => {}
        }
    }
}
