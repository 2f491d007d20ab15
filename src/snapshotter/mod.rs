//! Snapshots by key, as containerd's snapshotters keep them: what can be prepared, viewed,
//! committed and removed, and which mounts show it.
//!
//! ```text
//!             Prepare ──▶ active ──Commit──▶ committed ──┐
//! parent ──▶                    Apply ──Commit──▶ layer ─┼──▶ parent of others
//!             View ─────▶ view                    layer ─┘
//! ```
//! A committed snapshot is a directory that somebody has filled (an upper of [`Snapshots`]), or a
//! *layer*: one that peel has indexed, of which nothing lies on disk but its blob and index. peel has
//! fetched it, or was asked to apply it to an active snapshot that stays empty. Layers stand on layers
//! only, so a chain is directories above one merged tree. The tree is merged when
//! something is first prepared on it, and not for every layer of an image.
//!
//! Locking: one mutex over the table, held while a change is written (milliseconds), never while a
//! tree is merged, a directory measured or removed. A snapshot's record is written after its
//! directory is made and before that is removed: a directory that no record names is garbage.

mod error;
mod filter;
mod ids;
mod mounts;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use peel_index::chain_id;

use self::ids::IdMaps;
pub use self::{error::SnapshotterError, filter::Filters, mounts::Mount};
use crate::{
    failure::Failure,
    metadata::{IdKind, KeyedKind, KeyedSnapshot, LayerRef, Metadata, now_ns},
    snapshot::{RootAttributes, Snapshots, Usage},
};

/// Label that names what a snapshot is wanted for: the chainID of all layers up to it.
///
/// Source: `labelSnapshotRef` in containerd's `metadata/snapshot.go`.
pub const REF_LABEL: &str = "containerd.io/snapshot.ref";

/// Most snapshots from one to the lowest below it. Whoever goes past it is running in circles:
/// overlayfs takes 500 directories at most.
const MAX_DEPTH: usize = 1024;

/// A merged tree, as the file system shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedTree {
    /// Where it is.
    pub path: PathBuf,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
    /// The kernel can map ids in a mount of it.
    pub maps_ids: bool,
}

/// Merges layers.
pub trait Trees {
    /// The tree of layers, lowest first; merged now where it was not yet.
    ///
    /// # Errors
    /// Where a layer's index is gone and cannot be made again, or they do not merge.
    fn merged(&self, layers: &[LayerRef]) -> Result<MergedTree, Failure>;
}

/// What lies below a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Below {
    /// Numbers of the directories, topmost first.
    pub uppers: Vec<u64>,
    /// The layers under them, lowest first.
    pub layers: Vec<LayerRef>,
}

/// What a removed snapshot leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Number of its directory, for [`Snapshots::remove`].
    pub directory: Option<u64>,
    /// It was a layer or had one: a blob, an index and trees may be of no use any more.
    pub layer: bool,
}

/// See the module.
pub struct Snapshotter {
    metadata: Arc<Metadata>,
    uppers: Arc<Snapshots>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    snapshots: BTreeMap<String, KeyedSnapshot>,
    /// How many have it as their parent.
    children: HashMap<String, usize>,
    /// Keys of layers by their [`REF_LABEL`].
    layers: HashMap<String, BTreeSet<String>>,
}

type Result<T, E = SnapshotterError> = std::result::Result<T, E>;

impl Snapshotter {
    /// Reads the table.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn open(metadata: Arc<Metadata>, uppers: Arc<Snapshots>) -> Result<Self> {
        let mut table = Table::default();
        for snapshot in metadata.keyed_snapshots()? {
            table.insert(snapshot);
        }
        Ok(Self { metadata, uppers, table: Mutex::new(table) })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is one insert or remove after its commit
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a snapshot to be written (`Active`) or read (`View`), and says how to mount it.
    ///
    /// # Errors
    /// `Exists` for a key that is taken, `NoParent`, `Invalid` for a parent that is not committed.
    pub fn prepare(
        &self,
        trees: &dyn Trees,
        kind: KeyedKind,
        key: &str,
        parent: Option<&str>,
        labels: BTreeMap<String, String>,
    ) -> Result<Vec<Mount>> {
        let below = {
            let table = self.table();
            table.refuse_taken(key)?;
            table.below(parent)?
        };
        let maps = IdMaps::of(&labels)?;
        let lowers = self.lowers(trees, &below)?;
        let id = self.metadata.next_id(IdKind::Snapshot)?;
        let has_directory = kind == KeyedKind::Active || parent.is_none();
        if has_directory {
            self.uppers.create(id, &root_attributes(lowers.first(), maps.as_ref()))?;
        }
        let now = now_ns();
        let snapshot = KeyedSnapshot {
            key: key.to_owned(),
            id,
            parent: parent.map(str::to_owned),
            kind,
            layer: None,
            labels,
            created_at_ns: now,
            updated_at_ns: now,
            bytes: 0,
            inodes: 0,
        };
        let mounts = self.mounts_of(&snapshot, &lowers);
        let added = mounts.and_then(|mounts| self.add(snapshot).map(|()| mounts));
        added.inspect_err(|_| {
            // What remains of it no record names, so GC finds it
            if has_directory && let Err(error) = self.uppers.remove(id) {
                tracing::warn!(%error, "cannot remove the directory of a snapshot that failed");
            }
        })
    }

    /// Adds a committed snapshot that is a layer; none where there is one already.
    ///
    /// Its parent has to be a layer as well. `target` is what containerd looks for in its
    /// [`REF_LABEL`].
    ///
    /// # Errors
    /// `NoParent`, `Invalid` for a parent that is no layer.
    pub fn add_layer(
        &self,
        parent: Option<&str>,
        target: &str,
        layer: LayerRef,
        usage: Usage,
        mut labels: BTreeMap<String, String>,
    ) -> Result<()> {
        labels.insert(REF_LABEL.to_owned(), target.to_owned());
        let name = {
            let table = self.table();
            if table.layer(parent, target).is_some() {
                return Ok(());
            }
            if !table.below(parent)?.uppers.is_empty() {
                return Err(SnapshotterError::Invalid(format!(
                    "a layer cannot stand on {parent:?}, which has been unpacked"
                )));
            }
            table.free_name(target)
        };
        let now = now_ns();
        let id = self.metadata.next_id(IdKind::Snapshot)?;
        let added = self.add(KeyedSnapshot {
            key: name,
            id,
            parent: parent.map(str::to_owned),
            kind: KeyedKind::Committed,
            layer: Some(layer),
            labels,
            created_at_ns: now,
            updated_at_ns: now,
            bytes: usage.bytes,
            inodes: usage.inodes,
        });
        match added {
            // Another call was faster
            Err(SnapshotterError::Exists(_)) if self.has_layer(parent, target) => Ok(()),
            added => added,
        }
    }

    /// Whether there is a layer of that chainID on that parent.
    pub fn has_layer(&self, parent: Option<&str>, target: &str) -> bool {
        self.table().layer(parent, target).is_some()
    }

    /// What lies below a snapshot that would stand on `parent`.
    ///
    /// # Errors
    /// `NoParent`, `Invalid` for a parent that is not committed.
    pub fn below(&self, parent: Option<&str>) -> Result<Below> {
        self.table().below(parent)
    }

    /// The mounts that show a snapshot; the same as when it was prepared.
    ///
    /// # Errors
    /// `NotFound`, `Precondition` for a committed one.
    pub fn mounts(&self, trees: &dyn Trees, key: &str) -> Result<Vec<Mount>> {
        let (snapshot, below) = {
            let table = self.table();
            let snapshot = table.find(key)?.clone();
            if snapshot.kind == KeyedKind::Committed {
                let message = format!("snapshot {key:?} is neither active nor a view");
                return Err(SnapshotterError::Precondition(message));
            }
            let mut below = table.below(snapshot.parent.as_deref())?;
            below.layers.extend(snapshot.layer.clone());
            (snapshot, below)
        };
        self.mounts_of(&snapshot, &self.lowers(trees, &below)?)
    }

    /// The active snapshot that is written to in a directory, and what it stands on.
    ///
    /// # Errors
    /// Those of [`Snapshotter::below`].
    pub fn active_in(&self, upper: &Path) -> Result<Option<(KeyedSnapshot, Below)>> {
        let Some(id) = self.uppers.id_of(upper) else { return Ok(None) };
        let table = self.table();
        let mut all = table.snapshots.values();
        let found = all.find(|snapshot| snapshot.id == id && snapshot.kind == KeyedKind::Active);
        let Some(found) = found else { return Ok(None) };
        let below = table.below(found.parent.as_deref())?;
        Ok(Some((found.clone(), below)))
    }

    /// Has an active snapshot be a layer once it is committed. Nothing may have been written to it.
    ///
    /// # Errors
    /// `NotFound`, `Precondition` for one that is not active, is not empty, is another layer already,
    /// or stands on what is no layer.
    pub fn apply(&self, key: &str, layer: LayerRef, usage: Usage) -> Result<()> {
        let mut table = self.table();
        let snapshot = table.find(key)?;
        refuse_inactive(snapshot)?;
        let is_other = snapshot.layer.as_ref().is_some_and(|found| found.diff_id != layer.diff_id);
        let stands = table.below(snapshot.parent.as_deref())?.uppers.is_empty();
        if is_other || !stands || !self.uppers.is_empty(snapshot.id)? {
            let message = format!("snapshot {key:?} is not one that can become a layer");
            return Err(SnapshotterError::Precondition(message));
        }
        let Usage { bytes, inodes } = usage;
        let applied = KeyedSnapshot { layer: Some(layer), bytes, inodes, ..snapshot.clone() };
        self.metadata.transaction(|tx| tx.put_keyed(&applied))?;
        table.replace(applied);
        Ok(())
    }

    /// Makes a committed snapshot of an active one. Gives the number of a directory that is of no
    /// use any more, where there is one.
    ///
    /// # Errors
    /// `NotFound`, `Precondition` for one that is not active, `Exists` for a name that is taken.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<Option<u64>> {
        let (id, is_layer) = {
            let table = self.table();
            let snapshot = table.find(key)?;
            table.refuse_taken(name)?;
            refuse_inactive(snapshot)?;
            (snapshot.id, snapshot.layer.is_some())
        };
        // Not under the lock: a large directory takes its time
        let usage = (!is_layer).then(|| self.uppers.usage(id)).transpose()?;
        let mut table = self.table();
        let active = table.find(key)?;
        table.refuse_taken(name)?;
        refuse_inactive(active)?;
        let now = now_ns();
        let mut committed = KeyedSnapshot {
            key: name.to_owned(),
            kind: KeyedKind::Committed,
            labels,
            created_at_ns: now,
            updated_at_ns: now,
            ..active.clone()
        };
        match (usage, &committed.layer) {
            (Some(Usage { bytes, inodes }), None) => {
                (committed.bytes, committed.inodes) = (bytes, inodes);
            }
            (None, Some(layer)) if self.uppers.is_empty(id)? => {
                let below = table.below(active.parent.as_deref())?.layers;
                let diff_ids = below.iter().chain([layer]).map(|layer| layer.diff_id);
                let chain = chain_id(&diff_ids.collect::<Vec<_>>());
                // Another namespace that wants the layer finds it by that
                let target = chain.map(|chain| chain.to_string()).unwrap_or_default();
                committed.labels.entry(REF_LABEL.to_owned()).or_insert(target);
            }
            _ => {
                let message = format!("snapshot {key:?} was written to while a layer was applied");
                return Err(SnapshotterError::Precondition(message));
            }
        }
        self.metadata.transaction(|tx| {
            tx.remove_keyed(key)?;
            tx.put_keyed(&committed)?;
            Ok::<_, SnapshotterError>(())
        })?;
        table.remove(key);
        table.insert(committed);
        Ok(is_layer.then_some(id))
    }

    /// Removes a snapshot that nothing stands on; says what is of no use any more.
    ///
    /// # Errors
    /// `NotFound`, `Precondition` where another stands on it.
    pub fn remove(&self, key: &str) -> Result<Removed> {
        let mut table = self.table();
        let snapshot = table.find(key)?;
        if table.children.contains_key(key) {
            return Err(SnapshotterError::Precondition(format!(
                "cannot remove snapshot {key:?}: it is the parent of another"
            )));
        }
        let directory = (!snapshot.is_layer()).then_some(snapshot.id);
        let removed = Removed { directory, layer: snapshot.layer.is_some() };
        self.metadata.transaction(|tx| tx.remove_keyed(key))?;
        table.remove(key);
        Ok(removed)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn stat(&self, key: &str) -> Result<KeyedSnapshot> {
        self.table().find(key).cloned()
    }

    /// Changes labels: all where `paths` is empty or names `labels`, else those that it names as
    /// `labels.KEY`, of which one without a value goes.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` for a field that cannot be changed.
    pub fn update(
        &self,
        key: &str,
        labels: BTreeMap<String, String>,
        paths: &[String],
    ) -> Result<KeyedSnapshot> {
        let mut table = self.table();
        let mut snapshot = table.find(key)?.clone();
        if paths.is_empty() {
            snapshot.labels.clone_from(&labels);
        }
        for path in paths {
            if path == "labels" {
                snapshot.labels.clone_from(&labels);
            } else if let Some(name) = path.strip_prefix("labels.") {
                match labels.get(name).filter(|value| !value.is_empty()) {
                    Some(value) => snapshot.labels.insert(name.to_owned(), value.clone()),
                    None => snapshot.labels.remove(name),
                };
            } else {
                let message = format!("cannot update field {path:?} of snapshot {key:?}");
                return Err(SnapshotterError::Invalid(message));
            }
        }
        snapshot.updated_at_ns = now_ns();
        self.metadata.transaction(|tx| tx.put_keyed(&snapshot))?;
        table.replace(snapshot.clone());
        Ok(snapshot)
    }

    /// The snapshots that a filter lets through, in the order of their keys.
    pub fn list(&self, filters: &Filters) -> Vec<KeyedSnapshot> {
        let table = self.table();
        table.snapshots.values().filter(|snapshot| filters.matches(snapshot)).cloned().collect()
    }

    /// Disk use of a snapshot alone, without what it stands on.
    ///
    /// # Errors
    /// `NotFound`, or where its directory cannot be read.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let snapshot = self.stat(key)?;
        match snapshot.kind {
            KeyedKind::Active => Ok(self.uppers.usage(snapshot.id)?),
            KeyedKind::View => Ok(Usage::default()),
            KeyedKind::Committed => Ok(Usage { bytes: snapshot.bytes, inodes: snapshot.inodes }),
        }
    }

    fn add(&self, snapshot: KeyedSnapshot) -> Result<()> {
        let mut table = self.table();
        // Another call may have come first since it was looked at
        table.refuse_taken(&snapshot.key)?;
        table.below(snapshot.parent.as_deref())?;
        self.metadata.transaction(|tx| tx.put_keyed(&snapshot))?;
        table.insert(snapshot);
        Ok(())
    }
}

fn refuse_inactive(snapshot: &KeyedSnapshot) -> Result<()> {
    if snapshot.kind == KeyedKind::Active {
        return Ok(());
    }
    let message = format!("snapshot {:?} is not active", snapshot.key);
    Err(SnapshotterError::Precondition(message))
}

/// The chainID that a layer is found by.
fn target(snapshot: &KeyedSnapshot) -> Option<&str> {
    snapshot.labels.get(REF_LABEL).filter(|_| snapshot.is_layer()).map(String::as_str)
}

impl Table {
    fn insert(&mut self, snapshot: KeyedSnapshot) {
        if let Some(parent) = &snapshot.parent {
            *self.children.entry(parent.clone()).or_default() += 1;
        }
        if let Some(target) = target(&snapshot) {
            self.layers.entry(target.to_owned()).or_default().insert(snapshot.key.clone());
        }
        self.snapshots.insert(snapshot.key.clone(), snapshot);
    }

    fn remove(&mut self, key: &str) {
        let Some(removed) = self.snapshots.remove(key) else { return };
        if let Some(target) = target(&removed)
            && let Some(keys) = self.layers.get_mut(target)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.layers.remove(target);
            }
        }
        let Some(parent) = removed.parent else { return };
        if let Some(count) = self.children.get_mut(&parent) {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&parent);
            }
        }
    }

    /// Puts a snapshot in the place of the one of its key.
    fn replace(&mut self, snapshot: KeyedSnapshot) {
        self.remove(&snapshot.key);
        self.insert(snapshot);
    }

    fn find(&self, key: &str) -> Result<&KeyedSnapshot> {
        self.snapshots.get(key).ok_or_else(|| SnapshotterError::NotFound(key.to_owned()))
    }

    fn refuse_taken(&self, key: &str) -> Result<()> {
        if key.is_empty() {
            return Err(SnapshotterError::Invalid("the key of a snapshot is empty".to_owned()));
        }
        match self.snapshots.contains_key(key) {
            true => Err(SnapshotterError::Exists(key.to_owned())),
            false => Ok(()),
        }
    }

    fn below(&self, parent: Option<&str>) -> Result<Below> {
        let mut below = Below::default();
        let mut next = parent;
        for _ in 0..MAX_DEPTH {
            let Some(key) = next else {
                below.layers.reverse();
                return Ok(below);
            };
            let missing = || SnapshotterError::NoParent(key.to_owned());
            let snapshot = self.snapshots.get(key).ok_or_else(missing)?;
            if snapshot.kind != KeyedKind::Committed {
                let message = format!("parent {key:?} is not a committed snapshot");
                return Err(SnapshotterError::Invalid(message));
            }
            match &snapshot.layer {
                Some(layer) => below.layers.push(layer.clone()),
                None => below.uppers.push(snapshot.id),
            }
            next = snapshot.parent.as_deref();
        }
        let message = format!("more than {MAX_DEPTH} snapshots below {parent:?}");
        Err(SnapshotterError::Invalid(message))
    }

    fn layer(&self, parent: Option<&str>, target: &str) -> Option<&KeyedSnapshot> {
        let mut all = self.layers.get(target)?.iter().filter_map(|key| self.snapshots.get(key));
        all.find(|snapshot| snapshot.parent.as_deref() == parent)
    }

    /// A name for a layer: its chainID, or that with a number where the name is taken.
    fn free_name(&self, target: &str) -> String {
        let mut name = target.to_owned();
        let mut number = 1_u64;
        while self.snapshots.contains_key(&name) {
            number += 1;
            name = format!("{target} ({number})");
        }
        name
    }
}

/// containerd's own snapshotter gives an upper 0755 and the parent's owner, or the owner that is root
/// in the container.
fn root_attributes(parent: Option<&mounts::Lower>, maps: Option<&IdMaps>) -> RootAttributes {
    let of_parent = parent.map_or((0, 0), |lower| (lower.uid, lower.gid));
    let (uid, gid) = maps.map_or(of_parent, IdMaps::root);
    let now = now_ns();
    RootAttributes {
        mode: 0o755,
        uid,
        gid,
        mtime_sec: now.div_euclid(1_000_000_000),
        mtime_nsec: u32::try_from(now.rem_euclid(1_000_000_000)).unwrap_or(0),
        xattrs: Vec::new(),
    }
}
