//! Request bodies in memory: how large one may be, and all of them together.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::holders::Holders;

/// Meta sends up to 3 MB.
pub(super) const LIMIT: usize = 4 * 1024 * 1024;
/// Bodies in memory at once, in KiB: 256 MiB.
const ALL_KIB: usize = 256 * 1024;

/// The memory for bodies. When there is no more, the body that arrives for the longest time gives way:
/// nobody knows yet whether it is signed, and whoever stalls must not lock the others out.
#[derive(Debug)]
pub(super) struct Bodies {
    kib: Arc<Semaphore>,
    arriving: Holders,
}

/// Why a body is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// Over [`LIMIT`].
    TooLarge,
    /// Too slow, malformed, or the sender went away.
    Incomplete,
    /// There is no memory for it.
    Busy,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            kib: Arc::new(Semaphore::new(ALL_KIB)),
            arriving: Holders::default(),
        }
    }
}

impl Bodies {
    /// Reads a body into memory that is claimed as it arrives: what a header promises costs nothing.
    pub(super) async fn read(
        &self,
        mut body: Body,
    ) -> Result<(Bytes, OwnedSemaphorePermit), NotTaken> {
        // Most come in one piece, together with their header: nobody has to wait for them.
        let first = match body.frame().now_or_never() {
            Some(Some(frame)) => frame
                .map_err(|_| NotTaken::Incomplete)?
                .into_data()
                .unwrap_or_default(),
            Some(None) | None => Bytes::new(),
        };
        if body.is_end_stream() && first.len() <= LIMIT {
            let held = self.claim(first.len().div_ceil(1024)).await?;
            return Ok((first, held));
        }
        let arriving = self.arriving.join();
        arriving
            .unless_it_gives_way(self.arrive(first, body))
            .await
            .unwrap_or(Err(NotTaken::Busy))
    }

    async fn arrive(
        &self,
        first: Bytes,
        mut body: Body,
    ) -> Result<(Bytes, OwnedSemaphorePermit), NotTaken> {
        // Memory that nothing is written to is only a promise too.
        let expected = body
            .size_hint()
            .exact()
            .and_then(|rest| usize::try_from(rest).ok())
            .unwrap_or(0);
        let mut whole = BytesMut::with_capacity((first.len() + expected).min(LIMIT));
        let mut held = self.claim(0).await?;
        let mut data = first;
        loop {
            let length = whole.len() + data.len();
            if length > LIMIT {
                return Err(NotTaken::TooLarge);
            }
            held.merge(
                self.claim(length.div_ceil(1024) - held.num_permits())
                    .await?,
            );
            whole.extend_from_slice(&data);
            data = match body.frame().await {
                None => return Ok((whole.freeze(), held)),
                Some(frame) => frame
                    .map_err(|_| NotTaken::Incomplete)?
                    .into_data()
                    .unwrap_or_default(),
            };
        }
    }

    async fn claim(&self, kib: usize) -> Result<OwnedSemaphorePermit, NotTaken> {
        let kib = u32::try_from(kib).expect("a body has at most 4096");
        loop {
            match Arc::clone(&self.kib).try_acquire_many_owned(kib) {
                Ok(claimed) => return Ok(claimed),
                Err(_) if self.arriving.stalest_gives_way().await => {}
                Err(_) => return Err(NotTaken::Busy),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::{StreamExt, stream};

    use super::*;

    /// A body that stops before its end.
    fn stalled(bytes: usize) -> Body {
        let start = stream::once(async move { Ok::<_, io::Error>(Bytes::from(vec![b' '; bytes])) });
        Body::from_stream(start.chain(stream::pending()))
    }

    #[tokio::test]
    async fn stalled_bodies_give_way_one_by_one_to_those_that_come() {
        let bodies = Arc::new(Bodies::default());
        let mut stalls = Vec::new();
        for _ in 0..ALL_KIB * 1024 / LIMIT {
            let bodies = Arc::clone(&bodies);
            stalls.push(tokio::spawn(async move {
                bodies.read(stalled(LIMIT)).await.map(drop)
            }));
            tokio::task::yield_now().await;
        }
        while bodies.kib.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let (taken, _held) = bodies
            .read(Body::from(vec![b'x'; 3_000_000]))
            .await
            .unwrap();
        assert_eq!(taken.len(), 3_000_000);
        assert_eq!(stalls.remove(0).await.unwrap(), Err(NotTaken::Busy));
        assert!(stalls.iter().all(|stall| !stall.is_finished()));
        stalls.into_iter().for_each(|stall| stall.abort());
    }

    #[tokio::test]
    async fn a_body_is_refused_as_soon_as_it_is_too_large() {
        let bodies = Bodies::default();
        assert_eq!(
            bodies.read(stalled(LIMIT + 1)).await.map(drop),
            Err(NotTaken::TooLarge)
        );
        assert_eq!(bodies.kib.available_permits(), ALL_KIB);
    }
}
