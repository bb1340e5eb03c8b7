//! An answer of Graph to a look-up. Any answer can be interpreted and stored, and leads to a cause
//! and to the time of the next look-up.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use lockwatch_fuzz::lockout::cause::{self, Advice, NumberEvidence, NumberFindings};
use lockwatch_fuzz::lockout::codes::Kind;
use lockwatch_fuzz::lockout::schedule::{Progress, next_pause};
use lockwatch_fuzz::meta::health::{Answer, Entity, parse_answer};
use lockwatch_fuzz::meta::ids::{Text, WabaId};
use lockwatch_fuzz::meta::node_fields::NodeFields;

const DAY: Duration = Duration::from_secs(24 * 3600);

fuzz_target!(|body: &[u8]| {
    // The usage header is JSON too: the same inputs serve for it.
    let usage = std::str::from_utf8(body).ok();
    for http_status in [200, 400, 503] {
        let answer = parse_answer(http_status, usage, &["102"], body);
        assert_eq!(
            answer,
            parse_answer(http_status, usage, &["102"], body),
            "a second reading differs"
        );
        assert_storable(&answer);
        if http_status != 200 {
            assert!(!matches!(
                answer,
                Answer::Health(_) | Answer::NoVerdict { .. }
            ));
        }
        if let Answer::Throttled {
            retry_after: Some(rest),
            ..
        } = &answer
        {
            assert!(*rest > Duration::ZERO && *rest <= DAY);
        }
        let progress = Progress {
            answers: 0,
            failures: 0,
        }
        .after(&answer);
        for chance in [0.0, 0.999] {
            assert!(next_pause(&answer, progress, false, chance) <= 2 * DAY);
        }
        if !matches!(answer, Answer::Throttled { .. } | Answer::Unreachable(_)) {
            assert_leads_to_a_cause(&answer);
        }
    }
});

fn assert_storable(answer: &Answer) {
    if let Some(error) = answer.error_text() {
        assert!(
            !error.contains('\0') && error.len() <= Text::LONG_BYTES + 100,
            "{error:?}"
        );
    }
    let Some(entities) = answer.entities() else {
        return;
    };
    assert!((1..=64).contains(&entities.len()));
    let stored = serde_json::to_string(entities).expect("entities are JSON");
    assert!(!stored.contains("\\u0000"), "jsonb takes no NUL");
    assert_eq!(
        serde_json::from_str::<Vec<Entity>>(&stored).expect("our own JSON"),
        entities
    );
    for entity in entities {
        assert!(entity.entity_type.len() <= Text::SHORT_BYTES);
        assert!(entity.id.len() <= Text::SHORT_BYTES);
        assert!(entity.can_send_message.to_string().len() <= Text::SHORT_BYTES);
        for error in &entity.errors {
            let solution = error.possible_solution.as_deref().unwrap_or_default();
            assert!(error.error_description.len() <= Text::LONG_BYTES);
            assert!(solution.len() <= Text::LONG_BYTES);
        }
        let mut notes = entity.additional_info.iter();
        assert!(notes.all(|note| note.len() <= Text::LONG_BYTES));
        assert!(entity.errors.len() <= 16 && entity.additional_info.len() <= 16);
    }
}

fn assert_leads_to_a_cause(answer: &Answer) {
    let (waba_id, fields) = (WabaId::parse("102").expect("an id"), NodeFields::default());
    let findings = cause::findings_of(answer, &fields, &waba_id, "106");
    let mut number = NumberFindings::default();
    number.add(1, answer, &fields, findings.clone());
    let stored = serde_json::to_string(&number).expect("findings are JSON");
    assert!(!stored.contains("\\u0000"), "jsonb takes no NUL");
    assert_eq!(
        serde_json::from_str::<NumberFindings>(&stored).expect("our own JSON"),
        number
    );
    let evidence = NumberEvidence {
        error_codes: &[],
        failure_count: 1,
        findings: &number,
        is_given_up: false,
    };
    let cause = cause::choose(Kind::Lock, &[evidence], &[]).expect("an answer has a cause");
    assert!(!cause.summary.is_empty());
    let steps = cause::next_steps(&Advice {
        cause: cause.kind,
        denial: cause.denial,
        possible_solution: cause.possible_solution.as_deref(),
        also_found: &number.also,
        portfolio_id: None,
        fault: None,
    });
    assert!(!steps.is_empty());
    if cause.kind.is_found() {
        let is_clear = cause::is_clear(answer, &findings, &fields, &number, &waba_id);
        assert!(!is_clear, "what shows the cause is not clear of it");
    }
}
