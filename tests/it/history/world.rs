//! Everything that takes part: processes, the database, a Meta that calls and answers, and what went over the
//! wire.

use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use lockwatch::simulator::{Scenario, Simulator};
use reqwest::StatusCode;

use super::fleet::Replica;
use super::ledger::Ledger;
use super::server::Server;
use super::workload::{Account, HOT, Workload, accounts};
use crate::support::{ACCESS_TOKEN, APP_SECRET, client, within};

/// How long a process may take to be ready once nothing is wrong any more.
const READY_WITHIN: Duration = Duration::from_secs(60);

pub struct World {
    // In the order in which they go.
    pub fleet: Vec<Replica>,
    pub simulator: Simulator,
    pub server: Server,
    pub accounts: Vec<Account>,
    pub ledger: Ledger,
}

impl World {
    /// One or two processes, ready, on a new database.
    pub async fn start(rng: &mut Rng, disk_mib: u64) -> Self {
        let accounts = accounts();
        let simulator = meta(&accounts, rng).await;
        let server = Server::start(disk_mib).await;
        let replicas = 1 + usize::from(rng.u8(..4) > 0);
        let fleet =
            join_all((0..replicas).map(|_| Replica::start(server.socket(), &simulator))).await;
        let world = Self {
            fleet,
            simulator,
            server,
            accounts,
            ledger: Ledger::default(),
        };
        world.is_ready().await;
        world
    }

    /// Waits until every process is.
    pub async fn is_ready(&self) {
        let client = client();
        for replica in &self.fleet {
            let ready = async || {
                let answer = client
                    .get(format!("{}/readyz", replica.life().admin))
                    .send()
                    .await;
                answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
            };
            within(READY_WITHIN, "every process is ready", ready).await;
        }
    }

    /// Sends while something happens, and until nothing is under way.
    pub async fn is_sent_to(&self, rng: &mut Rng, meanwhile: impl Future<Output = ()>) {
        let workload = Workload::of(self);
        let then_stop = async {
            meanwhile.await;
            workload.stop();
        };
        tokio::join!(workload.run(rng), then_stop);
    }

    /// Waits until so many more callbacks are acknowledged.
    pub async fn acknowledges(&self, more: usize, limit: Duration) {
        let before = self.ledger.acknowledged();
        let acknowledged = async || self.ledger.acknowledged() >= before + more;
        within(limit, "callbacks are acknowledged", acknowledged).await;
    }
}

/// Answers for every number, in its own ways and at its own pace.
async fn meta(accounts: &[Account], rng: &mut Rng) -> Simulator {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let slow = |rng: &mut Rng, millis, then| {
        Scenario::Slow(Duration::from_millis(rng.u64(..millis)), Box::new(then))
    };
    for (n, account) in accounts.iter().enumerate() {
        for number in &account.numbers {
            let mut answers: Vec<_> = (0..rng.usize(1..4))
                .map(|_| match rng.u8(..8) {
                    0 => Scenario::ServerError,
                    1 => Scenario::Garbage,
                    2 => Scenario::Reset,
                    // For a minute the account rests: too much of the history for a hot one.
                    3 if n >= HOT => Scenario::Throttled(1),
                    4 => Scenario::Policy,
                    _ => slow(rng, 6000, Scenario::Payment),
                })
                .collect();
            answers.push(slow(rng, 3000, Scenario::Available));
            simulator.script(number, answers);
            simulator.belongs_to(number, &account.waba_id);
        }
    }
    simulator
}
