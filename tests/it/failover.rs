//! A primary that dies, and a standby that takes over: real servers that replicate.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use reqwest::StatusCode;
use rustix::process::{Signal, geteuid};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::{TempDir, tempdir};

use crate::support::database::server_processes;
use crate::support::eventually;
use crate::support::load::Load;
use crate::support::process::{Serve, postgres_programs, signal_each};

/// Callbacks that must be acknowledged before each step.
const ACKNOWLEDGEMENTS: usize = 200;

/// One server, with its data and its socket in a folder of its own.
struct Node {
    folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        // The user of the server writes here.
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        Self { folder }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of the socket, as the host of a URL.
    fn host(&self) -> String {
        self.folder.path().to_str().unwrap().replace('/', "%2F")
    }

    fn url(&self) -> String {
        format!("postgresql://lockwatch@{}/postgres", self.host())
    }

    /// Runs one of PostgreSQL's programs, which refuse to run as root.
    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let program = format!("{}/{program}", postgres_programs());
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--", &program]);
            command
        } else {
            Command::new(program)
        };
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .stdin(Stdio::null());
        command.output().unwrap()
    }

    fn run_well(&self, program: &str, arguments: &[&str]) {
        let output = self.run(program, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        assert!(output.status.success(), "{program}: {stderr}\n{log}");
    }

    /// Creates an empty database.
    fn create(&self) {
        let options = ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"];
        let data = self.data();
        let data = ["-U", "lockwatch", "-D", data.to_str().unwrap()];
        self.run_well("initdb", &[&options[..], &data].concat());
    }

    /// Replaces the data by a copy of another server's, of which this one becomes a standby.
    fn copy_from(&self, primary: &Self) {
        if self.data().exists() {
            fs::remove_dir_all(self.data()).unwrap();
        }
        let (host, data) = (primary.folder.path(), self.data());
        let source = ["-U", "lockwatch", "-h", host.to_str().unwrap()];
        let target = [
            "-R",
            "--no-sync",
            "-c",
            "fast",
            "-D",
            data.to_str().unwrap(),
        ];
        self.run_well("pg_basebackup", &[&source[..], &target].concat());
    }

    /// Starts the server and waits until it accepts connections.
    fn start(&self) {
        let folder = self.folder.path().display();
        let options = format!(
            "-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off \
             -c max_connections=200"
        );
        let data = self.data();
        let start = ["-w", "-D", data.to_str().unwrap(), "-o", &options];
        // Its output goes to a file: a server that inherits a pipe would never end it.
        let log = format!("{folder}/log");
        self.run_well("pg_ctl", &[&["start", "-l", &log][..], &start].concat());
    }

    /// Kills every process of the server at once.
    fn kill(&self) {
        signal_each(&server_processes(self.folder.path()), Signal::KILL);
        // The next server takes a process for alive until somebody has waited for it.
        let _ = fs::remove_file(self.folder.path().join(".s.PGSQL.5432.lock"));
    }

    fn stop(&self) {
        let data = self.data();
        self.run_well(
            "pg_ctl",
            &["stop", "-w", "-m", "fast", "-D", data.to_str().unwrap()],
        );
    }

    fn promote(&self) {
        let data = self.data();
        self.run_well("pg_ctl", &["promote", "-w", "-D", data.to_str().unwrap()]);
    }

    async fn execute(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        let statement = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        statement.execute(&mut connection).await.unwrap();
    }

    async fn count(&self, sql: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        let count = sqlx::query_scalar(sql).fetch_one(&mut connection);
        count.await.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let data = self.data();
        self.run(
            "pg_ctl",
            &["stop", "-m", "immediate", "-D", data.to_str().unwrap()],
        );
    }
}

/// A primary that commits only what its standby has as well.
async fn start_pair() -> (Node, Node) {
    let (primary, standby) = (Node::new(), Node::new());
    primary.create();
    primary.start();
    standby.copy_from(&primary);
    standby.start();
    primary
        .execute("alter system set synchronous_standby_names = '*'")
        .await;
    primary.execute("select pg_reload_conf()").await;
    eventually("the standby is synchronous", async || {
        let sql = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        primary.count(sql).await == 1
    })
    .await;
    (primary, standby)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_loses_no_acknowledged_failure() {
    let (first, second) = start_pair().await;
    let url = format!(
        "postgresql://lockwatch@{},{}/postgres",
        first.host(),
        second.host()
    );
    let serve = Serve::on_database(&url, &[("META_GRAPH_URL", "http://127.0.0.1:1")]);
    let load = Load::new(serve.webhook.clone());
    let failover = async {
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        first.kill();
        second.promote();
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;

        // The old primary comes back as a standby: it accepts connections, and no writes.
        first.copy_from(&second);
        first.start();
        second
            .execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                  where application_name like 'lockwatch%'",
            )
            .await;
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        load.stop();
    };
    tokio::join!(load.run(), failover);
    load.check_database(&second.url()).await;
    assert_eq!(
        first.count("select count(*) from incidents").await,
        1,
        "it follows"
    );

    serve.wait_for_log("the database's primary is");
    assert_reads(&load, &serve).await;

    // A process that starts now meets the standby first.
    let settings = [("META_GRAPH_URL", "http://127.0.0.1:1")];
    let second_process = Serve::on_database(&url, &settings);
    assert_reads(&load, &second_process).await;
    let load = load.to(second_process.webhook.clone());
    assert_eq!(load.send("wamid.afterwards").await, Some(StatusCode::OK));
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_a_dead_standby_are_refused_and_pile_up_no_sessions() {
    let (primary, standby) = start_pair().await;
    let serve = Serve::on_database(&primary.url(), &[("META_GRAPH_URL", "http://127.0.0.1:1")]);
    let load = Load::new(serve.webhook.clone());
    let is_ready = async || {
        let answer = load.client().get(format!("{}/readyz", serve.admin)).send();
        answer.await.unwrap().status() == StatusCode::OK
    };
    let outage = async {
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        standby.stop();
        load.wait_for_refusals(ACKNOWLEDGEMENTS).await;
        assert!(!is_ready().await, "commits hang");
        load.wait_for_refusals(10 * ACKNOWLEDGEMENTS).await;
        assert!(!is_ready().await, "commits still hang");
        let hanging = primary
            .count(
                "select count(*) from pg_stat_activity
                  where application_name = 'lockwatch inbox' and wait_event = 'SyncRep'",
            )
            .await;
        assert!((1..=2).contains(&hanging), "{hanging} sessions hang");
        standby.start();
        load.wait_for_acknowledgements(ACKNOWLEDGEMENTS).await;
        eventually("it is ready again", is_ready).await;
        load.stop();
    };
    tokio::join!(load.run(), outage);
    load.check_database(&primary.url()).await;
}

/// Waits until the API reads the incident.
async fn assert_reads(load: &Load, serve: &Serve) {
    eventually("the API reads from the new primary", async || {
        let url = format!("{}/api/v1/incidents", serve.admin);
        let answer = load.client().get(url).send().await.unwrap();
        answer.status() == StatusCode::OK
    })
    .await;
}
