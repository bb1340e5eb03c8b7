//! PostgreSQL's programs, the user that runs them, and the folders.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use super::{EmbeddedError, MIN_MAJOR_VERSION, io_error};

/// The length of a socket path that every operating system accepts.
const SOCKET_PATH_LIMIT_BYTES: usize = 103;
/// The variables of our environment that child processes get: the places of programs, libraries and
/// temporary files, and the time zone, which initdb writes into the configuration.
const INHERITED_VARIABLES: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ"];
/// The name of the socket in its folder. The number is the port.
pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// A PostgreSQL that is installed on this machine.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// The folder of its programs.
    pub(super) bin: PathBuf,
    pub(super) major: u32,
}

/// The user that runs the server.
///
/// PostgreSQL refuses to run as root.
#[derive(Debug, Clone)]
pub(super) struct ServerUser {
    name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Returns a command that runs with an almost empty environment.
///
/// Our own environment holds the app secrets and access tokens. A child that runs as another user
/// would show them to that user in `/proc/<pid>/environ`. PostgreSQL's own variables (`PGDATA`,
/// `PGPORT` …) are left out too, because they would change the server.
pub(super) fn clean_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for name in INHERITED_VARIABLES {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

impl Installation {
    /// Finds the installations of this machine, newest first. At least the first can be used.
    /// Searches only `bin`, if it is given.
    pub(super) fn find_all(bin: Option<&Path>) -> Result<Vec<Self>, EmbeddedError> {
        let candidates = bin.map_or_else(program_folders, |bin| vec![bin.to_owned()]);
        let mut installations: Vec<Self> =
            candidates.into_iter().filter_map(Self::inspect).collect();
        installations.sort_by_key(|installation| std::cmp::Reverse(installation.major));
        let newest = installations.first();
        if newest.is_none_or(|newest| newest.major < MIN_MAJOR_VERSION) {
            return Err(not_installed(bin, &installations));
        }
        Ok(installations)
    }

    /// Chooses the installation to use: the one whose version wrote the data, or the newest if
    /// there is no data yet.
    pub(super) fn choose(
        mut installations: Vec<Self>,
        data_version: Option<u32>,
        folder: &Path,
    ) -> Result<Self, EmbeddedError> {
        let Some(data_version) = data_version else {
            return Ok(installations.swap_remove(0));
        };
        installations
            .iter()
            .find(|installation| installation.major == data_version)
            .cloned()
            .ok_or_else(|| EmbeddedError::VersionMismatch {
                folder: folder.to_owned(),
                data: data_version,
                found: list_versions(&installations),
            })
    }

    /// Returns `None` if the folder has no PostgreSQL.
    fn inspect(bin: PathBuf) -> Option<Self> {
        if !bin.join("initdb").exists() {
            return None;
        }
        let output = clean_command(bin.join("postgres"))
            .arg("--version")
            .output()
            .ok()?;
        // Example: postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split(") ").nth(1)?;
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(Self {
            major: digits.parse().ok()?,
            bin,
        })
    }
}

fn not_installed(bin: Option<&Path>, installations: &[Installation]) -> EmbeddedError {
    let found = match bin {
        _ if !installations.is_empty() => format!(" (only {})", list_versions(installations)),
        Some(bin) => format!(" (PG_BIN_DIR={} has no postgres and initdb)", bin.display()),
        None => String::new(),
    };
    EmbeddedError::NotInstalled { found }
}

fn list_versions(installations: &[Installation]) -> String {
    let versions: Vec<String> = installations
        .iter()
        .map(|installation| installation.major.to_string())
        .collect();
    versions.join(", ")
}

/// Returns the folders of this machine that have a `postgres` program: the one that `pg_config`
/// names, those in `PATH`, and the usual ones of Linux distributions and Homebrew.
fn program_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let pg_config = clean_command("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output();
    if let Ok(output) = pg_config {
        let text = String::from_utf8_lossy(&output.stdout);
        folders.push(PathBuf::from(text.trim()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path));
    for versions in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let entries = fs::read_dir(versions).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path().join("bin")));
    }
    folders.push(PathBuf::from("/usr/pgsql/bin"));
    folders.retain(|folder| folder.join("postgres").exists());
    folders
}

impl ServerUser {
    /// Returns the user for the server if Lockwatch runs as root: `postgres`, or `nobody` if there
    /// is no such user. Otherwise returns `None`: the server runs as the same user as Lockwatch.
    pub(super) fn for_root() -> Option<Self> {
        const OVERFLOW_ID: u32 = 65534;
        if !geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = Self::from_passwd(&passwd, "postgres")
            .or_else(|| Self::from_passwd(&passwd, "nobody"))
            .unwrap_or_else(|| Self {
                name: "nobody".to_owned(),
                uid: OVERFLOW_ID,
                gid: OVERFLOW_ID,
            });
        Some(user)
    }

    /// Finds a user in `/etc/passwd` (`name:password:uid:gid:…`).
    fn from_passwd(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Self {
                name: name.to_owned(),
                uid,
                gid,
            })
        })
    }

    pub(super) fn take_ownership(&self, folder: &Path) -> Result<(), EmbeddedError> {
        chown(folder, Some(self.uid), Some(self.gid)).map_err(io_error("cannot hand over", folder))
    }

    /// Checks that the user can enter the folder.
    ///
    /// A shell tries it, because a folder above may be closed.
    pub(super) fn check_access(&self, folder: &Path) -> Result<(), EmbeddedError> {
        let status = clean_command("/bin/sh")
            .args(["-c", "cd \"$0\""])
            .arg(folder)
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .stderr(Stdio::null())
            .status();
        match status {
            Ok(status) if status.success() => Ok(()),
            _ => Err(EmbeddedError::NoAccess {
                user: self.name.clone(),
                folder: folder.to_owned(),
            }),
        }
    }
}

/// Creates the folder if needed, and locks it until the file is closed.
pub(super) fn lock_folder(
    folder: &Path,
    server_user: Option<&ServerUser>,
) -> Result<File, EmbeddedError> {
    fs::create_dir_all(folder).map_err(|source| EmbeddedError::NoFolder {
        folder: folder.to_owned(),
        source,
    })?;
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
        Err(TryLockError::Error(source)) => {
            return Err(io_error("cannot lock", &lock_path)(source));
        }
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .map_err(io_error("cannot close", folder))?;
    if let Some(user) = server_user {
        user.take_ownership(folder)?;
    }
    Ok(lock)
}

/// Returns the major version that wrote the data, if there is data.
pub(super) fn data_version(folder: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = folder.join("data/PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(version) => Ok(version.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("cannot read", &path)(error)),
    }
}

/// Returns the folder for the socket: the data folder, unless the socket's path would be too long
/// for the operating system. Then it is a folder in `/tmp` with the same owner.
pub(super) fn choose_socket_folder(
    folder: &Path,
    server_user: Option<&ServerUser>,
) -> Result<PathBuf, EmbeddedError> {
    if folder.join(SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_LIMIT_BYTES {
        return Ok(folder.to_owned());
    }
    // The name is unique, and the same at every start.
    let metadata = fs::metadata(folder).map_err(io_error("cannot read", folder))?;
    let socket_folder = PathBuf::from(format!(
        "/tmp/lockwatch-socket-{:x}-{:x}",
        metadata.dev(),
        metadata.ino()
    ));
    match DirBuilder::new().mode(0o700).create(&socket_folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("cannot create", &socket_folder)(error));
        }
        Ok(()) => {
            if let Some(user) = server_user {
                user.take_ownership(&socket_folder)?;
            }
        }
        Err(_) => {}
    }
    check_socket_folder(&socket_folder, server_user)?;
    Ok(socket_folder)
}

/// Checks that a folder in `/tmp` is private and has the right owner.
///
/// Any other user may have created it before us.
fn check_socket_folder(
    socket_folder: &Path,
    server_user: Option<&ServerUser>,
) -> Result<(), EmbeddedError> {
    let metadata =
        fs::symlink_metadata(socket_folder).map_err(io_error("cannot read", socket_folder))?;
    let owner = server_user.map_or_else(|| geteuid().as_raw(), |user| user.uid);
    if !metadata.is_dir() || metadata.uid() != owner || metadata.mode() & 0o077 != 0 {
        let source = io::Error::other("it belongs to somebody else");
        return Err(io_error("cannot use", socket_folder)(source));
    }
    Ok(())
}
