//! Decides whom to tell of changes and notices.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Patience, Shared};
use crate::store::{alerts, bounded};

/// The pause between two looks for what is to be told.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn run(shared: Shared, stop: CancellationToken) {
    let mut patience = Patience::default();
    while !stop.is_cancelled() {
        let subscribers = shared.roster.borrow().subscribers();
        let dispatched = bounded(alerts::dispatch(&shared.db, &subscribers)).await;
        patience.note("alerts are not written", dispatched);
        stop.run_until_cancelled(sleep(POLL_INTERVAL)).await;
    }
}
