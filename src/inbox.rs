//! The inbox: appends callbacks, so that Meta gets its 200 once they are on disk.
//!
//! Group commit: everything that arrives while one append commits is appended by the next. Handlers
//! hand over their callback and wait. A task of its own, which nobody cancels, appends all that
//! waits and then answers every waiter. Without load a batch is one callback; under load it grows by
//! itself, and no timer delays anything. Nothing here reads a callback.

use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, error, info};

use crate::error_chain::error_chain;
use crate::metrics::InboxMetrics;
use crate::progress::Progress;
use crate::store::inbox::InboxConnection;
pub use crate::store::inbox::NewCallback;
use crate::store::{Database, StoreError};
use crate::woken::Woken;

/// The longest time that a callback waits for its commit, from when its last byte arrived.
const PATIENCE: Duration = Duration::from_millis(2500);
/// The longest time that an append may take, connecting included. After that its connection is
/// closed.
const APPEND_TIMEOUT: Duration = Duration::from_millis(2200);
/// A batch takes no further callback once it has this many, or bodies of this many bytes.
const BATCH_CALLBACKS: usize = 5000;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Callbacks that may wait. The memory of their bodies is limited by whoever hands them over.
const QUEUE: usize = 16_384;
/// While the database is away, that is logged at once, and then this often.
const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(10);
/// After a failure, an append is tried this often, also without a callback.
const TRIAL_INTERVAL: Duration = Duration::from_secs(1);

/// Which callbacks are kept byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Capturing {
    /// Those in which a lockout was found, or something that could not be read.
    Lockouts,
    /// All. Then every callback waits for the database.
    All,
    /// None, once they are processed.
    Off,
}

/// The callback is not stored, and Meta has to send it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotStored {
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

/// Hands callbacks to the inbox's task.
#[derive(Debug, Clone)]
pub struct Inbox {
    queue: mpsc::Sender<Waiting>,
}

/// The inbox's task: [`run`](Self::run) it.
#[derive(Debug)]
pub struct InboxTask {
    queue: mpsc::Receiver<Waiting>,
    appender: Appender,
}

#[derive(Debug)]
struct Waiting {
    callback: NewCallback,
    arrived: Instant,
    answer: oneshot::Sender<Result<(), NotStored>>,
    /// The callback's share of the memory for bodies, given back once it is stored.
    _held: OwnedSemaphorePermit,
}

/// Creates the two ends. Wakes the processor after each append.
#[must_use]
pub fn inbox(
    database: Database,
    woken: Woken,
    progress: Progress,
    metrics: InboxMetrics,
) -> (Inbox, InboxTask) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let appender = Appender {
        database,
        connection: None,
        woken,
        progress,
        metrics,
        logged: None,
    };
    let task = InboxTask {
        queue: receiver,
        appender,
    };
    (Inbox { queue: sender }, task)
}

impl Inbox {
    /// Returns once a callback is committed. Its last byte came when it `arrived`; what it takes of
    /// the memory for bodies is `held` until it is stored.
    ///
    /// # Errors
    /// [`NotStored`]: it may not be.
    pub async fn append(
        &self,
        callback: NewCallback,
        arrived: Instant,
        held: OwnedSemaphorePermit,
    ) -> Result<(), NotStored> {
        self.submit(callback, arrived, held)?.committed().await
    }

    /// The same in two steps: what is submitted earlier is appended earlier.
    ///
    /// # Errors
    /// [`NotStored`]: nothing was submitted.
    pub fn submit(
        &self,
        callback: NewCallback,
        arrived: Instant,
        held: OwnedSemaphorePermit,
    ) -> Result<Submitted, NotStored> {
        let deadline = arrived + PATIENCE;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            callback,
            arrived,
            answer,
            _held: held,
        };
        self.queue.try_send(waiting).map_err(|error| match error {
            TrySendError::Full(_) => NotStored::Full,
            TrySendError::Closed(_) => NotStored::Failed,
        })?;
        Ok(Submitted { answered, deadline })
    }
}

/// A callback on its way into the database.
#[derive(Debug)]
pub struct Submitted {
    answered: oneshot::Receiver<Result<(), NotStored>>,
    deadline: Instant,
}

impl Submitted {
    /// Returns once it is committed.
    ///
    /// # Errors
    /// [`NotStored`]: it may not be.
    pub async fn committed(self) -> Result<(), NotStored> {
        match timeout_at(self.deadline, self.answered).await {
            Ok(answer) => answer.unwrap_or(Err(NotStored::Failed)),
            Err(_) => Err(NotStored::Late),
        }
    }
}

impl InboxTask {
    /// Appends batches until every [`Inbox`] is gone and nothing waits.
    pub async fn run(mut self) {
        loop {
            let next_trial = self.appender.next_trial();
            let first = tokio::select! {
                first = self.queue.recv() => first,
                () = sleep_until(next_trial.unwrap_or_else(Instant::now)), if next_trial.is_some() => {
                    self.appender.try_append().await;
                    continue;
                }
            };
            let Some(first) = first else { return };
            let batch = self.batch(first);
            if batch.is_empty() {
                continue;
            }
            let stored = self.appender.append(&batch).await;
            for waiting in batch {
                // Who no longer waits gets the callback again, and the repetition changes nothing.
                let _ = waiting.answer.send(stored);
            }
        }
    }

    /// All that waits, up to a size, except those whose time is over.
    fn batch(&mut self, first: Waiting) -> Vec<Waiting> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(waiting) = next {
            if waiting.arrived.elapsed() < PATIENCE && !waiting.answer.is_closed() {
                bytes += waiting.callback.body.len();
                batch.push(waiting);
            }
            let has_room = batch.len() < BATCH_CALLBACKS && bytes < BATCH_BYTES;
            next = if has_room {
                self.queue.try_recv().ok()
            } else {
                None
            };
        }
        batch
    }
}

#[derive(Debug)]
struct Appender {
    database: Database,
    connection: Option<InboxConnection>,
    woken: Woken,
    progress: Progress,
    metrics: InboxMetrics,
    /// When it was last logged that nothing can be stored.
    logged: Option<Instant>,
}

impl Appender {
    async fn append(&mut self, batch: &[Waiting]) -> Result<(), NotStored> {
        let started = Instant::now();
        let callbacks: Vec<&NewCallback> = batch.iter().map(|waiting| &waiting.callback).collect();
        let appended = self
            .with_connection(async |connection| connection.append(&callbacks).await)
            .await;
        if let Err(error) = appended {
            self.metrics.count_failed();
            self.log_failure(batch.len(), &error);
            return Err(NotStored::Failed);
        }
        self.metrics.count_committed(batch.len(), started.elapsed());
        debug!(callbacks = batch.len(), "batch committed");
        if callbacks.iter().any(|callback| callback.is_of_interest) {
            self.woken.appended.notify_one();
        }
        Ok(())
    }

    /// The time of the next trial, if appends fail.
    fn next_trial(&self) -> Option<Instant> {
        self.progress
            .append_failed_at()
            .map(|at| at + TRIAL_INTERVAL)
    }

    /// Tries an append that leaves nothing behind.
    async fn try_append(&mut self) {
        let tried = self
            .with_connection(async |connection| connection.try_append().await)
            .await;
        if let Err(error) = tried {
            self.log_failure(0, &error);
        }
    }

    /// Works with the connection. On any doubt it is closed, not used again: nobody knows what state
    /// a transaction is in whose answer did not come.
    async fn with_connection(
        &mut self,
        work: impl AsyncFnOnce(&mut InboxConnection) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let open = self.connection.take();
        let worked = timeout(APPEND_TIMEOUT, async {
            let mut connection = match open {
                Some(connection) => connection.refreshed(&self.database).await?,
                None => InboxConnection::open(&self.database).await?,
            };
            work(&mut connection).await?;
            Ok(connection)
        });
        let worked = worked.await.unwrap_or(Err(StoreError::TimedOut));
        match worked {
            Ok(connection) => {
                self.connection = Some(connection);
                self.progress.set_appends(true);
                if self.logged.take().is_some() {
                    info!("callbacks are stored again");
                }
                Ok(())
            }
            Err(error) => {
                self.progress.set_appends(false);
                if error.is_duplicate() {
                    // The sequence of the ids was set back.
                    self.database.advance_sequences().await;
                }
                Err(error)
            }
        }
    }

    fn log_failure(&mut self, callbacks: usize, error: &StoreError) {
        if self
            .logged
            .is_none_or(|at| at.elapsed() > LOG_REPEAT_INTERVAL)
        {
            self.logged = Some(Instant::now());
            let error = error_chain(error);
            error!(
                callbacks,
                "nothing can be stored, Meta is asked to resend: {error}"
            );
        }
    }
}
