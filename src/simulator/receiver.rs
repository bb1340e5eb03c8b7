//! A receiver of alerts for demonstrations: a real HTTP server that takes a webhook.

use std::io;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A receiver on a loopback port. It runs until it is dropped.
#[derive(Debug)]
pub struct AlertReceiver {
    url: String,
    alerts: mpsc::UnboundedReceiver<Value>,
    _guard: DropGuard,
}

impl AlertReceiver {
    /// Starts a receiver.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/alerts", listener.local_addr()?);
        let (sender, alerts) = mpsc::unbounded_channel();
        let router = Router::new()
            .route("/alerts", post(receive))
            .with_state(sender);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await
        });
        Ok(Self {
            url,
            alerts,
            _guard: stop.drop_guard(),
        })
    }

    /// The URL at which it takes alerts.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits for the next alert, and returns its body.
    pub async fn next(&mut self) -> Option<Value> {
        self.alerts.recv().await
    }
}

async fn receive(State(sender): State<mpsc::UnboundedSender<Value>>, body: Bytes) -> StatusCode {
    match serde_json::from_slice(&body) {
        Ok(alert) => {
            let _ = sender.send(alert);
            StatusCode::NO_CONTENT
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}
