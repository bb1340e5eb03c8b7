//! How soon Meta is asked: from the first failure of an account to the look-up at a fake Graph.

use std::error::Error;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;
use lockwatch::embedded::Embedded;
use lockwatch::meta::compose::StatusCallback;
use lockwatch::simulator::{Scenario, Simulator};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::load::{Kind, Load, read_status, request};
use crate::serve::{ACCESS_TOKEN, APP_SECRET, Serve};
use crate::sides::create_database;

const SAMPLES: usize = 300;
/// Below the budget of descriptors and of patience: an account is locked every so often.
const APART: Duration = Duration::from_millis(30);
const LATEST: Duration = Duration::from_secs(10);

/// Prints the line. Whether p50 is within 20 ms and p99 within 250 ms.
pub async fn measure(postgres: &Embedded, under_load: bool) -> Result<bool, Box<dyn Error>> {
    let url = create_database(postgres).await?;
    let simulator = elsewhere()?;
    for sample in 0..SAMPLES {
        simulator.script(&node(sample), [Scenario::Available]);
    }
    let settings = [
        ("META_GRAPH_URL", simulator.url()),
        ("META_ACCESS_TOKEN", ACCESS_TOKEN.to_owned()),
    ];
    let serve = Serve::start(
        &url,
        &settings
            .each_ref()
            .map(|(name, value)| (*name, value.as_str())),
    )?;
    let mut load = Load::connect(
        &[&serve.webhook],
        64,
        Kind::Failures {
            each: 1,
            accounts: 20,
        },
    )
    .await?;
    let whole = APART * u32::try_from(SAMPLES)?;
    load.prepare(if under_load {
        30_000 * usize::try_from(whole.as_secs() + 1)?
    } else {
        0
    });
    let (locked, sent) = tokio::join!(lock_accounts(&serve), load.turn(whole));
    let (locked, sent) = (locked?, sent?);

    let mut took = Histogram::<u64>::new(3)?;
    let deadline = Instant::now() + LATEST;
    for (sample, at) in locked.iter().enumerate() {
        let asked = loop {
            let asked = simulator
                .requests()
                .into_iter()
                .find(|request| request.node_id == node(sample));
            match asked {
                Some(request) => break request.at,
                None if Instant::now() > deadline => {
                    return Err("an account was never looked up".into());
                }
                None => sleep(Duration::from_millis(10)).await,
            }
        };
        took.record(u64::try_from((asked - *at).as_micros())?)?;
    }
    let [p50, p99] = [0.5, 0.99].map(|quantile| took.value_at_quantile(quantile) as f64 / 1000.0);
    let kept = p50 <= 20.0 && p99 <= 250.0;
    println!(
        "first failure to look-up, {:.0} callbacks/s beside it: p50 {p50:.1} ms (bar 20), p99 {p99:.1} ms (bar 250){}",
        sent.acknowledged as f64 / sent.elapsed.as_secs_f64(),
        if kept { "" } else { "  MISSED" }
    );
    Ok(kept)
}

fn node(sample: usize) -> String {
    format!("20{sample:06}")
}

/// A fake Graph on a thread of its own: what it notes down must not wait for the load.
fn elsewhere() -> Result<Simulator, Box<dyn Error>> {
    let (started, simulator) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let _ = started.send(Simulator::start(ACCESS_TOKEN, APP_SECRET).await);
            std::future::pending::<()>().await;
        });
    });
    Ok(simulator.recv()??)
}

/// Locks one account after the other; when each first failure was sent.
async fn lock_accounts(serve: &Serve) -> Result<Vec<Instant>, Box<dyn Error>> {
    let mut stream = TcpStream::connect(&serve.webhook).await?;
    let (mut locked, mut answer) = (Vec::with_capacity(SAMPLES), Vec::new());
    for sample in 0..SAMPLES {
        sleep(APART).await;
        let failure = StatusCallback::new().at(OffsetDateTime::now_utc());
        let request = request(
            &failure
                .failed(&format!("30{sample:06}"), &node(sample), "wamid.first")
                .into_body(),
        );
        locked.push(Instant::now());
        tokio::io::AsyncWriteExt::write_all(&mut stream, &request).await?;
        if read_status(&mut stream, &mut answer).await? != 200 {
            return Err("a first failure was refused".into());
        }
    }
    Ok(locked)
}
