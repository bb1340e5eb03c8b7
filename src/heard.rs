//! Heard accounts: when each account's callbacks come, counted in memory and written once a minute.
//!
//! An account that is silent for longer than it usually is may be one that Meta no longer reports
//! to us. Losing a minute of this with a process does no harm.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::error_chain::error_chain;
use crate::lockout::trouble::ALL_ACCOUNTS;
use crate::meta::entry::first_account;
use crate::store::troubles::{HeardAccount, note_heard};
use crate::store::{Pool, StoreError, bounded};

const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// The accounts of a minute. More are not counted.
const ACCOUNTS_LIMIT: usize = 50_000;
/// The accounts of one transaction.
const CHUNK: usize = 1000;

/// Notes of what the webhook has verified. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<HashMap<String, Times>>>);

#[derive(Debug, Clone, Copy)]
struct Times {
    first: OffsetDateTime,
    last: OffsetDateTime,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Times>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a callback that came now.
    pub fn note(&self, body: &[u8]) {
        let Some(account) = first_account(body) else {
            return;
        };
        let now = OffsetDateTime::now_utc();
        let mut heard = self.lock();
        for name in [ALL_ACCOUNTS, account.as_str()] {
            if let Some(times) = heard.get_mut(name) {
                times.last = now;
            } else if heard.len() < ACCOUNTS_LIMIT {
                let times = Times {
                    first: now,
                    last: now,
                };
                heard.insert(name.to_owned(), times);
            }
        }
    }

    /// Writes what was noted, once a minute and at the end.
    pub async fn run(self, db: Pool, stop: CancellationToken) {
        let mut has_paused = true;
        while !stop.is_cancelled() {
            stop.run_until_cancelled(sleep(WRITE_INTERVAL)).await;
            has_paused = match self.write(&db, has_paused).await {
                Ok(was_written) => has_paused && !was_written,
                Err(error) => {
                    debug!("heard accounts are not noted: {}", error_chain(&error));
                    true
                }
            };
        }
    }

    /// Writes what was noted. Returns whether that was something.
    async fn write(&self, db: &Pool, has_paused: bool) -> Result<bool, StoreError> {
        let heard = std::mem::take(&mut *self.lock());
        let mut heard: Vec<HeardAccount> = heard
            .into_iter()
            .map(|(waba_id, Times { first, last })| HeardAccount {
                waba_id,
                first,
                last,
            })
            .collect();
        // All accounts come first: their silence is read off the accounts, before these change.
        heard.sort_by(|a, b| {
            let rank = |one: &HeardAccount| one.waba_id != ALL_ACCOUNTS;
            rank(a)
                .cmp(&rank(b))
                .then_with(|| a.waba_id.cmp(&b.waba_id))
        });
        for chunk in heard.chunks(CHUNK) {
            bounded(note_heard(db, chunk, has_paused)).await?;
        }
        Ok(!heard.is_empty())
    }
}
