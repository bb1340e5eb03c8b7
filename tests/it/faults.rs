//! What happens to the database happens under load here: never a false 200, never a long wait, nothing
//! acknowledged is lost, and service returns by itself.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lockwatch::embedded::Embedded;
use lockwatch::meta::signature::{HEADER, sign};
use lockwatch::service::Service;
use lockwatch::simulator::{Scenario, Simulator};
use lockwatch::store::Database;
use reqwest::{Client, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::database::{processes, run};
use crate::support::process::{Serve, is_gone, signal_each};
use crate::support::{ACCESS_TOKEN, APP_SECRET, NUMBER, client, eventually, one_failure, service};

/// Meta counts on an answer within seconds.
const SLOWEST: Duration = Duration::from_millis(3500);
const BACK_WITHIN: Duration = Duration::from_secs(5);
const SENDERS: u32 = 16;

/// Sends distinct failures from many senders and remembers every answer.
struct Load {
    client: Client,
    webhook: String,
    next: AtomicU32,
    stop: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    refused: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl Load {
    fn new(webhook: String) -> Self {
        let (next, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        let (acknowledged, refused, slowest) =
            (Mutex::default(), Mutex::default(), Mutex::default());
        Self {
            client: client(),
            webhook,
            next,
            stop,
            acknowledged,
            refused,
            slowest,
        }
    }

    async fn send(&self, id: &str) -> Option<StatusCode> {
        let body = one_failure(id);
        let request = self
            .client
            .post(&self.webhook)
            .header(HEADER, sign(APP_SECRET, &body))
            .body(body);
        let started = Instant::now();
        let status = request.send().await.ok().map(|answer| answer.status());
        let mut slowest = self.slowest.lock().unwrap();
        *slowest = slowest.max(started.elapsed());
        status
    }

    async fn run(&self) {
        join_all((0..SENDERS).map(|_| async {
            while !self.stop.load(Ordering::Relaxed) {
                let id = format!("wamid.{}", self.next.fetch_add(1, Ordering::Relaxed));
                match self.send(&id).await {
                    Some(StatusCode::OK) => self.acknowledged.lock().unwrap().push(id),
                    answer => {
                        assert!(
                            matches!(answer, None | Some(StatusCode::SERVICE_UNAVAILABLE)),
                            "{answer:?}"
                        );
                        self.refused.lock().unwrap().push(id);
                    }
                }
            }
        }))
        .await;
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    fn refused(&self) -> usize {
        self.refused.lock().unwrap().len()
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        eventually(what, async || condition()).await;
    }

    /// Everything acknowledged is in the database; after a resend everything is, once.
    async fn settle(&self, url: &str) {
        let acknowledged: HashSet<String> = self.acknowledged.lock().unwrap().drain(..).collect();
        let stored = stored(url).await;
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged are lost: {lost:?}",
            lost.len(),
            acknowledged.len()
        );

        let refused: Vec<String> = self.refused.lock().unwrap().drain(..).collect();
        let answers = join_all(refused.iter().map(|id| self.send(id))).await;
        assert!(answers.iter().all(|answer| *answer == Some(StatusCode::OK)));
        let mut connection = PgConnection::connect(url).await.unwrap();
        let (rows, counted, numbered): (i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from failed_deliveries), (select sum(failure_count)::bigint from incidents),
                    (select sum(failure_count)::bigint from affected_numbers)",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        let sent = i64::try_from(acknowledged.len() + refused.len()).unwrap();
        assert_eq!((rows, counted, numbered), (sent, sent, sent));
        let open: i64 =
            sqlx::query_scalar("select count(*) from incidents where resolved_at is null")
                .fetch_one(&mut connection)
                .await
                .unwrap();
        assert_eq!(open, 1);
        // Whoever works may be in one for a moment.
        let nobody_is_left = async || {
            let left =
                "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
            let mut connection = PgConnection::connect(url).await.unwrap();
            sqlx::query_scalar::<_, i64>(left)
                .fetch_one(&mut connection)
                .await
                .unwrap()
                == 0
        };
        eventually("no backend is left in a transaction", nobody_is_left).await;
    }
}

async fn stored(url: &str) -> HashSet<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let ids: Vec<String> = sqlx::query_scalar("select message_id from failed_deliveries")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    ids.into_iter().collect()
}

/// Loads a service, breaks its database, waits until so many callbacks were refused, mends it, and sees to
/// it that all is well.
async fn survives(
    embedded: Embedded,
    refusals: usize,
    break_it: impl AsyncFnOnce(&Embedded),
    mend_it: impl AsyncFnOnce(&Embedded),
) {
    let (service, _simulator) = service_on(&embedded).await;
    let load = Load::new(format!("http://{}/webhook", service.address));
    let fault = async {
        load.until("acknowledgements", || load.acknowledged() > 200)
            .await;
        break_it(&embedded).await;
        let refused = load.refused();
        load.until("refusals", || load.refused() >= refused + refusals)
            .await;
        // A callback that is not about a lockout is none of the database's business.
        let body = br#"{"entry":[]}"#;
        let other = load
            .client
            .post(&load.webhook)
            .header(HEADER, sign(APP_SECRET, body))
            .body(&body[..]);
        assert_eq!(other.send().await.unwrap().status(), StatusCode::OK);
        mend_it(&embedded).await;
        let (mended, acknowledged) = (Instant::now(), load.acknowledged());
        load.until("acknowledgements again", || {
            load.acknowledged() > acknowledged + 200
        })
        .await;
        assert!(
            mended.elapsed() < BACK_WITHIN,
            "back only after {:?}",
            mended.elapsed()
        );
        load.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load.run(), fault);
    assert!(
        *load.slowest.lock().unwrap() < SLOWEST,
        "{:?}",
        load.slowest
    );
    load.settle(&embedded.url()).await;
    service.stop().await;
}

async fn service_on(embedded: &Embedded) -> (Service, Simulator) {
    let simulator = Simulator::start(ACCESS_TOKEN, APP_SECRET).await.unwrap();
    let database = Database::parse(&embedded.url()).unwrap();
    database.migrate().await.unwrap();
    (
        service(database, &simulator, &[APP_SECRET]).await,
        simulator,
    )
}

fn postgres() -> Embedded {
    Embedded::start_temporary(None, false, &CancellationToken::new()).unwrap()
}

fn signal_all(embedded: &Embedded, signal: Signal) {
    signal_each(&processes(embedded), signal);
}

#[tokio::test]
async fn a_silent_database() {
    let stop = async |embedded: &Embedded| signal_all(embedded, Signal::STOP);
    let go_on = async |embedded: &Embedded| signal_all(embedded, Signal::CONT);
    survives(postgres(), 40, stop, go_on).await;
}

#[tokio::test]
async fn a_read_only_database() {
    // As after a failover, when the address still leads to the old primary.
    let lock = async |embedded: &Embedded| {
        run(
            embedded,
            &[
                "alter system set default_transaction_read_only = on",
                "select pg_reload_conf()",
            ],
        )
        .await;
    };
    let unlock = async |embedded: &Embedded| {
        run(
            embedded,
            &[
                "alter system reset default_transaction_read_only",
                "select pg_reload_conf()",
            ],
        )
        .await;
    };
    survives(postgres(), 40, lock, unlock).await;
}

#[tokio::test]
async fn a_locked_table() {
    let embedded = postgres();
    let (locker, unlock) = (tokio::sync::Mutex::new(None), "rollback");
    let lock = async |embedded: &Embedded| {
        let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
        sqlx::raw_sql("begin; lock table failed_deliveries in access exclusive mode")
            .execute(&mut connection)
            .await
            .unwrap();
        *locker.lock().await = Some(connection);
    };
    let release = async |_: &Embedded| {
        sqlx::raw_sql(unlock)
            .execute(locker.lock().await.as_mut().unwrap())
            .await
            .unwrap();
    };
    survives(embedded, 40, lock, release).await;
}

#[tokio::test]
async fn a_stopped_database() {
    // Without its configuration, the supervisor cannot start it again.
    let there = postgres();
    let configuration = there.folder().join("data/postgresql.conf");
    let away = configuration.with_extension("away");
    let stop = async |embedded: &Embedded| {
        std::fs::rename(&configuration, &away).unwrap();
        kill_process(processes(embedded)[0], Signal::QUIT).unwrap();
    };
    let start = async |embedded: &Embedded| {
        std::fs::rename(&away, &configuration).unwrap();
        eventually("the server runs", async || {
            PgConnection::connect(&embedded.url()).await.is_ok()
        })
        .await;
    };
    survives(there, 40, stop, start).await;
}

#[tokio::test]
async fn one_silent_backend_in_a_transaction() {
    // The recorder's own connection, stopped in the middle of its transaction: it holds the account's lock.
    let stopped = Mutex::new(None);
    let stop = async |embedded: &Embedded| {
        let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
        // It comes to the number's row last, when it has locked the account.
        sqlx::raw_sql("begin; select from affected_numbers for update")
            .execute(&mut connection)
            .await
            .unwrap();
        let waiting = "select pid from pg_stat_activity where application_name = 'lockwatch recorder' and wait_event_type = 'Lock'";
        let pid = loop {
            if let Some(pid) = sqlx::query_scalar::<_, i32>(waiting)
                .fetch_optional(&mut connection)
                .await
                .unwrap()
            {
                break Pid::from_raw(pid).unwrap();
            }
        };
        kill_process(pid, Signal::STOP).unwrap();
        sqlx::raw_sql("rollback")
            .execute(&mut connection)
            .await
            .unwrap();
        *stopped.lock().unwrap() = Some(pid);
    };
    let go_on = async |_: &Embedded| {
        let pid = stopped.lock().unwrap().take().unwrap();
        kill_process(pid, Signal::CONT).unwrap();
    };
    survives(postgres(), 40, stop, go_on).await;
}

#[tokio::test]
async fn a_backend_that_never_speaks_again_costs_no_look_up() {
    // Every pooled connection at once, for ever: the follow-up has to notice and connect anew.
    let embedded = postgres();
    let (service, simulator) = service_on(&embedded).await;
    simulator.script(NUMBER, [Scenario::Payment]);
    let mut connection = PgConnection::connect(&embedded.url()).await.unwrap();
    let pooled = "select pid from pg_stat_activity where application_name = 'lockwatch'";
    let pids: Vec<i32> = loop {
        let pids: Vec<i32> = sqlx::query_scalar(pooled)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        if !pids.is_empty() {
            break pids;
        }
    };
    for pid in &pids {
        kill_process(Pid::from_raw(*pid).unwrap(), Signal::STOP).unwrap();
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
    for pid in pids {
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT);
    }
}

#[tokio::test]
async fn kill_9_under_load_loses_nothing_and_leaves_no_server_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut serve = Serve::on_folder(folder.path(), &[]);
    serve.logged("the database is ready");
    let load = Load::new(serve.webhook.clone());
    let kill = async {
        load.until("acknowledgements", || load.acknowledged() > 300)
            .await;
        serve.signal(Signal::KILL);
        load.until("refusals", || load.refused() > 40).await;
        load.stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(load.run(), kill);
    serve.wait();
    let pid_file = folder.path().join("postgres/data/postmaster.pid");
    if let Ok(text) = std::fs::read_to_string(&pid_file) {
        let server = Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap();
        eventually("the server is gone", async || is_gone(server)).await;
    }

    let again = Serve::on_folder(folder.path(), &[]);
    again.logged("the database is ready");
    let url = Embedded::running(&folder.path().join("postgres")).unwrap();
    let load = Load {
        webhook: again.webhook.clone(),
        ..load
    };
    load.settle(&url).await;
}

#[tokio::test]
async fn a_restart_right_after_kill_9_finds_its_database() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut serve = Serve::on_folder(folder.path(), &[]);
        serve.logged("the database is ready");
        serve.signal(Signal::KILL);
        serve.wait();
    }
    let mut last = Serve::on_folder(folder.path(), &[]);
    last.logged("the database is ready");
    last.signal(Signal::TERM);
    assert_eq!(last.wait().code(), Some(0));
    assert_eq!(Embedded::running(&folder.path().join("postgres")), None);
}
