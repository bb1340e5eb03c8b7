//! The processor: takes callbacks from the inbox, reads them, and records what they hold.
//!
//! One process at a time works, whichever has the lock. What fails is tried again: a batch is
//! divided until the callbacks that are in the way are alone, and those wait in the inbox with
//! their problem. Nothing leaves the inbox unprocessed.

mod position;
mod waiting;

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::position::Position;
use self::waiting::Waiting;
use crate::error_chain::error_chain;
use crate::inbox::Capturing;
use crate::intake::Intake;
use crate::meta::ids::WabaId;
use crate::meta::interest::Interest;
use crate::metrics::ProcessorMetrics;
use crate::progress::Progress;
use crate::store::process::{
    BATCH_CALLBACKS, InboxCallback, KeptCaptures, Processing, ProcessorConnection, ReadCallback,
    Written,
};
use crate::store::{Database, StoreError, bounded};
use crate::woken::Woken;

/// The pause between two looks at the inbox, unless this process appends.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The pause before the next try for the lock, while callbacks of this process wait.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Under load, callbacks gather for this long before a round: a large batch costs less per row.
const GATHER_INTERVAL: Duration = Duration::from_millis(10);
/// The sizes of a batch that mean load, and that a larger one would cost less.
const GATHER_CALLBACKS: Range<usize> = 16..256;
/// When this many callbacks fail alone in a round, the tables are at fault, not they.
const FAILURES_ALONE_LIMIT: usize = 8;
/// The pause of all when the tables are at fault.
const FAULT_INTERVAL: Duration = Duration::from_secs(5);
/// A failure that stays the same is logged again after this time.
const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Processes the inbox: [`run`](Self::run) it.
#[derive(Debug)]
pub struct Processor {
    database: Database,
    interest: Interest,
    kept: KeptCaptures,
    woken: Woken,
    progress: Progress,
    metrics: ProcessorMetrics,
    connection: Option<ProcessorConnection>,
    position: Position,
    waiting: Waiting,
    round: RoundState,
    /// The state since the last success.
    trouble: Trouble,
    logged: Option<Instant>,
}

/// What is remembered during a round.
#[derive(Debug, Default)]
struct RoundState {
    failed_alone: usize,
    has_advanced_sequences: bool,
    taken: usize,
    recorded: usize,
}

/// What has failed since the last success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// The database, or at the start perhaps: what has a problem may have none any more.
    Database,
    /// The tables. Only a callback that is recorded shows that they are mended.
    Tables,
}

/// Which callbacks to take.
#[derive(Debug)]
enum Source {
    /// The oldest ones.
    Oldest,
    /// These, which another account's transaction or a failure has set apart.
    These(Vec<i64>),
    /// Those that wait for an account.
    Waiting,
}

/// The end of a round.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    /// So many callbacks were taken.
    Done(usize),
    /// Another process holds the lock.
    Contended,
}

/// The reason why a round is given up.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error(transparent)]
    Failed(#[from] StoreError),
    #[error("many callbacks are refused one by one, so all wait: {0}")]
    TablesAtFault(String),
    #[error("another process took the lock")]
    Contended,
}

impl Processor {
    /// Creates a processor.
    #[must_use]
    pub fn new(
        database: Database,
        interest: Interest,
        capturing: Capturing,
        woken: Woken,
        progress: Progress,
        metrics: ProcessorMetrics,
    ) -> Self {
        let kept = match capturing {
            Capturing::Lockouts => KeptCaptures::WithFindings,
            Capturing::All => KeptCaptures::All,
            Capturing::Off => KeptCaptures::Quarantined,
        };
        Self {
            database,
            interest,
            kept,
            woken,
            progress,
            metrics,
            connection: None,
            position: Position::default(),
            waiting: Waiting::default(),
            round: RoundState::default(),
            trouble: Trouble::Database,
            logged: None,
        }
    }

    /// Works until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let appended = Arc::clone(&self.woken.appended);
        let mut own_wait = false;
        while !stop.is_cancelled() {
            let pause = match self.round().await {
                Ok(Round::Done(0)) => {
                    own_wait = false;
                    self.waiting.pause().min(POLL_INTERVAL)
                }
                Ok(Round::Done(callbacks)) => {
                    if GATHER_CALLBACKS.contains(&callbacks) {
                        sleep(GATHER_INTERVAL).await;
                    }
                    continue;
                }
                Ok(Round::Contended) if own_wait => LOCK_RETRY_INTERVAL,
                Ok(Round::Contended) => POLL_INTERVAL,
                Err(given_up) => {
                    self.fail(&given_up);
                    let pause = match given_up {
                        GivenUp::TablesAtFault(_) => FAULT_INTERVAL,
                        GivenUp::Failed(_) | GivenUp::Contended => POLL_INTERVAL,
                    };
                    stop.run_until_cancelled(sleep(pause)).await;
                    continue;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => {}
                () = appended.notified(), if !own_wait => own_wait = true,
            }
        }
    }

    /// Processes the callbacks whose accounts are free again, then a batch of the oldest.
    async fn round(&mut self) -> Result<Round, GivenUp> {
        self.round = RoundState::default();
        let processed = async {
            if self.waiting.is_due() {
                self.process(Source::Waiting, true).await?;
            }
            self.process(Source::Oldest, false).await
        };
        match processed.await {
            Ok(()) => {}
            Err(GivenUp::Contended) => {
                self.progress.note_processing();
                return Ok(Round::Contended);
            }
            Err(given_up) => return Err(given_up),
        }
        self.progress.note_processing();
        match self.trouble {
            Trouble::None => {}
            Trouble::Tables if self.round.recorded == 0 => {}
            Trouble::Tables | Trouble::Database => self.recover().await?,
        }
        Ok(Round::Done(self.round.taken))
    }

    /// Makes what failed due at once: the reason may be gone.
    async fn recover(&mut self) -> Result<(), StoreError> {
        if let Some(connection) = &mut self.connection {
            bounded(connection.make_due()).await?;
            self.position.reset();
            self.trouble = Trouble::None;
            if self.logged.take().is_some() {
                info!("callbacks are processed again");
            }
        }
        Ok(())
    }

    fn fail(&mut self, given_up: &GivenUp) {
        self.trouble = match given_up {
            GivenUp::TablesAtFault(_) => Trouble::Tables,
            GivenUp::Failed(_) | GivenUp::Contended => Trouble::Database,
        };
        if self
            .logged
            .is_none_or(|at| at.elapsed() > LOG_REPEAT_INTERVAL)
        {
            self.logged = Some(Instant::now());
            error!("callbacks wait in the inbox: {}", error_chain(given_up));
        }
    }

    /// Processes some callbacks. Divides them where the database refuses, or where something is in
    /// the way, so that only the culprits wait.
    async fn process(&mut self, source: Source, checks_rows: bool) -> Result<(), GivenUp> {
        let mut taken = Vec::new();
        let error = match self.transact(source, checks_rows, &mut taken).await {
            Ok(()) => return Ok(()),
            Err(GivenUp::Failed(error @ (StoreError::Busy(_) | StoreError::Refused(_)))) => error,
            Err(given_up) => return Err(given_up),
        };
        self.metrics.count_divided();
        debug!(
            callbacks = taken.len(),
            "a batch is tried again: {}",
            error_chain(&error)
        );
        match (&error, &taken[..]) {
            (_, []) => return Err(error.into()),
            (StoreError::Busy(_), _) if !checks_rows => {
                return Box::pin(self.process(Source::These(taken), true)).await;
            }
            (StoreError::Busy(_), [id]) => {
                self.waiting.add(None, *id);
                self.round.failed_alone += 1;
                if self.round.failed_alone >= FAILURES_ALONE_LIMIT {
                    // It is a whole table that somebody holds.
                    return Err(error.into());
                }
            }
            (_, _) if error.is_duplicate() && !self.round.has_advanced_sequences => {
                self.round.has_advanced_sequences = true;
                self.database.advance_sequences().await;
                return Box::pin(self.process(Source::These(taken), checks_rows)).await;
            }
            (_, [id]) => return self.note_problem(*id, &error.reason()).await,
            (_, ids) => {
                let (older, newer) = ids.split_at(ids.len() / 2);
                for half in [older, newer] {
                    Box::pin(self.process(Source::These(half.to_vec()), checks_rows)).await?;
                }
            }
        }
        Ok(())
    }

    async fn note_problem(&mut self, id: i64, problem: &str) -> Result<(), GivenUp> {
        warn!("callback {id} cannot be processed and stays in the inbox: {problem}");
        let connection = self.connection.as_mut().ok_or(StoreError::TimedOut)?;
        bounded(connection.note_problem(id, problem)).await?;
        self.round.failed_alone += 1;
        if self.round.failed_alone >= FAILURES_ALONE_LIMIT {
            return Err(GivenUp::TablesAtFault(problem.to_owned()));
        }
        Ok(())
    }

    /// Takes some callbacks and records what they hold, in one transaction. On any doubt the
    /// connection is closed, not used again.
    async fn transact(
        &mut self,
        source: Source,
        checks_rows: bool,
        taken: &mut Vec<i64>,
    ) -> Result<(), GivenUp> {
        let open = self.connection.take();
        let mut connection = match open {
            Some(connection) => connection,
            None => bounded(ProcessorConnection::open(&self.database)).await?,
        };
        let transacted = bounded(async {
            let Some(processing) = connection.begin().await? else {
                return Ok(None);
            };
            self.work(processing, source, checks_rows, taken)
                .await
                .map(Some)
        });
        match transacted.await {
            Ok(done) => {
                self.connection = Some(connection);
                self.settle(done.ok_or(GivenUp::Contended)?).await
            }
            Err(error) => {
                if matches!(error, StoreError::Busy(_) | StoreError::Refused(_)) {
                    self.connection = Some(connection);
                }
                Err(error.into())
            }
        }
    }

    async fn work(
        &mut self,
        mut processing: Processing<'_>,
        source: Source,
        checks_rows: bool,
        taken: &mut Vec<i64>,
    ) -> Result<Done, StoreError> {
        let started = Instant::now();
        let callbacks = self.take(&mut processing, source).await?;
        taken.extend(callbacks.iter().map(|callback| callback.capture_id));
        if callbacks.is_empty() {
            processing.commit().await?;
            return Ok(Done::default());
        }
        let (read, unreadable) = read(callbacks, &self.interest);
        let accounts: BTreeSet<WabaId> = read.iter().flat_map(accounts_of).cloned().collect();
        let held = processing.lock_accounts(&accounts, checks_rows).await?;
        let is_held = |callback: &ReadCallback| accounts_of(callback).any(|id| held.contains(id));
        let (waiting, free): (Vec<_>, Vec<_>) = read.into_iter().partition(is_held);
        let written = match free.is_empty() {
            true => Written::default(),
            false => processing.write(&free, self.kept).await?,
        };
        processing.commit().await?;
        for callback in waiting {
            let account = accounts_of(&callback).find(|id| held.contains(id)).cloned();
            self.waiting.add(account, callback.capture_id);
        }
        if written.check_due {
            self.woken.checks_due.notify_one();
        }
        if written.changed {
            self.woken.changed.notify_one();
        }
        if !free.is_empty() {
            let waited = free.iter().map(|callback| callback.waited);
            self.metrics
                .count_batch(&written, waited, started.elapsed());
        }
        Ok(Done {
            taken: taken.len(),
            recorded: free.len(),
            unreadable,
        })
    }

    async fn take(
        &mut self,
        processing: &mut Processing<'_>,
        source: Source,
    ) -> Result<Vec<InboxCallback>, StoreError> {
        match source {
            Source::Oldest => {
                let (start, waiting) = (self.position.start(), self.waiting.ids());
                let callbacks = processing.take_after(start, &waiting).await?;
                let last = callbacks.last().map(|callback| callback.capture_id);
                self.position.advance(last);
                Ok(callbacks)
            }
            Source::These(ids) => processing.take(&ids).await,
            Source::Waiting => {
                let accounts = self.waiting.accounts();
                let held = processing.lock_accounts(&accounts, true).await?;
                let ids = self.waiting.release(&held, BATCH_CALLBACKS);
                processing.take(&ids).await
            }
        }
    }

    async fn settle(&mut self, done: Done) -> Result<(), GivenUp> {
        self.round.taken += done.taken;
        self.round.recorded += done.recorded;
        for id in done.unreadable {
            self.note_problem(id, "the reader panicked").await?;
        }
        Ok(())
    }
}

/// What a transaction did.
#[derive(Default)]
struct Done {
    taken: usize,
    recorded: usize,
    /// The callbacks whose reading panicked.
    unreadable: Vec<i64>,
}

/// Reads callbacks. A panic is the problem of one callback.
fn read(callbacks: Vec<InboxCallback>, interest: &Interest) -> (Vec<ReadCallback>, Vec<i64>) {
    let (mut read, mut unreadable) = (Vec::with_capacity(callbacks.len()), Vec::new());
    for callback in callbacks {
        let InboxCallback {
            capture_id,
            body,
            received_at,
            waited,
        } = callback;
        let body = Bytes::from(body);
        match catch_unwind(AssertUnwindSafe(|| {
            Intake::parse(&body, interest, received_at)
        })) {
            Ok(intake) => read.push(ReadCallback {
                capture_id,
                received_at,
                waited,
                intake,
            }),
            Err(_) => unreadable.push(capture_id),
        }
    }
    (read, unreadable)
}

fn accounts_of(callback: &ReadCallback) -> impl Iterator<Item = &WabaId> {
    let intake = &callback.intake;
    let failures = intake.failures.iter().map(|failure| &failure.waba_id);
    failures
        .chain(intake.account_errors.iter().map(|error| &error.waba_id))
        .chain(intake.events.iter().map(|event| &event.waba_id))
}
