//! Meta's webhook: the handshake and the callbacks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::body_memory::{BODY_LIMIT_BYTES, BodyError, BodyMemory};
use super::eviction::Evictable;
use crate::heard::Heard;
use crate::inbox::{Capturing, Inbox, NewCallback, NotStored};
use crate::meta::interest::Interest;
use crate::meta::signature::{self, Signature, Verifier};
use crate::metrics::{CountOnDrop, WebhookMetrics};
use crate::sending::SentWatch;

/// The webhook's state, shared by its handlers.
#[derive(Debug, Clone)]
pub struct Webhook(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    verifier: Verifier,
    verify_token: SecretString,
    interest: Interest,
    inbox: Inbox,
    capturing: Capturing,
    sent: SentWatch,
    heard: Heard,
    bodies: BodyMemory,
    refusals: RefusalLog,
    metrics: WebhookMetrics,
}

impl Webhook {
    /// Creates a webhook that accepts callbacks signed with one of these secrets and hands them to
    /// the inbox, and shows them to the watch for sent messages.
    #[must_use]
    pub fn new(
        app_secrets: &[SecretString],
        verify_token: SecretString,
        interest: Interest,
        (inbox, capturing): (Inbox, Capturing),
        (sent, heard): (SentWatch, Heard),
        metrics: WebhookMetrics,
    ) -> Self {
        Self(Arc::new(Shared {
            verifier: Verifier::new(app_secrets),
            verify_token,
            interest,
            inbox,
            capturing,
            sent,
            heard,
            bodies: BodyMemory::default(),
            refusals: RefusalLog::default(),
            metrics,
        }))
    }

    /// Logs, at most once a minute, how many signatures and handshakes were refused.
    pub async fn log_refusals(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.0.refusals.log_periodically())
            .await;
    }
}

pub(super) fn router(webhook: Webhook) -> Router {
    let methods = || {
        get(answer_handshake)
            .post(receive_callback)
            .fallback(refuse_method)
    };
    Router::new()
        .route("/webhook", methods())
        .fallback(answer_other_path)
        .with_state(webhook)
}

/// Answers a path that is no route. Doubled slashes, and one at the end, are the webhook's path all
/// the same: they stand in a registered URL more often than one thinks.
async fn answer_other_path(state: State<Webhook>, request: Request) -> Response {
    let mut segments = request.uri().path().split('/').filter(|s| !s.is_empty());
    let is_webhook = segments.next() == Some("webhook") && segments.next().is_none();
    match *request.method() {
        Method::GET if is_webhook => {
            let query = request.uri().query().map(ToOwned::to_owned);
            answer_handshake(state, RawQuery(query)).await
        }
        Method::POST if is_webhook => receive_callback(state, request).await.into_response(),
        _ if is_webhook => refuse_method(state).await,
        _ => {
            let Webhook(shared) = &*state;
            shared.metrics.callbacks.wrong_path.inc();
            // Scanners ask for anything. What was meant for the webhook is worth telling.
            let query = request.uri().query().unwrap_or_default();
            if request.headers().contains_key(signature::SIGNATURE_HEADER)
                || query.contains("hub.mode")
            {
                shared.refusals.refuse_path(request.uri().path());
            }
            (StatusCode::NOT_FOUND, "there is only /webhook\n").into_response()
        }
    }
}

async fn refuse_method(State(Webhook(shared)): State<Webhook>) -> Response {
    shared.metrics.callbacks.wrong_method.inc();
    let allow = [(header::ALLOW, "GET, HEAD, POST")];
    let reason = "the webhook takes GET and POST\n";
    (StatusCode::METHOD_NOT_ALLOWED, allow, reason).into_response()
}

/// Answers one callback and counts the outcome.
async fn receive_callback(
    State(webhook): State<Webhook>,
    request: Request,
) -> Result<StatusCode, WebhookError> {
    let callbacks = &webhook.0.metrics.callbacks;
    let mut counted = CountOnDrop(&callbacks.abandoned);
    let acknowledged = acknowledge(&webhook.0, request).await;
    counted.0 = match acknowledged {
        Ok(Acknowledgement::Stored) => &callbacks.recorded,
        Ok(Acknowledgement::NoInterest) => &callbacks.nothing_found,
        Err(WebhookError::BadSignature) => &callbacks.bad_signature,
        Err(WebhookError::Encoded) => &callbacks.encoded,
        Err(WebhookError::TooLarge) => &callbacks.too_large,
        Err(WebhookError::Incomplete) => &callbacks.incomplete,
        Err(WebhookError::Busy) => &callbacks.busy,
        Err(WebhookError::NotStored(_)) => &callbacks.not_recorded,
    };
    acknowledged.map(|_| StatusCode::OK)
}

/// The outcome of a callback that is answered with 200.
#[derive(Debug, Clone, Copy)]
enum Acknowledgement {
    Stored,
    NoInterest,
}

/// Receives and stores one callback. `Ok` means that its bytes are on disk, unless nothing in them
/// concerns us; every error makes Meta send it again.
async fn acknowledge(shared: &Shared, request: Request) -> Result<Acknowledgement, WebhookError> {
    let SignedCallback {
        callback,
        arrived,
        held,
    } = SignedCallback::receive(request, shared).await?;
    shared.heard.note(&callback.body);
    if !callback.is_of_interest && shared.capturing != Capturing::All {
        shared.sent.look(&callback.body);
        return Ok(Acknowledgement::NoInterest);
    }
    let (body, is_of_interest) = (callback.body.clone(), callback.is_of_interest);
    shared.inbox.append(callback, arrived, held).await?;
    if is_of_interest {
        shared.sent.expect_incident();
    }
    shared.sent.look(&body);
    Ok(Acknowledgement::Stored)
}

/// A callback whose signature was verified over its raw bytes. [`receive`](Self::receive) is the
/// only way to get one.
struct SignedCallback {
    callback: NewCallback,
    arrived: Instant,
    /// Its share of the memory for bodies.
    held: OwnedSemaphorePermit,
}

impl SignedCallback {
    /// Reads and verifies a callback. The header is checked first: without a well-formed signature
    /// the body is not read.
    async fn receive(request: Request, shared: &Shared) -> Result<Self, WebhookError> {
        let (parts, body) = request.into_parts();
        let bad_signature = || {
            shared.refusals.count(Refusal::Signature);
            WebhookError::BadSignature
        };
        let signature = single_signature(&parts.headers).ok_or_else(bad_signature)?;
        if is_encoded(&parts.headers) {
            shared.refusals.count(Refusal::Encoded);
            return Err(WebhookError::Encoded);
        }
        if declared_length(&parts.headers).is_some_and(|length| length > BODY_LIMIT_BYTES) {
            return Err(WebhookError::TooLarge);
        }
        let (body, held) = shared.bodies.read(body).await?;
        let position = shared
            .verifier
            .verify(&body, &signature)
            .ok_or_else(bad_signature)?;
        debug!(
            app_secret = position + 1,
            bytes = body.len(),
            "callback verified"
        );
        shared.refusals.log_first_match(position);
        if let Some(connection) = parts.extensions.get::<Arc<Evictable>>() {
            connection.trust();
        }
        let callback = NewCallback {
            is_of_interest: shared.interest.may_concern_us(&body),
            body,
            received_at: None,
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

/// Returns whether a body has an encoding. `identity` is none.
fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    encodings.any(|value| {
        !value
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
    })
}

/// Returns the signature of a request, if it has exactly one signature header and that is
/// well-formed.
fn single_signature(headers: &HeaderMap) -> Option<Signature> {
    let mut values = headers.get_all(signature::SIGNATURE_HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Signature::parse(value.as_bytes()).ok(),
        _ => None,
    }
}

/// Returns the `Content-Length`. hyper has already checked that there is only one, and that it is a
/// number.
fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// The reason for which a callback is not answered with 200.
#[derive(Debug, Clone, Copy)]
enum WebhookError {
    BadSignature,
    Encoded,
    TooLarge,
    Incomplete,
    Busy,
    NotStored(NotStored),
}

impl From<NotStored> for WebhookError {
    fn from(error: NotStored) -> Self {
        Self::NotStored(error)
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
        match self {
            Self::BadSignature => (StatusCode::UNAUTHORIZED, "bad signature\n").into_response(),
            Self::Encoded => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "encoded bodies are not accepted\n",
            )
                .into_response(),
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, "the body is over 4 MiB\n").into_response()
            }
            Self::Incomplete => unavailable("the body did not arrive in time\n"),
            Self::Busy => unavailable("too many bodies at once\n"),
            Self::NotStored(error) => unavailable(format!("not stored: {error}\n")),
        }
    }
}

/// Returns a 503 that asks for a retry.
fn unavailable(reason: impl IntoResponse) -> Response {
    let retry = [(header::RETRY_AFTER, "5")];
    (StatusCode::SERVICE_UNAVAILABLE, retry, reason).into_response()
}

/// Answers Meta's handshake, which comes when the URL is registered: a caller that knows the verify
/// token gets its challenge back.
async fn answer_handshake(State(webhook): State<Webhook>, RawQuery(query): RawQuery) -> Response {
    let handshakes = &webhook.0.metrics.handshakes;
    let Some(handshake) = HandshakeQuery::parse(query.as_deref().unwrap_or_default()) else {
        handshakes.malformed.inc();
        webhook.0.refusals.count(Refusal::Handshake);
        return (
            StatusCode::BAD_REQUEST,
            "expected hub.mode=subscribe, hub.verify_token and hub.challenge, once each\n",
        )
            .into_response();
    };
    let expected = webhook.0.verify_token.expose_secret();
    if !bool::from(handshake.verify_token.as_bytes().ct_eq(expected.as_bytes())) {
        handshakes.wrong_token.inc();
        webhook.0.refusals.count(Refusal::VerifyToken);
        return (StatusCode::FORBIDDEN, "wrong verify token\n").into_response();
    }
    handshakes.verified.inc();
    info!("Meta verified this URL");
    // The challenge is the caller's own text: no browser may take it for HTML.
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, handshake.challenge).into_response()
}

/// The query of Meta's handshake.
struct HandshakeQuery {
    verify_token: String,
    challenge: String,
}

impl HandshakeQuery {
    fn parse(query: &str) -> Option<Self> {
        let mode = single_parameter(query, "hub.mode")?;
        let verify_token = single_parameter(query, "hub.verify_token")?;
        let challenge = single_parameter(query, "hub.challenge")?;
        (mode == "subscribe" && !challenge.is_empty()).then_some(Self {
            verify_token,
            challenge,
        })
    }
}

/// Returns the value of a parameter that is given exactly once.
fn single_parameter(query: &str, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) => Some(value.into_owned()),
        _ => None,
    }
}

/// A kind of refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Signature,
    VerifyToken,
    Handshake,
    Encoded,
    Path,
}

impl Refusal {
    const ALL: [Self; 5] = [
        Self::Signature,
        Self::VerifyToken,
        Self::Handshake,
        Self::Encoded,
        Self::Path,
    ];

    /// Returns what was refused, and what to look at.
    fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::Signature => (
                "callbacks with a bad signature refused",
                "Is META_APP_SECRET this app's?",
            ),
            Self::VerifyToken => (
                "handshakes refused",
                "Is META_VERIFY_TOKEN the one in the App Dashboard?",
            ),
            Self::Handshake => (
                "malformed handshakes refused",
                "hub.mode, hub.verify_token and hub.challenge must come once each; a proxy may \
                 have renamed them, such as to hub_mode.",
            ),
            Self::Encoded => (
                "callbacks with an encoded body refused",
                "Meta encodes none; does a proxy compress them?",
            ),
            Self::Path => (
                "requests of Meta to another path refused",
                "Is the callback URL in the App Dashboard …/webhook?",
            ),
        }
    }
}

/// Counts refused requests until they are logged, and remembers the app secrets that have matched.
#[derive(Debug, Default)]
struct RefusalLog {
    counts: [AtomicU64; Refusal::ALL.len()],
    /// One of the wrong paths.
    path: Mutex<String>,
    pending: Notify,
    /// A bit for each position.
    matched_secrets: AtomicU64,
}

impl RefusalLog {
    fn count(&self, refusal: Refusal) {
        self.counts[refusal as usize].fetch_add(1, Ordering::Relaxed);
        self.pending.notify_one();
    }

    fn refuse_path(&self, path: &str) {
        const LIMIT_BYTES: usize = 100;
        let path = &path[..path.floor_char_boundary(LIMIT_BYTES)];
        path.clone_into(&mut self.path.lock().unwrap_or_else(PoisonError::into_inner));
        self.count(Refusal::Path);
    }

    /// Logs the position of an app secret when it matches for the first time, which shows that a
    /// rotation took effect.
    fn log_first_match(&self, position: usize) {
        let bit = 1 << (position % 64);
        if self.matched_secrets.load(Ordering::Relaxed) & bit == 0
            && self.matched_secrets.fetch_or(bit, Ordering::Relaxed) & bit == 0
        {
            info!(
                "callbacks are signed with app secret number {}",
                position + 1
            );
        }
    }

    async fn log_periodically(&self) {
        /// Refusals of one burst share a line.
        const BURST_WINDOW: Duration = Duration::from_secs(1);
        const LOG_INTERVAL: Duration = Duration::from_secs(60);
        loop {
            self.pending.notified().await;
            sleep(BURST_WINDOW).await;
            for refusal in Refusal::ALL {
                self.log(refusal);
            }
            sleep(LOG_INTERVAL).await;
        }
    }

    fn log(&self, refusal: Refusal) {
        let refused = self.counts[refusal as usize].swap(0, Ordering::Relaxed);
        let (what, hint) = refusal.text();
        let path = match refusal {
            Refusal::Path => {
                let path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
                format!(", such as {path:?}")
            }
            _ => String::new(),
        };
        if refused > 0 {
            warn!(refused, "{what}: {refused}{path}. {hint}");
        }
    }
}
