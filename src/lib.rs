//! Lockwatch.
pub mod cli;
pub mod config;
pub mod embedded;
pub mod followup;
pub mod graph;
pub mod http;
pub mod lockout;
pub mod meta;
pub mod recorder;
pub mod service;
pub mod simulator;
pub mod store;

/// The database's tables, as migrations.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate::Migrator { ignore_missing: true, ..sqlx::migrate!() };
