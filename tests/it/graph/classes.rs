//! The classes of errors that Meta may answer. Each has its own outcome and time of the next
//! look-up.

use serde_json::{Value, json};

use super::{LookupRow, account_at, look_up_scripts};
use crate::support::scripted_server::answer;

const MINUTE: f64 = 60.0;

/// Looks up one number for each answer, which is a status and a body.
async fn look_up_answers(answers: &[(u16, Value)]) -> Vec<LookupRow> {
    let scripts = answers
        .iter()
        .map(|(status, body)| answer(&format!("{status} Status"), body.to_string()));
    look_up_scripts(scripts.collect::<Vec<_>>()).await.rows
}

fn error(code: impl Into<Value>) -> Value {
    json!({"error": {
        "message": "What Meta said",
        "type": "OAuthException",
        "code": code.into(),
        "fbtrace_id": "A",
    }})
}

/// The same error with additional fields.
fn error_with(code: i64, more: &[(&str, Value)]) -> Value {
    let mut body = error(code);
    for (field, value) in more {
        body["error"][field] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_refused_look_up_is_denied_and_repeated_hourly() {
    let mut refusals: Vec<(u16, Value)> = [
        0, 3, 5, 10, 33, 100, 102, 104, 190, 200, 201, 250, 298, 299, 803, 2500, 131_005,
    ]
    .map(|code| (400, error(code)))
    .to_vec();
    refusals.extend([
        (401, error("190")),
        (401, error(190.0)),
        (200, error(190)),
        (500, error(190)),
        (401, error_with(190, &[("error_subcode", json!(463))])),
        (
            400,
            error_with(
                100,
                &[
                    ("error_subcode", json!(33)),
                    ("type", json!("GraphMethodException")),
                ],
            ),
        ),
        (400, error_with(100, &[("error_data", json!("a string"))])),
        (
            400,
            error_with(
                100,
                &[(
                    "error_data",
                    json!({"messaging_product": "whatsapp", "details": "an object"}),
                )],
            ),
        ),
        (
            400,
            error_with(
                10,
                &[
                    ("is_transient", json!(true)),
                    ("message", json!(["no", "text"])),
                ],
            ),
        ),
        (
            400,
            error_with(
                10,
                &[
                    ("error_subcode", json!(1e300)),
                    ("message", json!("x".repeat(100_000))),
                ],
            ),
        ),
    ]);
    for (row, (status, body)) in look_up_answers(&refusals).await.iter().zip(&refusals) {
        row.assert_result(
            "refused",
            "lookup_denied",
            53.9 * MINUTE..=66.0 * MINUTE,
            &body.to_string(),
        );
        assert_eq!(
            (row.http_status, row.pause_seconds),
            (Some(i32::from(*status)), None),
            "{body}"
        );
    }
}

#[tokio::test]
async fn an_answer_without_health_is_a_denied_look_up() {
    let without = [
        json!({}),
        json!({"id": "1"}),
        json!({"health_status": null, "error": null}),
        json!({"health_status": "AVAILABLE"}),
        json!({"health_status": {"can_send_message": "BLOCKED"}}),
        json!({"health_status": {"entities": []}}),
        json!({"health_status": {"entities": ["WABA", 7, null]}}),
    ];
    for (row, body) in look_up_answers(&without.clone().map(|body| (200, body)))
        .await
        .iter()
        .zip(without)
    {
        row.assert_result(
            "no_health",
            "lookup_denied",
            53.9 * MINUTE..=66.0 * MINUTE,
            &body.to_string(),
        );
    }
}

#[tokio::test]
async fn a_throttled_account_is_paused_for_15_minutes() {
    let mut throttled: Vec<(u16, Value)> = [32, 613, 80000, 80007, 80008, 80014, 130_429]
        .map(|code| (400, error(code)))
        .to_vec();
    throttled.extend([
        (403, error(80007)),
        (200, error(80008)),
        (429, error("80008")),
        (
            400,
            error_with(
                613,
                &[
                    ("error_subcode", json!(1996)),
                    ("error_data", json!("volume")),
                ],
            ),
        ),
    ]);
    for (row, (_, body)) in look_up_answers(&throttled).await.iter().zip(&throttled) {
        row.assert_result(
            "throttled",
            "pending",
            14.9 * MINUTE..=15.0 * MINUTE,
            &body.to_string(),
        );
        assert!(
            row.pause_seconds
                .is_some_and(|pause| (14.9 * MINUTE..=15.0 * MINUTE).contains(&pause)),
            "{body}: {row:?}"
        );
        assert_eq!(row.failures, 0, "a throttled look-up is not a failure");
    }
}

#[tokio::test]
async fn the_usage_header_sets_the_minutes_of_the_pause() {
    const DEFAULT_MINUTES: f64 = 15.0;
    const DAY_MINUTES: f64 = 24.0 * 60.0;
    let usage = |minutes: Value| {
        let budget = json!({"type": "whatsapp", "estimated_time_to_regain_access": minutes});
        json!({"$WABA": [budget]})
    };
    let headers = [
        (usage(json!(19)).to_string(), 19.0),
        (usage(json!(19.0)).to_string(), 19.0),
        (usage(json!("19")).to_string(), 19.0),
        (usage(json!(0.5)).to_string(), 1.0),
        (usage(json!(1)).to_string(), 1.0),
        (usage(json!(1_000_000_000_000_u64)).to_string(), DAY_MINUTES),
        (usage(json!(1e300)).to_string(), DAY_MINUTES),
        (usage(json!(0)).to_string(), DEFAULT_MINUTES),
        (usage(json!(-5)).to_string(), DEFAULT_MINUTES),
        (usage(json!(null)).to_string(), DEFAULT_MINUTES),
        (usage(json!([19])).to_string(), DEFAULT_MINUTES),
        (usage(json!("NaN")).to_string(), DEFAULT_MINUTES),
        // The longest time of the account counts, and of calls about WhatsApp.
        (
            concat!(
                r#"{"$WABA":[{"estimated_time_to_regain_access":0},"#,
                r#"{"type":"whatsapp_business_management","estimated_time_to_regain_access":25},"#,
                r#"{"type":"messenger","estimated_time_to_regain_access":600}],"3":"odd"}"#
            )
            .to_owned(),
            25.0,
        ),
        (
            concat!(
                r#"{"$WABA":[{"call_count":1e999,"estimated_time_to_regain_access":7}],"#,
                r#""2":[[]],"3":{}}"#
            )
            .to_owned(),
            7.0,
        ),
        // Another customer of the app.
        (
            r#"{"7999":[{"type":"whatsapp","estimated_time_to_regain_access":900}]}"#.to_owned(),
            DEFAULT_MINUTES,
        ),
        ("{}".to_owned(), DEFAULT_MINUTES),
        ("[19]".to_owned(), DEFAULT_MINUTES),
        (
            r#"{"$WABA":[{"estimated_time_to_regain_access":"#.to_owned(),
            DEFAULT_MINUTES,
        ),
        ("19".to_owned(), DEFAULT_MINUTES),
        ("\u{e9}".to_owned(), DEFAULT_MINUTES),
        (String::new(), DEFAULT_MINUTES),
    ];
    let scripts = headers.iter().enumerate().map(|(n, (header, _))| {
        let header = header.replace("$WABA", &account_at(n));
        answer(
            &format!("400 Bad Request\r\nX-Business-Use-Case-Usage: {header}"),
            error(80008).to_string(),
        )
    });
    let rows = look_up_scripts(scripts.collect::<Vec<_>>()).await.rows;
    for (row, (header, minutes)) in rows.iter().zip(headers) {
        let seconds = minutes * MINUTE - 5.0..=minutes * MINUTE;
        assert!(
            row.pause_seconds
                .is_some_and(|pause| seconds.contains(&pause)),
            "{header}: {row:?}"
        );
        row.assert_result("throttled", "pending", seconds, &header);
    }
}

#[tokio::test]
async fn every_other_error_is_retried_within_seconds() {
    let mut odd: Vec<(u16, Value)> = [1, 2, 131_016, 131_057, 133_004, 2_494_100]
        .map(|code| (400, error(code)))
        .to_vec();
    let codes = [
        json!(u64::MAX),
        json!(1e30),
        json!(190.5),
        json!("x"),
        json!(""),
        json!(true),
        json!([190]),
        json!(null),
    ];
    odd.extend(codes.map(|code| (400, error(code))));
    let errors = [
        json!("190"),
        json!(190),
        json!([{"code": 190}]),
        json!({}),
        json!(false),
    ];
    odd.extend(
        errors
            .into_iter()
            .flat_map(|error| [200, 400].map(|status| (status, json!({"error": error})))),
    );
    odd.extend([
        (500, error_with(2, &[("is_transient", json!(true))])),
        (400, error_with(9999, &[("is_transient", json!(true))])),
        (500, error(9999)),
        (
            200,
            json!({
                "error": {"code": 1},
                "health_status": {"entities": [{"can_send_message": "AVAILABLE"}]},
            }),
        ),
        (
            500,
            json!({"health_status": {"entities": [{"can_send_message": "BLOCKED"}]}}),
        ),
        (429, json!({})),
        (404, json!({"id": "1"})),
    ]);
    for (row, (status, body)) in look_up_answers(&odd).await.iter().zip(&odd) {
        row.assert_unreachable(&format!("{status} {body}"));
    }
}

#[tokio::test]
async fn a_code_that_nobody_knows_is_a_refusal_when_it_lasts() {
    let unknown = [9, 11, 18, 99, 191, 300, 367, 369, -1, i64::MAX, i64::MIN];
    let answers = unknown.map(|code| (400, error(code)));
    for (row, code) in look_up_answers(&answers).await.iter().zip(unknown) {
        row.assert_result("refused", "pending", 4.0..=10.0, &code.to_string());
        assert_eq!(row.failures, 1, "{code}");
    }
}

#[tokio::test]
async fn an_error_that_names_the_state_of_the_account_is_the_cause() {
    let causes = [
        (368, "policy_violation"),
        (131_042, "payment"),
        (130_497, "other_restriction"),
        (131_031, "unreported"),
    ];
    let answers = causes.map(|(code, _)| (403, error(code)));
    for (row, (code, cause)) in look_up_answers(&answers).await.iter().zip(causes) {
        row.assert_result(
            "state",
            cause,
            4.4 * MINUTE..=5.6 * MINUTE,
            &code.to_string(),
        );
    }
}
