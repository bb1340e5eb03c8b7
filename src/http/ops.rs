//! Probes and metrics for those who operate the process.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::time::timeout;
use tracing::debug;

use crate::error_chain::error_chain;
use crate::metrics::{Metrics, Snapshot};
use crate::progress::Progress;
use crate::store::{Pool, overview};

const READINESS_TIMEOUT: Duration = Duration::from_secs(3);
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);

/// `GET /healthz`: 200 while the process lives. The database does not count: without it, a receiver
/// still answers every callback that is not about a lockout.
pub(super) fn liveness_router() -> Router {
    Router::new().route("/healthz", get(|| async { "alive\n" }))
}

/// `GET /readyz`: 200 when this process can store callbacks, the database takes writes and has this
/// version's tables, and the processor has got on within the last minute; else 503.
///
/// It is no readiness probe for Kubernetes: while the database is away, no replica is ready, and
/// without a replica Meta's other callbacks, which need no database, would be lost as well.
pub(super) fn readiness_router(db: Pool, progress: Progress) -> Router {
    Router::new()
        .route("/readyz", get(get_readiness))
        .with_state((db, progress))
}

async fn get_readiness(State((db, progress)): State<(Pool, Progress)>) -> (StatusCode, String) {
    match progress.find_obstacle(&db, READINESS_TIMEOUT).await {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}

/// `GET /metrics`: the process's counters, and gauges from the database. If the database does not
/// answer in time, the status is still 200 and its gauges are missing.
pub(super) fn metrics_router(db: Pool, metrics: Metrics, progress: Progress) -> Router {
    Router::new()
        .route("/metrics", get(get_metrics))
        .with_state((db, metrics, progress))
}

async fn get_metrics(
    State((db, metrics, progress)): State<(Pool, Metrics, Progress)>,
) -> impl IntoResponse {
    // Counted first: the scrape itself uses the pool.
    let pool = overview::pool_use(&db);
    let (obstacle, overview) = tokio::join!(
        progress.find_obstacle(&db, METRICS_TIMEOUT),
        timeout(METRICS_TIMEOUT, overview::fetch(&db))
    );
    let overview = overview.ok().and_then(|overview| {
        overview
            .inspect_err(|error| debug!("metrics without the database: {}", error_chain(error)))
            .ok()
    });
    let text = metrics.encode(&Snapshot {
        ready: obstacle.is_none(),
        pool,
        overview,
    });
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text)
}
