//! Where replayed callbacks go: to a webhook, into the database, or nowhere.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use reqwest::{Client, Response, Url, header, redirect};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::cli::Failure;
use crate::error_chain::error_chain;
use crate::meta::capture::Capture;
use crate::meta::signature::{HEADER, Signature, Verifier, sign};
use crate::recorder::{Callback, Capturing, Found, NotRecorded, Recorder, Submitted};

/// What receivers answer: 200 is success, to Meta no other is, and 503 asks to come again.
const RECORDED: u16 = 200;
const LATER: u16 = 503;
/// How often a callback is tried that the receiver puts off, or that gets no answer.
const ATTEMPTS: u32 = 10;
/// How long a receiver may take, and how long it may not answer at all.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(25);
/// What to wait where a receiver does not say, and the most that is waited where it does.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The most that is repeated of an answer.
const ANSWER_CHARACTERS: usize = 120;

/// Where callbacks go.
pub(super) enum Target {
    Webhook(Webhook),
    Intake(Intake),
    Nowhere,
}

/// What became of one callback.
pub(super) struct Outcome {
    /// The answer's status, or a word.
    pub(super) answer: String,
    /// Where it is not well: what was said, with a colon before it, or nothing.
    pub(super) trouble: Option<String>,
    /// How long the last attempt took, if it was answered.
    pub(super) latency: Option<Duration>,
    /// Nothing is recorded at all: the rest need not be tried.
    pub(super) hopeless: bool,
}

impl Outcome {
    fn well(answer: impl ToString, latency: Option<Duration>) -> Self {
        Self {
            answer: answer.to_string(),
            trouble: None,
            latency,
            hopeless: false,
        }
    }

    fn bad(answer: impl ToString, said: &str, latency: Option<Duration>) -> Self {
        let line = said.trim().lines().next().unwrap_or_default();
        let cut: String = line.chars().take(ANSWER_CHARACTERS).collect();
        let trouble = if cut.is_empty() {
            String::new()
        } else {
            format!(": {cut}")
        };
        Self {
            trouble: Some(trouble),
            ..Self::well(answer, latency)
        }
    }

    fn hopeless(answer: &str, said: &str) -> Self {
        Self {
            hopeless: true,
            ..Self::bad(answer, said, None)
        }
    }
}

impl Target {
    /// Sets out at once, so that the order of the captures is that of the rows; how it went is known later.
    pub(super) fn deliver(
        self: Arc<Self>,
        capture: Capture,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let submitted = match &*self {
            Self::Intake(intake) => intake.submit(&capture),
            Self::Webhook(_) | Self::Nowhere => None,
        };
        Box::pin(async move {
            match &*self {
                Self::Webhook(webhook) => webhook.deliver(capture).await,
                Self::Intake(intake) => intake.deliver(capture, submitted).await,
                Self::Nowhere => look_at(capture),
            }
        })
    }
}

/// A webhook somewhere.
pub(super) struct Webhook {
    url: Url,
    client: Client,
    /// To sign with; none to send the original signatures.
    app_secret: Option<SecretString>,
    bar: ProgressBar,
    told_to_wait: AtomicBool,
}

impl Webhook {
    pub(super) fn new(
        url: Url,
        app_secret: Option<SecretString>,
        bar: ProgressBar,
    ) -> Result<Self, Failure> {
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("lockwatch-replay/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot make requests")?;
        Ok(Self {
            url,
            client,
            app_secret,
            bar,
            told_to_wait: AtomicBool::new(false),
        })
    }

    async fn deliver(&self, capture: Capture) -> Outcome {
        let signature = match (&self.app_secret, original_signature(&capture)) {
            (Some(secret), _) => sign(secret.expose_secret(), &capture.body),
            (None, Ok(original)) => original.to_string(),
            (None, Err(why)) => return Outcome::bad("not sent", why, None),
        };
        let mut url = self.url.clone();
        if url.path() == "/" {
            url.set_path(&capture.path);
        }
        let first_sent = Instant::now();
        let mut attempt = 1;
        loop {
            let request = self.client.post(url.clone()).header(HEADER, &signature);
            let request = request
                .header(header::CONTENT_TYPE, "application/json")
                .body(capture.body.clone());
            let sent = Instant::now();
            let pause = match Answer::of(request.send()).await {
                Ok(Answer {
                    status: RECORDED, ..
                }) => return Outcome::well(RECORDED, Some(sent.elapsed())),
                Ok(Answer {
                    status: LATER,
                    pause,
                    ..
                }) if attempt < ATTEMPTS => {
                    self.say_once(&format!(
                        "the receiver answers {LATER}, trying again after {} s",
                        pause.as_secs()
                    ));
                    pause
                }
                Ok(answer) => {
                    return Outcome::bad(answer.status, &answer.said, Some(sent.elapsed()));
                }
                Err(error)
                    if attempt < ATTEMPTS
                        && first_sent.elapsed() < SILENCE
                        && !error.is_builder() =>
                {
                    // A receiver that is being restarted is back in a moment.
                    self.say_once(&format!(
                        "no answer, trying again: {}",
                        error_chain(&error.without_url())
                    ));
                    PAUSE
                }
                // Where there is no receiver at all. One that breaks off may do so for this callback only.
                Err(error) if error.is_connect() => {
                    return Outcome::hopeless("no answer", &error_chain(&error.without_url()));
                }
                Err(error) => {
                    return Outcome::bad("no answer", &error_chain(&error.without_url()), None);
                }
            };
            sleep(pause).await;
            attempt += 1;
        }
    }

    /// Why nothing seems to happen.
    fn say_once(&self, what: &str) {
        if !self.told_to_wait.swap(true, Ordering::Relaxed) {
            self.bar
                .suspend(|| anstream::eprintln!("lockwatch: {what}"));
        }
    }
}

/// What a receiver answered.
struct Answer {
    status: u16,
    pause: Duration,
    said: String,
}

impl Answer {
    async fn of(request: impl Future<Output = reqwest::Result<Response>>) -> reqwest::Result<Self> {
        let mut response = request.await?;
        let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let seconds = header(header::RETRY_AFTER).and_then(|value| value.parse().ok());
        let location = header(header::LOCATION).filter(|_| response.status().is_redirection());
        let moved = location.map(|to| format!("moved to {to}"));
        let status = response.status().as_u16();
        let only_200 = (status != RECORDED && response.status().is_success())
            .then(|| "only 200 counts".to_owned());
        let mut body = Vec::new();
        // Read to its end, so that the connection can be used again; kept only as far as it is told.
        while let Some(chunk) = response.chunk().await? {
            let room = (4 * ANSWER_CHARACTERS).saturating_sub(body.len());
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        let said = moved
            .or(only_200)
            .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        Ok(Self {
            status,
            pause: seconds
                .map_or(PAUSE, Duration::from_secs)
                .min(LONGEST_PAUSE),
            said,
        })
    }
}

/// The same way into the database that callbacks take, without HTTP.
pub(super) struct Intake {
    recorder: Recorder,
    capturing: Capturing,
    /// To verify the original signatures with, where that is asked for.
    verifier: Option<Verifier>,
}

impl Intake {
    pub(super) fn new(
        recorder: Recorder,
        capturing: Capturing,
        verifier: Option<Verifier>,
    ) -> Self {
        Self {
            recorder,
            capturing,
            verifier,
        }
    }

    /// Hands a callback to the recorder; `None` where there is nothing to record.
    fn submit(&self, capture: &Capture) -> Option<Result<Submitted, NotSubmitted>> {
        let signature = original_signature(capture);
        let app_secret = match (&self.verifier, &signature) {
            (None, _) => None,
            (Some(verifier), Ok(signature)) => match verifier.verify(&capture.body, signature) {
                Some(position) => i32::try_from(position + 1).ok(),
                None => return Some(Err(NotSubmitted::Refused("bad signature"))),
            },
            (Some(_), Err(why)) => return Some(Err(NotSubmitted::Refused(why))),
        };
        let callback = Callback {
            body: capture.body.clone(),
            received_at: capture.received_at.unwrap_or_else(OffsetDateTime::now_utc),
            signature: signature.ok(),
            app_secret,
        };
        let found = callback.find(self.capturing)?;
        let held = Arc::new(Semaphore::new(1))
            .try_acquire_owned()
            .expect("a permit of its own");
        Some(
            self.recorder
                .submit(found, Instant::now(), held)
                .map_err(NotSubmitted::Later),
        )
    }

    async fn deliver(
        &self,
        capture: Capture,
        first: Option<Result<Submitted, NotSubmitted>>,
    ) -> Outcome {
        let mut submitted = first;
        let mut attempt = 1;
        loop {
            let sent = Instant::now();
            let recorded = match submitted {
                None => return Outcome::well("nothing to record", None),
                Some(Err(NotSubmitted::Refused(why))) => return Outcome::bad("refused", why, None),
                Some(Err(NotSubmitted::Later(error))) => Err(error),
                Some(Ok(submitted)) => submitted.committed().await,
            };
            match recorded {
                Ok(()) => return Outcome::well("recorded", Some(sent.elapsed())),
                Err(_) if attempt < ATTEMPTS => sleep(PAUSE).await,
                Err(error) => return Outcome::hopeless("not recorded", &error.to_string()),
            }
            attempt += 1;
            submitted = self.submit(&capture);
        }
    }
}

/// Why a callback did not get to the recorder.
enum NotSubmitted {
    Refused(&'static str),
    Later(NotRecorded),
}

fn original_signature(capture: &Capture) -> Result<Signature, &'static str> {
    let text = capture
        .signature()
        .ok_or("it has no signature of its own")?;
    Signature::parse(text.as_bytes()).map_err(|_| "its own signature is malformed")
}

/// Reads everything and sends nothing.
fn look_at(capture: Capture) -> Outcome {
    let received_at = OffsetDateTime::UNIX_EPOCH;
    let callback = Callback {
        body: capture.body,
        received_at,
        signature: None,
        app_secret: None,
    };
    let found = callback.find(Capturing::Off);
    let kind = match found.as_ref().map(Found::findings) {
        None => "nothing about a lockout",
        Some(findings) if findings.unreadable.is_empty() => "lockouts",
        Some(_) => "something that cannot be read",
    };
    Outcome::well(kind, None)
}
