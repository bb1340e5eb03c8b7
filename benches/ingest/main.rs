//! How fast callbacks are taken, as ratios: `cargo bench --bench ingest`, or `-- NAME…` for some rows only.
//!
//! Servers, Postgres and load share this machine, so no figure means anything alone: short turns of ours and
//! of what it is compared with alternate, each on a database of its own, and medians are compared. Everything
//! is real: processes, sockets, signatures, fsync. Exits with 1 where a promised ratio is missed.

#![allow(unreachable_pub, reason = "a bench is no library")]

mod load;
mod memory;
mod peers;
mod promptness;
#[path = "../support/serve.rs"]
mod serve;
mod sides;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use lockwatch::embedded::Embedded;
use tokio_util::sync::CancellationToken;

use load::Kind;
use peers::Peer;
use sides::Side;

/// Short turns, many of them: the machine has other things to do now and then, and both sides get their
/// share of that.
const TURNS: usize = 20;
const TURN: Duration = Duration::from_millis(500);
const WARM_UP: usize = 4;
const CALLBACKS_FOR_MEMORY: u64 = 10_000_000;

const ONE: Kind = Kind::Failures {
    each: 1,
    accounts: 20,
};
const HUNDRED: Kind = Kind::Failures {
    each: 100,
    accounts: 20,
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if let [flag, peer, database] = &arguments[..]
        && flag == "--peer"
    {
        peers::run(peer, database)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The load has one thread: the other cores are the servers'.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(&arguments))
}

async fn measure(wanted: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let postgres = Embedded::start_temporary(None, true, &CancellationToken::new())?;
    println!(
        "PostgreSQL {}, fsync on; medians of {TURNS} turns of {} ms each",
        postgres.version(),
        TURN.as_millis()
    );
    println!("CPU: microseconds of server + Postgres's backends for each callback, or row\n");
    println!(
        "{:<34} {:>8} {:>8} {:>6} {:>6}  {:>12} {:>12} {:>9} {:>9}",
        "ours, compared with",
        "ours/s",
        "other/s",
        "ratio",
        "bar",
        "p99 ms ours",
        "other",
        "CPU ours",
        "other"
    );
    let is_wanted = |name: &str| {
        wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str()))
    };
    let mut kept = true;
    for row in rows() {
        if is_wanted(row.name) {
            kept &= row.measure(&postgres).await?;
        }
    }
    println!();
    if is_wanted("first failure to look-up") {
        kept &= promptness::measure(&postgres, false).await?;
        kept &= promptness::measure(&postgres, true).await?;
    }
    if is_wanted("memory") {
        kept &= memory::measure(&postgres, CALLBACKS_FOR_MEMORY).await?;
    }
    Ok(if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Two sides, and how they should compare.
struct Row {
    name: &'static str,
    ours: Setup,
    other: Setup,
    bar: f64,
}

/// What is on one side.
#[derive(Debug, Clone, Copy)]
struct Setup {
    what: What,
    kind: Kind,
    connections: usize,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Serve {
        processes: usize,
        capture: &'static str,
        rows_before: u64,
    },
    Peer(Peer),
    /// Postgres itself, in one session.
    Sql,
}

const SERVE: What = What::Serve {
    processes: 1,
    capture: "lockouts",
    rows_before: 0,
};

fn rows() -> Vec<Row> {
    let side = |what, kind, connections| Setup {
        what,
        kind,
        connections,
    };
    let (quiet, large) = (Kind::Quiet { bytes: 600 }, Kind::Quiet { bytes: 100_000 });
    let hot = Kind::Failures {
        each: 1,
        accounts: 1,
    };
    let two = What::Serve {
        processes: 2,
        capture: "lockouts",
        rows_before: 0,
    };
    let off = What::Serve {
        processes: 1,
        capture: "off",
        rows_before: 0,
    };
    let full = What::Serve {
        processes: 1,
        capture: "lockouts",
        rows_before: 10_000_000,
    };
    let row = |name, ours, other, bar| Row {
        name,
        ours,
        other,
        bar,
    };
    vec![
        row(
            "quiet, 600 B: bare axum",
            side(SERVE, quiet, 64),
            side(What::Peer(Peer::Bare), quiet, 64),
            0.90,
        ),
        row(
            "quiet, 100 kB: axum + HMAC",
            side(SERVE, large, 16),
            side(What::Peer(Peer::Verifying), large, 16),
            0.90,
        ),
        row(
            "one failure, 64: an INSERT each",
            side(SERVE, ONE, 64),
            side(What::Peer(Peer::Inserting), ONE, 64),
            2.5,
        ),
        row(
            "one failure, 256: an INSERT each",
            side(SERVE, ONE, 256),
            side(What::Peer(Peer::Inserting), ONE, 256),
            4.0,
        ),
        row(
            "100 failures: Postgres alone",
            side(SERVE, HUNDRED, 64),
            side(What::Sql, HUNDRED, 1),
            0.60,
        ),
        row(
            "captures on, 64: off",
            side(SERVE, ONE, 64),
            side(off, ONE, 64),
            0.80,
        ),
        row(
            "captures on, 256: off",
            side(SERVE, ONE, 256),
            side(off, ONE, 256),
            0.80,
        ),
        row(
            "two processes: one",
            side(two, ONE, 64),
            side(SERVE, ONE, 128),
            1.0,
        ),
        row(
            "hot account: 20 accounts",
            side(SERVE, hot, 64),
            side(SERVE, ONE, 64),
            0.80,
        ),
        row(
            "ten million rows: none",
            side(full, ONE, 64),
            side(SERVE, ONE, 64),
            0.80,
        ),
    ]
}

impl Row {
    /// Prints the row. Whether the bar is reached.
    async fn measure(&self, postgres: &Embedded) -> Result<bool, Box<dyn Error>> {
        let mut sides = [
            Side::start(postgres, self.ours).await?,
            Side::start(postgres, self.other).await?,
        ];
        for _ in 0..WARM_UP {
            for side in &mut sides {
                side.turn(TURN).await?;
            }
        }
        sides.iter_mut().for_each(Side::forget);
        let mut ratios = Vec::with_capacity(TURNS);
        for _ in 0..TURNS {
            let [ours, other] = &mut sides;
            ratios.push(ours.turn(TURN).await? / other.turn(TURN).await?);
        }
        let ratio = median(&mut ratios);
        let [ours, other] = &mut sides;
        let refused = ours.refused();
        let kept = ratio >= self.bar && refused == 0;
        println!(
            "{:<34} {:>8.0} {:>8.0} {ratio:>6.2} {:>6.2}  {:>12.1} {:>12.1} {:>9} {:>9}{}{}",
            self.name,
            ours.median(),
            other.median(),
            self.bar,
            ours.p99(),
            other.p99(),
            ours.cpu(),
            other.cpu(),
            if kept { "" } else { "  MISSED" },
            if refused == 0 {
                String::new()
            } else {
                format!(", {refused} times 503")
            },
        );
        Ok(kept)
    }
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
