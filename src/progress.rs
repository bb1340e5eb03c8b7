//! Progress: whether this process can store callbacks, and whether they are processed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::error_chain::error_chain;
use crate::store::{self, Pool, Readiness};

/// A processor that has not got on for this long is not ready.
const PROCESSING_TIMEOUT: Duration = Duration::from_secs(60);

/// What the inbox and the processor of a process have last achieved. Clones share it.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When an append failed, if none has worked since.
    append_failed_at: Option<Instant>,
    /// When the processor last found nothing in its way.
    processed_at: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            append_failed_at: None,
            processed_at: Instant::now(),
        })))
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether an append worked.
    pub(crate) fn set_appends(&self, works: bool) {
        self.lock().append_failed_at = (!works).then(Instant::now);
    }

    /// When an append failed, if none has worked since.
    pub(crate) fn append_failed_at(&self) -> Option<Instant> {
        self.lock().append_failed_at
    }

    /// Notes that the processor got on, or that another process is at it.
    pub(crate) fn note_processing(&self) {
        self.lock().processed_at = Instant::now();
    }

    /// Returns the reason why lockouts cannot be recorded now, if there is one.
    pub(crate) async fn find_obstacle(&self, db: &Pool, limit: Duration) -> Option<&'static str> {
        match timeout(limit, store::readiness(db)).await {
            Ok(Ok(Readiness::Ready)) => {}
            Ok(Ok(Readiness::ReadOnly)) => return Some("the database takes no writes"),
            Ok(Ok(Readiness::Unmigrated)) => {
                return Some("the database lacks this version's tables");
            }
            Ok(Err(error)) => {
                debug!("not ready: {}", error_chain(&error));
                return Some("the database cannot be reached");
            }
            Err(_) => return Some("the database does not answer"),
        }
        if self.append_failed_at().is_some() {
            return Some("the last append to the inbox failed");
        }
        if !self.is_processing() {
            return Some("the inbox has not been processed for a minute");
        }
        None
    }

    /// Returns whether the processor has got on within the last minute.
    pub(crate) fn is_processing(&self) -> bool {
        self.lock().processed_at.elapsed() < PROCESSING_TIMEOUT
    }
}
