//! The merge of layers to one tree.
//!
//! Layers are applied lowest first, as an unpacker would; a layer's directory meets the merged one
//! as two sorted lists. What happens is in DESIGN and FACTS of the OCI image-spec's layer.md; what
//! those leave open is decided in `index/MERGE.md`.
//!
//! ```text
//! layers ──▶ arena of merged directories ──▶ sections of a tree
//!            (apply, links)                  (encode: depth first, names bytewise)
//! ```
//!
//! Memory: 16 bytes an entry and 40 a directory while layers are applied, then 16 bytes and the
//! distinct names for the result. Nothing locks.

mod apply;
mod arena;
mod encode;
mod error;
mod links;
#[cfg(test)]
mod tests;

pub use error::MergeError;

use std::borrow::Cow;

use crate::{digest::Digest, format::Sealed, layer::Layer, nodeid::Slot, tree::Totals};

/// Goes up whenever a tree of the same layers would come out differently.
pub const MERGER_VERSION: u32 = 1;

/// Merges layers, lowest first. The same layer may occur more than once; no layer at all gives an
/// empty root. `chain_id` is written down as it is.
///
/// # Errors
/// When a hard link of a layer names a file that the layers below do not show, when symlinks do
/// not end, and when a limit of the file format is reached.
pub fn merge(layers: &[&Layer], chain_id: Option<Digest>) -> Result<BuiltTree, MergeError> {
    let merged = apply::apply(layers)?;
    encode::seal(merged, chain_id)
}

/// A merged tree, finished but for its slot.
pub struct BuiltTree {
    sealed: Sealed,
    entries: u64,
    totals: Totals,
}

impl BuiltTree {
    /// How many names the tree has, the root not counted.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What the whole tree amounts to.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Digest of what inode numbers depend on, as [`crate::Tree::numbering`] will give it.
    pub fn numbering(&self) -> [u8; 32] {
        self.sealed.numbering()
    }

    /// The tree's file under a slot: the same tree gives the same bytes but for the header.
    pub fn encode(&self, slot: Slot) -> Vec<u8> {
        self.sealed.encode(slot)
    }

    /// What [`Self::encode`] gives, in pieces to be written one after the other: spares a copy.
    pub fn parts(&self, slot: Slot) -> impl Iterator<Item = Cow<'_, [u8]>> {
        self.sealed.parts(slot)
    }
}

impl std::fmt::Debug for BuiltTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuiltTree").field("entries", &self.entries).finish_non_exhaustive()
    }
}
