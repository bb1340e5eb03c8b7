//! The integration tests: real router, real Postgres, real signatures, real processes.
//!
//! Without a DATABASE_URL one Postgres is started for the run and gone with it; every test has a
//! database of its own.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test may fail, and is no library"
)]

mod api;
mod architecture;
mod browser;
mod captures;
mod cli;
mod dashboard;
mod embedded;
mod faults;
mod followup;
mod graph;
mod history;
mod hostile;
mod keeping;
mod lifecycle;
mod metrics;
mod pages;
mod properties;
mod recording;
mod replay;
mod secrets;
mod siege;
mod support;
mod timeline;
mod turns;
mod webhook;
