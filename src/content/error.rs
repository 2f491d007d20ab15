//! What goes wrong with blobs on disk.

use std::{io, path::PathBuf};

use peel_index::Digest;

use crate::oci::OciError;

/// An operation of the content store, or of a layout that is read, that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as in `write`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is full, or would be.
    #[error("no space left in {}: {}, available {available} bytes", path.display(), needed_bytes(*needed))]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes still to be written, where the size is known.
        needed: Option<u64>,
        /// Bytes that are free.
        available: u64,
    },
    /// There is no such blob.
    #[error("blob {digest} is missing: expected at {}", path.display())]
    Missing {
        /// The blob.
        digest: Box<Digest>,
        /// Where it should be.
        path: PathBuf,
    },
    /// The bytes are not those that the digest names.
    #[error("wrong digest of {}: expected {expected}, found {found}", path.display())]
    Digest {
        /// The file, or where it was being written.
        path: PathBuf,
        /// The digest it should have.
        expected: Box<Digest>,
        /// The digest it has.
        found: Box<Digest>,
    },
    /// The number of bytes is not the one that the descriptor names.
    #[error("wrong size of {}: expected {expected} bytes, found {found}", path.display())]
    Size {
        /// The file, or where it was being written.
        path: PathBuf,
        /// How many bytes it should have.
        expected: u64,
        /// How many it has, or had when writing stopped.
        found: u64,
    },
    /// A blob that is read as a whole is larger than such a document may be.
    #[error("{} is too large: expected at most {limit} bytes, found {found}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Most bytes it may have.
        limit: u64,
        /// Bytes it has.
        found: u64,
    },
    /// The same key is being written already.
    #[error("{key:?} is being written already")]
    Busy {
        /// The ingest's key.
        key: String,
    },
    /// No regular file where one should be.
    #[error("{}: expected a regular file, found {found}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The directory is no image layout.
    #[error("{} is no OCI image layout: expected {expected}, found {found}", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// The layout's `index.json` is not one.
    #[error("cannot use {}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: OciError,
    },
    /// No image of that name in the layout.
    #[error("no image tagged {tag:?} in {}, found: {}", path.display(), names(found))]
    NoTag {
        /// The directory.
        path: PathBuf,
        /// The tag asked for.
        tag: String,
        /// The tags there are.
        found: Vec<String>,
    },
    /// More than one image, and nothing that says which.
    #[error("{} holds {count} images: expected a tag, found: {}", path.display(), names(found))]
    Ambiguous {
        /// The directory.
        path: PathBuf,
        /// How many images there are.
        count: usize,
        /// The tags there are.
        found: Vec<String>,
    },
}

impl ContentError {
    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoSpace { .. } => Some("free some space, for example with: peel rm IMAGE"),
            Self::NotALayout { .. } => {
                Some("make one, for example with: skopeo copy docker://IMAGE oci:DIR:TAG")
            }
            Self::NoTag { .. } | Self::Ambiguous { .. } => Some("name one of them: oci:DIR:TAG"),
            Self::Index { source, .. } => source.hint(),
            _ => None,
        }
    }

    /// Whether bytes are damaged or are not what they are said to be.
    pub fn is_bad_data(&self) -> bool {
        matches!(self, Self::Digest { .. } | Self::Size { .. } | Self::TooLarge { .. })
    }

    /// Turns an I/O error on `path` into this error.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

fn needed_bytes(needed: Option<u64>) -> String {
    needed.map_or_else(|| "needed more".to_owned(), |bytes| format!("needed {bytes} bytes"))
}

fn names(found: &[String]) -> String {
    const SHOWN: usize = 20;
    match found.len() {
        0 => "none with a tag".to_owned(),
        n if n > SHOWN => format!("{}, … ({n} in all)", found[..SHOWN].join(", ")),
        _ => found.join(", "),
    }
}
