//! The rules of a lockout: pure functions over plain data.
//!
//! [`incident`] assigns failures to incidents and decides when an incident is over, [`cause`] finds
//! out why an account is locked, [`codes`] tells what each error code stops,
//! [`sending`] which sent message proves that it is over, [`alerting`] whom to tell, [`trouble`]
//! what is wrong with Lockwatch itself, and [`schedule`] decides when to ask Meta again. There is no
//! I/O, no async and no clock: time and chance are arguments.

pub mod alerting;
pub mod cause;
pub mod change;
pub mod codes;
pub mod incident;
pub(crate) mod note;
pub mod person;
pub mod schedule;
pub mod sending;
pub mod trouble;
