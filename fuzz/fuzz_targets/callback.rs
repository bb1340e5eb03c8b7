//! A callback from the network: its signature, and the failures in its body.
//!
//! An input is a body, or a line of a capture file. The same bytes are also parsed as a signature
//! header. The files in `tests/captures` are inputs as they are.

#![no_main]

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use lockwatch_fuzz::intake::Intake;
use lockwatch_fuzz::meta::capture::{Capture, has_capture_fields};
use lockwatch_fuzz::meta::compose::StatusCallback;
use lockwatch_fuzz::meta::ids::{MAX_ID_BYTES, Text};
use lockwatch_fuzz::meta::interest::Interest;
use lockwatch_fuzz::meta::redact::Redactor;
use lockwatch_fuzz::meta::sent::sent_messages;
use lockwatch_fuzz::meta::signature::{Signature, Verifier, sign};
use lockwatch_fuzz::meta::status::FailedMessage;
use secrecy::SecretString;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::Sha256;
use time::{Duration, OffsetDateTime, macros::datetime};

const NOW: OffsetDateTime = datetime!(2026-11-22 12:00 UTC);
/// An earlier time is none that Meta means.
const EARLIEST: OffsetDateTime = datetime!(2020-01-01 00:00 UTC);
const SECRET: &str = "an-app-secret-of-the-fuzzer";
const OTHER_SECRET: &str = "another-app-secret-that-signs-nothing";
/// A test number's account is `phone:` and the number's id.
const MAX_ACCOUNT_BYTES: usize = MAX_ID_BYTES + 6;

fuzz_target!(|input: &[u8]| {
    let body = body_of(input);
    let first_line = input.split(|byte| *byte == b'\n').next();
    assert_header_parsing(input);
    assert_header_parsing(first_line.unwrap_or_default());
    assert_only_own_signature_verifies(&body);

    let _ = sent_messages(&body, NOW);
    for interest in [Interest::default(), Interest::of_everything()] {
        assert_callback_read(&body, &interest);
    }
});

fn assert_callback_read(body: &Bytes, interest: &Interest) {
    let findings = Intake::parse(body, interest, NOW);
    assert_eq!(
        format!("{findings:?}"),
        format!("{:?}", Intake::parse(body, interest, NOW)),
        "a second reading differs"
    );
    assert_storable(&findings, body, interest);
    assert_no_failure_missed(&findings, body, interest);
    assert_neighbours_unaffected(body, interest);
    assert!(
        interest.may_concern_us(body) || findings.is_empty(),
        "findings without the error code"
    );
    assert_redaction_keeps_failures(&findings, body, interest);
}

/// Returns the body of a capture, or the input itself.
fn body_of(input: &[u8]) -> Bytes {
    match Capture::from_line(input) {
        Ok(capture) if has_capture_fields(input) => {
            let line = capture.to_line();
            let again = Capture::from_line(line.as_bytes()).expect("a written line can be read");
            assert_eq!(again.body, capture.body);
            capture.body
        }
        _ => Bytes::copy_from_slice(input),
    }
}

/// A header is well formed if it is `sha256=` and 64 hexadecimal digits, and only then.
fn assert_header_parsing(header: &[u8]) {
    let is_well_formed = header.len() == 71
        && header.starts_with(b"sha256=")
        && header[7..].iter().all(u8::is_ascii_hexdigit);
    let Ok(signature) = Signature::parse(header) else {
        assert!(!is_well_formed);
        return;
    };
    assert!(is_well_formed);
    let lower_case = header.to_ascii_lowercase();
    assert_eq!(signature.to_string().into_bytes(), lower_case);
    let verifier = Verifier::new(&[SecretString::from(SECRET)]);
    assert_eq!(
        verifier.verify(b"body", &signature).is_some(),
        lower_case == sign(SECRET, b"body").into_bytes(),
        "a forged signature verifies"
    );
}

fn assert_only_own_signature_verifies(body: &[u8]) {
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
    let verify = |secrets: &[&str], body: &[u8]| {
        let secrets: Vec<SecretString> = secrets.iter().copied().map(SecretString::from).collect();
        Verifier::new(&secrets).verify(body, &signature)
    };
    assert_eq!(verify(&[OTHER_SECRET, SECRET], body), Some(1));
    assert_eq!(verify(&[OTHER_SECRET], body), None);
    let longer = [body, b" "].concat();
    assert_eq!(verify(&[SECRET], &longer), None, "one byte more");
    let mut changed = body.to_vec();
    if let Some(first) = changed.first_mut() {
        *first ^= 1;
        assert_eq!(verify(&[SECRET], &changed), None, "one bit changed");
        assert_eq!(verify(&[SECRET], &body[1..]), None, "one byte less");
    }
}

fn assert_fits(text: &str, max_bytes: usize) {
    assert!(text.len() <= max_bytes && !text.contains('\0'), "{text:?}");
}

/// Fails unless Postgres takes everything: it takes no NUL, and the columns have limits.
fn assert_storable(findings: &Intake, body: &Bytes, interest: &Interest) {
    for failure in &findings.failures {
        assert_failure_storable(failure);
    }
    for unreadable in &findings.unreadable {
        assert_fits(&unreadable.reason, 200);
        assert_fits(
            unreadable.waba_id.as_ref().map_or("", |id| id.as_str()),
            MAX_ACCOUNT_BYTES,
        );
        let (outer, inner) = (body.as_ptr_range(), unreadable.bytes.as_ptr_range());
        assert!(
            outer.start <= inner.start && inner.end <= outer.end,
            "not a part of the body"
        );
        assert!(interest.may_concern_us(&unreadable.bytes));
    }
}

fn assert_failure_storable(failure: &FailedMessage) {
    assert_fits(failure.waba_id.as_str(), MAX_ACCOUNT_BYTES);
    assert_fits(failure.phone_number_id.as_str(), MAX_ID_BYTES);
    assert_fits(failure.message_id.as_str(), Text::SHORT_BYTES);
    assert!(!failure.waba_id.as_str().is_empty());
    assert!(!failure.phone_number_id.as_str().is_empty());
    for short in [
        &failure.display_phone_number,
        &failure.recipient_id,
        &failure.participant_id,
    ] {
        assert_fits(short.as_ref().map_or("", Text::as_str), Text::SHORT_BYTES);
    }
    for long in [
        &failure.error_title,
        &failure.error_message,
        &failure.error_details,
        &failure.callback_data,
    ] {
        assert_fits(long.as_ref().map_or("", Text::as_str), Text::LONG_BYTES);
    }
    assert!(failure.failed_at >= EARLIEST);
    assert!(failure.failed_at <= NOW + Duration::MINUTE);
    assert_eq!(failure.received_at, NOW);
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn parse_id(value: &Value) -> Option<&str> {
    let is_valid =
        |id: &&str| !id.is_empty() && id.len() <= MAX_ID_BYTES && !id.chars().any(char::is_control);
    value.as_str().filter(is_valid)
}

/// Returns the number and message of each plain failure: with valid ids, and with one error, whose
/// code is a number.
fn plain_failures(callback: &Value) -> Vec<(&str, &str)> {
    let mut failures = Vec::new();
    for entry in list(&callback["entry"]) {
        for change in list(&entry["changes"]) {
            let value = &change["value"];
            let number = &value["metadata"]["phone_number_id"];
            let (Some(_), Some(number)) = (parse_id(&entry["id"]), parse_id(number)) else {
                continue;
            };
            for status in list(&value["statuses"]) {
                let [error] = list(&status["errors"]) else {
                    continue;
                };
                let is_lockout =
                    status["status"] == "failed" && error["code"].as_i64() == Some(131_031);
                let message = status["id"].as_str().filter(|id| !id.is_empty());
                if let (true, Some(message)) = (is_lockout, message) {
                    failures.push((number, message));
                }
            }
        }
    }
    failures
}

/// A second, stricter reader: each failure that it finds must be among the findings.
fn assert_no_failure_missed(findings: &Intake, body: &[u8], interest: &Interest) {
    let Ok(callback) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    for (number, message) in plain_failures(&callback) {
        let message = Text::truncate(message, Text::SHORT_BYTES);
        let is_found = findings.failures.iter().any(|failure| {
            failure.message_id == message && failure.phone_number_id.as_str() == number
        });
        // The code is looked for only in plain digits.
        assert!(is_found || !interest.has_watched_code(body), "{message:?}");
    }
}

/// A good entry is read, whatever else is in its batch.
fn assert_neighbours_unaffected(body: &[u8], interest: &Interest) {
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
    let findings = Intake::parse(&Bytes::from(batch), interest, NOW);
    assert!(
        findings
            .failures
            .iter()
            .any(|failure| failure.message_id.as_str() == "wamid.neighbour")
    );
}

/// Redaction keeps every failure of a JSON body. Another body it may repair in part.
fn assert_redaction_keeps_failures(findings: &Intake, body: &[u8], interest: &Interest) {
    if serde_json::from_slice::<&RawValue>(body).is_ok() {
        let redacted = Bytes::from(Redactor::new(b"key").redact_body(body));
        assert_eq!(
            Intake::parse(&redacted, interest, NOW).failures.len(),
            findings.failures.len()
        );
    }
}
