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
use crate::store::{self, Pool, Readiness, overview};

const READINESS_TIMEOUT: Duration = Duration::from_secs(3);
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);

/// `GET /healthz`: 200 while the process lives. The database does not count: without it, a receiver
/// still answers every callback that is not about a lockout.
pub(super) fn liveness_router() -> Router {
    Router::new().route("/healthz", get(|| async { "alive\n" }))
}

/// `GET /readyz`: 200 when the database answers, takes writes and has this version's tables, else
/// 503.
pub(super) fn readiness_router(db: Pool) -> Router {
    Router::new()
        .route("/readyz", get(get_readiness))
        .with_state(db)
}

async fn get_readiness(State(db): State<Pool>) -> (StatusCode, &'static str) {
    let reason = match timeout(READINESS_TIMEOUT, store::readiness(&db)).await {
        Ok(Ok(Readiness::Ready)) => return (StatusCode::OK, "ready\n"),
        Ok(Ok(Readiness::ReadOnly)) => "the database takes no writes\n",
        Ok(Ok(Readiness::Unmigrated)) => "the database lacks this version's tables\n",
        Ok(Err(error)) => {
            debug!("not ready: {}", error_chain(&error));
            "the database cannot be reached\n"
        }
        Err(_) => "the database does not answer\n",
    };
    (StatusCode::SERVICE_UNAVAILABLE, reason)
}

/// `GET /metrics`: the process's counters, and gauges from the database. If the database does not
/// answer in time, the status is still 200 and its gauges are missing.
pub(super) fn metrics_router(db: Pool, metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(get_metrics))
        .with_state((db, metrics))
}

async fn get_metrics(State((db, metrics)): State<(Pool, Metrics)>) -> impl IntoResponse {
    // Counted first: the scrape itself uses the pool.
    let pool = overview::pool_use(&db);
    let (readiness, overview) = tokio::join!(
        timeout(METRICS_TIMEOUT, store::readiness(&db)),
        timeout(METRICS_TIMEOUT, overview::fetch(&db))
    );
    let overview = overview.ok().and_then(|overview| {
        overview
            .inspect_err(|error| debug!("metrics without the database: {}", error_chain(error)))
            .ok()
    });
    let text = metrics.encode(&Snapshot {
        ready: matches!(readiness, Ok(Ok(Readiness::Ready))),
        pool,
        overview,
    });
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text)
}
