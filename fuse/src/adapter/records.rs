//! Where requests are written down while they are worked on, and how they are counted and logged.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use fuser::{Errno, INodeNo, Request};
use tracing::Level;

use crate::{
    error::Error,
    flight::{Call, Flights},
    metrics::{Kind, Metrics},
};

/// Where requests are written down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    /// How many, and how fast they are answered.
    pub(crate) metrics: Arc<Metrics>,
    /// What is being worked on.
    pub(crate) flights: Option<Arc<Flights>>,
}

/// How much of a request is worked on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// What takes no time; the rest may follow on another thread.
    First,
}

/// A request as it is written down; what is asked at a place or by name says so with [`Call::at`].
pub(super) fn call(kind: Kind, request: &Request, ino: INodeNo) -> Call {
    Call { unique: request.unique().0, kind, ino: ino.0, at: 0, len: 0 }
}

/// Runs an operation, written down meanwhile; logs and counts what goes wrong, panics included, and
/// says what the caller gets.
pub(super) fn answer<T>(
    records: &Records,
    call: &Call,
    part: Part,
    run: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Errno> {
    let Records { metrics, flights } = records;
    let Call { kind, ino, .. } = *call;
    let begun = flights.as_ref().map(|flights| match part {
        Part::Whole => flights.begin(call),
        Part::First => flights.begin_first(call),
    });
    let result = match begun {
        Some(Err(culprit)) => Err(Error::Barred { culprit }),
        // Struck out at the end of this arm: what is left then is at most to send the answer
        _flight => catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(Error::Panic)),
    };
    result.map_err(|error| {
        let name = kind.name();
        let cause = || {
            let causes = std::iter::successors(std::error::Error::source(&error), |e| e.source());
            causes.map(|e| format!(": {e}")).collect::<String>()
        };
        match error.level() {
            Level::ERROR => tracing::error!("{name} of inode {ino:#x}: {error}{}", cause()),
            Level::WARN => tracing::warn!("{name} of inode {ino:#x}: {error}{}", cause()),
            Level::DEBUG => tracing::debug!("{name} of inode {ino:#x}: {error}{}", cause()),
            _ => {}
        }
        if error.level() != Level::TRACE {
            metrics.failed(kind);
        }
        if let Some(fault) = error.fault() {
            metrics.fault(fault);
        }
        Errno::from_i32(error.errno())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Fault;

    #[test]
    fn panics_are_answered() {
        let records = Records::default();
        let run = || -> Result<(), Error> { panic!("part of the test") };
        let call = Call { unique: 2, kind: Kind::Statfs, ino: 1, at: 0, len: 0 };
        let result = answer(&records, &call, Part::Whole, run);
        assert_eq!(result.map_err(Errno::code), Err(libc::EIO));
        let counted = records.metrics.snapshot();
        assert!(counted.faults.contains(&(Fault::Panic, 1)));
        assert_eq!(counted.kinds[Kind::Statfs as usize].errors, 1);
    }
}
