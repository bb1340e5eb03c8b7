//! Whatever Meta answers, neither the token nor its proof is written down, and nobody else gets them.

use std::collections::HashMap;
use std::time::Duration;

use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{HEADER, appsecret_proof, sign};
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::number;
use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::wire::{Move, Wire, answer};
use crate::support::{ACCESS_TOKEN, APP_SECRET, client, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_brings_the_token_or_its_proof_into_a_row_or_a_log_and_no_proxy_sees_them() {
    let proof = appsecret_proof(APP_SECRET, ACCESS_TOKEN);
    let repeated = [
        ACCESS_TOKEN.to_owned(),
        proof.clone(),
        ACCESS_TOKEN.replace('A', "\\u0041"),
        ACCESS_TOKEN.replace("T", "%54"),
        format!(
            "https://graph.facebook.com/v25.0/1?access_token={ACCESS_TOKEN}&appsecret_proof={proof}"
        ),
    ];
    let errors = repeated
        .iter()
        .map(|text| format!(r#"{{"error":{{"code":190,"message":"<{text}>"}}}}"#));
    let mut scripts: Vec<Vec<Move>> = errors.map(|body| answer("400 Bad Request", body)).collect();
    scripts.extend([
        vec![],
        vec![Move::Reset],
        answer(
            &format!("302 Found\r\nlocation: http://127.0.0.1:1/?{proof}"),
            &proof,
        ),
        answer("200 OK", format!("{ACCESS_TOKEN} as text")),
        answer(
            &format!("400 Bad Request\r\nx-business-use-case-usage: {ACCESS_TOKEN}"),
            r#"{"error":{"code":4}}"#,
        ),
    ]);
    let numbers: Vec<String> = (0..scripts.len()).map(number).collect();
    let wire = Wire::start(
        numbers
            .iter()
            .cloned()
            .zip(scripts)
            .collect::<HashMap<_, _>>(),
    )
    .await;
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", canary.local_addr().unwrap());
    let database = TestDatabase::create().await;
    let mut serve = Serve::on_database(
        &database.url,
        &[
            ("META_ACCESS_TOKEN", ACCESS_TOKEN),
            ("META_GRAPH_URL", &wire.url),
            ("RUST_LOG", "trace"),
            ("HTTP_PROXY", &proxy),
            ("http_proxy", &proxy),
            ("ALL_PROXY", &proxy),
        ],
    );
    let callback = numbers
        .iter()
        .fold(StatusCallback::new(), |callback, number| {
            callback.failed(number, number, "x")
        });
    let body = callback.into_body();
    let request = client()
        .post(&serve.webhook)
        .header(HEADER, sign(APP_SECRET, &body))
        .body(body);
    assert!(request.send().await.unwrap().status().is_success());

    let db = database.database().pool();
    let count = |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&db);
    eventually("a look-up of every number", async || {
        count("select count(distinct phone_number_id) from health_checks")
            .await
            .unwrap()
            == 10
    })
    .await;
    serve.signal(Signal::TERM);
    assert!(serve.wait().success());
    let log = serve.whole_log().join("\n");
    assert!(log.contains("TRACE"), "the log is at its most talkative");
    let rows = "select (select string_agg(t::text, ' ') from incidents t) || (select string_agg(t::text, ' ') from health_checks t)";
    let rows: String = sqlx::query_scalar(rows).fetch_one(&db).await.unwrap();
    assert!(rows.contains("<[removed]>"), "{rows}");
    for secret in repeated.iter().map(String::as_str).chain([APP_SECRET]) {
        assert!(!rows.contains(secret), "{secret} is in {rows}");
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
    assert!(
        timeout(Duration::from_millis(1), canary.accept())
            .await
            .is_err(),
        "the proxy was asked"
    );
}
