//! The rule for incidents, compared with a model that sees all evidence at once.
//!
//! The model knows nothing of spans and late failures: it sorts all failures by time and divides
//! them where seven days passed, or where a person resolved. The rule sees the failures one by one,
//! in the order of their arrival.

use std::collections::{BTreeMap, BTreeSet};

use lockwatch::lockout::incident::{History, Span};
use proptest::collection::vec;
use proptest::prelude::*;
use time::{Duration, OffsetDateTime};

/// Times are half hours: failures at even ones, resolutions at odd ones.
const DAY: i64 = 48;
const WEEK: i64 = 7 * DAY;

fn time(half_hours: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::days(20_000) + Duration::minutes(30 * half_hours)
}

fn half_hours(at: OffsetDateTime) -> i64 {
    (at - time(0)).whole_minutes() / 30
}

/// What happens, in half hours.
#[derive(Debug, Clone)]
struct Story {
    /// The time of each failure, and how much later it arrives.
    failures: Vec<(i64, i64)>,
    /// The times at which a person resolves the open incident, if there is one.
    resolutions: Vec<i64>,
}

/// Failures over two months. Most arrive late: within Meta's seven days, or after an outage.
fn story() -> impl Strategy<Value = Story> {
    let delay = prop_oneof![3 => 0..3_i64, 3 => 0..WEEK, 1 => 0..40 * DAY];
    let failures = vec(((0..30 * DAY).prop_map(|at| 2 * at), delay), 1..14);
    let resolutions = vec((0..35 * DAY).prop_map(|at| 2 * at + 1), 0..4);
    (failures, resolutions).prop_map(|(failures, resolutions)| Story {
        failures,
        resolutions,
    })
}

/// The incidents that the model finds: the failures of each, and its end.
type Incidents = BTreeSet<(BTreeSet<i64>, i64)>;

fn model(failures: &BTreeSet<i64>, resolutions: &[i64]) -> Incidents {
    let mut incidents = Incidents::new();
    let mut current = BTreeSet::new();
    for failure in failures {
        if let Some(last) = current.last().copied() {
            let resolved = resolutions.iter().copied().filter(|at| *at > last).min();
            let end = resolved.unwrap_or(i64::MAX).min(last + WEEK);
            if *failure >= end {
                incidents.insert((std::mem::take(&mut current), end));
            }
        }
        current.insert(*failure);
    }
    if let Some(last) = current.last().copied() {
        let resolved = resolutions.iter().copied().filter(|at| *at > last).min();
        incidents.insert((current, resolved.unwrap_or(i64::MAX).min(last + WEEK)));
    }
    incidents
}

/// The rule at work.
#[derive(Default)]
struct Recorder {
    history: History,
    failures: BTreeMap<usize, BTreeSet<i64>>,
    /// The resolutions that ended an incident.
    effective: Vec<i64>,
    /// Whether a late failure came between two recorded incidents that belong together.
    has_bridge: bool,
}

impl Recorder {
    fn add_failure(&mut self, failure: i64) {
        let before = model(&self.all(), &self.effective);
        let position = self.history.add_failure(time(failure));
        self.failures.entry(position).or_default().insert(failure);
        let after = model(&self.all(), &self.effective);
        // Two failures that were apart are together now.
        self.has_bridge |= after.iter().any(|(together, _)| {
            let parts = before
                .iter()
                .filter(|(part, _)| !part.is_disjoint(together));
            parts.count() > 1
        });
    }

    fn resolve(&mut self, at: i64) {
        let open = (0..self.history.spans().len())
            .find(|position| self.history.is_open(*position, time(at)));
        let Some(position) = open else { return };
        let mut spans = self.history.spans().to_vec();
        // A failure of the future cannot have been seen.
        assert!(half_hours(spans[position].last_evidence_at) <= at);
        spans[position].ended_at = Some(time(at));
        self.history = History::new(spans);
        self.effective.push(at);
    }

    fn all(&self) -> BTreeSet<i64> {
        self.failures.values().flatten().copied().collect()
    }

    fn incidents(&self) -> Incidents {
        self.failures
            .iter()
            .map(|(position, failures)| (failures.clone(), half_hours(self.history.end(*position))))
            .collect()
    }

    /// What holds of every history, also with a bridge.
    fn check(&self, now: i64) -> Result<(), TestCaseError> {
        let spans: &[Span] = self.history.spans();
        prop_assert_eq!(self.failures.len(), spans.len());
        let open = (0..spans.len()).filter(|p| self.history.is_open(*p, time(now)));
        prop_assert!(open.count() <= 1);
        for (position, failures) in &self.failures {
            let span = spans[*position];
            prop_assert_eq!(Some(half_hours(span.opened_at)), failures.first().copied());
            for failure in failures {
                let rest: Vec<i64> = failures.iter().copied().filter(|f| f != failure).collect();
                let is_near = rest.iter().any(|other| (other - failure).abs() < WEEK);
                prop_assert!(rest.is_empty() || is_near, "{} is alone", failure);
                prop_assert!(half_hours(span.opened_at) <= *failure);
                prop_assert!(*failure < half_hours(self.history.end(*position)));
            }
        }
        for (position, span) in spans.iter().enumerate() {
            for (other, next) in spans.iter().enumerate() {
                let overlaps =
                    span.opened_at <= next.opened_at && next.opened_at < self.history.end(position);
                prop_assert!(position == other || !overlaps, "two incidents overlap");
            }
        }
        Ok(())
    }
}

/// Tells the story in the order of arrival.
fn tell(story: &Story) -> Result<Recorder, TestCaseError> {
    enum Event {
        Failure(i64),
        Resolution,
    }
    let arrivals = story
        .failures
        .iter()
        .map(|(at, delay)| (at + delay, Event::Failure(*at)));
    let resolutions = story.resolutions.iter().map(|at| (*at, Event::Resolution));
    let mut events: Vec<(i64, Event)> = arrivals.chain(resolutions).collect();
    events.sort_by_key(|(at, _)| *at);
    let mut recorder = Recorder::default();
    for (at, event) in events {
        match event {
            // The same message again, or another of the same time: nothing new for the rule.
            Event::Failure(failure) if recorder.all().contains(&failure) => {}
            Event::Failure(failure) => recorder.add_failure(failure),
            Event::Resolution => recorder.resolve(at),
        }
        recorder.check(at)?;
    }
    Ok(recorder)
}

#[test]
fn any_order_of_arrival_gives_the_incidents_of_the_model() {
    let config = ProptestConfig {
        cases: 8_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let (mut compared, mut bridges, mut late) = (0, 0, 0);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let counts = std::cell::RefCell::new((&mut compared, &mut bridges, &mut late));
    runner
        .run(&story(), |story| {
            let recorder = tell(&story)?;
            let mut counts = counts.borrow_mut();
            if recorder.has_bridge {
                *counts.1 += 1;
                return Ok(());
            }
            *counts.0 += 1;
            let expected = model(&recorder.all(), &recorder.effective);
            *counts.2 += u32::from(expected.len() > 1);
            prop_assert_eq!(recorder.incidents(), expected);
            Ok(())
        })
        .unwrap();
    assert!(compared > 2_000, "too few stories are compared: {compared}");
    assert!(bridges > 200, "too few bridges: {bridges}");
    assert!(late > 800, "too few stories with several incidents: {late}");
}

#[test]
fn lockouts_forty_days_apart_are_two_incidents() {
    let mut history = History::default();
    let first = history.add_failure(time(0));
    let second = history.add_failure(time(40 * DAY));
    assert_ne!(first, second);
    assert_eq!(half_hours(history.end(first)), WEEK);
}
