//! The embedded Postgres: a PostgreSQL that runs only for Lockwatch.
//!
//! It is installed on this machine. So there is one SQL dialect everywhere, and nothing to set up.
//! The server listens on a Unix socket only and keeps `fsync` on. It does not outlive Lockwatch: a
//! shell runs beside it and reads from a pipe that only Lockwatch holds open. The pipe is closed
//! when Lockwatch ends, even if it is killed, and then the shell stops the server. A lock on the
//! data folder ensures that only one Lockwatch uses it.

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

use self::cluster::{Cluster, PostmasterFile};
use self::host::{Installation, ServerUser};
use self::host::{choose_socket_folder, data_version, lock_folder};

/// The oldest major version of PostgreSQL that is supported.
const MIN_MAJOR_VERSION: u32 = 14;
/// The name of the superuser. It is the only user.
const SUPERUSER: &str = "lockwatch";
/// The delay before a server that ended by itself is started again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// A running PostgreSQL server. It is stopped when this is dropped.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    cluster: Cluster,
    /// The pipe that keeps the server running. `None` once it is closed.
    stop_pipe: Mutex<Option<ChildStdin>>,
    /// The lock on the folder. It is held as long as the server may run.
    _lock: File,
}

/// The reason why the embedded server did not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No PostgreSQL is installed, or only versions that are too old.
    #[error(
        "no PostgreSQL {MIN_MAJOR_VERSION} or newer was found on this machine{found}. Give a \
         DATABASE_URL, or use docker compose up, or install one (Debian, Ubuntu: apt install \
         postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql), or \
         name its folder in PG_BIN_DIR"
    )]
    NotInstalled {
        /// The end of the sentence: the versions found, or empty.
        found: String,
    },
    /// The data folder does not exist and cannot be created.
    #[error(
        "cannot create {folder}: {source} (choose another LOCKWATCH_DATA_DIR, or give a \
         DATABASE_URL)",
        folder = folder.display()
    )]
    NoFolder {
        /// The data folder.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another Lockwatch uses the data folder.
    #[error(
        "another lockwatch is running on {} (stop it, or choose another LOCKWATCH_DATA_DIR)",
        .0.display()
    )]
    InUse(PathBuf),
    /// The data was written by a major version that is not installed.
    #[error(
        "the data in {folder} is PostgreSQL {data}'s, and only {found} is installed; install \
         PostgreSQL {data}, or move the data with pg_upgrade",
        folder = folder.display()
    )]
    VersionMismatch {
        /// The data folder.
        folder: PathBuf,
        /// The major version that wrote the data.
        data: u32,
        /// The installed versions.
        found: String,
    },
    /// The user that runs the server has no access to the data folder.
    #[error(
        "PostgreSQL runs as user {user}, who may not enter {folder} (choose another \
         LOCKWATCH_DATA_DIR)",
        folder = folder.display()
    )]
    NoAccess {
        /// The user's name.
        user: String,
        /// The data folder.
        folder: PathBuf,
    },
    /// The server of an earlier Lockwatch does not stop.
    #[error(
        "a PostgreSQL (process {pid}) still runs on {folder} and does not stop",
        folder = folder.display()
    )]
    Orphan {
        /// The server's process id.
        pid: i32,
        /// The folder of its data.
        folder: PathBuf,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{program} failed: {output}")]
    ProgramFailed {
        /// The program's name.
        program: &'static str,
        /// The last lines of its output.
        output: String,
    },
    /// Lockwatch was told to stop while the server started.
    #[error("told to stop")]
    Stopped,
    /// An operation on a file or folder failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// The operation that failed, such as "cannot open".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError {
    move |source| EmbeddedError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

impl EmbeddedPostgres {
    /// Starts the server on the data in `folder`, creating it if needed.
    ///
    /// `bin` is the folder of PostgreSQL's programs; without it, they are searched for. Blocks
    /// until the server accepts connections, or until `stop` is cancelled.
    ///
    /// # Errors
    /// The server did not start: see [`EmbeddedError`].
    pub fn start(
        folder: &Path,
        bin: Option<&Path>,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedError> {
        Self::launch(folder, Installation::find_all(bin)?, true, None, stop)
    }

    /// Starts a server on new data in a temporary folder, which is removed when the server stops.
    /// Without `fsync` it is fast, but a crash of the machine may destroy the data: for tests only.
    ///
    /// # Errors
    /// The server did not start: see [`EmbeddedError`].
    pub fn start_temporary(
        bin: Option<&Path>,
        fsync: bool,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedError> {
        let installations = Installation::find_all(bin)?;
        let parent = std::env::temp_dir();
        let folder = tempfile::Builder::new()
            .prefix("lockwatch-")
            .tempdir_in(&parent)
            .map_err(io_error("cannot create a folder in", &parent))?;
        if let Some(user) = ServerUser::for_root() {
            user.take_ownership(folder.path())?;
        }
        let embedded = Self::launch(
            &folder.path().join("postgres"),
            installations,
            fsync,
            Some(folder.path().to_owned()),
            stop,
        )?;
        // From here on the wrapper script removes the folder.
        let _ = folder.keep();
        Ok(embedded)
    }

    fn launch(
        folder: &Path,
        installations: Vec<Installation>,
        fsync: bool,
        remove_at_end: Option<PathBuf>,
        stop: &CancellationToken,
    ) -> Result<Self, EmbeddedError> {
        let server_user = ServerUser::for_root();
        let lock = lock_folder(folder, server_user.as_ref())?;
        let folder = fs::canonicalize(folder).map_err(io_error("cannot resolve", folder))?;
        if let Some(user) = &server_user {
            user.check_access(&folder)?;
        }
        let cluster = Cluster {
            installation: Installation::choose(installations, data_version(&folder)?, &folder)?,
            socket_folder: choose_socket_folder(&folder, server_user.as_ref())?,
            folder,
            server_user,
            fsync,
            remove_at_end,
            stop: stop.child_token(),
        };
        cluster.create_data()?;
        let (server, stop_pipe) = cluster.start_server()?;
        let shared = Arc::new(Shared {
            cluster,
            stop_pipe: Mutex::new(Some(stop_pipe)),
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

    /// Returns the URL to connect to. A restart does not change it.
    #[must_use]
    pub fn url(&self) -> String {
        connection_url(&self.shared.cluster.socket_folder)
    }

    /// Returns the data folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.cluster.folder
    }

    /// Returns the server's major version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.shared.cluster.installation.major
    }

    /// Returns the URL of a server that already runs on `folder`, started by another Lockwatch.
    ///
    /// Returns `None` if there is none.
    #[must_use]
    pub fn running_url(folder: &Path) -> Option<String> {
        let postmaster = PostmasterFile::read(&folder.join("data"))?;
        if !postmaster.is_ready() {
            return None;
        }
        UnixStream::connect(postmaster.socket_path()).ok()?;
        Some(connection_url(&postmaster.socket_folder))
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        self.shared.cluster.stop.cancel();
        self.shared.stop_pipe().take();
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
        let cluster = &self.shared.cluster;
        if cluster.socket_folder != cluster.folder {
            let _ = fs::remove_dir(&cluster.socket_folder);
        }
    }
}

impl Shared {
    fn stop_pipe(&self) -> MutexGuard<'_, Option<ChildStdin>> {
        self.stop_pipe
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the server again when it ends, unless it was stopped.
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
                    self.cluster.log_path().display()
                );
                sleep(RESTART_DELAY);
                match self.cluster.start_server() {
                    Ok((server, stop_pipe)) => {
                        *self.stop_pipe() = Some(stop_pipe);
                        break server;
                    }
                    Err(error) => error!("PostgreSQL does not start: {error}"),
                }
            };
            // The stop may have come before the new pipe was stored.
            if self.cluster.stop.is_cancelled() {
                self.stop_pipe().take();
            } else {
                info!("PostgreSQL runs again");
            }
        }
    }
}

fn connection_url(socket_folder: &Path) -> String {
    let host: String =
        form_urlencoded::byte_serialize(socket_folder.as_os_str().as_encoded_bytes()).collect();
    // Some clients read a plus in a query as a space, others as a plus.
    let host = host.replace('+', "%20");
    // The port and TLS are part of the URL. Otherwise the user's PGPORT and PGSSLMODE would set
    // them.
    format!("postgresql://{SUPERUSER}@localhost:5432/postgres?host={host}&sslmode=disable")
}
