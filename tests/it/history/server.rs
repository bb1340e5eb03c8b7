//! The one real Postgres of a history, which anything may happen to.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lockwatch::embedded::Embedded;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::database::{processes, run};
use crate::support::process::signal_each;
use crate::support::within;

/// How long it may take to come back: it may have to recover first.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// A server with `fsync` on, on a small disk of its own where that can be had.
pub struct Server {
    // In the order in which they go.
    embedded: Embedded,
    disk: Option<Disk>,
    _folder: TempDir,
}

impl Server {
    pub async fn start(disk_mib: u64) -> Self {
        // The server's user passes through.
        let folder = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let disk = Disk::mount(folder.path(), disk_mib);
        let embedded = Embedded::start(
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
        let small = "alter system set max_wal_size = '64MB'";
        server
            .run(&[
                small,
                "alter system set min_wal_size = '32MB'",
                "select pg_reload_conf()",
            ])
            .await;
        server
    }

    pub fn socket(&self) -> PathBuf {
        self.embedded.folder().join(".s.PGSQL.5432")
    }

    /// A session of its own, past every proxy.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.embedded.url()).await.unwrap()
    }

    pub async fn backends_in_a_transaction(&self) -> i64 {
        let left = "select count(*) from pg_stat_activity where state like 'idle in transaction%'";
        sqlx::query_scalar(left)
            .fetch_one(&mut self.connect().await)
            .await
            .unwrap()
    }

    async fn run(&self, statements: &[&'static str]) {
        run(&self.embedded, statements).await;
    }

    async fn is_back(&self) {
        let answers = async || PgConnection::connect(&self.embedded.url()).await.is_ok();
        within(BACK_WITHIN, "the server takes connections", answers).await;
    }

    /// Stops it with a signal to its first process, and lets it start again only after a while.
    pub async fn stop(&self, signal: Signal, lasts: Duration) {
        // Without its configuration, the supervisor cannot start it again.
        let configuration = self.embedded.folder().join("data/postgresql.conf");
        let away = configuration.with_extension("away");
        fs::rename(&configuration, &away).unwrap();
        kill_process(processes(&self.embedded)[0], signal).unwrap();
        sleep(lasts).await;
        fs::rename(&away, &configuration).unwrap();
        self.is_back().await;
    }

    pub async fn silence(&self, lasts: Duration) {
        let silent = Silent::from_now_on(processes(&self.embedded));
        sleep(lasts).await;
        drop(silent);
        self.is_back().await;
    }

    pub async fn silence_backend(&self, of: &str, nth: usize, lasts: Duration) {
        let backend = timeout(BACK_WITHIN, self.backend(of, nth))
            .await
            .expect("there is such a backend");
        let silent = Silent::from_now_on(vec![backend]);
        sleep(lasts).await;
        drop(silent);
    }

    /// Waits until there is any. The nth counts in a circle.
    async fn backend(&self, of: &str, nth: usize) -> Pid {
        let mut session = self.connect().await;
        loop {
            let pids = "select pid from pg_stat_activity where application_name = $1 order by pid";
            let pids: Vec<i32> = sqlx::query_scalar(pids)
                .bind(of)
                .fetch_all(&mut session)
                .await
                .unwrap();
            if let Some(pid) = pids.get(nth % pids.len().max(1)) {
                return Pid::from_raw(*pid).unwrap();
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn lock_table(&self, table: &str, lasts: Duration) {
        let mut session = self.connect().await;
        let lock = format!("begin; lock table {table} in access exclusive mode");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock))
            .execute(&mut session)
            .await
            .unwrap();
        sleep(lasts).await;
        session.close().await.unwrap();
    }

    /// As after a failover, when the address still leads to the old primary.
    pub async fn read_only(&self, lasts: Duration) {
        self.run(&[
            "alter system set default_transaction_read_only = on",
            "select pg_reload_conf()",
        ])
        .await;
        sleep(lasts).await;
        self.run(&[
            "alter system reset default_transaction_read_only",
            "select pg_reload_conf()",
        ])
        .await;
    }

    /// Says so where there is no disk that could be filled.
    pub async fn fill_disk(&self, lasts: Duration) {
        let Some(disk) = &self.disk else {
            return println!("          left out: without root there is no small disk to fill");
        };
        let filler = disk.fill();
        sleep(lasts).await;
        drop(filler);
        self.is_back().await;
    }
}

/// Processes that do nothing until this is dropped.
struct Silent(Vec<Pid>);

impl Silent {
    fn from_now_on(pids: Vec<Pid>) -> Self {
        signal_each(&pids, Signal::STOP);
        Self(pids)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        signal_each(&self.0, Signal::CONT);
    }
}

/// A file system in memory, which only root may mount. Unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path, mib: u64) -> Option<Self> {
        let size = format!("size={mib}m,mode=755");
        let mount = quiet("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder)
            .status();
        mount
            .is_ok_and(|status| status.success())
            .then(|| Self(folder.to_owned()))
    }

    /// Leaves no room for another byte, until what this returns is dropped.
    fn fill(&self) -> Filler {
        let filler = Filler(self.0.join("filler"));
        let mut file = File::create(&filler.0).unwrap();
        let zeros = vec![0; 1024 * 1024];
        let mut length = zeros.len();
        while length > 0 {
            if file.write_all(&zeros[..length]).is_err() {
                length /= 2;
            }
        }
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = quiet("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = quiet("umount").arg("-l").arg(&self.0).status();
        }
    }
}

struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}
