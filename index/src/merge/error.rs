//! Why layers cannot be merged.

use crate::{digest::Digest, format::HeapFull};

/// Why layers cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A hard link of a layer names a path that the layers below do not show.
    #[error("layer {layer}: hard link to a missing file: {path:?}")]
    MissingTarget {
        /// diffID of the layer that holds the link.
        layer: Digest,
        /// The target, made printable.
        path: String,
    },
    /// A hard link of a layer names a directory of the layers below.
    #[error("layer {layer}: hard link to a directory: {path:?}")]
    DirectoryTarget {
        /// diffID of the layer that holds the link.
        layer: Digest,
        /// The target, made printable.
        path: String,
    },
    /// The target of a hard link leads through too many symlinks of the layers below, or too long
    /// ones.
    #[error("layer {layer}: too many symlinks in path: {path:?}")]
    Links {
        /// diffID of the layer that holds the link.
        layer: Digest,
        /// The target, made printable.
        path: String,
    },
    /// All paths that had to be looked up in other layers took too long together.
    #[error(
        "layer {layer}: too many steps to look up paths in other layers: expected at most \
         {expected} in all, exceeded at {path:?}"
    )]
    Steps {
        /// diffID of the layer that was looked at.
        layer: Digest,
        /// The path with which the limit was reached, made printable.
        path: String,
        /// The limit, [`super::MAX_STEPS`].
        expected: u64,
    },
    /// More layers than the merge has numbers for.
    #[error("too many layers: expected at most {expected}, found {found}")]
    Layers {
        /// The limit.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Two layers with one slot that are not the same layer.
    #[error("two layers have slot {slot}: expected {expected}, found {found}")]
    Slot {
        /// The slot.
        slot: u32,
        /// diffID of the lower layer.
        expected: Box<Digest>,
        /// diffID of the upper layer.
        found: Box<Digest>,
    },
    /// A limit of the file format is reached.
    #[error(transparent)]
    Full(#[from] HeapFull),
}
