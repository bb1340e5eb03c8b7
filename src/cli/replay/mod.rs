//! `lockwatch replay PATH… --to URL`

mod files;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Url;
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::files::{Bad, Files, Located, Place};
use self::target::{Intake, Outcome, Target, Webhook};
use super::serve::StopSignals;
use super::{Failure, ready_database, say};
use crate::config::{CaptureArgs, DataArgs, SigningArgs, app_secrets};
use crate::meta::signature::Verifier;
use crate::metrics::RecorderMetrics;
use crate::recorder::recorder;
use crate::report::text::printable;

/// Posts captured callbacks to a webhook, each signed anew, or takes them into the database as serve would
#[derive(Debug, Args)]
#[command(after_help = "\
Takes capture files (.jsonl), bare callbacks as in logs or in Meta's documentation (.json), folders of either, \
and - for stdin. A receiver that answers 503, or not at all, is tried again after its Retry-After or a second, \
ten times in all. Only 200 counts as success, as it does to Meta. Exit 1 if anything else was answered.

Needs META_APP_SECRET (the first of several), or --app-secret-file, to sign.")]
pub(super) struct ReplayArgs {
    /// Files, folders, or - for stdin
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The webhook, such as http://127.0.0.1:8080/webhook. Without a path: each capture's own
    #[arg(long, value_name = "URL", value_parser = webhook_url)]
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
    #[arg(long, value_name = "N/s", value_parser = rate, allow_hyphen_values = true)]
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

fn webhook_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| "not the URL of a webhook, which starts with http:// or https://".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches("/s").parse::<f64>().ok();
    number
        .filter(|rate| (0.001..=1e6).contains(rate))
        .ok_or_else(|| "not a number of callbacks a second".to_owned())
}

pub(super) async fn run(args: ReplayArgs) -> Result<(), Failure> {
    let files = Files::new(args.paths);
    let bar = progress_bar(files.total_size());
    let (target, recording) = match args.to {
        _ if args.dry_run => (Target::Nowhere, None),
        Some(url) => {
            let app_secret = if args.original_signature {
                None
            } else {
                Some(args.signing.app_secret()?)
            };
            (
                Target::Webhook(Webhook::new(url, app_secret, bar.clone())?),
                None,
            )
        }
        None if args.into_database => {
            let secrets = args.original_signature.then(app_secrets).transpose()?;
            let (recorder, task) = recorder(
                ready_database(&args.data).await?,
                Arc::new(Notify::new()),
                RecorderMetrics::default(),
            );
            let verifier = secrets.map(|secrets| Verifier::new(&secrets));
            let intake = Intake::new(recorder, args.capture.capture, verifier);
            (Target::Intake(intake), Some(tokio::spawn(task.run())))
        }
        None => {
            return Err(Failure::Usage(
                "say where to: --to URL, --into-database, or --dry-run".to_owned(),
            ));
        }
    };
    let mut replay = Replay::new(target, bar, args.rate);
    replay.play(files, usize::from(args.concurrency)).await?;
    let ended = replay.finish();
    if let Some(recording) = recording {
        recording.await.context("the recorder")?;
    }
    ended
}

/// Hidden without a terminal.
fn progress_bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{bar:30} {binary_bytes} of {binary_total_bytes}  {msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {binary_bytes}  {msg}",
        ),
    };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(ProgressStyle::with_template(template).expect("a valid template"))
}

/// A replay under way: what came of it so far, in a size that does not grow with it.
struct Replay {
    target: Arc<Target>,
    bar: ProgressBar,
    pace: Option<Pace>,
    started: Instant,
    answers: BTreeMap<String, Tally>,
    latency: Histogram<u64>,
    sent: u64,
    done: u64,
    bad: u64,
    /// The last capture that was sent.
    last: Option<Place>,
    /// Why no other was, if there are more.
    stopped: Option<&'static str>,
    hopeless: bool,
}

/// How often an answer came.
#[derive(Default)]
struct Tally {
    times: u64,
    /// The first that was not well, in the order of the files: where it stands, and what was said.
    trouble: Option<(u64, String)>,
}

/// A capture that was delivered.
struct Done {
    number: u64,
    place: Place,
    size: u64,
    outcome: Outcome,
}

impl Replay {
    fn new(target: Target, bar: ProgressBar, rate: Option<f64>) -> Self {
        Self {
            target: Arc::new(target),
            bar,
            pace: rate.map(Pace::new),
            started: Instant::now(),
            answers: BTreeMap::new(),
            latency: Histogram::new(3).expect("three digits are allowed"),
            sent: 0,
            done: 0,
            bad: 0,
            last: None,
            stopped: None,
            hopeless: false,
        }
    }

    /// Delivers all there is, until told to stop.
    async fn play(&mut self, files: Files, concurrency: usize) -> Result<(), Failure> {
        let mut stop = StopSignals::install()?;
        let mut found = files.read();
        let mut under_way = JoinSet::new();
        while self.stopped.is_none() {
            let due = self.pace.as_ref().map(|pace| pace.next);
            tokio::select! {
                next = next(&mut found, due), if under_way.len() < concurrency => match next {
                    None => break,
                    Some(Err(bad)) => self.tell(&bad),
                    Some(Ok(_)) if self.hopeless => self.stopped = Some("given up"),
                    Some(Ok(located)) => self.send(located, &mut under_way),
                },
                Some(done) = under_way.join_next() => self.count(done),
                _ = stop.wait() => {
                    self.stopped = Some("interrupted");
                    under_way.abort_all();
                }
            }
        }
        drop(found);
        loop {
            tokio::select! {
                done = under_way.join_next() => match done {
                    Some(done) => self.count(done),
                    None => break,
                },
                _ = stop.wait() => under_way.abort_all(),
            }
        }
        self.bar.finish_and_clear();
        Ok(())
    }

    fn send(&mut self, located: Located, under_way: &mut JoinSet<Done>) {
        let Located {
            place,
            capture,
            size,
            held,
        } = located;
        if let Some(pace) = &mut self.pace {
            pace.left();
        }
        let number = self.sent;
        self.sent += 1;
        self.last = Some(place.clone());
        let outcome = Arc::clone(&self.target).deliver(capture);
        under_way.spawn(async move {
            let outcome = outcome.await;
            drop(held);
            Done {
                number,
                place,
                size,
                outcome,
            }
        });
    }

    fn tell(&mut self, bad: &Bad) {
        self.bad += 1;
        self.bar.suspend(|| anstream::eprintln!("lockwatch: {bad}"));
    }

    fn count(&mut self, done: Result<Done, JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) if error.is_cancelled() => return,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let Done {
            number,
            place,
            size,
            outcome:
                Outcome {
                    answer,
                    trouble,
                    latency,
                    hopeless,
                },
        } = done;
        let tally = self.answers.entry(answer).or_default();
        tally.times += 1;
        if let Some(trouble) = trouble
            && tally
                .trouble
                .as_ref()
                .is_none_or(|(first, _)| number < *first)
        {
            tally.trouble = Some((number, format!("first {place}{trouble}")));
        }
        if let Some(latency) = latency {
            // Recording only fails where a histogram may not grow.
            let _ = self
                .latency
                .record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        }
        self.hopeless |= hopeless;
        self.done += 1;
        self.bar.inc(size);
        let speed = self.done as f64 / self.started.elapsed().as_secs_f64();
        self.bar
            .set_message(format!("{} callbacks, {speed:.0}/s", self.done));
    }

    /// Says what came of it.
    fn finish(self) -> Result<(), Failure> {
        let (done, seconds) = (self.done, self.started.elapsed().as_secs_f64());
        let callbacks = if done == 1 { "callback" } else { "callbacks" };
        match &*self.target {
            Target::Webhook(_) | Target::Intake(_) => {
                let speed = done as f64 / seconds.max(1e-6);
                say(format_args!(
                    "{done} {callbacks} replayed in {seconds:.1} s, {speed:.0}/s"
                ))?;
            }
            Target::Nowhere => say(format_args!("{done} {callbacks} read, nothing sent"))?,
        }
        let width = self
            .answers
            .keys()
            .map(String::len)
            .max()
            .unwrap_or_default();
        for (answer, Tally { times, trouble }) in &self.answers {
            let trouble = trouble
                .as_ref()
                .map(|(_, trouble)| format!("  {}", printable(trouble)))
                .unwrap_or_default();
            say(format_args!("  {answer:<width$}  {times:>8}{trouble}"))?;
        }
        if !self.latency.is_empty() {
            let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
            let (p50, p90, p99, max) = (at(0.5), at(0.9), at(0.99), at(1.0));
            say(format_args!(
                "  latency p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"
            ))?;
        }
        if self.bad > 0 {
            anstream::eprintln!("lockwatch: {} could not be read, see above", self.bad);
        }
        if let Some(why) = self.stopped {
            let rest = self.last.map_or("nothing".to_owned(), |last| {
                format!("what comes after {last}")
            });
            anstream::eprintln!("lockwatch: {why}: {rest} was not sent");
        }
        let all_well = self.answers.values().all(|tally| tally.trouble.is_none());
        if all_well && self.bad == 0 && self.stopped.is_none() {
            Ok(())
        } else {
            Err(Failure::Told)
        }
    }
}

/// The next capture, not before its time. Whoever stops waiting loses nothing.
async fn next(
    found: &mut Receiver<Result<Located, Bad>>,
    due: Option<Instant>,
) -> Option<Result<Located, Bad>> {
    if let Some(due) = due {
        sleep_until(due).await;
    }
    found.recv().await
}

/// When the next callback may leave.
struct Pace {
    period: Duration,
    next: Instant,
}

impl Pace {
    /// What was missed while the receiver was slow may be caught up with, but not all at once.
    const SLACK: Duration = Duration::from_millis(20);

    fn new(rate: f64) -> Self {
        Self {
            period: Duration::from_secs_f64(1.0 / rate),
            next: Instant::now(),
        }
    }

    fn left(&mut self) {
        self.next = (self.next + self.period).max(Instant::now() - Self::SLACK);
    }
}
