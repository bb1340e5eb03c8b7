//! The integration tests: real router, real Postgres, real signatures, real processes.
//!
//! Without DATABASE_URL, the tests start one Postgres for the run, which ends with the run. Every
//! test has a database of its own.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test may fail, and is no library"
)]

mod alerts;
mod api;
mod architecture;
mod browser;
mod captures;
mod cli;
mod codes;
mod dashboard;
mod embedded;
mod endings;
mod failover;
mod fairness;
mod fault_history;
mod faults;
mod field_cases;
mod followup;
mod graph;
mod incident_rule;
mod keeping;
mod lifecycle;
mod metrics;
mod migrations;
mod notices;
mod pages;
mod processing;
mod properties;
mod recording;
mod replay;
mod request_smuggling;
mod secrets;
mod slow_clients;
mod support;
mod timeline;
mod webhook;
