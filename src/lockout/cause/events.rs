//! What Meta's own notices say about a lock: they are findings, too.
//!
//! | notice | explains |
//! | --- | --- |
//! | a ban (`DISABLED_UPDATE` to DISABLE), a violation, a restriction that stops messages | the account's lock |
//! | a scheduled ban, a warning, other restrictions, a changed PIN, a rejected template, a flagged number | nothing; it is shown as "also found" |
//! | a lifting: REINSTATE, `…_UNBAN`, `…_RECOVERY` | ends what came before |

use time::{Duration, OffsetDateTime};

use super::LockoutCause;
use super::findings::{Finding, Scope, Severity, Source};

/// A notice without an announced end counts for this long.
const VALIDITY: Duration = Duration::days(30);
/// How far before an incident its notices are looked for.
pub(crate) const NOTICE_WINDOW: std::time::Duration =
    std::time::Duration::from_secs(30 * 24 * 60 * 60);
/// A change of the two-step PIN is worth telling if it came this shortly before the lock.
const PIN_WINDOW: Duration = Duration::hours(24);

/// A notice about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The field of the callback, such as `account_update`.
    pub field: String,
    /// What happened, in Meta's word.
    pub event: String,
    /// The state that it led to, in Meta's words.
    pub state: Option<String>,
    /// Meta's other words.
    pub detail: Option<String>,
    /// The time of the event.
    pub occurred_at: OffsetDateTime,
    /// The end that Meta announced.
    pub expires_at: Option<OffsetDateTime>,
}

/// What a notice means for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It can explain one.
    Locks(Severity),
    /// It ends one.
    Lifts,
    /// It is worth telling.
    Warns,
    /// It says nothing about a lock.
    Nothing,
}

impl Notice {
    /// Returns what the notice means for a lock.
    #[must_use]
    pub fn meaning(&self) -> Meaning {
        let state = self.state.as_deref().unwrap_or_default();
        match (self.field.as_str(), self.event.as_str()) {
            ("account_update", "DISABLED_UPDATE") => match state {
                "DISABLE" => Meaning::Locks(Severity::Full),
                "REINSTATE" => Meaning::Lifts,
                _ => Meaning::Warns,
            },
            ("account_update", "REINSTATED") => Meaning::Lifts,
            ("account_update", "ACCOUNT_VIOLATION") => Meaning::Locks(Severity::Full),
            ("account_update", "ACCOUNT_RESTRICTION") => restriction(state),
            ("account_update", "DISABLED" | "SUSPENDED" | "DISCONNECTED" | "ACCOUNT_DELETED") => {
                Meaning::Warns
            }
            ("account_review_update", _) if state == "REJECTED" => Meaning::Warns,
            ("account_alerts", _) if state == "CRITICAL" => Meaning::Warns,
            ("security", _) => Meaning::Warns,
            ("phone_number_quality_update", "FLAGGED" | "DOWNGRADE") => Meaning::Warns,
            (
                "message_template_status_update",
                "REJECTED" | "PAUSED" | "DISABLED" | "FLAGGED" | "LOCKED",
            ) => Meaning::Warns,
            _ => Meaning::Nothing,
        }
    }

    fn ends_at(&self) -> OffsetDateTime {
        self.expires_at
            .unwrap_or_else(|| self.occurred_at.saturating_add(VALIDITY))
    }

    /// The notice in a sentence for a person.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = format!("Meta's notice {}", self.event);
        if let Some(state) = self.state.as_ref().filter(|state| **state != self.event) {
            text.push_str(&format!(" ({})", state.replace(',', ", ")));
        }
        if let Some(detail) = &self.detail {
            text.push_str(&format!(": {}", detail.trim_end_matches('.')));
        }
        if let Some(end) = self.expires_at {
            let date = end.date();
            text.push_str(&format!(". It ends by itself on {date}"));
        }
        text.push('.');
        text
    }
}

/// Not every restriction restricts: some warn, some lift one, and only those of messages stop them.
fn restriction(state: &str) -> Meaning {
    if state.ends_with("_UNBAN") || state.ends_with("_RECOVERY") {
        return Meaning::Lifts;
    }
    let stops = |kind: &str| state.split(',').any(|word| word == kind);
    if stops("RESTRICTED_CUSTOMER_INITIATED_MESSAGING") {
        Meaning::Locks(Severity::Full)
    } else if stops("RESTRICTED_BIZ_INITIATED_MESSAGING") {
        Meaning::Locks(Severity::Partial)
    } else {
        Meaning::Warns
    }
}

/// Returns the findings of an account's notices for an incident: of those that were in force when it
/// opened, or came until its end.
#[must_use]
pub fn findings_of_notices(
    notices: &[Notice],
    opened_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
) -> Vec<Finding> {
    let lifted_by = |notice: &Notice| {
        notices.iter().any(|lifting| {
            lifting.meaning() == Meaning::Lifts
                && lifting.occurred_at > notice.occurred_at
                && lifting.occurred_at <= opened_at
        })
    };
    notices
        .iter()
        .filter(|notice| notice.ends_at() > opened_at && !lifted_by(notice))
        .filter(|notice| ended_at.is_none_or(|end| notice.occurred_at < end))
        .filter_map(|notice| {
            let (explains, severity) = match notice.meaning() {
                Meaning::Locks(severity) => (Some(LockoutCause::PolicyViolation), severity),
                Meaning::Warns => (None, Severity::Partial),
                Meaning::Lifts | Meaning::Nothing => return None,
            };
            let is_pin = notice.field == "security";
            if is_pin
                && !(notice.occurred_at <= opened_at + PIN_WINDOW
                    && notice.occurred_at >= opened_at - PIN_WINDOW)
            {
                return None;
            }
            Some(Finding {
                scope: Scope::Account,
                source: Source::Event,
                explains,
                severity,
                summary: notice.summary(),
                verdict: None,
                entity_type: None,
                entity_id: None,
                error_code: None,
                possible_solution: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const T: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);

    fn notice(event: &str, state: &str, days_before: i64) -> Notice {
        let field = match event {
            "PIN_CHANGED" => "security",
            "REJECTED" => "message_template_status_update",
            _ => "account_update",
        };
        Notice {
            field: field.into(),
            event: event.into(),
            state: (!state.is_empty()).then(|| state.to_owned()),
            detail: None,
            occurred_at: T - Duration::days(days_before),
            expires_at: None,
        }
    }

    #[test]
    fn every_notice_has_its_meaning() {
        use Meaning::{Lifts, Locks, Nothing, Warns};
        for (event, state, meaning) in [
            ("DISABLED_UPDATE", "DISABLE", Locks(Severity::Full)),
            ("DISABLED_UPDATE", "SCHEDULE_FOR_DISABLE", Warns),
            ("DISABLED_UPDATE", "REINSTATE", Lifts),
            ("ACCOUNT_VIOLATION", "SCAM", Locks(Severity::Full)),
            (
                "ACCOUNT_RESTRICTION",
                "RESTRICTED_BIZ_INITIATED_MESSAGING",
                Locks(Severity::Partial),
            ),
            (
                "ACCOUNT_RESTRICTION",
                "RESTRICTED_BIZ_INITIATED_MESSAGING,RESTRICTED_CUSTOMER_INITIATED_MESSAGING",
                Locks(Severity::Full),
            ),
            ("ACCOUNT_RESTRICTION", "RESTRICTED_UTILITY_TEMPLATES", Warns),
            (
                "ACCOUNT_RESTRICTION",
                "RESTRICTED_USER_INITIATED_CALLING",
                Warns,
            ),
            (
                "ACCOUNT_RESTRICTION",
                "DIRECT_SEND_UTILITY_CATEGORY_ABUSE_WARN",
                Warns,
            ),
            (
                "ACCOUNT_RESTRICTION",
                "DIRECT_SEND_UTILITY_CATEGORY_ABUSE",
                Warns,
            ),
            (
                "ACCOUNT_RESTRICTION",
                "DIRECT_SEND_UTILITY_CATEGORY_ABUSE_UNBAN",
                Lifts,
            ),
            ("ACCOUNT_RESTRICTION", "X_RECOVERY", Lifts),
            ("PIN_CHANGED", "", Warns),
            ("REJECTED", "", Warns),
            ("PARTNER_ADDED", "", Nothing),
        ] {
            assert_eq!(
                notice(event, state, 0).meaning(),
                meaning,
                "{event} {state}"
            );
        }
    }

    #[test]
    fn a_notice_counts_until_it_ends_or_is_lifted() {
        let explains = |notices: &[Notice]| {
            let findings = findings_of_notices(notices, T, None);
            findings.iter().any(|finding| finding.explains.is_some())
        };
        let ban = |days| notice("DISABLED_UPDATE", "DISABLE", days);
        let lifting = |days| notice("DISABLED_UPDATE", "REINSTATE", days);
        assert!(explains(&[ban(0)]) && explains(&[ban(29)]) && !explains(&[ban(30)]));
        assert!(!explains(&[ban(3), lifting(1)]));
        assert!(explains(&[lifting(3), ban(1)]));
        assert!(
            explains(&[ban(3), lifting(-1)]),
            "it explained the lock until then"
        );
        let ended = Notice {
            expires_at: Some(T - Duration::HOUR),
            ..ban(2)
        };
        assert!(!explains(&[ended]));
        let long = Notice {
            expires_at: Some(T + Duration::days(60)),
            ..ban(40)
        };
        assert!(explains(&[long]));
        let pin = |days| findings_of_notices(&[notice("PIN_CHANGED", "", days)], T, None).len();
        assert_eq!((pin(1), pin(2)), (1, 0));
        let after_the_end = findings_of_notices(&[ban(0)], T - Duration::days(9), Some(T));
        assert!(after_the_end.is_empty());
    }
}
