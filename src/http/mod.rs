//! The HTTP server: the routers of the two listeners.
//!
//! | listener | routes |
//! | --- | --- |
//! | public | [`webhook`] (Meta's handshake and callbacks), `/healthz` |
//! | admin | [`api`], the dashboard, `/metrics`, `/readyz` |
//!
//! The `listener` accepts connections and closes slow ones. Before a caller has proven to be Meta,
//! its connection and the memory for its body may be evicted (`eviction`, `body_memory`).

pub mod api;
mod auth;
mod body_memory;
mod by_hand;
mod dashboard;
mod error;
mod eviction;
pub(crate) mod listener;
mod ops;
mod query;
pub mod webhook;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::{Router, middleware};
use secrecy::SecretString;
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::csrf::CsrfLayer;

use self::auth::Guard;
use self::error::Problem;
use crate::alerts::Roster;
use crate::meta::codes::WatchedCodes;
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::store::Pool;

/// Returns the routes of the public listener: Meta's webhook and the liveness probe, nothing else.
pub(crate) fn public_router(webhook: webhook::Webhook) -> Router {
    webhook::router(webhook).merge(ops::liveness_router())
}

/// The settings that the pages show.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// The watched codes.
    pub(crate) codes: WatchedCodes,
    /// The channels for alerts, as they are at the moment.
    pub(crate) roster: watch::Receiver<Arc<Roster>>,
}

/// Returns the routes of the admin listener: readiness is open, everything else is guarded.
///
/// Without a token the listener belongs on a loopback address. API and dashboard read through the
/// pool `pages`, so that slow readers never delay the service's own work on `db`.
pub(crate) fn admin_router(
    db: Pool,
    pages: Pool,
    token: Option<&SecretString>,
    shown: Shown,
    metrics: Metrics,
    progress: Progress,
) -> Router {
    let guarded = api::router(pages.clone(), progress.clone())
        .merge(dashboard::router(pages, shown))
        .merge(ops::metrics_router(db.clone(), metrics, progress.clone()))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(by_hand::ADMIN_BODY_LIMIT_BYTES))
        .layer(CatchPanicLayer::custom(error::panic_response))
        .layer(CsrfLayer::new().with_rejection_response(auth::cross_site_response))
        .layer(middleware::from_fn_with_state(
            Guard::new(token),
            auth::require_access,
        ))
        .layer(middleware::from_fn(dashboard::render_problem_pages));
    ops::readiness_router(db, progress)
        .merge(guarded)
        .layer(middleware::from_fn(auth::add_security_headers))
}

async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is no such page")
}

async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this page does not accept this method",
    )
}
