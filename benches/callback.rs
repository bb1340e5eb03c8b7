//! The cost of a callback before the database: `cargo bench --bench callback`.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lockwatch::intake::Intake;
use lockwatch::meta::compose::{StatusCallback, message_id};
use lockwatch::meta::interest::Interest;
use lockwatch::meta::signature::{Signature, Verifier, sign};
use time::OffsetDateTime;

const APP_SECRET: &str = "an-app-secret-of-the-bench";

/// A callback with this number of failures, as Meta batches them.
fn body_with_failures(count: u32) -> Bytes {
    let mut callback = StatusCallback::new();
    for n in 0..count {
        let message = message_id("16505551234", &format!("{n:018X}"));
        callback = callback.failed("102290129340398", "106540352242922", &message);
    }
    callback.into_body().into()
}

/// A callback of about this size without failures.
fn quiet_body(bytes: usize) -> Bytes {
    format!(
        r#"{{"object":"whatsapp_business_account","entry":[],"text":"{}"}}"#,
        "message ".repeat(bytes / 8)
    )
    .into()
}

fn bench_callback(criterion: &mut Criterion) {
    let now = OffsetDateTime::now_utc();
    let verifier = Verifier::new(&[APP_SECRET.into()]);
    let (interest, of_everything) = (Interest::default(), Interest::of_everything());
    for (size, body) in [
        ("600 B", quiet_body(600)),
        ("100 kB", quiet_body(100_000)),
        ("3 MB", quiet_body(3_000_000)),
    ] {
        let signature = Signature::parse(sign(APP_SECRET, &body).as_bytes()).expect("just signed");
        let mut group = criterion.benchmark_group(size);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function("verify", |b| {
            b.iter(|| verifier.verify(black_box(&body), &signature));
        });
        group.bench_function("scan", |b| {
            b.iter(|| interest.may_concern_us(black_box(&body)));
        });
        group.bench_function("scan for every code", |b| {
            b.iter(|| of_everything.may_concern_us(black_box(&body)));
        });
    }
    for count in [1, 100, 1000] {
        let body = body_with_failures(count);
        let mut group = criterion.benchmark_group(format!("{count} failures"));
        group.throughput(Throughput::Elements(count.into()));
        group.bench_function("parse", |b| {
            b.iter(|| Intake::parse(black_box(&body), &interest, now));
        });
    }
}

criterion_group!(benches, bench_callback);
criterion_main!(benches);
