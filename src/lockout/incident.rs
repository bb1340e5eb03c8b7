//! Incidents: the incident that a failure belongs to, and the end of an incident.

use std::time::Duration;

use time::OffsetDateTime;

/// One incident of an account, as a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The time of its first evidence.
    pub opened_at: OffsetDateTime,
    /// The time of its latest evidence: a failure, or a check that still shows the cause.
    pub last_evidence_at: OffsetDateTime,
    /// The time at which something else than silence ended it. Such an end never moves.
    pub ended_at: Option<OffsetDateTime>,
}

/// The incidents of one account and kind. Spans never overlap.
///
/// Whether an incident is open follows from its evidence and from the incidents after it, not from
/// what was noticed when. So the same failures give the same incidents in any order, but for one
/// case: two incidents that are recorded stay two, also when a failure arrives late that would have
/// made them one.
///
/// ```
/// use lockwatch::lockout::incident::History;
/// use time::{Duration, OffsetDateTime};
///
/// let day = |n| OffsetDateTime::UNIX_EPOCH + Duration::days(n);
/// let mut history = History::default();
/// let first = history.add_failure(day(100));
/// assert_eq!(history.add_failure(day(106)), first, "within seven days");
/// assert_ne!(history.add_failure(day(113)), first, "a week of silence: the next lockout");
/// assert_eq!(history.end(first), day(113));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    spans: Vec<Span>,
}

impl History {
    /// Makes a history of these incidents. Their positions stay the same.
    ///
    /// To place a failure, every incident that [ends](Self::end) after it is needed.
    #[must_use]
    pub fn new(spans: Vec<Span>) -> Self {
        Self { spans }
    }

    /// The incidents by their positions.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Returns the incident that lasts at this time, if there is one.
    #[must_use]
    pub fn find(&self, at: OffsetDateTime) -> Option<usize> {
        (0..self.spans.len())
            .find(|position| self.spans[*position].opened_at <= at && at < self.end(*position))
    }

    /// Adds a failure, and returns the position of its incident.
    ///
    /// That is the incident that lasts at this time; else the next one if it starts within seven
    /// days, and then it starts here; else a new one. A failure between two incidents never merges
    /// them.
    pub fn add_failure(&mut self, at: OffsetDateTime) -> usize {
        if let Some(position) = self.find(at) {
            let span = &mut self.spans[position];
            span.last_evidence_at = span.last_evidence_at.max(at);
            return position;
        }
        let next = (0..self.spans.len())
            .filter(|position| self.spans[*position].opened_at > at)
            .min_by_key(|position| self.spans[*position].opened_at)
            .filter(|position| self.spans[*position].opened_at < at + QUIET_WINDOW);
        if let Some(position) = next {
            self.spans[position].opened_at = at;
            return position;
        }
        self.spans.push(Span {
            opened_at: at,
            last_evidence_at: at,
            ended_at: None,
        });
        self.spans.len() - 1
    }

    /// Returns the end of an incident, which may lie in the future: what ended it, else seven days
    /// of silence, but not later than the start of the next incident.
    #[must_use]
    pub fn end(&self, position: usize) -> OffsetDateTime {
        let span = &self.spans[position];
        span.ended_at.unwrap_or_else(|| {
            let quiet_end = span.last_evidence_at + QUIET_WINDOW;
            self.next_start(position)
                .map_or(quiet_end, |start| start.min(quiet_end))
        })
    }

    /// Returns whether an incident is open. At most the latest one is.
    #[must_use]
    pub fn is_open(&self, position: usize, now: OffsetDateTime) -> bool {
        self.spans[position].ended_at.is_none()
            && self.next_start(position).is_none()
            && self.end(position) > now
    }

    fn next_start(&self, position: usize) -> Option<OffsetDateTime> {
        let start = self.spans[position].opened_at;
        let later = self.spans.iter().map(|span| span.opened_at);
        later.filter(|opened_at| *opened_at > start).min()
    }
}

/// The reason why an incident ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The cause was found, and no affected number shows it any more.
    Recovered,
    /// There was no failure for seven days.
    Quiet,
    /// A person resolved it.
    Manual,
}

impl Resolution {
    /// Every resolution.
    pub const ALL: [Self; 3] = [Self::Recovered, Self::Quiet, Self::Manual];

    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Quiet => "quiet",
            Self::Manual => "manual",
        }
    }

    /// Parses a word of the database.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resolution| resolution.as_str() == word)
    }
}

/// An incident without a failure for this long is over.
pub(crate) const QUIET_WINDOW: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The shortest time between two clear checks of a number that together count as recovery.
pub(crate) const RECOVERY_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// A run of checks of one number that did not show the recorded cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClearRun {
    /// The time of the first check.
    pub(crate) since: OffsetDateTime,
    /// The time of the latest check.
    pub(crate) until: OffsetDateTime,
}

/// Returns the start of the run after one more answered check: the run starts, continues or ends. A
/// failure after its start ends it too, because the account cannot have been healthy at that time.
#[must_use]
pub(crate) fn extend_clear_run(
    run_start: Option<OffsetDateTime>,
    is_clear: bool,
    checked_at: OffsetDateTime,
    last_failure_at: OffsetDateTime,
) -> Option<OffsetDateTime> {
    if !is_clear {
        return None;
    }
    run_start
        .filter(|since| *since > last_failure_at)
        .or((checked_at > last_failure_at).then_some(checked_at))
}

/// Returns whether an incident with a found cause is over. Each affected number must have been
/// clear since the last failure, in two checks that are at least [`RECOVERY_INTERVAL`] apart.
/// `None` stands for a number whose last check was not clear.
#[must_use]
pub(crate) fn is_recovered(numbers: &[Option<ClearRun>], last_failure_at: OffsetDateTime) -> bool {
    !numbers.is_empty()
        && numbers.iter().all(|run| {
            run.is_some_and(|run| {
                run.since > last_failure_at && run.until - run.since >= RECOVERY_INTERVAL
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const T: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

    fn minutes(n: i64) -> OffsetDateTime {
        T + time::Duration::minutes(n)
    }

    fn history(spans: &[(i64, i64, Option<i64>)]) -> History {
        let span = |(opened, last, ended): &(i64, i64, Option<i64>)| Span {
            opened_at: days(*opened),
            last_evidence_at: days(*last),
            ended_at: ended.map(days),
        };
        History::new(spans.iter().map(span).collect())
    }

    fn days(n: i64) -> OffsetDateTime {
        T + time::Duration::days(n)
    }

    #[test]
    fn a_failure_joins_extends_or_opens_an_incident() {
        for (spans, at, expected, note) in [
            (&[][..], 0, (0, 0), "no incident yet"),
            (&[(0, 0, None)], 6, (0, 0), "within seven days"),
            (&[(0, 0, None)], 7, (1, 7), "after seven days of silence"),
            (
                &[(0, 0, None)],
                -6,
                (0, -6),
                "a late one: the incident starts earlier",
            ),
            (&[(0, 0, None)], -7, (1, -7), "seven days before it"),
            (&[(0, 3, Some(4))], 3, (0, 0), "before its end"),
            (
                &[(0, 3, Some(4))],
                4,
                (1, 4),
                "at its end: the next lockout",
            ),
            (
                &[(0, 3, Some(4)), (8, 8, None)],
                4,
                (1, 4),
                "between two: the later starts earlier",
            ),
            (
                &[(0, 0, None), (9, 9, None)],
                6,
                (0, 0),
                "a late bridge stays with the earlier",
            ),
            (&[(9, 9, None), (0, 0, None)], 8, (0, 8), "in any order"),
        ] {
            let mut history = history(spans);
            let position = history.add_failure(days(at));
            let opened_at = history.spans()[position].opened_at;
            assert_eq!(
                (position, opened_at),
                (expected.0, days(expected.1)),
                "{note}"
            );
        }
    }

    #[test]
    fn silence_ends_an_incident_and_a_late_failure_moves_that_end() {
        let mut history = history(&[(0, 0, None)]);
        assert!(history.is_open(0, days(6)));
        assert!(!history.is_open(0, days(7)));
        history.add_failure(days(5));
        assert_eq!(history.end(0), days(12));
        assert!(history.is_open(0, days(7)), "open again");
        history.add_failure(days(12));
        assert!(!history.is_open(0, days(7)), "another one follows");
        history.add_failure(days(11));
        assert_eq!(history.end(0), days(12), "not past the next one's start");
    }

    #[test]
    fn another_end_never_moves() {
        let mut history = history(&[(0, 3, Some(4))]);
        history.add_failure(days(2));
        assert_eq!(history.end(0), days(4));
        assert!(!history.is_open(0, days(3)));
    }

    #[test]
    fn a_clear_run_starts_continues_and_ends() {
        assert_eq!(
            extend_clear_run(None, true, minutes(5), T),
            Some(minutes(5))
        );
        assert_eq!(
            extend_clear_run(Some(minutes(5)), true, minutes(9), T),
            Some(minutes(5))
        );
        assert_eq!(
            extend_clear_run(Some(minutes(5)), false, minutes(9), T),
            None
        );
        assert_eq!(
            extend_clear_run(Some(minutes(5)), true, minutes(9), minutes(6)),
            Some(minutes(9)),
            "a failure between the checks"
        );
        assert_eq!(
            extend_clear_run(None, true, minutes(5), minutes(6)),
            None,
            "a failure after the check"
        );
    }

    #[test]
    fn recovery_takes_two_clear_checks_of_every_number() {
        let run = |since, until| {
            Some(ClearRun {
                since: minutes(since),
                until: minutes(until),
            })
        };
        assert!(is_recovered(&[run(1, 16), run(2, 60)], T));
        assert!(!is_recovered(&[run(1, 15)], T), "too close together");
        assert!(
            !is_recovered(&[run(1, 16), None], T),
            "one number is still affected"
        );
        assert!(
            !is_recovered(&[run(1, 16)], minutes(1)),
            "a failure after the first check"
        );
        assert!(!is_recovered(&[], T));
    }
}
