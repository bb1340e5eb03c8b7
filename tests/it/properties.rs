//! Properties that hold for every input, tried on many random inputs.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lockwatch::intake::Intake;
use lockwatch::meta::capture::Capture;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::health;
use lockwatch::meta::interest::Interest;
use lockwatch::meta::signature::{Signature, Verifier, sign};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use secrecy::SecretString;
use serde_json::json;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::runtime::Runtime;

use crate::captures::load_bodies;
use crate::support::TestApp;

/// The settings for this number of cases. A failing case is printed, not saved in a file.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..ProptestConfig::default()
    }
}

/// Random bytes, and bodies of captures with some bytes replaced.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let bodies: Vec<Vec<u8>> = load_bodies().into_iter().map(|(_, body)| body).collect();
    let damaged = (
        prop::sample::select(bodies),
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    );
    let damaged = damaged.prop_map(|(mut body, changes)| {
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body
    });
    prop_oneof![vec(any::<u8>(), 0..300), damaged]
}

#[test]
fn any_body_is_parsed_twice_with_the_same_result() {
    let now = OffsetDateTime::now_utc();
    proptest!(config(500), |(body in any_body(), status in any::<u16>())| {
        let _ = Signature::parse(&body);
        let _ = Capture::from_line(&body);
        let answer = health::parse_answer(status, std::str::from_utf8(&body).ok(), &["1"], &body);
        prop_assert_eq!(answer, health::parse_answer(status, std::str::from_utf8(&body).ok(), &["1"], &body));
        let body = Bytes::from(body);
        let parse = || format!("{:?}", Intake::parse(&body, &Interest::default(), now));
        prop_assert_eq!(parse(), parse());
    });
}

#[test]
fn only_the_signed_body_and_its_key_verify() {
    let keys = [".{1,80}", ".{1,80}"];
    proptest!(config(300), |(body in any_body(), other in any_body(), keys in keys)| {
        let verifier = |key: &String| Verifier::new(&[SecretString::from(key.clone())]);
        let signature = Signature::parse(sign(&keys[0], &body).as_bytes()).unwrap();
        prop_assert_eq!(verifier(&keys[0]).verify(&body, &signature), Some(0));
        let verifies_other = verifier(&keys[0]).verify(&other, &signature).is_some();
        prop_assert_eq!(verifies_other, other == body);
        // HMAC pads short keys with NUL (RFC 2104), so these are the same key.
        let is_same_key = keys[0].trim_end_matches('\0') == keys[1].trim_end_matches('\0');
        let verifies_with_other_key = verifier(&keys[1]).verify(&body, &signature).is_some();
        prop_assert_eq!(verifies_with_other_key, is_same_key);
    });
}

/// The text of a JSON value that no correct sender writes.
fn odd_json() -> impl Strategy<Value = String> {
    let texts = prop_oneof![
        "\\PC{0,20}".prop_map(|text| json!(text).to_string()),
        vec(any::<char>(), 0..8).prop_map(|text| json!(String::from_iter(text)).to_string()),
        prop::sample::select(vec![
            r#""\u0000""#,
            r#""a\u0000131031""#,
            r#""\ud800""#,
            r#""\udfff\ud83d x""#,
            "\"\u{1}\u{7f}\"",
            r#""\u202e131031""#,
            "\"\"",
            "\" 131031 \"",
        ])
        .prop_map(str::to_owned),
        (500_usize..5000).prop_map(|length| format!("\"{}\"", "é".repeat(length))),
    ];
    let others = prop::sample::select(vec![
        "null",
        "true",
        "131031",
        "131031.0",
        "1.31031e5",
        "-131031",
        "1e999999",
        "-0",
        "99999999999999999999",
        "[]",
        "{}",
    ]);
    let deep = (100_usize..3000)
        .prop_map(|depth| format!("{}131031{}", "[".repeat(depth), "]".repeat(depth)));
    let leaf = prop_oneof![4 => texts, 4 => others.prop_map(str::to_owned), 1 => deep];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|elements| format!("[{}]", elements.join(","))),
            vec(inner, 1..4)
                .prop_map(|values| format!(r#"{{"code":{}}}"#, values.join(r#","errors":"#))),
        ]
    })
}

/// A field, mostly as Meta writes it. Otherwise it is odd, doubled, or missing.
fn field(
    name: &'static str,
    proper: impl Strategy<Value = String> + 'static,
) -> BoxedStrategy<String> {
    let proper = proper
        .prop_map(move |value| format!("\"{name}\":{value}"))
        .boxed();
    let odd = odd_json()
        .prop_map(move |value| format!("\"{name}\":{value}"))
        .boxed();
    let doubled = (odd.clone(), proper.clone()).prop_map(|(odd, proper)| format!("{odd},{proper}"));
    prop_oneof![40 => proper, 3 => odd, 1 => doubled, 1 => Just(String::new())].boxed()
}

fn object(fields: impl Strategy<Value = Vec<String>> + 'static) -> BoxedStrategy<String> {
    fields
        .prop_map(|mut fields| {
            fields.retain(|field| !field.is_empty());
            format!("{{{}}}", fields.join(","))
        })
        .boxed()
}

fn list(
    element: impl Strategy<Value = String> + 'static,
    max_length: usize,
) -> BoxedStrategy<String> {
    vec(element, 1..=max_length)
        .prop_map(|elements| format!("[{}]", elements.join(",")))
        .boxed()
}

/// A callback with odd, doubled and missing fields, sometimes with a byte that is not UTF-8.
fn odd_callback() -> impl Strategy<Value = Vec<u8>> {
    let metadata = object(
        [
            field("phone_number_id", odd_id()),
            field("display_phone_number", odd_text()),
        ]
        .to_vec(),
    );
    let statuses = list(odd_status(), 4);
    let value = object([field("metadata", metadata), field("statuses", statuses)].to_vec());
    let change = object([field("field", odd_text()), field("value", value)].to_vec());
    let changes = list(change, 2);
    let entry = object([field("id", odd_id()), field("changes", changes)].to_vec());
    let entries = list(entry, 3);
    let body = object([field("object", odd_text()), field("entry", entries)].to_vec());
    let damage = prop::option::weighted(0.1, any::<prop::sample::Index>());
    (body, damage).prop_map(|(body, damage)| {
        let mut body = body.into_bytes();
        if let Some(at) = damage {
            let at = at.index(body.len());
            body[at] = 0xff;
        }
        body
    })
}

fn odd_status() -> BoxedStrategy<String> {
    let code = prop::sample::select(vec!["131031", "\"131031\"", "131031.0", "131026"])
        .prop_map(str::to_owned);
    let error = object(
        [
            field("code", code),
            field("title", odd_text()),
            field("message", odd_text()),
            field("error_data", odd_text()),
        ]
        .to_vec(),
    );
    let id = "wamid\\.[A-Z0-9]{1,4}".prop_map(|id| format!("\"{id}\""));
    let status =
        prop_oneof![9 => Just("\"failed\""), 1 => Just("\"sent\"")].prop_map(str::to_owned);
    let timestamp = any::<i64>().prop_map(|at| format!("\"{at}\""));
    object(
        [
            field("id", id),
            field("status", status),
            field("timestamp", timestamp),
            field("recipient_id", odd_text()),
            field("recipient_participant_id", odd_text()),
            field("biz_opaque_callback_data", odd_text()),
            field("errors", list(error, 2)),
        ]
        .to_vec(),
    )
}

fn odd_text() -> impl Strategy<Value = String> {
    "[a-zé\\\\\"\u{0}]{0,12}".prop_map(|text| json!(text).to_string())
}

fn odd_id() -> impl Strategy<Value = String> {
    "[0-9]{1,2}".prop_map(|id| format!("\"{id}\""))
}

/// The distinct parts of callbacks that were posted: an account, and a digest of the part.
#[derive(Debug, Default)]
struct PostedParts {
    failures: HashSet<(String, Vec<u8>)>,
    unreadable: HashSet<(Option<String>, Vec<u8>)>,
}

impl PostedParts {
    fn add(&mut self, body: &[u8]) {
        let findings = Intake::parse(
            &Bytes::copy_from_slice(body),
            &Interest::default(),
            OffsetDateTime::now_utc(),
        );
        for failure in findings.failures {
            self.failures
                .insert((failure.waba_id.to_string(), failure.digest.to_vec()));
        }
        for part in findings.unreadable {
            let waba_id = part.waba_id.map(|waba_id| waba_id.to_string());
            self.unreadable
                .insert((waba_id, Sha256::digest(part.bytes).to_vec()));
        }
    }

    fn counts(&self) -> (i64, i64) {
        (self.failures.len() as i64, self.unreadable.len() as i64)
    }
}

#[test]
fn every_accepted_part_can_be_stored() {
    let runtime = Runtime::new().unwrap();
    let app = runtime.block_on(TestApp::start());
    let mut posted = PostedParts::default();
    let mut runner = TestRunner::new(config(150));
    let strategy = vec(odd_callback(), 1..4);
    for _ in 0..runner.config().cases {
        let bodies = strategy.new_tree(&mut runner).unwrap().current();
        for body in &bodies {
            posted.add(body);
        }
        runtime.block_on(async {
            stream::iter(&bodies)
                .for_each_concurrent(None, async |body| app.deliver(body).await)
                .await;
            let stored = app.count("select count(*) from failed_deliveries").await;
            let quarantined = app.count("select count(*) from quarantine").await;
            assert_eq!((stored, quarantined), posted.counts(), "after {bodies:?}");
        });
    }
    let (failures, unreadable) = posted.counts();
    assert!(
        failures > 100 && unreadable > 100,
        "too few cases: {failures} and {unreadable}"
    );
    let miscounted = "select count(*) from incidents i where failure_count <>
                      (select count(*) from failed_deliveries d where d.incident_id = i.id)";
    assert_eq!(runtime.block_on(app.count(miscounted)), 0);
}

/// One failure of a history: the positions of its account (of three), its number and its message.
type Failure = (usize, usize, usize);

/// A history of failures, and the same failures in another order and in batches, some of them
/// repeated.
fn history_and_batches() -> impl Strategy<Value = (Vec<Failure>, Vec<Vec<Failure>>)> {
    let history = vec((0..3_usize, 0..2_usize, 0..8_usize), 1..25);
    history.prop_flat_map(|history| {
        let repeated = vec(prop::sample::select(history.clone()), 0..10);
        let all = repeated.prop_map({
            let history = history.clone();
            move |repeated| [history.clone(), repeated].concat()
        });
        let batches = (all.prop_shuffle(), 1..8_usize)
            .prop_map(|(all, size)| all.chunks(size).map(<[_]>::to_vec).collect());
        (Just(history), batches)
    })
}

/// A callback with these failures, of accounts with this prefix. The failure itself decides its
/// time.
fn callback_with(prefix: &str, failures: &[Failure], now: OffsetDateTime) -> Vec<u8> {
    let mut callback = StatusCallback::new();
    for (account, number, message) in failures {
        let seconds_ago = account * 700 + number * 90 + message * 500;
        callback = callback
            .timestamp(now - time::Duration::seconds(seconds_ago as i64))
            .failed(
                &format!("{prefix}{account}"),
                &format!("10{number}"),
                &format!("wamid.{message}"),
            );
    }
    callback.into_body()
}

/// The records of the accounts with this prefix, without the order and the time of their arrival.
async fn recorded_state(app: &TestApp, prefix: &str) -> Vec<String> {
    sqlx::query_scalar(
        "with own as (
           select id as incident, substr(waba_id, 1 + length($1)) as account, i.*
             from incidents i where starts_with(waba_id, $1)
         )
         select format('incident %s %s %s %s %s',
                       account, opened_at, last_failure_at, failure_count, resolved_at)
           from own
         union all
         select format('number %s %s %s %s %s %s',
                       account, n.phone_number_id, n.display_phone_number,
                       n.first_failure_at, n.last_failure_at, n.failure_count)
           from own join affected_numbers n on n.incident_id = own.incident
         union all
         select format('delivery %s %s %s %s %s %s',
                       account, d.phone_number_id, d.message_id,
                       d.recipient_id, d.failed_at, d.error_details)
           from own join failed_deliveries d on d.incident_id = own.incident
         union all
         select format('minute %s %s %s', account, m.minute, m.failure_count)
           from own join failures_by_minute m on m.incident_id = own.incident
         union all
         select format('hour %s %s %s', account, h.hour, h.failure_count)
           from own join failures_by_hour h on h.incident_id = own.incident
          order by 1",
    )
    .bind(prefix)
    .fetch_all(&app.db)
    .await
    .unwrap()
}

#[test]
fn any_order_and_any_batches_end_in_the_same_state() {
    let runtime = Runtime::new().unwrap();
    let app = runtime.block_on(TestApp::start());
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
    let mut runner = TestRunner::new(config(40));
    for case in 0..runner.config().cases {
        let tree = history_and_batches().new_tree(&mut runner).unwrap();
        let (history, batches) = tree.current();
        let [once, batched] = ["1", "2"].map(|variant| format!("{variant}{case:0>4}"));
        runtime.block_on(async {
            app.deliver(&callback_with(&once, &history, now)).await;
            stream::iter(&batches)
                .for_each_concurrent(4, async |failures: &Vec<Failure>| {
                    app.deliver(&callback_with(&batched, failures, now)).await;
                })
                .await;
            let expected = recorded_state(&app, &once).await;
            assert!(!expected.is_empty());
            assert_eq!(
                recorded_state(&app, &batched).await,
                expected,
                "{history:?} {batches:?}"
            );
        });
    }
}
