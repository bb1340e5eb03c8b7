//! The pure layers of lockwatch, compiled from its sources without the rest.
//!
//! A fuzzer instruments all code that it links. A database driver and TLS would make that ten times
//! as much, for no benefit.

#[path = "../../src/intake.rs"]
pub mod intake;
#[path = "../../src/lockout/mod.rs"]
pub mod lockout;
#[path = "../../src/meta/mod.rs"]
pub mod meta;
