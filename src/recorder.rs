//! Group commit: everything that arrives while one transaction commits is written by the next.
//!
//! Handlers hand over what they found and wait. A task of its own, which nobody cancels, takes all that
//! waits, writes it in one short transaction and then answers every waiter. Without load a batch is one
//! callback; under load it grows by itself, and no timer delays anything.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc, oneshot};
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
/// A batch takes no further callback once it holds this many failures.
const BATCH_FAILURES: usize = 5000;
/// Callbacks that may wait. What their bodies take is bounded by whoever hands them over.
const QUEUE: usize = 16_384;
/// While the database is away, it is said at once, and then this often.
const REPEAT_ERROR: Duration = Duration::from_secs(10);

/// A callback in which something was found.
pub struct Found {
    /// What.
    pub findings: Findings,
    /// The whole body.
    pub body: Bytes,
    /// When its last byte arrived.
    pub arrived: Instant,
    /// The same as a time of day.
    pub received_at: OffsetDateTime,
    /// Dropped once nothing of the callback is in memory any more: the caller's claim on a bounded budget.
    pub held: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("findings", &self.findings).finish_non_exhaustive()
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
        self.queue.try_send(Waiting { found, answer }).map_err(|_| NotRecorded::Full)?;
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
        let mut failures = 0;
        let mut next = Some(first);
        while let Some(waiting) = next {
            if waiting.found.arrived.elapsed() < PATIENCE && !waiting.answer.is_closed() {
                failures += waiting.found.findings.failures.len();
                batch.push(waiting);
            }
            next = if failures < BATCH_FAILURES { self.queue.try_recv().ok() } else { None };
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
        let written = timeout(BATCH_BOUND, self.write(batch)).await.unwrap_or(Err(StoreError::TimedOut));
        match written {
            Ok(recorded) => {
                self.tell(batch, &recorded);
                Ok(())
            }
            Err(error) => {
                self.connection = None;
                if self.failing.is_none_or(|said| said.elapsed() > REPEAT_ERROR) {
                    self.failing = Some(Instant::now());
                    error!(
                        callbacks = batch.len(),
                        cause = error.cause(),
                        "nothing can be recorded, Meta is asked to resend: {error}"
                    );
                }
                Err(NotRecorded::Failed)
            }
        }
    }

    fn tell(&mut self, batch: &[Waiting], recorded: &Recorded) {
        if self.failing.take().is_some() {
            info!("failures are recorded again");
        }
        if recorded.check_due {
            self.checks_due.notify_one();
        }
        for (id, waba_id) in &recorded.opened {
            warn!(incident.id = id, waba.id = %waba_id, "account locked: incident {id} opened for {waba_id}");
        }
        debug!(callbacks = batch.len(), new = recorded.new, "batch committed");
    }

    async fn write(&mut self, batch: &[Waiting]) -> Result<Recorded, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection.refreshed(&self.database).await?,
            None => self.database.connect_recorder().await?,
        };
        let items: Vec<Item<'_>> = batch
            .iter()
            .map(|waiting| &waiting.found)
            .flat_map(|found| found.findings.failures.iter().map(|failure| Item { failure, body: &found.body }))
            .collect();
        let mut unreadable: Vec<(OffsetDateTime, Unreadable)> = batch
            .iter()
            .map(|waiting| &waiting.found)
            .flat_map(|found| found.findings.unreadable.iter().map(|u| (found.received_at, u.clone())))
            .collect();

        let mut recorded = Recorded::default();
        if !items.is_empty() {
            record_or_refuse(&mut connection, &items, &mut recorded, &mut unreadable).await?;
        }
        if !unreadable.is_empty() {
            record::quarantine(&mut connection, &unreadable).await?;
            for (_, unreadable) in &unreadable {
                let waba_id = unreadable.waba_id.as_ref().map(tracing::field::display);
                warn!(
                    waba.id = waba_id,
                    "something in a callback could not be read and is quarantined: {}", unreadable.reason
                );
            }
        }
        self.connection = Some(connection);
        Ok(recorded)
    }
}

/// Records the items. Where the database refuses a value, halves them down to the culprit; that one is
/// tried once more alone and then joins the unreadable, with the callback it came in.
async fn record_or_refuse(
    connection: &mut RecorderConnection,
    items: &[Item<'_>],
    recorded: &mut Recorded,
    unreadable: &mut Vec<(OffsetDateTime, Unreadable)>,
) -> Result<(), StoreError> {
    let failures: Vec<&FailedDelivery> = items.iter().map(|item| item.failure).collect();
    let mut written = record::failures(connection, &failures).await;
    if let (Err(StoreError::BadData(_)), [_]) = (&written, items) {
        written = record::failures(connection, &failures).await;
    }
    match (written, items) {
        (Ok(more), _) => recorded.add(more),
        (Err(StoreError::BadData(error)), [item]) => {
            warn!(waba.id = %item.failure.waba_id, %error, "the database refuses a failed delivery");
            let unstorable = Unreadable {
                waba_id: Some(item.failure.waba_id.clone()),
                reason: "the database refuses a failed delivery of this callback".into(),
                bytes: item.body.clone(),
            };
            unreadable.push((item.failure.received_at, unstorable));
        }
        (Err(StoreError::BadData(_)), items) => {
            let (left, right) = items.split_at(items.len() / 2);
            Box::pin(record_or_refuse(connection, left, recorded, unreadable)).await?;
            Box::pin(record_or_refuse(connection, right, recorded, unreadable)).await?;
        }
        (Err(error), _) => return Err(error),
    }
    Ok(())
}
