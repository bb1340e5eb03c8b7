//! A history oracle: real processes on a real Postgres take a mixed load while everything goes wrong that a
//! seed can think of. Afterwards every promise is checked, not only those that a fault was thought to break.
//!
//! `LOCKWATCH_HISTORY_SEED` plays a schedule again; `LOCKWATCH_HISTORY_SECONDS` makes it longer. The schedule
//! is the seed's; what meets what within it is the machine's, so a failure may take a few tries to return.

mod faults;
mod fleet;
mod footprint;
mod ledger;
mod oracle;
mod people;
mod schedule;
mod server;
mod workload;
mod world;

use std::io::Write;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;

use self::faults::Fate;
use self::fleet::Replica;
use self::footprint::Footprint;
use self::workload::Workload;
use self::world::World;
use crate::support::eventually;

/// At the least; every kind of fault comes once in any case.
const SECONDS: u64 = 45;
/// Callbacks that are acknowledged before anything goes wrong.
const WARM: usize = 300;
const WARM_WITHIN: Duration = Duration::from_secs(60);

/// What the environment says, or chance.
struct Settings {
    seed: u64,
    seconds: u64,
}

impl Settings {
    fn read() -> Self {
        let number = |name| {
            std::env::var(name)
                .ok()
                .map(|text| text.parse().expect("a number"))
        };
        Self {
            seed: number("LOCKWATCH_HISTORY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000)),
            seconds: number("LOCKWATCH_HISTORY_SECONDS").unwrap_or(SECONDS),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; .ci/run runs it"]
async fn whatever_happens_no_promise_is_broken() {
    let Settings { seed, seconds } = Settings::read();
    // Past the harness, which keeps what a test says to itself.
    let _ = writeln!(
        std::io::stderr(),
        "a history of {seconds} s: LOCKWATCH_HISTORY_SEED={seed} plays it again"
    );
    let mut rng = Rng::with_seed(seed);
    let world = World::start(&mut rng, 256 + 2 * seconds).await;

    world
        .is_sent_to(&mut rng, world.acknowledges(WARM, WARM_WITHIN))
        .await;
    let at_first = Footprint::of(&world.fleet[0], &world.server).await;

    let fate = Fate::of(&world, Duration::from_secs(seconds));
    let (mut of_the_server, mut of_the_processes) = (rng.fork(), rng.fork());
    let everything_goes_wrong = async {
        tokio::join!(
            fate.unfolds(|| schedule::of_the_server(&mut of_the_server)),
            fate.unfolds(|| schedule::of_the_processes(&mut of_the_processes, world.fleet.len())),
        );
    };
    world.is_sent_to(&mut rng, everything_goes_wrong).await;

    let mut session = world.server.connect().await;
    oracle::acknowledged(&mut session, &world.ledger.copy())
        .await
        .none();
    world.is_ready().await;
    Workload::of(&world).resend().await;
    let book = world.ledger.copy();
    println!("{}", oracle::summary(&mut session, &book).await);
    oracle::settled(&mut session, &book).await.none();
    assert!(
        world.simulator.most_in_flight_per_node() <= 1,
        "a number was looked up by two at once"
    );
    nothing_is_held(&world, at_first).await;
}

/// Nobody is left in a transaction; what a process took for its work it gave back; it ends when it is told to.
async fn nothing_is_held(world: &World, at_first: Footprint) {
    let nobody_is_left = async || world.server.backends_in_a_transaction().await == 0;
    eventually("no backend is left in a transaction", nobody_is_left).await;
    for replica in &world.fleet {
        at_first.is_that_of(replica, &world.server).await;
    }
    join_all(world.fleet.iter().map(Replica::stop)).await;
    for replica in &world.fleet {
        assert!(replica.panics().is_empty(), "{:?}", replica.panics());
    }
}
