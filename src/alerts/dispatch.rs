//! Decides whom to tell: of changes and notices at once, of troubles when they last, and of
//! incidents that stay open every day.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Shared;
use crate::error_chain::error_chain;
use crate::report::trouble::describe_fact;
use crate::store::troubles::{self, Observed};
use crate::store::{StoreError, alerts, bounded};

/// The pause between two looks for what is to be told.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The pause between two looks for troubles and for incidents that stay open.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(shared: Shared, stop: CancellationToken) {
    let mut watch_at = Instant::now();
    while !stop.is_cancelled() {
        let is_watching = Instant::now() >= watch_at;
        if is_watching {
            watch_at = Instant::now() + WATCH_INTERVAL;
        }
        if let Err(error) = step(&shared, is_watching).await {
            debug!("alerts wait for the database: {}", error_chain(&error));
        }
        stop.run_until_cancelled(sleep(POLL_INTERVAL)).await;
    }
}

async fn step(shared: &Shared, is_watching: bool) -> Result<(), StoreError> {
    let subscribers = shared.roster.borrow().subscribers();
    if is_watching {
        let facts = bounded(troubles::observe(&shared.db)).await?;
        let observed: Vec<Observed> = facts
            .iter()
            .map(|fact| Observed {
                kind: fact.kind(),
                waba_id: fact.waba_id().to_owned(),
                detail: describe_fact(fact),
            })
            .collect();
        bounded(troubles::note(&shared.db, &observed, &subscribers)).await?;
        bounded(alerts::give_up_abandoned(&shared.db)).await?;
        // A history that says "reminded" where nobody could be would be wrong.
        if !subscribers.is_empty() {
            bounded(alerts::note_reminders(&shared.db)).await?;
        }
    }
    bounded(alerts::dispatch(&shared.db, &subscribers)).await?;
    Ok(())
}
