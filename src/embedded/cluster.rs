//! One cluster: its data, its server, and the orphan of an earlier Lockwatch.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::host::{Installation, SOCKET_NAME, ServerUser, clean_command};
use super::{EmbeddedError, SUPERUSER, io_error};

/// The time before each signal to an orphan. It may stop by itself.
const ORPHAN_SIGNAL_INTERVAL: Duration = Duration::from_secs(5);
/// The time after which an orphan that does not stop is an error.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout of a start. After a crash, it depends on the log to replay.
const START_TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The time between two log lines about a slow start.
const START_LOG_INTERVAL: Duration = Duration::from_secs(10);
const SHELL: &str = "/bin/sh";

/// Runs the server (`"$@"`) until it ends, or until standard input ends, because Lockwatch has
/// ended. `$0` is a folder to remove at the end, or empty. The script ignores TERM and HUP and
/// waits for the end of the pipe: a signal to the whole process group stops Lockwatch too.
const WRAPPER_SCRIPT: &str = r#"
trap '' TERM HUP
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
gone=
trap 'gone=1; kill -INT $server' USR1
(
  trap - USR1
  read -r _ <&3
  kill -USR1 $$
  sleep 1; sleep 1; sleep 1; sleep 1
  kill -QUIT $server
  sleep 1; sleep 1; sleep 1
  kill -KILL $server
) &
watcher=$!
exec 3<&-
wait $server
status=$?
if [ -n "$gone" ]; then wait $server; status=$?; fi
kill -KILL $watcher 2>/dev/null
if [ -n "$gone" ] && [ -n "$0" ]; then rm -rf "$0"; fi
exit $status
"#;

/// The place of a server and its settings.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) folder: PathBuf,
    pub(super) socket_folder: PathBuf,
    pub(super) installation: Installation,
    pub(super) server_user: Option<ServerUser>,
    pub(super) fsync: bool,
    /// A temporary folder that is removed when the server has stopped.
    pub(super) remove_at_end: Option<PathBuf>,
    /// Cancels every wait for the server.
    pub(super) stop: CancellationToken,
}

impl Cluster {
    fn data_folder(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    fn program(&self, name: &str) -> Command {
        let path = self.installation.bin.join(name);
        self.as_server_user(clean_command(path))
    }

    fn as_server_user(&self, mut command: Command) -> Command {
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some(user) = &self.server_user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Creates the data if there is none.
    ///
    /// It has another name until it is complete.
    pub(super) fn create_data(&self) -> Result<(), EmbeddedError> {
        if self.data_folder().exists() {
            return Ok(());
        }
        let unfinished = self.folder.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(io_error("cannot remove", &unfinished))?;
        }
        let mut initdb = self.program("initdb");
        initdb.arg("-D").arg(&unfinished).args([
            "-U",
            SUPERUSER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
        ]);
        if !self.fsync {
            initdb.arg("--no-sync");
        }
        let output = initdb.output().map_err(io_error(
            "cannot run",
            &self.installation.bin.join("initdb"),
        ))?;
        if !output.status.success() {
            return Err(EmbeddedError::ProgramFailed {
                program: "initdb",
                output: last_lines(&output.stderr),
            });
        }
        fs::rename(&unfinished, self.data_folder()).map_err(io_error("cannot rename", &unfinished))
    }

    /// Starts the server and waits until it accepts connections.
    ///
    /// Returns the wrapper's process, and the pipe that stops it when closed.
    pub(super) fn start_server(&self) -> Result<(Child, ChildStdin), EmbeddedError> {
        self.stop_orphan()?;
        let before = PostmasterFile::read(&self.data_folder());
        let log_path = self.log_path();
        let log = open_log(&log_path)?;
        let metadata = log.metadata();
        let log_start = metadata.map_err(io_error("cannot read", &log_path))?.len();
        let mut wrapper = self
            .wrapper_command(log)?
            .spawn()
            .map_err(io_error("cannot run", Path::new(SHELL)))?;
        let stop_pipe = wrapper.stdin.take().expect("standard input is a pipe");
        let started = Instant::now();
        let mut logged_at = started;
        loop {
            let now = PostmasterFile::read(&self.data_folder());
            if now != before && now.is_some_and(|postmaster| postmaster.is_ready()) {
                return Ok((wrapper, stop_pipe));
            }
            if self.stop.is_cancelled() {
                drop(stop_pipe);
                let _ = wrapper.wait();
                return Err(EmbeddedError::Stopped);
            }
            let ended = wrapper
                .try_wait()
                .map_err(io_error("cannot wait for", Path::new(SHELL)))?;
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                return Err(start_failure(&log_path, log_start));
            }
            if logged_at.elapsed() > START_LOG_INTERVAL {
                logged_at = Instant::now();
                info!("PostgreSQL is still starting, perhaps recovering from a crash");
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// Returns the command that runs the server under the wrapper script.
    fn wrapper_command(&self, log: File) -> Result<Command, EmbeddedError> {
        let stderr = log.try_clone();
        let stderr = stderr.map_err(io_error("cannot open", &self.log_path()))?;
        // In quotes, because the setting is a list separated by commas.
        let mut sockets = OsString::from("unix_socket_directories=\"");
        sockets.push(&self.socket_folder);
        sockets.push("\"");
        let removed: OsString = self.remove_at_end.clone().unwrap_or_default().into();
        let mut wrapper = self.as_server_user(clean_command(SHELL));
        wrapper
            .args(["-c", WRAPPER_SCRIPT])
            .arg(removed)
            .arg(self.installation.bin.join("postgres"))
            .arg("-D")
            .arg(self.data_folder())
            .arg("-c")
            .arg(sockets);
        for setting in [
            "listen_addresses=",
            "port=5432",
            "unix_socket_permissions=0700",
            if self.fsync { "fsync=on" } else { "fsync=off" },
            "log_min_messages=warning",
            "cluster_name=lockwatch",
            "max_connections=200",
        ] {
            wrapper.args(["-c", setting]);
        }
        wrapper
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(stderr)
            .process_group(0);
        Ok(wrapper)
    }

    /// Stops an orphan: a server that runs on our data although we hold the lock, because its
    /// Lockwatch was killed. Mostly it is about to stop by itself. If not, it gets signals.
    fn stop_orphan(&self) -> Result<(), EmbeddedError> {
        let Some(postmaster) = PostmasterFile::read(&self.data_folder()) else {
            return Ok(());
        };
        let started = Instant::now();
        let mut signals_sent = 0;
        while is_alive(postmaster.pid) {
            if !self.is_server(&postmaster) {
                self.remove_stale_files();
                break;
            }
            if self.stop.is_cancelled() {
                return Err(EmbeddedError::Stopped);
            }
            if started.elapsed() > ORPHAN_TIMEOUT {
                return Err(EmbeddedError::Orphan {
                    pid: postmaster.pid.as_raw_nonzero().get(),
                    folder: self.data_folder(),
                });
            }
            let signals_due = started.elapsed().as_secs() / ORPHAN_SIGNAL_INTERVAL.as_secs();
            if signals_due > signals_sent {
                signals_sent = signals_due;
                warn!(
                    "a PostgreSQL of an earlier lockwatch still runs on {} and is stopped",
                    self.data_folder().display()
                );
                // Twice SIGINT: it lets the server finish its checkpoint.
                let is_gentle = signals_sent <= 2;
                let signal = if is_gentle { Signal::INT } else { Signal::QUIT };
                let _ = kill_process(postmaster.pid, signal);
            }
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Removes the files of a server that no longer runs.
    ///
    /// Its process id was reused, so PostgreSQL would refuse to start.
    fn remove_stale_files(&self) {
        let _ = fs::remove_file(self.data_folder().join("postmaster.pid"));
        let socket_lock = self.socket_folder.join(format!("{SOCKET_NAME}.lock"));
        let _ = fs::remove_file(socket_lock);
    }

    /// Returns whether the process is a server on our data.
    ///
    /// A server works in its data folder. If the system does not tell that, a connection to its
    /// socket decides.
    fn is_server(&self, postmaster: &PostmasterFile) -> bool {
        match fs::read_link(format!("/proc/{}/cwd", postmaster.pid)) {
            Ok(folder) => folder == self.data_folder(),
            Err(_) => UnixStream::connect(postmaster.socket_path()).is_ok(),
        }
    }
}

/// Returns the error of a failed start: the end of the server's log.
fn start_failure(log_path: &Path, log_start: u64) -> EmbeddedError {
    let log = fs::read(log_path).unwrap_or_default();
    let start = usize::try_from(log_start).unwrap_or(0);
    EmbeddedError::ProgramFailed {
        program: "postgres",
        output: last_lines(log.get(start..).unwrap_or_default()),
    }
}

/// Returns whether a process with this id exists.
///
/// It may be a zombie, or a process of another user.
fn is_alive(pid: Pid) -> bool {
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// The file `postmaster.pid` of a server.
///
/// Its lines are: pid, data folder, start time, port, socket folder, addresses, shared memory,
/// state.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PostmasterFile {
    pid: Pid,
    started: String,
    pub(super) socket_folder: PathBuf,
    state: String,
}

impl PostmasterFile {
    /// Returns `None` if there is no file, or no process id in it.
    pub(super) fn read(data_folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(data_folder.join("postmaster.pid")).ok()?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |index: usize| lines.get(index).copied().unwrap_or_default();
        Some(Self {
            pid: Pid::from_raw(line(0).parse().ok()?)?,
            started: line(2).to_owned(),
            socket_folder: PathBuf::from(line(4)),
            state: line(7).to_owned(),
        })
    }

    pub(super) fn socket_path(&self) -> PathBuf {
        self.socket_folder.join(SOCKET_NAME)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}

/// Opens the server's log to append to it, so that a restart keeps the last lines of the server. A
/// long log is renamed first. The folder belongs to the server's user, so a symbolic link in it is
/// not followed.
fn open_log(path: &Path) -> Result<File, EmbeddedError> {
    const LOG_LIMIT_BYTES: u64 = 10 * 1024 * 1024;
    if fs::symlink_metadata(path).is_ok_and(|log| log.len() > LOG_LIMIT_BYTES) {
        fs::rename(path, path.with_extension("log.old"))
            .map_err(io_error("cannot rename", path))?;
    }
    let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).expect("a flag fits");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(no_link)
        .open(path);
    log.map_err(io_error("cannot open", path))
}

fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}
