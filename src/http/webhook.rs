//! Meta's webhook: the handshake, and the callbacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::body_memory::{BODY_LIMIT_BYTES, BodyError, BodyMemory};
use super::eviction::Evictable;
use crate::meta::signature::{self, Signature, Verifier};
use crate::metrics::{CountedAs, WebhookMetrics};
use crate::recorder::{Callback, Capturing, NotRecorded, Recorder};

/// What the webhook's handlers share.
#[derive(Debug, Clone)]
pub struct Webhook(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    verifier: Verifier,
    verify_token: SecretString,
    recorder: Recorder,
    capturing: Capturing,
    bodies: BodyMemory,
    refusals: Refusals,
    metrics: WebhookMetrics,
}

impl Webhook {
    /// A webhook that takes what one of these secrets signed and hands it to the recorder.
    #[must_use]
    pub fn new(
        app_secrets: &[SecretString],
        verify_token: SecretString,
        recorder: Recorder,
        capturing: Capturing,
        metrics: WebhookMetrics,
    ) -> Self {
        Self(Arc::new(Shared {
            verifier: Verifier::new(app_secrets),
            verify_token,
            recorder,
            capturing,
            bodies: BodyMemory::default(),
            refusals: Refusals::default(),
            metrics,
        }))
    }

    /// Says, at most once a minute, how many signatures and handshakes were refused.
    pub async fn report_refusals(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.0.refusals.report()).await;
    }
}

pub(super) fn router(webhook: Webhook) -> Router {
    Router::new()
        .route("/webhook", get(verify_endpoint).post(receive))
        .with_state(webhook)
}

/// Answers one callback, and counts what became of it.
async fn receive(
    State(webhook): State<Webhook>,
    request: Request,
) -> Result<StatusCode, WebhookError> {
    let callbacks = &webhook.0.metrics.callbacks;
    let mut counted = CountedAs(&callbacks.abandoned);
    let acknowledged = acknowledge(&webhook.0, request).await;
    counted.0 = match acknowledged {
        Ok(Acknowledgement::Recorded) => &callbacks.recorded,
        Ok(Acknowledgement::NothingFound) => &callbacks.nothing_found,
        Err(WebhookError::BadSignature) => &callbacks.bad_signature,
        Err(WebhookError::Encoded) => &callbacks.encoded,
        Err(WebhookError::TooLarge) => &callbacks.too_large,
        Err(WebhookError::Incomplete) => &callbacks.incomplete,
        Err(WebhookError::Busy) => &callbacks.busy,
        Err(WebhookError::NotRecorded(_)) => &callbacks.not_recorded,
    };
    acknowledged.map(|_| StatusCode::OK)
}

/// What became of a callback that is answered with 200.
#[derive(Debug, Clone, Copy)]
enum Acknowledgement {
    Recorded,
    NothingFound,
}

/// Takes one callback. `Ok` means every lockout in it is on disk; anything else asks Meta to resend.
async fn acknowledge(shared: &Shared, request: Request) -> Result<Acknowledgement, WebhookError> {
    let SignedCallback {
        callback,
        arrived,
        held,
    } = SignedCallback::receive(request, shared).await?;
    match callback.find(shared.capturing) {
        Some(found) => {
            shared.recorder.record(found, arrived, held).await?;
            Ok(Acknowledgement::Recorded)
        }
        None => Ok(Acknowledgement::NothingFound),
    }
}

/// A callback whose signature was verified over its raw bytes: there is no other way to have one.
struct SignedCallback {
    callback: Callback,
    arrived: Instant,
    /// Its share of the memory for bodies.
    held: OwnedSemaphorePermit,
}

impl SignedCallback {
    /// The header comes first: whoever cannot sign is not read any further.
    async fn receive(request: Request, shared: &Shared) -> Result<Self, WebhookError> {
        let (parts, body) = request.into_parts();
        let signature =
            single_signature(&parts.headers).ok_or_else(|| shared.refusals.signature())?;
        if parts.headers.contains_key(header::CONTENT_ENCODING) {
            return Err(WebhookError::Encoded);
        }
        if declared_length(&parts.headers).is_some_and(|length| length > BODY_LIMIT_BYTES) {
            return Err(WebhookError::TooLarge);
        }
        let (body, held) = shared.bodies.read(body).await?;
        let position = shared
            .verifier
            .verify(&body, &signature)
            .ok_or_else(|| shared.refusals.signature())?;
        debug!(
            app_secret = position + 1,
            bytes = body.len(),
            "callback verified"
        );
        shared.refusals.matched(position);
        if let Some(connection) = parts.extensions.get::<Arc<Evictable>>() {
            connection.trust();
        }
        let callback = Callback {
            body,
            received_at: OffsetDateTime::now_utc(),
            signature: Some(signature),
            app_secret: i32::try_from(position + 1).ok(),
        };
        Ok(Self {
            callback,
            arrived: Instant::now(),
            held,
        })
    }
}

/// The one well-formed signature of a request.
fn single_signature(headers: &HeaderMap) -> Option<Signature> {
    let mut values = headers.get_all(signature::HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Signature::parse(value.as_bytes()).ok(),
        _ => None,
    }
}

/// hyper has seen to it that there is one length, and that it is a number.
fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Why a callback is not answered with 200.
#[derive(Debug, Clone, Copy)]
enum WebhookError {
    BadSignature,
    Encoded,
    TooLarge,
    Incomplete,
    Busy,
    NotRecorded(NotRecorded),
}

impl From<NotRecorded> for WebhookError {
    fn from(error: NotRecorded) -> Self {
        Self::NotRecorded(error)
    }
}

impl From<BodyError> for WebhookError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::TooLarge,
            BodyError::Incomplete => Self::Incomplete,
            BodyError::Busy => Self::Busy,
        }
    }
}

impl IntoResponse for WebhookError {
    fn into_response(self) -> Response {
        const RETRY_AFTER: [(header::HeaderName, &str); 1] = [(header::RETRY_AFTER, "5")];
        match self {
            Self::BadSignature => (StatusCode::UNAUTHORIZED, "bad signature\n").into_response(),
            Self::Encoded => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "encoded bodies are not taken\n",
            )
                .into_response(),
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "the body is over 4 MiB\n").into_response()
            }
            Self::Incomplete => (
                StatusCode::SERVICE_UNAVAILABLE,
                RETRY_AFTER,
                "the body did not arrive in time\n",
            )
                .into_response(),
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                RETRY_AFTER,
                "too many bodies at once\n",
            )
                .into_response(),
            Self::NotRecorded(error) => (
                StatusCode::SERVICE_UNAVAILABLE,
                RETRY_AFTER,
                format!("not recorded: {error}\n"),
            )
                .into_response(),
        }
    }
}

/// Meta's handshake when the URL is registered: echo the challenge to whoever knows the verify token.
async fn verify_endpoint(State(webhook): State<Webhook>, RawQuery(query): RawQuery) -> Response {
    let handshakes = &webhook.0.metrics.handshakes;
    let Some(handshake) = Handshake::parse(query.as_deref().unwrap_or_default()) else {
        handshakes.malformed.inc();
        return (
            StatusCode::BAD_REQUEST,
            "expected hub.mode=subscribe, hub.verify_token and hub.challenge, once each\n",
        )
            .into_response();
    };
    let expected = webhook.0.verify_token.expose_secret();
    if !bool::from(handshake.verify_token.as_bytes().ct_eq(expected.as_bytes())) {
        handshakes.wrong_token.inc();
        webhook.0.refusals.handshake();
        return (StatusCode::FORBIDDEN, "wrong verify token\n").into_response();
    }
    handshakes.verified.inc();
    info!("Meta verified this URL");
    // Plain text, and no guessing: the challenge is the caller's own text.
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, handshake.challenge).into_response()
}

struct Handshake {
    verify_token: String,
    challenge: String,
}

impl Handshake {
    fn parse(query: &str) -> Option<Self> {
        let the = |name| {
            let mut values =
                form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
            values
                .next()
                .filter(|_| values.next().is_none())
                .map(|(_, value)| value.into_owned())
        };
        let (mode, verify_token, challenge) = (
            the("hub.mode")?,
            the("hub.verify_token")?,
            the("hub.challenge")?,
        );
        (mode == "subscribe" && !challenge.is_empty()).then_some(Self {
            verify_token,
            challenge,
        })
    }
}

/// What was refused since it was last reported, and which app secrets have matched.
#[derive(Debug, Default)]
struct Refusals {
    signatures: AtomicU64,
    handshakes: AtomicU64,
    any: Notify,
    /// A bit for each position.
    matched: AtomicU64,
}

impl Refusals {
    fn signature(&self) -> WebhookError {
        self.signatures.fetch_add(1, Ordering::Relaxed);
        self.any.notify_one();
        WebhookError::BadSignature
    }

    fn handshake(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        self.any.notify_one();
    }

    /// Says which secret signs, by position, when it does so first: that is how a rotation is seen.
    fn matched(&self, position: usize) {
        let bit = 1 << (position % 64);
        if self.matched.load(Ordering::Relaxed) & bit == 0
            && self.matched.fetch_or(bit, Ordering::Relaxed) & bit == 0
        {
            info!(
                "callbacks are signed with app secret number {}",
                position + 1
            );
        }
    }

    async fn report(&self) {
        const SETTLE: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        loop {
            self.any.notified().await;
            sleep(SETTLE).await;
            let refused = self.signatures.swap(0, Ordering::Relaxed);
            if refused > 0 {
                warn!(
                    refused,
                    "callbacks with a bad signature refused: {refused}. Is META_APP_SECRET this app's?"
                );
            }
            let refused = self.handshakes.swap(0, Ordering::Relaxed);
            if refused > 0 {
                warn!(
                    refused,
                    "handshakes refused: {refused}. Is META_VERIFY_TOKEN the one in the App Dashboard?"
                );
            }
            sleep(MINUTE).await;
        }
    }
}
