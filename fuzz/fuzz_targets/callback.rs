//! A callback as it comes from the network: its signature, and what is found in its body.
//!
//! An input is a body, or a capture file's line; the same bytes are also tried as a signature header.
//! So the files in `tests/captures` are inputs as they are.

#![no_main]

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use lockwatch_fuzz::meta::callback::{CallbackContents, may_hold_lockout};
use lockwatch_fuzz::meta::capture::{Capture, is_capture};
use lockwatch_fuzz::meta::compose::StatusCallback;
use lockwatch_fuzz::meta::failure::FailedDelivery;
use lockwatch_fuzz::meta::ids::{MAX_ID_BYTES, Text};
use lockwatch_fuzz::meta::redact::Redaction;
use lockwatch_fuzz::meta::signature::{Signature, Verifier, sign};
use secrecy::SecretString;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::Sha256;
use time::{Duration, OffsetDateTime, macros::datetime};

const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);
const SECRET: &str = "an-app-secret-of-the-fuzzer";
const OTHER: &str = "another-app-secret-that-signs-nothing";
/// `phone:` before the id of a test number.
const MAX_ACCOUNT_BYTES: usize = MAX_ID_BYTES + 6;

fuzz_target!(|input: &[u8]| {
    let body = match Capture::from_line(input) {
        Ok(capture) if is_capture(input) => {
            let again = Capture::from_line(capture.to_line().as_bytes())
                .expect("what is written can be read");
            assert_eq!(again.body, capture.body);
            capture.body
        }
        _ => Bytes::copy_from_slice(input),
    };
    headers_are_judged_as_by_the_book(input);
    headers_are_judged_as_by_the_book(
        input
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default(),
    );
    only_the_right_signature_verifies(&body);

    let findings = CallbackContents::parse(&body, NOW);
    assert_eq!(
        format!("{findings:?}"),
        format!("{:?}", CallbackContents::parse(&body, NOW)),
        "the same when read again"
    );
    everything_can_be_stored(&findings, &body);
    nothing_plain_is_missed(&findings, &body);
    neighbours_do_not_notice(&body);
    assert!(
        may_hold_lockout(&body) || findings.is_empty(),
        "without the code there is nothing for us"
    );
    redaction_hides_no_failure(&findings, &body);
});

/// A header is well formed if it is `sha256=` and 64 hexadecimal digits, and nothing else is.
fn headers_are_judged_as_by_the_book(header: &[u8]) {
    let well_formed = header.len() == 71
        && header.starts_with(b"sha256=")
        && header[7..].iter().all(u8::is_ascii_hexdigit);
    match Signature::parse(header) {
        Ok(signature) => {
            assert!(well_formed);
            assert_eq!(
                signature.to_string().into_bytes(),
                header.to_ascii_lowercase()
            );
            let verifier = Verifier::new(&[SecretString::from(SECRET)]);
            let genuine = header.to_ascii_lowercase() == sign(SECRET, b"body").into_bytes();
            assert_eq!(
                verifier.verify(b"body", &signature).is_some(),
                genuine,
                "nobody guesses a signature"
            );
        }
        Err(_) => assert!(!well_formed),
    }
}

fn only_the_right_signature_verifies(body: &[u8]) {
    let header = sign(SECRET, body);
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())
        .expect("any length")
        .chain_update(body);
    let digits: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(header, format!("sha256={digits}"));

    let signature = Signature::parse(header.as_bytes()).expect("our own signature");
    let position = |secrets: &[&str], body: &[u8]| {
        Verifier::new(
            &secrets
                .iter()
                .map(|secret| SecretString::from(*secret))
                .collect::<Vec<_>>(),
        )
        .verify(body, &signature)
    };
    assert_eq!(position(&[OTHER, SECRET], body), Some(1));
    assert_eq!(position(&[OTHER], body), None);
    assert_eq!(
        position(&[SECRET], &[body, b" "].concat()),
        None,
        "one byte more"
    );
    let mut changed = body.to_vec();
    if let Some(first) = changed.first_mut() {
        *first ^= 1;
        assert_eq!(position(&[SECRET], &changed), None, "one bit changed");
        assert_eq!(position(&[SECRET], &body[1..]), None, "one byte less");
    }
}

/// Postgres takes no NUL, and the columns have their limits.
fn everything_can_be_stored(findings: &CallbackContents, body: &Bytes) {
    let text =
        |text: &str, max: usize| assert!(text.len() <= max && !text.contains('\0'), "{text:?}");
    for failure in &findings.failures {
        text(failure.waba_id.as_str(), MAX_ACCOUNT_BYTES);
        text(failure.phone_number_id.as_str(), MAX_ID_BYTES);
        text(failure.message_id.as_str(), Text::SHORT);
        assert!(![failure.waba_id.as_str(), failure.phone_number_id.as_str()].contains(&""));
        for short in [
            &failure.display_phone_number,
            &failure.recipient_id,
            &failure.participant_id,
        ] {
            text(short.as_ref().map_or("", Text::as_str), Text::SHORT);
        }
        for long in [
            &failure.error_title,
            &failure.error_message,
            &failure.error_details,
            &failure.callback_data,
        ] {
            text(long.as_ref().map_or("", Text::as_str), Text::LONG);
        }
        assert!(
            failure.failed_at >= OffsetDateTime::UNIX_EPOCH
                && failure.failed_at <= NOW + Duration::DAY
        );
        assert_eq!(failure.received_at, NOW);
    }
    for unreadable in &findings.unreadable {
        text(&unreadable.reason, 200);
        text(
            unreadable.waba_id.as_ref().map_or("", |id| id.as_str()),
            MAX_ACCOUNT_BYTES,
        );
        let (outer, inner) = (body.as_ptr_range(), unreadable.bytes.as_ptr_range());
        assert!(
            outer.start <= inner.start && inner.end <= outer.end,
            "a part of what came"
        );
        assert!(may_hold_lockout(&unreadable.bytes));
    }
}

/// A second, stricter reader: whatever it finds in a tidy callback must be found.
fn nothing_plain_is_missed(findings: &CallbackContents, body: &[u8]) {
    fn list(value: &Value) -> &[Value] {
        value.as_array().map_or(&[], Vec::as_slice)
    }
    let id = |value: &Value| {
        let id = value.as_str()?;
        (!id.is_empty() && id.len() <= MAX_ID_BYTES && !id.chars().any(char::is_control))
            .then(|| id.to_owned())
    };
    let Ok(callback) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    for entry in list(&callback["entry"]) {
        for change in list(&entry["changes"]) {
            let value = &change["value"];
            let number = &value["metadata"]["phone_number_id"];
            let (Some(_), Some(number)) = (id(&entry["id"]), id(number)) else {
                continue;
            };
            for status in list(&value["statuses"]) {
                let [error] = list(&status["errors"]) else {
                    continue;
                };
                let locked =
                    status["status"] == "failed" && error["code"].as_i64() == Some(131_031);
                let Some(message) = status["id"].as_str().filter(|id| locked && !id.is_empty())
                else {
                    continue;
                };
                let message = Text::cut(message, Text::SHORT);
                let found = |failure: &FailedDelivery| {
                    failure.message_id == message && failure.phone_number_id.as_str() == number
                };
                // A code in another spelling than plain digits is not looked for.
                assert!(
                    !may_hold_lockout(body) || findings.failures.iter().any(found),
                    "{message:?}"
                );
            }
        }
    }
}

/// Whatever else is in the batch, a good entry is read.
fn neighbours_do_not_notice(body: &[u8]) {
    let Ok(element) = serde_json::from_slice::<&RawValue>(body) else {
        return;
    };
    let good = StatusCallback::new()
        .failed("1022", "1065", "wamid.neighbour")
        .into_body();
    let good = String::from_utf8(good).expect("JSON");
    let entry = good
        .split_once("\"entry\":[")
        .and_then(|(_, rest)| rest.split_once("],\"object\""))
        .expect("entries")
        .0;
    let batch = format!("{{\"entry\":[{element},{entry},{element}]}}");
    let findings = CallbackContents::parse(&Bytes::from(batch), NOW);
    assert!(
        findings
            .failures
            .iter()
            .any(|failure| failure.message_id.as_str() == "wamid.neighbour")
    );
}

/// A body that is JSON stays as readable as it was; of another, redaction may mend a part.
fn redaction_hides_no_failure(findings: &CallbackContents, body: &[u8]) {
    if serde_json::from_slice::<&RawValue>(body).is_ok() {
        let redacted = Bytes::from(Redaction::new(b"key").body(body));
        assert_eq!(
            CallbackContents::parse(&redacted, NOW).failures.len(),
            findings.failures.len()
        );
    }
}
