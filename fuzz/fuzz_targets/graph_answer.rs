//! What Graph answers to a look-up: whatever comes, it means something, can be stored, and leads to a
//! cause and to a time for the next look.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use lockwatch_fuzz::lockout::cause::{self, Evidence, Finding};
use lockwatch_fuzz::lockout::schedule::{Progress, next_pause};
use lockwatch_fuzz::meta::health::{Answer, Entity, parse_answer};
use lockwatch_fuzz::meta::ids::Text;

const DAY: Duration = Duration::from_secs(24 * 3600);

fuzz_target!(|body: &[u8]| {
    // The usage header is JSON too, so the same inputs make good ones.
    let usage = std::str::from_utf8(body).ok();
    for http_status in [200, 400, 503] {
        let answer = parse_answer(http_status, usage, body);
        assert_eq!(
            answer,
            parse_answer(http_status, usage, body),
            "the same when read again"
        );
        can_be_stored(&answer);
        if http_status != 200 {
            assert!(!matches!(answer, Answer::Health(_) | Answer::NoHealth));
        }
        if let Answer::Throttled {
            rest: Some(rest), ..
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
            lead_to_a_cause(entities);
        }
    }
});

fn can_be_stored(answer: &Answer) {
    if let Some(trouble) = answer.error_text() {
        assert!(
            !trouble.contains('\0') && trouble.len() <= Text::LONG + 100,
            "{trouble:?}"
        );
    }
    let Some(entities) = answer.entities() else {
        return;
    };
    assert!((1..=64).contains(&entities.len()));
    let stored = serde_json::to_string(entities).expect("entities are JSON");
    assert!(!stored.contains("\\u0000"), "jsonb takes no NUL");
    assert_eq!(
        serde_json::from_str::<Vec<Entity>>(&stored).expect("as it was written"),
        entities
    );
    for entity in entities {
        let short = [
            entity.entity_type.clone(),
            entity.id.clone(),
            entity.can_send_message.to_string(),
        ];
        let errors = entity.errors.iter();
        let long = errors.flat_map(|error| {
            [
                Some(&error.error_description),
                error.possible_solution.as_ref(),
            ]
        });
        assert!(short.iter().all(|text| text.len() <= Text::SHORT));
        assert!(
            long.flatten()
                .chain(&entity.additional_info)
                .all(|text| text.len() <= Text::LONG)
        );
        assert!(entity.errors.len() <= 16 && entity.additional_info.len() <= 16);
    }
}

fn lead_to_a_cause(entities: &[Entity]) {
    let evidence = [Evidence {
        check_id: 1,
        finding: Finding::Health(entities.to_vec()),
    }];
    let cause = cause::derive(&evidence).expect("evidence has a cause");
    assert!(!cause::next_steps(cause.kind, cause.possible_solution.as_deref()).is_empty());
    if cause.kind.is_found() {
        assert!(
            !cause::is_clear(entities, cause.kind, cause.severity.as_ref()),
            "what is found is not clear"
        );
    }
}
