//! What can go wrong in the metadata store.

use std::{io, path::PathBuf};

/// An error of the metadata store.
///
/// [`MetadataError::is_fatal`] says which of them must end the worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// Another process has the store open.
    #[error("metadata is in use by another process: {path:?}")]
    Locked {
        /// The lock file or database.
        path: PathBuf,
    },
    /// The store or a record of it was written by a newer peel.
    #[error("{what} was written by a newer version: expected at most {expected}, found {found}")]
    Newer {
        /// The key or file.
        what: String,
        /// The highest version known here.
        expected: u64,
        /// The version that stood there.
        found: u64,
    },
    /// A file beside the database could not be read or written.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The database failed. Nothing that was not acknowledged may be trusted any more.
    #[error("metadata store failed to {action} in {path:?}: key {key}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The key it was about, `-` where it was about all.
        key: String,
        /// The database's directory.
        path: PathBuf,
        /// The database's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record does not say what it should.
    #[error("damaged metadata record in {path:?}: key {key}: {reason}")]
    Damaged {
        /// The record's key.
        key: String,
        /// The database's directory or the export.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name or target that has to be unique belongs to another record.
    #[error("{what} is taken: {name}: expected id {expected}, found id {found}")]
    Taken {
        /// What kind of name it is.
        what: &'static str,
        /// The name.
        name: String,
        /// The record that was to be written.
        expected: u64,
        /// The record that has the name.
        found: u64,
    },
    /// A key or a record past the bound of the store.
    #[error("metadata {what} is too long: {key}: expected at most {expected} bytes, found {found}")]
    TooLong {
        /// `key` or `record`.
        what: &'static str,
        /// The (shortened) key.
        key: String,
        /// The bound in bytes.
        expected: usize,
        /// The length in bytes.
        found: usize,
    },
    /// Too little space on the file system to write safely. Nothing was changed.
    #[error("too little space for metadata in {path:?}: expected {expected} bytes, found {found}")]
    NoSpace {
        /// The store's directory.
        path: PathBuf,
        /// Bytes that have to be free.
        expected: u64,
        /// Bytes that are free.
        found: u64,
    },
    /// All 2^24 slots were handed out once.
    #[error("no slot is left: expected at most {expected}, found {found}")]
    SlotsExhausted {
        /// The highest slot there can be.
        expected: u32,
        /// The high-water mark.
        found: u32,
    },
    /// An earlier write failed half-way: what memory says and what the disk says may differ.
    #[error("metadata is closed after an earlier failure: {path:?}")]
    Failed {
        /// The store's directory.
        path: PathBuf,
    },
}

impl MetadataError {
    /// Whether the process has to end and open the store again rather than go on.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Store { .. } | Self::Damaged { .. } | Self::Failed { .. } => true,
            Self::Locked { .. }
            | Self::Newer { .. }
            | Self::Io { .. }
            | Self::Taken { .. }
            | Self::TooLong { .. }
            | Self::NoSpace { .. }
            | Self::SlotsExhausted { .. } => false,
        }
    }
}

/// A key for people: lossy and bounded.
pub(super) fn show(key: &[u8]) -> String {
    let shown = &key[..key.len().min(200)];
    let dots = if shown.len() < key.len() { "…" } else { "" };
    format!("{}{dots}", String::from_utf8_lossy(shown).escape_debug())
}
