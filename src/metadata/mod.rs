//! What peel knows beside the content-addressed files: names, snapshots, mounts, slots.
//!
//! ```text
//! <root>/metadata/
//!   lock            held by the one process that has the store open
//!   db/             sled: one tree, keys `<table>/<key>`, values JSON documents with `v`
//!   export.json     plain JSON of everything, for people and for restoring
//!   slots           high-water mark of slots, on disk before a slot below it is handed out
//!   generation      number of the last change, so that a lost one is noticed
//!   spare           space kept back, so that a full disk can be cleared up
//!   check/          a copy of the database while it is checked
//!   db.corrupt-<s>  a damaged database, moved aside at that second since 1970
//! ```
//!
//! Architecture invariant: this is the only module that names sled; serving files needs none of it.
//!
//! A change is on disk when the call returns. The interface is synchronous and a change takes
//! milliseconds: async callers go through `spawn_blocking`.
//!
//! Locking: `export`, then the slots' mutex, then the writer's mutex, which lies around every
//! change. Readers take none; they see whole changes, at the earliest a moment before they are on
//! disk. After a write that failed every call fails, and the process has to open the store again.

mod check;
mod error;
mod export;
mod files;
mod keep;
mod keyed;
mod open;
mod record;
mod shared;
mod slots;
mod store;
mod text;
mod transaction;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

pub use check::Fault;
pub use error::MetadataError;
pub use keep::{
    ContentRecord, LABEL_CALL, LABEL_GC_REF, LABEL_GC_ROOT, LABEL_PULL, LABEL_SOURCE,
    LABEL_UNCOMPRESSED, LeaseRecord,
};
pub use keyed::{KeyedKind, KeyedSnapshot};
pub use open::{Cause, Opened, Recovered, RestoredFrom};
pub use record::{
    IdKind, ImageRecord, LayerRef, MountRecord, MountState, OtherPlatform, RootfsKind,
    SnapshotRecord, TargetDescriptor,
};
pub use slots::SlotAllocator;
pub use transaction::Transaction;

use shared::Shared;
use transaction::View;

/// The metadata store of one root directory.
#[derive(Debug)]
pub struct Metadata {
    slots: SlotAllocator,
    shared: Arc<Shared>,
    /// Generation of the export on disk.
    exported: Mutex<u64>,
    export_path: PathBuf,
    // Last: let go of when the database is closed
    _lock: File,
}

impl Metadata {
    /// Opens or creates the store in `dir` (`<root>/metadata`) and checks every record.
    ///
    /// [`MetadataError::Locked`] where another process has it. A damaged store is moved aside and
    /// restored, which [`Opened::recovered`] tells and the log says as an error.
    pub fn open(dir: &Path) -> Result<Opened, MetadataError> {
        open::open(dir)
    }

    /// Runs `change` and commits all that it did, or nothing where it returns an error.
    ///
    /// Within `change` only the transaction may be used: any other change of this store waits for
    /// the writer that the transaction holds.
    pub fn transaction<T, E: From<MetadataError>>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut writer = self.shared.writer()?;
        let mut transaction = Transaction::new(&self.shared);
        let value = change(&mut transaction)?;
        self.shared.commit(&mut writer, transaction.into_changes())?;
        Ok(value)
    }

    /// The allocator of slots.
    pub fn slots(&self) -> &SlotAllocator {
        &self.slots
    }

    /// Counts changes; goes up with each of them.
    pub fn generation(&self) -> Result<u64, MetadataError> {
        Ok(self.shared.writer()?.generation)
    }

    /// Writes `export.json` where something changed since the last one; says whether it did.
    pub fn export_if_dirty(&self) -> Result<bool, MetadataError> {
        self.export_since(None)
    }

    /// Writes `export.json` whatever is there.
    pub fn export_anew(&self) -> Result<(), MetadataError> {
        self.export_since(Some(0)).map(drop)
    }

    fn export_since(&self, since: Option<u64>) -> Result<bool, MetadataError> {
        let mut exported = self.exported.lock().unwrap_or_else(PoisonError::into_inner);
        *exported = since.unwrap_or(*exported);
        let (generation, text) = {
            let writer = self.shared.writer()?;
            if writer.generation == *exported {
                return Ok(false);
            }
            (writer.generation, export::encode(&self.shared, *writer)?)
        };
        files::replace(&self.export_path, &text)?;
        *exported = generation;
        Ok(true)
    }

    /// All images, by name.
    pub fn images(&self) -> Result<Vec<ImageRecord>, MetadataError> {
        self.shared.list()
    }

    /// The image of that canonical name.
    pub fn image(&self, name: &str) -> Result<Option<ImageRecord>, MetadataError> {
        self.shared.load(&record::image_key(name))
    }

    /// Adds an image or replaces the one of its name.
    pub fn put_image(&self, image: &ImageRecord) -> Result<(), MetadataError> {
        self.transaction(|tx| tx.put_image(image))
    }

    /// Removes an image's name; returns what it was, `None` where there was none.
    pub fn remove_image(&self, name: &str) -> Result<Option<ImageRecord>, MetadataError> {
        self.transaction(|tx| tx.remove_image(name))
    }

    /// All snapshots, by id.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRecord>, MetadataError> {
        self.shared.list()
    }

    /// The snapshot of that number.
    pub fn snapshot(&self, id: u64) -> Result<Option<SnapshotRecord>, MetadataError> {
        self.shared.load(&record::id_key::<SnapshotRecord>(id))
    }

    /// The snapshot of that name.
    pub fn snapshot_named(&self, name: &str) -> Result<Option<SnapshotRecord>, MetadataError> {
        self.shared.load_by_name(&record::snapshot_name_key(name))
    }

    /// Adds a snapshot or replaces the one of its id; [`MetadataError::Taken`] where another has
    /// its name.
    pub fn put_snapshot(&self, snapshot: &SnapshotRecord) -> Result<(), MetadataError> {
        self.transaction(|tx| tx.put_snapshot(snapshot))
    }

    /// Removes a snapshot; returns what it was, `None` where there was none.
    pub fn remove_snapshot(&self, id: u64) -> Result<Option<SnapshotRecord>, MetadataError> {
        self.transaction(|tx| tx.remove_snapshot(id))
    }

    /// All mounts, by id.
    pub fn mounts(&self) -> Result<Vec<MountRecord>, MetadataError> {
        self.shared.list()
    }

    /// The mount of that number.
    pub fn mount(&self, id: u64) -> Result<Option<MountRecord>, MetadataError> {
        self.shared.load(&record::id_key::<MountRecord>(id))
    }

    /// The mount at a canonical path in a mount namespace, given by its inode number.
    pub fn mount_at(
        &self,
        mount_ns: u64,
        target: &Path,
    ) -> Result<Option<MountRecord>, MetadataError> {
        self.shared.load_by_name(&record::mount_target_key(mount_ns, target))
    }

    /// The mounts at a path, of all mount namespaces, by id.
    pub fn mounts_on(&self, target: &Path) -> Result<Vec<MountRecord>, MetadataError> {
        let mut mounts = self.mounts()?;
        mounts.retain(|mount| mount.target == target);
        Ok(mounts)
    }

    /// Adds a mount or replaces the one of its id; [`MetadataError::Taken`] where another has its
    /// target in its mount namespace.
    pub fn put_mount(&self, mount: &MountRecord) -> Result<(), MetadataError> {
        self.transaction(|tx| tx.put_mount(mount))
    }

    /// Removes a mount; returns what it was, `None` where there was none.
    pub fn remove_mount(&self, id: u64) -> Result<Option<MountRecord>, MetadataError> {
        self.transaction(|tx| tx.remove_mount(id))
    }

    /// The next number of a kind, from 1; never given out again.
    pub fn next_id(&self, kind: IdKind) -> Result<u64, MetadataError> {
        self.transaction(|tx| tx.next_id(kind))
    }

    /// Says that `used` is in use (found on disk): [`next_id`](Self::next_id) will go on above it.
    pub fn raise_id(&self, kind: IdKind, used: u64) -> Result<(), MetadataError> {
        self.transaction(|tx| tx.raise_id(kind, used))
    }
}

/// Nanoseconds since 1970, as the records hold times.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
