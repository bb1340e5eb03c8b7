//! HTTP in: the two listeners, their routes and the accept loop.
//!
//! `axum::serve` has no header timeout, so connections are served by hyper itself: a header must arrive
//! in time, a body too, and there are never more connections than descriptors.

pub mod api;
mod auth;
mod bodies;
mod dashboard;
mod error;
mod holders;
pub mod ops;
mod query;
mod resolve;
pub mod webhook;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Router, middleware};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::csrf::CsrfLayer;
use tower_http::timeout::RequestBodyDeadlineLayer;
use tracing::{debug, warn};

use self::auth::Guard;
use self::error::Problem;
use self::holders::{Holder, Holders};
use crate::metrics::Metrics;
use crate::store::Pool;

/// A whole header must arrive within this time.
const HEADER: Duration = Duration::from_secs(10);
/// And fit into this; it is also what a connection may hold in memory beside its body.
const HEADER_BYTES: usize = 32 * 1024;
/// On a connection that was kept open the next header has this long, from the last answer on.
const IDLE: Duration = Duration::from_secs(30);
/// A whole body must arrive within this time.
const BODY: Duration = Duration::from_secs(10);
/// Longer than anything in a connection takes, unless the peer does not take its answer.
const STALE: Duration = Duration::from_secs(40);
/// How often such peers are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// How long requests under way may take once the listener closes.
const DRAIN: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted, mostly for want of descriptors.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

/// Serves connections until told to stop, then lets the requests under way finish. When all slots are
/// taken, the connection that got on longest ago (was accepted, began a request or took a part of an
/// answer) is closed for the one that comes. A handler finds its own as an `Arc<Holder>` in the request.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections: usize,
    stop: CancellationToken,
) {
    let service = TowerToHyperService::new(router.layer(RequestBodyDeadlineLayer::new(BODY)));
    let slots = Arc::new(Semaphore::new(connections));
    let holders = Holders::default();
    let graceful = GracefulShutdown::new();
    let _sweeping = AbortOnDropHandle::new(tokio::spawn(sweep(holders.clone())));

    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                accept_failed(&error, &holders).await;
                continue;
            }
        };
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                holders.stalest_gives_way().await;
                Arc::clone(&slots)
                    .acquire_owned()
                    .await
                    .expect("it is never closed")
            }
        };
        // Without it a small answer waits for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let holder = Arc::new(holders.join());
        let mut http = http1::Builder::new();
        http.timer(PatientTimer::default())
            .header_read_timeout(HEADER)
            .max_buf_size(HEADER_BYTES);
        let service = getting_on(service.clone(), Arc::clone(&holder));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            match holder.unless_it_gives_way(connection).await {
                Some(Ok(())) => {}
                Some(Err(error)) => debug!(%error, "a connection ended early"),
                None => debug!("a connection gave way to another"),
            }
            drop(slot);
        });
    }
    drop(listener);
    if timeout(DRAIN, graceful.shutdown()).await.is_err() {
        warn!("requests were still under way after {} s", DRAIN.as_secs());
    }
}

/// Closes the connections of peers that take no answer: hyper would wait for ever.
async fn sweep(holders: Holders) {
    loop {
        sleep(SWEEP).await;
        holders.stale_ones_go(STALE);
    }
}

/// The service of one connection, which gets on with every request and every part of an answer.
fn getting_on(
    service: TowerToHyperService<Router>,
    holder: Arc<Holder>,
) -> impl Service<hyper::Request<Incoming>, Response = Response, Error = Infallible, Future: Send> {
    service_fn(move |mut request: hyper::Request<Incoming>| {
        holder.got_on();
        request.extensions_mut().insert(Arc::clone(&holder));
        let (answer, holder) = (service.call(request), Arc::clone(&holder));
        async move {
            let answer = answer.await?;
            holder.got_on();
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    holder.got_on();
                    frame
                }))
            }))
        }
    })
}

/// One connection's timer. hyper has a single timeout for a header and the idle time before it, and asks
/// for a new deadline whenever it starts to wait: the first is the header's, later ones get the idle time.
#[derive(Default)]
struct PatientTimer {
    timer: TokioTimer,
    kept_open: AtomicBool,
}

impl Timer for PatientTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.timer.sleep(duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let idle = if self.kept_open.swap(true, Ordering::Relaxed) {
            IDLE - HEADER
        } else {
            Duration::ZERO
        };
        self.timer.sleep_until(deadline + idle)
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        self.timer.reset(sleep, deadline + (IDLE - HEADER));
    }

    fn now(&self) -> Instant {
        self.timer.now()
    }
}

async fn accept_failed(error: &io::Error, holders: &Holders) {
    // The peer may just have gone; anything else concerns us all, and is mostly a want of descriptors.
    if matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    ) {
        return;
    }
    debug!(%error, "no connection can be accepted");
    if !holders.stalest_gives_way().await {
        warn!(%error, "no connection can be accepted, and none is left to give way");
        sleep(AFTER_ACCEPT_ERROR).await;
    }
}

/// How many connections a listener may hold: ten thousand where the descriptors allow it. Raises the
/// process's own limit as far as it may.
#[must_use]
pub fn connection_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const WANTED: u64 = 10_000;
    /// For the database, Graph, the other listener, files.
    const RESERVED: u64 = 128;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let connections = current.map_or(WANTED, |descriptors| {
        descriptors.saturating_sub(RESERVED).clamp(16, WANTED)
    });
    usize::try_from(connections).expect("ten thousand fits")
}

/// The public listener: Meta's webhook and a sign of life, nothing else.
pub fn public_router(webhook: webhook::Webhook) -> Router {
    webhook::router(webhook).merge(ops::liveness_router())
}

/// The admin listener: readiness for everybody, all else for who may come in. Without a token it belongs on
/// a loopback address. What people look at has a pool of its own.
pub fn admin_router(
    db: Pool,
    pages: Pool,
    token: Option<&SecretString>,
    metrics: Metrics,
) -> Router {
    let guarded = api::router(pages.clone())
        .merge(dashboard::router(pages))
        .merge(ops::metrics_router(db.clone(), metrics))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is no such page") })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this page does not take such a request",
            )
        })
        .layer(DefaultBodyLimit::max(resolve::BODY_LIMIT))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(CsrfLayer::new().with_rejection_response(auth::cross_site))
        .layer(middleware::from_fn_with_state(
            Guard::new(token),
            auth::guard,
        ))
        .layer(middleware::from_fn(dashboard::problems_as_pages));
    ops::readiness_router(db)
        .merge(guarded)
        .layer(middleware::from_fn(auth::secure))
}
