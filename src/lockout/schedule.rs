//! The schedule of look-ups: limits, pauses and backoff.

use std::time::Duration;

use crate::meta::health::Answer;

/// The most calls about one account per hour with one token, over all replicas. Meta allows an
/// inactive account 200 reads an hour.
pub const CALLS_PER_HOUR: i64 = 150;
/// The part of these calls that is kept for first look-ups, and for tries after a refusal.
pub const RESERVED_CALLS: i64 = 10;

/// Look-ups of a number that fail one after another until the fault is lasting: then a person is
/// told.
pub const LASTING_FAILURES: i32 = 4;

/// The most numbers of an incident for which the fields of single numbers are read: of a larger one
/// the calls are needed for the look-ups.
pub(crate) const FIELDS_NUMBER_LIMIT: i64 = 40;

/// The time after which the fields beside the health are read again.
pub(crate) const FIELDS_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The most look-ups of one account in flight at once, per process. An account whose look-ups hang
/// does not keep the others waiting.
pub const ACCOUNT_IN_FLIGHT_LIMIT: i32 = 4;

/// The lease of a claimed check. It is longer than a look-up can take.
pub(crate) const CLAIM_LEASE: Duration = Duration::from_secs(30);

/// The pause of an account that Meta throttles without saying for how long.
pub(crate) const DEFAULT_THROTTLE_INTERVAL: Duration = Duration::from_secs(15 * 60);

const MINUTE: Duration = Duration::from_secs(60);
/// The pauses after the first, second and third answer. [`HOURLY_INTERVAL`] follows.
const ANSWER_INTERVALS: [Duration; 3] = [
    MINUTE.saturating_mul(5),
    MINUTE.saturating_mul(15),
    MINUTE.saturating_mul(30),
];
const HOURLY_INTERVAL: Duration = MINUTE.saturating_mul(60);
/// The pause between two checks that may show recovery together. The rule asks for fifteen minutes,
/// and the jitter may shorten the pause by a tenth.
const CONFIRM_INTERVAL: Duration = MINUTE.saturating_mul(17);
const MIN_BACKOFF: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = MINUTE.saturating_mul(15);

/// The counts of answered and failed look-ups of one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// All answered look-ups.
    pub answers: i32,
    /// The failed look-ups since the last answer.
    pub failures: i32,
}

impl Progress {
    /// Returns the progress after one more look-up.
    #[must_use]
    pub fn after(self, answer: &Answer) -> Self {
        match answer {
            Answer::Health(_)
            | Answer::NoVerdict { .. }
            | Answer::State(_)
            | Answer::NotAsked { .. }
            | Answer::Refused { .. } => Self {
                answers: self.answers.saturating_add(1),
                failures: 0,
            },
            Answer::Unexplained(_) | Answer::Unreachable(_) => Self {
                failures: self.failures.saturating_add(1),
                ..self
            },
            Answer::Throttled { .. } => self,
        }
    }

    /// Returns whether the look-ups have failed for so long that nobody waits for an answer.
    #[must_use]
    pub fn is_lasting_fault(self) -> bool {
        self.failures >= LASTING_FAILURES
    }
}

/// Returns the pause before the next look-up of a number.
///
/// `progress` includes the look-up with this `answer`. `is_confirming` is true if it may be the
/// first clear look-up of a recovery. `chance` is uniform between 0.0 and 1.0.
#[must_use]
pub fn next_pause(
    answer: &Answer,
    progress: Progress,
    is_confirming: bool,
    chance: f64,
) -> Duration {
    match answer {
        Answer::Health(_) if is_confirming => add_jitter(CONFIRM_INTERVAL, chance),
        Answer::Health(_) | Answer::State(_) => {
            let step = usize::try_from(progress.answers - 1).unwrap_or(0);
            let pause = ANSWER_INTERVALS.get(step).unwrap_or(&HOURLY_INTERVAL);
            add_jitter(*pause, chance)
        }
        Answer::NoVerdict { .. } | Answer::NotAsked { .. } | Answer::Refused { .. } => {
            add_jitter(HOURLY_INTERVAL, chance)
        }
        Answer::Throttled { retry_after, .. } => retry_after.unwrap_or(DEFAULT_THROTTLE_INTERVAL),
        Answer::Unexplained(_) | Answer::Unreachable(_) => backoff(progress.failures, chance),
    }
}

/// Returns a random pause whose upper limit doubles with each failure: exponential backoff with
/// full jitter.
fn backoff(failures: i32, chance: f64) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(0).min(16);
    let ceiling = MIN_BACKOFF
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(MAX_BACKOFF);
    MIN_BACKOFF + (ceiling - MIN_BACKOFF).mul_f64(chance)
}

/// Varies a pause by ±10 %, so that accounts that were locked together are looked up at different
/// times.
fn add_jitter(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(0.9 + 0.2 * chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lockout::incident::RECOVERY_INTERVAL;
    use crate::meta::graph_error::{Denial, GraphError, ThrottleScope};

    fn refused() -> Answer {
        Answer::Refused {
            denial: Denial::TokenInvalid,
            error: GraphError::default(),
        }
    }

    #[test]
    fn pauses_between_answers_grow_to_an_hour() {
        let pause = |answers, chance| {
            let progress = Progress {
                answers,
                failures: 0,
            };
            next_pause(&Answer::Health(vec![]), progress, false, chance).as_secs()
        };
        assert_eq!(
            [1, 2, 3, 4, 5].map(|answers| pause(answers, 0.5)),
            [5 * 60, 15 * 60, 30 * 60, 60 * 60, 60 * 60]
        );
        assert_eq!(pause(1, 0.0), 270);
        assert_eq!(pause(4, 1.0), 66 * 60);
    }

    #[test]
    fn a_second_clear_check_comes_late_enough_to_count() {
        assert!(
            next_pause(&Answer::Health(vec![]), Progress::default(), true, 0.0) > RECOVERY_INTERVAL
        );
    }

    #[test]
    fn a_refused_look_up_is_repeated_hourly() {
        let progress = Progress {
            answers: 1,
            failures: 0,
        };
        assert_eq!(
            next_pause(&refused(), progress, false, 0.5),
            HOURLY_INTERVAL
        );
    }

    #[test]
    fn failures_back_off_with_full_jitter_up_to_15_minutes() {
        let pause = |failures, chance| {
            let progress = Progress {
                answers: 0,
                failures,
            };
            next_pause(&Answer::Unreachable(String::new()), progress, false, chance).as_secs()
        };
        assert_eq!((pause(1, 0.0), pause(1, 1.0)), (5, 10));
        assert_eq!((pause(3, 0.0), pause(3, 1.0)), (5, 40));
        assert_eq!((pause(i32::MAX, 0.0), pause(i32::MAX, 1.0)), (5, 900));
    }

    #[test]
    fn an_answer_resets_failures_and_throttling_changes_nothing() {
        let progress = Progress {
            answers: 1,
            failures: 4,
        };
        assert_eq!(
            progress.after(&refused()),
            Progress {
                answers: 2,
                failures: 0
            }
        );
        assert_eq!(
            progress.after(&Answer::Unreachable(String::new())),
            Progress {
                answers: 1,
                failures: 5
            }
        );
        let throttled = Answer::Throttled {
            error: GraphError::default(),
            scope: ThrottleScope::Account,
            retry_after: None,
        };
        assert_eq!(progress.after(&throttled), progress);
        assert_eq!(
            next_pause(&throttled, progress, false, 0.5),
            DEFAULT_THROTTLE_INTERVAL
        );
    }
}
