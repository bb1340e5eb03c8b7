//! `lockwatch serve` as a process of its own, as users run it.

#![allow(dead_code, reason = "each bench uses a part of this module")]

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};

pub const APP_SECRET: &str = "an-app-secret-of-the-bench";
pub const ACCESS_TOKEN: &str = "EAAbenchAccessToken1234567890";

/// A running `lockwatch serve`, killed when dropped.
pub struct Serve {
    child: Child,
    /// The address of the public listener.
    pub webhook: String,
    admin: String,
}

impl Serve {
    /// Starts it on an existing database, and waits until it is ready.
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
            webhook = address_after("webhook http://", &line).unwrap_or(webhook);
            admin = address_after("admin http://", &line).unwrap_or(admin);
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

    /// The URL of a path on the admin listener.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Returns the address that follows a text in a log line.
fn address_after(text: &str, line: &str) -> Option<String> {
    let (_, rest) = line.split_once(text)?;
    let address = rest.split(['/', ' ', ',']).next()?;
    Some(address.to_owned())
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
