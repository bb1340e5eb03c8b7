//! Faults of the database under load: no false 200, no long wait, no acknowledged failure is lost,
//! and service returns without help.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lockwatch::embedded::EmbeddedPostgres;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::service::Service;
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::Database;
use reqwest::{Client, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::database::{run_statements, server_processes};
use crate::support::process::{Serve, has_exited, signal_each};
use crate::support::{
    ACCESS_TOKEN, APP_SECRET, NUMBER, client, eventually, one_failure, start_service,
};

/// The longest time that an answer may take: Meta expects one within seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(3500);
/// The time within which service must return after a fault.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);
const SENDERS: u32 = 16;
/// Callbacks that must be acknowledged before a fault, and again after it.
const ACKNOWLEDGEMENTS: usize = 200;
/// Callbacks that must be refused during a fault before it ends.
const REFUSALS: usize = 40;

/// Sends distinct failures from many senders and records every answer.
struct Load {
    client: Client,
    webhook: String,
    next_id: AtomicU32,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl Load {
    fn new(webhook: String) -> Self {
        Self {
            client: client(),
            webhook,
            next_id: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            acknowledged: Mutex::default(),
            refused: Mutex::default(),
            slowest: Mutex::default(),
        }
    }

    async fn send(&self, id: &str) -> Option<StatusCode> {
        let body = one_failure(id);
        let request = self
            .client
            .post(&self.webhook)
            .header(SIGNATURE_HEADER, sign(APP_SECRET, &body))
            .body(body);
        let started = Instant::now();
        let status = request.send().await.ok().map(|answer| answer.status());
        let mut slowest = self.slowest.lock().unwrap();
        *slowest = slowest.max(started.elapsed());
        status
    }

    /// Sends from all senders until told to stop.
    async fn run(&self) {
        join_all((0..SENDERS).map(|_| self.run_sender())).await;
    }

    async fn run_sender(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = format!("wamid.{}", self.next_id.fetch_add(1, Ordering::Relaxed));
            match self.send(&id).await {
                Some(StatusCode::OK) => self.acknowledged.lock().unwrap().push(id),
                None | Some(StatusCode::SERVICE_UNAVAILABLE) => {
                    self.refused.lock().unwrap().push(id);
                }
                Some(other) => panic!("a callback is answered with {other}"),
            }
        }
    }

    /// Waits until more than this number of further callbacks are acknowledged.
    async fn wait_for_acknowledgements(&self, more: usize) {
        let before = self.acknowledged.lock().unwrap().len();
        eventually("callbacks are acknowledged", async || {
            self.acknowledged.lock().unwrap().len() > before + more
        })
        .await;
    }

    /// Waits until more than this number of further callbacks are refused.
    async fn wait_for_refusals(&self, more: usize) {
        let before = self.refused.lock().unwrap().len();
        eventually("callbacks are refused", async || {
            self.refused.lock().unwrap().len() > before + more
        })
        .await;
    }

    /// Checks that every acknowledged failure is stored. Then sends the refused ones again, and
    /// checks that every failure is stored once.
    async fn check_database(&self, url: &str) {
        let acknowledged: HashSet<String> = self.acknowledged.lock().unwrap().drain(..).collect();
        let stored = stored_ids(url).await;
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged failures are lost: {lost:?}",
            lost.len(),
            acknowledged.len()
        );

        let refused: Vec<String> = self.refused.lock().unwrap().drain(..).collect();
        let answers = join_all(refused.iter().map(|id| self.send(id))).await;
        assert!(answers.iter().all(|answer| *answer == Some(StatusCode::OK)));
        let sent = i64::try_from(acknowledged.len() + refused.len()).unwrap();
        assert_counts(url, sent).await;
        // A backend that works may be in a transaction for a moment.
        eventually("no backend is left in a transaction", async || {
            backends_in_transaction(url).await == 0
        })
        .await;
    }
}

async fn stored_ids(url: &str) -> HashSet<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let ids: Vec<String> = sqlx::query_scalar("select message_id from failed_deliveries")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    ids.into_iter().collect()
}

/// Checks that this number of failures is stored and counted, in one open incident.
async fn assert_counts(url: &str, failures: i64) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let counts: (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from failed_deliveries),
                (select sum(failure_count)::bigint from incidents),
                (select sum(failure_count)::bigint from affected_numbers)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(counts, (failures, failures, failures));
    let open: i64 = sqlx::query_scalar("select count(*) from incidents where resolved_at is null")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(open, 1);
}

async fn backends_in_transaction(url: &str) -> i64 {
    let idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(idle)
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

/// Injects a fault into the database of a service under load, waits for refusals, and ends the
/// fault. Then service must return in time, and the database must be complete.
async fn check_fault(
    embedded: EmbeddedPostgres,
    start_fault: impl AsyncFnOnce(&EmbeddedPostgres),
    end_fault: impl AsyncFnOnce(&EmbeddedPostgres),
) {
    let (service, _simulator) = start_on(&embedded).await;
    let load = Load::new(format!("http://{}/webhook", service.address));
    let fault = async {
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        start_fault(&embedded).await;
        load.wait_for_refusals(REFUSALS).await;
        assert_unrelated_is_acknowledged(&load).await;
        end_fault(&embedded).await;
        let ended = Instant::now();
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        let took = ended.elapsed();
        assert!(took < RECOVERY_TIMEOUT, "service returned after {took:?}");
        load.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load.run(), fault);
    let slowest = *load.slowest.lock().unwrap();
    assert!(slowest < ANSWER_TIMEOUT, "{slowest:?}");
    load.check_database(&embedded.url()).await;
    service.stop().await;
}

/// A callback that is not about a lockout must be acknowledged without the database.
async fn assert_unrelated_is_acknowledged(load: &Load) {
    let body = br#"{"entry":[]}"#;
    let request = load
        .client
        .post(&load.webhook)
        .header(SIGNATURE_HEADER, sign(APP_SECRET, body))
        .body(&body[..]);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}

async fn start_on(embedded: &EmbeddedPostgres) -> (Service, Simulator) {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let database = Database::parse(&embedded.url()).unwrap();
    database.migrate().await.unwrap();
    (
        start_service(database, &simulator, &[APP_SECRET]).await,
        simulator,
    )
}

fn start_postgres() -> EmbeddedPostgres {
    EmbeddedPostgres::start_temporary(None, false, &CancellationToken::new()).unwrap()
}

fn signal_server(embedded: &EmbeddedPostgres, signal: Signal) {
    signal_each(&server_processes(embedded), signal);
}

#[tokio::test]
async fn service_survives_a_paused_database() {
    let stop = async |embedded: &EmbeddedPostgres| signal_server(embedded, Signal::STOP);
    let resume = async |embedded: &EmbeddedPostgres| signal_server(embedded, Signal::CONT);
    check_fault(start_postgres(), stop, resume).await;
}

#[tokio::test]
async fn service_survives_a_read_only_database() {
    // As after a failover when the address still leads to the old primary.
    let set_read_only = async |embedded: &EmbeddedPostgres| {
        run_statements(
            embedded,
            &[
                "alter system set default_transaction_read_only = on",
                "select pg_reload_conf()",
            ],
        )
        .await;
    };
    let set_writable = async |embedded: &EmbeddedPostgres| {
        run_statements(
            embedded,
            &[
                "alter system reset default_transaction_read_only",
                "select pg_reload_conf()",
            ],
        )
        .await;
    };
    check_fault(start_postgres(), set_read_only, set_writable).await;
}

#[tokio::test]
async fn service_survives_a_locked_table() {
    let embedded = start_postgres();
    let locker = tokio::sync::Mutex::new(None);
    let lock = async |embedded: &EmbeddedPostgres| {
        let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
        sqlx::raw_sql("begin; lock table failed_deliveries in access exclusive mode")
            .execute(&mut connection)
            .await
            .unwrap();
        *locker.lock().await = Some(connection);
    };
    let unlock = async |_: &EmbeddedPostgres| {
        sqlx::raw_sql("rollback")
            .execute(locker.lock().await.as_mut().unwrap())
            .await
            .unwrap();
    };
    check_fault(embedded, lock, unlock).await;
}

#[tokio::test]
async fn service_survives_a_stopped_database() {
    // Without its configuration file, the supervisor cannot start the server again.
    let embedded = start_postgres();
    let configuration = embedded.folder().join("data/postgresql.conf");
    let hidden = configuration.with_extension("away");
    let stop = async |embedded: &EmbeddedPostgres| {
        std::fs::rename(&configuration, &hidden).unwrap();
        kill_process(server_processes(embedded)[0], Signal::QUIT).unwrap();
    };
    let start = async |embedded: &EmbeddedPostgres| {
        std::fs::rename(&hidden, &configuration).unwrap();
        eventually("the server runs", async || {
            PgConnection::connect(&embedded.url()).await.is_ok()
        })
        .await;
    };
    check_fault(embedded, stop, start).await;
}

#[tokio::test]
async fn service_survives_a_backend_paused_in_a_transaction() {
    // The recorder's connection is paused within its transaction, while it holds the account's
    // lock.
    let paused = Mutex::new(None);
    let stop = async |embedded: &EmbeddedPostgres| {
        let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
        // The recorder locks the number's row last, after it has locked the account.
        sqlx::raw_sql("begin; select from affected_numbers for update")
            .execute(&mut connection)
            .await
            .unwrap();
        let pid = find_waiting_recorder(&mut connection).await;
        kill_process(pid, Signal::STOP).unwrap();
        sqlx::raw_sql("rollback")
            .execute(&mut connection)
            .await
            .unwrap();
        *paused.lock().unwrap() = Some(pid);
    };
    let resume = async |_: &EmbeddedPostgres| {
        let pid = paused.lock().unwrap().take().unwrap();
        kill_process(pid, Signal::CONT).unwrap();
    };
    check_fault(start_postgres(), stop, resume).await;
}

async fn find_waiting_recorder(connection: &mut PgConnection) -> Pid {
    let waiting = "select pid from pg_stat_activity
                    where application_name = 'lockwatch recorder' and wait_event_type = 'Lock'";
    loop {
        let pid = sqlx::query_scalar::<_, i32>(waiting)
            .fetch_optional(&mut *connection)
            .await
            .unwrap();
        if let Some(pid) = pid {
            return Pid::from_raw(pid).unwrap();
        }
    }
}

#[tokio::test]
async fn a_look_up_survives_backends_that_never_answer() {
    // Every pooled connection stops for ever: the follow-up has to notice that and connect again.
    let embedded = start_postgres();
    let (service, simulator) = start_on(&embedded).await;
    simulator.set_scenarios(NUMBER, [Scenario::Payment]);
    let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
    let pids = find_pooled_backends(&mut connection).await;
    for pid in &pids {
        kill_process(*pid, Signal::STOP).unwrap();
    }
    let load = Load::new(format!("http://{}/webhook", service.address));
    eventually("a callback is recorded", async || {
        load.send("wamid.1").await == Some(StatusCode::OK)
    })
    .await;
    eventually("its number is looked up", async || {
        !simulator.requests().is_empty()
    })
    .await;
    signal_each(&pids, Signal::CONT);
}

async fn find_pooled_backends(connection: &mut PgConnection) -> Vec<Pid> {
    let pooled = "select pid from pg_stat_activity where application_name = 'lockwatch'";
    loop {
        let pids: Vec<i32> = sqlx::query_scalar(pooled)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        if !pids.is_empty() {
            let pids = pids.into_iter();
            return pids.map(|pid| Pid::from_raw(pid).unwrap()).collect();
        }
    }
}

#[tokio::test]
async fn kill_9_under_load_loses_nothing_and_leaves_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Serve::on_folder(folder.path(), &[]);
    serve.wait_for_log("the database is ready");
    let load = Load::new(serve.webhook.clone());
    let kill = async {
        load.wait_for_acknowledgements(300).await;
        serve.signal(Signal::KILL);
        load.wait_for_refusals(REFUSALS).await;
        load.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load.run(), kill);
    serve.wait();
    let pid_file = folder.path().join("postgres/data/postmaster.pid");
    if let Ok(text) = std::fs::read_to_string(&pid_file) {
        let server = Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap();
        eventually("the server has exited", async || has_exited(server)).await;
    }

    let again = Serve::on_folder(folder.path(), &[]);
    again.wait_for_log("the database is ready");
    let url = EmbeddedPostgres::running_url(&folder.path().join("postgres")).unwrap();
    let load = Load {
        webhook: again.webhook.clone(),
        ..load
    };
    load.check_database(&url).await;
}

#[tokio::test]
async fn a_restart_right_after_kill_9_finds_its_database() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut serve = Serve::on_folder(folder.path(), &[]);
        serve.wait_for_log("the database is ready");
        serve.signal(Signal::KILL);
        serve.wait();
    }
    let mut last = Serve::on_folder(folder.path(), &[]);
    last.wait_for_log("the database is ready");
    last.signal(Signal::TERM);
    assert_eq!(last.wait().code(), Some(0));
    assert_eq!(
        EmbeddedPostgres::running_url(&folder.path().join("postgres")),
        None
    );
}
