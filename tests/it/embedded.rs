//! The embedded Postgres: ours alone, found again, and never left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lockwatch::embedded::{Embedded, EmbeddedError};
use lockwatch::store::{Database, Readiness, is_durable, readiness};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::tempdir;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;
use crate::support::process::{Serve, is_gone, postgres_programs, write_script};

fn postmaster(embedded: &Path) -> Pid {
    let text = fs::read_to_string(embedded.join("data/postmaster.pid")).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap()
}

fn parent(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(") ").next().unwrap();
    Pid::from_raw(after_name.split(' ').nth(1).unwrap().parse().unwrap()).unwrap()
}

fn temporary() -> Embedded {
    Embedded::start_temporary(None, false, &CancellationToken::new()).unwrap()
}

async fn answers(embedded: &Embedded) -> bool {
    let db = Database::parse(&embedded.url()).unwrap().pool();
    is_durable(&db).await.is_ok()
}

#[tokio::test]
async fn it_keeps_its_data_and_syncs_it() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("postgres");
    let database = {
        let embedded = Embedded::start(&path, None, &CancellationToken::new()).unwrap();
        let database = Database::parse(&embedded.url()).unwrap();
        database.migrate().await.unwrap();
        assert!(is_durable(&database.pool()).await.unwrap(), "fsync is on");
        assert_eq!(Embedded::running(&path), Some(embedded.url()));
        database
    };
    assert_eq!(Embedded::running(&path), None);
    let embedded = Embedded::start(&path, None, &CancellationToken::new()).unwrap();
    assert_eq!(readiness(&database.pool()).await.unwrap(), Readiness::Ready);
    drop(embedded);
}

#[tokio::test]
async fn a_second_one_on_the_same_folder_is_told_and_does_no_harm() {
    let folder = tempdir().unwrap();
    let first = Embedded::start(folder.path(), None, &CancellationToken::new()).unwrap();
    let second = Embedded::start(folder.path(), None, &CancellationToken::new()).unwrap_err();
    assert!(matches!(second, EmbeddedError::InUse(_)), "{second}");
    assert!(
        second
            .to_string()
            .contains("another lockwatch is running on")
    );
    assert!(answers(&first).await);
}

#[tokio::test]
async fn a_temporary_one_leaves_nothing_behind() {
    let embedded = temporary();
    let (folder, server) = (embedded.folder().to_owned(), postmaster(embedded.folder()));
    drop(embedded);
    assert!(is_gone(server));
    assert!(!folder.parent().unwrap().exists());
}

#[tokio::test]
async fn a_server_that_dies_is_started_again_under_the_same_url() {
    let embedded = temporary();
    let server = postmaster(embedded.folder());
    kill_process(server, Signal::KILL).unwrap();
    let again = async || is_gone(server) && answers(&embedded).await;
    eventually("the server runs again", again).await;
    assert_ne!(postmaster(embedded.folder()), server);
}

#[tokio::test]
async fn an_orphan_is_stopped_and_its_data_taken_over() {
    let folder = tempdir().unwrap();
    let embedded = Embedded::start(folder.path(), None, &CancellationToken::new()).unwrap();
    let server = postmaster(folder.path());
    // Nobody is left to stop the server: as if lockwatch and the shell beside it had been killed at once.
    kill_process(parent(server), Signal::KILL).unwrap();
    eventually("the supervisor takes over", async || {
        is_gone(server) && Embedded::running(folder.path()).is_some()
    })
    .await;
    assert!(answers(&embedded).await);
}

#[tokio::test]
async fn a_recycled_process_number_is_nobodys_server() {
    let folder = tempdir().unwrap();
    drop(Embedded::start(folder.path(), None, &CancellationToken::new()).unwrap());
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
    assert_eq!(Embedded::running(folder.path()), None);
    let embedded = Embedded::start(folder.path(), None, &CancellationToken::new()).unwrap();
    assert!(answers(&embedded).await);
}

#[tokio::test]
async fn a_half_made_database_is_made_anew() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("data.new")).unwrap();
    fs::write(folder.path().join("data.new/PG_VERSION"), "15").unwrap();
    let embedded = Embedded::start(folder.path(), None, &CancellationToken::new()).unwrap();
    assert!(answers(&embedded).await);
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_no_obstacle() {
    let folder = tempdir().unwrap();
    let long: PathBuf = folder.path().join("l".repeat(100)).join("n".repeat(60));
    fs::create_dir_all(&long).unwrap();
    let embedded = Embedded::start(&long, None, &CancellationToken::new()).unwrap();
    assert!(answers(&embedded).await);
    assert_eq!(Embedded::running(&long), Some(embedded.url()));
}

#[tokio::test]
async fn a_folder_with_a_comma_and_a_space_will_do() {
    let folder = tempdir().unwrap();
    let embedded =
        Embedded::start(&folder.path().join("a, b"), None, &CancellationToken::new()).unwrap();
    assert!(answers(&embedded).await);
}

#[test]
fn told_to_stop_while_it_starts_it_stops() {
    let folder = tempdir().unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let error = Embedded::start(folder.path(), None, &stop).unwrap_err();
    assert!(matches!(error, EmbeddedError::Stopped), "{error}");
    assert_eq!(Embedded::running(folder.path()), None);
}

#[test]
fn no_child_gets_a_secret_of_ours() {
    let folder = tempdir().unwrap();
    // Whoever runs the server writes here.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (programs, seen) = (folder.path().join("bin"), folder.path().join("seen"));
    for path in [&programs, &seen] {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    // What is run first in PATH are scripts that keep their environment.
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
    let server = postmaster(&data.join("postgres"));
    for pid in [server, parent(server)] {
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
fn data_of_another_version_is_left_alone() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(folder.path().join("data/PG_VERSION"), "12\n").unwrap();
    let error = Embedded::start(folder.path(), None, &CancellationToken::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("is PostgreSQL 12's, and only"), "{error}");
}

#[test]
fn without_a_postgresql_it_says_how_to_get_one() {
    let folder = tempdir().unwrap();
    let error = Embedded::start(
        folder.path(),
        Some(Path::new("/nonexistent")),
        &CancellationToken::new(),
    )
    .unwrap_err()
    .to_string();
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
fn as_root_a_closed_folder_above_is_named() {
    if !geteuid().is_root() {
        return;
    }
    let closed = tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Embedded::start(
        &closed.path().join("postgres"),
        None,
        &CancellationToken::new(),
    )
    .unwrap_err();
    assert!(matches!(error, EmbeddedError::Closed { .. }), "{error}");
    assert!(error.to_string().contains("LOCKWATCH_DATA_DIR"));
}
