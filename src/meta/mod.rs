//! Meta's wire formats: ids, signatures, callbacks and `health_status`.
//!
//! | module | purpose |
//! | --- | --- |
//! | [`signature`] | sign a body as Meta does, and verify a signature |
//! | [`codes`] | the watched error codes |
//! | [`interest`] | whether the bytes of a callback may concern Lockwatch |
//! | [`status`] | one failed message |
//! | [`sent`] | the sent messages of a callback |
//! | [`entry`] | the account that a callback begins with |
//! | [`event`] | one event of an account |
//! | [`health`] | parse an answer to a `health_status` look-up |
//! | [`graph_error`] | errors of the Graph API, and what they mean |
//! | [`node_fields`] | the fields of a number and an account beside the health |
//! | [`self_check`] | what Graph tells of our token and our subscription |
//! | [`ids`] | ids and texts that Postgres can always store |
//! | [`capture`] | the file format for callbacks |
//! | [`compose`] | build callbacks for tests, demonstrations and load |
//! | [`redact`] | replace people in a callback, so that it can be shared |
//!
//! Everything here is a pure function: no I/O, no async, no clock. The meaning of an answer for an
//! incident is decided in [`lockout`](crate::lockout), not here.

pub mod capture;
pub mod codes;
pub mod compose;
pub mod entry;
pub mod event;
pub mod graph_error;
pub mod health;
pub mod ids;
pub mod interest;
pub(crate) mod json;
pub mod node_fields;
pub mod redact;
pub mod self_check;
pub mod sent;
pub mod signature;
pub mod status;
