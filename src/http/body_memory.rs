//! The memory for request bodies: a limit for one body, and one for all together.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::eviction::EvictionQueue;

/// The largest body. Meta sends up to 3 MB.
pub(super) const BODY_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// All bodies in memory at once, in KiB: 256 MiB.
const MEMORY_LIMIT_KIB: usize = 256 * 1024;

/// The memory for bodies. When it is used up, the least recently active body that still arrives is
/// evicted: its signature is not verified yet, and a stalled sender must not lock the others out.
#[derive(Debug)]
pub(super) struct BodyMemory {
    kib: Arc<Semaphore>,
    arriving: EvictionQueue,
}

/// A whole body, and its share of the memory.
type HeldBody = (Bytes, OwnedSemaphorePermit);

/// The reason for which a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// The body has more than [`BODY_LIMIT_BYTES`].
    TooLarge,
    /// The body was too slow or malformed, or the sender disconnected.
    Incomplete,
    /// There is no memory for it.
    Busy,
}

impl Default for BodyMemory {
    fn default() -> Self {
        Self {
            kib: Arc::new(Semaphore::new(MEMORY_LIMIT_KIB)),
            arriving: EvictionQueue::default(),
        }
    }
}

impl BodyMemory {
    /// Reads a body. Memory is claimed as the bytes arrive, so a large `Content-Length` alone costs
    /// nothing.
    pub(super) async fn read(&self, mut body: Body) -> Result<HeldBody, BodyError> {
        // Most bodies arrive in one piece, together with their header.
        let first = match body.frame().now_or_never() {
            Some(Some(frame)) => frame
                .map_err(|_| BodyError::Incomplete)?
                .into_data()
                .unwrap_or_default(),
            Some(None) | None => Bytes::new(),
        };
        if body.is_end_stream() && first.len() <= BODY_LIMIT_BYTES {
            let held = self.claim(first.len().div_ceil(1024)).await?;
            return Ok((first, held));
        }
        let arriving = self.arriving.register();
        let read = arriving.run_until_evicted(self.read_rest(first, body));
        read.await.unwrap_or(Err(BodyError::Busy))
    }

    async fn read_rest(&self, first: Bytes, mut body: Body) -> Result<HeldBody, BodyError> {
        // Reserving capacity is cheap: pages that are never written take no memory.
        let rest = body.size_hint().exact();
        let rest = rest.and_then(|rest| usize::try_from(rest).ok());
        let capacity = first.len() + rest.unwrap_or(0);
        let mut whole = BytesMut::with_capacity(capacity.min(BODY_LIMIT_BYTES));
        let mut held = self.claim(0).await?;
        let mut data = first;
        loop {
            let length = whole.len() + data.len();
            if length > BODY_LIMIT_BYTES {
                return Err(BodyError::TooLarge);
            }
            let more = self.claim(length.div_ceil(1024) - held.num_permits());
            held.merge(more.await?);
            whole.extend_from_slice(&data);
            data = match body.frame().await {
                None => return Ok((whole.freeze(), held)),
                Some(frame) => frame
                    .map_err(|_| BodyError::Incomplete)?
                    .into_data()
                    .unwrap_or_default(),
            };
        }
    }

    async fn claim(&self, kib: usize) -> Result<OwnedSemaphorePermit, BodyError> {
        let kib = u32::try_from(kib).expect("a body has at most 4096 KiB");
        loop {
            match Arc::clone(&self.kib).try_acquire_many_owned(kib) {
                Ok(claimed) => return Ok(claimed),
                Err(_) if self.arriving.evict_stalest().await => {}
                Err(_) => return Err(BodyError::Busy),
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
    async fn stalled_bodies_are_evicted_one_by_one() {
        let memory = Arc::new(BodyMemory::default());
        let mut stalls = Vec::new();
        for _ in 0..MEMORY_LIMIT_KIB * 1024 / BODY_LIMIT_BYTES {
            let memory = Arc::clone(&memory);
            let stall = async move { memory.read(stalled(BODY_LIMIT_BYTES)).await.map(drop) };
            stalls.push(tokio::spawn(stall));
            tokio::task::yield_now().await;
        }
        while memory.kib.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let (body, _held) = memory
            .read(Body::from(vec![b'x'; 3_000_000]))
            .await
            .unwrap();
        assert_eq!(body.len(), 3_000_000);
        assert_eq!(stalls.remove(0).await.unwrap(), Err(BodyError::Busy));
        assert!(stalls.iter().all(|stall| !stall.is_finished()));
        stalls.into_iter().for_each(|stall| stall.abort());
    }

    #[tokio::test]
    async fn a_body_is_refused_as_soon_as_it_is_too_large() {
        let memory = BodyMemory::default();
        let refused = memory.read(stalled(BODY_LIMIT_BYTES + 1)).await;
        assert_eq!(refused.map(drop), Err(BodyError::TooLarge));
        assert_eq!(memory.kib.available_permits(), MEMORY_LIMIT_KIB);
    }
}
