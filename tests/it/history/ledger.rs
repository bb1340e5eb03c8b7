//! The other side's books: every failure that was ever sent, and every answer.

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
    /// Somebody was told 200.
    pub acknowledged: bool,
}

/// A callback: its failures, by their place in the book, in the order in which they are sent.
pub type Callback = Arc<[usize]>;

/// How often a body was sent, and answered with 200.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub digest: [u8; 32],
    pub sent: i64,
    pub acknowledged: i64,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Acknowledged,
    Refused,
    /// The process ended first, or the sender did not wait.
    Unanswered,
    Forged,
    NotAboutLockouts,
}

#[derive(Debug, Default)]
pub struct Ledger(Mutex<Book>);

#[derive(Debug, Clone, Default)]
pub struct Book {
    pub failures: Vec<Failure>,
    pub tallies: HashMap<Callback, Tally>,
    /// Incidents that a person was told to have resolved, with the person's note.
    pub resolved: Vec<(i64, String)>,
    pub outcomes: BTreeMap<Outcome, usize>,
    callbacks: Vec<Callback>,
    /// What Meta would send again.
    owed: Vec<Callback>,
}

impl Ledger {
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap()
    }

    /// A copy, to be read at leisure.
    pub fn copy(&self) -> Book {
        self.book().clone()
    }

    /// How many callbacks were answered with 200.
    pub fn acknowledged(&self) -> usize {
        self.book()
            .outcomes
            .get(&Outcome::Acknowledged)
            .copied()
            .unwrap_or_default()
    }

    /// The body of a callback that is about to be sent.
    pub fn sending(&self, callback: &Callback) -> Vec<u8> {
        let body = self.book().compose(callback);
        let digest = Sha256::digest(&body).into();
        let mut book = self.book();
        if !book.tallies.contains_key(callback) {
            book.callbacks.push(Arc::clone(callback));
        }
        let tally = book.tallies.entry(Arc::clone(callback)).or_default();
        tally.digest = digest;
        tally.sent += 1;
        body
    }

    /// Notes what became of it.
    pub fn answered(&self, callback: &Callback, outcome: Outcome) {
        let mut book = self.book();
        book.count(outcome);
        if outcome != Outcome::Acknowledged {
            return book.owed.push(Arc::clone(callback));
        }
        book.tallies.get_mut(callback).unwrap().acknowledged += 1;
        for failure in callback.iter() {
            book.failures[*failure].acknowledged = true;
        }
    }
}

impl Book {
    pub fn count(&mut self, outcome: Outcome) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Notes a failure that will be sent.
    pub fn add(
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
            acknowledged: false,
        });
        self.failures.len() - 1
    }

    /// A callback of before: any, or a recent one.
    pub fn earlier(&self, rng: &mut Rng) -> Option<Callback> {
        const RECENT: usize = 50;
        let from = if rng.bool() {
            self.callbacks.len().saturating_sub(RECENT)
        } else {
            0
        };
        rng.choice(&self.callbacks[from..]).cloned()
    }

    /// One that is owed.
    pub fn owed(&mut self, rng: &mut Rng) -> Option<Callback> {
        let one = (!self.owed.is_empty()).then(|| rng.usize(..self.owed.len()))?;
        Some(self.owed.swap_remove(one))
    }

    /// The callbacks with a failure that nobody was told to be recorded.
    pub fn unacknowledged(&self) -> Vec<Callback> {
        let owed = |callback: &&Callback| {
            callback
                .iter()
                .any(|failure| !self.failures[*failure].acknowledged)
        };
        self.callbacks.iter().filter(owed).cloned().collect()
    }

    fn compose(&self, callback: &Callback) -> Vec<u8> {
        let failures = callback.iter().map(|failure| &self.failures[*failure]);
        let add = |body: StatusCallback, failure: &Failure| {
            body.at(failure.failed_at).failed(
                &failure.waba_id,
                &failure.phone_number_id,
                &failure.message_id,
            )
        };
        failures.fold(StatusCallback::new(), add).into_body()
    }
}
