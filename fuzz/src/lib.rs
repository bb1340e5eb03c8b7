//! The pure layers of lockwatch, compiled from its sources without the rest: a fuzzer instruments all
//! that it links, and a database driver or TLS would make that ten times as much for nothing.

#[path = "../../src/lockout/mod.rs"]
pub mod lockout;
#[path = "../../src/meta/mod.rs"]
pub mod meta;
