//! Lockwatch receives WhatsApp status callbacks, records the deliveries that failed because Meta locked
//! the account (error 131031), and looks up why.
//!
//! # One callback, from byte to row
//!
//! 1. [`http::webhook`] wants one well-formed signature header before it reads a body, verifies it over
//!    the raw bytes ([`meta::signature`]), and stops there with 200 unless the bytes contain `131031`.
//! 2. [`meta::callback`] reads the callback element by element: [failed deliveries](meta::failure), and
//!    what could not be read.
//! 3. The [`recorder`] writes everything that waits in one transaction ([`store::record`]) and then answers
//!    every waiter. 200 means committed.
//! 4. A failure belongs to the account's [incident](lockout::incident). A number that is new to an open
//!    incident makes a health check due, and wakes the follow-up.
//! 5. The [`followup`] claims due checks ([`store::claims`]), asks Meta ([`graph`]) with no transaction open,
//!    and saves the answer ([`store::checks`]): the [cause](lockout::cause) is derived anew, the [next look](lockout::schedule)
//!    gets its time, and the incident may turn out to be over.
//! 6. People read the same rows: in a browser or with a program ([`http`]), with the commands in [`cli`], or by
//!    SQL. [`report`] makes one object of an incident for all of them, and masks recipients.
//! 7. Callbacks in which something was found are kept byte for byte ([`store::bodies`]), leave as files
//!    ([`meta::capture`]) and can be played back. What is old leaves for good ([`retention`]).
//!
//! # For your own tests
//!
//! Whatever receives WhatsApp webhooks can be tested with what is here: [`meta::compose`] builds callbacks,
//! [`meta::signature`] signs them, [`meta::capture`] reads those that Meta really sent, [`meta::redact`] makes
//! them fit to be committed, and the [`simulator`] answers `health_status` as Meta does.
//!
//! ```
//! use lockwatch::meta::callback::CallbackContents;
//! use lockwatch::meta::capture::Capture;
//! use lockwatch::meta::compose::StatusCallback;
//! use lockwatch::meta::signature::{HEADER, sign};
//! use time::OffsetDateTime;
//!
//! // A message of yours fails, because Meta has locked the account.
//! let body = StatusCallback::new().failed("102290129340398", "106540352242922", "wamid.1").into_body();
//! let signature = sign("the-app-secret-of-your-app", &body);
//! // Post it to your webhook with the header X-Hub-Signature-256. Here it goes by way of a capture file.
//! let mut capture = Capture::from_body(body);
//! capture.headers.insert(HEADER.to_owned(), signature);
//! let read = Capture::from_line(capture.to_line().as_bytes())?;
//!
//! let findings = CallbackContents::parse(&read.body, OffsetDateTime::now_utc());
//! assert_eq!(findings.failures[0].message_id.as_str(), "wamid.1");
//! # Ok::<_, lockwatch::meta::capture::CaptureError>(())
//! ```
//!
//! # The house
//!
//! Arrows point downwards only.
//!
//! | layer | module |
//! | --- | --- |
//! | rim | [`cli`] (one file a command), [`config`], [`service`] (wires what runs), [`simulator`] (a small fake Graph) |
//! | doing | [`http`], [`recorder`], [`followup`], [`retention`], [`graph`], [`metrics`], [`embedded`] (the embedded Postgres) |
//! | shown | [`report`]: the same objects and words for everybody who looks |
//! | rows | [`store`]: the only place that knows SQL |
//! | rules | [`lockout`]: pure functions; time and chance are arguments |
//! | words | [`meta`]: wire formats, as Meta writes them |
//!
//! `http` and `followup` do not know each other: they meet in rows. The database is the only coordinator,
//! so any number of replicas may run.

pub mod cli;
pub mod config;
pub mod embedded;
mod error_chain;
pub mod followup;
pub mod graph;
pub mod http;
pub mod lockout;
pub mod meta;
pub mod metrics;
pub mod recorder;
pub mod report;
pub mod retention;
pub mod service;
pub mod simulator;
pub mod store;

/// The database's tables. A newer version's are left alone.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate::Migrator {
    ignore_missing: true,
    ..sqlx::migrate!()
};
