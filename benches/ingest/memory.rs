//! What `serve` takes of memory: at rest, and while millions of callbacks pass.

use std::error::Error;
use std::fs;
use std::time::Duration;

use lockwatch::embedded::Embedded;

use crate::load::{Kind, Load};
use crate::serve::Serve;
use crate::sides::create_database;

const AT_REST_MIB: f64 = 20.0;
/// Growth that is not flat any more.
const GROWTH: f64 = 1.10;
const TURN: Duration = Duration::from_secs(5);

/// Prints the lines. Whether it is small at rest, and flat over so many callbacks of either kind.
pub async fn measure(postgres: &Embedded, callbacks: u64) -> Result<bool, Box<dyn Error>> {
    let serve = Serve::start(&create_database(postgres).await?, &[])?;
    let at_rest = resident_mib(serve.pid())?;
    let mut kept = at_rest <= AT_REST_MIB;
    println!("memory at rest: {at_rest:.1} MiB (bar {AT_REST_MIB})");
    for (what, kind, share) in [
        ("quiet", Kind::Quiet { bytes: 600 }, 0.9),
        (
            "with one failure each",
            Kind::Failures {
                each: 1,
                accounts: 20,
            },
            0.1,
        ),
    ] {
        let wanted = (callbacks as f64 * share) as u64;
        let mut load = Load::connect(&[&serve.webhook], 64, kind).await?;
        let (mut sent, mut early) = (0, None);
        while sent < wanted {
            load.prepare(30_000 * usize::try_from(TURN.as_secs())?);
            sent += load.turn(TURN).await?.acknowledged;
            if sent >= wanted / 10 && early.is_none() {
                early = Some((sent, resident_mib(serve.pid())?));
            }
        }
        let (first, before) = early.ok_or("no callback was taken")?;
        let after = resident_mib(serve.pid())?;
        kept &= after <= before * GROWTH;
        println!(
            "memory after {first} callbacks {what}: {before:.1} MiB, after {sent}: {after:.1} MiB"
        );
    }
    Ok(kept)
}

fn resident_mib(pid: u32) -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
