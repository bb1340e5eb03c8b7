//! `lockwatch replay PATH… --to URL`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, Url, header, redirect};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, interval, sleep};

use super::capture_files::{self, Bad, Located, Place};
use super::render::printable;
use super::{Failure, ready_database, say};
use crate::config::{CaptureArgs, DataArgs, SigningArgs, app_secrets};
use crate::meta::capture::Capture;
use crate::meta::signature::{HEADER, Signature, Verifier, sign};
use crate::recorder::{Callback, Capturing, Found, Recorder, recorder};
use crate::with_causes;

/// What receivers answer: 200 is success, to Meta no other is, and 503 asks to come again.
const RECORDED: u16 = 200;
const LATER: u16 = 503;
/// How often a callback is tried that the receiver puts off, or that gets no answer.
const ATTEMPTS: u32 = 10;
/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What to wait where a receiver does not say, and the most that is waited where it does.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Posts captured callbacks to a webhook, each signed anew, or takes them into the database as serve would
#[derive(Debug, Args)]
#[command(after_help = "\
Takes capture files (.jsonl), bare callbacks as in logs or in Meta's documentation (.json), folders of either, \
and - for stdin. 503 is tried again when its Retry-After says so. Exit 1 if any answer was not 200.

Needs META_APP_SECRET (the first of several), or --app-secret-file, to sign.")]
pub(super) struct ReplayArgs {
    /// Files, folders, or - for stdin
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The webhook, such as http://127.0.0.1:8080/webhook. Without a path: each capture's own
    #[arg(long, value_name = "URL", required_unless_present_any = ["into_database", "dry_run"])]
    to: Option<Url>,
    /// Record into the database, without HTTP: failures, incidents and captures as they were received.
    /// Nobody looks up a cause; a running serve does
    #[arg(long, conflicts_with_all = ["to", "app_secret_file"])]
    into_database: bool,
    /// Send the signatures as they came, or verify them before recording
    #[arg(long, conflicts_with = "app_secret_file")]
    original_signature: bool,
    /// Read and count everything, send nothing
    #[arg(long)]
    dry_run: bool,
    /// At most so many callbacks a second, as 50 or 50/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Callbacks under way at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    data: DataArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches("/s").parse::<f64>().ok();
    number.filter(|rate| (0.001..=1e6).contains(rate)).ok_or_else(|| "not a number of callbacks a second".to_owned())
}

pub(super) async fn run(args: ReplayArgs) -> Result<(), Failure> {
    let (target, recording) = match (&args.to, args.into_database) {
        _ if args.dry_run => (Target::Nowhere, None),
        (_, true) => {
            let database = ready_database(&args.data).await?;
            let verifier =
                args.original_signature.then(app_secrets).transpose()?.map(|secrets| Verifier::new(&secrets));
            let (recorder, task) = recorder(database, Arc::new(Notify::new()));
            let capturing = args.capture.capture;
            (Target::Database(Intake { recorder, capturing, verifier }), Some(tokio::spawn(task.run())))
        }
        (Some(url), false) => (Target::Http(Webhook::new(url, &args)?), None),
        (None, false) => return Err(Failure::Usage("--to names the webhook to replay to".to_owned())),
    };
    let bar = progress_bar(&args.paths);
    let found = capture_files::read(args.paths);
    let mut replay = Replay::new(target, bar, args.rate);
    replay.play(found, usize::from(args.concurrency)).await;
    let ended = replay.finish();
    if let Some(recording) = recording {
        recording.await.context("the recorder")?;
    }
    ended
}

/// Hidden without a terminal.
fn progress_bar(paths: &[PathBuf]) -> ProgressBar {
    let (bar, template) = match capture_files::total_size(paths) {
        Some(total) => (ProgressBar::new(total), "{bar:30} {binary_bytes} of {binary_total_bytes}  {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {binary_bytes}  {msg}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("a valid template"))
}

/// Where callbacks go.
enum Target {
    Http(Webhook),
    Database(Intake),
    Nowhere,
}

/// What became of one callback.
struct Outcome {
    /// The answer's status, or a word.
    answer: String,
    /// What was said beside it, where it is not well.
    trouble: Option<String>,
    /// How long the last attempt took.
    latency: Duration,
    /// The receiver does not answer at all: the rest need not be tried.
    hopeless: bool,
}

impl Outcome {
    fn well(answer: impl ToString, latency: Duration) -> Self {
        Self { answer: answer.to_string(), trouble: None, latency, hopeless: false }
    }

    fn bad(answer: impl ToString, trouble: impl ToString, latency: Duration) -> Self {
        Self { trouble: Some(trouble.to_string()), ..Self::well(answer, latency) }
    }
}

impl Target {
    async fn deliver(&self, capture: Capture) -> Outcome {
        match self {
            Self::Http(webhook) => webhook.deliver(capture).await,
            Self::Database(intake) => intake.deliver(capture).await,
            Self::Nowhere => look_at(capture),
        }
    }
}

/// A webhook somewhere.
struct Webhook {
    url: Url,
    client: Client,
    /// To sign with; none to send the original signatures.
    app_secret: Option<SecretString>,
}

impl Webhook {
    fn new(url: &Url, args: &ReplayArgs) -> Result<Self, Failure> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Failure::Usage(format!("--to {url} is neither http nor https")));
        }
        let app_secret = if args.original_signature { None } else { Some(args.signing.app_secret()?) };
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            .pool_max_idle_per_host(usize::from(args.concurrency))
            .user_agent(concat!("lockwatch-replay/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot make requests")?;
        Ok(Self { url: url.clone(), client, app_secret })
    }

    async fn deliver(&self, capture: Capture) -> Outcome {
        let signature = match (&self.app_secret, capture.signature()) {
            (Some(secret), _) => sign(secret.expose_secret(), &capture.body),
            (None, Some(original)) => original.to_owned(),
            (None, None) => return Outcome::bad("not sent", "it has no signature of its own", Duration::ZERO),
        };
        let mut url = self.url.clone();
        if url.path() == "/" {
            url.set_path(&capture.path);
        }
        let mut attempt = 1;
        loop {
            let request = self.client.post(url.clone()).header(HEADER, &signature);
            let request = request.header(header::CONTENT_TYPE, "application/json").body(capture.body.clone());
            let sent = Instant::now();
            let answer = async {
                let response = request.send().await?;
                let (status, pause) = (response.status(), retry_after(&response));
                Ok::<_, reqwest::Error>((status.as_u16(), pause, response.text().await?))
            };
            match answer.await {
                Ok((RECORDED, ..)) => return Outcome::well(RECORDED, sent.elapsed()),
                Ok((LATER, pause, _)) if attempt < ATTEMPTS => sleep(pause).await,
                Ok((status, _, said)) => return Outcome::bad(status, said.trim(), sent.elapsed()),
                // A receiver that is being restarted is back in a moment.
                Err(_) if attempt < ATTEMPTS => sleep(PAUSE).await,
                Err(error) => {
                    let trouble = with_causes(&error.without_url());
                    return Outcome { hopeless: true, ..Outcome::bad("no answer", trouble, sent.elapsed()) };
                }
            }
            attempt += 1;
        }
    }
}

fn retry_after(response: &reqwest::Response) -> Duration {
    let seconds = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(PAUSE, Duration::from_secs).min(LONGEST_PAUSE)
}

/// The same way into the database that callbacks take, without HTTP.
struct Intake {
    recorder: Recorder,
    capturing: Capturing,
    /// To verify the original signatures with, where that is asked for.
    verifier: Option<Verifier>,
}

impl Intake {
    async fn deliver(&self, capture: Capture) -> Outcome {
        let started = Instant::now();
        let signature = capture.signature().and_then(|text| Signature::parse(text.as_bytes()).ok());
        let app_secret = match (&self.verifier, &signature) {
            (None, _) => None,
            (Some(verifier), Some(signature)) => match verifier.verify(&capture.body, signature) {
                Some(position) => i32::try_from(position + 1).ok(),
                None => return Outcome::bad("refused", "bad signature", started.elapsed()),
            },
            (Some(_), None) => return Outcome::bad("refused", "it has no signature of its own", started.elapsed()),
        };
        let callback = Callback {
            body: capture.body,
            received_at: capture.received_at.unwrap_or_else(OffsetDateTime::now_utc),
            signature: signature.map(|signature| signature.to_string()),
            app_secret,
        };
        let mut attempt = 1;
        loop {
            let Some(found) = callback.clone().find(self.capturing) else {
                return Outcome::well("nothing to record", started.elapsed());
            };
            let held = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("a permit of its own");
            match self.recorder.record(found, Instant::now(), held).await {
                Ok(()) => return Outcome::well("recorded", started.elapsed()),
                Err(_) if attempt < ATTEMPTS => sleep(PAUSE).await,
                Err(error) => {
                    return Outcome { hopeless: true, ..Outcome::bad("not recorded", error, started.elapsed()) };
                }
            }
            attempt += 1;
        }
    }
}

/// Reads everything and sends nothing.
fn look_at(capture: Capture) -> Outcome {
    let found =
        Callback { body: capture.body, received_at: OffsetDateTime::UNIX_EPOCH, signature: None, app_secret: None }
            .find(Capturing::Off);
    let kind = match found.as_ref().map(Found::findings) {
        None => "nothing about a lockout",
        Some(findings) if findings.unreadable.is_empty() => "lockouts",
        Some(_) => "something that cannot be read",
    };
    Outcome::well(kind, Duration::ZERO)
}

/// A replay under way: what came of it so far, in a size that does not grow with it.
struct Replay {
    target: Arc<Target>,
    bar: ProgressBar,
    pace: Option<Interval>,
    started: Instant,
    answers: BTreeMap<String, Tally>,
    latency: Histogram<u64>,
    sent: u64,
    bad: u64,
    hopeless: bool,
}

/// A capture that was delivered.
struct Done {
    number: u64,
    place: Place,
    size: u64,
    outcome: Outcome,
}

/// How often an answer came.
#[derive(Default)]
struct Tally {
    times: u64,
    /// The first that was not well, in the order of the files: where it stands, and what was said.
    trouble: Option<(u64, String)>,
}

impl Replay {
    fn new(target: Target, bar: ProgressBar, rate: Option<f64>) -> Self {
        Self {
            target: Arc::new(target),
            bar,
            pace: rate.map(|rate| interval(Duration::from_secs_f64(1.0 / rate))),
            started: Instant::now(),
            answers: BTreeMap::new(),
            latency: Histogram::new(3).expect("three digits are allowed"),
            sent: 0,
            bad: 0,
            hopeless: false,
        }
    }

    async fn play(&mut self, mut found: Receiver<Result<Located, Bad>>, concurrency: usize) {
        let mut under_way = JoinSet::new();
        while let Some(next) = found.recv().await {
            match next {
                Err(bad) => {
                    self.bad += 1;
                    self.bar.suspend(|| anstream::eprintln!("lockwatch: {bad}"));
                }
                Ok(Located { place, capture, size }) => {
                    if let Some(pace) = &mut self.pace {
                        pace.tick().await;
                    }
                    let target = Arc::clone(&self.target);
                    self.sent += 1;
                    let number = self.sent;
                    under_way
                        .spawn(async move { Done { number, place, size, outcome: target.deliver(capture).await } });
                }
            }
            while let Some(done) = under_way.try_join_next() {
                self.count(done);
            }
            if under_way.len() >= concurrency
                && let Some(done) = under_way.join_next().await
            {
                self.count(done);
            }
            if self.hopeless {
                break;
            }
        }
        drop(found);
        while let Some(done) = under_way.join_next().await {
            self.count(done);
        }
        self.bar.finish_and_clear();
    }

    fn count(&mut self, done: Result<Done, JoinError>) {
        let Done { number, place, size, outcome } = done.expect("a delivery does not panic");
        let Outcome { answer, trouble, latency, hopeless } = outcome;
        let tally = self.answers.entry(answer).or_default();
        tally.times += 1;
        if let Some(trouble) = trouble
            && tally.trouble.as_ref().is_none_or(|(first, _)| number < *first)
        {
            tally.trouble = Some((number, format!("first {place}: {trouble}")));
        }
        // Recording only fails where a histogram may not grow.
        let _ = self.latency.record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        self.hopeless |= hopeless;
        self.bar.inc(size);
        let done = self.latency.len();
        if done.is_multiple_of(64) {
            let speed = done as f64 / self.started.elapsed().as_secs_f64();
            self.bar.set_message(format!("{done} callbacks, {speed:.0}/s"));
        }
    }

    /// Says what came of it.
    fn finish(self) -> Result<(), Failure> {
        let (replayed, seconds) = (self.latency.len(), self.started.elapsed().as_secs_f64());
        let callbacks = if replayed == 1 { "callback" } else { "callbacks" };
        match &*self.target {
            Target::Http(_) | Target::Database(_) => {
                let speed = replayed as f64 / seconds.max(1e-6);
                say(format_args!("{replayed} {callbacks} replayed in {seconds:.1} s, {speed:.0}/s"))?;
            }
            Target::Nowhere => say(format_args!("{replayed} {callbacks} read, nothing sent"))?,
        }
        let width = self.answers.keys().map(String::len).max().unwrap_or_default();
        for (answer, Tally { times, trouble }) in &self.answers {
            let trouble = trouble.as_ref().map(|(_, trouble)| format!("  {}", printable(trouble))).unwrap_or_default();
            say(format_args!("  {answer:<width$}  {times:>8}{trouble}"))?;
        }
        if !matches!(*self.target, Target::Nowhere) && replayed > 0 {
            let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
            let (p50, p90, p99, max) = (at(0.5), at(0.9), at(0.99), at(1.0));
            say(format_args!("  latency p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"))?;
        }
        if self.bad > 0 {
            anstream::eprintln!("lockwatch: {} could not be read, see above", self.bad);
        }
        if self.hopeless {
            anstream::eprintln!("lockwatch: given up, the rest was not replayed");
        }
        let well = self.bad == 0 && self.answers.values().all(|tally| tally.trouble.is_none());
        if well { Ok(()) } else { Err(Failure::Told) }
    }
}
