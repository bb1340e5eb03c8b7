//! The environment of a fault history: the processes, the database, a simulated Meta that calls and
//! answers, and the ledger of everything that was sent.

use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use lockwatch::simulator::{Scenario, Simulator};
use reqwest::StatusCode;
use tokio::time::{Instant, sleep};

use super::ledger::Ledger;
use super::oracle::Answers;
use super::postgres::PostgresServer;
use super::replica::Replica;
use super::workload::{Account, HOT_ACCOUNTS, Workload, create_accounts};
use crate::support::{ACCESS_TOKEN, APP_SECRET, client, eventually_within};

/// The time within which a process must be ready after the last fault has ended.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Environment {
    // Fields drop in order: the processes end before the servers that they use.
    pub replicas: Vec<Replica>,
    pub simulator: Simulator,
    pub postgres: PostgresServer,
    pub accounts: Vec<Account>,
    pub ledger: Ledger,
    pub answers: Answers,
}

impl Environment {
    /// Starts one or two processes on a new database, and waits until they are ready.
    pub async fn start(rng: &mut Rng, disk_mib: u64) -> Self {
        let accounts = create_accounts();
        let (simulator, answers) = start_simulator(&accounts, rng).await;
        let postgres = PostgresServer::start(disk_mib).await;
        let replicas = 1 + usize::from(rng.u8(..4) > 0);
        let replicas =
            join_all((0..replicas).map(|_| Replica::start(postgres.socket(), &simulator))).await;
        let environment = Self {
            replicas,
            simulator,
            postgres,
            accounts,
            ledger: Ledger::default(),
            answers,
        };
        environment.wait_until_ready().await;
        environment
    }

    /// Waits until every process is ready.
    pub async fn wait_until_ready(&self) {
        let client = client();
        for replica in &self.replicas {
            eventually_within(READY_TIMEOUT, "every process is ready", async || {
                let url = format!("{}/readyz", replica.process().admin);
                let answer = client.get(url).send().await;
                answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
            })
            .await;
        }
    }

    /// Waits until every acknowledged callback is processed.
    pub async fn wait_until_processed(&self) {
        let mut session = self.postgres.connect().await;
        let deadline = Instant::now() + READY_TIMEOUT;
        let waiting = "select count(*) from inbox";
        while sqlx::query_scalar::<_, i64>(waiting)
            .fetch_one(&mut session)
            .await
            .unwrap()
            > 0
        {
            assert!(Instant::now() < deadline, "the inbox is not processed");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the workload while a task runs. Returns when no request is under way any more.
    pub async fn run_under_load(&self, rng: &mut Rng, task: impl Future<Output = ()>) {
        let workload = Workload::new(self);
        let stop_after_task = async {
            task.await;
            workload.stop();
        };
        tokio::join!(workload.run(rng), stop_after_task);
    }

    /// Waits until this number of further callbacks is acknowledged.
    pub async fn wait_for_acknowledgements(&self, more: usize, limit: Duration) {
        let before = self.ledger.acknowledged_callbacks();
        eventually_within(limit, "callbacks are acknowledged", async || {
            self.ledger.acknowledged_callbacks() >= before + more
        })
        .await;
    }
}

/// Starts a simulator with a script of random answers, at a random pace, for every number.
async fn start_simulator(accounts: &[Account], rng: &mut Rng) -> (Simulator, Answers) {
    let mut told = Answers::new();
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    for (n, account) in accounts.iter().enumerate() {
        for number in &account.numbers {
            let mut answers: Vec<_> = (0..rng.usize(1..4))
                .map(|_| random_answer(rng, n < HOT_ACCOUNTS))
                .collect();
            let causes = answers.iter().filter_map(cause_of).collect();
            told.insert(number.clone(), causes);
            answers.push(slow_answer(rng, 3000, Scenario::Available));
            simulator.set_scenarios(number, answers);
            simulator.set_account(number, &account.waba_id);
        }
    }
    (simulator, told)
}

/// The cause that Meta gives with an answer, if it gives one.
fn cause_of(answer: &Scenario) -> Option<&'static str> {
    match answer {
        Scenario::Delayed(_, answer) => cause_of(answer),
        Scenario::Payment => Some("payment"),
        Scenario::Policy => Some("policy_violation"),
        _ => None,
    }
}

fn random_answer(rng: &mut Rng, is_hot: bool) -> Scenario {
    match rng.u8(..8) {
        0 => Scenario::ServerError,
        1 => Scenario::Garbage,
        2 => Scenario::Reset,
        // The account is throttled for a minute: a hot one would miss too much of the history.
        3 if !is_hot => Scenario::Throttled(1),
        4 => Scenario::Policy,
        _ => slow_answer(rng, 6000, Scenario::Payment),
    }
}

fn slow_answer(rng: &mut Rng, millis: u64, answer: Scenario) -> Scenario {
    Scenario::Delayed(Duration::from_millis(rng.u64(..millis)), Box::new(answer))
}
