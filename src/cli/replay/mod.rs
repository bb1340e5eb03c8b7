//! `lockwatch replay PATH… --to URL`

mod files;
mod results;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Url;
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::files::{CaptureFiles, LocatedCapture, Location, ReadError};
use self::results::{Completion, Results};
use self::target::{DatabaseTarget, Target, WebhookTarget};
use super::serve::StopSignals;
use super::{Failure, open_database};
use crate::config::{CaptureArgs, DataArgs, SigningArgs, read_app_secrets};
use crate::inbox::{Capturing, Inbox, inbox};
use crate::meta::interest::Interest;
use crate::meta::signature::Verifier;
use crate::metrics::{InboxMetrics, ProcessorMetrics};
use crate::processor::Processor;
use crate::progress::Progress;
use crate::report::text::format_count;
use crate::store::{Database, Pool, backlog, bounded};
use crate::woken::Woken;

/// The pause between two looks at what is left in the inbox.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
#[command(after_help = "\
Reads capture files (.jsonl), bare callbacks from logs or from Meta's documentation (.json), \
folders of both, and stdin (-). Makes up to ten attempts if the receiver answers 503 or not at \
all, and waits between them for one second or as its Retry-After says. Only 200 counts as success, \
as it does for Meta. Exits 1 after any other answer.

Signing needs META_APP_SECRET (the first of several is used), or --app-secret-file.")]
pub(super) struct ReplayArgs {
    /// Files and folders to read, or - for stdin
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Post to this webhook, such as http://127.0.0.1:8080/webhook. A URL without a path gets the
    /// path of each capture
    #[arg(long, value_name = "URL", value_parser = parse_webhook_url)]
    to: Option<Url>,
    /// Append to the database's inbox, without HTTP, with the times at which callbacks were
    /// received, and process it: failures, incidents and captures. A running serve looks up the
    /// causes
    #[arg(long, conflicts_with_all = ["to", "app_secret_file"])]
    into_database: bool,
    /// Send the original signatures; with --into-database: verify them before recording
    #[arg(long, conflicts_with = "app_secret_file")]
    original_signature: bool,
    /// Read and count all callbacks, but send nothing
    #[arg(long)]
    dry_run: bool,
    /// Send at most this many callbacks per second, such as 50 or 50/s
    #[arg(long, value_name = "N/s", value_parser = parse_rate, allow_hyphen_values = true)]
    rate: Option<f64>,
    /// Send at most this many callbacks at once
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    concurrency: u16,
    #[command(flatten)]
    signing: SigningArgs,
    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    data: DataArgs,
}

fn parse_webhook_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| "not the URL of a webhook, which starts with http:// or https://".to_owned())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text
        .trim_end_matches("/s")
        .parse()
        .ok()
        .filter(|rate| (0.001..=1e6).contains(rate));
    rate.ok_or_else(|| "not a number of callbacks a second, such as 50 or 0.5".to_owned())
}

pub(super) async fn run(mut args: ReplayArgs) -> Result<(), Failure> {
    let files = CaptureFiles::new(std::mem::take(&mut args.paths));
    let bar = progress_bar(files.total_size());
    let (target, recording) = open_target(&args, bar.clone()).await?;
    let mut replay = Replay::new(target, bar, args.rate);
    replay.run(files, usize::from(args.concurrency)).await?;
    // This drops the target, and with it the only sender to the inbox, which then ends.
    let result = replay.print_summary();
    if let Some(recording) = recording {
        recording.finish().await?;
    }
    result
}

/// Opens the target, and starts inbox and processor if the target is the database.
async fn open_target(
    args: &ReplayArgs,
    bar: ProgressBar,
) -> Result<(Target, Option<Recording>), Failure> {
    let interest = Interest::new(args.capture.codes.clone());
    if args.dry_run {
        return Ok((Target::DryRun(interest), None));
    }
    if let Some(url) = &args.to {
        let app_secret = if args.original_signature {
            None
        } else {
            Some(args.signing.read_app_secret()?)
        };
        let webhook = WebhookTarget::new(url.clone(), app_secret, bar)?;
        return Ok((Target::Webhook(webhook), None));
    }
    if !args.into_database {
        return Err(Failure::Usage(
            "no target is given: use --to URL, --into-database, or --dry-run".to_owned(),
        ));
    }
    let verifier = if args.original_signature {
        Some(Verifier::new(&read_app_secrets()?))
    } else {
        None
    };
    let database = open_database(&args.data).await?;
    let capturing = args.capture.capture;
    let (inbox, recording) = Recording::start(&database, interest.clone(), capturing);
    let target = DatabaseTarget::new(inbox, interest, capturing, verifier);
    Ok((Target::Database(target), Some(recording)))
}

/// The inbox and the processor of a replay into the database.
struct Recording {
    db: Pool,
    inbox: JoinHandle<()>,
    processor: JoinHandle<()>,
    stop: CancellationToken,
}

impl Recording {
    fn start(database: &Database, interest: Interest, capturing: Capturing) -> (Inbox, Self) {
        let (woken, progress) = (Woken::default(), Progress::default());
        let (inbox, task) = inbox(
            database.clone(),
            woken.clone(),
            progress.clone(),
            InboxMetrics::default(),
        );
        let metrics = ProcessorMetrics::default();
        let processor = Processor::new(
            database.clone(),
            interest,
            capturing,
            woken,
            progress,
            metrics,
        );
        let stop = CancellationToken::new();
        let recording = Self {
            db: database.pool(),
            inbox: tokio::spawn(task.run()),
            processor: tokio::spawn(processor.run(stop.clone())),
            stop,
        };
        (inbox, recording)
    }

    /// Waits until everything that was appended so far is processed, or has a problem. Fails in the
    /// second case.
    async fn finish(self) -> Result<(), Failure> {
        self.inbox.await.context("the inbox")?;
        let last = bounded(backlog::last_id(&self.db))
            .await
            .context("cannot read the inbox")?;
        let mut stop = StopSignals::install()?;
        let left = loop {
            match bounded(backlog::count_until(&self.db, last)).await {
                Ok(left) if left.waiting == 0 => break left,
                // The processor says why nothing happens.
                _ => {}
            }
            tokio::select! {
                () = sleep(POLL_INTERVAL) => {}
                _ = stop.wait() => {
                    anstream::eprintln!("lockwatch: interrupted; a running serve processes the rest");
                    return Err(Failure::Reported);
                }
            }
        };
        self.stop.cancel();
        self.processor.await.context("the processor")?;
        if left.problems > 0 {
            let callbacks = format_count(left.problems, "callback", "callbacks");
            let error = anyhow!("{callbacks} could not be processed: see lockwatch inbox list");
            return Err(error.into());
        }
        Ok(())
    }
}

/// Creates the progress bar, which is hidden if there is no terminal.
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

/// A running replay.
struct Replay {
    target: Arc<Target>,
    bar: ProgressBar,
    pace: Option<Pace>,
    results: Results,
    sent: u64,
    last_sent: Option<Location>,
    read_errors: u64,
    /// The reason why captures were left out, if there are any.
    stop_reason: Option<&'static str>,
    is_target_lost: bool,
}

impl Replay {
    fn new(target: Target, bar: ProgressBar, rate: Option<f64>) -> Self {
        Self {
            target: Arc::new(target),
            bar,
            pace: rate.map(Pace::new),
            results: Results::new(),
            sent: 0,
            last_sent: None,
            read_errors: 0,
            stop_reason: None,
            is_target_lost: false,
        }
    }

    /// Sends all captures, until a signal comes or the target is lost. The first signal stops
    /// reading and aborts the callbacks in flight.
    async fn run(&mut self, files: CaptureFiles, concurrency: usize) -> Result<(), Failure> {
        let mut stop = StopSignals::install()?;
        let mut captures = files.spawn_reader();
        let mut in_flight = JoinSet::new();
        while self.stop_reason.is_none() {
            let due = self.pace.as_ref().map(|pace| pace.next);
            tokio::select! {
                next = next_capture(&mut captures, due), if in_flight.len() < concurrency => {
                    match next {
                        None => break,
                        Some(Err(error)) => self.report_read_error(&error),
                        Some(Ok(_)) if self.is_target_lost => self.stop_reason = Some("given up"),
                        Some(Ok(located)) => self.send(located, &mut in_flight),
                    }
                }
                Some(completion) = in_flight.join_next() => self.count_completion(completion),
                _ = stop.wait() => {
                    self.stop_reason = Some("interrupted");
                    in_flight.abort_all();
                }
            }
        }
        drop(captures);
        loop {
            tokio::select! {
                completion = in_flight.join_next() => match completion {
                    Some(completion) => self.count_completion(completion),
                    None => break,
                },
                _ = stop.wait() => in_flight.abort_all(),
            }
        }
        self.bar.finish_and_clear();
        Ok(())
    }

    fn send(&mut self, located: LocatedCapture, in_flight: &mut JoinSet<Completion>) {
        let LocatedCapture {
            location,
            capture,
            size,
            memory,
        } = located;
        if let Some(pace) = &mut self.pace {
            pace.advance();
        }
        let number = self.sent;
        self.sent += 1;
        self.last_sent = Some(location.clone());
        let outcome = Arc::clone(&self.target).start(capture);
        in_flight.spawn(async move {
            let outcome = outcome.await;
            drop(memory);
            Completion {
                number,
                location,
                size,
                outcome,
            }
        });
    }

    fn report_read_error(&mut self, error: &ReadError) {
        self.read_errors += 1;
        self.bar
            .suspend(|| anstream::eprintln!("lockwatch: {error}"));
    }

    fn count_completion(&mut self, completion: Result<Completion, JoinError>) {
        let completion = match completion {
            Ok(completion) => completion,
            Err(error) if error.is_cancelled() => return,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.is_target_lost |= completion.outcome.is_fatal;
        self.bar.inc(completion.size);
        self.results.add(completion);
        self.bar.set_message(self.results.progress());
    }

    /// Prints the results. Fails if anything was not replayed.
    fn print_summary(self) -> Result<(), Failure> {
        self.results
            .print(matches!(*self.target, Target::DryRun(_)))?;
        if self.read_errors > 0 {
            let count = self.read_errors;
            anstream::eprintln!("lockwatch: {count} could not be read, see above");
        }
        match (self.stop_reason, &self.last_sent) {
            (Some(reason), Some(last)) => {
                anstream::eprintln!("lockwatch: {reason}: nothing after {last} was sent");
            }
            (Some(reason), None) => anstream::eprintln!("lockwatch: {reason}: nothing was sent"),
            (None, _) => {}
        }
        if self.results.has_failures() || self.read_errors > 0 || self.stop_reason.is_some() {
            return Err(Failure::Reported);
        }
        Ok(())
    }
}

/// Returns the next capture, but not before `due`. A caller that stops waiting loses no capture.
async fn next_capture(
    captures: &mut Receiver<Result<LocatedCapture, ReadError>>,
    due: Option<Instant>,
) -> Option<Result<LocatedCapture, ReadError>> {
    if let Some(due) = due {
        sleep_until(due).await;
    }
    captures.recv().await
}

/// The pace at which callbacks are sent.
struct Pace {
    interval: Duration,
    /// The time of the next callback.
    next: Instant,
}

impl Pace {
    /// Callbacks that are late, because the receiver was slow, are sent faster for at most this
    /// time.
    const CATCH_UP_WINDOW: Duration = Duration::from_millis(20);

    fn new(rate: f64) -> Self {
        Self {
            interval: Duration::from_secs_f64(1.0 / rate),
            next: Instant::now(),
        }
    }

    /// Moves on after a callback was sent.
    fn advance(&mut self) {
        self.next = (self.next + self.interval).max(Instant::now() - Self::CATCH_UP_WINDOW);
    }
}
