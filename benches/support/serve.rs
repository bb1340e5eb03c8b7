//! `serve` as a process of its own, as people run it.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};

pub const APP_SECRET: &str = "an-app-secret-of-the-bench";
pub const ACCESS_TOKEN: &str = "EAAbenchAccessToken1234567890";

/// Killed when dropped.
pub struct Serve {
    child: Child,
    /// The public listener's address.
    pub webhook: String,
    admin: String,
}

impl Serve {
    /// Starts it on a database that is there, and waits until it is ready.
    pub fn start(database: &str, settings: &[(&str, &str)]) -> io::Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lockwatch"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
            ])
            .env_remove("DATABASE_URL_FILE")
            .envs([
                ("DATABASE_URL", database),
                ("META_APP_SECRET", APP_SECRET),
                ("META_VERIFY_TOKEN", "unused"),
            ])
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (mut webhook, mut admin) = (String::new(), String::new());
        for line in lines.by_ref().map_while(Result::ok) {
            let address = |after: &str| {
                Some(
                    line.split_once(after)?
                        .1
                        .split(['/', ' ', ','])
                        .next()?
                        .to_owned(),
                )
            };
            webhook = address("webhook http://").unwrap_or(webhook);
            admin = address("admin http://").unwrap_or(admin);
            if line.contains("the database is ready") {
                break;
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self {
            child,
            webhook,
            admin,
        })
    }

    /// The URL of a page of the admin listener.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
