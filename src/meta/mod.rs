//! Meta's wire formats: ids, signatures, callbacks and `health_status`.
//!
//! | module | purpose |
//! | --- | --- |
//! | [`signature`] | sign a body as Meta does, and verify a signature |
//! | [`callback`] | parse a callback into failures and unreadable parts |
//! | [`failure`] | one failed delivery |
//! | [`health`] | parse an answer to a `health_status` look-up |
//! | [`ids`] | ids and texts that Postgres can always store |
//! | [`capture`] | the file format for callbacks |
//! | [`compose`] | build callbacks for tests, demonstrations and load |
//! | [`redact`] | replace people in a callback, so that it can be shared |
//!
//! Everything here is a pure function: no I/O, no async, no clock. The meaning of an answer for an
//! incident is decided in [`lockout`](crate::lockout), not here.

pub mod callback;
pub mod capture;
pub mod compose;
pub mod failure;
pub mod health;
pub mod ids;
mod json;
pub mod redact;
pub mod signature;
