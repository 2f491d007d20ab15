//! The daemon: keeper and worker.
//!
//! ```text
//! keeper   opens /dev/fuse, mounts <state>/lower, answers INIT once, holds the FUSE descriptor and
//!          the listening socket, starts the worker again whenever it dies
//! worker   adopts the FUSE descriptor, serves files, owns the metadata, answers gRPC; starts
//!          another keeper where that dies
//! ```
//! SURVIVAL.md beside this file says what happens when which of them ends.
//!
//! Architecture invariant: nothing of a mount's state lives in the memory of either process. Inode
//! numbers explain themselves, so a worker can answer what its predecessor was asked.
//!
//! The worker's exit code tells the keeper why it ended: 0 means that it was asked to stop the
//! daemon, `AGAIN` that it makes room for another worker, codes from `FATAL` on that another start
//! would end the same way, anything else that it died.

pub mod keeper;
pub mod worker;

mod call;
mod clients;
mod content;
mod convert;
mod counters;
mod detached;
mod diff;
mod disk;
mod engine;
mod estate;
mod export;
mod garbage;
mod heir;
mod leases;
mod listen;
mod live;
mod locate;
mod mender;
mod metrics;
mod mounts;
mod names;
mod notify;
mod remote;
mod scrub;
mod service;
mod slots;
mod snapshots;
mod stats;
mod transfer;
mod uppers;

use std::process::ExitCode;

use crate::failure::{Class, Failure};

/// Exit codes of a worker that cannot start: this plus the exit code of the failure's class.
const FATAL: u8 = 64;

/// Exit code of a worker that makes room for another; `EX_TEMPFAIL` of sysexits.h.
const AGAIN: u8 = 75;

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
