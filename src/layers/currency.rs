//! Files that an older builder or merger made.
//!
//! Their inode numbers mean what they meant, so they are served as they are. When their image is next
//! asked for they are made anew, from the blob or from the layers, under a new slot.

use peel_index::{BUILDER_VERSION, Digest, MERGER_VERSION, Slot, Tree};

use super::{Layers, Tables};

impl Layers {
    /// Whether a layer has an index, and no older builder made it.
    pub fn layer_is_current(&self, diff_id: &Digest) -> bool {
        let tables = self.tables();
        tables.layers.get(diff_id).is_some_and(|slot| tables.is_since(slot, BUILDER_VERSION))
    }

    /// Whether no older merger made the tree, and its layers are still those that it was made of.
    pub fn tree_is_current(&self, tree: &Tree) -> bool {
        let tables = self.tables();
        tables.is_since(&tree.slot(), MERGER_VERSION)
            && tree.layers().all(|layer| {
                tables.is_since(&layer.slot, BUILDER_VERSION)
                    && tables.layers.get(&layer.diff_id) == Some(&layer.slot)
            })
    }
}

impl Tables {
    fn is_since(&self, slot: &Slot, version: u32) -> bool {
        self.numbered.get(slot).is_some_and(|(builder, _)| *builder >= version)
    }
}
