//! An answer of Graph to a look-up. Any answer can be interpreted and stored, and leads to a cause
//! and to the time of the next look-up.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use lockwatch_fuzz::lockout::cause::{self, Evidence, Finding};
use lockwatch_fuzz::lockout::schedule::{Progress, next_pause};
use lockwatch_fuzz::meta::health::{Answer, Entity, parse_answer};
use lockwatch_fuzz::meta::ids::Text;

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
            assert!(!matches!(answer, Answer::Health(_) | Answer::NoHealth));
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
        if let Some(entities) = answer.entities() {
            assert_leads_to_a_cause(entities);
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

fn assert_leads_to_a_cause(entities: &[Entity]) {
    let evidence = [Evidence {
        check_id: 1,
        finding: Finding::Health(entities.to_vec()),
    }];
    let cause = cause::derive(&evidence).expect("evidence has a cause");
    assert!(!cause::next_steps(cause.kind, cause.possible_solution.as_deref()).is_empty());
    if cause.kind.is_found() {
        assert!(
            !cause::is_clear(entities, cause.kind, cause.severity.as_ref()),
            "a found cause is clear at once"
        );
    }
}
