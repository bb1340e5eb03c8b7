//! The embedded Postgres: a real PostgreSQL, found on this machine and run for us alone.
//!
//! One SQL dialect everywhere, and nothing to set up. The server listens on a unix socket only, keeps
//! `fsync` on, and does not outlive us: a shell waits beside it on a pipe that only we hold open, and
//! stops it when the pipe ends, however we ended. A lock on the folder decides who owns it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use tracing::{error, info, warn};

/// The oldest PostgreSQL that will do.
const OLDEST: u32 = 14;
/// The longest socket path that every system takes.
const SOCKET_PATH: usize = 103;
const SOCKET: &str = ".s.PGSQL.5432";
const ROLE: &str = "lockwatch";
/// How long a server that is on its way out may take before it is told to go.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(5);
/// And before we give up on it.
const ORPHAN_LIMIT: Duration = Duration::from_secs(30);
/// Recovery after a crash takes as long as there is log to replay.
const START_LIMIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
const BEFORE_RESTART: Duration = Duration::from_secs(1);

/// Runs the server (`"$@"`) until it ends, or until standard input does: then lockwatch is gone.
/// `$0` is a folder to remove in the end, or empty.
const WRAPPER: &str = r#"
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
gone=
trap 'gone=1; kill -INT $server' USR1
(
  trap - USR1
  read -r _ <&3
  kill -USR1 $$
  n=0
  while [ $n -lt 15 ]; do sleep 1; n=$((n + 1)); done
  kill -QUIT $server
) &
watcher=$!
exec 3<&-
wait $server
status=$?
if [ -n "$gone" ]; then wait $server; status=$?; fi
kill $watcher 2>/dev/null
if [ -n "$gone" ] && [ -n "$0" ]; then rm -rf "$0"; fi
exit $status
"#;

/// A running server. Stops it when dropped.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    /// The pipe's end that keeps the server alive; `None` once it shall stop.
    leash: Mutex<Option<ChildStdin>>,
    /// Held for as long as the folder is ours.
    _lock: File,
}

/// Where and how the server runs.
#[derive(Debug)]
struct Cluster {
    folder: PathBuf,
    socket_folder: PathBuf,
    installation: Installation,
    server_user: Option<ServerUser>,
    fsync: bool,
    /// Removed when the server has stopped.
    temporary: Option<PathBuf>,
}

/// A PostgreSQL found on this machine.
#[derive(Debug, Clone)]
struct Installation {
    bin: PathBuf,
    major: u32,
}

/// PostgreSQL refuses to run as root; then it runs as this user.
#[derive(Debug, Clone)]
struct ServerUser {
    name: String,
    uid: u32,
    gid: u32,
}

/// Why there is no embedded server.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No PostgreSQL, or only old ones.
    #[error(
        "no PostgreSQL {OLDEST} or newer was found on this machine{found}. Install one (Debian, Ubuntu: apt install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql), or name its folder in PG_BIN_DIR, or give a DATABASE_URL, or use docker compose up"
    )]
    NotInstalled {
        /// What was found instead.
        found: String,
    },
    /// Another lockwatch runs on the folder.
    #[error("another lockwatch is running on {} (stop it, or choose another LOCKWATCH_DATA_DIR)", .0.display())]
    InUse(PathBuf),
    /// The data was written by another major version.
    #[error(
        "the data in {folder} is PostgreSQL {data}'s, and only {found} is installed; install PostgreSQL {data}, or move the data with pg_upgrade",
        folder = folder.display()
    )]
    OtherVersion {
        /// The data folder.
        folder: PathBuf,
        /// Whose it is.
        data: u32,
        /// What is there.
        found: String,
    },
    /// The user who runs the server may not get to its data.
    #[error("PostgreSQL runs as user {user}, who may not enter {folder} (choose another LOCKWATCH_DATA_DIR)", folder = folder.display())]
    Closed {
        /// Who.
        user: String,
        /// Where to.
        folder: PathBuf,
    },
    /// A server on our data does not go away.
    #[error("a PostgreSQL (process {pid}) still runs on {folder} and does not stop", folder = folder.display())]
    Orphan {
        /// Its process.
        pid: i32,
        /// Its data.
        folder: PathBuf,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// Its last words.
        said: String,
    },
    /// A file or folder.
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError {
    move |source| EmbeddedError::Io { what, path: path.to_owned(), source }
}

impl Embedded {
    /// Starts the server on the data in `folder`, which is created if missing. Blocks until the server
    /// takes connections.
    ///
    /// # Errors
    /// [`EmbeddedError`].
    pub fn start(folder: &Path, bin: Option<&Path>) -> Result<Self, EmbeddedError> {
        Self::launch(folder, bin, true, None)
    }

    /// Starts a server on new data that is gone when we are. With `fsync` off it is quick, and fit for
    /// tests only.
    ///
    /// # Errors
    /// [`EmbeddedError`].
    pub fn start_temporary(bin: Option<&Path>, fsync: bool) -> Result<Self, EmbeddedError> {
        let parent = std::env::temp_dir();
        let folder = tempfile::Builder::new()
            .prefix("lockwatch-")
            .tempdir_in(&parent)
            .map_err(io_error("cannot create a folder in", &parent))?;
        if let Some(user) = ServerUser::needed() {
            user.own(folder.path())?;
        }
        let embedded = Self::launch(&folder.path().join("postgres"), bin, fsync, Some(folder.path().to_owned()))?;
        // From here on the wrapper removes it.
        let _ = folder.keep();
        Ok(embedded)
    }

    fn launch(
        folder: &Path,
        bin: Option<&Path>,
        fsync: bool,
        temporary: Option<PathBuf>,
    ) -> Result<Self, EmbeddedError> {
        let server_user = ServerUser::needed();
        let lock = own_folder(folder, server_user.as_ref())?;
        let folder = fs::canonicalize(folder).map_err(io_error("cannot resolve", folder))?;
        if let Some(user) = &server_user {
            user.may_enter(&folder)?;
        }
        let installation = Installation::find(bin, data_version(&folder)?, &folder)?;
        let socket_folder = socket_folder(&folder, server_user.as_ref())?;
        let cluster = Cluster { folder, socket_folder, installation, server_user, fsync, temporary };
        cluster.initialise()?;
        let (server, leash) = cluster.run()?;
        let shared = Arc::new(Shared { cluster, leash: Mutex::new(Some(leash)), _lock: lock });
        let supervisor = thread::Builder::new()
            .name("postgres".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.supervise(server)
            })
            .map_err(io_error("cannot start a thread for", &shared.cluster.folder))?;
        Ok(Self { shared, supervisor: Some(supervisor) })
    }

    /// The URL to connect to. It stays the same when the server is restarted.
    #[must_use]
    pub fn url(&self) -> String {
        url(&self.shared.cluster.socket_folder)
    }

    /// The folder of the data.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.cluster.folder
    }

    /// The server's major version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.shared.cluster.installation.major
    }

    /// The URL of the server that runs on `folder` under another lockwatch.
    #[must_use]
    pub fn running(folder: &Path) -> Option<String> {
        let state = PidFile::read(&folder.join("data"))?;
        state.is_ready().then_some(())?;
        UnixStream::connect(state.socket_folder.join(SOCKET)).ok()?;
        Some(url(&state.socket_folder))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.leash.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
        let Cluster { folder, socket_folder, .. } = &self.shared.cluster;
        if socket_folder != folder {
            let _ = fs::remove_dir(socket_folder);
        }
    }
}

impl Shared {
    /// Waits for the server's end, and starts it again unless it was meant.
    fn supervise(&self, mut server: Child) {
        loop {
            let status = server.wait();
            loop {
                if self.leash.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                    return;
                }
                error!(?status, "PostgreSQL ended and is started again; see {}", self.cluster.log().display());
                sleep(BEFORE_RESTART);
                match self.cluster.run() {
                    Ok((again, leash)) => {
                        let mut held = self.leash.lock().unwrap_or_else(PoisonError::into_inner);
                        // Stopped meanwhile: dropping the new leash ends the new server.
                        if held.is_some() {
                            *held = Some(leash);
                        }
                        server = again;
                        info!("PostgreSQL runs again");
                        break;
                    }
                    Err(error) => error!("PostgreSQL does not start: {error}"),
                }
            }
        }
    }
}

impl Cluster {
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    fn program(&self, name: &str) -> Command {
        self.as_server_user(Command::new(self.installation.bin.join(name)))
    }

    fn as_server_user(&self, mut command: Command) -> Command {
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").current_dir(&self.folder).stdin(Stdio::null());
        if let Some(user) = &self.server_user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// Creates the data, beside its place first: a half-made one is never mistaken for a whole.
    fn initialise(&self) -> Result<(), EmbeddedError> {
        if self.data().exists() {
            return Ok(());
        }
        let unfinished = self.folder.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(io_error("cannot remove", &unfinished))?;
        }
        let mut initdb = self.program("initdb");
        initdb.arg("-D").arg(&unfinished).args(["-U", ROLE, "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        if !self.fsync {
            initdb.arg("--no-sync");
        }
        let output = initdb.output().map_err(io_error("cannot run", &self.installation.bin.join("initdb")))?;
        if !output.status.success() {
            return Err(EmbeddedError::Failed { program: "initdb", said: last_lines(&output.stderr) });
        }
        fs::rename(&unfinished, self.data()).map_err(io_error("cannot rename", &unfinished))
    }

    /// Starts the server under its wrapper and waits until it takes connections.
    fn run(&self) -> Result<(Child, ChildStdin), EmbeddedError> {
        self.clear_the_way()?;
        let before = PidFile::read(&self.data());
        let log_path = self.log();
        let log = File::create(&log_path).map_err(io_error("cannot create", &log_path))?;
        let log_too = log.try_clone().map_err(io_error("cannot open", &log_path))?;
        let mut wrapper = self.as_server_user(Command::new("/bin/sh"));
        let mut sockets = OsString::from("unix_socket_directories=");
        sockets.push(&self.socket_folder);
        let removed: OsString = self.temporary.clone().map(PathBuf::into_os_string).unwrap_or_default();
        wrapper
            .args(["-c", WRAPPER])
            .arg(removed)
            .arg(self.installation.bin.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .arg("-c")
            .arg(sockets)
            .args(["-c", "listen_addresses=", "-c", "port=5432", "-c", "unix_socket_permissions=0700"])
            .args(["-c", if self.fsync { "fsync=on" } else { "fsync=off" }])
            .args(["-c", "log_min_messages=warning", "-c", "cluster_name=lockwatch"])
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(log_too)
            .process_group(0);
        let mut server = wrapper.spawn().map_err(io_error("cannot run", Path::new("/bin/sh")))?;
        let leash = server.stdin.take().expect("the pipe was asked for");
        let started = Instant::now();
        let mut said_at = started;
        loop {
            let state = PidFile::read(&self.data());
            if state.as_ref().is_some_and(PidFile::is_ready) && state != before {
                return Ok((server, leash));
            }
            let ended = server.try_wait().map_err(io_error("cannot wait for", Path::new("/bin/sh")))?.is_some();
            if ended || started.elapsed() > START_LIMIT {
                let said = fs::read(&log_path).map(|log| last_lines(&log)).unwrap_or_default();
                return Err(EmbeddedError::Failed { program: "postgres", said });
            }
            if said_at.elapsed() > Duration::from_secs(10) {
                said_at = Instant::now();
                info!("PostgreSQL is still starting, perhaps recovering from a crash");
            }
            sleep(POLL);
        }
    }

    /// A server that still runs on our data, though we hold the lock, is an orphan: its lockwatch was
    /// killed. It is mostly on its way out; if not, it is told to go.
    fn clear_the_way(&self) -> Result<(), EmbeddedError> {
        let Some(state) = PidFile::read(&self.data()) else {
            return Ok(());
        };
        let started = Instant::now();
        let mut told = 0;
        while is_alive(state.pid) {
            if !self.is_server(&state) {
                // The number belongs to somebody else now, and PostgreSQL would refuse to start for it.
                for stale in [self.data().join("postmaster.pid"), self.socket_folder.join(format!("{SOCKET}.lock"))] {
                    let _ = fs::remove_file(stale);
                }
                break;
            }
            if started.elapsed() > ORPHAN_LIMIT {
                return Err(EmbeddedError::Orphan { pid: state.pid.as_raw_nonzero().get(), folder: self.data() });
            }
            let tell = started.elapsed().as_secs() / ORPHAN_PATIENCE.as_secs();
            if tell > told {
                told = tell;
                warn!("a PostgreSQL of an earlier lockwatch still runs on {} and is stopped", self.data().display());
                // Twice the gentle way, which lets it finish its checkpoint.
                let _ = kill_process(state.pid, if told <= 2 { Signal::INT } else { Signal::QUIT });
            }
            sleep(POLL);
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

/// Alive, or a zombie that its parent has not buried, or somebody else's.
fn is_alive(pid: Pid) -> bool {
    !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// `postmaster.pid`: pid, data, start time, port, socket folder, addresses, shared memory, state.
#[derive(Debug, PartialEq, Eq)]
struct PidFile {
    pid: Pid,
    started: String,
    socket_folder: PathBuf,
    state: String,
}

impl PidFile {
    fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let line = |n| text.lines().nth(n).map(str::trim).unwrap_or_default().to_owned();
        Some(Self {
            pid: Pid::from_raw(line(0).parse().ok()?)?,
            started: line(2),
            socket_folder: PathBuf::from(line(4)),
            state: line(7),
        })
    }

    fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}

impl Installation {
    /// The newest one, or that of the data's version.
    fn find(named: Option<&Path>, data: Option<u32>, folder: &Path) -> Result<Self, EmbeddedError> {
        let candidates = named.map_or_else(usual_folders, |named| vec![named.to_owned()]);
        let mut found: Vec<Self> = candidates.into_iter().filter_map(Self::inspect).collect();
        found.sort_by_key(|installation| std::cmp::Reverse(installation.major));
        let versions = || found.iter().map(|f| f.major.to_string()).collect::<Vec<_>>().join(", ");
        if found.first().is_none_or(|newest| newest.major < OLDEST) {
            let found = match (named, found.is_empty()) {
                (Some(named), true) => format!(" (PG_BIN_DIR={} has no postgres and initdb)", named.display()),
                (_, true) => String::new(),
                (_, false) => format!(" (only {})", versions()),
            };
            return Err(EmbeddedError::NotInstalled { found });
        }
        let Some(data) = data else {
            return Ok(found.swap_remove(0));
        };
        let other = || EmbeddedError::OtherVersion { folder: folder.to_owned(), data, found: versions() };
        found.iter().find(|installation| installation.major == data).cloned().ok_or_else(other)
    }

    fn inspect(bin: PathBuf) -> Option<Self> {
        bin.join("initdb").exists().then_some(())?;
        let output = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
        // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split(") ").nth(1)?;
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(Self { major: digits.parse().ok()?, bin })
    }
}

fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    for versions in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let entries = fs::read_dir(versions).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path().join("bin")));
    }
    folders.push(PathBuf::from("/usr/pgsql/bin"));
    folders.retain(|folder| folder.join("postgres").exists());
    folders
}

impl ServerUser {
    /// As root: `postgres`, else `nobody`. Otherwise we are good enough ourselves.
    fn needed() -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = |name: &str| {
            passwd.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(name)).then_some(())?;
                let uid = fields.nth(1)?.parse().ok()?;
                Some(Self { name: name.to_owned(), uid, gid: fields.next()?.parse().ok()? })
            })
        };
        const OVERFLOW: u32 = 65534;
        let nobody = || Self { name: "nobody".to_owned(), uid: OVERFLOW, gid: OVERFLOW };
        Some(entry("postgres").or_else(|| entry("nobody")).unwrap_or_else(nobody))
    }

    fn own(&self, folder: &Path) -> Result<(), EmbeddedError> {
        chown(folder, Some(self.uid), Some(self.gid)).map_err(io_error("cannot hand over", folder))
    }

    /// Asks the system itself: a folder above may be closed.
    fn may_enter(&self, folder: &Path) -> Result<(), EmbeddedError> {
        let entered = Command::new("/bin/sh")
            .args(["-c", "cd \"$0\""])
            .arg(folder)
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .stderr(Stdio::null())
            .status();
        match entered {
            Ok(status) if status.success() => Ok(()),
            _ => Err(EmbeddedError::Closed { user: self.name.clone(), folder: folder.to_owned() }),
        }
    }
}

/// Creates the folder if missing, and takes its lock.
fn own_folder(folder: &Path, server_user: Option<&ServerUser>) -> Result<File, EmbeddedError> {
    fs::create_dir_all(folder).map_err(io_error("cannot create", folder))?;
    let lock_path = folder.join("lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(io_error("cannot open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(EmbeddedError::InUse(folder.to_owned())),
        Err(TryLockError::Error(source)) => return Err(io_error("cannot lock", &lock_path)(source)),
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(io_error("cannot close", folder))?;
    if let Some(user) = server_user {
        user.own(folder)?;
    }
    Ok(lock)
}

/// The major version that wrote the data, if there is any.
fn data_version(folder: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = folder.join("data/PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(version) => Ok(version.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("cannot read", &path)(error)),
    }
}

/// The socket is in the folder itself, unless its path would be too long for a socket. Then it is in a
/// folder of the same owner beside other temporary files.
fn socket_folder(folder: &Path, server_user: Option<&ServerUser>) -> Result<PathBuf, EmbeddedError> {
    if folder.join(SOCKET).as_os_str().len() <= SOCKET_PATH {
        return Ok(folder.to_owned());
    }
    let inode = fs::metadata(folder).map_err(io_error("cannot read", folder))?;
    let elsewhere = PathBuf::from(format!("/tmp/lockwatch-socket-{:x}-{:x}", inode.dev(), inode.ino()));
    match DirBuilder::new().mode(0o700).create(&elsewhere) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("cannot create", &elsewhere)(error));
        }
        Ok(()) => {
            if let Some(user) = server_user {
                user.own(&elsewhere)?;
            }
        }
        Err(_) => {}
    }
    // Anyone may have created it before us.
    let found = fs::symlink_metadata(&elsewhere).map_err(io_error("cannot read", &elsewhere))?;
    let owner = server_user.map_or_else(|| geteuid().as_raw(), |user| user.uid);
    if !found.is_dir() || found.uid() != owner || found.mode() & 0o077 != 0 {
        let source = io::Error::other("it belongs to somebody else");
        return Err(io_error("cannot use", &elsewhere)(source));
    }
    Ok(elsewhere)
}

fn url(socket_folder: &Path) -> String {
    let host: String = form_urlencoded::byte_serialize(socket_folder.as_os_str().as_encoded_bytes()).collect();
    // A query's plus is a space to some and a plus to others.
    format!("postgresql://{ROLE}@localhost/postgres?host={}", host.replace('+', "%20"))
}

fn last_lines(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}
