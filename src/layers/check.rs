//! Indexes and trees at rest: whether they are what they were, and the slot that a new one keeps.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use peel_index::{Digest, HEADER_LEN, Header, Layer, Slot, SpanSource, Tree};

use super::{
    BlobSource as _, Layers, LayersError, LocalBlob, Numbered, check_name, check_slot, copy_path,
    file_name, map, tree_name,
};

impl Layers {
    /// Reads the index of a layer anew, whatever is open, with every span of its seekable copy.
    /// Returns the bytes read; `None` where the layer was never indexed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_layer(&self, diff_id: &Digest) -> Result<Option<u64>, LayersError> {
        let Some(slot) = self.tables().layers.get(diff_id).copied() else { return Ok(None) };
        let path = self.layers_dir.join(file_name(diff_id));
        let index = read_layer(&path)?;
        check_name(&path, &file_name(&index.diff_id()))?;
        check_slot(&path, slot, index.slot())?;
        let mut bytes = len(&path)?;
        if index.copy_len() > 0 {
            bytes += check_copy(&index, &copy_path(&path))?;
        }
        Ok(Some(bytes))
    }

    /// Reads a tree anew, whatever is open; returns the bytes read, `None` where the chain was
    /// never merged.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_tree(&self, chain: Option<Digest>) -> Result<Option<u64>, LayersError> {
        let Some(slot) = self.tables().trees.get(&chain).copied() else { return Ok(None) };
        let path = self.trees_dir.join(tree_name(chain));
        let tree = read_tree(&path)?;
        check_slot(&path, slot, tree.slot())?;
        if tree.chain_id() != chain {
            let shown = |chain: Option<Digest>| format!("the tree of {}", tree_name(chain));
            let (expected, found) = (shown(chain), shown(tree.chain_id()));
            return Err(LayersError::Mismatch { path, expected, found });
        }
        for merged in tree.layers() {
            let tables = self.tables();
            let found = tables.layers.get(&merged.diff_id);
            let numbered = found.and_then(|slot| tables.numbered.get(slot));
            if found != Some(&merged.slot)
                || numbered.is_none_or(|(_, numbering)| *numbering != merged.numbering)
            {
                let expected = format!("layer {} in slot {}", merged.diff_id, merged.slot);
                let found = found.map_or("none".to_owned(), |slot| format!("one in slot {slot}"));
                return Err(LayersError::Mismatch { path, expected, found });
            }
        }
        Ok(Some(len(&path)?))
    }

    /// The slot of a layer that is built again: its own, where it is known and inodes are numbered
    /// as before, so that what is mounted goes on; else `None`.
    pub(super) fn kept_layer_slot(&self, diff_id: &Digest, numbered: Numbered) -> Option<Slot> {
        {
            let tables = self.tables();
            if let Some(known) = tables.layers.get(diff_id) {
                return (tables.numbered.get(known) == Some(&numbered)).then_some(*known);
            }
            if !tables.lost.contains(diff_id) {
                return None;
            }
        }
        // Its file was of no use; trees say what it was when they were merged
        self.tree_paths().into_iter().find_map(|path| {
            let tree = read_tree(&path).ok()?;
            let found = tree.layers().find(|layer| layer.diff_id == *diff_id)?;
            let is_free = {
                let tables = self.tables();
                !tables.twice.contains(&found.slot) && !tables.files.contains_key(&found.slot)
            };
            (found.numbering == numbered.1 && is_free).then_some(found.slot)
        })
    }

    /// The same for a tree.
    pub(super) fn kept_tree_slot(&self, chain: Option<Digest>, numbered: Numbered) -> Option<Slot> {
        let tables = self.tables();
        let known = tables.trees.get(&chain).copied()?;
        (tables.numbered.get(&known) == Some(&numbered)).then_some(known)
    }

    fn tree_paths(&self) -> Vec<PathBuf> {
        self.tables().trees.keys().map(|chain| self.trees_dir.join(tree_name(*chain))).collect()
    }
}

/// The header that these bytes were before one bit of them flipped; its own checksum tells.
pub(super) fn one_bit_off(first: &[u8]) -> Option<Header> {
    let mut bytes = first.get(..HEADER_LEN)?.to_vec();
    (0..bytes.len() * 8).find_map(|bit| {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let header = peel_index::peek_header(&bytes).ok();
        bytes[bit / 8] ^= 1 << (bit % 8);
        header
    })
}

fn len(path: &Path) -> Result<u64, LayersError> {
    Ok(std::fs::metadata(path).map_err(LayersError::io("look at", path))?.len())
}

pub(super) fn read_layer(path: &Path) -> Result<Layer, LayersError> {
    Layer::open(map(path)?).map_err(|source| LayersError::Format { path: path.to_owned(), source })
}

pub(super) fn read_tree(path: &Path) -> Result<Tree, LayersError> {
    Tree::open(map(path)?).map_err(|source| LayersError::Format { path: path.to_owned(), source })
}

/// Every span that comes from the seekable copy against its digest.
fn check_copy(index: &Layer, path: &Path) -> Result<u64, LayersError> {
    let file = File::open(path).map_err(LayersError::io("open", path))?;
    let (copy, mut bytes) = (LocalBlob::new(file), Vec::new());
    let mut total = 0;
    for number in 0..index.span_count() {
        let Some(span) = index.span(number).filter(|span| span.source == SpanSource::Copy) else {
            continue;
        };
        copy.read_range(span.offset, span.len as usize, &mut bytes)
            .map_err(LayersError::io("read", path))?;
        total += bytes.len() as u64;
        let reader = index.begin_span(number, std::mem::take(&mut bytes));
        reader.map_err(|source| LayersError::Span { path: path.to_owned(), number, source })?;
    }
    Ok(total)
}

impl Layers {
    /// Has a layer that was put in place again, or its blob, opened anew by whoever reads next.
    pub fn forget_open(&self, diff_id: &Digest) {
        let Some(slot) = self.tables().layers.get(diff_id).copied() else { return };
        let open = self.tables_mut().open_layers.remove(&slot);
        drop(open);
        self.cache.forget(slot);
        self.descriptors.forget(slot);
    }

    /// The same for a tree.
    pub fn forget_open_tree(&self, chain: Option<Digest>) {
        let Some(slot) = self.tables().trees.get(&chain).copied() else { return };
        let open: Option<Arc<Tree>> = self.tables_mut().open_trees.remove(&slot);
        drop(open);
    }
}
