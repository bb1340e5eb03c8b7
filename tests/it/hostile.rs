//! Requests that lie about where they end. What protects here is that nothing is inherited from the
//! connection: whatever is taken for a request needs a signature of its own over exactly its bytes.

use std::collections::BTreeSet;
use std::time::Duration;

use lockwatch::meta::signature::{HEADER, sign};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::raw::{Exchange, exchange, last_words};
use crate::support::{APP_SECRET, TestApp, one_failure};

const POST: &str = "POST /webhook HTTP/1.1";
const LENGTH: &str = "content-length: {n}";
const CHUNKED: &str = "transfer-encoding: chunked";
const PLAIN: &str = "{body}";
const CHUNKS: &str = "{x}\r\n{body}\r\n0\r\n\r\n";

/// A request line, header lines and what follows; the status of each answer; whether the connection stays open.
type Case<'c> = (&'c str, &'c str, &'c str, &'c [u16], bool);

/// A signed callback with one failure in it, as a case spells it: `{body}` is its body; `{n}` is the body's
/// length, `{x}` the same in hexadecimal, and `{less}` and `{more}` three bytes off. `{signed}` and
/// `{unsigned}` are whole requests of their own; `{rest}` is the length of the body and the unsigned one.
fn request(id: &str, (line, headers, after, ..): Case<'_>) -> Vec<u8> {
    let body = String::from_utf8(one_failure(id)).unwrap();
    let n = body.len();
    let whole = |id: &str, sign: fn(&[u8]) -> String| {
        let body = one_failure(id);
        let head = format!(
            "{POST}\r\nhost: x\r\ncontent-length: {}\r\n{}\r\n",
            body.len(),
            sign(&body)
        );
        head + std::str::from_utf8(&body).unwrap()
    };
    let signed = whole(&second(id), |body| {
        format!("{HEADER}: {}\r\n", sign(APP_SECRET, body))
    });
    let unsigned = whole("never", |_| String::new());
    let signature = sign(APP_SECRET, body.as_bytes());
    let request = format!("{line}\r\nhost: x\r\n{HEADER}: {signature}\r\n{headers}\r\n\r\n{after}");
    let replacements = [
        ("{rest}", (n + unsigned.len()).to_string()),
        ("{n}", n.to_string()),
        ("{x}", format!("{n:x}")),
        ("{less}", format!("{:x}", n - 3)),
        ("{more}", format!("{:x}", n + 3)),
        ("{signed}", signed),
        ("{unsigned}", unsigned),
        ("{body}", body),
    ];
    replacements
        .iter()
        .fold(request, |text, (name, value)| text.replace(name, value))
        .into_bytes()
}

/// The id of the failure in the signed request behind the first.
fn second(id: &str) -> String {
    format!("{id}, the second")
}

/// Sends every case on a connection of its own. Exactly what was answered with 200 is recorded.
async fn all_end_as_they_should(cases: &[Case<'_>]) {
    let app = TestApp::start().await;
    let mut taken = BTreeSet::new();
    for (n, case) in cases.iter().enumerate() {
        let (_, _, after, answers, open) = *case;
        let id = format!("wamid.{n}");
        let seen = exchange(app.service.address, &request(&id, *case), answers.len()).await;
        assert_eq!(
            seen,
            Exchange {
                answers: answers.to_vec(),
                open
            },
            "{case:?}"
        );
        if answers.iter().find(|status| **status != 100) == Some(&200) {
            taken.insert(id.clone());
        }
        if after.contains("{signed}") && answers.len() == 2 {
            taken.insert(second(&id));
        }
    }
    assert_eq!(recorded(&app).await, taken);
}

async fn recorded(app: &TestApp) -> BTreeSet<String> {
    let ids: Vec<String> = sqlx::query_scalar("select message_id from failed_deliveries")
        .fetch_all(&app.db)
        .await
        .unwrap();
    assert_eq!(
        app.count("select count(*) from quarantine").await,
        0,
        "and nothing else"
    );
    ids.into_iter().collect()
}

#[tokio::test]
async fn a_body_has_one_length_or_is_refused() {
    all_end_as_they_should(&[
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
async fn a_transfer_encoding_is_chunked_or_is_refused() {
    all_end_as_they_should(&[
        (POST, CHUNKED, CHUNKS, &[200], true),
        (POST, "transfer-encoding:   Chunked ", CHUNKS, &[200], true),
        // Chunks count, the length does not, and nothing else is read from such a sender (RFC 9112, 6.1).
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
        // Chunks it ends with, so the end is known; what is in them is what must be signed.
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
    all_end_as_they_should(&[
        (
            POST,
            CHUNKED,
            "{x};name=value\r\n{body}\r\n0\r\n\r\n",
            &[200],
            true,
        ),
        (POST, CHUNKED, "000{x}\r\n{body}\r\n0\r\n\r\n", &[200], true),
        // A trailer is no header: a signature there counts for nothing.
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
    all_end_as_they_should(&[
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
async fn odd_heads_are_refused_or_mean_what_they_say() {
    all_end_as_they_should(&[
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
        ("POST //webhook HTTP/1.1", LENGTH, PLAIN, &[404], true),
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
async fn what_follows_a_request_is_nothing_or_needs_its_own_signature() {
    all_end_as_they_should(&[
        (POST, LENGTH, "{body}{unsigned}", &[200, 401], true),
        (POST, LENGTH, "{body}{signed}", &[200, 200], true),
        (
            POST,
            CHUNKED,
            "{x}\r\n{body}\r\n0\r\n\r\n{unsigned}",
            &[200, 401],
            true,
        ),
        // Too long: the request behind is a part of the body, and so the signature is wrong.
        (
            POST,
            "content-length: {rest}",
            "{body}{unsigned}",
            &[401],
            true,
        ),
        // Too short: the rest of the body is no request.
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
    // What is refused unread is never read on in search of another request.
    let endless = "a".repeat(1_000_000);
    all_end_as_they_should(&[
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
            &format!("{endless}{{signed}}"),
            &[401],
            false,
        ),
        (
            POST,
            "content-length: 1000000\r\ncontent-encoding: br",
            &format!("{endless}{{signed}}"),
            &[415],
            false,
        ),
    ])
    .await;
}

/// Bodies that promise more than comes.
const UNFINISHED: [Case<'static>; 5] = [
    (POST, "content-length: 100000", PLAIN, &[503], false),
    (POST, CHUNKED, "{x}\r\n{body}\r\n", &[503], false),
    (POST, CHUNKED, "{x}\r\n{body}\r\n0\r\n", &[503], false),
    (POST, CHUNKED, "{more}\r\n{body}", &[503], false),
    (POST, CHUNKED, "ffffffffffffffff\r\n{body}", &[503], false),
];

#[tokio::test]
async fn a_body_that_breaks_off_is_not_taken() {
    let app = TestApp::start().await;
    for case in UNFINISHED {
        assert_eq!(
            last_words(app.service.address, &request("wamid.1", case)).await,
            [503],
            "{case:?}"
        );
    }
    for words in [
        "",
        "P",
        "POST /webhook HTTP/1.1\r\nhost: x\r\n",
        "\u{16}\u{3}\u{1}",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answers = last_words(app.service.address, words.as_bytes()).await;
        assert!(
            answers.iter().all(|status| *status == 400),
            "{words:?}: {answers:?}"
        );
    }
    assert_eq!(recorded(&app).await, BTreeSet::new());
    app.deliver(&one_failure("wamid.1")).await;
}

#[tokio::test]
#[ignore = "takes ten seconds; .ci/run runs it"]
async fn a_body_that_never_ends_is_asked_for_again_in_time() {
    let app = TestApp::start().await;
    let ends = UNFINISHED.map(|case| {
        let (address, request) = (app.service.address, request("wamid.1", case));
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&request).await.unwrap();
            let mut answer = Vec::new();
            timeout(Duration::from_secs(12), stream.read_to_end(&mut answer))
                .await
                .expect("an end")
                .unwrap();
            assert!(
                answer.starts_with(b"HTTP/1.1 503"),
                "{case:?}: {}",
                answer.escape_ascii()
            );
        })
    });
    for end in ends {
        end.await.unwrap();
    }
    assert_eq!(recorded(&app).await, BTreeSet::new());
}
