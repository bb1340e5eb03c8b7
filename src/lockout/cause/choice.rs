//! The choice of the cause, from the evidence of every affected number.

use std::cmp::{Ordering, Reverse};

use super::LockoutCause;
use crate::meta::health::{CanSend, Entity, EntityError};

/// The evidence of one number: the finding of its latest answered check.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The id of the check.
    pub check_id: i64,
    /// The finding of the check.
    pub finding: Finding,
}

/// The finding of one answered check.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// Meta reported these entities.
    Health(Vec<Entity>),
    /// The look-up was denied, for this reason.
    Denied(String),
}

/// A cause with its evidence.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// The kind of reason.
    pub kind: LockoutCause,
    /// The severity of the restriction, in Meta's words; `None` if no entity is restricted.
    pub severity: Option<CanSend>,
    /// The cause in a sentence for a person.
    pub summary: String,
    /// The type and id of the entity with the reason.
    pub entity: Option<(String, String)>,
    /// Meta's code of the reason.
    pub error_code: Option<i64>,
    /// Meta's own advice.
    pub possible_solution: Option<String>,
    /// The check that showed the cause.
    pub check_id: Option<i64>,
}

/// Codes about calling, not messaging: SIP is not set up (138024 on the number, 138025 on the app).
const CALLING_CODES: [i64; 2] = [138_024, 138_025];

/// Derives the cause from the evidence; `None` without evidence.
#[must_use]
pub fn derive(evidence: &[Evidence]) -> Option<Cause> {
    evidence
        .iter()
        .map(|Evidence { check_id, finding }| Cause {
            check_id: Some(*check_id),
            ..cause_of(finding)
        })
        .min_by(compare_causes)
}

fn cause_of(finding: &Finding) -> Cause {
    match finding {
        Finding::Health(entities) => match worst_restriction(entities) {
            Some(restriction) => restriction.into_cause(),
            None => unreported_cause(),
        },
        Finding::Denied(reason) => denied_cause(reason),
    }
}

/// Orders causes: found ones first, then by severity, by kind, and by the type of the entity.
fn compare_causes(a: &Cause, b: &Cause) -> Ordering {
    b.kind
        .is_found()
        .cmp(&a.kind.is_found())
        .then_with(|| b.severity.cmp(&a.severity))
        .then_with(|| a.kind.cmp(&b.kind))
        .then_with(|| entity_rank(a).cmp(&entity_rank(b)))
}

/// Returns whether a newly derived cause replaces the recorded one. Only another found cause that
/// is at least as severe replaces a found one. So a block keeps its cause during recovery, when the
/// token expires, and when an older limit shows again.
#[must_use]
pub(crate) fn supersedes(
    new: &Cause,
    recorded: LockoutCause,
    recorded_severity: Option<&CanSend>,
) -> bool {
    match (new.kind.is_found(), recorded.is_found()) {
        (true, true) => new.severity.as_ref() >= recorded_severity,
        (false, true) => false,
        (true, false) => true,
        // "Meta gives no reason" was an answer. A denied look-up is none, so it does not replace
        // it.
        (false, false) => {
            !(recorded == LockoutCause::Unreported && new.kind == LockoutCause::LookupDenied)
        }
    }
}

/// Returns whether these entities show neither the recorded cause nor another one that is at least
/// as severe.
#[must_use]
pub fn is_clear(
    entities: &[Entity],
    recorded: LockoutCause,
    recorded_severity: Option<&CanSend>,
) -> bool {
    entities.iter().flat_map(restrictions).all(|restriction| {
        let severity = Some(&restriction.entity.can_send_message);
        restriction.kind != recorded && severity < recorded_severity
    })
}

/// One reason on one entity.
struct Restriction<'e> {
    kind: LockoutCause,
    entity: &'e Entity,
    error: Option<&'e EntityError>,
}

/// Returns the worst restriction, by severity, then by cause, then by the type of the entity.
fn worst_restriction(entities: &[Entity]) -> Option<Restriction<'_>> {
    entities
        .iter()
        .flat_map(restrictions)
        .min_by_key(|restriction| {
            (
                Reverse(&restriction.entity.can_send_message),
                restriction.kind,
                type_rank(&restriction.entity.entity_type),
            )
        })
}

/// Returns every restriction of an entity. An entity that cannot send is restricted even without a
/// reason. If it can send, only known codes count.
fn restrictions(entity: &Entity) -> Vec<Restriction<'_>> {
    let is_available = entity.can_send_message == CanSend::Available;
    let mut restrictions: Vec<_> = entity
        .errors
        .iter()
        .filter(|error| {
            error
                .error_code
                .is_none_or(|code| !CALLING_CODES.contains(&code))
        })
        .map(|error| Restriction {
            kind: LockoutCause::from_code(error.error_code),
            entity,
            error: Some(error),
        })
        .filter(|restriction| !is_available || restriction.kind != LockoutCause::OtherRestriction)
        .collect();
    if restrictions.is_empty() && !is_available {
        restrictions.push(Restriction {
            kind: LockoutCause::OtherRestriction,
            entity,
            error: None,
        });
    }
    restrictions
}

impl Restriction<'_> {
    fn into_cause(self) -> Cause {
        let Entity {
            entity_type,
            id,
            can_send_message,
            additional_info,
            ..
        } = self.entity;
        let code = self.error.and_then(|error| error.error_code);
        let reason = match self.error {
            Some(error) if !error.error_description.is_empty() => error.error_description.clone(),
            _ if additional_info.is_empty() => "Meta gives no further reason.".to_owned(),
            _ => additional_info.join(" "),
        };
        let code_text = code.map(|code| format!(" ({code})")).unwrap_or_default();
        Cause {
            kind: self.kind,
            severity: Some(can_send_message.clone()),
            summary: format!("{entity_type} {id} is {can_send_message}{code_text}: {reason}"),
            entity: Some((entity_type.clone(), id.clone())),
            error_code: code,
            possible_solution: self.error.and_then(|error| error.possible_solution.clone()),
            check_id: None,
        }
    }
}

fn unreported_cause() -> Cause {
    cause_without_entity(
        LockoutCause::Unreported,
        "Meta reports every entity AVAILABLE and gives no reason for the lockout.".to_owned(),
    )
}

fn denied_cause(reason: &str) -> Cause {
    cause_without_entity(
        LockoutCause::LookupDenied,
        format!("The reason could not be looked up: {reason}"),
    )
}

fn cause_without_entity(kind: LockoutCause, summary: String) -> Cause {
    Cause {
        kind,
        severity: None,
        summary,
        entity: None,
        error_code: None,
        possible_solution: None,
        check_id: None,
    }
}

fn entity_rank(cause: &Cause) -> usize {
    cause
        .entity
        .as_ref()
        .map_or(usize::MAX, |(entity_type, _)| type_rank(entity_type))
}

fn type_rank(entity_type: &str) -> usize {
    const ORDER: [&str; 4] = ["PHONE_NUMBER", "WABA", "BUSINESS", "APP"];
    ORDER
        .iter()
        .position(|known| *known == entity_type)
        .unwrap_or(ORDER.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(kind: &str, can_send: &str, codes: &[i64]) -> Entity {
        Entity {
            entity_type: kind.into(),
            id: "1".into(),
            can_send_message: can_send.to_owned().into(),
            additional_info: vec![],
            errors: codes
                .iter()
                .map(|code| EntityError {
                    error_code: Some(*code),
                    error_description: format!("because of {code}"),
                    possible_solution: None,
                })
                .collect(),
        }
    }

    fn evidence(check_id: i64, entities: Vec<Entity>) -> Evidence {
        Evidence {
            check_id,
            finding: Finding::Health(entities),
        }
    }

    fn kind_of(entities: Vec<Entity>) -> LockoutCause {
        derive(&[evidence(1, entities)]).unwrap().kind
    }

    #[test]
    fn each_code_has_its_cause() {
        for (code, cause) in [
            (141_005, LockoutCause::PolicyViolation),
            (141_006, LockoutCause::Payment),
            (141_010, LockoutCause::BusinessVerification),
            (141_000, LockoutCause::PhoneRegistration),
            (131_045, LockoutCause::PhoneRegistration),
            (133_010, LockoutCause::PhoneRegistration),
            (133_005, LockoutCause::TwoStepVerification),
            (133_009, LockoutCause::TwoStepVerification),
            (999_999, LockoutCause::OtherRestriction),
        ] {
            assert_eq!(
                kind_of(vec![entity("WABA", "BLOCKED", &[code])]),
                cause,
                "{code}"
            );
        }
    }

    #[test]
    fn severity_comes_first_then_the_cause_then_the_entity() {
        let blocked_payment = entity("WABA", "BLOCKED", &[141_006]);
        let limited_policy = entity("BUSINESS", "LIMITED", &[141_005]);
        assert_eq!(
            kind_of(vec![limited_policy, blocked_payment.clone()]),
            LockoutCause::Payment
        );
        let blocked_policy = entity("BUSINESS", "BLOCKED", &[141_005]);
        assert_eq!(
            kind_of(vec![blocked_payment.clone(), blocked_policy]),
            LockoutCause::PolicyViolation
        );
        let cause = derive(&[evidence(
            1,
            vec![
                blocked_payment,
                entity("PHONE_NUMBER", "BLOCKED", &[141_006]),
            ],
        )])
        .unwrap();
        assert_eq!(cause.entity.unwrap().0, "PHONE_NUMBER");
        assert_eq!(
            cause.summary,
            "PHONE_NUMBER 1 is BLOCKED (141006): because of 141006"
        );
    }

    #[test]
    fn codes_about_calling_are_no_cause() {
        let calling = vec![
            entity("PHONE_NUMBER", "AVAILABLE", &[138_024]),
            entity("WABA", "AVAILABLE", &[]),
            entity("APP", "AVAILABLE", &[138_025]),
        ];
        assert_eq!(kind_of(calling), LockoutCause::Unreported);
        let blocked = derive(&[evidence(
            1,
            vec![entity("PHONE_NUMBER", "BLOCKED", &[138_024])],
        )])
        .unwrap();
        assert_eq!(
            (blocked.kind, blocked.error_code),
            (LockoutCause::OtherRestriction, None)
        );
    }

    #[test]
    fn limits_without_a_code_and_unknown_words_are_restrictions() {
        let mut limited = entity("PHONE_NUMBER", "LIMITED", &[]);
        limited.additional_info = vec!["Your display name has not been approved yet.".into()];
        let cause = derive(&[evidence(1, vec![limited])]).unwrap();
        assert_eq!(cause.kind, LockoutCause::OtherRestriction);
        assert!(
            cause
                .summary
                .ends_with("is LIMITED: Your display name has not been approved yet.")
        );
        assert_eq!(
            kind_of(vec![entity("WABA", "SLEEPING", &[])]),
            LockoutCause::OtherRestriction
        );
    }

    #[test]
    fn on_an_available_entity_only_a_known_code_counts() {
        assert_eq!(
            kind_of(vec![entity("WABA", "AVAILABLE", &[141_006])]),
            LockoutCause::Payment
        );
        assert_eq!(
            kind_of(vec![entity("WABA", "AVAILABLE", &[131_000])]),
            LockoutCause::Unreported
        );
    }

    #[test]
    fn the_cause_is_the_worst_of_all_numbers_and_has_its_check() {
        let denied = Evidence {
            check_id: 1,
            finding: Finding::Denied("no token configured".into()),
        };
        let available = evidence(2, vec![entity("WABA", "AVAILABLE", &[])]);
        let payment = evidence(3, vec![entity("WABA", "BLOCKED", &[141_006])]);
        let cause = |evidence: &[Evidence]| {
            let cause = derive(evidence)?;
            Some((cause.kind, cause.check_id.unwrap()))
        };
        assert_eq!(cause(&[]), None);
        assert_eq!(
            cause(std::slice::from_ref(&denied)),
            Some((LockoutCause::LookupDenied, 1))
        );
        assert_eq!(
            cause(&[denied.clone(), available.clone()]),
            Some((LockoutCause::Unreported, 2))
        );
        assert_eq!(
            cause(&[denied, available, payment]),
            Some((LockoutCause::Payment, 3))
        );
    }

    #[test]
    fn only_a_found_cause_as_severe_replaces_a_found_one() {
        let derived = |can_send, codes: &[i64]| {
            derive(&[evidence(1, vec![entity("WABA", can_send, codes)])]).unwrap()
        };
        let blocked = Some(&CanSend::Blocked);
        let available = derived("AVAILABLE", &[]);
        assert!(supersedes(&available, LockoutCause::Pending, None));
        assert!(supersedes(&available, LockoutCause::LookupDenied, None));
        let denied = denied_cause("the token expired");
        assert!(supersedes(&denied, LockoutCause::Pending, None));
        assert!(
            !supersedes(&denied, LockoutCause::Unreported, None),
            "Meta has answered before"
        );
        assert!(!supersedes(&available, LockoutCause::Payment, blocked));
        assert!(supersedes(
            &derived("BLOCKED", &[141_005]),
            LockoutCause::Payment,
            blocked
        ));
        assert!(
            !supersedes(
                &derived("LIMITED", &[141_010]),
                LockoutCause::Payment,
                blocked
            ),
            "the limit existed before"
        );
        assert!(supersedes(
            &derived("LIMITED", &[141_010]),
            LockoutCause::Payment,
            Some(&CanSend::Limited)
        ));
    }

    #[test]
    fn a_check_is_clear_without_the_cause_and_others_as_severe() {
        let limited = [entity("BUSINESS", "LIMITED", &[141_010])];
        let payment = |can_send, codes: &[i64], severity: CanSend| {
            is_clear(
                &[entity("WABA", can_send, codes)],
                LockoutCause::Payment,
                Some(&severity),
            )
        };
        assert!(
            is_clear(&limited, LockoutCause::Payment, Some(&CanSend::Blocked)),
            "another cause, less severe"
        );
        assert!(
            !is_clear(&limited, LockoutCause::Payment, Some(&CanSend::Limited)),
            "another cause, as severe"
        );
        assert!(
            payment("AVAILABLE", &[138_024], CanSend::Limited),
            "codes about calling do not count"
        );
        assert!(
            !payment("LIMITED", &[141_006], CanSend::Blocked),
            "the same cause, less severe"
        );
        assert!(
            !payment("AVAILABLE", &[141_006], CanSend::Blocked),
            "the same cause, although it can send"
        );
    }
}
