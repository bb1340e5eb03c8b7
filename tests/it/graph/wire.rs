//! The network at its worst.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use lockwatch::graph::Graph;
use lockwatch::meta::health::Answer;
use lockwatch::meta::signature::appsecret_proof;
use lockwatch::simulator::{Scenario, Simulator};
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{look_up_each, number};
use crate::support::wire::Move::{Hold, Repeat, Reset, Say};
use crate::support::wire::{Move, Wire, answer};
use crate::support::{ACCESS_TOKEN, APP_SECRET, NUMBER, graph, waba};

const HEALTH: &str = r#"{"health_status":{"entities":[{"entity_type":"WABA","id":"1","can_send_message":"BLOCKED","errors":[{"error_code":141006,"error_description":"payment!"}]}]}}"#;

fn say(text: impl AsRef<[u8]>) -> Move {
    Say(text.as_ref().to_vec())
}

/// A client that asks there.
fn asking(url: &str) -> Graph {
    graph(url, &[SecretString::from(APP_SECRET)], Some(ACCESS_TOKEN))
}

/// One look-up that must come to nothing: what it says, and the seconds that it took.
async fn fails(url: &str) -> (String, f64) {
    let check = asking(url).look_up(&waba(), NUMBER).await;
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

#[tokio::test]
async fn an_answer_that_breaks_is_asked_for_again() {
    let half = &HEALTH[..HEALTH.len() / 2];
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let whole = |head: &str| answer(head, HEALTH);
    let faults: Vec<(&str, Vec<Move>, &str)> = vec![
        ("closed before the head", vec![], "error sending request"),
        (
            "reset before the head",
            vec![Reset],
            "error sending request",
        ),
        (
            "closed within the head",
            vec![say("HTTP/1.1 200 OK\r\ncontent-")],
            "error sending request",
        ),
        (
            "reset within the head",
            vec![say("HTTP/1.1 200 OK\r\ncontent-"), Reset],
            "error sending request",
        ),
        ("closed within the body", vec![say(head), say(half)], "body"),
        (
            "reset within the body",
            vec![say(head), say(half), Reset],
            "body",
        ),
        (
            "closed within a chunk",
            vec![say(chunked), say("ff\r\n"), say(half)],
            "body",
        ),
        (
            "closed before the last chunk",
            vec![
                say(chunked),
                say(format!("{:x}\r\n{HEALTH}\r\n", HEALTH.len())),
            ],
            "body",
        ),
        (
            "a chunk without a length",
            vec![say(chunked), say("nothing\r\n"), say(HEALTH)],
            "body",
        ),
        (
            "a chunk of all there is",
            vec![say(chunked), say("ffffffffffffffff\r\n"), say(half)],
            "body",
        ),
        (
            "a head of a megabyte",
            vec![say("HTTP/1.1 200 OK\r\nx: "), Say(vec![b'x'; 1 << 20])],
            "error sending request",
        ),
        (
            "a thousand headers",
            whole(&format!("200 OK{}", "\r\nx: y".repeat(1000))),
            "error sending request",
        ),
        (
            "two lengths",
            whole("200 OK\r\ncontent-length: 7"),
            "error sending request",
        ),
        (
            "a length that is none",
            vec![say("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n")],
            "error sending request",
        ),
        (
            "not HTTP",
            vec![say("220 mail.example.com ESMTP\r\n")],
            "error sending request",
        ),
        (
            "a TLS alert",
            vec![say([0x15, 3, 1, 0, 2, 2, 0x46])],
            "error sending request",
        ),
        (
            "HTTP/2 without being asked",
            vec![say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")],
            "error sending request",
        ),
        (
            "another protocol",
            vec![say(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            )],
            "HTTP 101",
        ),
        (
            "no content",
            vec![say("HTTP/1.1 204 No Content\r\n\r\n")],
            "HTTP 204",
        ),
        ("an empty body", answer("200 OK", ""), "not a JSON object"),
        (
            "a page",
            answer("200 OK\r\ncontent-type: text/html", "<html>"),
            "not a JSON object",
        ),
        (
            "half an object",
            answer("200 OK", half),
            "not a JSON object",
        ),
        (
            "two objects",
            answer("200 OK", format!("{HEALTH}{HEALTH}")),
            "not a JSON object",
        ),
        (
            "a list",
            answer("200 OK", format!("[{HEALTH}]")),
            "not a JSON object",
        ),
        (
            "noise",
            answer("200 OK", (0..=255).collect::<Vec<u8>>()),
            "not a JSON object",
        ),
        // Nobody asked for it, so nobody unpacks it: a few bytes could become gigabytes.
        (
            "packed",
            answer(
                "200 OK\r\ncontent-encoding: gzip",
                [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
            ),
            "not a JSON object",
        ),
        ("a part", whole("206 Partial Content"), "HTTP 206"),
        (
            "too long by its own word",
            vec![
                say("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n"),
                Repeat(vec![b' '; 65536], Duration::ZERO),
            ],
            "longer than 256 KiB",
        ),
        (
            "endless",
            vec![
                say(chunked),
                Repeat(
                    [&b"8000\r\n"[..], &[b' '; 0x8000], b"\r\n"].concat(),
                    Duration::ZERO,
                ),
            ],
            "longer than 256 KiB",
        ),
        (
            "endless until it closes",
            vec![
                say("HTTP/1.0 200 OK\r\n\r\n"),
                Repeat(vec![b'{'; 65536], Duration::ZERO),
            ],
            "longer than 256 KiB",
        ),
    ];
    let rows = look_up_each(faults.iter().map(|(_, script, _)| script.clone()))
        .await
        .looked_up;
    for (row, (what, _, says)) in rows.iter().zip(&faults) {
        row.is_unreachable(what);
        assert!(row.error().contains(says), "{what}: {}", row.error());
        assert!(row.duration_ms < 5_000, "{what}: {row:?}");
    }
}

#[tokio::test]
async fn whoever_is_slow_is_given_up_after_ten_seconds() {
    let drop = |byte: &str| Repeat(byte.into(), Duration::from_millis(200));
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
    let slow: Vec<(&str, Vec<Move>)> = vec![
        ("silence", vec![Hold]),
        (
            "a head byte by byte",
            vec![say("HTTP/1.1 200 OK\r\nx: "), drop("x")],
        ),
        (
            "a head that never ends",
            vec![say("HTTP/1.1 200 OK\r\n"), drop("x: y\r\n")],
        ),
        (
            "early hints for ever",
            vec![drop("HTTP/1.1 103 Early Hints\r\n\r\n")],
        ),
        (
            "nothing but continue",
            vec![Repeat(
                b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100),
                Duration::from_millis(10),
            )],
        ),
        ("a body byte by byte", vec![say(head), drop(" ")]),
        ("a body that stays away", vec![say(head), Hold]),
        (
            "a body that stops",
            vec![say(head), say(&HEALTH[..50]), Hold],
        ),
        (
            "chunks byte by byte",
            vec![
                say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
                drop("1\r\n \r\n"),
            ],
        ),
        (
            "a chunk's length that never ends",
            vec![
                say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;"),
                drop("x"),
            ],
        ),
    ];
    let rows = look_up_each(slow.iter().map(|(_, script)| script.clone()))
        .await
        .looked_up;
    for (row, (what, _)) in rows.iter().zip(&slow) {
        row.is_unreachable(what);
        assert!(
            row.error().contains("within 10 s"),
            "{what}: {}",
            row.error()
        );
        assert!(
            (9_900..11_500).contains(&row.duration_ms),
            "{what}: {row:?}"
        );
    }
}

#[tokio::test]
async fn what_can_be_read_is_read_however_oddly_it_comes() {
    let whole = |head: &str| answer(head, HEALTH);
    let in_bytes = |bytes: Vec<u8>| {
        bytes
            .into_iter()
            .map(|byte| Say(vec![byte]))
            .collect::<Vec<_>>()
    };
    let Say(usual) = whole("200 OK").remove(0) else {
        unreachable!()
    };
    let odd: Vec<(&str, Vec<Move>)> = vec![
        ("the wrong type", whole("200 OK\r\ncontent-type: image/png")),
        ("no type and no reason", whole("200")),
        (
            "HTTP/1.0 until it closes",
            vec![say(format!("HTTP/1.0 200 OK\r\n\r\n{HEALTH}"))],
        ),
        ("byte by byte", in_bytes(usual.clone())),
        // Held: of an answer behind hints and an end, hyper may see the end first.
        (
            "early hints first",
            vec![
                say("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(50)),
                Say(usual.clone()),
                Hold,
            ],
        ),
        (
            "in chunks",
            vec![say(format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\n{}\r\n{:x}\r\n{}\r\n0\r\nx: y\r\n\r\n",
                &HEALTH[..5],
                HEALTH.len() - 5,
                &HEALTH[5..]
            ))],
        ),
        (
            "with more after it",
            vec![
                Say(usual),
                say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
            ],
        ),
        (
            "bytes that are no text",
            answer(
                "200 OK",
                HEALTH
                    .as_bytes()
                    .split(|b| *b == b'!')
                    .collect::<Vec<_>>()
                    .join(&b"\xff"[..]),
            ),
        ),
        (
            "a hundred thousand lists",
            answer(
                "200 OK",
                HEALTH.replacen(
                    '{',
                    &format!("{{\"x\":{}{},", "[".repeat(100_000), "]".repeat(100_000)),
                    1,
                ),
            ),
        ),
    ];
    let rows = look_up_each(odd.iter().map(|(_, script)| script.clone()))
        .await
        .looked_up;
    for (row, (what, _)) in rows.iter().zip(&odd) {
        row.is("answered", "payment", 265.0..=330.0, what);
    }
}

#[tokio::test]
async fn what_closes_after_an_answer_takes_no_later_look_up_with_it() {
    let mut script = answer("200 OK", HEALTH);
    // Closes when it is asked again, with the request unread.
    script.push(Hold);
    let wire = Wire::start(HashMap::from([(NUMBER.to_owned(), script)])).await;
    let graph = asking(&wire.url);
    for _ in 0..3 {
        let check = graph.look_up(&waba(), NUMBER).await;
        assert!(!matches!(check.answer, Answer::Unreachable(_)), "{check:?}");
    }
}

#[tokio::test]
async fn no_redirect_is_followed_wherever_it_leads() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = canary.local_addr().unwrap();
    let mut redirects = Vec::new();
    for status in [300, 301, 302, 303, 304, 305, 306, 307, 308, 399] {
        for to in [
            &format!("http://{there}/x"),
            &format!("//{there}/x"),
            "/v25.0/1",
            "1",
            "http://[",
            "",
        ] {
            redirects.push((status, to.to_owned()));
        }
    }
    let scripts = redirects
        .iter()
        .map(|(status, to)| answer(&format!("{status} Elsewhere\r\nlocation: {to}"), ""));
    let round = look_up_each(scripts.collect::<Vec<_>>()).await;
    for (row, (status, to)) in round.looked_up.iter().zip(&redirects) {
        row.is_unreachable(to);
        assert!(
            row.error().contains(&format!("HTTP {status}")),
            "{status} {to}: {row:?}"
        );
    }
    assert!(
        !round.wire.asked().contains(&"/v25.0/1".to_owned()),
        "neither on the same host"
    );
    assert!(
        timeout(Duration::from_millis(1), canary.accept())
            .await
            .is_err(),
        "the canary was contacted"
    );
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_given_up_after_three_seconds() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let full = TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(1).unwrap();
    let full_address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connection) =
        timeout(Duration::from_millis(300), TcpStream::connect(full_address)).await
    {
        waiting.push(connection.unwrap());
    }
    let silent = Wire::start(HashMap::new()).await;
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_address = plain.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = plain.accept().await {
            let _ = socket.try_write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let tls = |url: &str| url.replace("http://", "https://");
    let cases = [
        (format!("http://{nobody}"), 0.0..1.0, "refused"),
        (
            format!("http://{full_address}"),
            2.9..4.5,
            "no connection within 3 s",
        ),
        (tls(&silent.url), 2.9..4.5, "no connection within 3 s"),
        (
            format!("https://{plain_address}"),
            0.0..1.0,
            "corrupt message",
        ),
        ("http://localhost:1".to_owned(), 0.0..1.0, "refused"),
    ];
    let fates = join_all(cases.iter().map(|(url, _, _)| fails(url))).await;
    for ((reason, seconds), (url, within, says)) in fates.iter().zip(&cases) {
        assert!(
            reason.contains(says) && within.contains(seconds),
            "{url} took {seconds} s: {reason}"
        );
    }
    drop((full, waiting));
}

#[tokio::test]
async fn the_simulator_breaks_as_the_network_does() {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let faults = [
        (
            Scenario::Redirect("http://127.0.0.1:1/".to_owned()),
            "HTTP 302",
        ),
        (Scenario::Endless, "longer than 256 KiB"),
        (Scenario::Reset, "error"),
        (Scenario::Garbage, "not a JSON object"),
        (Scenario::ErrorInOk, "(131042)"),
        (Scenario::Drip, "within 10 s"),
    ];
    let graph = asking(&simulator.url());
    let look_ups = faults
        .into_iter()
        .enumerate()
        .map(async |(n, (scenario, says))| {
            simulator.script(&number(n), [scenario.clone()]);
            let check = graph.look_up(&waba(), &number(n)).await;
            assert!(
                matches!(&check.answer, Answer::Unreachable(reason) if reason.contains(says)),
                "{scenario:?}: {check:?}"
            );
        });
    join_all(look_ups).await;
}
