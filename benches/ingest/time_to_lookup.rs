//! The time from the first failure of an account to the look-up that arrives at a fake Graph.

use std::error::Error;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use lockwatch::embedded::EmbeddedPostgres;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::simulator::{Scenario, Simulator};
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::contenders::create_database;
use crate::load::{read_status, signed_request};
use crate::serve::{ACCESS_TOKEN, APP_SECRET, Serve};
use crate::time_to_row::send_steadily;

const SAMPLE_COUNT: usize = 300;
/// The time between two accounts: long enough for the descriptors that the look-ups hold, short
/// enough to end soon.
const LOCK_INTERVAL: Duration = Duration::from_millis(30);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
const P50_LIMIT_MS: f64 = 20.0;
const P99_LIMIT_MS: f64 = 150.0;

/// Prints the line. Returns whether p50 and p99 are within their limits.
pub async fn measure(
    postgres: &EmbeddedPostgres,
    under_load: bool,
) -> Result<bool, Box<dyn Error>> {
    let url = create_database(postgres).await?;
    let simulator = start_simulator()?;
    for sample in 0..SAMPLE_COUNT {
        simulator.set_scenarios(&number_of(sample), [Scenario::Available]);
    }
    let graph_url = simulator.url();
    let settings = [
        ("META_GRAPH_URL", graph_url.as_str()),
        ("META_ACCESS_TOKEN", ACCESS_TOKEN),
    ];
    let serve = Serve::start(&url, &settings)?;
    let duration = LOCK_INTERVAL * u32::try_from(SAMPLE_COUNT)?;
    let load = async {
        if under_load {
            return send_steadily(&serve.webhook, duration).await;
        }
        Ok(0)
    };
    let (sent_at, sent) = tokio::join!(lock_accounts(&serve), load);
    let (sent_at, sent) = (sent_at?, sent?);

    let times = times_to_lookup(&simulator, &sent_at).await?;
    let [p50, p99] = [0.5, 0.99].map(|quantile| times.value_at_quantile(quantile) as f64 / 1000.0);
    let is_kept = p50 <= P50_LIMIT_MS && p99 <= P99_LIMIT_MS;
    println!(
        "first failure to look-up, {:.0} callbacks/s beside it: \
         p50 {p50:.1} ms (limit {P50_LIMIT_MS}), p99 {p99:.1} ms (limit {P99_LIMIT_MS}){}",
        sent as f64 / duration.as_secs_f64(),
        if is_kept { "" } else { "  MISSED" }
    );
    Ok(is_kept)
}

fn number_of(sample: usize) -> String {
    format!("20{sample:06}")
}

/// Starts a fake Graph on a thread of its own, so that the load does not delay what it records.
fn start_simulator() -> Result<Simulator, Box<dyn Error>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let _ = sender.send(Simulator::start(ACCESS_TOKEN, APP_SECRET).await);
            std::future::pending::<()>().await;
        });
    });
    Ok(receiver.recv()??)
}

/// Locks one account after the other. Returns the time at which each first failure was sent.
async fn lock_accounts(serve: &Serve) -> Result<Vec<Instant>, Box<dyn Error>> {
    let mut stream = TcpStream::connect(&serve.webhook).await?;
    let (mut sent_at, mut answer) = (Vec::with_capacity(SAMPLE_COUNT), Vec::new());
    for sample in 0..SAMPLE_COUNT {
        sleep(LOCK_INTERVAL).await;
        let account = format!("30{sample:06}");
        let number = number_of(sample);
        let body = StatusCallback::new()
            .timestamp(OffsetDateTime::now_utc())
            .failed(&account, &number, "wamid.first")
            .into_body();
        let request = signed_request(&body);
        sent_at.push(Instant::now());
        stream.write_all(&request).await?;
        if read_status(&mut stream, &mut answer).await? != 200 {
            return Err("a first failure was refused".into());
        }
    }
    Ok(sent_at)
}

/// Waits for the first look-up of each account. Returns the times to them in microseconds.
async fn times_to_lookup(
    simulator: &Simulator,
    sent_at: &[Instant],
) -> Result<Histogram<u64>, Box<dyn Error>> {
    let mut times = Histogram::<u64>::new(3)?;
    let deadline = Instant::now() + LOOKUP_TIMEOUT;
    for (sample, sent_at) in sent_at.iter().enumerate() {
        let looked_up_at = loop {
            let requests = simulator.requests();
            match requests
                .into_iter()
                .find(|request| request.node_id == number_of(sample))
            {
                Some(request) => break request.at,
                None if Instant::now() > deadline => {
                    return Err("an account was never looked up".into());
                }
                None => sleep(Duration::from_millis(10)).await,
            }
        };
        times.record(u64::try_from((looked_up_at - *sent_at).as_micros())?)?;
    }
    Ok(times)
}
