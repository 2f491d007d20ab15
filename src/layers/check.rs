//! Indexes and trees at rest: whether they are what they were, and the slot that a new one keeps.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use peel_index::{Digest, FormatError, HEADER_LEN, Header, Layer, Slot, SpanSource, Tree};

use super::{
    BlobSource as _, Layers, LayersError, LocalBlob, Map, Numbered, check_name, check_slot,
    copy_path, file_name, tree_name,
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
        let (index, map) = read_layer(&path)?;
        check_name(&path, &file_name(&index.diff_id()))?;
        check_slot(&path, slot, index.slot())?;
        let mut bytes = len(&path)?;
        if index.copy_len() > 0 {
            bytes += check_copy(&index, &copy_path(&path))?;
        }
        map.check()?;
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
        let (tree, map) = read_tree(&path)?;
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
        map.check()?;
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
            let (tree, map) = read_tree(&path).ok()?;
            let found = tree.layers().find(|layer| layer.diff_id == *diff_id);
            let found = found.filter(|_| map.is_whole())?;
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

/// A file that did not open, as it was then.
pub(super) struct Damage {
    found: Instant,
    file: Option<(u64, u64, i64, i64)>,
}

impl Damage {
    /// What was damaged so recently is not looked at again unless it has changed: its disk may have
    /// failed only for a while.
    const AGAIN_AFTER: Duration = Duration::from_secs(1);

    fn of(path: &Path) -> Self {
        let file = std::fs::metadata(path).ok();
        let file = file.map(|m| (m.ino(), m.len(), m.ctime(), m.ctime_nsec()));
        Self { found: Instant::now(), file }
    }

    fn holds(&self, now: &Self) -> bool {
        self.file == now.file && now.found.duration_since(self.found) < Self::AGAIN_AFTER
    }
}

impl Layers {
    /// Opens what has a slot, unless it was damaged a moment ago and is what it was.
    pub(super) fn unless_damaged<T>(
        &self,
        slot: Slot,
        path: &Path,
        open: impl FnOnce() -> Result<T, LayersError>,
    ) -> Result<T, LayersError> {
        let is_known = self.tables().damaged.get(&slot).is_some_and(|d| d.holds(&Damage::of(path)));
        if is_known {
            return Err(LayersError::Known { path: path.to_owned() });
        }
        let before = Damage::of(path);
        let opened = open();
        let mut tables = self.tables_mut();
        match &opened {
            Ok(_) => drop(tables.damaged.remove(&slot)),
            Err(error) => {
                tracing::error!(%slot, error = crate::failure::chain(error), "cannot be served");
                let found = Instant::now();
                tables.damaged.insert(slot, Damage { found, ..before });
            }
        }
        opened
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

/// Opens an index; what is read of it later counts only while its map is whole.
pub(super) fn read_layer(path: &Path) -> Result<(Layer, Arc<Map>), LayersError> {
    read(path, Layer::open)
}

/// The same for a tree.
pub(super) fn read_tree(path: &Path) -> Result<(Tree, Arc<Map>), LayersError> {
    read(path, Tree::open)
}

fn read<T>(
    path: &Path,
    open: impl FnOnce(peel_index::Bytes) -> Result<T, FormatError>,
) -> Result<(T, Arc<Map>), LayersError> {
    let map = Arc::new(Map::open(path)?);
    let opened = open(Arc::clone(&map) as peel_index::Bytes);
    map.check()?;
    let opened = opened.map_err(|source| LayersError::Format { path: path.to_owned(), source })?;
    Ok((opened, map))
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
        let open = self.tables_mut().open_trees.remove(&slot);
        drop(open);
    }
}
