//! Group commit: everything that arrives while one transaction commits is written by the next.
//!
//! Handlers hand over what they found and wait. A task of its own, which nobody cancels, takes all that
//! waits, writes it in one short transaction and then answers every waiter. Without load a batch is one
//! callback; under load it grows by itself, and no timer delays anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, error, info, warn};

use crate::meta::callback::{Findings, Unreadable};
use crate::meta::failure::FailedDelivery;
use crate::store::record::{self, Recorded};
use crate::store::{Database, RecorderConnection, StoreError};

/// How long a callback waits for its commit, from when its last byte arrived.
const PATIENCE: Duration = Duration::from_millis(2500);
/// How long a batch may take, connecting included. After that its connection is closed.
const BATCH_BOUND: Duration = Duration::from_millis(2200);
/// A batch takes no further callback once it holds this many failures, or bodies of this many bytes.
const BATCH_FAILURES: usize = 5000;
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Callbacks that may wait. What their bodies take is bounded by whoever hands them over.
const QUEUE: usize = 16_384;
/// While the database is away, it is said at once, and then this often.
const REPEAT_ERROR: Duration = Duration::from_secs(10);

/// A callback in which something was found.
#[derive(Debug)]
pub struct Found {
    /// What.
    pub findings: Findings,
    /// The whole body.
    pub body: Bytes,
    /// When its last byte arrived.
    pub arrived: Instant,
    /// The same as a time of day.
    pub received_at: OffsetDateTime,
    /// Its share of the memory for bodies, given back once it is written.
    pub held: OwnedSemaphorePermit,
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
    answer: oneshot::Sender<Result<(), NotRecorded>>,
}

/// Creates the two ends. `checks_due` is notified when a number waits for its first look-up.
#[must_use]
pub fn recorder(database: Database, checks_due: Arc<Notify>) -> (Recorder, RecorderTask) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writer = Writer { database, connection: None, checks_due, failing: None };
    (Recorder { queue: sender }, RecorderTask { queue: receiver, writer })
}

impl Recorder {
    /// Returns once everything found in the callback is committed.
    ///
    /// # Errors
    /// [`NotRecorded`]: some of it may not be.
    pub async fn record(&self, found: Found) -> Result<(), NotRecorded> {
        let deadline = found.arrived + PATIENCE;
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Waiting { found, answer }).map_err(|error| match error {
            TrySendError::Full(_) => NotRecorded::Full,
            TrySendError::Closed(_) => NotRecorded::Failed,
        })?;
        match timeout_at(deadline, answered).await {
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
            if waiting.found.arrived.elapsed() < PATIENCE && !waiting.answer.is_closed() {
                failures += waiting.found.findings.failures.len();
                bytes += waiting.found.body.len();
                batch.push(waiting);
            }
            let room = failures < BATCH_FAILURES && bytes < BATCH_BYTES;
            next = if room { self.queue.try_recv().ok() } else { None };
        }
        batch
    }
}

/// One failure with the callback it came in.
#[derive(Clone, Copy)]
struct Item<'b> {
    failure: &'b FailedDelivery,
    body: &'b Bytes,
}

#[derive(Debug)]
struct Writer {
    database: Database,
    connection: Option<RecorderConnection>,
    checks_due: Arc<Notify>,
    /// When it was last said that nothing can be recorded.
    failing: Option<Instant>,
}

impl Writer {
    /// Writes a batch. On any doubt the connection is closed, not handed on: nobody knows what state a
    /// transaction is in whose answer did not come.
    async fn settle(&mut self, batch: &[Waiting]) -> Result<(), NotRecorded> {
        let mut recorded = Recorded::default();
        let written = timeout(BATCH_BOUND, self.write(batch, &mut recorded)).await;
        // Also where the rest failed: an incident that was opened is never told again.
        self.tell(batch, &recorded);
        match written.unwrap_or(Err(StoreError::TimedOut)) {
            Ok(()) => {
                if self.failing.take().is_some() {
                    info!("failures are recorded again");
                }
                Ok(())
            }
            Err(error) => {
                self.connection = None;
                if self.failing.is_none_or(|said| said.elapsed() > REPEAT_ERROR) {
                    self.failing = Some(Instant::now());
                    let cause = error.cause();
                    error!(callbacks = batch.len(), cause, "nothing can be recorded, Meta is asked to resend: {error}");
                }
                Err(NotRecorded::Failed)
            }
        }
    }

    fn tell(&self, batch: &[Waiting], recorded: &Recorded) {
        if recorded.check_due {
            self.checks_due.notify_one();
        }
        for (id, waba_id) in &recorded.opened {
            warn!(incident.id = id, waba.id = %waba_id, "account locked: incident {id} opened for {waba_id}");
        }
        debug!(callbacks = batch.len(), new = recorded.new, "batch committed");
    }

    async fn write(&mut self, batch: &[Waiting], recorded: &mut Recorded) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection.refreshed(&self.database).await?,
            None => self.database.connect_recorder().await?,
        };
        let found = || batch.iter().map(|waiting| &waiting.found);
        let items: Vec<Item<'_>> = found()
            .flat_map(|found| found.findings.failures.iter().map(|failure| Item { failure, body: &found.body }))
            .collect();
        let mut refused = BTreeMap::new();
        if !items.is_empty() {
            record_or_refuse(&mut connection, &items, recorded, &mut refused).await?;
        }
        let unreadable: Vec<(OffsetDateTime, Unreadable)> = found()
            .flat_map(|found| found.findings.unreadable.iter().map(|u| (found.received_at, u.clone())))
            .chain(refused.into_values())
            .collect();
        if !unreadable.is_empty() {
            record::quarantine(&mut connection, &unreadable).await?;
            for (_, Unreadable { waba_id, reason, .. }) in &unreadable {
                let waba_id = waba_id.as_ref().map(tracing::field::display);
                warn!(waba.id = waba_id, "a part of a callback is quarantined: {reason}");
            }
        }
        self.connection = Some(connection);
        Ok(())
    }
}

/// What the database refuses, by the callback it came in: of each the body is kept once.
type Refused = BTreeMap<usize, (OffsetDateTime, Unreadable)>;

/// Records the items. Where the database refuses a value, halves them down to the culprit; that one is
/// tried once more alone, and then the callback it came in is quarantined.
async fn record_or_refuse(
    connection: &mut RecorderConnection,
    items: &[Item<'_>],
    recorded: &mut Recorded,
    refused: &mut Refused,
) -> Result<(), StoreError> {
    let failures: Vec<&FailedDelivery> = items.iter().map(|item| item.failure).collect();
    let mut written = record::failures(connection, &failures).await;
    if let (Err(StoreError::BadData(_)), [_]) = (&written, items) {
        written = record::failures(connection, &failures).await;
    }
    match (written, items) {
        (Ok(more), _) => recorded.add(more),
        (Err(StoreError::BadData(error)), [Item { failure, body }]) => {
            warn!(waba.id = %failure.waba_id, %error, "the database refuses a failed delivery");
            refused.entry(body.as_ptr().addr()).or_insert_with(|| {
                let reason = "the database refuses a failed delivery of this callback".into();
                let unstorable = Unreadable { waba_id: Some(failure.waba_id.clone()), reason, bytes: (*body).clone() };
                (failure.received_at, unstorable)
            });
        }
        (Err(StoreError::BadData(_)), items) => {
            let (left, right) = items.split_at(items.len() / 2);
            Box::pin(record_or_refuse(connection, left, recorded, refused)).await?;
            Box::pin(record_or_refuse(connection, right, recorded, refused)).await?;
        }
        (Err(error), _) => return Err(error),
    }
    Ok(())
}
