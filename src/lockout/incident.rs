//! Incidents: the incident that a failure belongs to, and the end of an incident.

use std::time::Duration;

use time::OffsetDateTime;

/// The part of an incident that [`incident_for_failure`] needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IncidentSpan {
    /// The incident.
    pub id: i64,
    /// The time it was resolved; `None` while it is open.
    pub resolved_at: Option<OffsetDateTime>,
}

/// The known incidents of one account: all to which a failure since some time can belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncidentHistory {
    /// The start of the known time. Nothing is known about failures before it.
    pub since: OffsetDateTime,
    /// The open incident, and those that were resolved after `since`.
    pub spans: Vec<IncidentSpan>,
}

impl IncidentHistory {
    /// Returns the incident that a failure [belongs to](incident_for_failure); `None` if it is not
    /// known.
    #[must_use]
    pub fn incident_of(&self, failed_at: OffsetDateTime) -> Option<IncidentSpan> {
        if failed_at < self.since {
            return None;
        }
        let id = incident_for_failure(failed_at, &self.spans)?;
        self.spans
            .iter()
            .find(|incident| incident.id == id)
            .copied()
    }

    /// The id of the open incident.
    #[must_use]
    pub fn open_incident(&self) -> Option<i64> {
        find_open(&self.spans)
    }
}

fn find_open(history: &[IncidentSpan]) -> Option<i64> {
    history
        .iter()
        .find(|incident| incident.resolved_at.is_none())
        .map(|incident| incident.id)
}

/// Returns the incident that a failure belongs to; `None` if the failure opens a new one.
///
/// Meta redelivers callbacks for seven days, so a failure can arrive after its lockout is over. A
/// failure belongs to the first incident that was resolved after the failure happened. If there is
/// none, it belongs to the open incident.
#[must_use]
pub fn incident_for_failure(failed_at: OffsetDateTime, history: &[IncidentSpan]) -> Option<i64> {
    let late = history
        .iter()
        .filter_map(|incident| incident.resolved_at.map(|at| (at, incident.id)))
        .filter(|(resolved_at, _)| *resolved_at > failed_at)
        .min();
    late.map(|(_, id)| id).or_else(|| find_open(history))
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

    fn resolved(id: i64, at: i64) -> IncidentSpan {
        IncidentSpan {
            id,
            resolved_at: Some(minutes(at)),
        }
    }

    const OPEN: IncidentSpan = IncidentSpan {
        id: 9,
        resolved_at: None,
    };

    #[test]
    fn a_failure_opens_or_joins_an_incident() {
        assert_eq!(
            incident_for_failure(T, &[]),
            None,
            "no incident yet: a new one"
        );
        assert_eq!(
            incident_for_failure(T, &[OPEN]),
            Some(9),
            "the open incident"
        );
        assert_eq!(
            incident_for_failure(T, &[resolved(1, -5)]),
            None,
            "after the last incident: a new one"
        );
        assert_eq!(
            incident_for_failure(T, &[resolved(1, 5)]),
            Some(1),
            "before the incident ended: it came late"
        );
        assert_eq!(
            incident_for_failure(T, &[OPEN, resolved(2, 10), resolved(1, 5), resolved(0, -5)]),
            Some(1),
            "the first incident to end"
        );
        assert_eq!(
            incident_for_failure(T, &[resolved(1, 0), OPEN]),
            Some(9),
            "at the exact end: it is not before the end"
        );
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
