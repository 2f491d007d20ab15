//! Errors of the filesystem, and the one table that turns them into what a caller sees.

use peel_index::Slot;
use tracing::Level;

use crate::{flight::Culprit, metrics::Fault, source::ReadError};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory has no such entry.
    #[error("no such entry")]
    NotFound,
    /// The number stands for nothing that is here: its tree or layer is gone, or peel never gave
    /// it out.
    #[error("inode {ino:#x} is not here")]
    Stale {
        /// The inode number.
        ino: u64,
    },
    /// A directory was needed.
    #[error("inode {ino:#x} is no directory")]
    NotDirectory {
        /// The inode number.
        ino: u64,
    },
    /// Something else than a directory was needed.
    #[error("inode {ino:#x} is a directory")]
    IsDirectory {
        /// The inode number.
        ino: u64,
    },
    /// Another kind of file was needed.
    #[error("inode {ino:#x} is of the wrong kind")]
    WrongKind {
        /// The inode number.
        ino: u64,
    },
    /// The file has no such extended attribute.
    #[error("no such extended attribute")]
    NoXattr,
    /// The caller's room is too small.
    #[error("expected room for {needed} bytes, found {room}")]
    Room {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that the caller has room for.
        room: usize,
    },
    /// Nothing can be written.
    #[error("images are read-only")]
    ReadOnly,
    /// The kernel is told that the operation does not exist, so that it stops asking.
    #[error("operation is not provided")]
    NotProvided,
    /// A tree names a layer that is not there, or an inode that the layer does not have.
    #[error("inode {ino:#x} names inode {number} of layer {layer}, which is not there")]
    Dangling {
        /// The inode or the directory that names it.
        ino: u64,
        /// The layer's slot.
        layer: Slot,
        /// The inode's number in the layer.
        number: u32,
    },
    /// Content could not be read.
    #[error("reading {len} bytes at {offset} of inode {ino:#x} failed")]
    Read {
        /// The inode number.
        ino: u64,
        /// First byte that was wanted.
        offset: u64,
        /// How many bytes were wanted.
        len: u32,
        /// What went wrong.
        #[source]
        source: ReadError,
    },
    /// Two workers in a row died of this, and the next one does not try.
    #[error("refused, as two workers died of it: {culprit}")]
    Barred {
        /// What they died of.
        culprit: Culprit,
    },
    /// A bug; the request is answered all the same.
    #[error("panic while answering")]
    Panic,
}

impl Error {
    /// What the caller sees, as in errno(3), and how loudly it is logged.
    fn outcome(&self) -> (i32, Level) {
        match self {
            Self::NotFound => (libc::ENOENT, Level::TRACE),
            Self::NoXattr => (libc::ENODATA, Level::TRACE),
            Self::Room { .. } => (libc::ERANGE, Level::TRACE),
            Self::NotProvided => (libc::ENOSYS, Level::TRACE),
            Self::NotDirectory { .. } => (libc::ENOTDIR, Level::DEBUG),
            Self::IsDirectory { .. } => (libc::EISDIR, Level::DEBUG),
            Self::WrongKind { .. } => (libc::EINVAL, Level::DEBUG),
            Self::ReadOnly => (libc::EROFS, Level::DEBUG),
            // An overlay that outlives its image can ask for what is gone
            Self::Stale { .. } => (libc::ESTALE, Level::DEBUG),
            Self::Dangling { .. } => (libc::EIO, Level::ERROR),
            Self::Read { source, .. } => match source {
                ReadError::NoLayer { .. } => (libc::ESTALE, Level::WARN),
                ReadError::NoContent { .. } => (libc::EIO, Level::ERROR),
                ReadError::Length { .. } => (libc::EIO, Level::ERROR),
                // Never the cause's own errno: a full disk below is no ENOSPC of a read
                ReadError::Io { .. } => (libc::EIO, Level::ERROR),
                ReadError::Damaged { again: false, .. } => (libc::EIO, Level::ERROR),
                // One line a damaged place is enough: a reader tries again page by page
                ReadError::Damaged { again: true, .. } => (libc::EIO, Level::DEBUG),
            },
            // The keeper has said so once, as an error
            Self::Barred { .. } => (libc::EIO, Level::WARN),
            Self::Panic => (libc::EIO, Level::ERROR),
        }
    }

    /// What the operator should know of, where this is anything of the kind.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::NotFound
            | Self::NoXattr
            | Self::Room { .. }
            | Self::NotProvided
            | Self::NotDirectory { .. }
            | Self::IsDirectory { .. }
            | Self::WrongKind { .. }
            | Self::ReadOnly
            | Self::Stale { .. } => None,
            Self::Dangling { .. } => Some(Fault::Inconsistent),
            Self::Read { source, .. } => Some(match source {
                ReadError::NoLayer { .. } => Fault::Missing,
                ReadError::NoContent { .. } | ReadError::Length { .. } => Fault::Inconsistent,
                ReadError::Io { .. } => Fault::Unreadable,
                ReadError::Damaged { .. } => Fault::Damaged,
            }),
            Self::Barred { .. } => Some(Fault::Barred),
            Self::Panic => Some(Fault::Panic),
        }
    }

    /// The error number that the caller gets, as in errno(3).
    pub fn errno(&self) -> i32 {
        self.outcome().0
    }

    /// How loudly the error is logged: what callers do all day is no news, damage is.
    pub fn level(&self) -> Level {
        self.outcome().1
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn slot() -> Slot {
        Slot::new(3).expect("in range")
    }

    #[test]
    fn causes_do_not_leak_their_errno() {
        let cause = std::io::Error::from_raw_os_error(libc::ENOSPC);
        let source = ReadError::Io { layer: slot(), source: cause };
        let error = Error::Read { ino: 0x3_0000_0007, offset: 4096, len: 512, source };
        assert_eq!((error.errno(), error.level()), (libc::EIO, Level::ERROR));
        let text = error.to_string();
        assert_eq!(text, "reading 512 bytes at 4096 of inode 0x300000007 failed");
        let chain = error.source().and_then(|e| e.source()).expect("the cause is kept");
        assert!(chain.to_string().contains("os error 28"));
    }

    #[test]
    fn everyday_errors_are_quiet() {
        for error in [Error::NotFound, Error::NoXattr, Error::NotProvided] {
            assert_eq!((error.level(), error.fault()), (Level::TRACE, None));
        }
        let missing = Error::Dangling { ino: 1, layer: slot(), number: 9 };
        assert_eq!((missing.errno(), missing.level()), (libc::EIO, Level::ERROR));
        assert_eq!(missing.fault(), Some(Fault::Inconsistent));
    }
}
