//! The daemon: keeper and worker.
//!
//! ```text
//! keeper   opens /dev/fuse, mounts <state>/lower, answers INIT once, holds the FUSE descriptor and
//!          the listening socket, starts the worker again whenever it dies
//! worker   adopts the FUSE descriptor, serves files, owns the metadata, answers gRPC
//! ```
//! Architecture invariant: nothing of a mount's state lives in the memory of either process. Inode
//! numbers explain themselves, so a worker can answer what its predecessor was asked.
//!
//! The worker's exit code is all it tells the keeper: 0 means that it was asked to stop, codes from
//! `FATAL` on that another start would end the same way, anything else that it died.

pub mod keeper;
pub mod worker;

mod clients;
mod convert;
mod engine;
mod listen;
mod mounts;
mod service;
mod slots;
mod stats;

use std::process::ExitCode;

use crate::failure::{Class, Failure};

/// Exit codes of a worker that cannot start: this plus the exit code of the failure's class.
const FATAL: u8 = 64;

fn fatal(failure: &Failure) -> ExitCode {
    // The command that started the daemon looks for these lines in the log
    eprintln!("error: {}", failure.message);
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(FATAL + failure.class.exit_code())
}

fn fatal_class(code: i32) -> Option<Class> {
    Class::ALL.into_iter().find(|class| code == i32::from(FATAL + class.exit_code()))
}
