//! The worker's state on disk, and what is done with it. All calls block; the service makes them
//! on the blocking pool.
//!
//! Locking: `gate` is held shared by whatever makes files that no record names yet (mounts) or takes
//! a lease (pulls), and exclusively by GC, which as a rule only tries: whoever kept it away runs it
//! at its own end.
//! `merging` lets one tree be merged at a time, so that a chain gets one slot however many mounts
//! ask for it. `mounting` makes one mount or snapshot change at a time. The order is gate, then
//! merging or mounting.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use peel_index::{Digest, Tree};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, RwLockReadGuard};

use super::{
    clients::Clients, counters::Counters, remote::RemoteImages, slots::Slots, transfer::Questions,
};
use crate::{
    content::ContentStore,
    failure::{Class, Failure, chain},
    image::{Images, NewSlot as _},
    layers::Layers,
    metadata::{IdKind, ImageRecord, LayerRef, Metadata, Opened},
    mountinfo,
    paths::Paths,
    registry::RegistryOptions,
    snapshot::Snapshots,
    snapshotter::Snapshotter,
};

/// Version of the layout below the root directory.
const LAYOUT_VERSION: u32 = 1;

/// Blobs below containerd's root: its content plugin's directory.
const CONTAINERD_BLOBS: &str = "io.containerd.content.v1.content/blobs";

/// See the module.
pub(super) struct Engine {
    pub(super) paths: Paths,
    pub(super) content: Arc<ContentStore>,
    pub(super) layers: Arc<Layers>,
    pub(super) metadata: Arc<Metadata>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) snapshotter: Snapshotter,
    pub(super) remote: RemoteImages,
    pub(super) counters: Counters,
    pub(super) images: Images,
    pub(super) boot_id: String,
    pub(super) clients: Clients,
    pub(super) questions: Arc<Questions>,
    /// Most bytes of blobs, indexes and trees.
    pub(super) max_size: Option<u64>,
    pub(super) containerd_root: PathBuf,
    /// The kernel maps ids in mounts of what is served.
    pub(super) maps_ids: bool,
    slots: Arc<Slots>,
    pub(super) gate: Arc<RwLock<()>>,
    merging: Mutex<()>,
    mounting: Mutex<()>,
    /// GC was asked for and kept away.
    pub(super) garbage: AtomicBool,
    stopping: AtomicBool,
}

/// Refuses a root that a newer peel has written, and marks a new one.
///
/// # Errors
/// `Conflict` for a newer layout, `BadData` for an unreadable one.
pub(super) fn check_layout(root: &Path) -> Result<(), Failure> {
    let path = root.join("layout-version");
    let shown = path.display();
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(LAYOUT_VERSION) => Ok(()),
            Ok(found) => {
                let message =
                    format!("layout of {shown}: expected version {LAYOUT_VERSION}, found {found}");
                Err(Failure::new(Class::Conflict, message)
                    .hint("a newer peel wrote this root; use that one, or another --root"))
            }
            Err(_) => {
                let message = format!("layout of {shown}: expected a version, found {text:?}");
                Err(Failure::new(Class::BadData, message))
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let temporary = root.join("layout-version.tmp");
            fs::write(&temporary, format!("{LAYOUT_VERSION}\n"))
                .and_then(|()| fs::File::open(&temporary)?.sync_all())
                .and_then(|()| fs::rename(&temporary, &path))
                .map_err(|e| Failure::io(&e, format!("cannot write {shown}: {e}")))
        }
        Err(e) => Err(Failure::io(&e, format!("cannot read {shown}: {e}"))),
    }
}

impl Engine {
    /// Opens the metadata and whatever needs it.
    pub(super) fn open(
        paths: Paths,
        content: Arc<ContentStore>,
        layers: Arc<Layers>,
        network: RegistryOptions,
        max_size: Option<u64>,
        containerd_root: &Path,
        maps_ids: bool,
    ) -> Result<Arc<Self>, Failure> {
        let Opened { metadata, recovered } = Metadata::open(&paths.root().join("metadata"))?;
        if let Some(recovered) = &recovered {
            tracing::error!("the metadata was not as it was left: {recovered}");
        }
        let metadata = Arc::new(metadata);
        let slots = Arc::new(Slots::new(Arc::clone(&metadata), layers.highest_slot()));
        let gate = Arc::<RwLock<()>>::default();
        let images = Images::new(
            Arc::clone(&content),
            Arc::clone(&layers),
            Arc::clone(&metadata),
            Arc::clone(&slots) as _,
            network,
            Arc::clone(&gate),
        )?;
        let boot_id = mountinfo::boot_id()
            .map_err(|e| Failure::io(&e, format!("cannot read the boot id: {e}")))?;
        let snapshots = Arc::new(Snapshots::open(paths.root())?);
        if recovered.is_some() {
            // A record may be lost, but not what a user has written
            let mut named: HashSet<u64> = metadata.snapshots()?.iter().map(|s| s.id).collect();
            named.extend(metadata.keyed_snapshots()?.iter().map(|s| s.id));
            for id in snapshots.ids()?.into_iter().filter(|id| !named.contains(id)) {
                metadata.raise_id(IdKind::Snapshot, id)?;
                let aside = snapshots.set_aside(id)?;
                tracing::error!(path = %aside.display(), "set a snapshot aside that has no record");
            }
        }
        if let Some(highest) = snapshots.ids()?.into_iter().max() {
            // An export from before it was made would give its number out again
            metadata.raise_id(IdKind::Snapshot, highest)?;
        }
        let snapshotter = Snapshotter::open(Arc::clone(&metadata), Arc::clone(&snapshots))
            .map_err(Failure::from)?;
        let engine = Self {
            snapshots,
            snapshotter,
            remote: RemoteImages::default(),
            counters: Counters::default(),
            paths,
            content,
            layers,
            metadata,
            images,
            boot_id,
            clients: Clients::default(),
            questions: Arc::default(),
            max_size,
            containerd_root: containerd_root.to_owned(),
            maps_ids,
            slots,
            gate,
            merging: Mutex::new(()),
            mounting: Mutex::new(()),
            garbage: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        };
        // Neither is worth not serving for: both are done again later
        let clean_up = || {
            let mounts = engine.live_mounts()?;
            for mount in engine.unserved(&mounts) {
                tracing::error!("cannot serve {mount}");
            }
            engine.collect_garbage()
        };
        if let Err(error) = clean_up() {
            tracing::error!(%error, "cannot clean up");
        }
        Ok(Arc::new(engine))
    }

    /// Where containerd has a blob, if it has it and this process may look there.
    pub(super) fn containerd_blob(&self, digest: &Digest) -> Option<PathBuf> {
        let blobs = self.containerd_root.join(CONTAINERD_BLOBS);
        let path = blobs.join(digest.algorithm().name()).join(digest.hex());
        path.is_file().then_some(path)
    }

    /// Keeps GC away while content is made that no record names yet.
    pub(super) fn busy(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.blocking_read()
    }

    /// The same for a task.
    pub(super) async fn busy_owned(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.gate).read_owned().await
    }

    pub(super) fn mounting(&self) -> MutexGuard<'_, ()> {
        self.mounting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image of a canonical reference, or of a digest of its index, manifest or config.
    pub(super) fn find_image(&self, reference: &str) -> Result<ImageRecord, Failure> {
        if let Some(image) = self.metadata.image(reference)? {
            return Ok(image);
        }
        if let Ok(digest) = reference.parse::<Digest>() {
            let images = self.metadata.images()?.into_iter();
            let mut found =
                images.filter(|i| [i.target.digest, i.manifest, i.config].contains(&digest));
            match (found.next(), found.next()) {
                (Some(image), None) => return Ok(image),
                (Some(first), Some(second)) => {
                    let message =
                        format!("{digest} is more than one image: {}, {}", first.name, second.name);
                    return Err(Failure::new(Class::Usage, message).hint("name one of them"));
                }
                (None, _) => {}
            }
        }
        Err(Failure::new(Class::NotFound, format!("no such image here: {reference}"))
            .hint(format!("pull it with: peel pull {reference}")))
    }

    /// Merges an image's layers again, whatever tree it has. Blocks.
    pub(super) fn merge_again(&self, image: &ImageRecord) -> Result<(), Failure> {
        let _one_at_a_time = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        self.merge(&image.layers).map(drop)
    }

    fn merge(&self, layers: &[LayerRef]) -> Result<Arc<Tree>, Failure> {
        self.images.ensure_indexed(layers)?;
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        Ok(self.layers.build_tree(&diff_ids, self.slots.next()?)?)
    }

    /// The merged tree of an image's first so many layers, 0 for all; merged now where it was not
    /// yet, or its file is damaged.
    pub(super) fn tree_of(&self, image: &ImageRecord, layers: u32) -> Result<Arc<Tree>, Failure> {
        let all = image.layers.len();
        let count = if layers == 0 { all } else { layers.try_into().unwrap_or(usize::MAX) };
        let first = image.layers.get(..count).ok_or_else(|| {
            let name = &image.name;
            let message =
                format!("image {name} has fewer layers: expected at least {count}, found {all}");
            Failure::new(Class::Usage, message)
        })?;
        self.tree_of_layers(first)
    }

    /// The same for layers, lowest first.
    pub(super) fn tree_of_layers(&self, layers: &[LayerRef]) -> Result<Arc<Tree>, Failure> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let chain_id = peel_index::chain_id(&diff_ids);
        // A second tree of a chain would take the place of the first, which may be mounted
        let _one_at_a_time = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        match self.layers.tree_by_chain_id(chain_id) {
            Ok(Some(tree)) if self.layers.tree_is_current(&tree) => return Ok(tree),
            Ok(Some(old)) => {
                tracing::info!(slot = %old.slot(), "an older version's: merging again")
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(error = chain(&error), "merging again");
            }
        }
        self.merge(layers)
    }

    /// Removes an image and what only it needed; returns its name and the bytes freed.
    pub(super) fn remove_image(&self, reference: &str) -> Result<(String, u64), Failure> {
        let image = self.find_image(reference)?;
        {
            let _one_at_a_time = self.mounting();
            let mounts = self.live_mounts()?;
            if let Some((mount, _)) = mounts.iter().find(|(m, _)| m.image == image.name) {
                let target = mount.target.display();
                let message = format!("image {} is mounted on {target}", image.name);
                let remedy = match &mount.bundle_dir {
                    Some(bundle) => {
                        format!("take it away with: peel bundle rm {}", bundle.display())
                    }
                    None => format!("unmount it with: peel umount {target}"),
                };
                return Err(Failure::new(Class::Conflict, message).hint(remedy));
            }
            let snapshots = self.metadata.snapshots()?;
            if let Some(snapshot) = snapshots.iter().find(|s| s.image == image.name) {
                let name = &snapshot.name;
                let message = format!("image {} is the base of snapshot {name}", image.name);
                return Err(Failure::new(Class::Conflict, message)
                    .hint(format!("drop it with: peel snapshots rm {name}")));
            }
            self.metadata.remove_image(&image.name)?;
        }
        let written = self.images.write_index();
        // On a full disk it is the removal that makes room
        let freed = self.collect_garbage()?;
        written.or_else(|_| self.images.write_index())?;
        tracing::info!(image = %image.name, freed, "image removed");
        Ok((image.name, freed))
    }

    /// Ends the process where the store has failed: it refuses everything from then on, and another
    /// worker opens it anew.
    pub(super) fn end_without_metadata(&self) {
        if let Err(error) = self.metadata.generation() {
            tracing::error!(error = chain(&error), "the metadata failed; starting again");
            std::process::exit(1);
        }
    }

    /// Refuses new mounts: the daemon is about to end. Taken back where it does not.
    pub(super) fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Ordering::SeqCst);
    }

    pub(super) fn refuse_while_stopping(&self) -> Result<(), Failure> {
        if !self.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Failure::new(Class::Unavailable, "the daemon is being stopped")
            .hint("run the command again: it starts another"))
    }

    /// Writes the plain export of the metadata where that has changed.
    pub(super) fn export(&self) {
        if let Err(error) = self.metadata.export_if_dirty() {
            tracing::error!(error = chain(&error), "cannot export the metadata");
        }
    }

    /// The last thing before the process ends.
    pub(super) fn close(&self) {
        self.layers.keep_starts(true);
        self.export();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        let root = tempfile::tempdir().expect("temporary directory");
        check_layout(root.path()).expect("new");
        check_layout(root.path()).expect("our own");
        let path = root.path().join("layout-version");
        for (text, class) in [("2\n", Class::Conflict), ("x", Class::BadData)] {
            fs::write(&path, text).expect("write");
            assert_eq!(check_layout(root.path()).expect_err(text).class, class);
        }
    }
}
