//! What Meta sends and answers: pure wire formats.
//!
//! Here live the ids, the signature, the reading of callbacks and of `health_status` answers, and a
//! builder that writes callbacks as Meta does. No I/O, no async, no clock and no opinion on what an
//! answer means for an incident: that is [`lockout`](crate::lockout).

pub mod callback;
pub mod capture;
pub mod compose;
pub mod failure;
pub mod health;
pub mod ids;
mod json;
pub mod redact;
pub mod signature;
