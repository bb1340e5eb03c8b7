//! Broken, slow and odd answers of the network.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use lockwatch::graph::Graph;
use lockwatch::meta::health::Answer;
use lockwatch::meta::signature::appsecret_proof;
use lockwatch::simulator::{Scenario, Simulator};
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{look_up_scripts, number_at};
use crate::support::scripted_server::Step::{KeepOpen, Repeat, Reset, SendBytes};
use crate::support::scripted_server::{ScriptedServer, Step, answer};
use crate::support::{ACCESS_TOKEN, APP_SECRET, NUMBER, graph_client, waba};

const HEALTH: &str = concat!(
    r#"{"health_status":{"entities":[{"entity_type":"WABA","#,
    r#""can_send_message":"BLOCKED","#,
    r#""errors":[{"error_code":141006,"error_description":"payment!"}]}]}}"#
);

fn send(bytes: impl AsRef<[u8]>) -> Step {
    SendBytes(bytes.as_ref().to_vec())
}

fn client_for(url: &str) -> Graph {
    graph_client(url, &[SecretString::from(APP_SECRET)], Some(ACCESS_TOKEN))
}

/// Makes one look-up, which must fail. Returns the reason and the seconds that it took.
async fn fail_look_up(url: &str) -> (String, f64) {
    let check = client_for(url).look_up(&waba(), NUMBER, None).await;
    let Answer::Unreachable(reason) = check.answer else {
        panic!("{check:?}")
    };
    for secret in [
        ACCESS_TOKEN,
        APP_SECRET,
        &appsecret_proof(APP_SECRET, ACCESS_TOKEN),
    ] {
        assert!(!reason.contains(secret), "{reason}");
    }
    (reason, check.duration.as_secs_f64())
}

/// The name of a case, and the script of its answer.
type Case = (&'static str, Vec<Step>);

const CHUNKED_HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
/// A head whose body never comes completely.
const LONG_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";

fn half_of_health() -> &'static str {
    &HEALTH[..HEALTH.len() / 2]
}

#[tokio::test]
async fn a_broken_answer_is_asked_for_again() {
    let groups = [
        ("error sending request", answers_without_a_valid_head()),
        ("body", incomplete_bodies()),
        (
            "HTTP 101",
            vec![(
                "another protocol",
                vec![send(
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
                )],
            )],
        ),
        (
            "HTTP 204",
            vec![("no content", vec![send("HTTP/1.1 204 No Content\r\n\r\n")])],
        ),
        (
            "HTTP 206",
            vec![("a partial content", answer("206 Partial Content", HEALTH))],
        ),
        ("not a JSON object", bodies_that_are_not_an_object()),
        ("longer than 256 KiB", bodies_over_the_limit()),
    ];
    let cases: Vec<_> = groups
        .into_iter()
        .flat_map(|(reason, cases)| cases.into_iter().map(move |case| (reason, case)))
        .collect();
    let rows = look_up_scripts(cases.iter().map(|(_, (_, script))| script.clone()))
        .await
        .rows;
    for (row, (reason, (case, _))) in rows.iter().zip(&cases) {
        row.assert_unreachable(case);
        assert!(row.error().contains(reason), "{case}: {}", row.error());
        assert!(row.duration_ms < 5_000, "{case}: {row:?}");
    }
}

fn answers_without_a_valid_head() -> Vec<Case> {
    let start_of_head = "HTTP/1.1 200 OK\r\ncontent-";
    vec![
        ("closed before the head", vec![]),
        ("reset before the head", vec![Reset]),
        ("closed within the head", vec![send(start_of_head)]),
        ("reset within the head", vec![send(start_of_head), Reset]),
        (
            "a head of a megabyte",
            vec![
                send("HTTP/1.1 200 OK\r\nx: "),
                SendBytes(vec![b'x'; 1 << 20]),
            ],
        ),
        (
            "a thousand headers",
            answer(&format!("200 OK{}", "\r\nx: y".repeat(1000)), HEALTH),
        ),
        ("two lengths", answer("200 OK\r\ncontent-length: 7", HEALTH)),
        (
            "an invalid length",
            vec![send("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n")],
        ),
        ("not HTTP", vec![send("220 mail.example.com ESMTP\r\n")]),
        ("a TLS alert", vec![send([0x15, 3, 1, 0, 2, 2, 0x46])]),
        (
            "unexpected HTTP/2",
            vec![send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")],
        ),
    ]
}

fn incomplete_bodies() -> Vec<Case> {
    let half = half_of_health();
    let chunk_without_end = format!("{:x}\r\n{HEALTH}\r\n", HEALTH.len());
    vec![
        ("closed within the body", vec![send(LONG_HEAD), send(half)]),
        (
            "reset within the body",
            vec![send(LONG_HEAD), send(half), Reset],
        ),
        (
            "closed within a chunk",
            vec![send(CHUNKED_HEAD), send("ff\r\n"), send(half)],
        ),
        (
            "closed before the last chunk",
            vec![send(CHUNKED_HEAD), send(chunk_without_end)],
        ),
        (
            "a chunk without a length",
            vec![send(CHUNKED_HEAD), send("nothing\r\n"), send(HEALTH)],
        ),
        (
            "a chunk of the maximum length",
            vec![send(CHUNKED_HEAD), send("ffffffffffffffff\r\n"), send(half)],
        ),
    ]
}

fn bodies_that_are_not_an_object() -> Vec<Case> {
    vec![
        ("an empty body", answer("200 OK", "")),
        (
            "a page",
            answer("200 OK\r\ncontent-type: text/html", "<html>"),
        ),
        ("half an object", answer("200 OK", half_of_health())),
        ("two objects", answer("200 OK", format!("{HEALTH}{HEALTH}"))),
        ("a list", answer("200 OK", format!("[{HEALTH}]"))),
        ("noise", answer("200 OK", (0..=255).collect::<Vec<u8>>())),
        // The client did not ask for compression and does not decompress: a few bytes could become
        // gigabytes.
        (
            "compressed",
            answer(
                "200 OK\r\ncontent-encoding: gzip",
                [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
            ),
        ),
    ]
}

fn bodies_over_the_limit() -> Vec<Case> {
    let chunk = [&b"8000\r\n"[..], &[b' '; 0x8000], b"\r\n"].concat();
    vec![
        (
            "too long by its own length",
            vec![
                send("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n"),
                Repeat(vec![b' '; 65536], Duration::ZERO),
            ],
        ),
        (
            "endless",
            vec![send(CHUNKED_HEAD), Repeat(chunk, Duration::ZERO)],
        ),
        (
            "endless until it closes",
            vec![
                send("HTTP/1.0 200 OK\r\n\r\n"),
                Repeat(vec![b'{'; 65536], Duration::ZERO),
            ],
        ),
    ]
}

#[tokio::test]
async fn a_slow_answer_times_out_after_ten_seconds() {
    let drip = |byte: &str| Repeat(byte.into(), Duration::from_millis(200));
    let slow: Vec<Case> = vec![
        ("silence", vec![KeepOpen]),
        (
            "a head byte by byte",
            vec![send("HTTP/1.1 200 OK\r\nx: "), drip("x")],
        ),
        (
            "a head that never ends",
            vec![send("HTTP/1.1 200 OK\r\n"), drip("x: y\r\n")],
        ),
        (
            "early hints for ever",
            vec![drip("HTTP/1.1 103 Early Hints\r\n\r\n")],
        ),
        (
            "nothing but continue",
            vec![Repeat(
                b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100),
                Duration::from_millis(10),
            )],
        ),
        ("a body byte by byte", vec![send(LONG_HEAD), drip(" ")]),
        ("a body that does not come", vec![send(LONG_HEAD), KeepOpen]),
        (
            "a body that stops",
            vec![send(LONG_HEAD), send(&HEALTH[..50]), KeepOpen],
        ),
        (
            "chunks byte by byte",
            vec![send(CHUNKED_HEAD), drip("1\r\n \r\n")],
        ),
        (
            "a chunk length that never ends",
            vec![send(format!("{CHUNKED_HEAD}1;")), drip("x")],
        ),
    ];
    let rows = look_up_scripts(slow.iter().map(|(_, script)| script.clone()))
        .await
        .rows;
    for (row, (case, _)) in rows.iter().zip(&slow) {
        row.assert_unreachable(case);
        assert!(
            row.error().contains("within 10 s"),
            "{case}: {}",
            row.error()
        );
        assert!(
            (9_900..11_500).contains(&row.duration_ms),
            "{case}: {row:?}"
        );
    }
}

#[tokio::test]
async fn an_odd_but_readable_answer_is_read() {
    let whole = |head: &str| answer(head, HEALTH);
    let SendBytes(usual) = whole("200 OK").remove(0) else {
        unreachable!()
    };
    let byte_by_byte = usual.iter().map(|byte| SendBytes(vec![*byte]));
    let chunked = format!(
        "{CHUNKED_HEAD}5;x=y\r\n{}\r\n{:x}\r\n{}\r\n0\r\nx: y\r\n\r\n",
        &HEALTH[..5],
        HEALTH.len() - 5,
        &HEALTH[5..]
    );
    let second_answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let pieces: Vec<_> = HEALTH.as_bytes().split(|byte| *byte == b'!').collect();
    let not_utf8 = pieces.join(&b"\xff"[..]);
    let nested = format!("{{\"x\":{}{},", "[".repeat(100_000), "]".repeat(100_000));
    let odd: Vec<Case> = vec![
        ("the wrong type", whole("200 OK\r\ncontent-type: image/png")),
        ("no type and no reason", whole("200")),
        (
            "HTTP/1.0 until it closes",
            vec![send(format!("HTTP/1.0 200 OK\r\n\r\n{HEALTH}"))],
        ),
        ("byte by byte", byte_by_byte.collect()),
        // Kept open: if the answer comes after hints and the connection ends, hyper may see the end
        // first.
        (
            "early hints first",
            vec![
                send("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(50)),
                SendBytes(usual.clone()),
                KeepOpen,
            ],
        ),
        ("in chunks", vec![send(chunked)]),
        (
            "with another answer after it",
            vec![SendBytes(usual), send(second_answer)],
        ),
        ("bytes that are not UTF-8", answer("200 OK", not_utf8)),
        (
            "a hundred thousand nested lists",
            answer("200 OK", HEALTH.replacen('{', &nested, 1)),
        ),
    ];
    let rows = look_up_scripts(odd.iter().map(|(_, script)| script.clone()))
        .await
        .rows;
    for (row, (case, _)) in rows.iter().zip(&odd) {
        row.assert_result("answered", "payment", 265.0..=330.0, case);
    }
}

#[tokio::test]
async fn a_connection_closed_after_its_answer_is_not_reused() {
    let mut script = answer("200 OK", HEALTH);
    // The connection is closed when the next request comes, without reading it.
    script.push(KeepOpen);
    let server = ScriptedServer::start(HashMap::from([(NUMBER.to_owned(), script)])).await;
    let graph = client_for(&server.url);
    for _ in 0..3 {
        let check = graph.look_up(&waba(), NUMBER, None).await;
        assert!(!matches!(check.answer, Answer::Unreachable(_)), "{check:?}");
    }
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let canary_address = canary.local_addr().unwrap();
    let mut redirects = Vec::new();
    for status in [300, 301, 302, 303, 304, 305, 306, 307, 308, 399] {
        for target in [
            &format!("http://{canary_address}/x"),
            &format!("//{canary_address}/x"),
            "/v25.0/1",
            "1",
            "http://[",
            "",
        ] {
            redirects.push((status, target.to_owned()));
        }
    }
    let scripts = redirects
        .iter()
        .map(|(status, target)| answer(&format!("{status} Elsewhere\r\nlocation: {target}"), ""));
    let look_ups = look_up_scripts(scripts.collect::<Vec<_>>()).await;
    for (row, (status, target)) in look_ups.rows.iter().zip(&redirects) {
        row.assert_unreachable(target);
        assert!(
            row.error().contains(&format!("HTTP {status}")),
            "{status} {target}: {row:?}"
        );
    }
    assert!(
        !look_ups
            .server
            .requested_paths()
            .contains(&"/v25.0/1".to_owned()),
        "a redirect on the same host was followed"
    );
    assert!(
        timeout(Duration::from_millis(1), canary.accept())
            .await
            .is_err(),
        "the canary was contacted"
    );
}

#[tokio::test]
async fn a_connection_attempt_times_out_after_three_seconds() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let unused_address = unused.local_addr().unwrap();
    drop(unused);
    let (full, _waiting) = start_full_listener().await;
    let full_address = full.local_addr().unwrap();
    let silent = ScriptedServer::start(HashMap::new()).await;
    let plain_address = start_plain_http_server().await;
    let cases = [
        (format!("http://{unused_address}"), 0.0..1.0, "refused"),
        (
            format!("http://{full_address}"),
            2.9..4.5,
            "no connection within 3 s",
        ),
        (
            silent.url.replace("http://", "https://"),
            2.9..4.5,
            "no connection within 3 s",
        ),
        (
            format!("https://{plain_address}"),
            0.0..1.0,
            "corrupt message",
        ),
        ("http://localhost:1".to_owned(), 0.0..1.0, "refused"),
    ];
    let failures = join_all(cases.iter().map(|(url, _, _)| fail_look_up(url))).await;
    for ((reason, seconds), (url, expected_seconds, expected_reason)) in failures.iter().zip(&cases)
    {
        assert!(
            reason.contains(expected_reason) && expected_seconds.contains(seconds),
            "{url} took {seconds} s: {reason}"
        );
    }
}

/// Starts a listener whose accept queue is full. Returns the connections that fill it as well.
async fn start_full_listener() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connection) =
        timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        waiting.push(connection.unwrap());
    }
    (listener, waiting)
}

/// Starts a server that answers a TLS handshake with plain HTTP.
async fn start_plain_http_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.try_write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    address
}

#[tokio::test]
async fn the_simulator_fails_as_the_network_does() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let faults = [
        (
            Scenario::Redirect("http://127.0.0.1:1/".to_owned()),
            "HTTP 302",
        ),
        (Scenario::Endless, "longer than 256 KiB"),
        (Scenario::Reset, "error"),
        (Scenario::Garbage, "not a JSON object"),
        (Scenario::SlowBody, "within 10 s"),
    ];
    let graph = client_for(&simulator.url());
    let look_ups = faults
        .into_iter()
        .enumerate()
        .map(async |(n, (scenario, expected))| {
            simulator.set_scenarios(&number_at(n), [scenario.clone()]);
            let check = graph.look_up(&waba(), &number_at(n), None).await;
            assert!(
                matches!(&check.answer, Answer::Unreachable(reason) if reason.contains(expected)),
                "{scenario:?}: {check:?}"
            );
        });
    join_all(look_ups).await;
}
