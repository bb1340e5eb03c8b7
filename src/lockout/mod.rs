//! The rules of a lockout: pure functions over plain data.
//!
//! Which incident a failure belongs to, why an account is locked, when to ask Meta again and when it is
//! over. No I/O, no async and no clock: time and chance are arguments.

pub mod cause;
pub mod change;
pub mod incident;
pub mod note;
pub mod schedule;
