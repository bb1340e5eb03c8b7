//! Sending again: notices that messages of a locked account are sent.
//!
//! A message that Meta sends proves that the lock is over. Such callbacks are never stored. While
//! an incident is open, a process looks for them in what it has acknowledged, in memory: what does
//! not fit, or is lost with the process, the next message shows as well.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::error_chain::error_chain;
use crate::meta::ids::{PhoneNumberId, WabaId};
use crate::meta::sent::sent_messages;
use crate::store::sending::{SentAgain, end_if_sending, open_accounts};
use crate::store::{Pool, StoreError, bounded};

/// How often the open incidents are read, which may be another process's.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// For this long after a callback that may open an incident, messages are noted of any account.
const EXPECT_INTERVAL_MILLIS: u64 = 10_000;
/// A sent message waits for this long: a failure of the same moment may still be processed.
const SETTLE_INTERVAL: Duration = Duration::from_secs(3);
/// The bytes of bodies that may wait to be looked at. More are not.
const WAITING_LIMIT_BYTES: usize = 4 * 1024 * 1024;
const WAITING_LIMIT: usize = 1024;
/// The numbers that are remembered until the database answers.
const NUMBERS_LIMIT: usize = 10_000;

/// Where the webhook shows what it has acknowledged.
#[derive(Debug, Clone)]
pub struct SentWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    started: Instant,
    is_any_open: AtomicBool,
    /// The milliseconds after the start until which an incident may have been opened that is not
    /// known yet.
    expecting_until: AtomicU64,
    waiting_bytes: AtomicUsize,
    bodies: mpsc::Sender<Bytes>,
}

impl SentWatch {
    /// Notes that a callback was stored that may open an incident.
    pub fn expect_incident(&self) {
        let until = self.0.elapsed_millis() + EXPECT_INTERVAL_MILLIS;
        self.0.expecting_until.store(until, Ordering::Relaxed);
    }

    /// Looks at a callback that was acknowledged, if an incident is open. Never waits.
    pub fn look(&self, body: &Bytes) {
        let shared = &*self.0;
        let is_open = shared.is_any_open.load(Ordering::Relaxed) || shared.is_expecting();
        if !is_open || memmem::find(body, b"\"sent\"").is_none() {
            return;
        }
        let waiting = shared
            .waiting_bytes
            .fetch_add(body.len(), Ordering::Relaxed);
        if waiting > WAITING_LIMIT_BYTES || shared.bodies.try_send(body.clone()).is_err() {
            shared
                .waiting_bytes
                .fetch_sub(body.len(), Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn elapsed_millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_expecting(&self) -> bool {
        let until = self.expecting_until.load(Ordering::Relaxed);
        until > 0 && self.elapsed_millis() < until
    }
}

/// Ends incidents of accounts whose messages are sent again: [`run`](Self::run) it.
#[derive(Debug)]
pub struct SendingAgain {
    shared: Arc<Shared>,
    bodies: mpsc::Receiver<Bytes>,
    open: HashSet<WabaId>,
    /// The sent messages by account, number and whether they are templates; and since when.
    seen: BTreeMap<(WabaId, PhoneNumberId, Option<bool>), Seen>,
}

#[derive(Debug)]
struct Seen {
    /// The earliest message, and when this process saw it.
    first: (OffsetDateTime, Instant),
    /// The latest one.
    last: (OffsetDateTime, Instant),
}

/// Creates a watch, and the task behind it.
#[must_use]
pub fn sending_again() -> (SentWatch, SendingAgain) {
    let (sender, bodies) = mpsc::channel(WAITING_LIMIT);
    let shared = Arc::new(Shared {
        started: Instant::now(),
        is_any_open: AtomicBool::new(false),
        expecting_until: AtomicU64::new(0),
        waiting_bytes: AtomicUsize::new(0),
        bodies: sender,
    });
    let task = SendingAgain {
        shared: Arc::clone(&shared),
        bodies,
        open: HashSet::new(),
        seen: BTreeMap::new(),
    };
    (SentWatch(shared), task)
}

impl SendingAgain {
    /// Works until told to stop.
    pub async fn run(mut self, db: Pool, stop: CancellationToken) {
        let mut ticks = interval(Duration::from_millis(500));
        let mut refreshed: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(body) = self.bodies.recv() => self.note(&body),
                _ = ticks.tick() => {
                    if refreshed.is_none_or(|at| at.elapsed() >= REFRESH_INTERVAL) {
                        self.refresh(&db).await;
                        refreshed = Some(Instant::now());
                    }
                    self.conclude(&db).await;
                }
            }
        }
    }

    fn note(&mut self, body: &Bytes) {
        self.shared
            .waiting_bytes
            .fetch_sub(body.len(), Ordering::Relaxed);
        for message in sent_messages(body, OffsetDateTime::now_utc()) {
            if !self.open.contains(&message.waba_id) && !self.shared.is_expecting() {
                continue;
            }
            let key = (
                message.waba_id,
                message.phone_number_id,
                message.is_template,
            );
            if self.seen.len() >= NUMBERS_LIMIT && !self.seen.contains_key(&key) {
                continue;
            }
            let new = (message.sent_at, Instant::now());
            let seen = self.seen.entry(key).or_insert(Seen {
                first: new,
                last: new,
            });
            seen.first = seen.first.min(new);
            seen.last = seen.last.max(new);
        }
    }

    /// Reads which accounts have open incidents. While the database does not answer, what is known
    /// stays.
    async fn refresh(&mut self, db: &Pool) {
        match bounded(open_accounts(db)).await {
            Ok(open) => {
                let is_new = |seen: &Seen| !is_settled(seen.first);
                self.seen
                    .retain(|(waba_id, ..), seen| open.contains(waba_id) || is_new(seen));
                self.shared
                    .is_any_open
                    .store(!open.is_empty(), Ordering::Relaxed);
                self.open = open;
            }
            Err(error) => debug!("open incidents cannot be read: {}", error_chain(&error)),
        }
    }

    /// Ends what the messages prove to be over. What the database does not take now is tried again.
    async fn conclude(&mut self, db: &Pool) {
        let due: Vec<_> = self
            .seen
            .iter()
            .filter(|((waba_id, ..), seen)| is_settled(seen.first) && self.open.contains(waba_id))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let (waba_id, phone_number_id, is_template) = &key;
            let Some(seen) = self.seen.get(&key) else {
                continue;
            };
            // What came in the meantime waits in its turn.
            let last = Some(seen.last).filter(|last| is_settled(*last));
            let rest = (last.is_none() && seen.last != seen.first).then_some(seen.last);
            let sent = SentAgain {
                waba_id,
                phone_number_id,
                is_template: *is_template,
                first: seen.first.0,
                last: last.unwrap_or(seen.first).0,
            };
            match bounded(end_if_sending(db, &sent)).await {
                Ok(true) => match rest {
                    Some(rest) => {
                        let seen = Seen {
                            first: rest,
                            last: rest,
                        };
                        self.seen.insert(key, seen);
                    }
                    None => {
                        self.seen.remove(&key);
                    }
                },
                Ok(false) => return,
                Err(error) => {
                    debug!(
                        "a sent message is not noted for now: {}",
                        error_chain(&error)
                    );
                    // Somebody holds this account: the others go on.
                    if !matches!(error, StoreError::Busy(_)) {
                        return;
                    }
                }
            }
        }
    }
}

fn is_settled((_, seen_at): (OffsetDateTime, Instant)) -> bool {
    seen_at.elapsed() >= SETTLE_INTERVAL
}
