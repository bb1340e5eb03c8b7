//! For whoever operates the process: does it live, can it work, what has it done.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::time::timeout;
use tracing::debug;

use crate::metrics::{Metrics, Snapshot};
use crate::store::{self, Pool, Readiness, overview};

/// `GET /healthz`: 200 while the process lives. The database has no say in it: a receiver without one
/// still answers every callback that is not about a lockout.
pub(super) fn liveness_router() -> Router {
    Router::new().route("/healthz", get(|| async { "alive\n" }))
}

/// `GET /readyz`: 200 when the database answers, takes writes and has this version's tables, else 503.
pub(super) fn readiness_router(db: Pool) -> Router {
    Router::new().route("/readyz", get(ready)).with_state(db)
}

async fn ready(State(db): State<Pool>) -> (StatusCode, &'static str) {
    const PATIENCE: Duration = Duration::from_secs(3);
    match timeout(PATIENCE, store::readiness(&db)).await {
        Ok(Ok(Readiness::Ready)) => (StatusCode::OK, "ready\n"),
        Ok(Ok(Readiness::ReadOnly)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the database takes no writes\n",
        ),
        Ok(Ok(Readiness::Unmigrated)) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the database lacks this version's tables\n",
        ),
        Ok(Err(error)) => {
            debug!(cause = error.cause(), "not ready: {error}");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the database cannot be reached\n",
            )
        }
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the database does not answer\n",
        ),
    }
}

/// `GET /metrics`: what the process counts, and how things stand in the database. Without a database it
/// answers 200 all the same, and leaves out what it cannot know.
pub(super) fn metrics_router(db: Pool, metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(tell))
        .with_state((db, metrics))
}

async fn tell(State((db, metrics)): State<(Pool, Metrics)>) -> impl IntoResponse {
    const PATIENCE: Duration = Duration::from_secs(2);
    // Before it is used for this.
    let pool = overview::pool_use(&db);
    let (readiness, overview) = tokio::join!(
        timeout(PATIENCE, store::readiness(&db)),
        timeout(PATIENCE, overview::read(&db))
    );
    let ready = matches!(readiness, Ok(Ok(Readiness::Ready)));
    let overview = overview.ok().and_then(|read| {
        read.inspect_err(|error| {
            debug!(
                cause = error.cause(),
                "metrics without the database: {error}"
            )
        })
        .ok()
    });
    let text = metrics.text(&Snapshot {
        ready,
        pool,
        overview,
    });
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
}
