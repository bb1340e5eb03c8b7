//! Alerting: which changes of an incident a person is told of, and when a message is tried again.

use std::time::Duration;

use time::OffsetDateTime;

use super::cause::LockoutCause;
use super::change::ChangeKind;

/// The opening waits for the first answer for this long, so that one message says what and why.
pub const OPENING_HOLD: Duration = Duration::from_secs(10);
/// The shortest time between two messages about the cause of an incident.
pub const CAUSE_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// The messages of a channel that go at once in [`DIGEST_INTERVAL`].
const AT_ONCE_LIMIT: i64 = 5;
/// What comes after the first few of this time goes together, at its end.
pub const DIGEST_INTERVAL: Duration = Duration::from_secs(60);
/// The pauses before a second try and those after it; then hourly.
const RETRY_INTERVALS: [Duration; 6] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(15 * 60),
    Duration::from_secs(30 * 60),
];
const HOURLY_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// A message that nobody took for this long is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What an alert tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertKind {
    /// An account is locked.
    Opened,
    /// The cause became known, or is another one.
    CauseChanged,
    /// It is over.
    Resolved,
    /// It goes on.
    Reopened,
}

impl AlertKind {
    /// The word for it in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::CauseChanged => "cause_changed",
            Self::Resolved => "resolved",
            Self::Reopened => "reopened",
        }
    }
}

/// An incident's change, and what is known when somebody is to be told.
#[derive(Debug, Clone, Copy)]
pub struct News {
    /// The change.
    pub kind: ChangeKind,
    /// When it happened.
    pub at: OffsetDateTime,
    /// The incident's cause by now.
    pub cause: LockoutCause,
    /// When the incident was over, if it is.
    pub ended_at: Option<OffsetDateTime>,
    /// When it was first seen.
    pub first_seen_at: OffsetDateTime,
    /// When people were last told of its cause: by its opening or by a change.
    pub cause_told_at: Option<OffsetDateTime>,
    /// Now.
    pub now: OffsetDateTime,
}

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// People are told.
    Tell(AlertKind),
    /// It is decided later.
    Wait,
    /// Nobody is told.
    Skip,
}

/// Decides whether people are told of a change.
#[must_use]
pub fn decide(news: &News) -> Decision {
    // What was over when it was first seen, such as a replayed payload, wakes nobody.
    if news.ended_at.is_some_and(|end| end <= news.first_seen_at) {
        return Decision::Skip;
    }
    match news.kind {
        ChangeKind::Opened => {
            let is_known = news.cause != LockoutCause::Pending || news.ended_at.is_some();
            match is_known || news.now - news.at >= OPENING_HOLD {
                true => Decision::Tell(AlertKind::Opened),
                false => Decision::Wait,
            }
        }
        ChangeKind::CauseFound(_) | ChangeKind::CauseChanged(_) => match news.cause_told_at {
            // The message of the opening says the cause.
            Some(told_at) if told_at >= news.at => Decision::Skip,
            Some(told_at)
                if news.now - told_at < CAUSE_INTERVAL
                    && matches!(news.kind, ChangeKind::CauseChanged(_)) =>
            {
                Decision::Wait
            }
            _ if news.ended_at.is_some() => Decision::Skip,
            _ => Decision::Tell(AlertKind::CauseChanged),
        },
        ChangeKind::Resolved(_) => match news.ended_at {
            Some(_) => Decision::Tell(AlertKind::Resolved),
            // It was opened again meanwhile.
            None => Decision::Skip,
        },
        ChangeKind::Reopened => Decision::Tell(AlertKind::Reopened),
    }
}

/// How the messages that wait for a channel go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// So many of them, each by itself.
    Each(i64),
    /// All together.
    Digest,
}

/// Returns how messages go, of which so many were `told` in the last [`DIGEST_INTERVAL`] and so
/// many are `waiting`; `is_old`: one of these has waited for as long.
#[must_use]
pub fn pace(told: i64, waiting: i64, is_old: bool) -> Pace {
    match is_old && waiting > 1 {
        true => Pace::Digest,
        false => Pace::Each((AT_ONCE_LIMIT - told).clamp(0, waiting)),
    }
}

/// Returns the pause before the next try after so many failed ones; `None`: the message is given
/// up. `chance` is uniform between 0.0 and 1.0.
#[must_use]
pub fn next_try(attempts: u32, age: Duration, chance: f64) -> Option<Duration> {
    if age >= GIVE_UP_AFTER {
        return None;
    }
    let step = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause = RETRY_INTERVALS
        .get(step)
        .copied()
        .unwrap_or(HOURLY_INTERVAL);
    Some(pause.mul_f64(0.9 + 0.2 * chance))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::super::incident::Resolution;
    use super::*;

    const T: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

    fn news(kind: ChangeKind) -> News {
        News {
            kind,
            at: T,
            cause: LockoutCause::Payment,
            ended_at: None,
            first_seen_at: T,
            cause_told_at: None,
            now: T + time::Duration::SECOND,
        }
    }

    #[test]
    fn the_opening_waits_ten_seconds_for_the_cause() {
        let pending = News {
            cause: LockoutCause::Pending,
            ..news(ChangeKind::Opened)
        };
        assert_eq!(decide(&pending), Decision::Wait);
        let late = News {
            now: T + OPENING_HOLD,
            ..pending
        };
        assert_eq!(decide(&late), Decision::Tell(AlertKind::Opened));
        let known = news(ChangeKind::Opened);
        assert_eq!(decide(&known), Decision::Tell(AlertKind::Opened));
    }

    #[test]
    fn a_cause_is_told_once_and_changes_at_intervals() {
        let found = ChangeKind::CauseFound(LockoutCause::Payment);
        let changed = ChangeKind::CauseChanged(LockoutCause::Payment);
        let told = |kind, seconds: i64| News {
            cause_told_at: Some(T + time::Duration::seconds(seconds)),
            ..news(kind)
        };
        assert_eq!(decide(&told(found, 0)), Decision::Skip, "in the opening");
        assert_eq!(
            decide(&told(found, -3)),
            Decision::Tell(AlertKind::CauseChanged)
        );
        assert_eq!(decide(&told(changed, -3)), Decision::Wait);
        assert_eq!(
            decide(&told(changed, -300)),
            Decision::Tell(AlertKind::CauseChanged)
        );
    }

    #[test]
    fn what_was_over_when_it_was_first_seen_wakes_nobody() {
        for kind in [
            ChangeKind::Opened,
            ChangeKind::CauseFound(LockoutCause::Payment),
            ChangeKind::Resolved(Resolution::Quiet),
        ] {
            let old = News {
                ended_at: Some(T - time::Duration::DAY),
                ..news(kind)
            };
            assert_eq!(decide(&old), Decision::Skip, "{kind:?}");
        }
        let over = News {
            ended_at: Some(T + time::Duration::SECOND),
            ..news(ChangeKind::Resolved(Resolution::Reinstated))
        };
        assert_eq!(decide(&over), Decision::Tell(AlertKind::Resolved));
    }

    #[test]
    fn five_go_at_once_and_the_rest_together() {
        assert_eq!(pace(0, 40, false), Pace::Each(5));
        assert_eq!(pace(3, 40, false), Pace::Each(2));
        assert_eq!(pace(5, 35, false), Pace::Each(0));
        assert_eq!(pace(5, 35, true), Pace::Digest);
        assert_eq!(pace(0, 1, true), Pace::Each(1), "one is no digest");
    }

    #[test]
    fn tries_grow_to_hourly_and_end_after_a_day() {
        let pause = |attempts| next_try(attempts, Duration::ZERO, 0.5).unwrap().as_secs();
        assert_eq!(
            [1, 2, 3, 6, 7, 99].map(pause),
            [5, 30, 120, 1800, 3600, 3600]
        );
        assert_eq!(next_try(1, GIVE_UP_AFTER, 0.5), None);
    }
}
