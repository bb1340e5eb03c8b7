//! The whole table of findings, the choice between them, and the next steps.

use super::*;
use crate::lockout::codes::Kind;
use crate::meta::graph_error::{Denial, GraphError};
use crate::meta::health::{Answer, CanSend, Entity, EntityError};
use crate::meta::ids::WabaId;
use crate::meta::node_fields::{AccountFields, NodeFields, NumberFields};

const WABA: &str = "102";
const NUMBER: &str = "106";

fn entity(kind: &str, can_send: &str, codes: &[i64]) -> Entity {
    let id = match kind {
        "WABA" => WABA,
        "PHONE_NUMBER" => NUMBER,
        _ => "7",
    };
    Entity {
        entity_type: kind.into(),
        id: id.into(),
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

fn with_note(kind: &str, can_send: &str, note: &str) -> Entity {
    Entity {
        additional_info: vec![note.into()],
        ..entity(kind, can_send, &[])
    }
}

fn health(entities: &[Entity]) -> Answer {
    Answer::Health(entities.to_vec())
}

fn state(code: i64) -> Answer {
    Answer::State(GraphError {
        code,
        message: "What Meta said".into(),
        is_transient: false,
    })
}

fn refused(denial: Denial) -> Answer {
    let error = GraphError {
        code: 190,
        message: "No".into(),
        is_transient: false,
    };
    Answer::Refused { denial, error }
}

fn number_fields(status: &str) -> NodeFields {
    NodeFields {
        number: Some(NumberFields {
            status: Some(status.into()),
            ..NumberFields::default()
        }),
        account: None,
    }
}

/// Adds answers to what a number's checks have shown, in order.
fn shown(answers: &[(Answer, NodeFields)]) -> NumberFindings {
    let mut shown = NumberFindings::default();
    for (check_id, (answer, fields)) in (1..).zip(answers) {
        let findings = findings_of(answer, fields, &WabaId::parse(WABA).unwrap(), NUMBER);
        shown.add(check_id, answer, fields, findings);
    }
    shown
}

fn shown_by(answer: Answer) -> NumberFindings {
    shown(&[(answer, NodeFields::default())])
}

fn cause_of_numbers(numbers: &[(i64, &NumberFindings)]) -> Option<Cause> {
    let evidence: Vec<_> = numbers
        .iter()
        .map(|(failure_count, findings)| NumberEvidence {
            failure_count: *failure_count,
            error_codes: &[],
            findings,
            is_given_up: false,
        })
        .collect();
    choose(Kind::Lock, &evidence, &[])
}

fn cause_of(answer: Answer) -> Cause {
    cause_of_numbers(&[(1, &shown_by(answer))]).unwrap()
}

fn cause_of_fields(fields: NodeFields) -> Cause {
    let answer = health(&[entity("WABA", "AVAILABLE", &[])]);
    cause_of_numbers(&[(1, &shown(&[(answer, fields)]))]).unwrap()
}

#[test]
fn the_table_of_findings() {
    use LockoutCause as C;
    let blocked = |kind: &str, code| health(&[entity(kind, "BLOCKED", &[code])]);
    let limited = |kind: &str, code| health(&[entity(kind, "LIMITED", &[code])]);
    let (account, number) = (Some(Scope::Account), Some(Scope::Number));
    let mut table = vec![
        (blocked("BUSINESS", 141_005), C::PolicyViolation, account),
        (blocked("WABA", 141_014), C::PolicyViolation, account),
        (state(368), C::PolicyViolation, account),
        (blocked("WABA", 141_006), C::Payment, account),
        (limited("WABA", 141_006), C::Payment, account),
        (
            health(&[entity("WABA", "AVAILABLE", &[141_006])]),
            C::Payment,
            account,
        ),
        (blocked("PHONE_NUMBER", 141_006), C::Payment, account),
        (state(131_042), C::Payment, account),
        (
            blocked("BUSINESS", 141_010),
            C::BusinessVerification,
            account,
        ),
        (blocked("WABA", 999), C::OtherRestriction, account),
        (blocked("PHONE_NUMBER", 999), C::OtherRestriction, number),
        (
            health(&[entity("BUSINESS", "BLOCKED", &[])]),
            C::OtherRestriction,
            account,
        ),
        (
            health(&[entity("WABA", "SLEEPING", &[])]),
            C::OtherRestriction,
            account,
        ),
        (
            health(&[entity("WABA", "SLEEPING", &[141_005])]),
            C::PolicyViolation,
            account,
        ),
        (state(130_497), C::OtherRestriction, account),
        (state(131_031), C::Unreported, None),
        (
            health(&[entity("WABA", "AVAILABLE", &[])]),
            C::Unreported,
            None,
        ),
        // They may send, within a limit, or are not about sending.
        (limited("BUSINESS", 141_005), C::Unreported, None),
        (limited("BUSINESS", 141_010), C::Unreported, None),
        (limited("PHONE_NUMBER", 141_000), C::Unreported, None),
        (
            health(&[with_note(
                "PHONE_NUMBER",
                "LIMITED",
                "Your display name is not approved.",
            )]),
            C::Unreported,
            None,
        ),
        (
            health(&[entity("BUSINESS", "AVAILABLE", &[131_000])]),
            C::Unreported,
            None,
        ),
        (blocked("APP", 999), C::Unreported, None),
        (blocked("APP", 138_025), C::Unreported, None),
    ];
    for code in [141_000, 131_045, 133_010] {
        table.push((blocked("PHONE_NUMBER", code), C::PhoneRegistration, number));
    }
    for code in [133_005, 133_006, 133_008, 133_009] {
        table.push((
            blocked("PHONE_NUMBER", code),
            C::TwoStepVerification,
            number,
        ));
    }
    for (answer, cause, scope) in table {
        let chosen = cause_of(answer.clone());
        assert_eq!((chosen.kind, chosen.scope), (cause, scope), "{answer:?}");
        assert_eq!(chosen.confidence.is_some(), cause.is_found(), "{answer:?}");
        assert!(chosen.summary.ends_with('.') || chosen.error_code.is_some());
    }
    for (status, cause) in [
        ("BANNED", C::OtherRestriction),
        ("DELETED", C::PhoneRegistration),
        ("DISCONNECTED", C::PhoneRegistration),
        ("CONNECTED", C::Unreported),
        ("RESTRICTED", C::Unreported),
        ("FLAGGED", C::Unreported),
        ("RATE_LIMITED", C::Unreported),
        ("ECLIPSED", C::Unreported),
    ] {
        assert_eq!(
            cause_of_fields(number_fields(status)).kind,
            cause,
            "{status}"
        );
    }
}

#[test]
fn every_denial_has_its_own_step() {
    let mut steps = std::collections::BTreeSet::new();
    for denial in Denial::ALL {
        let cause = cause_of(refused(denial));
        assert_eq!(
            (cause.kind, cause.denial),
            (LockoutCause::LookupDenied, Some(denial))
        );
        assert!(cause.summary.contains("(190) No"), "{}", cause.summary);
        steps.insert(steps_for(&cause)[0].clone());
    }
    assert_eq!(steps.len(), Denial::ALL.len());
    let without = |denial, word| {
        let step = steps_for(&cause_of(refused(denial)))[0].to_lowercase();
        assert!(!step.contains(word), "{step}");
    };
    without(Denial::IpAllowlist, "token");
    without(Denial::GraphVersion, "token");
    without(Denial::NoVerdict, "token");
}

fn steps_for(cause: &Cause) -> Vec<String> {
    next_steps(&Advice {
        cause: cause.kind,
        denial: cause.denial,
        possible_solution: cause.possible_solution.as_deref(),
        also_found: &[],
        portfolio_id: Some("7300"),
        fault: None,
    })
}

#[test]
fn what_explains_nothing_is_also_found() {
    let everyday = shown_by(health(&[
        with_note(
            "PHONE_NUMBER",
            "LIMITED",
            "Your display name is not approved.",
        ),
        entity("WABA", "AVAILABLE", &[]),
        entity("BUSINESS", "LIMITED", &[141_010]),
        with_note("APP", "AVAILABLE", "Your app is not subscribed."),
    ]));
    let also: Vec<&str> = everyday.also.iter().map(|f| f.summary.as_str()).collect();
    assert_eq!(
        also,
        [
            "PHONE_NUMBER 106 is LIMITED: Your display name is not approved.",
            "BUSINESS 7 is LIMITED (141010): because of 141010",
            "APP 7 is AVAILABLE: Your app is not subscribed.",
        ]
    );
    let fields = NodeFields {
        number: Some(NumberFields {
            status: Some("FLAGGED".into()),
            quality_rating: Some("RED".into()),
            name_status: Some("DECLINED".into()),
        }),
        account: Some(AccountFields {
            account_review_status: Some("REJECTED".into()),
            business_verification_status: Some("not_verified".into()),
            ..AccountFields::default()
        }),
    };
    let answer = health(&[entity("WABA", "AVAILABLE", &[])]);
    let mut number = shown(&[(answer.clone(), fields)]);
    assert_eq!(number.also.len(), 5, "{:?}", number.also);
    number.add(2, &answer, &NodeFields::default(), vec![]);
    assert_eq!(number.also.len(), 5, "what was not read again still stands");
    number.add(3, &answer, &number_fields("CONNECTED"), vec![]);
    assert_eq!(number.also.len(), 2, "the account's fields");
}

#[test]
fn sentences_have_no_holes() {
    let nameless = Entity {
        entity_type: String::new(),
        id: String::new(),
        ..entity("WABA", "BLOCKED", &[])
    };
    let silent_error = EntityError {
        error_code: None,
        error_description: "  ".into(),
        possible_solution: None,
    };
    let unstated = Entity {
        can_send_message: CanSend::Unstated,
        ..entity("WABA", "BLOCKED", &[141_006])
    };
    for (entity, summary) in [
        (
            nameless,
            "An entity is BLOCKED. Meta gives no further reason.",
        ),
        (
            Entity {
                errors: vec![silent_error.clone()],
                ..entity("WABA", "BLOCKED", &[])
            },
            "WABA 102 is BLOCKED. Meta gives no further reason.",
        ),
        (
            Entity {
                errors: vec![silent_error],
                ..with_note("WABA", "BLOCKED", " See the support home. ")
            },
            "WABA 102 is BLOCKED: See the support home.",
        ),
        (
            unstated,
            "WABA 102 has no verdict (141006): because of 141006",
        ),
    ] {
        assert_eq!(cause_of(health(&[entity])).summary, summary);
    }
}

#[test]
fn calling_is_no_reason_and_the_verdict_stays() {
    let blocked = entity("PHONE_NUMBER", "BLOCKED", &[138_024]);
    let cause = cause_of(health(&[blocked]));
    assert_eq!(
        (cause.kind, cause.error_code),
        (LockoutCause::OtherRestriction, None)
    );
    let mut by_text = entity("WABA", "AVAILABLE", &[140_000]);
    by_text.errors[0].error_description = "SIP is not configured".into();
    assert!(shown_by(health(&[by_text])).also.is_empty());
}

#[test]
fn another_account_explains_nothing() {
    let other = Entity {
        id: "999".into(),
        ..entity("WABA", "BLOCKED", &[141_006])
    };
    let answer = [
        entity("PHONE_NUMBER", "AVAILABLE", &[]),
        other.clone(),
        entity("BUSINESS", "BLOCKED", &[141_005]),
    ];
    let number = shown_by(health(&answer));
    assert_eq!(
        cause_of_numbers(&[(1, &number)]).unwrap().kind,
        LockoutCause::Unreported
    );
    assert_eq!(
        number.also[0].summary,
        "The number belongs to account 999 now."
    );
    let waba = WabaId::parse(WABA).unwrap();
    assert_eq!(verdict(&answer, &waba), Some(&CanSend::Available));
    // Meta's test numbers send no account id, and an entity may have none.
    let test_number = WabaId::parse("phone:106").unwrap();
    assert!(!explain_nothing(&findings_of(
        &health(&answer),
        &NodeFields::default(),
        &test_number,
        NUMBER
    )));
    let nameless = Entity {
        id: String::new(),
        ..other
    };
    assert_eq!(cause_of(health(&[nameless])).kind, LockoutCause::Payment);
}

#[test]
fn the_app_that_asks_does_not_change_the_verdict() {
    let waba = WabaId::parse(WABA).unwrap();
    let entities = [
        entity("WABA", "AVAILABLE", &[]),
        entity("APP", "BLOCKED", &[]),
    ];
    assert_eq!(verdict(&entities, &waba), Some(&CanSend::Available));
    assert_eq!(verdict(&entities[1..], &waba), None);
}

#[test]
fn a_number_explains_its_own_failures() {
    let registration = shown_by(health(&[entity("PHONE_NUMBER", "BLOCKED", &[141_000])]));
    let banned = shown(&[(health(&[]), number_fields("BANNED"))]);
    let silent = shown_by(health(&[entity("WABA", "AVAILABLE", &[])]));
    let waiting = NumberFindings::default();
    let kind = |numbers: &[(i64, &NumberFindings)]| cause_of_numbers(numbers).map(|c| c.kind);
    let (one, many) = (1, 38);
    assert_eq!(
        kind(&[(one, &registration), (many, &silent)]),
        Some(LockoutCause::Unreported),
        "a small number does not explain the account"
    );
    assert_eq!(
        kind(&[(one, &registration), (many, &banned)]),
        Some(LockoutCause::OtherRestriction),
        "of several, the one with most failures"
    );
    assert_eq!(kind(&[(one, &registration), (many, &waiting)]), None);
    assert_eq!(
        kind(&[(one, &registration), (0, &silent)]),
        Some(LockoutCause::PhoneRegistration),
        "a node without failures has none to explain"
    );
    let pin = shown_by(health(&[entity("PHONE_NUMBER", "BLOCKED", &[133_005])]));
    for numbers in [
        [(one, &registration), (one, &pin)],
        [(one, &pin), (one, &registration)],
    ] {
        assert_eq!(
            kind(&numbers),
            Some(LockoutCause::PhoneRegistration),
            "as many failures"
        );
    }
    let policy = shown_by(health(&[entity("BUSINESS", "BLOCKED", &[141_005])]));
    assert_eq!(
        kind(&[(many, &registration), (one, &policy)]),
        Some(LockoutCause::PolicyViolation),
        "the account's reason explains every failure"
    );
}

#[test]
fn a_number_without_an_answer_is_not_waited_for_for_ever() {
    let registration = shown_by(health(&[entity("PHONE_NUMBER", "BLOCKED", &[141_000])]));
    let waiting = NumberFindings::default();
    let evidence =
        [(&registration, false), (&waiting, true)].map(|(findings, is_given_up)| NumberEvidence {
            failure_count: 1,
            error_codes: &[],
            findings,
            is_given_up,
        });
    let cause = choose(Kind::Lock, &evidence, &[]).unwrap();
    assert_eq!(cause.kind, LockoutCause::Unreported);
    assert!(!cause.summary.contains("no block and"), "{}", cause.summary);
    assert_eq!(choose(Kind::Lock, &[], &[]), None);
}

#[test]
fn an_answer_without_a_reason_is_better_than_none() {
    let silent = shown_by(health(&[entity("WABA", "AVAILABLE", &[])]));
    let denied = shown_by(refused(Denial::Permission));
    let kind = |numbers: &[(i64, &NumberFindings)]| cause_of_numbers(numbers).unwrap().kind;
    assert_eq!(
        kind(&[(9, &denied), (1, &silent)]),
        LockoutCause::Unreported
    );
    let then_denied = shown(&[
        (
            health(&[entity("WABA", "AVAILABLE", &[])]),
            NodeFields::default(),
        ),
        (refused(Denial::TokenInvalid), NodeFields::default()),
    ]);
    assert_eq!(kind(&[(1, &then_denied)]), LockoutCause::Unreported);
    let locked = shown_by(state(131_031));
    let cause = cause_of_numbers(&[(1, &silent), (1, &locked)]).unwrap();
    assert_eq!(
        cause.summary,
        "Meta answers (131031) What Meta said. It gives no reason for the lockout."
    );
}

#[test]
fn a_check_is_clear_only_if_it_explains_nothing() {
    let clear = |answer: &Answer, fields: &NodeFields, before: &NumberFindings| {
        let findings = findings_of(answer, fields, &WabaId::parse(WABA).unwrap(), NUMBER);
        let waba_id = WabaId::parse(WABA).unwrap();
        is_clear(answer, &findings, fields, before, &waba_id)
    };
    let none = NodeFields::default();
    let nothing = NumberFindings::default();
    let blocked_number = health(&[entity("PHONE_NUMBER", "BLOCKED", &[141_000])]);
    let available = health(&[entity("WABA", "AVAILABLE", &[])]);
    assert!(clear(&available, &none, &nothing));
    let everyday = health(&[entity("BUSINESS", "LIMITED", &[141_010])]);
    assert!(clear(&everyday, &none, &nothing));
    let moved = Entity {
        id: "999".into(),
        ..entity("WABA", "AVAILABLE", &[])
    };
    let elsewhere = health(&[entity("PHONE_NUMBER", "AVAILABLE", &[]), moved]);
    assert!(!clear(&elsewhere, &none, &nothing), "another account");
    let only_app = health(&[entity("APP", "AVAILABLE", &[])]);
    assert!(!clear(&only_app, &none, &nothing), "the app sends nothing");
    let payment = shown_by(health(&[entity("WABA", "BLOCKED", &[141_006])]));
    let number_alone = health(&[entity("PHONE_NUMBER", "AVAILABLE", &[])]);
    assert!(
        !clear(&number_alone, &none, &payment),
        "no verdict on what was blocked"
    );
    assert!(clear(&available, &none, &payment));
    let lesser = health(&[entity("WABA", "AVAILABLE", &[141_006])]);
    assert!(!clear(&lesser, &none, &nothing));
    assert!(!clear(&refused(Denial::TokenInvalid), &none, &nothing));
    assert!(!clear(&state(368), &none, &nothing));
    let banned = shown(&[
        (blocked_number, none.clone()),
        (available.clone(), number_fields("BANNED")),
    ]);
    assert!(
        !clear(&available, &none, &banned),
        "the status was not read"
    );
    let connected = health(&[
        entity("WABA", "AVAILABLE", &[]),
        entity("PHONE_NUMBER", "AVAILABLE", &[]),
    ]);
    assert!(clear(&connected, &number_fields("CONNECTED"), &banned));
}

#[test]
fn every_cause_has_steps_after_metas_advice() {
    for cause in LockoutCause::ALL {
        let advice = Advice {
            cause,
            denial: None,
            possible_solution: Some("Pay."),
            also_found: &[],
            portfolio_id: None,
            fault: None,
        };
        let steps = next_steps(&advice);
        assert_eq!(steps[0], "Meta's advice: Pay.");
        assert!(
            steps.len() > 1 && steps.iter().all(|step| step.ends_with('.')),
            "{cause}"
        );
        assert_eq!(LockoutCause::parse(cause.as_str()), Some(cause));
    }
    let steps = steps_for(&cause_of(health(&[entity("WABA", "BLOCKED", &[])])));
    let link = "(https://business.facebook.com/business-support-home/?business_id=7300)";
    assert!(steps[0].contains(link), "{}", steps[0]);
    assert!(!support_home_url(Some("7/..")).contains(".."));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn config() -> ProptestConfig {
        ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(2000)
        }
    }

    const CODES: [i64; 12] = [
        141_000, 141_002, 141_005, 141_010, 141_014, 131_000, 131_045, 133_005, 133_010, 138_024,
        138_025, 999_999,
    ];

    /// An entity with this verdict, with any errors (141006 apart) and notes.
    fn any_entity(verdicts: &'static [&'static str]) -> impl Strategy<Value = Entity> {
        let kinds = ["PHONE_NUMBER", "WABA", "BUSINESS", "APP", "MOON"];
        (
            prop::sample::select(kinds.to_vec()),
            prop::sample::select(verdicts),
            prop::collection::vec(prop::sample::select(&CODES[..]), 0..3),
            prop::option::of("[a-zA-Z ]{0,12}"),
        )
            .prop_map(|(kind, verdict, codes, note)| Entity {
                additional_info: note.into_iter().collect(),
                ..entity(kind, verdict, &codes)
            })
    }

    fn any_answer() -> impl Strategy<Value = (Answer, NodeFields)> {
        let verdicts = &["AVAILABLE", "LIMITED", "BLOCKED", "SLEEPING"][..];
        let payment = any_entity(verdicts).prop_map(|mut entity| {
            entity.errors.push(EntityError {
                error_code: Some(141_006),
                error_description: "pay".into(),
                possible_solution: None,
            });
            entity
        });
        let entities = prop_oneof![4 => any_entity(verdicts), 1 => payment];
        let healthy = prop::collection::vec(entities, 1..4).prop_map(Answer::Health);
        let statuses = ["CONNECTED", "BANNED", "DELETED", "FLAGGED"];
        let fields = prop::option::of(prop::sample::select(statuses.to_vec()));
        let states = prop::sample::select(&[368, 131_031, 131_042, 130_497][..]).prop_map(state);
        let denials = prop::sample::select(&Denial::ALL[..]).prop_map(refused);
        prop_oneof![
            4 => (healthy, fields).prop_map(|(answer, status)| {
                (answer, status.map(number_fields).unwrap_or_default())
            }),
            1 => states.prop_map(|answer| (answer, NodeFields::default())),
            1 => denials.prop_map(|answer| (answer, NodeFields::default())),
        ]
    }

    #[test]
    fn limits_notes_and_warnings_are_never_a_cause() {
        let entities = prop::collection::vec(any_entity(&["LIMITED", "AVAILABLE"]), 1..6);
        let statuses = [
            "RESTRICTED",
            "FLAGGED",
            "RATE_LIMITED",
            "CONNECTED",
            "PENDING",
        ];
        let ratings = ["RED", "YELLOW", "GREEN"];
        proptest!(config(), |(
            entities in entities,
            status in prop::sample::select(statuses.to_vec()),
            rating in prop::sample::select(ratings.to_vec()),
        )| {
            let fields = NodeFields {
                number: Some(NumberFields {
                    status: Some(status.into()),
                    quality_rating: Some(rating.into()),
                    name_status: Some("DECLINED".into()),
                }),
                account: Some(AccountFields {
                    account_review_status: Some("REJECTED".into()),
                    ..AccountFields::default()
                }),
            };
            let number = shown(&[(health(&entities), fields)]);
            let cause = cause_of_numbers(&[(1, &number)]).unwrap();
            prop_assert_eq!(cause.kind, LockoutCause::Unreported);
            prop_assert!(!cause.kind.is_found(), "nothing could recover");
        });
    }

    /// How grave a cause is, for the two properties below: written down apart from the choice.
    fn gravity(cause: Option<&Cause>) -> (u8, u8) {
        let Some(cause) = cause else { return (0, 0) };
        match cause.kind {
            LockoutCause::Pending => (0, 0),
            LockoutCause::LookupDenied => (1, 0),
            LockoutCause::Unreported => (2, 0),
            kind => {
                let place = LockoutCause::ALL.iter().position(|known| *known == kind);
                let is_full = cause
                    .verdict
                    .as_deref()
                    .is_none_or(|verdict| ["BLOCKED", "BANNED", "DELETED"].contains(&verdict));
                let order = u8::try_from(LockoutCause::ALL.len() - place.unwrap()).unwrap();
                (if is_full { 4 } else { 3 }, order)
            }
        }
    }

    #[test]
    fn more_evidence_about_a_number_never_makes_its_cause_less_grave() {
        let answers = prop::collection::vec(any_answer(), 1..6);
        proptest!(config(), |(answers in answers)| {
            // Causes of the account alone: a number's reason gives way to the account's.
            let causes: Vec<_> = (1..=answers.len())
                .map(|length| {
                    let shown = shown(&answers[..length]);
                    let account = NumberFindings { number: None, ..shown };
                    gravity(cause_of_numbers(&[(1, &account)]).as_ref())
                })
                .collect();
            prop_assert!(causes.is_sorted(), "{:?}", causes);
        });
    }

    #[test]
    fn the_order_of_answers_does_not_change_the_final_cause() {
        let answers = prop::collection::vec((any_answer(), 0_usize..3), 1..7).prop_shuffle();
        proptest!(config(), |(answers in answers, seed in any::<u64>())| {
            let cause = |answers: &[((Answer, NodeFields), usize)]| {
                let numbers: Vec<NumberFindings> = (0..3)
                    .map(|number| {
                        let own = answers.iter().filter(|(_, of)| *of == number);
                        shown(&own.map(|(answer, _)| answer.clone()).collect::<Vec<_>>())
                    })
                    .collect();
                let numbers: Vec<_> = (1..).zip(&numbers).collect();
                cause_of_numbers(&numbers).map(|cause| (cause.kind, cause.scope))
            };
            let mut shuffled = answers.clone();
            let length = shuffled.len();
            for n in 0..length {
                let other = usize::try_from(seed.rotate_left(n as u32 * 7) % length as u64).unwrap();
                shuffled.swap(n, other);
            }
            prop_assert_eq!(cause(&answers), cause(&shuffled));
        });
    }
}
