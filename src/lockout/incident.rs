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
    /// The time at which a person, a check or a sent message ended it. Such an end never moves.
    pub ended_at: Option<OffsetDateTime>,
    /// The time at which a person opened it again. What Meta announced before does not end it.
    pub reopened_at: Option<OffsetDateTime>,
    /// Whether a message of it has failed. Without one, silence says nothing.
    pub has_failures: bool,
}

impl Span {
    /// The time from which it can end.
    fn start(&self) -> OffsetDateTime {
        self.reopened_at
            .map_or(self.opened_at, |at| at.max(self.opened_at))
    }

    /// A span of a single piece of evidence.
    #[must_use]
    pub fn starting_at(at: OffsetDateTime, has_failures: bool) -> Self {
        Self {
            opened_at: at,
            last_evidence_at: at,
            ended_at: None,
            reopened_at: None,
            has_failures,
        }
    }
}

/// What Meta announces about an account, as times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoticeTimes {
    /// The spans in which Meta has locked the account, each with its end: evidence from start to
    /// end. A notice that names no state is a span without length.
    pub holds: Vec<(OffsetDateTime, OffsetDateTime)>,
    /// The times at which Meta has lifted a lock, and how.
    pub ends: Vec<(OffsetDateTime, Resolution)>,
}

/// The incidents of one account and kind. Spans never overlap.
///
/// Whether an incident is open follows from its evidence, from Meta's notices and from the
/// incidents after it, not from what was noticed when. So the same failures give the same incidents
/// in any order, but for one case: two incidents that are recorded stay two, also when evidence
/// arrives late that would have made them one.
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
    notices: NoticeTimes,
}

impl History {
    /// Makes a history of these incidents. Their positions stay the same.
    ///
    /// To place evidence, every incident that [ends](Self::end) after it is needed.
    #[must_use]
    pub fn new(spans: Vec<Span>, mut notices: NoticeTimes) -> Self {
        notices.holds.sort_unstable();
        notices.ends.sort_unstable_by_key(|(at, _)| *at);
        Self { spans, notices }
    }

    /// The incidents by their positions.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Returns the incident that lasts at this time, if there is one.
    #[must_use]
    pub fn find(&self, at: OffsetDateTime) -> Option<usize> {
        (0..self.spans.len()).find(|position| {
            let span = &self.spans[*position];
            let reach = self.last_evidence(span) + QUIET_WINDOW;
            let next = self.next_start(*position);
            let end = self.last_moment(self.end_of(span, next));
            let end = end.min(span.ended_at.unwrap_or(reach));
            span.opened_at <= at && at < next.map_or(end, |next| next.min(end))
        })
    }

    /// Adds a failure, and returns the position of its incident.
    pub fn add_failure(&mut self, at: OffsetDateTime) -> usize {
        let position = self.add_evidence(at);
        self.spans[position].has_failures = true;
        position
    }

    /// Adds evidence that is no message: an error of the account, or a ban. Returns the position of
    /// its incident.
    ///
    /// That is the incident that lasts at this time; else the next one if it starts before this
    /// evidence is a thing of the past, and then it starts here; else a new one. Evidence between
    /// two incidents never merges them.
    pub fn add_evidence(&mut self, at: OffsetDateTime) -> usize {
        if let Some(position) = self.find(at) {
            let span = &mut self.spans[position];
            span.last_evidence_at = span.last_evidence_at.max(at);
            return position;
        }
        let end = self.last_moment(self.end_of(&Span::starting_at(at, true), None));
        let next = (0..self.spans.len())
            .filter(|position| self.spans[*position].opened_at > at)
            .min_by_key(|position| self.spans[*position].opened_at)
            .filter(|position| self.spans[*position].opened_at < end);
        if let Some(position) = next {
            self.spans[position].opened_at = at;
            return position;
        }
        self.spans.push(Span::starting_at(at, false));
        self.spans.len() - 1
    }

    /// Returns the first time after this one at which Meta lifted the lock of an incident, and how,
    /// unless a fixed end came first. Evidence from then on belongs to another incident.
    #[must_use]
    pub fn lifted_after(
        &self,
        position: usize,
        after: OffsetDateTime,
    ) -> Option<(OffsetDateTime, Resolution)> {
        let span = &self.spans[position];
        let start = span.start().max(after);
        let mut ends = self.notices.ends.iter().copied();
        ends.find(|(at, _)| *at > start && span.ended_at.is_none())
    }

    /// Divides an incident that Meta lifted while evidence went on: the earlier part, with its last
    /// evidence, becomes an incident of its own. The incident itself starts with the first evidence
    /// after it. Returns the position of the earlier part.
    pub fn divide(
        &mut self,
        position: usize,
        last_before: OffsetDateTime,
        first_after: OffsetDateTime,
        [has_failures_before, has_failures_after]: [bool; 2],
    ) -> usize {
        let span = &mut self.spans[position];
        let earlier = Span {
            opened_at: span.opened_at,
            last_evidence_at: last_before,
            has_failures: has_failures_before,
            ..*span
        };
        span.opened_at = first_after;
        span.has_failures = has_failures_after;
        self.spans.push(earlier);
        self.spans.len() - 1
    }

    /// Returns the end of an incident, which may lie in the future: what ended it, else seven days
    /// of silence, but not later than the start of the next incident.
    #[must_use]
    pub fn end(&self, position: usize) -> OffsetDateTime {
        self.ending(position).0
    }

    /// Returns the end of an incident and how it ends where nothing fixed has ended it: by one of
    /// Meta's notices, or by silence.
    #[must_use]
    pub fn ending(&self, position: usize) -> (OffsetDateTime, Resolution) {
        self.end_of(&self.spans[position], self.next_start(position))
    }

    /// Returns whether an incident is open. At most the latest one is.
    #[must_use]
    pub fn is_open(&self, position: usize, now: OffsetDateTime) -> bool {
        let (span, next) = (&self.spans[position], self.next_start(position));
        let (end, resolution) = self.end_of(span, next);
        let is_patient = resolution == Resolution::Quiet && !span.has_failures;
        span.ended_at.is_none() && next.is_none() && (end > now || is_patient)
    }

    fn end_of(
        &self,
        span: &Span,
        next_start: Option<OffsetDateTime>,
    ) -> (OffsetDateTime, Resolution) {
        if let Some(end) = span.ended_at {
            return (end, Resolution::Manual);
        }
        let start = span.start();
        // Evidence after an announced end says that it goes on.
        let lifts = |(at, resolution): &&(OffsetDateTime, Resolution)| {
            *at > start && (*resolution != Resolution::Expired || *at > span.last_evidence_at)
        };
        let lifted = self.notices.ends.iter().find(lifts).copied();
        let quiet = (self.last_evidence(span) + QUIET_WINDOW, Resolution::Quiet);
        let next = next_start.map(|start| (start, Resolution::Quiet));
        // Without a failure silence says nothing, unless another lock came.
        let is_first = |(at, _): (OffsetDateTime, Resolution)| {
            next_start.is_none_or(|next_start| at < next_start)
        };
        let is_patient = !span.has_failures && lifted.is_some_and(is_first);
        let ends = [lifted, next, Some(quiet).filter(|_| !is_patient)];
        ends.into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
            .unwrap_or(quiet)
    }

    /// Returns the time of the latest evidence, Meta's notices included.
    fn last_evidence(&self, span: &Span) -> OffsetDateTime {
        self.notices
            .holds
            .iter()
            .fold(span.last_evidence_at, |last, (start, end)| {
                let is_near = *start < last + QUIET_WINDOW && *end >= span.opened_at;
                if is_near { last.max(*end) } else { last }
            })
    }

    /// Returns until when evidence still belongs to an incident with this end.
    fn last_moment(&self, (end, resolution): (OffsetDateTime, Resolution)) -> OffsetDateTime {
        if resolution != Resolution::Expired {
            return end;
        }
        let is_lifting =
            |(at, how): &&(OffsetDateTime, Resolution)| *at > end && *how != Resolution::Expired;
        let lifted = self.notices.ends.iter().find(is_lifting);
        lifted.map_or(end + EXPIRY_GRACE, |(at, _)| (end + EXPIRY_GRACE).min(*at))
    }

    fn next_start(&self, position: usize) -> Option<OffsetDateTime> {
        let start = self.spans[position].opened_at;
        let later = self.spans.iter().map(|span| span.opened_at);
        later.filter(|opened_at| *opened_at > start).min()
    }
}

/// Evidence this shortly after an announced end says that there was no end, unless Meta lifted the
/// lock in between.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(60 * 60);

/// The reason why an incident ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The cause was found, and no affected number shows it any more.
    Recovered,
    /// A message was sent that the lock would have stopped.
    SendingAgain,
    /// Meta lifted the lock, and said so.
    Reinstated,
    /// The end that Meta had announced has passed.
    Expired,
    /// There was no failure for seven days.
    Quiet,
    /// A person resolved it.
    Manual,
}

impl Resolution {
    /// Every resolution.
    pub const ALL: [Self; 6] = [
        Self::Recovered,
        Self::SendingAgain,
        Self::Reinstated,
        Self::Expired,
        Self::Quiet,
        Self::Manual,
    ];

    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::SendingAgain => "sending_again",
            Self::Reinstated => "reinstated",
            Self::Expired => "expired",
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

    /// Returns whether such an end follows from evidence that may still arrive, and so may move.
    #[must_use]
    pub fn is_movable(self) -> bool {
        match self {
            Self::Reinstated | Self::Expired | Self::Quiet => true,
            Self::Recovered | Self::SendingAgain | Self::Manual => false,
        }
    }

    /// The reason in a few words for a person.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::SendingAgain => "sending again",
            Self::Reinstated => "reinstated by Meta",
            Self::Expired => "the announced end passed",
            Self::Quiet => "quiet for 7 days",
            Self::Manual => "resolved by hand",
        }
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
            last_evidence_at: days(*last),
            ended_at: ended.map(days),
            ..Span::starting_at(days(*opened), true)
        };
        History::new(spans.iter().map(span).collect(), NoticeTimes::default())
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
    fn without_a_failure_silence_ends_nothing() {
        let mut history = History::default();
        history.add_evidence(days(0));
        assert!(history.is_open(0, days(100)));
        assert_eq!(history.add_failure(days(20)), 1, "the next lockout");
        assert!(!history.is_open(0, days(20)));
        assert_eq!(history.end(0), days(7));
        let mut history = History::default();
        history.add_evidence(days(0));
        history.add_failure(days(1));
        assert!(!history.is_open(0, days(8)));
    }

    #[test]
    fn what_meta_announces_ends_an_incident_and_holds_it_open() {
        let lifting = |at, resolution| (days(at), resolution);
        let notices = NoticeTimes {
            holds: vec![(days(0), days(20)), (days(30), days(30))],
            ends: vec![
                lifting(20, Resolution::Reinstated),
                lifting(34, Resolution::Expired),
            ],
        };
        let mut history = History::new(vec![], notices);
        assert_eq!(history.add_evidence(days(0)), 0, "banned");
        assert_eq!(history.add_failure(days(15)), 0, "banned all the time");
        assert_eq!(history.ending(0), (days(20), Resolution::Reinstated));
        assert_eq!(history.add_failure(days(20)), 1);
        assert_eq!(
            history.end(1),
            days(27),
            "the notice comes too late to hold it"
        );
        assert_eq!(history.add_failure(days(28)), 2);
        assert_eq!(history.ending(2), (days(34), Resolution::Expired));
        history.spans[2].last_evidence_at = days(34);
        assert_eq!(history.end(2), days(41), "a check still shows it");
        history.spans[0].reopened_at = Some(days(22));
        assert_eq!(history.end(0), days(20), "not past the next one's start");
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
