//! The results of a replay. Their size does not grow with the number of captures.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::files::Location;
use super::target::Outcome;
use crate::cli::print_line;
use crate::report::text::printable;

/// A callback with its outcome.
pub(super) struct Completion {
    /// The position of the callback in the order of the files.
    pub(super) number: u64,
    pub(super) location: Location,
    /// The bytes that it takes in the file.
    pub(super) size: u64,
    pub(super) outcome: Outcome,
}

/// The results so far.
pub(super) struct Results {
    started: Instant,
    completed: u64,
    answers: BTreeMap<String, AnswerStats>,
    /// In microseconds.
    latency: Histogram<u64>,
}

/// The results of all callbacks that got the same answer.
#[derive(Default)]
struct AnswerStats {
    count: u64,
    /// The failure that is first in the order of the files: the number of its callback, and a text.
    first_failure: Option<(u64, String)>,
}

impl Results {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            completed: 0,
            answers: BTreeMap::new(),
            latency: Histogram::new(3).expect("three digits are allowed"),
        }
    }

    pub(super) fn add(&mut self, completion: Completion) {
        let Completion {
            number,
            location,
            outcome,
            ..
        } = completion;
        self.completed += 1;
        let stats = self.answers.entry(outcome.answer).or_default();
        stats.count += 1;
        if let Some(reason) = outcome.failure {
            let is_first = match &stats.first_failure {
                Some((first, _)) => number < *first,
                None => true,
            };
            if is_first {
                stats.first_failure = Some((number, format!("first {location}{reason}")));
            }
        }
        if let Some(latency) = outcome.latency {
            self.record_latency(latency);
        }
    }

    fn record_latency(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        // Recording fails only in a histogram of a fixed range, and this one grows.
        let _ = self.latency.record(micros);
    }

    pub(super) fn has_failures(&self) -> bool {
        self.answers
            .values()
            .any(|stats| stats.first_failure.is_some())
    }

    /// Returns a text for the progress bar.
    pub(super) fn progress(&self) -> String {
        let per_second = self.completed as f64 / self.started.elapsed().as_secs_f64();
        format!("{} callbacks, {per_second:.0}/s", self.completed)
    }

    pub(super) fn print(&self, is_dry_run: bool) -> io::Result<()> {
        let count = self.completed;
        let callbacks = if count == 1 { "callback" } else { "callbacks" };
        if is_dry_run {
            print_line(format_args!("{count} {callbacks} read, nothing sent"))?;
        } else {
            let seconds = self.started.elapsed().as_secs_f64();
            let per_second = count as f64 / seconds.max(1e-6);
            print_line(format_args!(
                "{count} {callbacks} replayed in {seconds:.1} s, {per_second:.0}/s"
            ))?;
        }
        self.print_answers()?;
        self.print_latency()
    }

    fn print_answers(&self) -> io::Result<()> {
        let width = self.answers.keys().map(String::len).max().unwrap_or(0);
        for (answer, stats) in &self.answers {
            let count = stats.count;
            let failure = match &stats.first_failure {
                Some((_, text)) => format!("  {}", printable(text)),
                None => String::new(),
            };
            print_line(format_args!("  {answer:<width$}  {count:>8}{failure}"))?;
        }
        Ok(())
    }

    fn print_latency(&self) -> io::Result<()> {
        if self.latency.is_empty() {
            return Ok(());
        }
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0]
            .map(|quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0);
        print_line(format_args!(
            "  latency p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"
        ))
    }
}
