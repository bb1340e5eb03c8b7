//! Lockwatch receives WhatsApp status callbacks, records the deliveries that failed because Meta
//! locked the account (error 131031), and looks up the cause.
//!
//! # One callback, from byte to row
//!
//! 1. [`http::webhook`] requires one well-formed signature header before it reads a body, and
//!    verifies it over the raw bytes ([`meta::signature`]). If the bytes do not [concern
//!    us](meta::interest), it answers 200 and is done.
//! 2. The [`inbox`] appends all waiting callbacks in one commit, unread, and then answers every
//!    waiter. 200 means stored.
//! 3. The [`processor`], one at a time per database, takes a batch from the inbox, reads it
//!    ([`intake`]: failed messages, and elements that are not readable), and records it in one
//!    transaction ([`store::process`]). What cannot be recorded stays in the inbox.
//! 4. A failure belongs to the account's [incident](lockout::incident). A number that is new to an
//!    open incident makes a health check due and wakes the follow-up.
//! 5. The [`followup`] claims due checks ([`store::claims`]), asks Meta ([`graph`]) with no
//!    transaction open, and saves the answer ([`store::conclusion`]): the [cause](lockout::cause)
//!    is derived anew, the next check is [scheduled](lockout::schedule), and the incident may turn
//!    out to be over.
//! 6. Each [change](lockout::change) of an incident is written by one module,
//!    [`store::incident_life`], as a row, from which the log is written ([`change_log`]).
//! 7. People read the same rows in a browser or by program ([`http`]), with the commands in
//!    [`cli`], or by SQL. [`report`] makes one object of an incident for all of them, and masks
//!    recipients.
//! 8. Callbacks with a failure in them are kept byte for byte, exported as files
//!    ([`meta::capture`]) and played back. Old rows are deleted ([`retention`]).
//!
//! # For other crates
//!
//! [`meta`], [`simulator`] and [`lockout`] are made for others, mostly for their tests: a receiver
//! of WhatsApp webhooks can build callbacks with [`meta::compose`], sign them with
//! [`meta::signature`], read real ones from files with [`meta::capture`], redact them for a commit
//! with [`meta::redact`], and ask the [`simulator`], which answers `health_status` as Meta does.
//! All other modules are public for the program and its own tests only.
//!
//! ```
//! use lockwatch::intake::Intake;
//! use lockwatch::meta::capture::Capture;
//! use lockwatch::meta::compose::StatusCallback;
//! use lockwatch::meta::interest::Interest;
//! use lockwatch::meta::signature::{SIGNATURE_HEADER, sign};
//! use time::OffsetDateTime;
//!
//! // A message of yours fails, because Meta has locked the account.
//! let callback = StatusCallback::new().failed("102290129340398", "106540352242922", "wamid.1");
//! let body = callback.into_body();
//! let signature = sign("the-app-secret-of-your-app", &body);
//! // Post it to your webhook with the header X-Hub-Signature-256. Here it becomes a capture file.
//! let mut capture = Capture::from_body(body);
//! capture.headers.insert(SIGNATURE_HEADER.to_owned(), signature);
//! let read = Capture::from_line(capture.to_line().as_bytes())?;
//!
//! let contents = Intake::parse(&read.body, &Interest::default(), OffsetDateTime::now_utc());
//! assert_eq!(contents.failures[0].message_id.as_str(), "wamid.1");
//! # Ok::<_, lockwatch::meta::capture::CaptureError>(())
//! ```
//!
//! # The layers
//!
//! A module uses only modules of its own layer and of those below.
//!
//! | layer | modules |
//! | --- | --- |
//! | outside | [`cli`] (one file a command), [`config`], [`service`] (wires and stops the parts), [`simulator`] (a small fake Graph) |
//! | work | [`http`], [`inbox`], [`processor`], [`followup`] (with `lookup`, one question to Graph), [`sending`] (notices that messages are sent again), [`heard`] (notices that callbacks come), [`self_check`] (asks Graph whether they would), [`alerts`], [`change_log`], [`retention`], [`graph`], [`metrics`], [`embedded`] (the embedded Postgres) |
//! | their signals | [`progress`] (what `/readyz` says), [`woken`] (who wakes whom) |
//! | view | [`report`]: the same objects and words for page, API and terminal |
//! | rows | [`store`]: the only place that knows SQL |
//! | rules | [`lockout`], [`intake`]: pure functions; time and chance are arguments |
//! | wire formats | [`meta`]: callbacks and answers, as Meta writes them |
//!
//! `http`, `processor`, `followup` and `alerts` do not know each other: they meet in rows, but for
//! the names of the channels, which a page shows. The database is the only coordinator, so any
//! number of replicas may run. `tests/it/architecture.rs` asserts the most important of these rules.

pub mod alerts;
pub mod change_log;
pub mod cli;
pub mod config;
pub mod embedded;
mod error_chain;
pub mod followup;
pub mod graph;
pub mod heard;
pub mod http;
pub mod inbox;
pub mod intake;
pub mod lockout;
mod lookup;
pub mod meta;
pub mod metrics;
pub mod processor;
pub mod progress;
pub mod report;
pub mod retention;
pub mod self_check;
pub mod sending;
pub mod service;
pub mod simulator;
pub mod store;
pub mod woken;

/// The database's tables. A newer version's are left alone.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate::Migrator {
    ignore_missing: true,
    ..sqlx::migrate!()
};
