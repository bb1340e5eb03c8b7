//! The rule for incidents, compared with a model that sees all evidence at once.
//!
//! The model knows nothing of spans and late failures: it sorts all failures by time and divides
//! them where seven days passed, or where a person resolved. The rule sees the failures one by one,
//! in the order of their arrival.

use std::collections::{BTreeMap, BTreeSet};

use lockwatch::lockout::cause::{Notice, notice_times};
use lockwatch::lockout::incident::{History, NoticeTimes, Resolution, Span};
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
        self.history = History::new(spans, NoticeTimes::default());
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

/// What Meta announces, in half hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Failure,
    Ban,
    Reinstate,
    Unban,
    /// A restriction that ends after so long.
    Restriction(i64),
}

/// A word with its time, and how much later it arrives: a notice within the seven days in which
/// Meta repeats it. Words of different kinds never come at the same time.
fn told() -> impl Strategy<Value = Vec<(i64, Word, i64)>> {
    let delay = prop_oneof![3 => Just(0_i64), 3 => 0..WEEK, 1 => 0..40 * DAY];
    let word = prop_oneof![
        6 => Just(Word::Failure),
        1 => Just(Word::Ban),
        1 => Just(Word::Reinstate),
        1 => Just(Word::Unban),
        1 => (1..10 * DAY).prop_map(Word::Restriction),
    ];
    let told = (0..20 * DAY, word, delay).prop_map(|(at, word, delay)| {
        let (place, word) = match word {
            Word::Failure => (0, word),
            Word::Ban => (1, word),
            Word::Reinstate => (2, word),
            Word::Unban => (3, word),
            Word::Restriction(length) => (4, Word::Restriction(6 * length + 1)),
        };
        let delay = if word == Word::Failure {
            delay
        } else {
            delay % WEEK
        };
        (6 * at + place, word, 6 * delay)
    });
    vec(told, 1..12)
}

fn fine_time(at: i64) -> OffsetDateTime {
    time(0) + Duration::minutes(5 * at)
}

const FINE_WEEK: i64 = 6 * WEEK;
/// Evidence this shortly after an announced end says that there was no end.
const GRACE: i64 = 12;
const BAN_LENGTH: i64 = 6 * 30 * DAY;

/// The incidents that a reader of the whole story sees: it walks through time once.
fn walk(words: &BTreeSet<(i64, Word)>) -> Incidents {
    let mut steps: BTreeSet<(i64, Option<Word>)> =
        words.iter().map(|(at, word)| (*at, Some(*word))).collect();
    for (at, word) in words {
        if let Word::Restriction(length) = word {
            steps.insert((at + length, None));
        }
    }
    let mut incidents = Incidents::new();
    let mut open: Option<(BTreeSet<i64>, i64)> = None;
    let (mut bans, mut restrictions): (Vec<i64>, Vec<i64>) = (vec![], vec![]);
    for (now, word) in steps {
        if let Some((evidence, last)) = &mut open {
            for end in bans.iter().chain(&restrictions) {
                if *end > *last {
                    *last = now.min(*end);
                }
            }
            // Without a failure, silence ends it only when another lock comes.
            let has_failed = evidence.iter().any(|at| at % 6 == 0);
            let is_evidence = matches!(word, Some(Word::Failure | Word::Ban));
            if now - *last >= FINE_WEEK && (has_failed || is_evidence) {
                incidents.insert((std::mem::take(evidence), *last + FINE_WEEK));
                open = None;
            }
        }
        bans.retain(|end| *end > now);
        let mut is_lifted = false;
        match word {
            Some(Word::Failure | Word::Ban) => {
                let (evidence, last) = open.get_or_insert_with(|| (BTreeSet::new(), now));
                evidence.insert(now);
                *last = now;
                if word == Some(Word::Ban) {
                    bans.push(now + BAN_LENGTH);
                }
            }
            Some(Word::Restriction(length)) => {
                restrictions.push(now + length);
                if let Some((_, last)) = &mut open
                    && now - *last < FINE_WEEK
                {
                    *last = now;
                }
            }
            Some(Word::Reinstate) => {
                bans.clear();
                restrictions.clear();
                is_lifted = true;
            }
            Some(Word::Unban) => {
                restrictions.clear();
                is_lifted = bans.is_empty();
            }
            None => {
                let before = restrictions.len();
                restrictions.retain(|end| *end > now);
                let has_ended = restrictions.len() < before;
                let lifted = words.iter().filter(|(at, word)| {
                    *at > now && matches!(word, Word::Reinstate | Word::Unban)
                });
                let lifted = lifted.map(|(at, _)| *at).min().unwrap_or(i64::MAX);
                let goes_on = words.iter().any(|(at, word)| {
                    matches!(word, Word::Failure | Word::Ban)
                        && (now..lifted.min(now + GRACE)).contains(at)
                });
                is_lifted = has_ended && bans.is_empty() && restrictions.is_empty() && !goes_on;
            }
        }
        if is_lifted && let Some((evidence, _)) = open.take() {
            incidents.insert((evidence, now));
        }
    }
    if let Some((evidence, mut last)) = open {
        let mut ends: Vec<i64> = bans.into_iter().chain(restrictions).collect();
        ends.sort_unstable();
        last = ends.into_iter().fold(last, i64::max);
        incidents.insert((evidence, last + FINE_WEEK));
    }
    incidents
}

/// The rule at work, with Meta's notices.
#[derive(Default)]
struct Listener {
    history: History,
    notices: Vec<Notice>,
    evidence: BTreeMap<usize, BTreeSet<i64>>,
    known: BTreeSet<(i64, Word)>,
    has_bridge: bool,
}

impl Listener {
    fn hear(&mut self, at: i64, word: Word) {
        let before = walk(&self.known);
        self.known.insert((at, word));
        let notice = |event: &str, state: &str, expires_at| Notice {
            field: "account_update".to_owned(),
            event: event.to_owned(),
            state: Some(state.to_owned()),
            detail: None,
            occurred_at: fine_time(at),
            expires_at,
        };
        let restricted = "RESTRICTED_BIZ_INITIATED_MESSAGING";
        self.notices.extend(match word {
            Word::Failure => None,
            Word::Ban => Some(notice("DISABLED_UPDATE", "DISABLE", None)),
            Word::Reinstate => Some(notice("DISABLED_UPDATE", "REINSTATE", None)),
            Word::Unban => Some(notice("ACCOUNT_RESTRICTION", "SPAM_UNBAN", None)),
            Word::Restriction(length) => {
                let end = Some(fine_time(at + length));
                Some(notice("ACCOUNT_RESTRICTION", restricted, end))
            }
        });
        let spans = self.history.spans().to_vec();
        self.history = History::new(spans, notice_times(&self.notices, &[]));
        self.divide();
        if matches!(word, Word::Failure | Word::Ban) {
            let position = match word {
                Word::Failure => self.history.add_failure(fine_time(at)),
                _ => self.history.add_evidence(fine_time(at)),
            };
            self.evidence.entry(position).or_default().insert(at);
        }
        self.has_bridge |= walk(&self.known).iter().any(|(together, _)| {
            let parts = before
                .iter()
                .filter(|(part, _)| !part.is_disjoint(together));
            parts.count() > 1
        });
    }

    /// Divides what Meta has ended in between.
    fn divide(&mut self) {
        for position in 0..self.history.spans().len() {
            let mut end = time(0) - Duration::days(1);
            while let Some((lifted_at, how)) = self.history.lifted_after(position, end) {
                end = lifted_at;
                let all = self.evidence.remove(&position).unwrap_or_default();
                let (before, after): (BTreeSet<i64>, BTreeSet<i64>) =
                    all.into_iter().partition(|at| fine_time(*at) < lifted_at);
                let ends = before.last().copied().zip(after.first().copied());
                let is_void = |(_, first_after): &(i64, i64)| {
                    how == Resolution::Expired
                        && fine_time(*first_after) < lifted_at + Duration::minutes(5 * GRACE)
                };
                let Some((last_before, first_after)) = ends.filter(|ends| !is_void(ends)) else {
                    self.evidence
                        .insert(position, before.into_iter().chain(after).collect());
                    continue;
                };
                let (last, first) = (fine_time(last_before), fine_time(first_after));
                let earlier = self.history.divide(position, last, first, [true, true]);
                self.evidence.insert(earlier, before);
                self.evidence.insert(position, after);
            }
        }
    }

    fn incidents(&self) -> Incidents {
        let end = |position: &usize| (self.history.end(*position) - time(0)).whole_minutes() / 5;
        let all = self.evidence.iter();
        all.map(|(position, evidence)| (evidence.clone(), end(position)))
            .collect()
    }
}

#[test]
fn any_order_of_notices_and_failures_gives_the_same_incidents() {
    let config = ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let counts = std::cell::Cell::new((0, 0, 0));
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&told(), |told| {
            let mut order: Vec<_> = told
                .iter()
                .map(|(at, word, delay)| (at + delay, *at, *word))
                .collect();
            order.sort_unstable();
            let mut listener = Listener::default();
            for (_, at, word) in order {
                if !listener.known.contains(&(at, word)) {
                    listener.hear(at, word);
                }
            }
            let (compared, bridges, several) = counts.get();
            if listener.has_bridge {
                counts.set((compared, bridges + 1, several));
                return Ok(());
            }
            let expected = walk(&listener.known);
            let is_several = u32::from(expected.len() > 1);
            counts.set((compared + 1, bridges, several + is_several));
            prop_assert_eq!(listener.incidents(), expected);
            Ok(())
        })
        .unwrap();
    let (compared, bridges, several) = counts.get();
    assert!(compared > 8_000, "too few stories are compared: {compared}");
    assert!(bridges > 500, "too few bridges: {bridges}");
    assert!(
        several > 3_000,
        "too few stories with several incidents: {several}"
    );
}
