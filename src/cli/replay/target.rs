//! The targets of a replay: a webhook, the database, or a dry run.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use reqwest::{Client, RequestBuilder, Response, Url, header, redirect};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::cli::Failure;
use crate::error_chain::error_chain;
use crate::inbox::{Capturing, Inbox, NewCallback, NotStored, Submitted};
use crate::intake::Intake;
use crate::meta::capture::Capture;
use crate::meta::interest::Interest;
use crate::meta::signature::{SIGNATURE_HEADER, Signature, Verifier, sign};

/// The only status that counts as success, for Meta and here.
const STATUS_OK: u16 = 200;
/// The status of a receiver that asks for a retry.
const STATUS_UNAVAILABLE: u16 = 503;
/// Attempts per callback, if the receiver is not available.
const ATTEMPTS_LIMIT: u32 = 10;
/// The longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A callback without any answer is given up after this time.
const NO_ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
/// The wait before a retry, unless there is a `Retry-After`.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The longest `Retry-After` that is respected.
const RETRY_INTERVAL_LIMIT: Duration = Duration::from_secs(60);
/// The part of an answer that is repeated to the user.
const QUOTE_LIMIT_CHARACTERS: usize = 120;

/// The place to which callbacks are replayed.
pub(super) enum Target {
    Webhook(WebhookTarget),
    Database(DatabaseTarget),
    /// Nothing is sent: the callbacks are only counted.
    DryRun(Interest),
}

impl Target {
    /// Starts to replay a capture, and returns the future of its outcome. A capture for the
    /// database is submitted before this returns, so that the rows get the order of the captures.
    pub(super) fn start(
        self: Arc<Self>,
        capture: Capture,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let submission = match &*self {
            Self::Database(database) => database.submit(&capture),
            Self::Webhook(_) | Self::DryRun(_) => None,
        };
        Box::pin(async move {
            match &*self {
                Self::Webhook(webhook) => webhook.post(capture).await,
                Self::Database(database) => database.store(capture, submission).await,
                Self::DryRun(interest) => classify(&capture, interest),
            }
        })
    }
}

/// The outcome of one callback.
pub(super) struct Outcome {
    /// The status of the answer, or a word for it.
    pub(super) answer: String,
    /// The reason of a failure: empty, or a text that starts with a colon. `None` is a success.
    pub(super) failure: Option<String>,
    /// The time of the last attempt, if it was answered.
    pub(super) latency: Option<Duration>,
    /// The target itself is not available, so that other callbacks need not be tried.
    pub(super) is_fatal: bool,
}

impl Outcome {
    fn success(answer: impl ToString, latency: Option<Duration>) -> Self {
        Self {
            answer: answer.to_string(),
            failure: None,
            latency,
            is_fatal: false,
        }
    }

    fn failure(answer: impl ToString, reason: &str, latency: Option<Duration>) -> Self {
        let line = reason.trim().lines().next().unwrap_or_default();
        let quote: String = line.chars().take(QUOTE_LIMIT_CHARACTERS).collect();
        let reason = if quote.is_empty() {
            String::new()
        } else {
            format!(": {quote}")
        };
        Self {
            failure: Some(reason),
            ..Self::success(answer, latency)
        }
    }

    fn fatal_failure(answer: &str, reason: &str) -> Self {
        Self {
            is_fatal: true,
            ..Self::failure(answer, reason, None)
        }
    }
}

/// A webhook to which callbacks are posted.
pub(super) struct WebhookTarget {
    url: Url,
    client: Client,
    /// Signs the callbacks. `None` sends the original signatures.
    app_secret: Option<SecretString>,
    bar: ProgressBar,
    has_printed_retry: AtomicBool,
}

/// The result of one attempt to post a callback.
enum Attempt {
    Finished(Outcome),
    Retry { delay: Duration, reason: String },
}

impl WebhookTarget {
    pub(super) fn new(
        url: Url,
        app_secret: Option<SecretString>,
        bar: ProgressBar,
    ) -> Result<Self, Failure> {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT)
            .user_agent(concat!("lockwatch-replay/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot make requests")?;
        Ok(Self {
            url,
            client,
            app_secret,
            bar,
            has_printed_retry: AtomicBool::new(false),
        })
    }

    async fn post(&self, capture: Capture) -> Outcome {
        let signature = match &self.app_secret {
            Some(secret) => sign(secret.expose_secret(), &capture.body),
            None => match parse_original_signature(&capture) {
                Ok(original) => original.to_string(),
                Err(reason) => return Outcome::failure("not sent", reason, None),
            },
        };
        let mut url = self.url.clone();
        if url.path() == "/" {
            url.set_path(&capture.path);
        }
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let request = self
                .client
                .post(url.clone())
                .header(SIGNATURE_HEADER, &signature)
                .header(header::CONTENT_TYPE, "application/json")
                .body(capture.body.clone());
            match post_once(request, started, attempt).await {
                Attempt::Finished(outcome) => return outcome,
                Attempt::Retry { delay, reason } => {
                    self.print_first_retry(&reason);
                    sleep(delay).await;
                }
            }
        }
    }

    /// Explains, once, why a replay seems to stand still.
    fn print_first_retry(&self, reason: &str) {
        if !self.has_printed_retry.swap(true, Ordering::Relaxed) {
            self.bar
                .suspend(|| anstream::eprintln!("lockwatch: {reason}"));
        }
    }
}

/// Posts a callback once. Attempt number 1 started at `started`; this is number `attempt`.
async fn post_once(request: RequestBuilder, started: Instant, attempt: u32) -> Attempt {
    let sent = Instant::now();
    let answer = match WebhookAnswer::receive(request).await {
        Ok(answer) => answer,
        Err(error) => return handle_no_answer(error, started, attempt),
    };
    let latency = Some(sent.elapsed());
    match answer.status {
        STATUS_OK => Attempt::Finished(Outcome::success(STATUS_OK, latency)),
        STATUS_UNAVAILABLE if attempt < ATTEMPTS_LIMIT => Attempt::Retry {
            delay: answer.retry_after,
            reason: format!(
                "the receiver answers {STATUS_UNAVAILABLE}, trying again after {} s",
                answer.retry_after.as_secs()
            ),
        },
        status => Attempt::Finished(Outcome::failure(status, &answer.text, latency)),
    }
}

fn handle_no_answer(error: reqwest::Error, started: Instant, attempt: u32) -> Attempt {
    let is_in_time = attempt < ATTEMPTS_LIMIT && started.elapsed() < NO_ANSWER_TIMEOUT;
    let may_retry = is_in_time && !error.is_builder();
    let is_connect = error.is_connect();
    let reason = error_chain(&error.without_url());
    if may_retry {
        // A receiver that is restarting is back in a moment.
        Attempt::Retry {
            delay: RETRY_INTERVAL,
            reason: format!("no answer, trying again: {reason}"),
        }
    } else if is_connect {
        // There is no receiver at all.
        Attempt::Finished(Outcome::fatal_failure("no answer", &reason))
    } else {
        // A receiver that breaks off may do so for this callback only.
        Attempt::Finished(Outcome::failure("no answer", &reason, None))
    }
}

/// The answer of a webhook.
struct WebhookAnswer {
    status: u16,
    /// The wait before a retry.
    retry_after: Duration,
    /// The reason, if the status is not a success.
    text: String,
}

impl WebhookAnswer {
    async fn receive(request: RequestBuilder) -> reqwest::Result<Self> {
        let mut response = request.send().await?;
        let retry_after = header_text(&response, header::RETRY_AFTER)
            .and_then(|seconds| seconds.parse().ok())
            .map_or(RETRY_INTERVAL, Duration::from_secs)
            .min(RETRY_INTERVAL_LIMIT);
        let status = response.status();
        let location = header_text(&response, header::LOCATION);
        let explanation = match location {
            Some(location) if status.is_redirection() => Some(format!("moved to {location}")),
            _ if status.is_success() && status.as_u16() != STATUS_OK => {
                Some("only 200 counts as success".to_owned())
            }
            _ => None,
        };
        let body = read_body_start(&mut response).await?;
        Ok(Self {
            status: status.as_u16(),
            retry_after,
            text: explanation.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()),
        })
    }
}

fn header_text(response: &Response, name: header::HeaderName) -> Option<String> {
    let value = response.headers().get(name)?;
    Some(value.to_str().ok()?.to_owned())
}

/// Reads a body to its end, so that the connection can be used again. Returns only as much of it as
/// can be repeated to the user.
async fn read_body_start(response: &mut Response) -> reqwest::Result<Vec<u8>> {
    let mut start = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        // A character takes up to four bytes.
        let room = (4 * QUOTE_LIMIT_CHARACTERS).saturating_sub(start.len());
        start.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    Ok(start)
}

/// The database, into whose inbox callbacks are appended as `serve` would, but without HTTP.
pub(super) struct DatabaseTarget {
    inbox: Inbox,
    interest: Interest,
    capturing: Capturing,
    /// Verifies the original signatures, if that is wanted.
    verifier: Option<Verifier>,
}

/// The first step of an append: `None` if there is nothing to record.
type Submission = Option<Result<Submitted, SubmitError>>;

/// The reason why a callback did not reach the inbox.
enum SubmitError {
    BadSignature(&'static str),
    NotStored(NotStored),
}

impl DatabaseTarget {
    pub(super) fn new(
        inbox: Inbox,
        interest: Interest,
        capturing: Capturing,
        verifier: Option<Verifier>,
    ) -> Self {
        Self {
            inbox,
            interest,
            capturing,
            verifier,
        }
    }

    /// Hands a callback to the inbox.
    fn submit(&self, capture: &Capture) -> Submission {
        let signature = parse_original_signature(capture);
        let app_secret = match (&self.verifier, &signature) {
            (None, _) => None,
            (Some(verifier), Ok(signature)) => match verifier.verify(&capture.body, signature) {
                Some(position) => i32::try_from(position + 1).ok(),
                None => return Some(Err(SubmitError::BadSignature("bad signature"))),
            },
            (Some(_), Err(reason)) => return Some(Err(SubmitError::BadSignature(reason))),
        };
        let is_of_interest = self.interest.may_concern_us(&capture.body);
        if !is_of_interest && self.capturing != Capturing::All {
            return None;
        }
        let callback = NewCallback {
            body: capture.body.clone(),
            received_at: capture.received_at,
            signature: signature.ok(),
            app_secret,
            is_of_interest,
        };
        // The reader of the files limits the memory; the inbox's own permit is only a formality.
        let permit = Arc::new(Semaphore::new(1))
            .try_acquire_owned()
            .expect("a new semaphore has its permit");
        let submitted = self.inbox.submit(callback, Instant::now(), permit);
        Some(submitted.map_err(SubmitError::NotStored))
    }

    /// Waits until a callback is stored. Retries if that fails.
    async fn store(&self, capture: Capture, first: Submission) -> Outcome {
        let mut submission = first;
        let mut attempt = 1;
        loop {
            let started = Instant::now();
            let stored = match submission {
                None => return Outcome::success("nothing to record", None),
                Some(Err(SubmitError::BadSignature(reason))) => {
                    return Outcome::failure("refused", reason, None);
                }
                Some(Err(SubmitError::NotStored(error))) => Err(error),
                Some(Ok(submitted)) => submitted.committed().await,
            };
            match stored {
                Ok(()) => return Outcome::success("recorded", Some(started.elapsed())),
                Err(_) if attempt < ATTEMPTS_LIMIT => sleep(RETRY_INTERVAL).await,
                Err(error) => return Outcome::fatal_failure("not recorded", &error.to_string()),
            }
            attempt += 1;
            submission = self.submit(&capture);
        }
    }
}

fn parse_original_signature(capture: &Capture) -> Result<Signature, &'static str> {
    let text = capture
        .signature()
        .ok_or("it has no signature of its own")?;
    Signature::parse(text.as_bytes()).map_err(|_| "its own signature is malformed")
}

/// Reads a callback without sending it, and names its kind.
fn classify(capture: &Capture, interest: &Interest) -> Outcome {
    let is_of_interest = interest.may_concern_us(&capture.body);
    let now = OffsetDateTime::UNIX_EPOCH;
    let intake = is_of_interest.then(|| Intake::parse(&capture.body, interest, now));
    let kind = match intake.filter(|intake| !intake.is_empty()) {
        None => "nothing about a lockout",
        Some(intake) if intake.unreadable.is_empty() => "lockouts",
        Some(_) => "something that cannot be read",
    };
    Outcome::success(kind, None)
}
