//! The token and its proof never reach the database, a log or a proxy, whatever Meta answers.

use std::collections::HashMap;
use std::time::Duration;

use lockwatch::meta::compose::StatusCallback;
use lockwatch::meta::signature::{SIGNATURE_HEADER, appsecret_proof, sign};
use rustix::process::Signal;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::number_at;
use crate::support::database::TestDatabase;
use crate::support::process::Serve;
use crate::support::scripted_server::{ScriptedServer, Step, answer};
use crate::support::{ACCESS_TOKEN, APP_SECRET, client, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_leaks_the_token_or_its_proof() {
    let proof = appsecret_proof(APP_SECRET, ACCESS_TOKEN);
    let echoes = echoed_secrets(&proof);
    let scripts = scripts_with_secrets(&echoes, &proof);
    let numbers: Vec<String> = (0..scripts.len()).map(number_at).collect();
    let scripts: HashMap<_, _> = numbers.iter().cloned().zip(scripts).collect();
    let graph = ScriptedServer::start(scripts).await;
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", canary.local_addr().unwrap());
    let database = TestDatabase::create().await;
    let mut serve = Serve::on_database(
        &database.url,
        &[
            ("META_ACCESS_TOKEN", ACCESS_TOKEN),
            ("META_GRAPH_URL", &graph.url),
            ("RUST_LOG", "trace"),
            ("HTTP_PROXY", &proxy),
            ("http_proxy", &proxy),
            ("ALL_PROXY", &proxy),
        ],
    );
    post_failures(&serve, &numbers).await;

    let db = database.database().pool();
    eventually("every number is looked up", async || {
        let look_ups = "select count(distinct phone_number_id) from health_checks";
        let look_ups: i64 = sqlx::query_scalar(look_ups).fetch_one(&db).await.unwrap();
        look_ups == 10
    })
    .await;
    serve.signal(Signal::TERM);
    assert!(serve.wait().success());
    let log = serve.whole_log().join("\n");
    assert!(log.contains("TRACE"), "the log has its lowest level");
    let rows = "select (select string_agg(t::text, ' ') from incidents t)
                       || (select string_agg(t::text, ' ') from health_checks t)";
    let rows: String = sqlx::query_scalar(rows).fetch_one(&db).await.unwrap();
    assert!(rows.contains("<[removed]>"), "{rows}");
    for secret in echoes.iter().map(String::as_str).chain([APP_SECRET]) {
        assert!(!rows.contains(secret), "{secret} is in {rows}");
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
    let contact = timeout(Duration::from_millis(1), canary.accept()).await;
    assert!(contact.is_err(), "the proxy was used");
}

/// The forms in which Meta could repeat the secrets of a request.
fn echoed_secrets(proof: &str) -> [String; 5] {
    [
        ACCESS_TOKEN.to_owned(),
        proof.to_owned(),
        ACCESS_TOKEN.replace('A', "\\u0041"),
        ACCESS_TOKEN.replace("T", "%54"),
        format!(
            "https://graph.facebook.com/v25.0/1\
             ?access_token={ACCESS_TOKEN}&appsecret_proof={proof}"
        ),
    ]
}

fn scripts_with_secrets(echoes: &[String], proof: &str) -> Vec<Vec<Step>> {
    let errors = echoes
        .iter()
        .map(|text| format!(r#"{{"error":{{"code":190,"message":"<{text}>"}}}}"#));
    let mut scripts: Vec<Vec<Step>> = errors.map(|body| answer("400 Bad Request", body)).collect();
    scripts.extend([
        vec![],
        vec![Step::Reset],
        answer(
            &format!("302 Found\r\nlocation: http://127.0.0.1:1/?{proof}"),
            proof,
        ),
        answer("200 OK", format!("{ACCESS_TOKEN} as text")),
        answer(
            &format!("400 Bad Request\r\nx-business-use-case-usage: {ACCESS_TOKEN}"),
            r#"{"error":{"code":80008}}"#,
        ),
    ]);
    scripts
}

/// Posts a callback with one failure for each number, which must be acknowledged.
async fn post_failures(serve: &Serve, numbers: &[String]) {
    let mut callback = StatusCallback::new().timestamp(OffsetDateTime::now_utc());
    for number in numbers {
        callback = callback.failed(number, number, "x");
    }
    let body = callback.into_body();
    let request = client()
        .post(&serve.webhook)
        .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
        .body(body);
    assert!(request.send().await.unwrap().status().is_success());
}
