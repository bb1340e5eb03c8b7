//! When Meta is asked again.

use std::time::Duration;

use crate::meta::health::Answer;

/// Look-ups per hour and account, over all replicas. Meta allows an inactive account 200 reads an hour.
pub const LOOKUPS_PER_HOUR: i64 = 150;

/// Look-ups of one account under way at once, per process: where its nodes hang, there is room for others.
pub const IN_FLIGHT_PER_ACCOUNT: i64 = 4;

/// How long a claimed check stays with its claimant. Longer than a look-up can take.
pub const CLAIM_LEASE: Duration = Duration::from_secs(30);

/// How long an account rests when Meta throttles it without saying for how long.
pub const DEFAULT_REST: Duration = Duration::from_secs(15 * 60);

const MINUTE: Duration = Duration::from_secs(60);
/// The pauses after the first, second and third answer; then [`HOURLY_INTERVAL`].
const ANSWER_INTERVALS: [Duration; 3] = [
    MINUTE.saturating_mul(5),
    MINUTE.saturating_mul(15),
    MINUTE.saturating_mul(30),
];
const HOURLY_INTERVAL: Duration = MINUTE.saturating_mul(60);
/// The pause between two checks that may together show recovery: the fifteen minutes that the rule asks
/// for, and the jitter's tenth.
const CONFIRM_INTERVAL: Duration = MINUTE.saturating_mul(17);
const BACKOFF_MIN: Duration = Duration::from_secs(5);
const BACKOFF_MAX: Duration = MINUTE.saturating_mul(15);

/// How far a number's checks have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Answered look-ups so far.
    pub answers: i32,
    /// Failed look-ups since the last answer.
    pub failures: i32,
}

impl Progress {
    /// The progress after one more look-up.
    #[must_use]
    pub fn after(self, answer: &Answer) -> Self {
        match answer {
            Answer::Health(_) | Answer::NoHealth | Answer::NotAsked(_) | Answer::Refused(_) => {
                Self {
                    answers: self.answers.saturating_add(1),
                    failures: 0,
                }
            }
            Answer::Unreachable(_) => Self {
                failures: self.failures.saturating_add(1),
                ..self
            },
            Answer::Throttled { .. } => self,
        }
    }
}

/// How long to wait before a number is looked up again. `progress` includes this look-up, `is_confirming`
/// says that it may be the first clear one of a recovery, `chance` is uniform in 0.0 … 1.0.
#[must_use]
pub fn next_pause(
    answer: &Answer,
    progress: Progress,
    is_confirming: bool,
    chance: f64,
) -> Duration {
    match answer {
        Answer::Health(_) if is_confirming => jittered(CONFIRM_INTERVAL, chance),
        Answer::Health(_) => {
            let step = usize::try_from(progress.answers - 1).unwrap_or(0);
            jittered(
                ANSWER_INTERVALS
                    .get(step)
                    .copied()
                    .unwrap_or(HOURLY_INTERVAL),
                chance,
            )
        }
        Answer::NoHealth | Answer::NotAsked(_) | Answer::Refused(_) => {
            jittered(HOURLY_INTERVAL, chance)
        }
        Answer::Throttled { rest, .. } => rest.unwrap_or(DEFAULT_REST),
        Answer::Unreachable(_) => {
            let doublings = u32::try_from(progress.failures).unwrap_or(0).min(16);
            let ceiling = BACKOFF_MIN
                .saturating_mul(2_u32.saturating_pow(doublings))
                .min(BACKOFF_MAX);
            BACKOFF_MIN + (ceiling - BACKOFF_MIN).mul_f64(chance)
        }
    }
}

/// ±10 %, so that accounts locked together do not stay in step.
fn jittered(pause: Duration, chance: f64) -> Duration {
    pause.mul_f64(0.9 + 0.2 * chance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lockout::incident::RECOVERY_INTERVAL;
    use crate::meta::health::GraphError;

    fn refused() -> Answer {
        Answer::Refused(GraphError {
            code: 190,
            message: String::new(),
        })
    }

    #[test]
    fn while_open_the_pauses_grow_to_an_hour() {
        let pauses = |chance| {
            (1..=5)
                .map(|answers| {
                    let progress = Progress {
                        answers,
                        failures: 0,
                    };
                    next_pause(&Answer::Health(vec![]), progress, false, chance).as_secs()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(pauses(0.5), [5 * 60, 15 * 60, 30 * 60, 60 * 60, 60 * 60]);
        assert_eq!(pauses(0.0)[0], 270);
        assert_eq!(pauses(1.0)[3], 66 * 60);
    }

    #[test]
    fn a_second_clear_check_always_comes_late_enough_to_count() {
        assert!(
            next_pause(&Answer::Health(vec![]), Progress::default(), true, 0.0) > RECOVERY_INTERVAL
        );
    }

    #[test]
    fn a_refusal_is_asked_again_hourly() {
        assert_eq!(
            next_pause(
                &refused(),
                Progress {
                    answers: 1,
                    failures: 0
                },
                false,
                0.5
            ),
            HOURLY_INTERVAL
        );
    }

    #[test]
    fn failures_back_off_with_full_jitter_from_five_seconds_to_a_quarter_of_an_hour() {
        let at = |failures, chance| {
            next_pause(
                &Answer::Unreachable(String::new()),
                Progress {
                    answers: 0,
                    failures,
                },
                false,
                chance,
            )
            .as_secs()
        };
        assert_eq!((at(1, 0.0), at(1, 1.0)), (5, 10));
        assert_eq!((at(3, 0.0), at(3, 1.0)), (5, 40));
        assert_eq!((at(i32::MAX, 0.0), at(i32::MAX, 1.0)), (5, 900));
    }

    #[test]
    fn an_answer_forgets_failures_and_a_throttled_look_up_counts_as_neither() {
        let progress = Progress {
            answers: 1,
            failures: 4,
        };
        assert_eq!(
            progress.after(&Answer::NoHealth),
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
        let error = GraphError {
            code: 4,
            message: String::new(),
        };
        let throttled = Answer::Throttled { error, rest: None };
        assert_eq!(progress.after(&throttled), progress);
        assert_eq!(next_pause(&throttled, progress, false, 0.5), DEFAULT_REST);
    }
}
