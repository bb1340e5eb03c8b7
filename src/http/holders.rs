//! Who holds something scarce, and who of them gives way when there is no more of it.
//!
//! Connections and memory for bodies are handed out before anybody has proven to be Meta. Whoever comes
//! would wait for those who hold them and say nothing, so the stalest holder goes instead: to keep a
//! place among ten thousand, one has to get on faster than ten thousand others come. Who has sent a valid
//! signature goes last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Those who hold something, in the order in which they give way.
#[derive(Debug, Clone, Default)]
pub(super) struct Holders(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    turns: u64,
    by_rank: BTreeMap<Rank, Exit>,
}

/// Strangers go first, and of them the stalest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    trusted: bool,
    turn: u64,
}

/// How to make a holder go.
#[derive(Debug)]
struct Exit {
    since: Instant,
    asked: CancellationToken,
    gone: CancellationToken,
}

impl Held {
    fn insert(&mut self, trusted: bool, exit: Exit) -> Rank {
        self.turns += 1;
        let rank = Rank { trusted, turn: self.turns };
        self.by_rank.insert(rank, Exit { since: Instant::now(), ..exit });
        rank
    }
}

impl Holders {
    /// Adds one, the freshest of all.
    pub(super) fn join(&self) -> Holder {
        let (asked, gone) = (CancellationToken::new(), CancellationToken::new());
        let exit = Exit { since: Instant::now(), asked: asked.clone(), gone: gone.clone() };
        let rank = Mutex::new(lock(&self.0).insert(false, exit));
        Holder { holders: self.clone(), rank, asked, _gone: gone.drop_guard() }
    }

    /// Asks the stalest to go, and waits until it has gone. `false` where there is nobody to ask.
    pub(super) async fn stalest_gives_way(&self) -> bool {
        let stalest = lock(&self.0).by_rank.pop_first();
        let Some((_, Exit { asked, gone, .. })) = stalest else { return false };
        asked.cancel();
        gone.cancelled().await;
        true
    }

    /// Asks everybody to go who has not got on for this long.
    pub(super) fn stale_ones_go(&self, after: Duration) {
        let mut held = lock(&self.0);
        for (_, Exit { asked, .. }) in held.by_rank.extract_if(.., |_, exit| exit.since.elapsed() > after) {
            asked.cancel();
        }
    }
}

/// One who holds something, until dropped.
#[derive(Debug)]
pub(super) struct Holder {
    holders: Holders,
    rank: Mutex<Rank>,
    asked: CancellationToken,
    _gone: DropGuard,
}

impl Holder {
    /// It got on: now all others are staler. Too late for who has been asked to go.
    pub(super) fn got_on(&self) {
        self.rise(false);
    }

    /// It has proven to be no stranger, and goes after all who are.
    pub(super) fn is_trusted(&self) {
        self.rise(true);
    }

    fn rise(&self, trusted: bool) {
        let mut held = lock(&self.holders.0);
        let mut rank = lock(&self.rank);
        if let Some(exit) = held.by_rank.remove(&rank) {
            *rank = held.insert(rank.trusted || trusted, exit);
        }
    }

    /// Runs something to its end, unless this one is asked to go before.
    pub(super) async fn unless_it_gives_way<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.asked.run_until_cancelled(work).await
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        lock(&self.holders.0).by_rank.remove(&lock(&self.rank));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert_eq!(timeout(Duration::from_secs(1), stays).await.unwrap().unwrap(), None);
        assert!(!holders.stalest_gives_way().await, "nobody is left");
    }

    #[tokio::test]
    async fn only_those_who_do_not_get_on_go_in_time() {
        let holders = Holders::default();
        let (stays, goes) = (holders.join(), holders.join());
        sleep(Duration::from_millis(300)).await;
        stays.got_on();
        holders.stale_ones_go(Duration::from_millis(200));
        assert!(goes.asked.is_cancelled() && !stays.asked.is_cancelled());
    }

    #[tokio::test]
    async fn strangers_go_before_those_who_are_trusted() {
        let holders = Holders::default();
        let trusted = holders.join();
        trusted.is_trusted();
        let stranger = holders.join();
        let goes = tokio::spawn(async move { stranger.unless_it_gives_way(pending::<()>()).await });
        assert!(holders.stalest_gives_way().await);
        assert_eq!(goes.await.unwrap(), None);
        assert!(!trusted.asked.is_cancelled());
    }

    #[tokio::test]
    async fn who_leaves_is_not_asked() {
        let holders = Holders::default();
        drop(holders.join());
        assert!(!holders.stalest_gives_way().await);
    }
}
