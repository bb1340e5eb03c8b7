//! The public listener: the handshake, the signature, and each status code that a sender can get.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::simulator::Simulator;
use lockwatch::store::Database;
use reqwest::header::HeaderValue;
use reqwest::{Body, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::{
    ACCESS_TOKEN, APP_SECRET, TestApp, VERIFY_TOKEN, client, one_failure, start_service,
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
async fn a_bad_handshake_is_refused_with_403_or_400() {
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

/// Posts a body with this signature header.
async fn post_signed(app: &TestApp, body: &[u8], signature: impl AsRef<[u8]>) -> StatusCode {
    let signature = HeaderValue::from_bytes(signature.as_ref()).unwrap();
    let request = app
        .unsigned_request(body)
        .header(SIGNATURE_HEADER, signature);
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn any_other_signature_than_that_of_the_body_is_refused() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let valid = sign(APP_SECRET, &body);
    let with_newline = [&body[..], b"\n"].concat();
    let escaped = String::from_utf8(body.clone()).unwrap().replace('/', "\\/");
    assert_ne!(escaped.as_bytes(), body);
    for (case, signature) in [
        ("another secret", sign("another-app-secret-here", &body)),
        ("another body", sign(APP_SECRET, &with_newline)),
        ("an empty key", sign("", &body)),
        ("the verify token as key", sign(VERIFY_TOKEN, &body)),
        ("the access token as key", sign(ACCESS_TOKEN, &body)),
        ("no body", sign(APP_SECRET, b"")),
        (
            "the same JSON, escaped",
            sign(APP_SECRET, escaped.as_bytes()),
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
        let status = post_signed(&app, &body, signature).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{case}");
    }
    let status = post_signed(&app, &body, b"sha256=\xff\xfe").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "not even text");
    assert_eq!(
        app.count(
            "select (select count(*) from captures) + (select count(*) from inbox)
                  + (select count(*) from accounts)"
        )
        .await,
        0,
        "nothing was stored"
    );
}

#[tokio::test]
async fn exactly_one_signature_header_is_required() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let valid = sign(APP_SECRET, &body);
    let request = || app.unsigned_request(&body);
    let in_the_url = app
        .client
        .post(app.url(&format!("/webhook?{SIGNATURE_HEADER}={valid}")))
        .body(body.clone());
    for (case, request) in [
        ("no signature", request()),
        (
            "two signatures",
            request()
                .header(SIGNATURE_HEADER, &valid)
                .header(SIGNATURE_HEADER, &valid),
        ),
        (
            "in the old header",
            request().header("x-hub-signature", &valid),
        ),
        ("in the URL", in_the_url),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{case}");
    }
    assert_eq!(
        app.count(
            "select (select count(*) from captures) + (select count(*) from inbox)
                  + (select count(*) from accounts)"
        )
        .await,
        0,
        "nothing was stored"
    );
}

#[tokio::test]
async fn a_valid_signature_may_have_capitals_and_spaces_around_it() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let valid = sign(APP_SECRET, &body);
    let capitals = valid.to_uppercase().replace("SHA256=", "sha256=");
    for (case, signature) in [
        ("as Meta writes it", valid.clone()),
        ("in capitals", capitals),
        ("spaces around", format!("  {valid} ")),
    ] {
        let status = post_signed(&app, &body, signature).await;
        assert_eq!(status, StatusCode::OK, "{case}");
    }
    app.settle().await;
    assert_eq!(app.count("select count(*) from failed_deliveries").await, 1);
}

#[tokio::test]
async fn any_of_several_app_secrets_may_have_signed() {
    let app = TestApp::start().await;
    let service = start_service(
        app.database.database(),
        &app.simulator,
        &["the-new-app-secret", APP_SECRET],
    )
    .await;
    for (n, secret) in ["the-new-app-secret", APP_SECRET].iter().enumerate() {
        let body = one_failure(&format!("wamid.{n}"));
        let request = app
            .client
            .post(format!("http://{}/webhook", service.address))
            .header(SIGNATURE_HEADER, sign(secret, &body));
        assert_eq!(
            request.body(body).send().await.unwrap().status(),
            StatusCode::OK
        );
    }
    app.settle().await;
    assert_eq!(app.incident().await.failure_count, 2);
}

#[tokio::test]
async fn a_body_over_4_mib_is_refused_with_or_without_a_length() {
    let app = TestApp::start().await;
    let limit = 4 * 1024 * 1024;
    app.deliver(&vec![b' '; limit]).await;
    let over = vec![b' '; limit + 1];
    assert_eq!(
        app.post(&over).await.status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );

    let chunks: Vec<std::io::Result<Bytes>> = over
        .chunks(65536)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    let chunked = app
        .client
        .post(app.url("/webhook"))
        .header(SIGNATURE_HEADER, sign(APP_SECRET, &over))
        .body(Body::wrap_stream(stream::iter(chunks)));
    assert_eq!(
        chunked.send().await.unwrap().status(),
        StatusCode::PAYLOAD_TOO_LARGE
    );
}

#[tokio::test]
async fn an_encoded_body_is_refused() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let request = app
        .unsigned_request(&body)
        .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
        .header("content-encoding", "gzip");
    assert_eq!(
        request.send().await.unwrap().status(),
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    );
}

#[tokio::test]
async fn the_identity_encoding_is_none() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    let request = app
        .unsigned_request(&body)
        .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
        .header("content-encoding", "Identity");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn slashes_at_the_end_and_doubled_ones_are_the_same_path() {
    let app = TestApp::start().await;
    let body = one_failure("wamid.1");
    for path in ["/webhook/", "//webhook", "//webhook//"] {
        let request = app
            .client
            .post(app.url(path))
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body.clone());
        assert_eq!(
            request.send().await.unwrap().status(),
            StatusCode::OK,
            "{path}"
        );
        let query =
            format!("{path}?hub.mode=subscribe&hub.challenge=7&hub.verify_token={VERIFY_TOKEN}");
        let handshake = app.client.get(app.url(&query)).send().await.unwrap();
        assert_eq!(handshake.text().await.unwrap(), "7", "{path}");
        let put = app.client.put(app.url(path)).send().await.unwrap();
        assert_eq!(put.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    app.settle().await;
    assert_eq!(app.incident().await.failure_count, 1);
}

#[tokio::test]
async fn the_public_listener_serves_only_webhook_and_healthz() {
    let app = TestApp::start().await;
    let get = async |path: &str| app.client.get(app.url(path)).send().await.unwrap().status();
    assert_eq!(get("/healthz").await, StatusCode::OK);
    for path in [
        "/",
        "/readyz",
        "/metrics",
        "/api/v1/incidents",
        "/webhook/x",
        "/webhooks",
        "/openapi.json",
    ] {
        assert_eq!(get(path).await, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn the_admin_listener_serves_readyz_and_no_webhook() {
    let app = TestApp::start().await;
    let get = async |path: &str| {
        let url = format!("http://{}{path}", app.service.admin_address);
        app.client.get(url).send().await.unwrap().status()
    };
    app.eventually("readiness", async || get("/readyz").await == StatusCode::OK)
        .await;
    assert_eq!(get("/webhook").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_service_that_cannot_append_is_not_ready_until_it_can_again() {
    let app = TestApp::start().await;
    app.fail("wamid.1").await;
    let readiness = async || {
        let url = format!("http://{}/readyz", app.service.admin_address);
        let answer = app.client.get(url).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let ready = (StatusCode::OK, "ready\n".to_owned());
    assert_eq!(readiness().await, ready);
    app.execute("alter table captures add constraint closed check (false) not valid")
        .await;
    let refused = app.post(&one_failure("wamid.2")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        readiness().await,
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the last append to the inbox failed\n".to_owned()
        )
    );
    app.execute("alter table captures drop constraint closed")
        .await;
    app.eventually("it finds out by itself", async || {
        readiness().await == ready
    })
    .await;
    assert_eq!(app.count("select count(*) from captures").await, 1);
    assert_eq!(app.count("select count(*) from inbox").await, 0);
}

#[tokio::test]
async fn without_a_database_only_lockouts_are_refused() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let unreachable = Database::parse("postgresql://nobody@127.0.0.1:1/nothing").unwrap();
    let service = start_service(unreachable, &simulator, &[APP_SECRET]).await;
    let post = async |body: &[u8]| {
        let request = client()
            .post(format!("http://{}/webhook", service.address))
            .header(SIGNATURE_HEADER, sign(APP_SECRET, body));
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
    let head = concat!(
        "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n",
        "x-hub-signature-256: sha256=00\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 401");
}

#[tokio::test]
async fn announced_bodies_take_no_memory_from_a_real_one() {
    let app = TestApp::start().await;
    let mut open_streams = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(app.service.address).await.unwrap();
        let length = if n % 2 == 0 {
            "content-length: 4000000"
        } else {
            "transfer-encoding: chunked"
        };
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: x\r\n{length}\r\n{SIGNATURE_HEADER}: {}\r\n\r\n",
            sign("a guess", b"")
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        open_streams.push(stream);
    }
    app.fail("wamid.1").await;
    assert_eq!(app.incident().await.failure_count, 1);
}

/// Returns whether the server closes the connection within this time.
async fn is_closed_within(stream: &mut TcpStream, seconds: u64) -> bool {
    let read = async { while !matches!(stream.read(&mut [0; 512]).await, Ok(0) | Err(_)) {} };
    timeout(Duration::from_secs(seconds), read).await.is_ok()
}

async fn assert_closed_when_silent(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(is_closed_within(&mut stream, 12).await, "no byte");
}

async fn assert_closed_within_the_headers(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"POST /webhook HTTP/1.1\r\nhost")
        .await
        .unwrap();
    assert!(is_closed_within(&mut stream, 12).await, "half a header");
}

async fn assert_closed_when_headers_trickle(address: SocketAddr) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let trickle = async {
        while write.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(500)).await;
        }
    };
    let closed = async { while !matches!(read.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
    tokio::select! {
        closed = timeout(Duration::from_secs(12), closed) => {
            assert!(closed.is_ok(), "a header byte by byte");
        }
        () = trickle => {}
    }
}

async fn assert_503_when_the_body_stops(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n{SIGNATURE_HEADER}: {}\r\n\r\n{{",
        sign(APP_SECRET, b"x")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(Duration::from_secs(12), stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503", "a body that stops");
}

async fn assert_closed_when_idle_too_long(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    assert!(
        !is_closed_within(&mut stream, 20).await,
        "closed before the next request"
    );
    stream.write_all(request).await.unwrap();
    assert!(is_closed_within(&mut stream, 35).await, "idle for too long");
}

#[tokio::test]
#[ignore = "takes half a minute; .ci/run runs it"]
async fn slow_and_silent_connections_are_closed_in_time() {
    let app = TestApp::start().await;
    let address = app.service.address;
    tokio::join!(
        assert_closed_when_silent(address),
        assert_closed_within_the_headers(address),
        assert_closed_when_headers_trickle(address),
        assert_503_when_the_body_stops(address),
        assert_closed_when_idle_too_long(address),
    );
}
