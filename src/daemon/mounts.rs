//! Mounts: prepared here, performed by the client, confirmed or released afterwards.
//!
//! ```text
//! (none) ──prepare──▶ Pending ──confirm──▶ Mounted
//!    ▲                   │                    │
//!    └─────release───────┴──────release───────┘
//! ```
//! A record whose mount is in no process's mountinfo is forgotten when mounts are listed or the
//! worker starts: after a reboot, or where somebody unmounted by other means. A pending one is
//! given [`PENDING_LIMIT`] first, where its client is not known to have ended.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use peel_index::{Attr, Slot, Tree};
use rustix::process::Pid;

use super::{engine::Engine, live::Live};
use crate::{
    api::{self, mount_spec::Spec},
    failure::{Class, Failure, chain},
    metadata::{IdKind, MountRecord, MountState, RootfsKind, SnapshotRecord, now_ns},
    mountinfo,
    snapshot::{self, InitLayer, RootAttributes},
};

/// A client that has not mounted after this long never will.
const PENDING_LIMIT: Duration = Duration::from_secs(60);

/// A mount namespace goes a moment after its last process.
const LAST_BREATH: Duration = Duration::from_millis(100);

/// Options of every writable overlay: hard links of the upper are its own, a change of mode copies
/// no data up, directories of the lower can be renamed, inode numbers outlive remounts.
const OVERLAY_OPTIONS: [(&str, &str); 4] =
    [("index", "off"), ("metacopy", "on"), ("redirect_dir", "on"), ("xino", "on")];

impl Engine {
    /// Makes the tree, the upper and the record of a mount, and says how to mount it.
    pub(super) fn prepare_mount(
        &self,
        request: &api::PrepareMountRequest,
        client: Option<Pid>,
    ) -> Result<api::PrepareMountResponse, Failure> {
        let prepared = {
            let _busy = self.busy();
            self.prepare(request, client)
        };
        self.sweep_if_due();
        prepared
    }

    fn prepare(
        &self,
        request: &api::PrepareMountRequest,
        client: Option<Pid>,
    ) -> Result<api::PrepareMountResponse, Failure> {
        let target = PathBuf::from(OsStr::from_bytes(&request.target));
        if !target.is_absolute() {
            let message = format!("mount target is not absolute: {}", target.display());
            return Err(Failure::new(Class::Usage, message));
        }
        let image = self.find_image(&request.reference)?;
        let tree = self.tree_of(&image, request.layers)?;
        let _one_at_a_time = self.mounting();
        self.refuse_while_stopping()?;
        if self.metadata.image(&image.name)?.is_none_or(|now| now.chain_id != image.chain_id) {
            let message = format!("image {} was removed or replaced just now", image.name);
            return Err(Failure::new(Class::Conflict, message).hint("run the command again"));
        }
        self.forget_gone(&target)?;
        self.refuse_taken(&target, request.mount_ns)?;
        let snapshot = request
            .writable
            .then(|| self.snapshot_for(request, &target, &image, &tree))
            .transpose()?;
        let (upper, resumed) = match snapshot {
            Some((record, resumed)) => (Some(record), resumed),
            None => (None, false),
        };
        let record = MountRecord {
            id: self.metadata.next_id(IdKind::Mount)?,
            target,
            image: image.name.clone(),
            chain_id: tree.chain_id(),
            tree_slot: tree.slot().number(),
            snapshot: upper.as_ref().map(|s| s.id),
            writable: request.writable,
            kind: kind_of(request.kind()),
            boot_id: self.boot_id.clone(),
            mount_ns: request.mount_ns,
            state: MountState::Pending,
            created_at_ns: now_ns(),
            bundle_dir: (!request.bundle_dir.is_empty())
                .then(|| PathBuf::from(OsStr::from_bytes(&request.bundle_dir))),
            created_target: request.created_target,
        };
        self.metadata.transaction(|tx| {
            tx.put_mount(&record)?;
            if let Some(mut image) = tx.image(&image.name)? {
                image.mounted_at_ns = record.created_at_ns;
                tx.put_image(&image)?;
            }
            Ok::<_, Failure>(())
        })?;
        if let Some(client) = client {
            self.clients.add(record.id, client);
        }
        let lower = self.paths.lower().join(tree.slot().to_string());
        let lower = lower.as_os_str().as_bytes().to_vec();
        let init = upper.as_ref().and_then(|upper| self.snapshots.init(upper.id));
        let init = init.as_deref().map(path_bytes);
        let spec = match &upper {
            None => Spec::Bind(api::BindMount { source: lower }),
            Some(upper) => Spec::Overlay(api::OverlayMount {
                lower: init.into_iter().chain([lower]).collect(),
                upper: path_bytes(&self.snapshots.upper(upper.id)),
                work: path_bytes(&self.snapshots.work(upper.id)),
                options: OVERLAY_OPTIONS.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            }),
        };
        let mount = api::MountSpec {
            spec: Some(spec),
            read_only: !request.writable,
            nosuid: !request.suid,
            nodev: !request.dev,
        };
        tracing::info!(image = %image.name, target = %record.target.display(), "mount prepared");
        Ok(api::PrepareMountResponse {
            id: record.id,
            mounts: vec![mount],
            snapshot: upper.map(|s| s.name).unwrap_or_default(),
            resumed,
        })
    }

    /// Drops records of mounts on a target where nothing is mounted any more, nor about to be.
    fn forget_gone(&self, target: &Path) -> Result<(), Failure> {
        let records = self.metadata.mounts_on(target)?;
        let live = Live::scan();
        for record in records {
            if !self.holds(&record, &live) {
                self.forget(record.id)?;
            }
        }
        Ok(())
    }

    /// Two commands may have found the same directory free at the same moment.
    fn refuse_taken(&self, target: &Path, mount_ns: u64) -> Result<(), Failure> {
        let held = self.metadata.mounts_on(target)?;
        let Some(held) = held.iter().find(|record| record.mount_ns == mount_ns) else {
            return Ok(());
        };
        let (target, image) = (target.display(), &held.image);
        let message = format!("{target} is taken: image {image} is, or is being, mounted there");
        Err(Failure::new(Class::Conflict, message)
            .hint(format!("unmount it with: peel umount {target}")))
    }

    fn forget(&self, id: u64) -> Result<(), Failure> {
        self.metadata.remove_mount(id)?;
        self.clients.remove(id);
        Ok(())
    }

    /// The snapshot of a writable mount: the one of that name, or a new one.
    fn snapshot_for(
        &self,
        request: &api::PrepareMountRequest,
        target: &Path,
        image: &crate::metadata::ImageRecord,
        tree: &Tree,
    ) -> Result<(SnapshotRecord, bool), Failure> {
        let name = snapshot_name(request, target)?;
        let other_name = "give the mount a name of its own with --name";
        if let Some(found) = self.metadata.snapshot_named(&name)? {
            if found.image != image.name || found.chain_id != tree.chain_id() {
                let version =
                    if found.image == image.name { " as it was pulled before" } else { "" };
                let message = format!(
                    "snapshot {name} belongs to another image: expected {}, found {}{version}",
                    image.name, found.image
                );
                return Err(Failure::new(Class::Conflict, message)
                    .hint(format!("{other_name}, or drop it with: peel snapshots rm {name}")));
            }
            if let Some(mount) = self.mount_of_snapshot(found.id)? {
                let message = format!("snapshot {name} is mounted on {}", mount.target.display());
                return Err(Failure::new(Class::Conflict, message).hint(other_name));
            }
            return Ok((found, true));
        }
        let record = SnapshotRecord {
            id: self.metadata.next_id(IdKind::Snapshot)?,
            name,
            image: image.name.clone(),
            chain_id: tree.chain_id(),
            tree_slot: tree.slot().number(),
            kind: kind_of(request.kind()),
            created_at_ns: now_ns(),
        };
        let root = RootAttributes::of(tree, 1).ok_or_else(|| without_root(tree))?;
        self.snapshots.create(record.id, &root)?;
        if record.kind != RootfsKind::Mount {
            self.snapshots.create_init(record.id, &InitLayer::of(tree))?;
        }
        self.metadata.put_snapshot(&record)?;
        Ok((record, false))
    }

    fn mount_of_snapshot(&self, id: u64) -> Result<Option<MountRecord>, Failure> {
        let mounts = self.metadata.mounts()?;
        let live = Live::scan();
        Ok(mounts.into_iter().find(|m| m.snapshot == Some(id) && self.holds(m, &live)))
    }

    /// The client has mounted.
    pub(super) fn confirm_mount(&self, id: u64) -> Result<(), Failure> {
        let mut record = self.mount(id)?;
        record.state = MountState::Mounted;
        self.metadata.put_mount(&record)?;
        self.clients.remove(id);
        Ok(())
    }

    pub(super) fn mount(&self, id: u64) -> Result<MountRecord, Failure> {
        let missing = || Failure::new(Class::NotFound, format!("no mount with id {id}"));
        self.metadata.mount(id)?.ok_or_else(missing)
    }

    /// The client has unmounted, or never mounted; returns the snapshot's name.
    pub(super) fn release_mount(&self, id: u64, remove_snapshot: bool) -> Result<String, Failure> {
        let _one_at_a_time = self.mounting();
        let record = self.mount(id)?;
        if let (true, Some(bundle), Some(id)) =
            (remove_snapshot, &record.bundle_dir, record.snapshot)
            && self.is_held(&self.snapshots.upper(id))
        {
            // The record stays: it is by that that the bundle is found again
            let bundle = bundle.display();
            let message = format!("bundle {bundle} is still in use: its container runs");
            return Err(Failure::new(Class::Conflict, message)
                .hint(format!("once that has ended: peel bundle rm {bundle}")));
        }
        self.forget(id)?;
        tracing::info!(image = %record.image, target = %record.target.display(), "mount released");
        let Some(snapshot) = record.snapshot else { return Ok(String::new()) };
        let Some(snapshot) = self.metadata.snapshot(snapshot)? else { return Ok(String::new()) };
        if remove_snapshot {
            self.remove_snapshot(&snapshot)?;
        }
        Ok(snapshot.name)
    }

    fn remove_snapshot(&self, snapshot: &SnapshotRecord) -> Result<(), Failure> {
        let upper = self.snapshots.upper(snapshot.id);
        if self.is_held(&upper) {
            let message = format!("snapshot {} is still used by a process", snapshot.name);
            return Err(Failure::new(Class::Conflict, message)
                .hint(format!("once that has ended: peel snapshots rm {}", snapshot.name)));
        }
        // The record first: an upper without a record is swept, a record without an upper is a lie
        self.metadata.remove_snapshot(snapshot.id)?;
        self.snapshots.remove(snapshot.id)?;
        Ok(())
    }

    pub(super) fn remove_snapshot_named(&self, name: &str) -> Result<(), Failure> {
        let _one_at_a_time = self.mounting();
        let missing = || {
            Failure::new(Class::NotFound, format!("no snapshot named {name}"))
                .hint("list them with: peel snapshots ls")
        };
        let snapshot = self.metadata.snapshot_named(name)?.ok_or_else(missing)?;
        if let Some(mount) = self.mount_of_snapshot(snapshot.id)? {
            let target = mount.target.display();
            let message = format!("snapshot {name} is mounted on {target}");
            return Err(Failure::new(Class::Conflict, message)
                .hint(format!("unmount it with: peel umount {target}")));
        }
        self.remove_snapshot(&snapshot)
    }

    /// All mounts, those gone from every mountinfo forgotten.
    pub(super) fn live_mounts(&self) -> Result<Vec<(MountRecord, bool)>, Failure> {
        // Records first: one confirmed after the scan would be of a mount that was not seen
        let records = self.metadata.mounts()?;
        let live = Live::scan();
        let mut mounts = Vec::new();
        for record in records {
            let seen = live.sees(&record);
            // A bundle keeps its record: `bundle rm` has to find it after a reboot as well. Those of
            // `peel run` are in the state directory, which a reboot empties
            let bundle = record.bundle_dir.as_ref().is_some_and(|dir| dir.exists());
            if self.holds(&record, &live) || bundle {
                mounts.push((record, seen));
            } else {
                tracing::info!(target = %record.target.display(), "mount is gone; forgotten");
                self.forget(record.id)?;
            }
        }
        Ok(mounts)
    }

    /// Mounts that cannot be served, each with the reason: their tree is damaged or gone.
    pub(super) fn unserved(&self, mounts: &[(MountRecord, bool)]) -> Vec<String> {
        let live = mounts.iter().filter(|(_, live)| *live);
        let unserved = live.filter_map(|(record, _)| {
            let why = match self.layers.tree_by_chain_id(record.chain_id) {
                Ok(Some(tree)) if tree.slot().number() == record.tree_slot => {
                    // One may have been damaged since the tree was opened
                    let mut layers = tree.layers().map(|layer| layer.diff_id);
                    let error = layers.find_map(|id| self.layers.layer_by_diff_id(&id).err())?;
                    chain(&error)
                }
                Ok(_) => "its tree is gone".to_owned(),
                Err(error) => chain(&error),
            };
            Some(format!("{} on {}: {why}", record.image, record.target.display()))
        });
        unserved.collect()
    }

    /// Whether a record stands for a mount that is there, or is just being made.
    fn holds(&self, record: &MountRecord, live: &Live) -> bool {
        let age = now_ns().saturating_sub(record.created_at_ns);
        let young = u128::from(age.unsigned_abs()) < PENDING_LIMIT.as_nanos();
        live.sees(record)
            || (record.boot_id == self.boot_id
                && record.state == MountState::Pending
                && young
                && !self.clients.has_ended(record.id))
    }

    /// What containerd mounted for its containers is not peel's to unmount.
    fn refuse_while_others_mount(&self, own: &[(MountRecord, bool)]) -> Result<(), Failure> {
        let Ok(namespace) = mountinfo::namespace() else { return Ok(()) };
        let shown = Live::scan().on(&self.paths);
        let other = shown.into_iter().find(|(ns, target)| {
            *ns == namespace && own.iter().all(|(record, _)| record.target != *target)
        });
        let Some((_, target)) = other else { return Ok(()) };
        let message = format!("{} shows an image and is not peel's mount", target.display());
        Err(Failure::new(Class::Conflict, message).hint(
            "end the container that uses it; peel daemon stop --force leaves it without files",
        ))
    }

    /// Unmounts everything, so that the daemon can end: what is in use only where `force`.
    pub(super) fn unmount_all(&self, force: bool) -> Result<(), Failure> {
        use rustix::mount::{UnmountFlags, unmount};
        let _one_at_a_time = self.mounting();
        let mounts = self.live_mounts()?;
        if !force {
            self.refuse_while_others_mount(&mounts)?;
        }
        for (record, seen) in mounts {
            let target = record.target.display();
            if seen {
                let flags = if force { UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
                match unmount(&record.target, flags) {
                    Ok(()) => {}
                    Err(_) if force => {
                        tracing::warn!(%target, "still mounted in another mount namespace");
                    }
                    Err(e) => {
                        let message = format!("cannot unmount {target}: {e}");
                        return Err(Failure::new(Class::Conflict, message).hint(
                            "end what uses it, or detach it with: peel daemon stop --force",
                        ));
                    }
                }
            }
            if record.bundle_dir.is_none() {
                self.forget(record.id)?;
                if record.created_target {
                    // Made for the mount; what somebody has put there since stays
                    let _ = std::fs::remove_dir(&record.target);
                }
            }
        }
        Ok(())
    }
}

/// The inode of a tree's top directory.
pub(super) fn root_of(tree: &Tree) -> Result<Attr, Failure> {
    tree.inode(1).ok_or_else(|| without_root(tree))
}

fn without_root(tree: &Tree) -> Failure {
    Failure::new(Class::BadData, format!("tree {} has no root", tree.slot()))
}

fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn kind_of(kind: api::MountKind) -> RootfsKind {
    match kind {
        api::MountKind::Mount => RootfsKind::Mount,
        api::MountKind::Bundle => RootfsKind::Bundle,
        api::MountKind::Run => RootfsKind::Run,
    }
}

/// The name asked for, else the last part of the directory's path.
fn snapshot_name(request: &api::PrepareMountRequest, target: &Path) -> Result<String, Failure> {
    let dir = match request.bundle_dir.as_slice() {
        [] => target,
        bundle => Path::new(OsStr::from_bytes(bundle)),
    };
    let name = match request.name.as_str() {
        "" => dir.file_name().unwrap_or(OsStr::new("root")).to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    if name.len() <= 255 && !name.chars().any(|c| c.is_control() || c == '/') {
        return Ok(name);
    }
    let message = format!(
        "malformed snapshot name: expected at most 255 bytes without '/' or control characters, \
         found {name:?}"
    );
    Err(Failure::new(Class::Usage, message))
}

impl Engine {
    /// Slots of trees that mounts show, recorded or not, or are about to.
    pub(super) fn held_trees(&self) -> Result<Vec<Slot>, Failure> {
        let records = self.metadata.mounts()?.into_iter();
        let live = Live::scan();
        let mut held = live.trees(&self.paths.lower());
        let records = records.filter(|record| self.holds(record, &live));
        held.extend(records.filter_map(|record| Slot::new(record.tree_slot)));
        if live.mapped(&self.paths).next().is_some() {
            // Of some tree; containerd's snapshots come and go
            held.extend(self.layers.tree_slots().into_iter().map(|(_, slot)| slot));
        }
        Ok(held)
    }

    /// Says of an upper whether some process has it mounted, or uses what it has detached. Only for
    /// uppers that are to be removed where it is not so.
    pub(super) fn uppers_in_use(&self) -> impl Fn(&Path) -> bool {
        let live = Live::scan();
        move |upper| {
            live.uses_upper(upper)
                || snapshot::is_in_use(upper).unwrap_or_else(|error| {
                    tracing::warn!(path = %upper.display(), %error, "cannot ask who uses it");
                    false
                })
        }
    }

    /// The same, patient with what a process leaves behind that has just ended.
    fn is_held(&self, upper: &Path) -> bool {
        let begun = Instant::now();
        while self.uppers_in_use()(upper) {
            if begun.elapsed() >= LAST_BREATH {
                return true;
            }
            std::thread::sleep(LAST_BREATH / 10);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, bundle: &str) -> api::PrepareMountRequest {
        api::PrepareMountRequest {
            name: name.into(),
            bundle_dir: bundle.into(),
            ..api::PrepareMountRequest::default()
        }
    }

    #[test]
    fn names_of_snapshots() {
        let name = |r| snapshot_name(&r, Path::new("/a/m"));
        assert_eq!(name(request("", "")), Ok("m".into()));
        assert_eq!(name(request("x y", "")), Ok("x y".into()));
        assert_eq!(name(request("", "/a/web")), Ok("web".into()));
        for bad in ["a/b", "a\nb", &"x".repeat(256)] {
            assert_eq!(name(request(bad, "")).expect_err("refused").class, Class::Usage);
        }
    }
}
