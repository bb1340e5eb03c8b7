//! Faults of the database under load: no false 200, no long wait, no acknowledged failure is lost,
//! and service returns without help.

use std::sync::Mutex;
use std::time::Duration;

use lockwatch::embedded::EmbeddedPostgres;
use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
use lockwatch::service::Service;
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::Database;
use reqwest::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::database::{postmaster_of, run_statements, server_processes};
use crate::support::load::Load;
use crate::support::process::{Serve, has_exited, signal_each};
use crate::support::{ACCESS_TOKEN, APP_SECRET, NUMBER, eventually, start_service};

/// The longest time that an answer may take: Meta expects one within seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(3500);
/// The time within which service must return after a fault.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Callbacks that must be acknowledged before a fault, and again after it.
const ACKNOWLEDGEMENTS: usize = 200;
/// Callbacks that must be refused during a fault before it ends.
const REFUSALS: usize = 40;

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
        load.stop();
    };
    tokio::join!(load.run(), fault);
    let slowest = load.slowest();
    assert!(slowest < ANSWER_TIMEOUT, "{slowest:?}");
    load.check_database(&embedded.url()).await;
    service.stop().await;
}

/// A callback that is not about a lockout must be acknowledged without the database.
async fn assert_unrelated_is_acknowledged(load: &Load) {
    let body = br#"{"entry":[]}"#;
    let request = load
        .client()
        .post(load.webhook())
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
    signal_each(&server_processes(embedded.folder()), signal);
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

/// Locks a table until the connection ends its transaction.
async fn lock_table(embedded: &EmbeddedPostgres, table: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
    let lock = format!("begin; lock table {table} in access exclusive mode");
    sqlx::raw_sql(AssertSqlSafe(lock))
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

async fn roll_back(connection: &mut PgConnection) {
    sqlx::raw_sql("rollback").execute(connection).await.unwrap();
}

#[tokio::test]
async fn service_survives_a_locked_inbox() {
    let locker = tokio::sync::Mutex::new(None);
    let lock = async |embedded: &EmbeddedPostgres| {
        *locker.lock().await = Some(lock_table(embedded, "inbox").await);
    };
    let unlock = async |_: &EmbeddedPostgres| {
        roll_back(locker.lock().await.as_mut().unwrap()).await;
    };
    check_fault(start_postgres(), lock, unlock).await;
}

/// Injects a fault into the database of a service under load. Callbacks must be acknowledged all
/// the same, at most some refused at its start; and at its end everything must be recorded.
async fn check_harmless_fault(
    start_fault: impl AsyncFnOnce(&EmbeddedPostgres),
    end_fault: impl AsyncFnOnce(&EmbeddedPostgres),
    refusals_limit: usize,
) {
    let embedded = start_postgres();
    let (service, _simulator) = start_on(&embedded).await;
    let load = Load::new(format!("http://{}/webhook", service.address));
    let fault = async {
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        start_fault(&embedded).await;
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        assert_unrelated_is_acknowledged(&load).await;
        end_fault(&embedded).await;
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        load.stop();
    };
    tokio::join!(load.run(), fault);
    let (slowest, refusals) = (load.slowest(), load.refusals());
    assert!(slowest < ANSWER_TIMEOUT, "{slowest:?}");
    assert!(refusals <= refusals_limit, "{refusals} refusals");
    load.check_database(&embedded.url()).await;
    service.stop().await;
}

async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn a_locked_table_of_records_costs_no_answer() {
    let locker = tokio::sync::Mutex::new(None);
    let recorded = "select count(*) from failed_deliveries";
    let lock = async |embedded: &EmbeddedPostgres| {
        let mut connection = lock_table(embedded, "failed_deliveries").await;
        let before = count(&mut connection, recorded).await;
        *locker.lock().await = Some((connection, before));
    };
    let unlock = async |_: &EmbeddedPostgres| {
        let mut locker = locker.lock().await;
        let (connection, before) = locker.as_mut().unwrap();
        assert_eq!(count(connection, recorded).await, *before);
        let waiting = count(connection, "select count(*) from inbox").await;
        assert!(waiting >= ACKNOWLEDGEMENTS as i64, "{waiting} in the inbox");
        let problems = count(connection, "select count(problem) from inbox").await;
        assert_eq!(problems, 0, "the callbacks are not to blame");
        roll_back(connection).await;
    };
    check_harmless_fault(lock, unlock, 0).await;
}

/// Pauses the backend of this session within its transaction: it waits for a table that is locked
/// for a moment.
async fn pause_in_transaction(
    embedded: &EmbeddedPostgres,
    session: &'static str,
    table: &str,
) -> Pid {
    let mut connection = lock_table(embedded, table).await;
    let waiting = "select pid from pg_stat_activity
                    where application_name = $1 and wait_event_type = 'Lock'";
    let pid = loop {
        let pid: Option<i32> = sqlx::query_scalar(waiting)
            .bind(session)
            .fetch_optional(&mut connection)
            .await
            .unwrap();
        if let Some(pid) = pid {
            break Pid::from_raw(pid).unwrap();
        }
    };
    kill_process(pid, Signal::STOP).unwrap();
    roll_back(&mut connection).await;
    pid
}

#[tokio::test]
async fn a_processor_paused_in_its_transaction_costs_no_answer() {
    // It holds the processor's lock and the account's.
    let paused = Mutex::new(None);
    let stop = async |embedded: &EmbeddedPostgres| {
        let pid = pause_in_transaction(embedded, "lockwatch processor", "failed_deliveries").await;
        *paused.lock().unwrap() = Some(pid);
    };
    let resume = async |embedded: &EmbeddedPostgres| {
        let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
        let waiting = count(&mut connection, "select count(*) from inbox").await;
        assert!(waiting >= ACKNOWLEDGEMENTS as i64, "{waiting} in the inbox");
        let pid = paused.lock().unwrap().take().unwrap();
        kill_process(pid, Signal::CONT).unwrap();
    };
    check_harmless_fault(stop, resume, 0).await;
}

#[tokio::test]
async fn a_backend_paused_in_an_append_costs_its_batch_only() {
    let paused = Mutex::new(None);
    let stop = async |embedded: &EmbeddedPostgres| {
        let pid = pause_in_transaction(embedded, "lockwatch inbox", "inbox").await;
        *paused.lock().unwrap() = Some(pid);
    };
    let resume = async |_: &EmbeddedPostgres| {
        let pid = paused.lock().unwrap().take().unwrap();
        kill_process(pid, Signal::CONT).unwrap();
    };
    // Each of the senders has at most one callback in that batch, and one that waits behind it.
    check_harmless_fault(stop, resume, 32).await;
}

#[tokio::test]
async fn service_survives_a_stopped_database() {
    // Without its configuration file, the supervisor cannot start the server again.
    let embedded = start_postgres();
    let configuration = embedded.folder().join("data/postgresql.conf");
    let hidden = configuration.with_extension("away");
    let stop = async |embedded: &EmbeddedPostgres| {
        std::fs::rename(&configuration, &hidden).unwrap();
        kill_process(postmaster_of(embedded.folder()), Signal::QUIT).unwrap();
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
        load.stop();
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
    let load = load.to(again.webhook.clone());
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
