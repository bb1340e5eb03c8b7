//! The sender's ledger: every failure that was ever sent, and the outcome of every request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use fastrand::Rng;
use lockwatch::meta::compose::StatusCallback;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// A failed delivery.
#[derive(Debug, Clone)]
pub struct Failure {
    pub waba_id: String,
    pub phone_number_id: String,
    pub message_id: String,
    pub failed_at: OffsetDateTime,
    /// A callback with this failure was answered with 200.
    pub is_acknowledged: bool,
}

/// A callback: its failures, by their position in the ledger, in the order in which they are sent.
pub type Callback = Arc<[usize]>;

/// The number of times that a body was sent, and answered with 200.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub digest: [u8; 32],
    pub sent: i64,
    pub acknowledged: i64,
}

/// An incident that the operator resolved with a note, and the API confirmed it.
#[derive(Debug, Clone)]
pub struct ManualResolution {
    pub incident_id: i64,
    pub note: String,
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Acknowledged,
    Refused,
    /// The process ended first, or the sender did not wait.
    Unanswered,
    Forged,
    NotAboutLockouts,
}

/// The ledger, shared by all senders.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<LedgerEntries>);

#[derive(Debug, Clone, Default)]
pub struct LedgerEntries {
    pub failures: Vec<Failure>,
    pub tallies: HashMap<Callback, Tally>,
    pub resolutions: Vec<ManualResolution>,
    pub outcomes: BTreeMap<Outcome, usize>,
    callbacks: Vec<Callback>,
    /// Callbacks without a 200, which Meta would send again.
    retries: Vec<Callback>,
}

impl Ledger {
    pub fn lock(&self) -> MutexGuard<'_, LedgerEntries> {
        self.0.lock().unwrap()
    }

    /// A copy of the entries, which takes no lock while it is read.
    pub fn snapshot(&self) -> LedgerEntries {
        self.lock().clone()
    }

    /// The number of callbacks that were answered with 200.
    pub fn acknowledged_callbacks(&self) -> usize {
        let ledger = self.lock();
        let count = ledger.outcomes.get(&Outcome::Acknowledged);
        count.copied().unwrap_or_default()
    }

    /// Records that a callback is about to be sent, and returns its body.
    pub fn record_sending(&self, callback: &Callback) -> Vec<u8> {
        let body = self.lock().compose(callback);
        let digest = Sha256::digest(&body).into();
        let mut ledger = self.lock();
        if !ledger.tallies.contains_key(callback) {
            ledger.callbacks.push(Arc::clone(callback));
        }
        let tally = ledger.tallies.entry(Arc::clone(callback)).or_default();
        tally.digest = digest;
        tally.sent += 1;
        body
    }

    /// Records the outcome of a callback.
    pub fn record_outcome(&self, callback: &Callback, outcome: Outcome) {
        let mut ledger = self.lock();
        ledger.count_outcome(outcome);
        if outcome != Outcome::Acknowledged {
            return ledger.retries.push(Arc::clone(callback));
        }
        ledger.tallies.get_mut(callback).unwrap().acknowledged += 1;
        for failure in callback.iter() {
            ledger.failures[*failure].is_acknowledged = true;
        }
    }
}

impl LedgerEntries {
    pub fn count_outcome(&mut self, outcome: Outcome) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Adds a failure that will be sent, and returns its position.
    pub fn add_failure(
        &mut self,
        waba_id: &str,
        phone_number_id: &str,
        failed_at: OffsetDateTime,
    ) -> usize {
        let message_id = format!("wamid.{}", self.failures.len());
        self.failures.push(Failure {
            waba_id: waba_id.to_owned(),
            phone_number_id: phone_number_id.to_owned(),
            message_id,
            failed_at,
            is_acknowledged: false,
        });
        self.failures.len() - 1
    }

    /// Chooses a callback that was sent before: any one, or a recent one.
    pub fn choose_earlier(&self, rng: &mut Rng) -> Option<Callback> {
        const RECENT_CALLBACKS: usize = 50;
        let from = if rng.bool() {
            self.callbacks.len().saturating_sub(RECENT_CALLBACKS)
        } else {
            0
        };
        rng.choice(&self.callbacks[from..]).cloned()
    }

    /// Takes one of the callbacks that Meta would send again.
    pub fn take_retry(&mut self, rng: &mut Rng) -> Option<Callback> {
        let position = (!self.retries.is_empty()).then(|| rng.usize(..self.retries.len()))?;
        Some(self.retries.swap_remove(position))
    }

    /// The callbacks with at least one failure that was never acknowledged.
    pub fn unacknowledged(&self) -> Vec<Callback> {
        self.callbacks
            .iter()
            .filter(|callback| !self.is_acknowledged(callback))
            .cloned()
            .collect()
    }

    /// Returns true if every failure of the callback was acknowledged.
    fn is_acknowledged(&self, callback: &Callback) -> bool {
        callback
            .iter()
            .all(|failure| self.failures[*failure].is_acknowledged)
    }

    fn compose(&self, callback: &Callback) -> Vec<u8> {
        let mut body = StatusCallback::new();
        for position in callback.iter() {
            let failure = &self.failures[*position];
            body = body.timestamp(failure.failed_at).failed(
                &failure.waba_id,
                &failure.phone_number_id,
                &failure.message_id,
            );
        }
        body.into_body()
    }
}
