//! The public listener: the handshake, the signature, and every answer of the contract.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use lockwatch::meta::signature::{HEADER, sign};
use lockwatch::simulator::Simulator;
use lockwatch::store::Database;
use reqwest::{Body, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::{
    ACCESS_TOKEN, APP_SECRET, TestApp, VERIFY_TOKEN, client, one_failure, service,
};

#[tokio::test]
async fn the_handshake_echoes_the_challenge_as_plain_text() {
    let app = TestApp::start().await;
    for challenge in ["1158201444", "0042", "<b>&amp;", "a b+c"] {
        let query = [
            ("hub.mode", "subscribe"),
            ("hub.verify_token", VERIFY_TOKEN),
            ("hub.challenge", challenge),
        ];
        let response = app
            .client
            .get(app.url("/webhook"))
            .query(&query)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()["content-type"],
            "text/plain; charset=utf-8"
        );
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.text().await.unwrap(), challenge);
    }
}

#[tokio::test]
async fn a_handshake_with_a_wrong_token_is_forbidden_and_a_malformed_one_is_bad() {
    let app = TestApp::start().await;
    let token = format!("hub.verify_token={VERIFY_TOKEN}");
    for (query, expected) in [
        (
            "hub.mode=subscribe&hub.verify_token=wrong&hub.challenge=1".to_owned(),
            StatusCode::FORBIDDEN,
        ),
        (
            "hub.mode=subscribe&hub.verify_token=&hub.challenge=1".to_owned(),
            StatusCode::FORBIDDEN,
        ),
        (
            format!("hub.mode=subscribe&{token}"),
            StatusCode::BAD_REQUEST,
        ),
        (
            format!("hub.mode=subscribe&{token}&hub.challenge="),
            StatusCode::BAD_REQUEST,
        ),
        (
            format!("hub.mode=unsubscribe&{token}&hub.challenge=1"),
            StatusCode::BAD_REQUEST,
        ),
        (
            format!("hub.mode=subscribe&{token}&{token}&hub.challenge=1"),
            StatusCode::BAD_REQUEST,
        ),
        (format!("{token}&hub.challenge=1"), StatusCode::BAD_REQUEST),
        (String::new(), StatusCode::BAD_REQUEST),
    ] {
        let response = app
            .client
            .get(app.url(&format!("/webhook?{query}")))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), expected, "{query}");
        assert!(!response.text().await.unwrap().contains(VERIFY_TOKEN));
    }
}

#[tokio::test]
async fn only_a_valid_signature_over_these_very_bytes_gets_in() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let valid = sign(APP_SECRET, &body);
    let mut with_newline = body.clone();
    with_newline.push(b'\n');
    let written_again = String::from_utf8(body.clone())
        .unwrap()
        .replace('/', "\\/")
        .into_bytes();
    assert_ne!(written_again, body);
    for (what, signature) in [
        ("another secret", sign("another-app-secret-here", &body)),
        ("another body", sign(APP_SECRET, &with_newline)),
        ("an empty key", sign("", &body)),
        ("the verify token as key", sign(VERIFY_TOKEN, &body)),
        ("the access token as key", sign(ACCESS_TOKEN, &body)),
        ("no body", sign(APP_SECRET, b"")),
        (
            "the same JSON, written again",
            sign(APP_SECRET, &written_again),
        ),
        ("sha1", valid.replace("sha256=", "sha1=")),
        ("no prefix", valid.replace("sha256=", "")),
        ("upper-case prefix", valid.replace("sha256=", "SHA256=")),
        ("a space inside", valid.replace("sha256=", "sha256= ")),
        ("quoted", format!("\"{valid}\"")),
        ("two in one line", format!("{valid},{valid}")),
        ("a parameter", format!("{valid}; v=1")),
        ("four bytes", valid[.."sha256=".len() + 8].to_owned()),
        ("too short", valid[..valid.len() - 2].to_owned()),
        ("too long", format!("{valid}00")),
        ("not hex", valid.replace(['0', '1', '2', '3'], "x")),
        ("empty", String::new()),
    ] {
        let response = app
            .unsigned(&body)
            .header(HEADER, signature)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{what}");
    }
    let none = app.unsigned(&body).send().await.unwrap();
    assert_eq!(none.status(), StatusCode::UNAUTHORIZED, "no signature");
    let twice = app
        .unsigned(&body)
        .header(HEADER, &valid)
        .header(HEADER, &valid)
        .send()
        .await
        .unwrap();
    assert_eq!(twice.status(), StatusCode::UNAUTHORIZED, "two signatures");
    let bytes = reqwest::header::HeaderValue::from_bytes(b"sha256=\xff\xfe").unwrap();
    let odd = app
        .unsigned(&body)
        .header(HEADER, bytes)
        .send()
        .await
        .unwrap();
    assert_eq!(odd.status(), StatusCode::UNAUTHORIZED, "not even text");
    let old = app
        .unsigned(&body)
        .header("x-hub-signature", &valid)
        .send()
        .await
        .unwrap();
    assert_eq!(old.status(), StatusCode::UNAUTHORIZED, "in the old header");
    let query = app
        .client
        .post(app.url(&format!("/webhook?{HEADER}={valid}")))
        .body(body.clone());
    assert_eq!(
        query.send().await.unwrap().status(),
        StatusCode::UNAUTHORIZED,
        "in the URL"
    );
    assert_eq!(
        app.count("select count(*) from accounts").await,
        0,
        "nothing was recorded"
    );

    for (what, signature) in [
        ("as Meta writes it", valid.clone()),
        ("in capitals", capitals(&valid)),
        ("spaces around", format!("  {valid} ")),
    ] {
        let response = app
            .unsigned(&body)
            .header(HEADER, signature)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{what}");
    }
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 1);
}

fn capitals(signature: &str) -> String {
    signature.to_uppercase().replace("SHA256=", "sha256=")
}

#[tokio::test]
async fn any_of_several_app_secrets_may_have_signed() {
    let app = TestApp::start().await;
    let both = service(
        app.database.database(),
        &app.simulator,
        &["the-new-app-secret", APP_SECRET],
    )
    .await;
    for (n, secret) in ["the-new-app-secret", APP_SECRET].iter().enumerate() {
        let body = one_failure(&format!("wamid.{n}"));
        let request = app
            .client
            .post(format!("http://{}/webhook", both.address))
            .header(HEADER, sign(secret, &body));
        assert_eq!(
            request.body(body).send().await.unwrap().status(),
            StatusCode::OK
        );
    }
    assert_eq!(app.incident().await.failure_count, 2);
}

#[tokio::test]
async fn bodies_over_4_mib_are_too_large_whether_declared_or_not() {
    let app = TestApp::start().await;
    let limit = 4 * 1024 * 1024;
    let just = vec![b' '; limit];
    app.deliver(&just).await;
    let over = vec![b' '; limit + 1];
    assert_eq!(
        app.post(&over).await.status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );

    let chunks = stream::iter(
        over.chunks(65536)
            .map(|c| Ok::<_, std::io::Error>(Bytes::copy_from_slice(c)))
            .collect::<Vec<_>>(),
    );
    let chunked = app
        .client
        .post(app.url("/webhook"))
        .header(HEADER, sign(APP_SECRET, &over))
        .body(Body::wrap_stream(chunks));
    assert_eq!(
        chunked.send().await.unwrap().status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

#[tokio::test]
async fn an_encoded_body_is_not_taken() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let request = app
        .unsigned(&body)
        .header(HEADER, sign(APP_SECRET, &body))
        .header("content-encoding", "gzip");
    assert_eq!(
        request.send().await.unwrap().status(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
}

#[tokio::test]
async fn the_public_listener_has_the_webhook_and_a_sign_of_life_and_nothing_else() {
    let app = TestApp::start().await;
    let get = async |path: &str| app.client.get(app.url(path)).send().await.unwrap().status();
    assert_eq!(get("/healthz").await, StatusCode::OK);
    for path in [
        "/",
        "/readyz",
        "/metrics",
        "/api/v1/incidents",
        "/webhook/",
        "/openapi.json",
    ] {
        assert_eq!(get(path).await, StatusCode::NOT_FOUND, "{path}");
    }
    let admin = async |path: &str| {
        app.client
            .get(format!("http://{}{path}", app.service.admin_address))
            .send()
            .await
            .unwrap()
            .status()
    };
    app.eventually("readiness", async || {
        admin("/readyz").await == StatusCode::OK
    })
    .await;
    assert_eq!(admin("/webhook").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn without_a_database_only_lockouts_are_turned_away() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let nowhere = Database::parse("postgresql://nobody@127.0.0.1:1/nothing").unwrap();
    let service = service(nowhere, &simulator, &[APP_SECRET]).await;
    let post = async |body: &[u8]| {
        let request = client()
            .post(format!("http://{}/webhook", service.address))
            .header(HEADER, sign(APP_SECRET, body));
        request.body(body.to_vec()).send().await.unwrap()
    };
    assert_eq!(post(b"{\"entry\":[]}").await.status(), StatusCode::OK);
    let refused = post(&one_failure("wamid.1")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "5");
    let ready = client()
        .get(format!("http://{}/readyz", service.admin_address))
        .send()
        .await
        .unwrap();
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    service.stop().await;
}

#[tokio::test]
async fn a_bad_signature_is_refused_before_the_body_is_sent() {
    let app = TestApp::start().await;
    let mut stream = TcpStream::connect(app.service.address).await.unwrap();
    let head = "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\nx-hub-signature-256: sha256=00\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 401");
}

#[tokio::test]
async fn promised_bodies_take_no_memory_from_those_that_come() {
    let app = TestApp::start().await;
    let mut promises = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(app.service.address).await.unwrap();
        let length = if n % 2 == 0 {
            "content-length: 4000000"
        } else {
            "transfer-encoding: chunked"
        };
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: x\r\n{length}\r\n{HEADER}: {}\r\n\r\n",
            sign("a guess", b"")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        promises.push(stream);
    }
    app.fail("wamid.1").await;
    assert_eq!(app.incident().await.failure_count, 1);
}

/// Whether the other side closes the connection within this time.
async fn is_closed_within(stream: &mut TcpStream, seconds: u64) -> bool {
    let read = async { while !matches!(stream.read(&mut [0; 512]).await, Ok(0) | Err(_)) {} };
    timeout(Duration::from_secs(seconds), read).await.is_ok()
}

#[tokio::test]
#[ignore = "takes half a minute; .ci/run runs it"]
async fn slow_and_silent_connections_are_closed_in_time() {
    let app = TestApp::start().await;
    let connect = async || TcpStream::connect(app.service.address).await.unwrap();

    let silent = async {
        assert!(
            is_closed_within(&mut connect().await, 12).await,
            "says nothing"
        )
    };
    let partial = async {
        let mut stream = connect().await;
        stream
            .write_all(b"POST /webhook HTTP/1.1\r\nhost")
            .await
            .unwrap();
        assert!(is_closed_within(&mut stream, 12).await, "half a header");
    };
    let trickled = async {
        let (mut read, mut write) = connect().await.into_split();
        let trickle = async {
            while write.write_all(b"a").await.is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        };
        let closed = async { while !matches!(read.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
        let closed = timeout(Duration::from_secs(12), closed);
        tokio::select! {
            closed = closed => assert!(closed.is_ok(), "a header byte by byte"),
            () = trickle => {}
        }
    };
    let stalled = async {
        let mut stream = connect().await;
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n{HEADER}: {}\r\n\r\n{{",
            sign(APP_SECRET, b"x")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(Duration::from_secs(12), stream.read_exact(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&answer, b"HTTP/1.1 503", "a body that stops");
    };
    let idle = async {
        let mut stream = connect().await;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        assert!(
            !is_closed_within(&mut stream, 20).await,
            "kept open for the next request"
        );
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        assert!(is_closed_within(&mut stream, 35).await, "idle for too long");
    };
    tokio::join!(silent, partial, trickled, stalled, idle);
}
