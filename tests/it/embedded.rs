//! The embedded Postgres: one process owns it, keeps its data, and stops it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lockwatch::embedded::{EmbeddedError, EmbeddedPostgres};
use lockwatch::store::{Database, Readiness, is_durable, readiness};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::tempdir;
use tokio_util::sync::CancellationToken;

use crate::support::database::postmaster_of;
use crate::support::eventually;
use crate::support::process::{Serve, has_exited, postgres_programs, write_script};

fn parent_of(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(") ").next().unwrap();
    Pid::from_raw(after_name.split(' ').nth(1).unwrap().parse().unwrap()).unwrap()
}

fn start_in(folder: &Path) -> Result<EmbeddedPostgres, EmbeddedError> {
    EmbeddedPostgres::start(folder, None, &CancellationToken::new())
}

fn start_temporary() -> EmbeddedPostgres {
    EmbeddedPostgres::start_temporary(None, false, &CancellationToken::new()).unwrap()
}

async fn is_answering(embedded: &EmbeddedPostgres) -> bool {
    let db = Database::parse(&embedded.url()).unwrap().pool();
    is_durable(&db).await.is_ok()
}

#[tokio::test]
async fn data_survives_a_restart_and_is_synced_to_disk() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("postgres");
    let database = {
        let embedded = start_in(&path).unwrap();
        let database = Database::parse(&embedded.url()).unwrap();
        database.migrate().await.unwrap();
        assert!(is_durable(&database.pool()).await.unwrap(), "fsync is on");
        assert_eq!(EmbeddedPostgres::running_url(&path), Some(embedded.url()));
        database
    };
    assert_eq!(EmbeddedPostgres::running_url(&path), None);
    let embedded = start_in(&path).unwrap();
    assert_eq!(readiness(&database.pool()).await.unwrap(), Readiness::Ready);
    drop(embedded);
}

#[tokio::test]
async fn a_second_start_on_the_same_folder_fails_harmlessly() {
    let folder = tempdir().unwrap();
    let first = start_in(folder.path()).unwrap();
    let second = start_in(folder.path()).unwrap_err();
    assert!(matches!(second, EmbeddedError::InUse(_)), "{second}");
    assert!(
        second
            .to_string()
            .contains("another lockwatch is running on")
    );
    assert!(is_answering(&first).await);
}

#[tokio::test]
async fn a_temporary_server_leaves_no_process_and_no_file() {
    let embedded = start_temporary();
    let folder = embedded.folder().to_owned();
    let server = postmaster_of(&folder);
    drop(embedded);
    assert!(has_exited(server));
    assert!(!folder.parent().unwrap().exists());
}

#[tokio::test]
async fn a_killed_server_is_restarted_under_the_same_url() {
    let embedded = start_temporary();
    let server = postmaster_of(embedded.folder());
    kill_process(server, Signal::KILL).unwrap();
    eventually("the server runs again", async || {
        has_exited(server) && is_answering(&embedded).await
    })
    .await;
    assert_ne!(postmaster_of(embedded.folder()), server);
}

#[tokio::test]
async fn an_orphaned_server_is_replaced_on_its_data() {
    let folder = tempdir().unwrap();
    let embedded = start_in(folder.path()).unwrap();
    let server = postmaster_of(folder.path());
    // No process is left that would stop the server, as if lockwatch and the shell beside it had
    // been killed at the same time.
    kill_process(parent_of(server), Signal::KILL).unwrap();
    eventually("the supervisor takes over", async || {
        has_exited(server) && EmbeddedPostgres::running_url(folder.path()).is_some()
    })
    .await;
    assert!(is_answering(&embedded).await);
}

#[tokio::test]
async fn a_stale_pid_file_with_a_reused_pid_is_ignored() {
    let folder = tempdir().unwrap();
    drop(start_in(folder.path()).unwrap());
    let data = folder.path().join("data");
    let stale = format!(
        "{}\n{}\n1\n5432\n{}\n\n\nready\n",
        std::process::id(),
        data.display(),
        folder.path().display()
    );
    fs::write(data.join("postmaster.pid"), stale).unwrap();
    fs::write(
        folder.path().join(".s.PGSQL.5432.lock"),
        format!("{}\n", std::process::id()),
    )
    .unwrap();
    assert_eq!(EmbeddedPostgres::running_url(folder.path()), None);
    let embedded = start_in(folder.path()).unwrap();
    assert!(is_answering(&embedded).await);
}

#[tokio::test]
async fn a_half_initialised_database_is_made_again() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("data.new")).unwrap();
    fs::write(folder.path().join("data.new/PG_VERSION"), "15").unwrap();
    let embedded = start_in(folder.path()).unwrap();
    assert!(is_answering(&embedded).await);
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_works() {
    let folder = tempdir().unwrap();
    let long: PathBuf = folder.path().join("l".repeat(100)).join("n".repeat(60));
    fs::create_dir_all(&long).unwrap();
    let embedded = start_in(&long).unwrap();
    assert!(is_answering(&embedded).await);
    assert_eq!(EmbeddedPostgres::running_url(&long), Some(embedded.url()));
}

#[tokio::test]
async fn a_folder_with_a_comma_and_a_space_works() {
    let folder = tempdir().unwrap();
    let embedded = start_in(&folder.path().join("a, b")).unwrap();
    assert!(is_answering(&embedded).await);
}

#[test]
fn a_start_can_be_cancelled() {
    let folder = tempdir().unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let error = EmbeddedPostgres::start(folder.path(), None, &stop).unwrap_err();
    assert!(matches!(error, EmbeddedError::Stopped), "{error}");
    assert_eq!(EmbeddedPostgres::running_url(folder.path()), None);
}

#[test]
fn no_child_gets_a_secret_of_ours() {
    let folder = tempdir().unwrap();
    // The server's user writes here.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (programs, seen) = (folder.path().join("bin"), folder.path().join("seen"));
    for path in [&programs, &seen] {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    // Scripts that save their environment come first in PATH.
    let real = postgres_programs();
    for (name, then) in [
        ("pg_config", format!("echo {}", programs.display())),
        ("initdb", format!("exec {real}/initdb \"$@\"")),
        ("postgres", format!("exec {real}/postgres \"$@\"")),
    ] {
        write_script(
            &programs.join(name),
            &format!("env > {}.$$\n{then}", seen.join(name).display()),
        );
    }
    let data = folder.path().join("data");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let serve = Serve::on_folder(
        &data,
        &[
            ("PATH", path.as_str()),
            ("META_APP_SECRET", "canary-app-secret"),
            ("META_ACCESS_TOKEN", "canary-access-token"),
            ("LOCKWATCH_ADMIN_TOKEN", "canary-admin-token"),
            ("SOMEBODY_ELSES", "canary-of-another-program"),
            ("PGPORT", "canary-port"),
        ],
    );
    let server = postmaster_of(&data.join("postgres"));
    for pid in [server, parent_of(server)] {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).replace('\0', "\n");
        fs::write(seen.join(format!("process.{pid}")), environment).unwrap();
    }
    drop(serve);
    let mut seen_names = Vec::new();
    for entry in fs::read_dir(&seen).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        seen_names.push(name.split('.').next().unwrap().to_owned());
        let environment = fs::read_to_string(entry.path()).unwrap();
        assert!(!environment.contains("canary"), "{name}: {environment}");
        assert!(environment.contains("LC_ALL=C"), "{name}: {environment}");
    }
    for name in ["postgres", "initdb", "pg_config", "process"] {
        assert!(
            seen_names.iter().any(|seen| seen == name),
            "{name} was not run: {seen_names:?}"
        );
    }
}

#[test]
fn data_of_another_postgres_version_is_refused() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(folder.path().join("data/PG_VERSION"), "12\n").unwrap();
    let error = start_in(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is PostgreSQL 12's, and only"), "{error}");
}

#[test]
fn without_postgresql_the_error_says_how_to_install_it() {
    let folder = tempdir().unwrap();
    let error = EmbeddedPostgres::start(
        &folder.path().join("postgres"),
        Some(Path::new("/nonexistent")),
        &CancellationToken::new(),
    )
    .unwrap_err()
    .to_string();
    assert!(!folder.path().join("postgres").exists());
    for part in [
        "PG_BIN_DIR=/nonexistent",
        "apt install",
        "dnf install",
        "brew install",
        "docker compose",
        "DATABASE_URL",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn a_folder_that_cannot_be_created_is_told_with_the_ways_out() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = start_in(&folder.path().join("file/postgres")).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("file/postgres: Not a directory"), "{error}");
    assert!(
        error.ends_with("LOCKWATCH_DATA_DIR, or give a DATABASE_URL)"),
        "{error}"
    );
}

#[test]
fn as_root_an_error_names_the_closed_parent_folder() {
    if !geteuid().is_root() {
        return;
    }
    let closed = tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = start_in(&closed.path().join("postgres")).unwrap_err();
    assert!(matches!(error, EmbeddedError::NoAccess { .. }), "{error}");
    assert!(error.to_string().contains("LOCKWATCH_DATA_DIR"));
}
