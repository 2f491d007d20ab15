//! The `peel` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    peel::cli::main()
}
