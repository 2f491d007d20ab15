//! What indexes and trees take on disk.

use std::{fs, path::Path};

use peel_index::{Digest, Slot};

use super::{Layers, copy_path, file_name, tree_name};

fn len(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |found| found.len())
}

impl Layers {
    /// Bytes of a layer's index and its seekable copy; 0 where it has none.
    pub fn layer_bytes(&self, diff_id: &Digest) -> u64 {
        let path = self.layers_dir.join(file_name(diff_id));
        len(&path) + len(&copy_path(&path))
    }

    /// Bytes of a tree; 0 where there is none.
    pub fn tree_bytes(&self, chain: Option<Digest>) -> u64 {
        len(&self.trees_dir.join(tree_name(chain)))
    }

    /// The slot of a layer's index; nothing is opened for it.
    pub fn layer_slot(&self, diff_id: &Digest) -> Option<Slot> {
        self.tables().layers.get(diff_id).copied()
    }
}
