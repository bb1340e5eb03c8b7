//! The `lockwatch` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    lockwatch::cli::main()
}
