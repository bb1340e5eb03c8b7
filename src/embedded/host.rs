//! What this machine has: PostgreSQL's programs, a user to run them, a folder that is ours.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use super::{EmbeddedError, OLDEST_MAJOR, io_error};

/// The longest socket path that every system takes.
const SOCKET_PATH_LIMIT_BYTES: usize = 103;
/// The variables of our own environment that children get: where programs, libraries and temporary files are,
/// and the time zone, which initdb writes into the configuration.
const INHERITED_VARIABLES: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ"];
/// The socket's name in its folder.
pub(super) const SOCKET: &str = ".s.PGSQL.5432";

/// A PostgreSQL found on this machine.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    pub(super) bin: PathBuf,
    pub(super) major: u32,
}

/// PostgreSQL refuses to run as root; then it runs as this user.
#[derive(Debug, Clone)]
pub(super) struct ServerUser {
    name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A program that runs in an environment of its own. Ours holds the app secrets and access tokens, and a child
/// that runs as another user would show them to that user in `/proc/<pid>/environ`. PostgreSQL's own variables
/// (`PGDATA`, `PGPORT` …) stay out as well: they would change what is started.
pub(super) fn clean_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for name in INHERITED_VARIABLES {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command
}

impl Installation {
    /// The newest one, or that of the data's version.
    pub(super) fn find(
        named: Option<&Path>,
        data: Option<u32>,
        folder: &Path,
    ) -> Result<Self, EmbeddedError> {
        let candidates = named.map_or_else(usual_folders, |named| vec![named.to_owned()]);
        let mut found: Vec<Self> = candidates.into_iter().filter_map(Self::inspect).collect();
        found.sort_by_key(|installation| std::cmp::Reverse(installation.major));
        let versions = || {
            found
                .iter()
                .map(|f| f.major.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        };
        if found
            .first()
            .is_none_or(|newest| newest.major < OLDEST_MAJOR)
        {
            let found = match (named, found.is_empty()) {
                (Some(named), true) => format!(
                    " (PG_BIN_DIR={} has no postgres and initdb)",
                    named.display()
                ),
                (_, true) => String::new(),
                (_, false) => format!(" (only {})", versions()),
            };
            return Err(EmbeddedError::NotInstalled { found });
        }
        let Some(data) = data else {
            return Ok(found.swap_remove(0));
        };
        let other = || EmbeddedError::OtherVersion {
            folder: folder.to_owned(),
            data,
            found: versions(),
        };
        found
            .iter()
            .find(|installation| installation.major == data)
            .cloned()
            .ok_or_else(other)
    }

    fn inspect(bin: PathBuf) -> Option<Self> {
        bin.join("initdb").exists().then_some(())?;
        let output = clean_command(bin.join("postgres"))
            .arg("--version")
            .output()
            .ok()?;
        // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split(") ").nth(1)?;
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(Self {
            major: digits.parse().ok()?,
            bin,
        })
    }
}

fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(output) = clean_command("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output()
    {
        folders.push(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ));
    }
    folders.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
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
    pub(super) fn required() -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let entry = |name: &str| {
            passwd.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(name)).then_some(())?;
                let uid = fields.nth(1)?.parse().ok()?;
                Some(Self {
                    name: name.to_owned(),
                    uid,
                    gid: fields.next()?.parse().ok()?,
                })
            })
        };
        const OVERFLOW_ID: u32 = 65534;
        let nobody = || Self {
            name: "nobody".to_owned(),
            uid: OVERFLOW_ID,
            gid: OVERFLOW_ID,
        };
        Some(
            entry("postgres")
                .or_else(|| entry("nobody"))
                .unwrap_or_else(nobody),
        )
    }

    pub(super) fn take_ownership(&self, folder: &Path) -> Result<(), EmbeddedError> {
        chown(folder, Some(self.uid), Some(self.gid)).map_err(io_error("cannot hand over", folder))
    }

    /// Asks the system itself: a folder above may be closed.
    pub(super) fn may_enter(&self, folder: &Path) -> Result<(), EmbeddedError> {
        let entered = clean_command("/bin/sh")
            .args(["-c", "cd \"$0\""])
            .arg(folder)
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .stderr(Stdio::null())
            .status();
        match entered {
            Ok(status) if status.success() => Ok(()),
            _ => Err(EmbeddedError::Closed {
                user: self.name.clone(),
                folder: folder.to_owned(),
            }),
        }
    }
}

/// Creates the folder if missing, and takes its lock.
pub(super) fn lock_folder(
    folder: &Path,
    server_user: Option<&ServerUser>,
) -> Result<File, EmbeddedError> {
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

/// The major version that wrote the data, if there is any.
pub(super) fn data_version(folder: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = folder.join("data/PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(version) => Ok(version.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("cannot read", &path)(error)),
    }
}

/// The socket is in the folder itself, unless its path would be too long for a socket. Then it is in a
/// folder of the same owner beside other temporary files.
pub(super) fn socket_folder(
    folder: &Path,
    server_user: Option<&ServerUser>,
) -> Result<PathBuf, EmbeddedError> {
    if folder.join(SOCKET).as_os_str().len() <= SOCKET_PATH_LIMIT_BYTES {
        return Ok(folder.to_owned());
    }
    let inode = fs::metadata(folder).map_err(io_error("cannot read", folder))?;
    let elsewhere = PathBuf::from(format!(
        "/tmp/lockwatch-socket-{:x}-{:x}",
        inode.dev(),
        inode.ino()
    ));
    match DirBuilder::new().mode(0o700).create(&elsewhere) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(io_error("cannot create", &elsewhere)(error));
        }
        Ok(()) => {
            if let Some(user) = server_user {
                user.take_ownership(&elsewhere)?;
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
