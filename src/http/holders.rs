//! Who holds something scarce, and who of them gives way when there is no more of it.
//!
//! Connections and memory for bodies are handed out before anybody has proven to be Meta. Whoever comes
//! would wait for those who hold them and say nothing, so the stalest holder goes instead: to keep a
//! place among ten thousand, one has to get on faster than ten thousand others come. Who has sent a valid
//! signature goes last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Those who hold something, in the order in which they give way.
#[derive(Debug, Clone)]
pub(super) struct Holders {
    since: Instant,
    held: Arc<Mutex<Held>>,
}

/// Filed by the rank that each had when it was last looked at. Whoever gets on is not filed anew before its
/// turn would have come: getting on is for every request, and giving way is rare.
#[derive(Debug, Default)]
struct Held {
    joined: u64,
    by_rank: BTreeMap<(Rank, u64), Arc<Place>>,
}

/// Strangers go first, and of them the stalest: nanoseconds since the beginning, and a bit for trust.
type Rank = u64;
const TRUSTED: Rank = 1 << 63;

#[derive(Debug)]
struct Place {
    rank: AtomicU64,
    /// Changes only while all are locked.
    filed: AtomicU64,
    asked: CancellationToken,
    gone: CancellationToken,
}

impl Held {
    fn file(&mut self, number: u64, place: Arc<Place>) {
        let rank = place.rank.load(Ordering::Relaxed);
        place.filed.store(rank, Ordering::Relaxed);
        self.by_rank.insert((rank, number), place);
    }

    fn take_stalest(&mut self) -> Option<Arc<Place>> {
        while let Some(((filed, number), place)) = self.by_rank.pop_first() {
            if place.rank.load(Ordering::Relaxed) == filed {
                return Some(place);
            }
            self.file(number, place);
        }
        None
    }
}

impl Default for Holders {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            held: Arc::default(),
        }
    }
}

impl Holders {
    /// Adds one, the freshest of all strangers.
    pub(super) fn join(&self) -> Holder {
        let (asked, gone) = (CancellationToken::new(), CancellationToken::new());
        let (rank, filed) = (AtomicU64::new(self.now()), AtomicU64::new(0));
        let place = Arc::new(Place {
            rank,
            filed,
            asked,
            gone: gone.clone(),
        });
        let mut held = self.lock();
        held.joined += 1;
        let number = held.joined;
        held.file(number, Arc::clone(&place));
        drop(held);
        Holder {
            holders: self.clone(),
            place,
            number,
            _gone: gone.drop_guard(),
        }
    }

    /// Asks the stalest to go, and waits until it has gone. `false` where there is nobody to ask.
    pub(super) async fn stalest_gives_way(&self) -> bool {
        let Some(stalest) = self.lock().take_stalest() else {
            return false;
        };
        stalest.asked.cancel();
        stalest.gone.cancelled().await;
        true
    }

    /// Asks everybody to go who has not got on for this long.
    pub(super) fn stale_ones_go(&self, after: Duration) {
        let limit = self.now().saturating_sub(nanoseconds(after));
        self.lock().by_rank.retain(|_, place| {
            let stays = place.rank.load(Ordering::Relaxed) & !TRUSTED >= limit;
            if !stays {
                place.asked.cancel();
            }
            stays
        });
    }

    fn now(&self) -> Rank {
        nanoseconds(self.since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Enough of them for 292 years.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX) & !TRUSTED
}

/// One who holds something, until dropped.
#[derive(Debug)]
pub(super) struct Holder {
    holders: Holders,
    place: Arc<Place>,
    number: u64,
    _gone: DropGuard,
}

impl Holder {
    /// It got on: now all others are staler. Too late for who has been asked to go.
    pub(super) fn got_on(&self) {
        let trusted = self.place.rank.load(Ordering::Relaxed) & TRUSTED;
        self.place
            .rank
            .store(self.holders.now() | trusted, Ordering::Relaxed);
    }

    /// It has proven to be no stranger, and goes after all who are.
    pub(super) fn trust(&self) {
        self.place.rank.fetch_or(TRUSTED, Ordering::Relaxed);
    }

    /// Runs something to its end, unless this one is asked to go before.
    pub(super) async fn unless_it_gives_way<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.place.asked.run_until_cancelled(work).await
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut held = self.holders.lock();
        held.by_rank
            .remove(&(self.place.filed.load(Ordering::Relaxed), self.number));
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn who_got_on_longest_ago_gives_way_and_is_gone_before_the_next_comes() {
        let holders = Holders::default();
        let (first, second) = (holders.join(), holders.join());
        first.got_on();
        let stays = tokio::spawn(async move { first.unless_it_gives_way(pending::<()>()).await });
        let gone = Arc::new(Mutex::new(false));
        let told = Arc::clone(&gone);
        tokio::spawn(async move {
            second.unless_it_gives_way(pending::<()>()).await;
            second.got_on();
            sleep(Duration::from_millis(20)).await;
            *told.lock().unwrap() = true;
        });
        assert!(holders.stalest_gives_way().await);
        assert!(*gone.lock().unwrap());
        assert!(!stays.is_finished());
        assert!(holders.stalest_gives_way().await);
        assert_eq!(
            timeout(Duration::from_secs(1), stays)
                .await
                .unwrap()
                .unwrap(),
            None
        );
        assert!(!holders.stalest_gives_way().await, "nobody is left");
    }

    #[tokio::test]
    async fn only_those_who_do_not_get_on_go_in_time() {
        let holders = Holders::default();
        let (stays, goes) = (holders.join(), holders.join());
        sleep(Duration::from_millis(300)).await;
        stays.got_on();
        holders.stale_ones_go(Duration::from_millis(200));
        assert!(goes.place.asked.is_cancelled() && !stays.place.asked.is_cancelled());
    }

    #[tokio::test]
    async fn strangers_go_before_those_who_are_trusted() {
        let holders = Holders::default();
        let trusted = holders.join();
        trusted.trust();
        let stranger = holders.join();
        let goes = tokio::spawn(async move { stranger.unless_it_gives_way(pending::<()>()).await });
        assert!(holders.stalest_gives_way().await);
        assert_eq!(goes.await.unwrap(), None);
        assert!(!trusted.place.asked.is_cancelled());
    }

    #[tokio::test]
    async fn who_leaves_is_not_asked() {
        let holders = Holders::default();
        drop(holders.join());
        assert!(!holders.stalest_gives_way().await);
    }
}
