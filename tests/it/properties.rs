//! What holds for every input, tried on many that nobody would write by hand.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lockwatch::meta::callback::CallbackContents;
use lockwatch::meta::capture::Capture;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::health;
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

use crate::captures::bodies;
use crate::support::TestApp;

/// So many cases; one that fails is shown, not filed.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..ProptestConfig::default()
    }
}

/// Bytes that are nothing, and bodies of Meta's with some bytes replaced.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let bodies: Vec<Vec<u8>> = bodies().into_iter().map(|(_, body)| body).collect();
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
fn whatever_comes_is_read_without_a_panic_and_twice_the_same() {
    let now = OffsetDateTime::now_utc();
    proptest!(cases(500), |(body in any_body(), status in any::<u16>())| {
        let _ = Signature::parse(&body);
        let _ = Capture::from_line(&body);
        let answer = health::parse_answer(status, std::str::from_utf8(&body).ok(), &body);
        prop_assert_eq!(answer, health::parse_answer(status, std::str::from_utf8(&body).ok(), &body));
        let body = Bytes::from(body);
        let read = || format!("{:?}", CallbackContents::parse(&body, now));
        prop_assert_eq!(read(), read());
    });
}

#[test]
fn what_is_signed_verifies_and_nothing_else_does() {
    proptest!(cases(300), |(body in any_body(), other in any_body(), keys in [".{1,80}", ".{1,80}"])| {
        let verifier = |key: &String| Verifier::new(&[SecretString::from(key.clone())]);
        let signature = Signature::parse(sign(&keys[0], &body).as_bytes()).unwrap();
        prop_assert_eq!(verifier(&keys[0]).verify(&body, &signature), Some(0));
        prop_assert_eq!(verifier(&keys[0]).verify(&other, &signature).is_some(), other == body);
        // HMAC fills short keys up with NUL (RFC 2104), so these are the same key.
        let same = keys[0].trim_end_matches('\0') == keys[1].trim_end_matches('\0');
        prop_assert_eq!(verifier(&keys[1]).verify(&body, &signature).is_some(), same);
    });
}

/// JSON that no sane sender writes, as text.
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

/// A field as Meta writes it, mostly; else odd, doubled, or not there.
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
    let join = |fields: Vec<String>| {
        let fields: Vec<String> = fields
            .into_iter()
            .filter(|field| !field.is_empty())
            .collect();
        format!("{{{}}}", fields.join(","))
    };
    fields.prop_map(join).boxed()
}

fn list(element: impl Strategy<Value = String> + 'static, most: usize) -> BoxedStrategy<String> {
    vec(element, 1..=most)
        .prop_map(|elements| format!("[{}]", elements.join(",")))
        .boxed()
}

fn hostile_callback() -> impl Strategy<Value = Vec<u8>> {
    let text = || "[a-zé\\\\\"\u{0}]{0,12}".prop_map(|text| json!(text).to_string());
    let id = || "[0-9]{1,2}".prop_map(|id| format!("\"{id}\""));
    let code = prop::sample::select(vec!["131031", "\"131031\"", "131031.0", "131026"])
        .prop_map(str::to_owned);
    let error = object(
        [
            field("code", code),
            field("title", text()),
            field("message", text()),
            field("error_data", text()),
        ]
        .to_vec(),
    );
    let status = object(
        [
            field(
                "id",
                "wamid\\.[A-Z0-9]{1,4}".prop_map(|id| format!("\"{id}\"")),
            ),
            field(
                "status",
                prop_oneof![9 => Just("\"failed\""), 1 => Just("\"sent\"")].prop_map(str::to_owned),
            ),
            field("timestamp", any::<i64>().prop_map(|at| format!("\"{at}\""))),
            field("recipient_id", text()),
            field("recipient_participant_id", text()),
            field("biz_opaque_callback_data", text()),
            field("errors", list(error, 2)),
        ]
        .to_vec(),
    );
    let metadata = object(
        [
            field("phone_number_id", id()),
            field("display_phone_number", text()),
        ]
        .to_vec(),
    );
    let value = object(
        [
            field("metadata", metadata),
            field("statuses", list(status, 4)),
        ]
        .to_vec(),
    );
    let change = object([field("field", text()), field("value", value)].to_vec());
    let entry = object([field("id", id()), field("changes", list(change, 2))].to_vec());
    let body = object([field("object", text()), field("entry", list(entry, 3))].to_vec());
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

#[test]
fn what_is_taken_can_be_stored() {
    let runtime = Runtime::new().unwrap();
    let app = runtime.block_on(TestApp::start());
    let (mut failures, mut unreadable) = (HashSet::new(), HashSet::new());
    let mut runner = TestRunner::new(cases(150));
    let strategy = vec(hostile_callback(), 1..4);
    for _ in 0..runner.config().cases {
        let bodies = strategy.new_tree(&mut runner).unwrap().current();
        for body in &bodies {
            let findings =
                CallbackContents::parse(&Bytes::copy_from_slice(body), OffsetDateTime::now_utc());
            failures.extend(
                findings
                    .failures
                    .into_iter()
                    .map(|failure| (failure.waba_id, failure.digest)),
            );
            unreadable.extend(
                findings
                    .unreadable
                    .into_iter()
                    .map(|part| (part.waba_id, Sha256::digest(part.bytes).to_vec())),
            );
        }
        runtime.block_on(async {
            stream::iter(&bodies)
                .for_each_concurrent(None, async |body| app.deliver(body).await)
                .await;
            let stored = app.count("select count(*) from failed_deliveries").await;
            let kept = app.count("select count(*) from quarantine").await;
            assert_eq!(
                (stored, kept),
                (failures.len() as i64, unreadable.len() as i64),
                "after {bodies:?}"
            );
        });
    }
    assert!(
        failures.len() > 100 && unreadable.len() > 100,
        "{} and {}",
        failures.len(),
        unreadable.len()
    );
    let miscounted = "select count(*) from incidents i where failure_count <>
                      (select count(*) from failed_deliveries d where d.incident_id = i.id)";
    assert_eq!(runtime.block_on(app.count(miscounted)), 0);
}

/// One failure of a history: which of three accounts, which of its numbers, which message.
type Failure = (usize, usize, usize);

/// Failures, and the same in another order, in other batches, some of them again.
fn history_and_retelling() -> impl Strategy<Value = (Vec<Failure>, Vec<Vec<Failure>>)> {
    let history = vec((0..3_usize, 0..2_usize, 0..8_usize), 1..25);
    history.prop_flat_map(|history| {
        let again = vec(prop::sample::select(history.clone()), 0..10);
        let all = again.prop_map({
            let history = history.clone();
            move |again| [history.clone(), again].concat()
        });
        let batches = (all.prop_shuffle(), 1..8_usize)
            .prop_map(|(all, size)| all.chunks(size).map(<[_]>::to_vec).collect());
        (Just(history), batches)
    })
}

/// A callback with these failures, of accounts with this prefix. When each happened follows from which it is.
fn told(prefix: &str, failures: &[Failure], now: OffsetDateTime) -> Vec<u8> {
    let add = |callback: StatusCallback, (account, number, message): &Failure| {
        let at =
            now - time::Duration::seconds((account * 700 + number * 90 + message * 500) as i64);
        let id = format!("wamid.{message}");
        callback
            .at(at)
            .failed(&format!("{prefix}{account}"), &format!("10{number}"), &id)
    };
    failures.iter().fold(StatusCallback::new(), add).into_body()
}

/// All that is recorded about the accounts with this prefix, apart from how and when it came.
async fn end_of(app: &TestApp, prefix: &str) -> Vec<String> {
    sqlx::query_scalar(
        "with of as (select id as incident, substr(waba_id, 1 + length($1)) as account, i.* from incidents i where starts_with(waba_id, $1))
         select format('incident %s %s %s %s %s', account, opened_at, last_failure_at, failure_count, resolved_at) from of
         union all
         select format('number %s %s %s %s %s %s', account, n.phone_number_id, n.display_phone_number, n.first_failure_at, n.last_failure_at, n.failure_count)
           from of join affected_numbers n on n.incident_id = of.incident
         union all
         select format('delivery %s %s %s %s %s %s', account, d.phone_number_id, d.message_id, d.recipient_id, d.failed_at, d.error_details)
           from of join failed_deliveries d on d.incident_id = of.incident
         union all
         select format('minute %s %s %s', account, m.minute, m.failure_count) from of join failures_by_minute m on m.incident_id = of.incident
         union all
         select format('hour %s %s %s', account, h.hour, h.failure_count) from of join failures_by_hour h on h.incident_id = of.incident
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
    let mut runner = TestRunner::new(cases(40));
    for case in 0..runner.config().cases {
        let (history, retelling) = history_and_retelling()
            .new_tree(&mut runner)
            .unwrap()
            .current();
        let [once, again] = ["1", "2"].map(|variant| format!("{variant}{case:0>4}"));
        runtime.block_on(async {
            app.deliver(&told(&once, &history, now)).await;
            let deliver =
                async |failures: &Vec<Failure>| app.deliver(&told(&again, failures, now)).await;
            stream::iter(&retelling)
                .for_each_concurrent(4, deliver)
                .await;
            let end = end_of(&app, &once).await;
            assert!(!end.is_empty());
            assert_eq!(end_of(&app, &again).await, end, "{history:?} {retelling:?}");
        });
    }
}
