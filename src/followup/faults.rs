//! The faults of look-ups, as the log tells them: each once when it begins, once more when it
//! lasts, and when it is over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::lockout::cause::denial_step;
use crate::lockout::schedule::{DEFAULT_THROTTLE_INTERVAL, LASTING_FAILURES};
use crate::meta::graph_error::{Denial, ThrottleScope};
use crate::meta::health::Answer;
use crate::meta::ids::{PhoneNumberId, WabaId};
use crate::store::claims::Claim;

/// The time after which a fault is lasting, however few tries there were.
const LASTING_TIME: Duration = Duration::from_secs(5 * 60);
/// Faults of the network within this time are one outage. Tries are at most 15 minutes apart.
const OUTAGE_WINDOW: Duration = Duration::from_secs(20 * 60);
/// A fault without another try for this long is over. Refused look-ups are tried hourly.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3 * 60 * 60);
/// A shorter pause is nothing to tell.
const SHORT_PAUSE: Duration = Duration::from_secs(60);

/// The faults that last. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults(Arc<Mutex<HashMap<Kind, Fault>>>);

/// The kind of a fault: two of the same kind are one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// Graph does not answer about a number.
    Unreachable(Node),
    /// Graph answers about a number with this code, which nobody has told us.
    Unexplained(Node, i64),
    /// Graph refuses the look-ups of a number.
    NodeDenied(Node, Denial),
    /// Graph refuses the look-ups of an account.
    Denied(WabaId, Denial),
}

/// A number of an account.
type Node = (WabaId, PhoneNumberId);

impl Kind {
    /// Returns whether an answer about this number ends it.
    fn is_of(&self, node: &Node) -> bool {
        match self {
            Self::Unreachable(of) | Self::Unexplained(of, _) | Self::NodeDenied(of, _) => {
                of == node
            }
            Self::Denied(waba_id, _) => *waba_id == node.0,
        }
    }
}

#[derive(Debug)]
struct Fault {
    since: Instant,
    /// The latest try.
    last: Instant,
    tries: i32,
    is_told: bool,
}

impl Faults {
    /// Notes the answer to a look-up, and logs what a person should know.
    pub(super) fn note(&self, claim: &Claim, answer: &Answer) {
        let waba_id = &claim.waba_id;
        let node = (waba_id.clone(), claim.phone_number_id.clone());
        if !matches!(answer, Answer::Unreachable(_)) {
            self.forget_unreachable(&node);
        }
        match answer {
            Answer::Health(_) | Answer::State(_) => self.end(&node),
            Answer::Unreachable(reason) => {
                // An outage concerns many accounts, and is told once.
                let kind = Kind::Unreachable(node);
                if self.is_new(kind.clone()) && !self.is_outage(&kind, false) {
                    warn!(waba.id = %waba_id, "a look-up failed and is tried again: {reason}");
                } else if let Some(minutes) = self.has_lasted(&kind)
                    && !self.is_outage(&kind, true)
                {
                    error!(
                        waba.id = %waba_id,
                        "look-ups of account {waba_id} have failed for {minutes} min: {reason}"
                    );
                }
            }
            Answer::Unexplained(error) => {
                let kind = Kind::Unexplained(node, error.code);
                if self.is_new(kind.clone()) {
                    warn!(waba.id = %waba_id, "a look-up failed and is tried again: {error}");
                } else if let Some(minutes) = self.has_lasted(&kind) {
                    error!(
                        waba.id = %waba_id,
                        "look-ups of account {waba_id} have been refused for {minutes} min: {error}"
                    );
                }
            }
            Answer::Throttled {
                error,
                scope,
                retry_after,
            } => {
                let pause = retry_after.unwrap_or(DEFAULT_THROTTLE_INTERVAL);
                let whose = match scope {
                    ThrottleScope::App => "all look-ups of the app".to_owned(),
                    ThrottleScope::User => "all look-ups with the token".to_owned(),
                    ThrottleScope::Account => format!("the look-ups of account {waba_id}"),
                };
                if pause > SHORT_PAUSE {
                    let minutes = pause.as_secs().div_ceil(60);
                    warn!(
                        waba.id = %waba_id,
                        "Meta throttles {whose}: they rest for {minutes} min. {error}"
                    );
                }
            }
            Answer::NoVerdict { .. } | Answer::NotAsked { .. } | Answer::Refused { .. } => {
                let denial = answer.denial().unwrap_or(Denial::Unexplained);
                let kind = match denial.is_of_account() {
                    true => Kind::Denied(waba_id.clone(), denial),
                    false => Kind::NodeDenied(node, denial),
                };
                if self.is_new(kind) {
                    let reason = answer.error_text().unwrap_or_default();
                    warn!(
                        waba.id = %waba_id,
                        denial = denial.as_str(),
                        "look-ups of account {waba_id} are refused: {}. {}",
                        reason.trim_end_matches('.'),
                        denial_step(denial)
                    );
                }
            }
        }
    }

    /// Counts a fault. Returns whether it is new.
    fn is_new(&self, kind: Kind) -> bool {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        faults.retain(|_, fault| now - fault.last < FORGOTTEN_AFTER);
        let fault = faults.entry(kind).or_insert_with(|| Fault {
            since: now,
            last: now,
            tries: 0,
            is_told: false,
        });
        fault.last = now;
        fault.tries = fault.tries.saturating_add(1);
        fault.tries == 1
    }

    /// Returns for how many minutes a fault has lasted, if that is to be told now.
    fn has_lasted(&self, kind: &Kind) -> Option<u64> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = faults.get_mut(kind)?;
        let is_lasting = fault.tries >= LASTING_FAILURES || fault.since.elapsed() >= LASTING_TIME;
        if !is_lasting || std::mem::replace(&mut fault.is_told, true) {
            return None;
        }
        Some(fault.since.elapsed().as_secs().div_ceil(60))
    }

    /// Returns whether Graph does not answer about another number either; with `is_told`, whether
    /// that was told.
    fn is_outage(&self, kind: &Kind, is_told: bool) -> bool {
        let faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults.iter().any(|(other, fault)| {
            let is_recent = fault.last.elapsed() < OUTAGE_WINDOW;
            let is_other = matches!(other, Kind::Unreachable(_)) && other != kind;
            is_other && is_recent && (fault.is_told || !is_told)
        })
    }

    /// Forgets that Graph did not answer about a number: it did, in whatever way.
    fn forget_unreachable(&self, node: &Node) {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        faults.retain(|kind, fault| {
            !matches!(kind, Kind::Unreachable(of) if of == node) || fault.is_told
        });
    }

    /// Ends the faults of a number, and those of its account.
    fn end(&self, node: &Node) {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut was_told = false;
        faults.retain(|kind, fault| {
            let is_over = kind.is_of(node);
            let is_denial = matches!(kind, Kind::Denied(..) | Kind::NodeDenied(..));
            was_told |= is_over && (fault.is_told || is_denial);
            !is_over
        });
        if was_told {
            let (waba_id, number) = node;
            info!(waba.id = %waba_id, "look-ups of number {number} are answered again");
        }
    }
}
