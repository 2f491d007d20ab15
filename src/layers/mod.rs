//! The indexes and trees on disk, and the reading of file content through them.
//!
//! ```text
//! <root>/layers/<alg>-<hex>        layer index by diffID
//! <root>/layers/<alg>-<hex>.copy   its seekable copy, where the blob cannot be entered midway
//! <root>/layers/<alg>-<hex>.start  what was read of it when it last came into use
//! <root>/trees/<alg>-<hex>         merged tree by chainID; trees/empty for no layer at all
//! ```
//! Indexes and trees in use stay mapped, which takes no descriptor and hardly any memory but the page
//! cache's; of blobs, only so many are open.
//!
//! Every file but the last kind is immutable: written aside, synced, renamed into place, later unlinked; a map of it
//! stays valid until the last user lets go. Whoever cuts one short, or a disk that fails, is met by
//! `map`: what was lost is not served, and costs no more than that.
//!
//! Architecture invariant: serving needs no metadata store. The slot stands in the header of each
//! file, so slot → file is found from the files alone.
//!
//! Locking: one reader-writer lock over the tables, held for look-ups and inserts only, never over
//! I/O but for the opening of an index that nobody has asked for yet.

mod ahead;
mod blob;
mod cache;
mod check;
mod copy;
mod currency;
mod descriptors;
mod disk;
mod error;
mod map;
mod mend;
mod read;
mod start;
mod stream;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use peel_index::{
    BUILDER_VERSION, BuiltLayer, Digest, FileType, HEADER_LEN, Layer, MERGER_VERSION, Slot,
    SpanReader, Tree,
};

use self::{
    ahead::Streams,
    cache::SpanCache,
    check::{Damage, one_bit_off, read_layer, read_tree},
    descriptors::{ByPath, Descriptors},
    map::Map,
    mend::MenderSlot,
    start::{Following, Starts},
};
pub use self::{
    blob::{BlobSource, LocalBlob},
    cache::CacheStats,
    copy::CopyFile,
    error::{LayersError, SpanReadError},
    mend::{Mender, Wound},
    stream::LayerTar,
};
use crate::content::ContentStore;

/// Default bound of the span cache: 64 MiB.
pub const SPAN_CACHE_BYTES: u64 = 64 << 20;

const EMPTY_TREE: &str = "empty";

/// Indexes and trees at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LayerCounts {
    /// Indexes on disk.
    pub layers: u64,
    /// Of these, mapped.
    pub open_layers: u64,
    /// Trees on disk.
    pub trees: u64,
    /// Of these, mapped.
    pub open_trees: u64,
    /// Blobs and seekable copies that are open.
    pub open_blobs: u64,
}

/// See the module.
pub struct Layers {
    layers_dir: PathBuf,
    trees_dir: PathBuf,
    content: Arc<ContentStore>,
    tables: RwLock<Tables>,
    cache: SpanCache<SpanReader>,
    streams: Streams,
    following: Following,
    descriptors: Arc<Descriptors>,
    mender: MenderSlot,
}

#[derive(Default)]
struct Tables {
    /// Layer files by diffID and their slots.
    layers: HashMap<Digest, Slot>,
    /// Tree files by chainID (`None`: no layer).
    trees: HashMap<Option<Digest>, Slot>,
    files: HashMap<Slot, PathBuf>,
    /// How the inodes of each are numbered, as its header said.
    numbered: HashMap<Slot, Numbered>,
    open_layers: HashMap<Slot, Arc<OpenLayer>>,
    open_trees: HashMap<Slot, (Arc<Tree>, Arc<Map>)>,
    /// Slots that several files claimed when this began; none of them has it.
    twice: HashSet<Slot>,
    /// Layers whose index was of no use when this began.
    lost: HashSet<Digest>,
    /// Indexes and trees that did not open: a look at all of one is not cheap.
    damaged: HashMap<Slot, Damage>,
}

/// Version of the builder, and the digest of the numbering that it came to.
type Numbered = (u32, [u8; 32]);

/// An opened index with the bytes behind it.
pub(crate) struct OpenLayer {
    index: Arc<Layer>,
    map: Arc<Map>,
    blob: Box<dyn BlobSource>,
    copy: Option<Box<dyn BlobSource>>,
    starts: Starts,
    /// Spans whose damage the log has.
    told: Mutex<HashSet<u32>>,
}

impl Layers {
    /// Opens what is below `root`: reads the header of every file, no more.
    ///
    /// Files that are no indexes of this version are removed with a warning: they are rebuilt from
    /// their blobs when their image is next asked for. Left-over temporary files go as well.
    ///
    /// # Errors
    /// Where the directories cannot be read or made.
    pub fn open(
        root: &Path,
        content: Arc<ContentStore>,
        cache_bytes: u64,
    ) -> Result<Self, LayersError> {
        let layers_dir = root.join("layers");
        let trees_dir = root.join("trees");
        let mut tables = Tables::default();
        for (dir, kind) in [(&layers_dir, FileType::Layer), (&trees_dir, FileType::Tree)] {
            fs::create_dir_all(dir).map_err(LayersError::io("create", dir))?;
            for entry in fs::read_dir(dir).map_err(LayersError::io("read", dir))? {
                let path = entry.map_err(LayersError::io("read", dir))?.path();
                // One file that cannot be read is one image that is built anew, or not served
                if let Err(error) = tables.scan_file(&path, kind) {
                    tracing::error!(error = crate::failure::chain(&error), "leaving a file out");
                }
            }
        }
        let tables = RwLock::new(tables);
        let (cache, descriptors) = (SpanCache::new(cache_bytes), Arc::new(Descriptors::new()));
        let (streams, following) = (Streams::default(), Following::default());
        Ok(Self {
            layers_dir,
            trees_dir,
            content,
            tables,
            cache,
            streams,
            following,
            descriptors,
            mender: MenderSlot::default(),
        })
    }

    fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest slot on disk.
    pub fn highest_slot(&self) -> Option<Slot> {
        self.tables().files.keys().max().copied()
    }

    /// diffIDs of all indexed layers.
    pub fn diff_ids(&self) -> Vec<Digest> {
        self.tables().layers.keys().copied().collect()
    }

    /// chainIDs of all trees and their slots; no tree is opened for it.
    pub fn tree_slots(&self) -> Vec<(Option<Digest>, Slot)> {
        self.tables().trees.iter().map(|(chain, slot)| (*chain, *slot)).collect()
    }

    /// chainIDs of all trees; `None` stands for the tree of no layer.
    pub fn chain_ids(&self) -> Vec<Option<Digest>> {
        self.tables().trees.keys().copied().collect()
    }

    /// How many indexes and trees there are, and how many are open.
    pub fn counts(&self) -> LayerCounts {
        let tables = self.tables();
        LayerCounts {
            layers: tables.layers.len() as u64,
            open_layers: tables.open_layers.len() as u64,
            trees: tables.trees.len() as u64,
            open_trees: tables.open_trees.len() as u64,
            open_blobs: self.descriptors.count() as u64,
        }
    }

    /// Counters of the span cache.
    pub fn cache_stats(&self) -> CacheStats {
        CacheStats { starts: self.following.count(), ..self.cache.stats() }
    }

    /// The index of a layer; `None` where it was never indexed.
    ///
    /// # Errors
    /// Where its file is damaged or gone.
    pub fn layer_by_diff_id(&self, diff_id: &Digest) -> Result<Option<Arc<Layer>>, LayersError> {
        let slot = self.tables().layers.get(diff_id).copied();
        slot.map(|slot| Ok(Arc::clone(&self.open_layer(slot)?.index))).transpose()
    }

    /// Bytes of the index of a layer, its seekable copy included; `None` where it was never indexed.
    pub fn index_len(&self, diff_id: &Digest) -> Option<u64> {
        self.tables().layers.get(diff_id)?;
        let path = self.layers_dir.join(file_name(diff_id));
        let len = |path: &Path| fs::symlink_metadata(path).map_or(0, |m| m.len());
        Some(len(&path) + len(&copy_path(&path)))
    }

    /// The tree of a chain; `None` where it was never merged.
    ///
    /// # Errors
    /// Where its file is damaged or gone.
    pub fn tree_by_chain_id(
        &self,
        chain: Option<Digest>,
    ) -> Result<Option<Arc<Tree>>, LayersError> {
        let slot = self.tables().trees.get(&chain).copied();
        slot.map(|slot| self.open_tree(slot)).transpose()
    }

    /// Files for what does not stay in memory while a layer is indexed; they vanish unless they are
    /// installed.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new_copy(&self) -> Result<CopyFile, LayersError> {
        CopyFile::new(&self.layers_dir)
    }

    /// Puts the index of a pulled layer in place; the blob must be in the content store already.
    ///
    /// Where it takes the place of one that numbered inodes alike, it keeps that one's slot: what is
    /// mounted goes on. Else it has `slot`.
    ///
    /// # Errors
    /// Where files cannot be written, or the result does not open.
    pub fn install_layer(
        &self,
        built: &BuiltLayer,
        copy: CopyFile,
        slot: Slot,
    ) -> Result<Arc<Layer>, LayersError> {
        let path = self.layers_dir.join(file_name(&built.diff_id));
        let numbered = (BUILDER_VERSION, built.numbering());
        let slot = self.kept_layer_slot(&built.diff_id, numbered).unwrap_or(slot);
        let mut windows = copy.install(&copy_path(&path))?;
        write_atomically(&self.layers_dir, &path, |file| built.write_to(slot, file, &mut windows))?;
        {
            let mut tables = self.tables_mut();
            if let Some(old) = tables.layers.insert(built.diff_id, slot) {
                tables.files.remove(&old);
                tables.numbered.remove(&old);
                tables.open_layers.remove(&old);
            }
            tables.files.insert(slot, path);
            tables.numbered.insert(slot, numbered);
        }
        self.forget_open(&built.diff_id);
        Ok(Arc::clone(&self.open_layer(slot)?.index))
    }

    /// Merges a chain, lowest layer first, and puts its tree in place; as for
    /// [`install_layer`](Self::install_layer), under the slot it had where that still holds.
    ///
    /// # Errors
    /// Where a layer has no index, the layers do not merge, or the file cannot be written.
    pub fn build_tree(&self, diff_ids: &[Digest], slot: Slot) -> Result<Arc<Tree>, LayersError> {
        let chain = peel_index::chain_id(diff_ids);
        let slots = {
            let tables = self.tables();
            let slot = |id| tables.layers.get(id).copied().ok_or(LayersError::Missing(*id));
            diff_ids.iter().map(slot).collect::<Result<Vec<_>, _>>()?
        };
        let open = slots.into_iter().map(|slot| self.open_layer(slot));
        let open = open.collect::<Result<Vec<_>, _>>()?;
        let layers: Vec<&Layer> = open.iter().map(|open| &*open.index).collect();
        let built = peel_index::merge(&layers, chain);
        open.iter().try_for_each(|open| open.map.check())?;
        let built = built?;
        let path = self.trees_dir.join(tree_name(chain));
        let numbered = (MERGER_VERSION, built.numbering());
        let slot = self.kept_tree_slot(chain, numbered).unwrap_or(slot);
        write_atomically(&self.trees_dir, &path, |file| {
            built.parts(slot).try_for_each(|part| file.write_all(&part))
        })?;
        {
            let mut tables = self.tables_mut();
            if let Some(old) = tables.trees.insert(chain, slot) {
                tables.files.remove(&old);
                tables.numbered.remove(&old);
                tables.open_trees.remove(&old);
            }
            tables.files.insert(slot, path);
            tables.numbered.insert(slot, numbered);
        }
        self.open_tree(slot)
    }

    /// Removes the index of a layer and its seekable copy; returns the bytes freed.
    ///
    /// # Errors
    /// Where a file cannot be removed.
    pub fn remove_layer(&self, diff_id: &Digest) -> Result<u64, LayersError> {
        let slot = {
            let mut tables = self.tables_mut();
            let Some(slot) = tables.layers.remove(diff_id) else { return Ok(0) };
            tables.files.remove(&slot);
            tables.numbered.remove(&slot);
            tables.open_layers.remove(&slot);
            slot
        };
        self.cache.forget(slot);
        self.descriptors.forget(slot);
        let path = self.layers_dir.join(file_name(diff_id));
        Ok(remove(&copy_path(&path))? + remove(&start_path(&path))? + remove(&path)?)
    }

    /// Removes a tree; returns the bytes freed.
    ///
    /// # Errors
    /// Where its file cannot be removed.
    pub fn remove_tree(&self, chain: Option<Digest>) -> Result<u64, LayersError> {
        {
            let mut tables = self.tables_mut();
            let Some(slot) = tables.trees.remove(&chain) else { return Ok(0) };
            tables.files.remove(&slot);
            tables.numbered.remove(&slot);
            tables.open_trees.remove(&slot);
        }
        remove(&self.trees_dir.join(tree_name(chain)))
    }

    pub(crate) fn open_layer(&self, slot: Slot) -> Result<Arc<OpenLayer>, LayersError> {
        let path = {
            let tables = self.tables();
            match tables.open_layers.get(&slot) {
                Some(open) if open.map.is_whole() => return Ok(Arc::clone(open)),
                _ => tables.path(slot, &self.layers_dir)?,
            }
        };
        let (index, map) = self.unless_damaged(slot, &path, || {
            let (index, map) = read_layer(&path)?;
            check_name(&path, &file_name(&index.diff_id()))?;
            check_slot(&path, slot, index.slot())?;
            Ok((index, map))
        })?;
        let blob = self.content.path(&index.blob());
        let source = |is_copy, path: PathBuf| {
            let blob = ByPath::new(&self.descriptors, (slot, is_copy), path.clone());
            let blob = blob.map_err(LayersError::io("find", path))?;
            Ok::<Box<dyn BlobSource>, LayersError>(Box::new(blob))
        };
        let copy = (index.copy_len() > 0).then(|| source(true, copy_path(&path)));
        let open = OpenLayer {
            index: Arc::new(index),
            map,
            blob: source(false, blob)?,
            copy: copy.transpose()?,
            starts: Starts::new(),
            told: Mutex::default(),
        };
        let open = Arc::new(open);
        let mut tables = self.tables_mut();
        let held = tables.open_layers.entry(slot).or_insert_with(|| Arc::clone(&open));
        if !held.map.is_whole() {
            *held = open;
        }
        Ok(Arc::clone(held))
    }

    pub(crate) fn open_tree(&self, slot: Slot) -> Result<Arc<Tree>, LayersError> {
        let path = {
            let tables = self.tables();
            match tables.open_trees.get(&slot) {
                Some((tree, map)) if map.is_whole() => return Ok(Arc::clone(tree)),
                _ => tables.path(slot, &self.trees_dir)?,
            }
        };
        let (tree, map) = self.unless_damaged(slot, &path, || {
            let (tree, map) = read_tree(&path)?;
            check_slot(&path, slot, tree.slot())?;
            Ok((tree, map))
        })?;
        for merged in tree.layers() {
            let layer = self.open_layer(merged.slot)?;
            let found = (layer.index.diff_id(), layer.index.numbering());
            if found != (merged.diff_id, merged.numbering) {
                let (diff_id, slot) = (merged.diff_id, merged.slot);
                return Err(LayersError::Mismatch {
                    path,
                    expected: format!("layer {diff_id} in slot {slot}, numbered as it was merged"),
                    found: format!("layer {} numbered otherwise", found.0),
                });
            }
        }
        let open = (Arc::new(tree), map);
        let mut tables = self.tables_mut();
        let held = tables.open_trees.entry(slot).or_insert_with(|| open.clone());
        if !held.1.is_whole() {
            *held = open;
        }
        Ok(Arc::clone(&held.0))
    }
}

impl Tables {
    fn path(&self, slot: Slot, dir: &Path) -> Result<PathBuf, LayersError> {
        self.files.get(&slot).filter(|path| path.starts_with(dir)).cloned().ok_or_else(|| {
            let path = dir.join(format!("(slot {slot})"));
            LayersError::io("find", path)(std::io::ErrorKind::NotFound.into())
        })
    }

    fn scan_file(&mut self, path: &Path, expected: FileType) -> Result<(), LayersError> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.ends_with(".copy") || name.ends_with(".start") {
            // Removed with its index; a copy without an index is an interrupted install
            if !path.with_extension("").exists() {
                remove(path)?;
            }
            return Ok(());
        }
        let digest = match (parse_name(name), expected, name) {
            (Some(digest), _, _) => Some(digest),
            (None, FileType::Tree, EMPTY_TREE) => None,
            _ => {
                tracing::warn!(path = %path.display(), "removing a file that is no index");
                remove(path)?;
                return Ok(());
            }
        };
        let mut first = Vec::with_capacity(HEADER_LEN);
        let file = File::open(path).map_err(LayersError::io("open", path))?;
        file.take(HEADER_LEN as u64)
            .read_to_end(&mut first)
            .map_err(LayersError::io("read", path))?;
        // One whose header has a flipped bit is found to be damaged when it is opened, and keeps its
        // slot when it is built again
        let header = peel_index::peek_header(&first).or_else(|e| one_bit_off(&first).ok_or(e));
        let (slot, numbered) = match header {
            Ok(header) if header.kind == expected => {
                (header.slot, (header.builder, header.numbering))
            }
            bad => {
                let reason = bad.err().map_or("of another kind".to_owned(), |e| e.to_string());
                tracing::warn!(path = %path.display(), reason, "removing an index to be rebuilt");
                remove(path)?;
                self.lost.extend(digest.filter(|_| expected == FileType::Layer));
                return Ok(());
            }
        };
        if self.twice.contains(&slot) || self.files.contains_key(&slot) {
            return self.drop_both(slot, path);
        }
        self.files.insert(slot, path.to_owned());
        self.numbered.insert(slot, numbered);
        match (expected, digest) {
            (FileType::Layer, Some(diff_id)) => {
                self.layers.insert(diff_id, slot);
            }
            (_, chain) => {
                self.trees.insert(chain, slot);
            }
        }
        Ok(())
    }
}

impl Tables {
    /// Which of two files a slot was given out for is not known, and one would be served as the
    /// other: neither is, and both are built anew when their images are next asked for.
    fn drop_both(&mut self, slot: Slot, second: &Path) -> Result<(), LayersError> {
        let first = self.files.remove(&slot);
        self.layers.retain(|_, other| *other != slot);
        self.trees.retain(|_, other| *other != slot);
        self.twice.insert(slot);
        for path in first.iter().map(PathBuf::as_path).chain([second]) {
            tracing::error!(%slot, path = %path.display(), "two files claim one slot; removing");
            remove(path)?;
        }
        Ok(())
    }
}

fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

fn tree_name(chain: Option<Digest>) -> String {
    chain.map_or_else(|| EMPTY_TREE.to_owned(), |chain| file_name(&chain))
}

fn parse_name(name: &str) -> Option<Digest> {
    name.replacen('-', ":", 1).parse().ok()
}

fn copy_path(index: &Path) -> PathBuf {
    index.with_extension("copy")
}

fn start_path(index: &Path) -> PathBuf {
    index.with_extension("start")
}

fn check_name(path: &Path, expected: &str) -> Result<(), LayersError> {
    match path.file_name() {
        Some(name) if name == expected => Ok(()),
        name => Err(LayersError::Mismatch {
            path: path.to_owned(),
            expected: name.unwrap_or_default().to_string_lossy().into_owned(),
            found: expected.to_owned(),
        }),
    }
}

fn check_slot(path: &Path, expected: Slot, found: Slot) -> Result<(), LayersError> {
    if expected == found {
        return Ok(());
    }
    Err(LayersError::Mismatch {
        path: path.to_owned(),
        expected: format!("slot {expected}"),
        found: format!("slot {found}"),
    })
}

fn temporary(dir: &Path) -> Result<tempfile::NamedTempFile, LayersError> {
    tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(dir)
        .map_err(LayersError::io("create", dir))
}

fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<(), LayersError> {
    file.as_file().sync_all().map_err(LayersError::io("sync", path))?;
    file.persist(path).map_err(|e| LayersError::io("rename to", path)(e.error))?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|d| d.sync_all()).map_err(LayersError::io("sync", dir))
}

fn write_atomically(
    dir: &Path,
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(), LayersError> {
    let mut file = temporary(dir)?;
    write(file.as_file_mut()).map_err(LayersError::io("write", path))?;
    persist(file, path)
}

fn remove(path: &Path) -> Result<u64, LayersError> {
    match fs::symlink_metadata(path).and_then(|m| fs::remove_file(path).map(|()| m.len())) {
        Ok(len) => Ok(len),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(LayersError::io("remove", path)(e)),
    }
}
