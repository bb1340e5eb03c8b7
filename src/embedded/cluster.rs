//! One cluster: its data, its server under a wrapper that outlives nobody, and what an earlier server left.

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

use super::host::{Installation, SOCKET, ServerUser, clean_command};
use super::{EmbeddedError, ROLE, io_error};

/// How long a server that is on its way out may take before it is told to go.
const ORPHAN_SIGNAL_INTERVAL: Duration = Duration::from_secs(5);
/// And before we give up on it.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(30);
/// Recovery after a crash takes as long as there is log to replay.
const START_TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A slow start is logged this often.
const START_LOG_INTERVAL: Duration = Duration::from_secs(10);
const SHELL: &str = "/bin/sh";

/// Runs the server (`"$@"`) until it ends, or until standard input does: then lockwatch is gone.
/// `$0` is a folder to remove in the end, or empty. It lets no signal but the pipe's end decide: whoever
/// stops a whole group of processes at once stops lockwatch too.
const WRAPPER: &str = r#"
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

/// Where and how the server runs.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) folder: PathBuf,
    pub(super) socket_folder: PathBuf,
    pub(super) installation: Installation,
    pub(super) server_user: Option<ServerUser>,
    pub(super) fsync: bool,
    /// Removed when the server has stopped.
    pub(super) temporary: Option<PathBuf>,
    /// Ends every wait.
    pub(super) stop: CancellationToken,
}

impl Cluster {
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    fn program(&self, name: &str) -> Command {
        self.as_server_user(clean_command(self.installation.bin.join(name)))
    }

    fn as_server_user(&self, mut command: Command) -> Command {
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some(user) = &self.server_user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Creates the data, beside its place first: a half-made one is never mistaken for a whole.
    pub(super) fn initialise(&self) -> Result<(), EmbeddedError> {
        if self.data().exists() {
            return Ok(());
        }
        let unfinished = self.folder.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(io_error("cannot remove", &unfinished))?;
        }
        let mut initdb = self.program("initdb");
        initdb.arg("-D").arg(&unfinished).args([
            "-U",
            ROLE,
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
            return Err(EmbeddedError::Failed {
                program: "initdb",
                output: last_lines(&output.stderr),
            });
        }
        fs::rename(&unfinished, self.data()).map_err(io_error("cannot rename", &unfinished))
    }

    /// Starts the server under its wrapper and waits until it accepts connections. Returns the wrapper
    /// and its lifeline: the server stops when the pipe is closed.
    pub(super) fn run(&self) -> Result<(Child, ChildStdin), EmbeddedError> {
        self.stop_orphan()?;
        let before = PidFile::read(&self.data());
        let log_path = self.log();
        let log = open_log(&log_path)?;
        let metadata = log.metadata();
        let log_start = metadata.map_err(io_error("cannot read", &log_path))?.len();
        let mut server = self
            .wrapper(log)?
            .spawn()
            .map_err(io_error("cannot run", Path::new(SHELL)))?;
        let lifeline = server.stdin.take().expect("the pipe was asked for");
        let started = Instant::now();
        let mut logged_at = started;
        loop {
            let state = PidFile::read(&self.data());
            if state.as_ref().is_some_and(PidFile::is_ready) && state != before {
                return Ok((server, lifeline));
            }
            if self.stop.is_cancelled() {
                drop(lifeline);
                let _ = server.wait();
                return Err(EmbeddedError::Stopped);
            }
            let ended = server
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

    /// Returns the command that runs the server under its wrapper.
    fn wrapper(&self, log: File) -> Result<Command, EmbeddedError> {
        let log_too = log.try_clone();
        let log_too = log_too.map_err(io_error("cannot open", &self.log()))?;
        // Quoted: it is a list, and the folder's name may hold a comma.
        let mut sockets = OsString::from("unix_socket_directories=\"");
        sockets.push(&self.socket_folder);
        sockets.push("\"");
        let removed: OsString = self.temporary.clone().unwrap_or_default().into();
        let mut wrapper = self.as_server_user(clean_command(SHELL));
        wrapper
            .args(["-c", WRAPPER])
            .arg(removed)
            .arg(self.installation.bin.join("postgres"))
            .arg("-D")
            .arg(self.data())
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
            .stderr(log_too)
            .process_group(0);
        Ok(wrapper)
    }

    /// A server that still runs on our data, though we hold the lock, is an orphan: its lockwatch was
    /// killed. It is mostly on its way out; if not, it is told to go.
    fn stop_orphan(&self) -> Result<(), EmbeddedError> {
        let Some(state) = PidFile::read(&self.data()) else {
            return Ok(());
        };
        let started = Instant::now();
        let mut told = 0;
        while is_alive(state.pid) {
            if !self.is_server(&state) {
                // The number belongs to somebody else now, and PostgreSQL would refuse to start for it.
                for stale in [
                    self.data().join("postmaster.pid"),
                    self.socket_folder.join(format!("{SOCKET}.lock")),
                ] {
                    let _ = fs::remove_file(stale);
                }
                break;
            }
            if self.stop.is_cancelled() {
                return Err(EmbeddedError::Stopped);
            }
            if started.elapsed() > ORPHAN_TIMEOUT {
                return Err(EmbeddedError::Orphan {
                    pid: state.pid.as_raw_nonzero().get(),
                    folder: self.data(),
                });
            }
            let tell = started.elapsed().as_secs() / ORPHAN_SIGNAL_INTERVAL.as_secs();
            if tell > told {
                told = tell;
                warn!(
                    "a PostgreSQL of an earlier lockwatch still runs on {} and is stopped",
                    self.data().display()
                );
                // Twice the gentle way, which lets it finish its checkpoint.
                let _ = kill_process(
                    state.pid,
                    if told <= 2 { Signal::INT } else { Signal::QUIT },
                );
            }
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Whether the process in the pid file is a server on our data: it works in that folder. Where the
    /// system does not tell, its socket does.
    fn is_server(&self, state: &PidFile) -> bool {
        match fs::read_link(format!("/proc/{}/cwd", state.pid)) {
            Ok(folder) => folder == self.data(),
            Err(_) => UnixStream::connect(state.socket_folder.join(SOCKET)).is_ok(),
        }
    }
}

/// Returns the error of a server that did not start: the last lines that it wrote to its log.
fn start_failure(log_path: &Path, log_start: u64) -> EmbeddedError {
    let log = fs::read(log_path).unwrap_or_default();
    let start = usize::try_from(log_start).unwrap_or(0);
    EmbeddedError::Failed {
        program: "postgres",
        output: last_lines(log.get(start..).unwrap_or_default()),
    }
}

/// Alive, or a zombie that its parent has not buried, or somebody else's.
fn is_alive(pid: Pid) -> bool {
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// `postmaster.pid`: pid, data, start time, port, socket folder, addresses, shared memory, state.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    pid: Pid,
    started: String,
    pub(super) socket_folder: PathBuf,
    state: String,
}

impl PidFile {
    pub(super) fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let line = |n| {
            text.lines()
                .nth(n)
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        Some(Self {
            pid: Pid::from_raw(line(0).parse().ok()?)?,
            started: line(2),
            socket_folder: PathBuf::from(line(4)),
            state: line(7),
        })
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}

/// Appends, so that a restart keeps what the server said last; starts anew once it is long. The folder is
/// the server's user's, so a link in it is not followed.
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
