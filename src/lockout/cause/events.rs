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
use crate::lockout::incident::{NoticeTimes, Resolution};

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
    Lifts(Lifted),
    /// It is worth telling.
    Warns,
    /// It says nothing about a lock.
    Nothing,
}

/// What a lifting ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifted {
    /// Every lock of the account.
    Everything,
    /// Its restrictions, but not a ban.
    Restrictions,
}

impl Notice {
    /// Returns whether the notice says that Meta has disabled the account.
    fn is_ban(&self) -> bool {
        is_ban(&self.event, self.meaning())
    }

    /// Returns what the notice means for a lock.
    #[must_use]
    pub fn meaning(&self) -> Meaning {
        meaning(&self.field, &self.event, self.state.as_deref())
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

/// Returns what a notice means for a lock, by its field, its event and the state that it led to.
#[must_use]
pub fn meaning(field: &str, event: &str, state: Option<&str>) -> Meaning {
    let state = state.unwrap_or_default();
    match (field, event) {
        ("account_update", "DISABLED_UPDATE") => match state {
            "DISABLE" => Meaning::Locks(Severity::Full),
            "REINSTATE" => Meaning::Lifts(Lifted::Everything),
            _ => Meaning::Warns,
        },
        ("account_update", "REINSTATED") => Meaning::Lifts(Lifted::Everything),
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

/// Returns whether an event with this meaning says that Meta has disabled the account: no message
/// passes until it is reinstated.
#[must_use]
pub fn is_ban(event: &str, meaning: Meaning) -> bool {
    event == "DISABLED_UPDATE" && meaning == Meaning::Locks(Severity::Full)
}

/// Not every restriction restricts: some warn, some lift one, and only those of messages stop them.
fn restriction(state: &str) -> Meaning {
    if state.ends_with("_UNBAN") || state.ends_with("_RECOVERY") {
        return Meaning::Lifts(Lifted::Restrictions);
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

/// Returns when a notice was lifted, if it was.
fn lifted_at(notices: &[Notice], notice: &Notice) -> Option<OffsetDateTime> {
    let lifts = |lifting: &&Notice| match lifting.meaning() {
        Meaning::Lifts(Lifted::Everything) => true,
        Meaning::Lifts(Lifted::Restrictions) => !notice.is_ban(),
        _ => false,
    };
    let liftings = notices
        .iter()
        .filter(lifts)
        .map(|lifting| lifting.occurred_at);
    liftings.filter(|at| *at > notice.occurred_at).min()
}

/// Returns when Meta has locked an account and lifted that, from all of its notices. What was in
/// force at one of the `proven_ends` was over then, whatever Meta had announced.
#[must_use]
pub fn notice_times(notices: &[Notice], proven_ends: &[OffsetDateTime]) -> NoticeTimes {
    let mut times = NoticeTimes::default();
    let mut announced_ends = Vec::new();
    let mut bans = Vec::new();
    for notice in notices {
        if !matches!(notice.meaning(), Meaning::Locks(_)) {
            continue;
        }
        let start = notice.occurred_at;
        let proven = proven_ends.iter().copied().filter(|end| *end > start).min();
        let lifted_at = [lifted_at(notices, notice), proven];
        let lifted_at = lifted_at.into_iter().flatten().min();
        let end = match notice.expires_at {
            Some(end) => end.max(start),
            None if notice.is_ban() => start.saturating_add(VALIDITY),
            None => start,
        };
        if lifted_at.is_none_or(|at| at > end) && notice.expires_at.is_some() {
            announced_ends.push(end);
        }
        let hold = (start, lifted_at.map_or(end, |at| at.min(end)));
        times.holds.push(hold);
        if notice.is_ban() {
            bans.push(hold);
        }
    }
    let holds_at = |holds: &[(OffsetDateTime, OffsetDateTime)], at: OffsetDateTime| {
        holds.iter().any(|(start, end)| *start <= at && at < *end)
    };
    for notice in notices {
        let at = notice.occurred_at;
        let lifts = match notice.meaning() {
            Meaning::Lifts(Lifted::Everything) => true,
            Meaning::Lifts(Lifted::Restrictions) => !holds_at(&bans, at),
            _ => false,
        };
        if lifts {
            times.ends.push((at, Resolution::Reinstated));
        }
    }
    announced_ends.retain(|at| !holds_at(&times.holds, *at));
    let expired = announced_ends
        .into_iter()
        .map(|at| (at, Resolution::Expired));
    times.ends.extend(expired);
    times
}

/// Returns the findings of an account's notices for an incident: of those that were in force when
/// it opened, or came until its end.
#[must_use]
pub fn findings_of_notices(
    notices: &[Notice],
    opened_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
) -> Vec<Finding> {
    let is_lifted = |notice: &Notice| {
        lifted_at(notices, notice).is_some_and(|lifted_at| lifted_at <= opened_at)
    };
    notices
        .iter()
        .filter(|notice| notice.ends_at() > opened_at && !is_lifted(notice))
        .filter(|notice| ended_at.is_none_or(|end| notice.occurred_at < end))
        .filter_map(|notice| {
            let (explains, severity) = match notice.meaning() {
                Meaning::Locks(severity) => (Some(LockoutCause::PolicyViolation), severity),
                Meaning::Warns => (None, Severity::Partial),
                Meaning::Lifts(_) | Meaning::Nothing => return None,
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
        use Lifted::{Everything, Restrictions};
        use Meaning::{Lifts, Locks, Nothing, Warns};
        for (event, state, meaning) in [
            ("DISABLED_UPDATE", "DISABLE", Locks(Severity::Full)),
            ("DISABLED_UPDATE", "SCHEDULE_FOR_DISABLE", Warns),
            ("DISABLED_UPDATE", "REINSTATE", Lifts(Everything)),
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
                Lifts(Restrictions),
            ),
            ("ACCOUNT_RESTRICTION", "X_RECOVERY", Lifts(Restrictions)),
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
        let unban = notice("ACCOUNT_RESTRICTION", "X_UNBAN", 1);
        assert!(explains(&[ban(3), unban]), "it lifts no ban");
        let after_the_end = findings_of_notices(&[ban(0)], T - Duration::days(9), Some(T));
        assert!(after_the_end.is_empty());
    }

    #[test]
    fn notices_lock_and_lift_at_their_times() {
        let days = |n| T - Duration::days(n);
        let restriction = |at, until| Notice {
            expires_at: Some(days(until)),
            ..notice(
                "ACCOUNT_RESTRICTION",
                "RESTRICTED_BIZ_INITIATED_MESSAGING",
                at,
            )
        };
        let ban = |at| notice("DISABLED_UPDATE", "DISABLE", at);
        let reinstated = |at| notice("DISABLED_UPDATE", "REINSTATE", at);
        let unban = |at| notice("ACCOUNT_RESTRICTION", "X_UNBAN", at);
        let violation = |at| notice("ACCOUNT_VIOLATION", "SCAM", at);
        let (back, over) = (Resolution::Reinstated, Resolution::Expired);
        for (notices, holds, ends, note) in [
            (
                vec![ban(40)],
                vec![(40, 10)],
                vec![],
                "a ban counts for 30 days",
            ),
            (
                vec![ban(9), reinstated(5)],
                vec![(9, 5)],
                vec![(5, back)],
                "lifted",
            ),
            (
                vec![violation(9)],
                vec![(9, 9)],
                vec![],
                "a violation is a moment",
            ),
            (
                vec![restriction(9, 2)],
                vec![(9, 2)],
                vec![(2, over)],
                "expired",
            ),
            (
                vec![restriction(9, 2), unban(5)],
                vec![(9, 5)],
                vec![(5, back)],
                "lifted before",
            ),
            (
                vec![restriction(9, 2), restriction(8, 1)],
                vec![(9, 2), (8, 1)],
                vec![(1, over)],
                "the later end counts",
            ),
            (
                vec![ban(9), restriction(8, 2), unban(5), reinstated(1)],
                vec![(9, 1), (8, 5)],
                vec![(1, back)],
                "a ban outlasts what a restriction says",
            ),
            (
                vec![unban(5)],
                vec![],
                vec![(5, back)],
                "of what was never told",
            ),
        ] {
            let times = notice_times(&notices, &[]);
            let holds: Vec<_> = holds.into_iter().map(|(a, b)| (days(a), days(b))).collect();
            let ends: Vec<_> = ends.into_iter().map(|(at, how)| (days(at), how)).collect();
            assert_eq!((times.holds, times.ends), (holds, ends), "{note}");
        }
        let proven = notice_times(&[ban(9), restriction(9, 2)], &[days(5)]);
        let held = vec![(days(9), days(5)); 2];
        assert_eq!(
            (proven.holds, proven.ends),
            (held, vec![]),
            "messages were sent"
        );
    }
}
