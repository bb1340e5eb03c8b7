//! Group commit: everything that arrives while one transaction commits is written by the next.
//!
//! Handlers hand over what they found and wait. A task of its own, which nobody cancels, takes all that
//! waits, writes it in one short transaction and then answers every waiter. Without load a batch is one
//! callback; under load it grows by itself, and no timer delays anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, error, info, warn};

use crate::error_chain::error_chain;
use crate::meta::callback::{CallbackContents, UnreadablePart, may_contain_lockout};
use crate::meta::signature::Signature;
use crate::metrics::RecorderMetrics;
use crate::store::bodies::{self, Bodies, NewCapture, Quarantined};
use crate::store::record::{self, Item, Recorded, RecorderConnection};
use crate::store::{Database, StoreError, incident_life};

/// How long a callback waits for its commit, from when its last byte arrived.
const PATIENCE: Duration = Duration::from_millis(2500);
/// How long a batch may take, connecting included. After that its connection is closed.
const BATCH_BOUND: Duration = Duration::from_millis(2200);
/// A batch takes no further callback once it holds this many failures, or bodies of this many bytes.
const BATCH_FAILURES: usize = 5000;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Callbacks that may wait. What their bodies take is bounded by whoever hands them over.
const QUEUE: usize = 16_384;
/// While the database is away, it is said at once, and then this often.
const REPEAT_ERROR: Duration = Duration::from_secs(10);

/// Which callbacks are kept byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Capturing {
    /// Those in which a lockout was found, or something that could not be read.
    Lockouts,
    /// All. Then every callback waits for the database.
    All,
    /// None.
    Off,
}

/// A callback that may be taken in: its signature was verified, or its owner vouches for it.
#[derive(Debug, Clone)]
pub struct Callback {
    /// The whole body.
    pub body: Bytes,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// The signature as it came, if there was one.
    pub signature: Option<Signature>,
    /// The position of the app secret that matched it, from 1.
    pub app_secret: Option<i32>,
}

/// What is to be recorded of a callback.
#[derive(Debug)]
pub struct Found {
    findings: CallbackContents,
    body: Bytes,
    received_at: OffsetDateTime,
    capture: Option<NewCapture>,
}

impl Callback {
    /// Finds what is to be recorded, if anything.
    #[must_use]
    pub fn find(self, capturing: Capturing) -> Option<Found> {
        let all = capturing == Capturing::All;
        if !all && !may_contain_lockout(&self.body) {
            return None;
        }
        let Self {
            body,
            received_at,
            signature,
            app_secret,
        } = self;
        let findings = CallbackContents::parse(&body, received_at);
        if !all && findings.is_empty() {
            return None;
        }
        let capture = (capturing != Capturing::Off).then(|| NewCapture {
            waba_id: findings.waba_id.clone(),
            digest: Sha256::digest(&body).into(),
            body: body.clone(),
            received_at,
            signature: signature.map(|signature| signature.to_string()),
            app_secret,
            failure_count: i32::try_from(findings.failures.len()).unwrap_or(i32::MAX),
        });
        Some(Found {
            findings,
            body,
            received_at,
            capture,
        })
    }
}

impl Found {
    /// What was found.
    #[must_use]
    pub fn findings(&self) -> &CallbackContents {
        &self.findings
    }
}

/// The callback is not recorded, and Meta has to send it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// Too many callbacks wait already.
    #[error("too many callbacks are waiting for the database")]
    Full,
    /// The commit did not come in time. It may still come; then the repetition changes nothing.
    #[error("the database did not commit in time")]
    Late,
    /// The database did not commit.
    #[error("the database did not commit")]
    Failed,
}

/// Hands callbacks to the recorder's task.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Waiting>,
}

/// The recorder's task: [`run`](Self::run) it.
#[derive(Debug)]
pub struct RecorderTask {
    queue: mpsc::Receiver<Waiting>,
    writer: Writer,
}

#[derive(Debug)]
struct Waiting {
    found: Found,
    arrived: Instant,
    answer: oneshot::Sender<Result<(), NotRecorded>>,
    /// The callback's share of the memory for bodies, given back once it is written.
    _held: OwnedSemaphorePermit,
}

/// Creates the two ends. `checks_due` is notified when a number waits for its first look-up.
#[must_use]
pub fn recorder(
    database: Database,
    checks_due: Arc<Notify>,
    metrics: RecorderMetrics,
) -> (Recorder, RecorderTask) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writer = Writer {
        database,
        connection: None,
        checks_due,
        metrics,
        failing: None,
    };
    (
        Recorder { queue: sender },
        RecorderTask {
            queue: receiver,
            writer,
        },
    )
}

impl Recorder {
    /// Returns once everything found in a callback is committed. Its last byte came when it `arrived`; what
    /// it takes of the memory for bodies is `held` until it is written.
    ///
    /// # Errors
    /// [`NotRecorded`]: some of it may not be.
    pub async fn record(
        &self,
        found: Found,
        arrived: Instant,
        held: OwnedSemaphorePermit,
    ) -> Result<(), NotRecorded> {
        self.submit(found, arrived, held)?.committed().await
    }

    /// The same in two steps: what is submitted earlier is written earlier.
    ///
    /// # Errors
    /// [`NotRecorded`]: nothing was submitted.
    pub fn submit(
        &self,
        found: Found,
        arrived: Instant,
        held: OwnedSemaphorePermit,
    ) -> Result<Submitted, NotRecorded> {
        let deadline = arrived + PATIENCE;
        let (answer, answered) = oneshot::channel();
        self.queue
            .try_send(Waiting {
                found,
                arrived,
                answer,
                _held: held,
            })
            .map_err(|error| match error {
                TrySendError::Full(_) => NotRecorded::Full,
                TrySendError::Closed(_) => NotRecorded::Failed,
            })?;
        Ok(Submitted { answered, deadline })
    }
}

/// A callback on its way into the database.
#[derive(Debug)]
pub struct Submitted {
    answered: oneshot::Receiver<Result<(), NotRecorded>>,
    deadline: Instant,
}

impl Submitted {
    /// Returns once it is committed.
    ///
    /// # Errors
    /// [`NotRecorded`]: some of it may not be.
    pub async fn committed(self) -> Result<(), NotRecorded> {
        match timeout_at(self.deadline, self.answered).await {
            Ok(answer) => answer.unwrap_or(Err(NotRecorded::Failed)),
            Err(_) => Err(NotRecorded::Late),
        }
    }
}

impl RecorderTask {
    /// Writes batches until every [`Recorder`] is gone and nothing waits.
    pub async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let batch = self.batch(first);
            if batch.is_empty() {
                continue;
            }
            let written = self.writer.settle(&batch).await;
            for waiting in batch {
                // Who no longer waits gets the callback again, and the repetition changes nothing.
                let _ = waiting.answer.send(written);
            }
        }
    }

    /// All that waits, up to a size, except those whose time is over.
    fn batch(&mut self, first: Waiting) -> Vec<Waiting> {
        let mut batch = Vec::new();
        let (mut failures, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(waiting) = next {
            if waiting.arrived.elapsed() < PATIENCE && !waiting.answer.is_closed() {
                failures += waiting.found.findings.failures.len();
                bytes += waiting.found.body.len();
                batch.push(waiting);
            }
            let room = failures < BATCH_FAILURES && bytes < BATCH_BYTES;
            next = if room {
                self.queue.try_recv().ok()
            } else {
                None
            };
        }
        batch
    }
}

#[derive(Debug)]
struct Writer {
    database: Database,
    connection: Option<RecorderConnection>,
    checks_due: Arc<Notify>,
    metrics: RecorderMetrics,
    /// When it was last said that nothing can be recorded.
    failing: Option<Instant>,
}

impl Writer {
    /// Writes a batch. On any doubt the connection is closed, not handed on: nobody knows what state a
    /// transaction is in whose answer did not come.
    async fn settle(&mut self, batch: &[Waiting]) -> Result<(), NotRecorded> {
        let started = Instant::now();
        let mut recorded = Recorded::default();
        let written = timeout(BATCH_BOUND, self.write(batch, &mut recorded)).await;
        // Also where the rest failed: an incident that was opened is never told again.
        self.tell(batch, &recorded);
        self.metrics.count_rows(&recorded);
        match written.unwrap_or(Err(StoreError::TimedOut)) {
            Ok(()) => {
                let failures = batch
                    .iter()
                    .map(|waiting| waiting.found.findings.failures.len())
                    .sum();
                self.metrics
                    .count_committed(batch.len(), failures, started.elapsed());
                if self.failing.take().is_some() {
                    info!("failures are recorded again");
                }
                Ok(())
            }
            Err(error) => {
                self.connection = None;
                self.metrics.count_failed();
                if self
                    .failing
                    .is_none_or(|said| said.elapsed() > REPEAT_ERROR)
                {
                    self.failing = Some(Instant::now());
                    let error = error_chain(&error);
                    error!(
                        callbacks = batch.len(),
                        "nothing can be recorded, Meta is asked to resend: {error}"
                    );
                }
                Err(NotRecorded::Failed)
            }
        }
    }

    fn tell(&self, batch: &[Waiting], recorded: &Recorded) {
        if recorded.check_due {
            self.checks_due.notify_one();
        }
        recorded.opened.iter().for_each(incident_life::log);
        debug!(
            callbacks = batch.len(),
            new = recorded.new,
            "batch committed"
        );
    }

    async fn write(
        &mut self,
        batch: &[Waiting],
        recorded: &mut Recorded,
    ) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection.refreshed(&self.database).await?,
            None => RecorderConnection::open(&self.database).await?,
        };
        let mut batch = Batch::of(batch);
        let items: Vec<Item<'_>> = batch.items();
        if !items.is_empty() {
            batch
                .record_or_refuse(&mut connection, &items, recorded)
                .await?;
        }
        let quarantined = batch.quarantined();
        if !quarantined.is_empty() || batch.bodies.is_unfinished() {
            recorded
                .add(bodies::keep(&mut connection, &items, &quarantined, &mut batch.bodies).await?);
        }
        for Quarantined {
            unreadable: UnreadablePart {
                waba_id, reason, ..
            },
            ..
        } in &quarantined
        {
            let waba_id = waba_id.as_ref().map(tracing::field::display);
            warn!(
                waba.id = waba_id,
                "a part of a callback is quarantined: {reason}"
            );
        }
        self.connection = Some(connection);
        Ok(())
    }
}

/// The callbacks of one batch, and what becomes of them.
struct Batch<'b> {
    found: Vec<&'b Found>,
    bodies: Bodies<'b>,
    /// What the database refuses, by the callback it came in: of each the body is kept once.
    refused: BTreeMap<usize, UnreadablePart>,
}

impl<'b> Batch<'b> {
    fn of(batch: &'b [Waiting]) -> Self {
        let found: Vec<&Found> = batch.iter().map(|waiting| &waiting.found).collect();
        let mut bodies = Bodies::default();
        found
            .iter()
            .for_each(|found| bodies.add(found.capture.as_ref()));
        Self {
            found,
            bodies,
            refused: BTreeMap::new(),
        }
    }

    /// Every failure.
    fn items(&self) -> Vec<Item<'b>> {
        let of = |(callback, found): (usize, &&'b Found)| {
            found
                .findings
                .failures
                .iter()
                .map(move |failure| Item { failure, callback })
        };
        self.found.iter().enumerate().flat_map(of).collect()
    }

    /// Records the items. Where the database refuses a value, divides them down to the culprit; that one is
    /// tried once more alone, and then the callback it came in is quarantined.
    async fn record_or_refuse(
        &mut self,
        connection: &mut RecorderConnection,
        items: &[Item<'b>],
        recorded: &mut Recorded,
    ) -> Result<(), StoreError> {
        let mut written = record::failures(connection, items, &mut self.bodies).await;
        if let (Err(StoreError::BadData(_)), [_]) = (&written, items) {
            written = record::failures(connection, items, &mut self.bodies).await;
        }
        match (written, items) {
            (Ok(more), _) => recorded.add(more),
            (Err(StoreError::BadData(error)), [Item { failure, callback }]) => {
                warn!(waba.id = %failure.waba_id, %error, "the database refuses a failed delivery");
                self.refused
                    .entry(*callback)
                    .or_insert_with(|| UnreadablePart {
                        waba_id: Some(failure.waba_id.clone()),
                        reason: "the database refuses a failed delivery of this callback".into(),
                        bytes: self.found[*callback].body.clone(),
                    });
            }
            (Err(StoreError::BadData(_)), items) => {
                // A part of a callback may have been recorded by a batch that failed after it.
                bodies::recall(connection, items, &mut self.bodies).await?;
                let callbacks: Vec<usize> = items.iter().map(|item| item.callback).collect();
                let (left, right) = items.split_at(middle(&callbacks));
                Box::pin(self.record_or_refuse(connection, left, recorded)).await?;
                Box::pin(self.record_or_refuse(connection, right, recorded)).await?;
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    /// What could not be read, and what the database refused.
    fn quarantined(&mut self) -> Vec<Quarantined> {
        let mut refused = std::mem::take(&mut self.refused);
        let of = |(callback, found): (usize, &&Found)| {
            let unreadable = found
                .findings
                .unreadable
                .iter()
                .cloned()
                .chain(refused.remove(&callback));
            let received_at = found.received_at;
            unreadable
                .map(move |unreadable| Quarantined {
                    unreadable,
                    received_at,
                    callback,
                })
                .collect::<Vec<_>>()
        };
        self.found.iter().enumerate().flat_map(of).collect()
    }
}

/// Where to divide items that came in these callbacks: before or behind the callback in the middle, and within
/// it only where it is the only one. So what another is to blame for leaves a callback whole.
fn middle(callbacks: &[usize]) -> usize {
    let half = callbacks.len() / 2;
    let before = callbacks.partition_point(|callback| *callback < callbacks[half]);
    let behind = callbacks.partition_point(|callback| *callback <= callbacks[half]);
    [before, behind]
        .into_iter()
        .find(|at| (1..callbacks.len()).contains(at))
        .unwrap_or(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_is_divided_only_alone() {
        for (callbacks, divided) in [
            (&[0, 1, 1, 1][..], 1),
            (&[0, 0, 0, 1], 3),
            (&[0, 0, 1, 1, 1, 1, 2], 2),
            (&[3, 4, 5, 6], 2),
            (&[7, 7, 7, 7], 2),
        ] {
            assert_eq!(middle(callbacks), divided, "{callbacks:?}");
        }
    }
}
