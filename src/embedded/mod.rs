//! The embedded Postgres: a real PostgreSQL, found on this machine and run for us alone.
//!
//! One SQL dialect everywhere, and nothing to set up. The server listens on a unix socket only, keeps
//! `fsync` on, and does not outlive us: a shell waits beside it on a pipe that only we hold open, and
//! stops it when the pipe ends, however we ended. A lock on the folder decides who owns it.

mod cluster;
mod host;

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::cluster::{Cluster, PidFile};
use self::host::{Installation, SOCKET, ServerUser, data_version, lock_folder, socket_folder};

/// The oldest PostgreSQL that will do.
const OLDEST_MAJOR: u32 = 14;
/// The superuser, and the only user.
const ROLE: &str = "lockwatch";
/// How long to wait before a server that died is started again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

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
    lifeline: Mutex<Option<ChildStdin>>,
    /// Held for as long as the folder is ours.
    _lock: File,
}

/// Why there is no embedded server.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No PostgreSQL, or only old ones.
    #[error(
        "no PostgreSQL {OLDEST_MAJOR} or newer was found on this machine{found}. Install one (Debian, Ubuntu: apt install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql), or name its folder in PG_BIN_DIR, or give a DATABASE_URL, or use docker compose up"
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
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// The last lines of its output.
        output: String,
    },
    /// It was told to stop while it started.
    #[error("told to stop")]
    Stopped,
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
    move |source| EmbeddedError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

impl Embedded {
    /// Starts the server on the data in `folder`, which is created if missing. Blocks until the server
    /// takes connections, or until told to stop.
    ///
    /// # Errors
    /// [`EmbeddedError`].
    pub fn start(
        folder: &Path,
        bin: Option<&Path>,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedError> {
        Self::launch(folder, bin, true, None, stop)
    }

    /// Starts a server on new data that is gone when we are. With `fsync` off it is quick, and fit for
    /// tests only.
    ///
    /// # Errors
    /// [`EmbeddedError`].
    pub fn start_temporary(
        bin: Option<&Path>,
        fsync: bool,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedError> {
        let parent = std::env::temp_dir();
        let folder = tempfile::Builder::new()
            .prefix("lockwatch-")
            .tempdir_in(&parent)
            .map_err(io_error("cannot create a folder in", &parent))?;
        if let Some(user) = ServerUser::required() {
            user.take_ownership(folder.path())?;
        }
        let embedded = Self::launch(
            &folder.path().join("postgres"),
            bin,
            fsync,
            Some(folder.path().to_owned()),
            stop,
        )?;
        // From here on the wrapper removes it.
        let _ = folder.keep();
        Ok(embedded)
    }

    fn launch(
        folder: &Path,
        bin: Option<&Path>,
        fsync: bool,
        temporary: Option<PathBuf>,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedError> {
        let server_user = ServerUser::required();
        let lock = lock_folder(folder, server_user.as_ref())?;
        let folder = fs::canonicalize(folder).map_err(io_error("cannot resolve", folder))?;
        if let Some(user) = &server_user {
            user.may_enter(&folder)?;
        }
        let installation = Installation::find(bin, data_version(&folder)?, &folder)?;
        let socket_folder = socket_folder(&folder, server_user.as_ref())?;
        let stop = stop.child_token();
        let cluster = Cluster {
            folder,
            socket_folder,
            installation,
            server_user,
            fsync,
            temporary,
            stop,
        };
        cluster.initialise()?;
        let (server, lifeline) = cluster.run()?;
        let shared = Arc::new(Shared {
            cluster,
            lifeline: Mutex::new(Some(lifeline)),
            _lock: lock,
        });
        let supervisor = thread::Builder::new()
            .name("postgres".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.supervise(server)
            })
            .map_err(io_error(
                "cannot start a thread for",
                &shared.cluster.folder,
            ))?;
        Ok(Self {
            shared,
            supervisor: Some(supervisor),
        })
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
        self.shared.cluster.stop.cancel();
        self.shared.lifeline().take();
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
        let Cluster {
            folder,
            socket_folder,
            ..
        } = &self.shared.cluster;
        if socket_folder != folder {
            let _ = fs::remove_dir(socket_folder);
        }
    }
}

impl Shared {
    fn lifeline(&self) -> MutexGuard<'_, Option<ChildStdin>> {
        self.lifeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the server's end, and starts it again unless it was meant.
    fn supervise(&self, mut server: Child) {
        loop {
            let status = server.wait();
            server = loop {
                if self.cluster.stop.is_cancelled() {
                    return;
                }
                error!(
                    ?status,
                    "PostgreSQL ended and is started again; see {}",
                    self.cluster.log().display()
                );
                sleep(RESTART_DELAY);
                match self.cluster.run() {
                    Ok((again, lifeline)) => {
                        *self.lifeline() = Some(lifeline);
                        break again;
                    }
                    Err(error) => error!("PostgreSQL does not start: {error}"),
                }
            };
            if self.cluster.stop.is_cancelled() {
                self.lifeline().take();
            } else {
                info!("PostgreSQL runs again");
            }
        }
    }
}

fn url(socket_folder: &Path) -> String {
    let host: String =
        form_urlencoded::byte_serialize(socket_folder.as_os_str().as_encoded_bytes()).collect();
    // A query's plus is a space to some and a plus to others.
    let host = host.replace('+', "%20");
    // Port and TLS are said, or the user's PGPORT and PGSSLMODE would decide them.
    format!("postgresql://{ROLE}@localhost:5432/postgres?host={host}&sslmode=disable")
}
