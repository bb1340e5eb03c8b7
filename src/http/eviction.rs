//! Evicts the least recently active holder of a scarce resource when its limit is reached.
//!
//! Connections and memory for bodies are handed out before the caller has proven to be Meta. A
//! newcomer must not wait for holders that do nothing, so the stalest holder is evicted: of
//! ten thousand holders, one stays if it is active at least once per ten thousand newcomers.
//! Holders that sent a valid signature are evicted last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The holders of one resource, in the order of their eviction.
#[derive(Debug, Clone)]
pub(super) struct EvictionQueue {
    started: Instant,
    entries: Arc<Mutex<Entries>>,
}

/// Entries, sorted by the rank that each had when it was last filed.
///
/// Activity changes an entry's rank, but files it anew only when its turn for eviction would have
/// come: every request is activity, but evictions are rare.
#[derive(Debug, Default)]
struct Entries {
    registered: u64,
    by_rank: BTreeMap<(Rank, u64), Arc<Entry>>,
}

/// Nanoseconds from the queue's start to the last activity, and a bit for trust. The lowest is
/// evicted first.
type Rank = u64;
const TRUSTED: Rank = 1 << 63;

#[derive(Debug)]
struct Entry {
    rank: AtomicU64,
    /// The rank that the entry is filed under. Changes only under the queue's lock.
    filed_rank: AtomicU64,
    evicted: CancellationToken,
    gone: CancellationToken,
}

impl Entries {
    fn file(&mut self, number: u64, entry: Arc<Entry>) {
        let rank = entry.rank.load(Ordering::Relaxed);
        entry.filed_rank.store(rank, Ordering::Relaxed);
        self.by_rank.insert((rank, number), entry);
    }

    fn remove_stalest(&mut self) -> Option<Arc<Entry>> {
        while let Some(((filed_rank, number), entry)) = self.by_rank.pop_first() {
            if entry.rank.load(Ordering::Relaxed) == filed_rank {
                return Some(entry);
            }
            self.file(number, entry);
        }
        None
    }
}

impl Default for EvictionQueue {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            entries: Arc::default(),
        }
    }
}

impl EvictionQueue {
    /// Adds a holder, the most recently active of all that are not trusted.
    pub(super) fn register(&self) -> Evictable {
        let gone = CancellationToken::new();
        let entry = Arc::new(Entry {
            rank: AtomicU64::new(self.now()),
            filed_rank: AtomicU64::new(0),
            evicted: CancellationToken::new(),
            gone: gone.clone(),
        });
        let mut entries = self.lock();
        entries.registered += 1;
        let number = entries.registered;
        entries.file(number, Arc::clone(&entry));
        drop(entries);
        Evictable {
            queue: self.clone(),
            entry,
            number,
            _gone: gone.drop_guard(),
        }
    }

    /// Evicts the stalest holder and waits until it has gone. `false` if there is none.
    pub(super) async fn evict_stalest(&self) -> bool {
        let Some(stalest) = self.lock().remove_stalest() else {
            return false;
        };
        stalest.evicted.cancel();
        stalest.gone.cancelled().await;
        true
    }

    /// Evicts every holder that was not active for this long.
    pub(super) fn evict_inactive(&self, after: Duration) {
        let limit = self.now().saturating_sub(nanoseconds(after));
        self.lock().by_rank.retain(|_, entry| {
            let stays = entry.rank.load(Ordering::Relaxed) & !TRUSTED >= limit;
            if !stays {
                entry.evicted.cancel();
            }
            stays
        });
    }

    fn now(&self) -> Rank {
        nanoseconds(self.started.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The nanoseconds of a duration, up to 292 years.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX) & !TRUSTED
}

/// A holder of the resource, until dropped.
#[derive(Debug)]
pub(super) struct Evictable {
    queue: EvictionQueue,
    entry: Arc<Entry>,
    number: u64,
    _gone: DropGuard,
}

impl Evictable {
    /// Notes activity: all other holders are staler now. Does not undo an eviction.
    pub(super) fn touch(&self) {
        let trusted = self.entry.rank.load(Ordering::Relaxed) & TRUSTED;
        let rank = self.queue.now() | trusted;
        self.entry.rank.store(rank, Ordering::Relaxed);
    }

    /// Marks the holder as trusted: it is evicted after all that are not.
    pub(super) fn trust(&self) {
        self.entry.rank.fetch_or(TRUSTED, Ordering::Relaxed);
    }

    /// Runs `work` to its end, or to the holder's eviction (`None`).
    pub(super) async fn run_until_evicted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.entry.evicted.run_until_cancelled(work).await
    }
}

impl Drop for Evictable {
    fn drop(&mut self) {
        // The rank is read under the lock: an eviction may just be filing the entry anew.
        let mut entries = self.queue.lock();
        let filed_rank = self.entry.filed_rank.load(Ordering::Relaxed);
        entries.by_rank.remove(&(filed_rank, self.number));
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn the_stalest_is_gone_before_its_place_is_free() {
        let queue = EvictionQueue::default();
        let (active, stale) = (queue.register(), queue.register());
        active.touch();
        let stays = tokio::spawn(async move { active.run_until_evicted(pending::<()>()).await });
        let gone = Arc::new(Mutex::new(false));
        let set_gone = Arc::clone(&gone);
        tokio::spawn(async move {
            stale.run_until_evicted(pending::<()>()).await;
            stale.touch();
            sleep(Duration::from_millis(20)).await;
            *set_gone.lock().unwrap() = true;
        });
        assert!(queue.evict_stalest().await);
        assert!(*gone.lock().unwrap());
        assert!(!stays.is_finished());
        assert!(queue.evict_stalest().await);
        let evicted = timeout(Duration::from_secs(1), stays).await.unwrap();
        assert_eq!(evicted.unwrap(), None);
        assert!(!queue.evict_stalest().await, "nobody is left");
    }

    #[tokio::test]
    async fn only_inactive_holders_are_evicted_in_time() {
        let queue = EvictionQueue::default();
        let (active, stale) = (queue.register(), queue.register());
        sleep(Duration::from_millis(300)).await;
        active.touch();
        queue.evict_inactive(Duration::from_millis(200));
        assert!(stale.entry.evicted.is_cancelled());
        assert!(!active.entry.evicted.is_cancelled());
    }

    #[tokio::test]
    async fn trusted_holders_are_evicted_last() {
        let queue = EvictionQueue::default();
        let trusted = queue.register();
        trusted.trust();
        let stranger = queue.register();
        let evicted =
            tokio::spawn(async move { stranger.run_until_evicted(pending::<()>()).await });
        assert!(queue.evict_stalest().await);
        assert_eq!(evicted.await.unwrap(), None);
        assert!(!trusted.entry.evicted.is_cancelled());
    }

    #[tokio::test]
    async fn a_dropped_holder_is_not_evicted() {
        let queue = EvictionQueue::default();
        drop(queue.register());
        assert!(!queue.evict_stalest().await);
    }

    /// A holder that leaves while an eviction files it anew must not stay behind as an entry
    /// without a holder: evicting that would free nothing.
    #[test]
    fn no_entry_outlives_its_holder() {
        let queue = EvictionQueue::default();
        let holder = queue.register();
        holder.touch();
        let mut entries = queue.lock();
        let leaving = std::thread::spawn(move || drop(holder));
        // Long enough to reach the lock. On a slower machine the test finds less, and still passes.
        std::thread::sleep(Duration::from_millis(50));
        let ((_, number), entry) = entries.by_rank.pop_first().unwrap();
        entries.file(number, entry);
        drop(entries);
        leaving.join().unwrap();
        assert!(queue.lock().by_rank.is_empty());
    }
}
