//! The time from an answer to its rows, at a steady pace.

use std::error::Error;
use std::time::Duration;

use futures_util::future::try_join_all;
use lockwatch::embedded::EmbeddedPostgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::ONE_FAILURE;
use crate::contenders::create_database;
use crate::load::read_status;
use crate::serve::Serve;

const SENDERS: u32 = 20;
/// Each sender's pace: together 1,000 callbacks a second.
const SEND_INTERVAL: Duration = Duration::from_millis(20);
const DURATION: Duration = Duration::from_secs(10);
/// A bucket of `lockwatch_inbox_wait_seconds`.
const P99_LIMIT: &str = "0.05";

/// Prints the line. Returns whether 99 % of the callbacks are in their tables in time.
pub async fn measure(postgres: &EmbeddedPostgres) -> Result<bool, Box<dyn Error>> {
    let serve = Serve::start(&create_database(postgres).await?, &[])?;
    let started = Instant::now();
    let sent = send_steadily(&serve.webhook, DURATION).await?;
    let per_second = sent as f64 / started.elapsed().as_secs_f64();
    let metrics = loop {
        let metrics = scrape(&serve).await?;
        let recorded = value(&metrics, "lockwatch_failures_total{kind=\"recorded\"}")?;
        if recorded >= sent as f64 {
            break metrics;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let bucket = |le| format!("lockwatch_inbox_wait_seconds_bucket{{le=\"{le}\"}}");
    let in_time = value(&metrics, &bucket(P99_LIMIT))? / value(&metrics, &bucket("+Inf"))?;
    let is_kept = in_time >= 0.99;
    println!(
        "answer to row, {per_second:.0} callbacks/s: {:.2} % within {P99_LIMIT} s (min 99 %){}",
        in_time * 100.0,
        if is_kept { "" } else { "  MISSED" }
    );
    Ok(is_kept)
}

/// Sends 1,000 callbacks a second. Returns their number.
pub async fn send_steadily(address: &str, duration: Duration) -> Result<u64, Box<dyn Error>> {
    let counts = try_join_all((0..SENDERS).map(|_| send(address, duration))).await?;
    Ok(counts.iter().sum())
}

async fn send(address: &str, duration: Duration) -> Result<u64, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut pace = interval(SEND_INTERVAL);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (started, mut answer, mut sent) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < duration {
        pace.tick().await;
        stream.write_all(&ONE_FAILURE.build_request()).await?;
        if read_status(&mut stream, &mut answer).await? != 200 {
            return Err("a callback was refused".into());
        }
        sent += 1;
    }
    Ok(sent)
}

async fn scrape(serve: &Serve) -> Result<String, Box<dyn Error>> {
    let url = serve.admin_url("/metrics");
    let address = url
        .trim_start_matches("http://")
        .trim_end_matches("/metrics");
    let mut stream = TcpStream::connect(address).await?;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

fn value(metrics: &str, series: &str) -> Result<f64, Box<dyn Error>> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    Ok(line.ok_or("a series is missing")?.trim().parse()?)
}
