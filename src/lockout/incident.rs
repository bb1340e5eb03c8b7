//! Which incident a failure belongs to, and when an incident is over.

use std::time::Duration;

use time::OffsetDateTime;

/// One incident of an account, as far as [`belongs_to`] needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The incident.
    pub id: i64,
    /// When it was resolved; `None` while it is open.
    pub resolved_at: Option<OffsetDateTime>,
}

/// What is known of an account's incidents: all that failures since some time may belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Of what failed before this, nothing can be said.
    pub since: OffsetDateTime,
    /// The open incident, and those that were resolved later than `since`.
    pub spans: Vec<Span>,
}

impl History {
    /// The incident a failure [belongs to](belongs_to), as far as can be said.
    #[must_use]
    pub fn incident_of(&self, failed_at: OffsetDateTime) -> Option<Span> {
        let id = belongs_to(failed_at, &self.spans).filter(|_| failed_at >= self.since)?;
        self.spans
            .iter()
            .find(|incident| incident.id == id)
            .copied()
    }

    /// The open incident.
    #[must_use]
    pub fn open(&self) -> Option<i64> {
        open(&self.spans)
    }
}

fn open(history: &[Span]) -> Option<i64> {
    history
        .iter()
        .find(|incident| incident.resolved_at.is_none())
        .map(|incident| incident.id)
}

/// The incident a failure belongs to; `None` where it opens a new one.
///
/// Meta redelivers for seven days, so a failure can arrive after its lockout is over. It then belongs to
/// the resolved incident that ended first after the failure's own time; otherwise to the open one.
#[must_use]
pub fn belongs_to(failed_at: OffsetDateTime, history: &[Span]) -> Option<i64> {
    let late = history
        .iter()
        .filter_map(|incident| incident.resolved_at.map(|at| (at, incident.id)))
        .filter(|(resolved_at, _)| *resolved_at > failed_at)
        .min();
    late.map(|(_, id)| id).or_else(|| open(history))
}

/// How an incident ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The cause was found, and is gone from every affected number.
    Recovered,
    /// No failure for seven days.
    Quiet,
    /// A person said so.
    Manual,
}

impl Resolution {
    /// Every resolution.
    pub const ALL: [Self; 3] = [Self::Recovered, Self::Quiet, Self::Manual];

    /// The word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Quiet => "quiet",
            Self::Manual => "manual",
        }
    }
}

/// An incident without a failure for this long is over.
pub const QUIET_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Two clear checks of a number must lie this far apart to count as recovery.
pub const RECOVERY_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// A run of checks of one number in which the recorded cause did not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClearRun {
    /// The first of them.
    pub since: OffsetDateTime,
    /// The latest of them.
    pub until: OffsetDateTime,
}

/// The run after another answered check: it starts, goes on, or ends. A failure after its start ends it
/// as well, since the account cannot have been healthy then.
#[must_use]
pub fn extend_clear_run(
    before: Option<OffsetDateTime>,
    clear: bool,
    checked_at: OffsetDateTime,
    last_failure_at: OffsetDateTime,
) -> Option<OffsetDateTime> {
    match before {
        _ if !clear => None,
        Some(since) if since > last_failure_at => Some(since),
        _ if checked_at > last_failure_at => Some(checked_at),
        _ => None,
    }
}

/// Whether an incident with a found cause is over: every affected number (`None`: the last check was not
/// clear) has been clear since the last failure, in two checks far enough apart.
#[must_use]
pub fn is_recovered(numbers: &[Option<ClearRun>], last_failure_at: OffsetDateTime) -> bool {
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

    fn resolved(id: i64, at: i64) -> Span {
        Span {
            id,
            resolved_at: Some(minutes(at)),
        }
    }

    const OPEN: Span = Span {
        id: 9,
        resolved_at: None,
    };

    #[test]
    fn a_failure_opens_joins_or_comes_late() {
        assert_eq!(belongs_to(T, &[]), None, "nothing there: a new one");
        assert_eq!(belongs_to(T, &[OPEN]), Some(9), "the open one");
        assert_eq!(
            belongs_to(T, &[resolved(1, -5)]),
            None,
            "after the last one ended: a new one"
        );
        assert_eq!(
            belongs_to(T, &[resolved(1, 5)]),
            Some(1),
            "before it ended: late"
        );
        assert_eq!(
            belongs_to(T, &[OPEN, resolved(2, 10), resolved(1, 5), resolved(0, -5)]),
            Some(1),
            "first to end"
        );
        assert_eq!(
            belongs_to(T, &[resolved(1, 0), OPEN]),
            Some(9),
            "at the very end: not before it"
        );
    }

    #[test]
    fn a_clear_run_starts_goes_on_and_ends() {
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
            "failed in between"
        );
        assert_eq!(
            extend_clear_run(None, true, minutes(5), minutes(6)),
            None,
            "failed since it was looked at"
        );
    }

    #[test]
    fn recovery_takes_two_clear_checks_of_every_number_and_no_failure_since() {
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
            "one number is still hit"
        );
        assert!(
            !is_recovered(&[run(1, 16)], minutes(1)),
            "a failure since the first"
        );
        assert!(!is_recovered(&[], T));
    }
}
