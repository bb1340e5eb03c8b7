//! The accept loop of a listener, with its timeouts.
//!
//! `axum::serve` has no header timeout, so hyper serves the connections directly: a header must
//! arrive in time, a body too, and there are never more connections than file descriptors.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower_http::timeout::RequestBodyDeadlineLayer;
use tracing::{debug, warn};

use super::eviction::{Evictable, EvictionQueue};

/// A whole header must arrive within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest header. A connection holds no more than this in memory beside its body.
const HEADER_LIMIT_BYTES: usize = 32 * 1024;
/// The next header on a kept-alive connection must arrive within this time of the last answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A whole body must arrive within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without activity for this time is stale. No step takes longer, unless the peer does
/// not read its answer.
const STALE_TIMEOUT: Duration = Duration::from_secs(40);
/// The pause between two searches for peers that do not read.
const STALE_INTERVAL: Duration = Duration::from_secs(5);
/// Requests in flight may take this long once the listener closes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failed accept, which mostly means that no file descriptor is free.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Serves connections until `stop`, then lets the requests in flight finish.
///
/// When every slot is taken, the least recently active connection is closed for the new one. A
/// connection is active when it is accepted, starts a request, or takes a part of an answer. A
/// handler finds its own connection as an `Arc<Evictable>` in the request's extensions.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    connections: usize,
    stop: CancellationToken,
) {
    let deadline = RequestBodyDeadlineLayer::new(BODY_TIMEOUT);
    let service = TowerToHyperService::new(router.layer(deadline));
    let slots = Arc::new(Semaphore::new(connections));
    let queue = EvictionQueue::default();
    let graceful = GracefulShutdown::new();
    let _evicting = AbortOnDropHandle::new(tokio::spawn(evict_stale(queue.clone())));

    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                recover_from_accept_error(&error, &queue).await;
                continue;
            }
        };
        let slot = free_slot(&slots, &queue).await;
        let connection = Arc::new(queue.register());
        let service = track_activity(service.clone(), Arc::clone(&connection));
        let served = graceful.watch(http1_connection(stream, service));
        tokio::spawn(async move {
            match connection.run_until_evicted(served).await {
                Some(Ok(())) => {}
                Some(Err(error)) => debug!(%error, "a connection ended early"),
                None => debug!("a connection was evicted for another"),
            }
            drop(slot);
        });
    }
    drop(listener);
    if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        let seconds = DRAIN_TIMEOUT.as_secs();
        warn!("requests were still in flight after {seconds} s");
    }
}

/// Takes a slot. If none is free, it first evicts the stalest connection.
async fn free_slot(slots: &Arc<Semaphore>, queue: &EvictionQueue) -> OwnedSemaphorePermit {
    if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
        return slot;
    }
    queue.evict_stalest().await;
    let freed = Arc::clone(slots).acquire_owned().await;
    freed.expect("the semaphore is never closed")
}

/// Closes the connections of peers that do not read their answer: hyper would wait for ever.
async fn evict_stale(queue: EvictionQueue) {
    loop {
        sleep(STALE_INTERVAL).await;
        queue.evict_inactive(STALE_TIMEOUT);
    }
}

fn http1_connection<S>(stream: TcpStream, service: S) -> http1::Connection<TokioIo<TcpStream>, S>
where
    S: Service<hyper::Request<Incoming>, Response = Response, Error = Infallible>,
{
    // With Nagle's algorithm a small answer waits for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(HeaderTimer::default())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_LIMIT_BYTES);
    http.serve_connection(TokioIo::new(stream), service)
}

/// Wraps the service of one connection: each request and each part of an answer counts as activity.
fn track_activity(
    service: TowerToHyperService<Router>,
    connection: Arc<Evictable>,
) -> impl Service<hyper::Request<Incoming>, Response = Response, Error = Infallible, Future: Send> {
    service_fn(move |mut request: hyper::Request<Incoming>| {
        connection.touch();
        request.extensions_mut().insert(Arc::clone(&connection));
        let (answer, connection) = (service.call(request), Arc::clone(&connection));
        async move {
            let answer = answer.await?;
            connection.touch();
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    connection.touch();
                    frame
                }))
            }))
        }
    })
}

/// The timer of one connection, with a longer deadline between requests.
///
/// hyper has one timeout for a header and for the idle time before it. It asks for a new deadline
/// each time it starts to wait: the first is the header's, later ones get the idle time as well.
#[derive(Default)]
struct HeaderTimer {
    timer: TokioTimer,
    is_kept_alive: AtomicBool,
}

impl Timer for HeaderTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.timer.sleep(duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let idle = if self.is_kept_alive.swap(true, Ordering::Relaxed) {
            IDLE_TIMEOUT - HEADER_TIMEOUT
        } else {
            Duration::ZERO
        };
        self.timer.sleep_until(deadline + idle)
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        self.timer
            .reset(sleep, deadline + (IDLE_TIMEOUT - HEADER_TIMEOUT));
    }

    fn now(&self) -> Instant {
        self.timer.now()
    }
}

/// Evicts a connection after a failed accept, or waits a moment if there is none to evict.
async fn recover_from_accept_error(error: &io::Error, queue: &EvictionQueue) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    // These two concern the one peer. Anything else is about this process, mostly its descriptors.
    if matches!(error.kind(), ConnectionAborted | ConnectionReset) {
        return;
    }
    debug!(%error, "no connection can be accepted");
    if !queue.evict_stalest().await {
        warn!(%error, "no connection can be accepted, and there is none to evict");
        sleep(ACCEPT_RETRY_INTERVAL).await;
    }
}

/// Returns the number of connections that a listener may hold: ten thousand if the file descriptors
/// allow it. Raises the process's own limit of descriptors as far as it may.
#[must_use]
pub(crate) fn connection_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const CONNECTION_LIMIT: u64 = 10_000;
    /// Descriptors for the database, Graph, the other listener, files.
    const RESERVED_DESCRIPTORS: u64 = 128;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let connections = current.map_or(CONNECTION_LIMIT, |descriptors| {
        descriptors
            .saturating_sub(RESERVED_DESCRIPTORS)
            .clamp(16, CONNECTION_LIMIT)
    });
    usize::try_from(connections).expect("ten thousand fits")
}
