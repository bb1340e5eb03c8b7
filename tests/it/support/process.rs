//! The real program in a real process.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{APP_SECRET, VERIFY_TOKEN};

/// The time for a log line to come, and for the process to end.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(30);

/// The command for the program, without the variables of our environment that change its behaviour.
pub fn lockwatch(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockwatch"));
    let removed_prefixes = [
        "LOCKWATCH_",
        "META_",
        "DATABASE_URL",
        "PG",
        "RUST_LOG",
        "XDG_",
    ];
    for (name, _) in std::env::vars_os() {
        if removed_prefixes
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The folder with the programs of the newest installed PostgreSQL, where Debian puts them.
pub fn postgres_programs() -> String {
    let found = Command::new("sh")
        .args(["-c", "ls -d /usr/lib/postgresql/*/bin | tail -n 1"])
        .output()
        .unwrap();
    String::from_utf8(found.stdout).unwrap().trim().to_owned()
}

/// Writes an executable shell script.
pub fn write_script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Returns true also for a zombie: in a container without an init process nothing reaps orphans.
pub fn has_exited(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(pid).is_err()
        || stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
}

/// Sends a signal to every process that still runs.
pub fn signal_each(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill_process(*pid, signal);
    }
}

/// A running `lockwatch serve`, killed when dropped.
pub struct Serve {
    pub child: Child,
    pub webhook: String,
    pub admin: String,
    log: Receiver<String>,
    log_lines: RefCell<Vec<String>>,
}

impl Serve {
    /// Starts it on an external database.
    pub fn on_database(url: &str, settings: &[(&str, &str)]) -> Self {
        Self::start(&[&[("DATABASE_URL", url)], settings].concat())
    }

    /// Starts it with an embedded database in this folder.
    pub fn on_folder(folder: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start(
            &[
                &[("LOCKWATCH_DATA_DIR", folder.to_str().unwrap())],
                settings,
            ]
            .concat(),
        )
    }

    fn start(settings: &[(&str, &str)]) -> Self {
        let mut child = lockwatch(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .env("META_APP_SECRET", APP_SECRET)
        .env("META_VERIFY_TOKEN", VERIFY_TOKEN)
        .envs(settings.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut serve = Self {
            child,
            webhook: String::new(),
            admin: String::new(),
            log,
            log_lines: RefCell::default(),
        };
        let line = serve.wait_for_log("listening: ");
        let word_after = |label: &str| {
            line.split(label)
                .nth(1)
                .unwrap()
                .split([' ', ','])
                .next()
                .unwrap()
                .to_owned()
        };
        (serve.webhook, serve.admin) = (word_after("webhook "), word_after("admin "));
        serve
    }

    /// Waits for a log line that contains this text. A line that came before counts as well.
    pub fn wait_for_log(&self, part: &str) -> String {
        let deadline = Instant::now() + PROCESS_TIMEOUT;
        loop {
            if let Some(line) = self
                .log_lines
                .borrow()
                .iter()
                .find(|line| line.contains(part))
            {
                return line.clone();
            }
            match self
                .log
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.log_lines.borrow_mut().push(line),
                Err(error) => panic!("{part:?} was not logged ({error}): {:#?}", self.log_lines),
            }
        }
    }

    /// Every line of the log, after the process has ended.
    pub fn whole_log(&self) -> Vec<String> {
        self.log_lines.borrow_mut().extend(self.log.iter());
        self.log_lines.borrow().clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PROCESS_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "serve does not exit");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
