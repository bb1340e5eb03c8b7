//! Chooses the cause from the evidence of every affected number.

use super::LockoutCause;
use crate::meta::health::{CanSend, Entity, EntityError};

/// What the latest answered check of one number showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The check.
    pub check_id: i64,
    /// What it showed.
    pub finding: Finding,
}

/// What one answered check shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// These entities.
    Health(Vec<Entity>),
    /// No look, for this reason.
    Denied(String),
}

/// A cause with what it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// Why.
    pub kind: LockoutCause,
    /// How badly the entity is hit, as Meta words it. `None` where no entity is.
    pub severity: Option<CanSend>,
    /// One sentence for a person.
    pub summary: String,
    /// The entity that carries the reason.
    pub entity: Option<(String, String)>,
    /// Meta's code.
    pub error_code: Option<i64>,
    /// Meta's own advice.
    pub possible_solution: Option<String>,
    /// The check that showed it.
    pub check_id: Option<i64>,
}

/// Calling, not messaging: SIP is not set up (138024 on the number, 138025 on the app).
const CALLING_NOISE: [i64; 2] = [138_024, 138_025];

/// The cause that the evidence shows. `None` without evidence.
#[must_use]
pub fn derive(evidence: &[Evidence]) -> Option<Cause> {
    evidence
        .iter()
        .map(|one| {
            let restriction = match &one.finding {
                Finding::Health(entities) => {
                    worst_restriction(entities).map_or_else(unreported, Restriction::into_cause)
                }
                Finding::Denied(why) => denied(why),
            };
            Cause {
                check_id: Some(one.check_id),
                ..restriction
            }
        })
        .min_by(|a, b| {
            let found = |cause: &Cause| !cause.kind.is_found();
            (found(a), &b.severity, a.kind, entity_rank(a)).cmp(&(
                found(b),
                &a.severity,
                b.kind,
                entity_rank(b),
            ))
        })
}

/// Whether a newly derived cause takes the place of the recorded one. A found cause gives way only to
/// another found one that is at least as severe: neither recovery, nor a token that expires, nor a
/// limit that was there all along erases why an account was blocked.
#[must_use]
pub fn supersedes(
    new: &Cause,
    recorded: LockoutCause,
    recorded_severity: Option<&CanSend>,
) -> bool {
    match (new.kind.is_found(), recorded.is_found()) {
        (true, true) => new.severity.as_ref() >= recorded_severity,
        (false, true) => false,
        (true, false) => true,
        // That Meta gives no reason was an answer; that it no longer lets us look is none.
        (false, false) => {
            !(recorded == LockoutCause::Unreported && new.kind == LockoutCause::LookupDenied)
        }
    }
}

/// Whether these entities no longer show the recorded cause, nor another as severe.
#[must_use]
pub fn is_clear(
    entities: &[Entity],
    recorded: LockoutCause,
    recorded_severity: Option<&CanSend>,
) -> bool {
    let mut restrictions = entities.iter().flat_map(restrictions);
    !restrictions
        .any(|r| r.kind == recorded || Some(&r.entity.can_send_message) >= recorded_severity)
}

struct Restriction<'e> {
    kind: LockoutCause,
    entity: &'e Entity,
    error: Option<&'e EntityError>,
}

/// By severity, then by cause, then by the entity's kind.
fn worst_restriction(entities: &[Entity]) -> Option<Restriction<'_>> {
    entities.iter().flat_map(restrictions).min_by_key(|r| {
        (
            std::cmp::Reverse(&r.entity.can_send_message),
            r.kind,
            type_rank(&r.entity.entity_type),
        )
    })
}

/// Every reason on an entity. One that cannot send is restricted even without a reason; on one that can,
/// only a code we know counts.
fn restrictions(entity: &Entity) -> Vec<Restriction<'_>> {
    let available = entity.can_send_message == CanSend::Available;
    let reasons = entity.errors.iter().filter(|e| {
        e.error_code
            .is_none_or(|code| !CALLING_NOISE.contains(&code))
    });
    let mut found: Vec<_> = reasons
        .map(|error| Restriction {
            kind: LockoutCause::from_code(error.error_code),
            entity,
            error: Some(error),
        })
        .filter(|r| !available || r.kind != LockoutCause::OtherRestriction)
        .collect();
    if found.is_empty() && !available {
        found.push(Restriction {
            kind: LockoutCause::OtherRestriction,
            entity,
            error: None,
        });
    }
    found
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
        let said = match self.error {
            Some(error) if !error.error_description.is_empty() => error.error_description.clone(),
            _ if additional_info.is_empty() => "Meta gives no further reason.".to_owned(),
            _ => additional_info.join(" "),
        };
        let code_text = code.map(|code| format!(" ({code})")).unwrap_or_default();
        Cause {
            kind: self.kind,
            severity: Some(can_send_message.clone()),
            summary: format!("{entity_type} {id} is {can_send_message}{code_text}: {said}"),
            entity: Some((entity_type.clone(), id.clone())),
            error_code: code,
            possible_solution: self.error.and_then(|error| error.possible_solution.clone()),
            check_id: None,
        }
    }
}

fn unreported() -> Cause {
    without_entity(
        LockoutCause::Unreported,
        "Meta reports every entity AVAILABLE and gives no reason for the lockout.".to_owned(),
    )
}

fn denied(why: &str) -> Cause {
    without_entity(
        LockoutCause::LookupDenied,
        format!("The reason could not be looked up: {why}"),
    )
}

fn without_entity(kind: LockoutCause, summary: String) -> Cause {
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

    fn seen(check_id: i64, entities: Vec<Entity>) -> Evidence {
        Evidence {
            check_id,
            finding: Finding::Health(entities),
        }
    }

    fn kind_of(entities: Vec<Entity>) -> LockoutCause {
        derive(&[seen(1, entities)]).unwrap().kind
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
        let cause = derive(&[seen(
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
    fn calling_noise_is_no_cause() {
        let noise = vec![
            entity("PHONE_NUMBER", "AVAILABLE", &[138_024]),
            entity("WABA", "AVAILABLE", &[]),
            entity("APP", "AVAILABLE", &[138_025]),
        ];
        assert_eq!(kind_of(noise), LockoutCause::Unreported);
        let blocked =
            derive(&[seen(1, vec![entity("PHONE_NUMBER", "BLOCKED", &[138_024])])]).unwrap();
        assert_eq!(
            (blocked.kind, blocked.error_code),
            (LockoutCause::OtherRestriction, None)
        );
    }

    #[test]
    fn limits_without_a_code_and_unknown_values_are_restrictions() {
        let mut limited = entity("PHONE_NUMBER", "LIMITED", &[]);
        limited.additional_info = vec!["Your display name has not been approved yet.".into()];
        let cause = derive(&[seen(1, vec![limited])]).unwrap();
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
    fn the_worst_of_all_numbers_is_the_cause_and_names_its_check() {
        let denied = Evidence {
            check_id: 1,
            finding: Finding::Denied("no token configured".into()),
        };
        let available = seen(2, vec![entity("WABA", "AVAILABLE", &[])]);
        let payment = seen(3, vec![entity("WABA", "BLOCKED", &[141_006])]);
        let cause = |evidence: &[Evidence]| {
            derive(evidence).map(|cause| (cause.kind, cause.check_id.unwrap()))
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
    fn only_a_found_cause_as_severe_takes_a_found_ones_place() {
        let derived = |can_send, codes: &[i64]| {
            derive(&[seen(1, vec![entity("WABA", can_send, codes)])]).unwrap()
        };
        let blocked = Some(&CanSend::Blocked);
        let available = derived("AVAILABLE", &[]);
        assert!(supersedes(&available, LockoutCause::Pending, None));
        assert!(supersedes(&available, LockoutCause::LookupDenied, None));
        let denied = denied("the token expired");
        assert!(supersedes(&denied, LockoutCause::Pending, None));
        assert!(
            !supersedes(&denied, LockoutCause::Unreported, None),
            "Meta did answer once"
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
            "was there all along"
        );
        assert!(supersedes(
            &derived("LIMITED", &[141_010]),
            LockoutCause::Payment,
            Some(&CanSend::Limited)
        ));
    }

    #[test]
    fn a_check_is_clear_once_neither_the_cause_nor_one_as_severe_shows() {
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
            "another, and it was there before"
        );
        assert!(
            !is_clear(&limited, LockoutCause::Payment, Some(&CanSend::Limited)),
            "another, as severe"
        );
        assert!(
            payment("AVAILABLE", &[138_024], CanSend::Limited),
            "calling is not messaging"
        );
        assert!(
            !payment("LIMITED", &[141_006], CanSend::Blocked),
            "the same, if less severe"
        );
        assert!(
            !payment("AVAILABLE", &[141_006], CanSend::Blocked),
            "the same, though it lets messages through"
        );
    }
}
