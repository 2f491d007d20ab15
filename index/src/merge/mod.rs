//! The merge of layers to one tree.
//!
//! The tree is walked depth first, names bytewise, over all layers at once: each directory of it is
//! a list of the layers' directories that have part in it, and their sorted entries are merged as
//! they are read. What happens is in DESIGN and FACTS of the OCI image-spec's layer.md; what those
//! leave open is decided in `index/MERGE.md`.
//!
//! ```text
//! layers ──▶ hard links into lower layers ──▶ first walk ──▶ second walk ──▶ sections of a tree
//!            (links)                          (census: how   (encode)
//!                                             many of what)
//! ```
//!
//! Only hard links make one directory depend on another: those into lower layers are looked up
//! before anything else, and names of files with several of them are counted in the first walk.
//!
//! Memory: the sections, which hold 16 bytes an entry, the distinct names and 64 bytes a directory;
//! beside them at most 20 bytes a distinct name, 16 bytes a hard link, and the directories that are
//! open. Time: in proportion to the layers' entries; looking up what lies elsewhere has a limit,
//! [`MAX_STEPS`]. Nothing locks.

mod census;
mod encode;
mod error;
mod lend;
mod links;
mod stack;
#[cfg(test)]
mod tests;
mod walk;

pub use error::MergeError;
pub use stack::MAX_STEPS;

use std::borrow::Cow;

use crate::{digest::Digest, format::Sealed, layer::Layer, nodeid::Slot, tree::Totals};

/// Goes up whenever a tree of the same layers would come out differently.
pub const MERGER_VERSION: u32 = 2;

/// Most names of a tree, the root not counted: bounds the memory of a merge to about 2 GiB.
pub const MAX_TREE_ENTRIES: u64 = 1 << 25;

/// Merges layers, lowest first. The same layer may occur more than once; no layer at all gives an
/// empty root. `chain_id` is written down as it is.
///
/// # Errors
/// When a hard link of a layer names a file that the layers below do not show, when symlinks do
/// not end, and when a limit of the merge or of the file format is reached.
pub fn merge(layers: &[&Layer], chain_id: Option<Digest>) -> Result<BuiltTree, MergeError> {
    merge_within(&Limits::default(), layers, chain_id)
}

/// What bounds time and memory of a merge.
#[derive(Clone, Copy)]
struct Limits {
    entries: u64,
    steps: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: MAX_TREE_ENTRIES, steps: MAX_STEPS }
    }
}

fn merge_within(
    limits: &Limits,
    layers: &[&Layer],
    chain_id: Option<Digest>,
) -> Result<BuiltTree, MergeError> {
    let mut stack = stack::Stack::new(layers, limits.steps)?;
    let xattrs = stack.apply_lower_links()?;
    let census = census::take(&mut stack, limits.entries)?;
    encode::seal(&stack, census, xattrs, chain_id)
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
