//! A fault history: real processes on a real Postgres take a mixed load while a seed decides the
//! faults. Afterwards an oracle checks every promise, not only those that a fault was expected to
//! break.
//!
//! `LOCKWATCH_HISTORY_SEED` repeats a schedule; `LOCKWATCH_HISTORY_SECONDS` makes it longer. The
//! seed decides the schedule only. The timing within it depends on the machine, so a failure may
//! need a few runs to come back.

mod environment;
mod footprint;
mod injector;
mod ledger;
mod operator;
mod oracle;
mod postgres;
mod replica;
mod schedule;
mod workload;

use std::io::Write;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;

use self::environment::Environment;
use self::footprint::Footprint;
use self::injector::FaultInjector;
use self::replica::Replica;
use self::workload::Workload;
use crate::support::eventually;

/// The default length. It is a minimum, because every kind of fault comes once in any case.
const DEFAULT_SECONDS: u64 = 45;
/// Callbacks that are acknowledged before the first fault.
const WARM_UP_CALLBACKS: usize = 300;
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// The settings from the environment variables, or their defaults: the default seed is random.
struct Settings {
    seed: u64,
    seconds: u64,
}

impl Settings {
    fn from_env() -> Self {
        let seed = parse_variable("LOCKWATCH_HISTORY_SEED");
        let seconds = parse_variable("LOCKWATCH_HISTORY_SECONDS");
        Self {
            seed: seed.unwrap_or_else(|| fastrand::u64(..1_000_000)),
            seconds: seconds.unwrap_or(DEFAULT_SECONDS),
        }
    }
}

fn parse_variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; .ci/run runs it"]
async fn no_fault_breaks_a_promise() {
    let Settings { seed, seconds } = Settings::from_env();
    // Written directly, because the test harness holds back what a test prints.
    let _ = writeln!(
        std::io::stderr(),
        "a fault history of {seconds} s: LOCKWATCH_HISTORY_SEED={seed} repeats its schedule"
    );
    let mut rng = Rng::with_seed(seed);
    let environment = Environment::start(&mut rng, 256 + 2 * seconds).await;
    let warm_up = environment.wait_for_acknowledgements(WARM_UP_CALLBACKS, WARM_UP_TIMEOUT);
    environment.run_under_load(&mut rng, warm_up).await;
    let baseline = Footprint::measure(&environment.replicas[0], &environment.postgres).await;

    let injector = FaultInjector::new(&environment, Duration::from_secs(seconds));
    let (mut database_rng, mut process_rng) = (rng.fork(), rng.fork());
    let replicas = environment.replicas.len();
    let inject_all = async {
        tokio::join!(
            injector.run(|| schedule::database_faults(&mut database_rng)),
            injector.run(|| schedule::process_faults(&mut process_rng, replicas)),
        );
    };
    environment.run_under_load(&mut rng, inject_all).await;

    check_promises(&environment).await;
    check_resources(&environment, baseline).await;
}

/// Asks the oracle twice: once for lost acknowledgements, and after a resend for everything.
async fn check_promises(environment: &Environment) {
    let mut session = environment.postgres.connect().await;
    oracle::check_acknowledged(&mut session, &environment.ledger.snapshot())
        .await
        .assert_none();
    environment.wait_until_ready().await;
    Workload::new(environment).resend_unacknowledged().await;
    environment.wait_until_processed().await;
    let ledger = environment.ledger.snapshot();
    println!("{}", oracle::summarize(&mut session, &ledger).await);
    oracle::check_settled(&mut session, &ledger, &environment.answers)
        .await
        .assert_none();
    // A clock that jumps ahead ends a lease early, once.
    assert!(
        environment.simulator.most_in_flight_per_node() <= 2,
        "several look-ups of one number ran at the same time"
    );
}

/// No backend stays in a transaction, every process gives back its resources, and every process
/// ends on SIGTERM.
async fn check_resources(environment: &Environment, baseline: Footprint) {
    eventually("no backend is left in a transaction", async || {
        environment.postgres.backends_in_transaction().await == 0
    })
    .await;
    for replica in &environment.replicas {
        baseline
            .wait_until_restored(replica, &environment.postgres)
            .await;
    }
    join_all(environment.replicas.iter().map(Replica::stop)).await;
    for replica in &environment.replicas {
        let panics = replica.panic_lines();
        assert!(panics.is_empty(), "{panics:?}");
    }
}
