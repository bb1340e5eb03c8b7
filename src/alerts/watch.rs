//! Looks for troubles, which are told when they last, and for incidents that stay open, which are
//! told every day.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Patience, Shared};
use crate::report::trouble::describe_fact;
use crate::store::troubles::{self, Observed};
use crate::store::{StoreError, alerts, bounded};

/// The pause between two looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(shared: Shared, stop: CancellationToken) {
    let mut patience = Patience::default();
    while !stop.is_cancelled() {
        patience.note("troubles are not looked for", step(&shared).await);
        stop.run_until_cancelled(sleep(WATCH_INTERVAL)).await;
    }
}

async fn step(shared: &Shared) -> Result<(), StoreError> {
    let subscribers = shared.roster.borrow().subscribers();
    let names: Vec<String> = subscribers.iter().map(|one| one.name.clone()).collect();
    bounded(alerts::give_up_abandoned(&shared.db, &names)).await?;
    // A history that says "reminded" where nobody could be would be wrong.
    if !subscribers.is_empty() {
        bounded(alerts::note_reminders(&shared.db)).await?;
    }
    let facts = bounded(troubles::observe(&shared.db)).await?;
    let observed: Vec<Observed> = facts
        .iter()
        .map(|fact| Observed {
            kind: fact.kind(),
            waba_id: fact.waba_id().to_owned(),
            detail: describe_fact(fact),
        })
        .collect();
    bounded(troubles::note(&shared.db, &observed, &subscribers)).await
}
