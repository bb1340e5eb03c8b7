//! Sending again: which sent message proves that a lock is over.
//!
//! Only a message that the lock would have stopped proves it. `delivered` and `read` prove nothing:
//! they come hours later, for messages that were accepted before the lock.

use super::cause::{Cause, LockoutCause, Scope, Severity};
use super::codes::Kind;

/// The messages that prove the end of an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Whose messages.
    pub senders: Senders,
    /// Whether the message has to be a template, since replies pass all the time.
    pub needs_template: bool,
}

/// The numbers whose sent messages prove the end of an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Senders {
    /// Any number of the account.
    Any,
    /// One of the numbers with failures.
    Affected,
    /// Each of the numbers with failures, since its own last one.
    EachAffected,
}

/// Returns which messages prove the end of an incident of this kind with this cause; `None` if none
/// does. `is_limited`: Meta's checks say that the account can send within limits.
#[must_use]
pub fn proof(kind: Kind, cause: Option<&Cause>, is_limited: bool) -> Option<Proof> {
    let proof = |senders, needs_template| {
        Some(Proof {
            senders,
            needs_template,
        })
    };
    match kind {
        // Messages to other countries pass all the time.
        Kind::Country => None,
        Kind::Payment | Kind::Limit => proof(Senders::Any, true),
        Kind::Registration => proof(Senders::EachAffected, false),
        Kind::Lock => match cause {
            // A country may stay blocked when the account is no longer locked.
            Some(cause) if cause.error_code == Some(130_497) => proof(Senders::Affected, false),
            Some(cause) if cause.scope == Some(Scope::Number) => {
                proof(Senders::EachAffected, false)
            }
            Some(cause) if cause.scope == Some(Scope::Account) => {
                let stops_replies =
                    cause.severity == Some(Severity::Full) && cause.kind != LockoutCause::Payment;
                proof(Senders::Any, !stops_replies)
            }
            // Nobody knows what is stopped, but it hit these numbers.
            _ => proof(Senders::Affected, is_limited),
        },
    }
}
