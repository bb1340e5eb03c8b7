//! The real Postgres server of a fault history, and the faults that can be injected into it.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lockwatch::embedded::EmbeddedPostgres;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::database::{postmaster_of, run_statements, server_processes};
use crate::support::eventually_within;
use crate::support::process::signal_each;

/// The time within which the server must be back. It may have to recover from its log first.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// A server with `fsync` on. It has a small disk of its own, where that can be mounted.
pub struct PostgresServer {
    // Fields drop in order: the server ends before its disk and its folder go.
    embedded: EmbeddedPostgres,
    disk: Option<SmallDisk>,
    _folder: TempDir,
}

impl PostgresServer {
    pub async fn start(disk_mib: u64) -> Self {
        // The user of the server must be able to enter the folder.
        let folder = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let disk = SmallDisk::mount(folder.path(), disk_mib);
        let embedded = EmbeddedPostgres::start(
            &folder.path().join("postgres"),
            None,
            &CancellationToken::new(),
        )
        .unwrap();
        let server = Self {
            embedded,
            disk,
            _folder: folder,
        };
        server
            .run(&[
                "alter system set max_wal_size = '64MB'",
                "alter system set min_wal_size = '32MB'",
                "select pg_reload_conf()",
            ])
            .await;
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.embedded.folder().join(".s.PGSQL.5432")
    }

    /// Opens a direct connection, without a proxy.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.embedded.url()).await.unwrap()
    }

    pub async fn backends_in_transaction(&self) -> i64 {
        let idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
        sqlx::query_scalar(idle)
            .fetch_one(&mut self.connect().await)
            .await
            .unwrap()
    }

    /// Stops the server with a signal to the postmaster, and lets it start again after this time.
    pub async fn stop(&self, signal: Signal, duration: Duration) {
        // Without its configuration file, the supervisor cannot start the server again.
        let configuration = self.embedded.folder().join("data/postgresql.conf");
        let hidden = configuration.with_extension("away");
        fs::rename(&configuration, &hidden).unwrap();
        kill_process(postmaster_of(self.embedded.folder()), signal).unwrap();
        sleep(duration).await;
        fs::rename(&hidden, &configuration).unwrap();
        self.wait_until_back().await;
    }

    /// Pauses the server and all its backends.
    pub async fn pause(&self, duration: Duration) {
        let paused = PausedProcesses::pause(server_processes(self.embedded.folder()));
        sleep(duration).await;
        drop(paused);
        self.wait_until_back().await;
    }

    /// Pauses one backend, the nth of those with this application name.
    pub async fn pause_backend(&self, application_name: &str, nth: usize, duration: Duration) {
        let backend = timeout(RESTART_TIMEOUT, self.find_backend(application_name, nth))
            .await
            .expect("there must be a backend with this application name");
        let paused = PausedProcesses::pause(vec![backend]);
        sleep(duration).await;
        drop(paused);
    }

    pub async fn lock_table(&self, table: &str, duration: Duration) {
        let mut session = self.connect().await;
        let lock = format!("begin; lock table {table} in access exclusive mode");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock))
            .execute(&mut session)
            .await
            .unwrap();
        sleep(duration).await;
        session.close().await.unwrap();
    }

    /// Holds an account's lock, or its incidents' rows, in an open transaction.
    pub async fn hold_account(&self, waba_id: &str, holds_row: bool, duration: Duration) {
        let hold = if holds_row {
            format!(
                "update incidents set resolution_note = resolution_note where waba_id = '{waba_id}'"
            )
        } else {
            format!("select pg_advisory_xact_lock(hashtextextended('{waba_id}', 131031))")
        };
        let mut session = self.connect().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("begin; {hold}")))
            .execute(&mut session)
            .await
            .unwrap();
        sleep(duration).await;
        session.close().await.unwrap();
    }

    /// Lets the ids of a table start anew. Service must recover by itself.
    pub async fn set_sequence_back(&self, table: &str) {
        self.execute(format!("select setval('{table}_id_seq', 1, false)"))
            .await;
    }

    /// Adds a foreign key that no row satisfies, for this time.
    pub async fn add_foreign_key(&self, table: &str, duration: Duration) {
        self.execute(format!(
            "create table if not exists tenants (waba_id text primary key);
             alter table {table} add constraint tenant
               foreign key (waba_id) references tenants not valid"
        ))
        .await;
        sleep(duration).await;
        self.execute(format!(
            "alter table {table} drop constraint tenant; drop table tenants"
        ))
        .await;
    }

    /// Keeps a snapshot open.
    pub async fn keep_snapshot(&self, duration: Duration) {
        let mut session = self.connect().await;
        let snapshot = "begin isolation level repeatable read; select count(*) from inbox";
        sqlx::raw_sql(snapshot).execute(&mut session).await.unwrap();
        sleep(duration).await;
        session.close().await.unwrap();
    }

    /// Shifts what our sessions take for the time.
    pub async fn shift_clock(&self, minutes: i32, duration: Duration) {
        const RECONNECT: &str = "select pg_terminate_backend(pid) from pg_stat_activity
                                  where application_name like 'lockwatch%'";
        self.execute(format!(
            "create schema clock;
             create function clock.now() returns timestamptz language sql stable as
               $$select pg_catalog.now() + interval '{minutes} minutes'$$;
             create function clock.clock_timestamp() returns timestamptz language sql volatile as
               $$select pg_catalog.clock_timestamp() + interval '{minutes} minutes'$$;
             alter role current_user set search_path = clock, public, pg_catalog"
        ))
        .await;
        self.execute(RECONNECT.to_owned()).await;
        sleep(duration).await;
        self.execute("alter role current_user reset search_path".to_owned())
            .await;
        self.execute(RECONNECT.to_owned()).await;
        self.execute("drop schema clock cascade".to_owned()).await;
    }

    pub fn url(&self) -> String {
        self.embedded.url()
    }

    /// Executes statements once the server takes them: another fault may be active.
    async fn execute(&self, sql: String) {
        eventually_within(RESTART_TIMEOUT, &sql, async || {
            let Ok(mut session) = PgConnection::connect(&self.embedded.url()).await else {
                return false;
            };
            let statements = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone()));
            statements.execute(&mut session).await.is_ok()
        })
        .await;
    }

    /// Makes the server read-only, as after a failover when the address still leads to the old
    /// primary.
    pub async fn make_read_only(&self, duration: Duration) {
        self.run(&[
            "alter system set default_transaction_read_only = on",
            "select pg_reload_conf()",
        ])
        .await;
        sleep(duration).await;
        self.run(&[
            "alter system reset default_transaction_read_only",
            "select pg_reload_conf()",
        ])
        .await;
    }

    /// Fills the disk, or prints that there is no small disk to fill.
    pub async fn fill_disk(&self, duration: Duration) {
        let Some(disk) = &self.disk else {
            println!("!! NOT RUN: a full disk: without root there is no small disk to fill");
            return;
        };
        let fill_file = disk.fill();
        sleep(duration).await;
        drop(fill_file);
        self.wait_until_back().await;
    }

    async fn run(&self, statements: &[&'static str]) {
        run_statements(&self.embedded, statements).await;
    }

    async fn wait_until_back(&self) {
        eventually_within(
            RESTART_TIMEOUT,
            "the server takes connections",
            async || PgConnection::connect(&self.embedded.url()).await.is_ok(),
        )
        .await;
    }

    /// Waits until there is at least one such backend. A number past the last one wraps around.
    async fn find_backend(&self, application_name: &str, nth: usize) -> Pid {
        let mut session = self.connect().await;
        loop {
            let pids = "select pid from pg_stat_activity where application_name = $1 order by pid";
            let pids: Vec<i32> = sqlx::query_scalar(pids)
                .bind(application_name)
                .fetch_all(&mut session)
                .await
                .unwrap();
            if let Some(pid) = pids.get(nth % pids.len().max(1)) {
                return Pid::from_raw(*pid).unwrap();
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Processes that are stopped (SIGSTOP) until this is dropped.
struct PausedProcesses(Vec<Pid>);

impl PausedProcesses {
    fn pause(pids: Vec<Pid>) -> Self {
        signal_each(&pids, Signal::STOP);
        Self(pids)
    }
}

impl Drop for PausedProcesses {
    fn drop(&mut self) {
        signal_each(&self.0, Signal::CONT);
    }
}

/// A file system in memory, which only root can mount. Unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path, mib: u64) -> Option<Self> {
        let size = format!("size={mib}m,mode=755");
        let mount = quiet_command("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder)
            .status();
        mount
            .is_ok_and(|status| status.success())
            .then(|| Self(folder.to_owned()))
    }

    /// Fills the disk to its last byte, until the returned file is dropped.
    fn fill(&self) -> FillFile {
        let fill_file = FillFile(self.0.join("filler"));
        let mut file = File::create(&fill_file.0).unwrap();
        let zeros = vec![0; 1024 * 1024];
        let mut length = zeros.len();
        while length > 0 {
            if file.write_all(&zeros[..length]).is_err() {
                length /= 2;
            }
        }
        fill_file
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = quiet_command("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = quiet_command("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// The file that fills the disk. Removed when dropped.
struct FillFile(PathBuf);

impl Drop for FillFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn quiet_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}
