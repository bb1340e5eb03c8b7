//! The memory of `serve`: at rest, and while millions of callbacks pass.

use std::error::Error;
use std::fs;
use std::time::Duration;

use lockwatch::embedded::EmbeddedPostgres;

use crate::ONE_FAILURE;
use crate::contenders::create_database;
use crate::load::{Load, Payload};
use crate::serve::Serve;

const AT_REST_LIMIT_MIB: f64 = 20.0;
/// The largest ratio of memory that still counts as flat.
const GROWTH_LIMIT: f64 = 1.10;
const TURN_DURATION: Duration = Duration::from_secs(5);

/// Prints the lines. Returns whether memory is small at rest, and does not grow over `callbacks`
/// callbacks: nine tenths without failures, then one tenth with one failure each.
pub async fn measure(postgres: &EmbeddedPostgres, callbacks: u64) -> Result<bool, Box<dyn Error>> {
    let serve = Serve::start(&create_database(postgres).await?, &[])?;
    let at_rest = resident_mib(serve.pid())?;
    let mut is_kept = at_rest <= AT_REST_LIMIT_MIB;
    println!("memory at rest: {at_rest:.1} MiB (limit {AT_REST_LIMIT_MIB})");
    for (description, payload, share) in [
        ("quiet", Payload::Quiet { bytes: 600 }, 0.9),
        ("with one failure each", ONE_FAILURE, 0.1),
    ] {
        let total = (callbacks as f64 * share) as u64;
        let mut load = Load::connect(&[&serve.webhook], 64, payload).await?;
        let (mut sent, mut early) = (0, None);
        while sent < total {
            load.prepare(30_000 * usize::try_from(TURN_DURATION.as_secs())?);
            sent += load.run_turn(TURN_DURATION).await?.acknowledged;
            if sent >= total / 10 && early.is_none() {
                early = Some((sent, resident_mib(serve.pid())?));
            }
        }
        let (first, before) = early.ok_or("no callback was acknowledged")?;
        let after = resident_mib(serve.pid())?;
        is_kept &= after <= before * GROWTH_LIMIT;
        println!(
            "memory after {first} callbacks {description}: {before:.1} MiB, \
             after {sent}: {after:.1} MiB"
        );
    }
    Ok(is_kept)
}

fn resident_mib(pid: u32) -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
