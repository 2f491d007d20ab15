//! What can go wrong with indexes and trees on disk.

use std::{io, path::PathBuf};

use peel_index::{Digest, Slot};

/// An index, a tree or their directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayersError {
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not a valid index or tree.
    #[error("damaged file {path}: {source}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: peel_index::FormatError,
    },
    /// A seekable copy does not hold what its index says.
    #[error("damaged file {path}: span {number}: {source}", path = path.display())]
    Span {
        /// The file.
        path: PathBuf,
        /// The span.
        number: u32,
        /// What is wrong with it.
        source: peel_index::CodecError,
    },
    /// A file holds something else than its name says.
    #[error("wrong file {path}: expected {expected}, found {found}", path = path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What its name promises.
        expected: String,
        /// What its content says.
        found: String,
    },
    /// A file was cut short, or its disk failed, while it was in use.
    #[error(
        "damaged file {path}: expected {expected} bytes, found fewer while reading",
        path = path.display()
    )]
    Cut {
        /// The file.
        path: PathBuf,
        /// Its length in bytes when it was opened.
        expected: usize,
    },
    /// What was found to be damaged a moment ago, and has not changed since.
    #[error("damaged file {path}, as was told", path = path.display())]
    Known {
        /// The file.
        path: PathBuf,
    },
    /// A layer that an image needs has no index here.
    #[error("layer {0} has no index")]
    Missing(Digest),
    /// The layers do not merge into a tree.
    #[error("cannot merge the layers: {0}")]
    Merge(#[from] peel_index::MergeError),
}

impl LayersError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl Fn(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path: path.clone(), source }
    }
}

/// A span of a layer cannot be had; the line that goes to the log.
#[derive(Debug, thiserror::Error)]
#[error("cannot read bytes {start}..{end} of the tar of layer {layer} (slot {slot})")]
pub struct SpanReadError {
    /// The layer's diffID.
    pub layer: Digest,
    /// Its slot.
    pub slot: Slot,
    /// First byte of the span in the uncompressed tar.
    pub start: u64,
    /// One past its last.
    pub end: u64,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
