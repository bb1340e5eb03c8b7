//! The throughput of callbacks, as ratios.
//!
//! `cargo bench --bench ingest` measures every row, `-- NAME…` those whose name contains a NAME.
//!
//! Servers, Postgres and load share this machine, so no figure means anything alone. Short turns of
//! two contenders alternate, each on a database of its own, and their medians are compared. All of
//! it is real: processes, sockets, signatures, fsync. Exits with 1 if a promised ratio is missed.

#![allow(unreachable_pub, reason = "a bench is no library")]

mod contenders;
mod load;
mod memory;
mod plain_servers;
#[path = "../support/serve.rs"]
mod serve;
mod time_to_lookup;
mod time_to_row;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use lockwatch::embedded::EmbeddedPostgres;
use tokio_util::sync::CancellationToken;

use contenders::{RunningContender, Turn};
use load::Payload;
use plain_servers::PlainServer;

/// The turns are short and many, so that other work of the machine slows both contenders alike.
const TURN_COUNT: usize = 20;
const TURN_DURATION: Duration = Duration::from_millis(500);
const WARM_UP_TURN_COUNT: usize = 4;
/// A burst is longer, and there are fewer.
const BURST_TURN_COUNT: usize = 6;
const BURST_DURATION: Duration = Duration::from_secs(3);
const MEMORY_CALLBACK_COUNT: u64 = 10_000_000;

const ONE_FAILURE: Payload = Payload::Failures {
    per_request: 1,
    accounts: 20,
};
const HUNDRED_FAILURES: Payload = Payload::Failures {
    per_request: 100,
    accounts: 20,
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if let [flag, name, database] = &arguments[..]
        && flag == plain_servers::FLAG
    {
        plain_servers::run(name, database)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The load has one thread: the other cores are the servers'.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure_all(&arguments))
}

/// Measures every row whose name contains one of the filters, or every row without filters.
async fn measure_all(filters: &[String]) -> Result<ExitCode, Box<dyn Error>> {
    let postgres = EmbeddedPostgres::start_temporary(None, true, &CancellationToken::new())?;
    print_header(&postgres);
    let mut is_kept = true;
    for comparison in comparisons() {
        if is_selected(comparison.name, filters) {
            is_kept &= comparison.measure(&postgres).await?;
        }
    }
    println!();
    if is_selected("first failure to look-up", filters) {
        is_kept &= time_to_lookup::measure(&postgres, false).await?;
        is_kept &= time_to_lookup::measure(&postgres, true).await?;
    }
    if is_selected("answer to row", filters) {
        is_kept &= time_to_row::measure(&postgres).await?;
    }
    if is_selected("memory", filters) {
        is_kept &= memory::measure(&postgres, MEMORY_CALLBACK_COUNT).await?;
    }
    Ok(if is_kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn is_selected(name: &str, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| name.contains(filter))
}

fn print_header(postgres: &EmbeddedPostgres) {
    println!(
        "PostgreSQL {}, fsync on; medians of {TURN_COUNT} turns of {} ms each",
        postgres.version(),
        TURN_DURATION.as_millis()
    );
    println!("CPU: microseconds of server + Postgres's backends for each callback, or row\n");
    println!(
        "{:<34} {:>8} {:>8} {:>6} {:>6}  {:>12} {:>12} {:>9} {:>9}",
        "ours, compared with",
        "ours/s",
        "other/s",
        "ratio",
        "min",
        "p99 ms ours",
        "other",
        "CPU ours",
        "other"
    );
}

/// Two contenders, and the ratios that are promised of them.
struct Comparison {
    name: &'static str,
    ours: Setup,
    other: Setup,
    min_ratio: f64,
    /// The least ratio of the CPU time per callback, theirs to ours.
    min_cpu_ratio: Option<f64>,
    /// Counts what is acknowledged, not what is in its tables.
    is_burst: bool,
}

/// A contender with its load.
#[derive(Debug, Clone, Copy)]
struct Setup {
    contender: Contender,
    payload: Payload,
    connections: usize,
}

/// A program whose throughput is measured.
#[derive(Debug, Clone, Copy)]
enum Contender {
    /// `lockwatch serve`.
    Serve { processes: usize, rows_before: u64 },
    /// A server that does the same work in the plain way.
    Plain(PlainServer),
    /// Postgres itself, in one session.
    Postgres,
}

const SERVE: Contender = Contender::Serve {
    processes: 1,
    rows_before: 0,
};
const SERVE_TWICE: Contender = Contender::Serve {
    processes: 2,
    rows_before: 0,
};
const SERVE_ON_TEN_MILLION_ROWS: Contender = Contender::Serve {
    processes: 1,
    rows_before: 10_000_000,
};

impl Contender {
    fn with(self, payload: Payload, connections: usize) -> Setup {
        Setup {
            contender: self,
            payload,
            connections,
        }
    }
}

/// The table of what is compared. Its names are the filters of the command line.
fn comparisons() -> Vec<Comparison> {
    let quiet = Payload::Quiet { bytes: 600 };
    let large = Payload::Quiet { bytes: 100_000 };
    let one_account = Payload::Failures {
        per_request: 1,
        accounts: 1,
    };
    let bare = Contender::Plain(PlainServer::Bare);
    let verifying = Contender::Plain(PlainServer::Verifying);
    let inserting = Contender::Plain(PlainServer::Inserting);
    let compare = |name, ours, other, min_ratio| Comparison {
        name,
        ours,
        other,
        min_ratio,
        min_cpu_ratio: None,
        is_burst: false,
    };
    let one_failure = |name, connections, min_ratio| {
        let (ours, other) = (SERVE, inserting);
        compare(
            name,
            ours.with(ONE_FAILURE, connections),
            other.with(ONE_FAILURE, connections),
            min_ratio,
        )
    };
    vec![
        compare(
            "quiet, 600 B: bare axum",
            SERVE.with(quiet, 64),
            bare.with(quiet, 64),
            0.90,
        ),
        compare(
            "quiet, 100 kB: axum + HMAC",
            SERVE.with(large, 16),
            verifying.with(large, 16),
            0.90,
        ),
        Comparison {
            min_cpu_ratio: Some(2.8),
            ..one_failure("one failure, 64: an INSERT each", 64, 2.3)
        },
        Comparison {
            min_cpu_ratio: Some(3.7),
            ..one_failure("one failure, 256: an INSERT each", 256, 3.7)
        },
        Comparison {
            is_burst: true,
            ..one_failure("burst, 64: an INSERT each", 64, 2.4)
        },
        Comparison {
            is_burst: true,
            ..one_failure("burst, 256: an INSERT each", 256, 3.9)
        },
        compare(
            "100 failures: Postgres alone",
            SERVE.with(HUNDRED_FAILURES, 64),
            Contender::Postgres.with(HUNDRED_FAILURES, 1),
            0.65,
        ),
        compare(
            "two processes: one",
            SERVE_TWICE.with(ONE_FAILURE, 64),
            SERVE.with(ONE_FAILURE, 128),
            0.95,
        ),
        compare(
            "hot account: 20 accounts",
            SERVE.with(one_account, 64),
            SERVE.with(ONE_FAILURE, 64),
            0.80,
        ),
        compare(
            "ten million rows: none",
            SERVE_ON_TEN_MILLION_ROWS.with(ONE_FAILURE, 64),
            SERVE.with(ONE_FAILURE, 64),
            0.75,
        ),
    ]
}

impl Comparison {
    /// Prints the row. Returns whether the promised ratios are kept.
    async fn measure(&self, postgres: &EmbeddedPostgres) -> Result<bool, Box<dyn Error>> {
        let (turns, turn) = if self.is_burst {
            (BURST_TURN_COUNT, Turn::Acknowledged(BURST_DURATION))
        } else {
            (TURN_COUNT, Turn::Stored(TURN_DURATION))
        };
        let mut ours = RunningContender::start(postgres, self.ours).await?;
        let mut other = RunningContender::start(postgres, self.other).await?;
        for _ in 0..WARM_UP_TURN_COUNT {
            ours.run_turn(Turn::Stored(TURN_DURATION)).await?;
            other.run_turn(Turn::Stored(TURN_DURATION)).await?;
        }
        ours.reset();
        other.reset();
        let mut ratios = Vec::with_capacity(turns);
        for _ in 0..turns {
            ratios.push(ours.run_turn(turn).await? / other.run_turn(turn).await?);
        }
        let ratio = median(&mut ratios);
        let cpu_ratio = other.cpu_per_row() / ours.cpu_per_row();
        let is_kept = ratio >= self.min_ratio
            && ours.refused() == 0
            && self.min_cpu_ratio.is_none_or(|min| cpu_ratio >= min);
        let cpu_note = match self.min_cpu_ratio {
            Some(min) => format!(", CPU ratio {cpu_ratio:.2} (min {min})"),
            None => String::new(),
        };
        let refused = match ours.refused() {
            0 => String::new(),
            refused => format!(", {refused} times 503"),
        };
        println!(
            "{:<34} {:>8.0} {:>8.0} {ratio:>6.2} {:>6.2}  {:>12.1} {:>12.1} {:>9} {:>9}{cpu_note}{}{refused}",
            self.name,
            ours.median(),
            other.median(),
            self.min_ratio,
            ours.p99_ms(),
            other.p99_ms(),
            ours.cpu(),
            other.cpu(),
            if is_kept { "" } else { "  MISSED" },
        );
        println!(
            "{:<34} WAL bytes a row: ours {:.0}, other {:.0}",
            "",
            ours.wal_per_row(),
            other.wal_per_row()
        );
        Ok(is_kept)
    }
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
