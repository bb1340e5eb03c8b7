//! Request smuggling: requests with a false or ambiguous end. The protection is that a request
//! inherits nothing from its connection: everything that the server reads as a request needs a
//! signature of its own over exactly its bytes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::raw_http::{Exchange, exchange, send_and_close};
use crate::support::{APP_SECRET, TestApp, one_failure};

const POST: &str = "POST /webhook HTTP/1.1";
const LENGTH: &str = "content-length: {n}";
const CHUNKED: &str = "transfer-encoding: chunked";
const PLAIN: &str = "{body}";
const CHUNKS: &str = "{x}\r\n{body}\r\n0\r\n\r\n";

/// A request line, header lines and the rest of the bytes; the status of each answer; and whether
/// the connection stays open.
type Case<'c> = (&'c str, &'c str, &'c str, &'c [u16], bool);

/// Builds the bytes of a case: a signed callback with one failure, with these placeholders.
///
/// `{body}` is the body. `{n}` is its length, `{x}` the length in hexadecimal, `{less}` and
/// `{more}` the same three bytes shorter and longer. `{signed}` and `{unsigned}` are complete
/// second requests, and `{rest}` is the length of the body and the unsigned request together.
fn build_request(id: &str, (line, headers, rest, ..): Case<'_>) -> Vec<u8> {
    let body = one_failure(id);
    let signature = signature_header(&body);
    let body = String::from_utf8(body).unwrap();
    let n = body.len();
    let second_body = one_failure(&second_id(id));
    let signed = complete_request(&second_body, &signature_header(&second_body));
    let unsigned = complete_request(&one_failure("never"), "");
    let request = format!("{line}\r\nhost: x\r\n{signature}{headers}\r\n\r\n{rest}");
    let placeholders = [
        ("{rest}", (n + unsigned.len()).to_string()),
        ("{n}", n.to_string()),
        ("{x}", format!("{n:x}")),
        ("{less}", format!("{:x}", n - 3)),
        ("{more}", format!("{:x}", n + 3)),
        ("{signed}", signed),
        ("{unsigned}", unsigned),
        ("{body}", body),
    ];
    placeholders
        .iter()
        .fold(request, |text, (name, value)| text.replace(name, value))
        .into_bytes()
}

fn complete_request(body: &[u8], signature: &str) -> String {
    let length = body.len();
    let body = std::str::from_utf8(body).unwrap();
    format!("{POST}\r\nhost: x\r\ncontent-length: {length}\r\n{signature}\r\n{body}")
}

fn signature_header(body: &[u8]) -> String {
    format!("{SIGNATURE_HEADER}: {}\r\n", sign(APP_SECRET, body))
}

/// The id of the failure in the signed second request.
fn second_id(id: &str) -> String {
    format!("{id}, the second")
}

/// Sends every case on a connection of its own and checks the answers. Exactly the callbacks that
/// were answered with 200 must be recorded.
async fn check_cases(cases: &[Case<'_>]) {
    let app = TestApp::start().await;
    let mut acknowledged = BTreeSet::new();
    for (n, case) in cases.iter().enumerate() {
        let (_, _, rest, statuses, is_open) = *case;
        let id = format!("wamid.{n}");
        let request = build_request(&id, *case);
        let answered = exchange(app.service.address, &request, statuses.len()).await;
        let expected = Exchange {
            statuses: statuses.to_vec(),
            is_open,
        };
        assert_eq!(answered, expected, "{case:?}");
        if statuses.iter().find(|status| **status != 100) == Some(&200) {
            acknowledged.insert(id.clone());
        }
        if rest.contains("{signed}") && statuses.len() == 2 {
            acknowledged.insert(second_id(&id));
        }
    }
    assert_eq!(recorded_ids(&app).await, acknowledged);
}

/// The ids of the recorded failures. Nothing may be in quarantine.
async fn recorded_ids(app: &TestApp) -> BTreeSet<String> {
    app.settle().await;
    let ids: Vec<String> = sqlx::query_scalar("select message_id from failed_deliveries")
        .fetch_all(&app.db)
        .await
        .unwrap();
    assert_eq!(
        app.count("select count(*) from quarantine").await,
        0,
        "nothing is in quarantine"
    );
    ids.into_iter().collect()
}

#[tokio::test]
async fn a_body_without_one_clear_length_is_refused() {
    check_cases(&[
        (POST, LENGTH, PLAIN, &[200], true),
        (POST, "content-length:  \t {n} ", PLAIN, &[200], true),
        (POST, "content-length: 000{n}", PLAIN, &[200], true),
        // The same length twice is one length (RFC 9110, 8.6).
        (
            POST,
            "content-length: {n}\r\ncontent-length: {n}",
            PLAIN,
            &[200],
            true,
        ),
        (
            POST,
            "content-length: {n}\r\ncontent-length: 3",
            PLAIN,
            &[400],
            false,
        ),
        (
            POST,
            "content-length: 3\r\ncontent-length: {n}",
            PLAIN,
            &[400],
            false,
        ),
        (POST, "content-length: {n}, {n}", PLAIN, &[400], false),
        (POST, "content-length: {n}, 3", PLAIN, &[400], false),
        (POST, "content-length: +{n}", PLAIN, &[400], false),
        (POST, "content-length: -{n}", PLAIN, &[400], false),
        (POST, "content-length: 0x{x}", PLAIN, &[400], false),
        (POST, "content-length: 1 0", PLAIN, &[400], false),
        (POST, "content-length: {n}.0", PLAIN, &[400], false),
        (POST, "content-length:", PLAIN, &[400], false),
        (POST, "content-length : {n}", PLAIN, &[400], false),
        (POST, "content-length:\r\n {n}", PLAIN, &[400], false),
        (
            POST,
            "content-length: 18446744073709551616",
            PLAIN,
            &[400],
            false,
        ),
        (
            POST,
            "content-length: 18446744073709551615",
            PLAIN,
            &[431],
            false,
        ),
        (
            POST,
            "content-length: 9223372036854775807",
            PLAIN,
            &[413],
            false,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_transfer_encoding_other_than_chunked_is_refused() {
    check_cases(&[
        (POST, CHUNKED, CHUNKS, &[200], true),
        (POST, "transfer-encoding:   Chunked ", CHUNKS, &[200], true),
        // The chunks decide, not the length, and the connection is closed afterwards (RFC 9112,
        // 6.1).
        (
            POST,
            "content-length: {n}\r\ntransfer-encoding: chunked",
            CHUNKS,
            &[200],
            false,
        ),
        (
            POST,
            "transfer-encoding: chunked\r\ncontent-length: 3",
            CHUNKS,
            &[200],
            false,
        ),
        (
            POST,
            "content-length: 3\r\ntransfer-encoding: chunked",
            "{x}\r\n{body}\r\n0\r\n\r\n{signed}",
            &[200],
            false,
        ),
        // The last encoding is chunked, so the end is known; the signature covers the content of
        // the chunks.
        (
            POST,
            "transfer-encoding: gzip, chunked",
            CHUNKS,
            &[200],
            true,
        ),
        (POST, "transfer-encoding: xchunked", CHUNKS, &[400], false),
        (
            POST,
            "transfer-encoding: chunked, identity",
            CHUNKS,
            &[400],
            false,
        ),
        (POST, "transfer-encoding: identity", PLAIN, &[400], false),
        (
            POST,
            "transfer-encoding: identity\r\ncontent-length: {n}",
            PLAIN,
            &[400],
            false,
        ),
        (
            POST,
            "transfer-encoding: \"chunked\"",
            CHUNKS,
            &[400],
            false,
        ),
        (
            POST,
            "transfer-encoding: \u{b}chunked",
            CHUNKS,
            &[400],
            false,
        ),
        (POST, "transfer-encoding: chunked\0", CHUNKS, &[400], false),
        (
            POST,
            "transfer-encoding:\r\n chunked",
            CHUNKS,
            &[400],
            false,
        ),
        (POST, "transfer-encoding : chunked", CHUNKS, &[400], false),
        ("POST /webhook HTTP/1.0", CHUNKED, CHUNKS, &[400], false),
        ("POST /webhook HTTP/1.0", LENGTH, PLAIN, &[200], false),
    ])
    .await;
}

#[tokio::test]
async fn malformed_chunks_end_the_connection() {
    check_cases(&[
        (
            POST,
            CHUNKED,
            "{x};name=value\r\n{body}\r\n0\r\n\r\n",
            &[200],
            true,
        ),
        (POST, CHUNKED, "000{x}\r\n{body}\r\n0\r\n\r\n", &[200], true),
        // A trailer is not a header: a signature there is ignored.
        (
            POST,
            CHUNKED,
            "{x}\r\n{body}\r\n0\r\nx-hub-signature-256: sha256=00\r\n\r\n",
            &[200],
            true,
        ),
        (
            POST,
            CHUNKED,
            "{less}\r\n{body}\r\n0\r\n\r\n",
            &[503],
            false,
        ),
        (
            POST,
            CHUNKED,
            "{more}\r\n{body}\r\n0\r\n\r\n",
            &[503],
            false,
        ),
        (POST, CHUNKED, "0x{x}\r\n{body}\r\n0\r\n\r\n", &[503], false),
        (POST, CHUNKED, "-{x}\r\n{body}\r\n0\r\n\r\n", &[503], false),
        (POST, CHUNKED, " {x}\r\n{body}\r\n0\r\n\r\n", &[503], false),
        (POST, CHUNKED, "\r\n{body}\r\n0\r\n\r\n", &[503], false),
        (POST, CHUNKED, "{x}\n{body}\n0\n\n", &[503], false),
        (
            POST,
            CHUNKED,
            "{x};a\nb\r\n{body}\r\n0\r\n\r\n",
            &[503],
            false,
        ),
        (
            POST,
            CHUNKED,
            "10000000000000000\r\n{body}\r\n0\r\n\r\n",
            &[503],
            false,
        ),
        (
            POST,
            CHUNKED,
            "{x}\r\n{body}\r\n10000000000000000\r\n\r\n",
            &[503],
            false,
        ),
    ])
    .await;
    let huge = "a".repeat(100_000);
    check_cases(&[
        (
            POST,
            CHUNKED,
            &format!("{{x}};{huge}\r\n{{body}}\r\n0\r\n\r\n"),
            &[503],
            false,
        ),
        (
            POST,
            CHUNKED,
            &format!("{{x}}\r\n{{body}}\r\n0\r\nx: {huge}\r\n\r\n"),
            &[503],
            false,
        ),
        (
            POST,
            &format!("{LENGTH}\r\nx: {}", huge.repeat(5)),
            PLAIN,
            &[431],
            false,
        ),
        (
            POST,
            &format!("{LENGTH}{}", "\r\nx: y".repeat(200)),
            PLAIN,
            &[431],
            false,
        ),
    ])
    .await;
}

#[tokio::test]
async fn odd_heads_are_refused_or_read_literally() {
    check_cases(&[
        (
            "POST http://other.example/webhook HTTP/1.1",
            LENGTH,
            PLAIN,
            &[200],
            true,
        ),
        (
            "POST http://other.example/incidents HTTP/1.1",
            LENGTH,
            PLAIN,
            &[404],
            true,
        ),
        (
            "CONNECT other.example:443 HTTP/1.1",
            LENGTH,
            PLAIN,
            &[404],
            true,
        ),
        ("POST //webhook HTTP/1.1", LENGTH, PLAIN, &[200], true),
        ("POST /webhook/ HTTP/1.1", LENGTH, PLAIN, &[200], true),
        ("POST /webhook/x HTTP/1.1", LENGTH, PLAIN, &[404], true),
        ("POST /%77ebhook HTTP/1.1", LENGTH, PLAIN, &[404], true),
        ("POST /x/../webhook HTTP/1.1", LENGTH, PLAIN, &[404], true),
        ("post /webhook HTTP/1.1", LENGTH, PLAIN, &[405], true),
        ("PUT /webhook HTTP/1.1", LENGTH, PLAIN, &[405], true),
        (
            "PUT /webhook HTTP/1.1",
            "content-length: {n}\r\nx-http-method-override: POST",
            PLAIN,
            &[405],
            true,
        ),
        ("POST /webhook HTTP/1.2", LENGTH, PLAIN, &[400], false),
        ("POST /webhook HTTP/2.0", LENGTH, PLAIN, &[400], false),
        ("POST /webhook", LENGTH, PLAIN, &[400], false),
        (
            "\r\n\r\nPOST /webhook HTTP/1.1",
            LENGTH,
            PLAIN,
            &[200],
            true,
        ),
        // A line may end with LF alone (RFC 9112, 2.2), but never with CR alone.
        ("POST /webhook HTTP/1.1\nx: y", LENGTH, PLAIN, &[200], true),
        (POST, "x: y\rcontent-length: {n}", PLAIN, &[400], false),
        (POST, "content-length: {n}\r\nx: a\0b", PLAIN, &[400], false),
        (POST, "content-length: {n}\r\nx\0: b", PLAIN, &[400], false),
        (
            POST,
            "content-length: {n}\r\nx: a\r\n b",
            PLAIN,
            &[400],
            false,
        ),
        (POST, "content-length: {n}\r\n: b", PLAIN, &[400], false),
        (POST, "content-length: {n}\r\nx", PLAIN, &[400], false),
        (
            POST,
            "content-length: {n}\r\nconnection: upgrade\r\nupgrade: h2c",
            PLAIN,
            &[200],
            true,
        ),
        (
            POST,
            "content-length: {n}\r\nexpect: 100-continue",
            PLAIN,
            &[100, 200],
            true,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_second_request_needs_its_own_signature() {
    check_cases(&[
        (POST, LENGTH, "{body}{unsigned}", &[200, 401], true),
        (POST, LENGTH, "{body}{signed}", &[200, 200], true),
        (
            POST,
            CHUNKED,
            "{x}\r\n{body}\r\n0\r\n\r\n{unsigned}",
            &[200, 401],
            true,
        ),
        // Too long: the second request is part of the body, so the signature is wrong.
        (
            POST,
            "content-length: {rest}",
            "{body}{unsigned}",
            &[401],
            true,
        ),
        // Too short: the rest of the body is not a valid request.
        (POST, "content-length: 5", PLAIN, &[401, 400], false),
        (POST, "content-length: 0", PLAIN, &[401, 400], false),
        (POST, "x: no length at all", PLAIN, &[401, 400], false),
        (POST, "content-length: 0", "{unsigned}", &[401, 401], true),
        (
            POST,
            "content-length: {n}\r\nx-hub-signature-256: again",
            "{body}{signed}",
            &[401, 200],
            true,
        ),
        (
            POST,
            "content-length: {n}\r\ncontent-encoding: gzip",
            "{body}{signed}",
            &[415, 200],
            true,
        ),
        (
            "POST /elsewhere HTTP/1.1",
            LENGTH,
            "{body}{unsigned}",
            &[404, 401],
            true,
        ),
        (
            "GET /webhook HTTP/1.1",
            "content-length: {rest}",
            "{body}{unsigned}",
            &[400],
            true,
        ),
    ])
    .await;
    // A body that is refused unread is never searched for another request.
    let filler = "a".repeat(1_000_000);
    check_cases(&[
        (
            POST,
            "content-length: 5000000",
            "{body}{signed}",
            &[413],
            false,
        ),
        (
            POST,
            "content-length: 1000000\r\nx-hub-signature-256: two",
            &format!("{filler}{{signed}}"),
            &[401],
            false,
        ),
        (
            POST,
            "content-length: 1000000\r\ncontent-encoding: br",
            &format!("{filler}{{signed}}"),
            &[415],
            false,
        ),
    ])
    .await;
}

/// Requests that announce more bytes than they send.
const UNFINISHED: [Case<'static>; 5] = [
    (POST, "content-length: 100000", PLAIN, &[503], false),
    (POST, CHUNKED, "{x}\r\n{body}\r\n", &[503], false),
    (POST, CHUNKED, "{x}\r\n{body}\r\n0\r\n", &[503], false),
    (POST, CHUNKED, "{more}\r\n{body}", &[503], false),
    (POST, CHUNKED, "ffffffffffffffff\r\n{body}", &[503], false),
];

#[tokio::test]
async fn an_incomplete_body_is_not_acknowledged() {
    let app = TestApp::start().await;
    for case in UNFINISHED {
        let request = build_request("wamid.1", case);
        let statuses = send_and_close(app.service.address, &request).await;
        assert_eq!(statuses, [503], "{case:?}");
    }
    for start in [
        "",
        "P",
        "POST /webhook HTTP/1.1\r\nhost: x\r\n",
        "\u{16}\u{3}\u{1}",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let statuses = send_and_close(app.service.address, start.as_bytes()).await;
        assert!(
            statuses.iter().all(|status| *status == 400),
            "{start:?}: {statuses:?}"
        );
    }
    assert_eq!(recorded_ids(&app).await, BTreeSet::new());
    app.deliver(&one_failure("wamid.1")).await;
}

#[tokio::test]
#[ignore = "takes ten seconds; .ci/run runs it"]
async fn a_body_that_never_ends_gets_503_in_time() {
    let app = TestApp::start().await;
    let requests = UNFINISHED.map(|case| {
        let request = build_request("wamid.1", case);
        expect_503(app.service.address, request, case)
    });
    join_all(requests).await;
    assert_eq!(recorded_ids(&app).await, BTreeSet::new());
}

/// Sends an incomplete request and keeps the connection open. The answer and the end must come in
/// time.
async fn expect_503(address: SocketAddr, request: Vec<u8>, case: Case<'_>) {
    const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    timeout(ANSWER_TIMEOUT, stream.read_to_end(&mut answer))
        .await
        .expect("the server must close the connection")
        .unwrap();
    assert!(
        answer.starts_with(b"HTTP/1.1 503"),
        "{case:?}: {}",
        answer.escape_ascii()
    );
}
