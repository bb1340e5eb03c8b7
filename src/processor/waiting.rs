//! The callbacks that wait for an account that somebody else holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::meta::ids::WabaId;

/// They are tried again this often.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Callbacks by the account that they wait for. `None`: something unknown is in their way.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    callbacks: BTreeMap<Option<WabaId>, BTreeSet<i64>>,
    tried_at: Option<Instant>,
}

impl Waiting {
    /// Adds a callback.
    pub(super) fn add(&mut self, account: Option<WabaId>, id: i64) {
        self.callbacks.entry(account).or_default().insert(id);
        self.tried_at.get_or_insert_with(Instant::now);
    }

    /// Returns whether some are to be tried again now.
    pub(super) fn is_due(&self) -> bool {
        !self.callbacks.is_empty() && self.pause().is_zero()
    }

    /// The time until they are tried again.
    pub(super) fn pause(&self) -> Duration {
        match self.tried_at {
            Some(at) if !self.callbacks.is_empty() => RETRY_INTERVAL.saturating_sub(at.elapsed()),
            _ => Duration::MAX,
        }
    }

    /// The accounts that they wait for.
    pub(super) fn accounts(&self) -> BTreeSet<WabaId> {
        self.callbacks.keys().flatten().cloned().collect()
    }

    /// The callbacks.
    pub(super) fn ids(&self) -> Vec<i64> {
        self.callbacks.values().flatten().copied().collect()
    }

    /// Takes out up to `limit` callbacks whose account is not `held` any more.
    pub(super) fn release(&mut self, held: &BTreeSet<WabaId>, limit: usize) -> Vec<i64> {
        self.tried_at = Some(Instant::now());
        let mut released = Vec::new();
        for (account, ids) in &mut self.callbacks {
            if account
                .as_ref()
                .is_some_and(|waba_id| held.contains(waba_id))
            {
                continue;
            }
            while released.len() < limit
                && let Some(id) = ids.pop_first()
            {
                released.push(id);
            }
        }
        self.callbacks.retain(|_, ids| !ids.is_empty());
        released
    }
}
