//! What all processes see mounted at one moment.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use peel_index::Slot;

use crate::{
    metadata::MountRecord,
    mountinfo::{self, MountEntry},
};

/// Mounts, each with the inode number of its mount namespace.
pub(super) struct Live(Vec<(u64, MountEntry)>);

impl Live {
    pub(super) fn scan() -> Self {
        Self(mountinfo::all_namespaces())
    }

    /// A mount of ours on the recorded target. Its own namespace may be gone with the process that
    /// mounted, while a copy lives on in another.
    pub(super) fn sees(&self, record: &MountRecord) -> bool {
        self.0.iter().any(|(_, m)| {
            m.target == record.target
                && match record.snapshot {
                    None => {
                        m.fs_type.starts_with("fuse")
                            && m.root == Path::new("/").join(record.tree_slot.to_string())
                    }
                    Some(_) => m.fs_type == "overlay" && m.source == "peel",
                }
        })
    }

    pub(super) fn uses_upper(&self, upper: &Path) -> bool {
        // As it was mounted: the client doubles backslashes
        let doubled = upper.as_os_str().as_bytes().split(|b| *b == b'\\');
        let doubled = OsString::from_vec(doubled.collect::<Vec<_>>().join(&b"\\\\"[..]));
        self.0.iter().any(|(_, m)| {
            m.super_option("upperdir").any(|found| found == upper || found == doubled)
        })
    }

    /// Slots of the trees below `lower` that are mounted somewhere; those of another daemon have
    /// another file system.
    pub(super) fn trees(&self, lower: &Path) -> Vec<Slot> {
        self.trees_and_mounts(lower).filter_map(|(slot, _)| slot).collect()
    }

    /// What is mounted of `lower`, views and overlays, the topmost on each target first: mount
    /// namespace and target.
    pub(super) fn on(&self, lower: &Path) -> Vec<(u64, PathBuf)> {
        let mounts = self.trees_and_mounts(lower);
        let mut mounts: Vec<_> = mounts.map(|(_, (ns, m))| (*ns, m.target.clone())).collect();
        mounts.reverse();
        mounts
    }

    fn trees_and_mounts(
        &self,
        lower: &Path,
    ) -> impl Iterator<Item = (Option<Slot>, &(u64, MountEntry))> {
        let own = self.0.iter().rfind(|(_, m)| m.target == lower).map(|(_, m)| &m.device);
        self.0.iter().filter_map(move |entry| {
            let m = &entry.1;
            let bound = (Some(&m.device) == own).then(|| m.root.strip_prefix("/").ok()).flatten();
            let bound = bound.filter(|root| !root.as_os_str().is_empty());
            let overlaid = ["lowerdir+", "lowerdir"].into_iter();
            let mut overlaid = overlaid
                .flat_map(|name| m.super_option(name))
                // containerd names all of them in one option, the tree last
                .filter_map(|dirs| {
                    let last = dirs.as_bytes().rsplit(|b| *b == b':').next()?;
                    Some(Path::new(OsStr::from_bytes(last)).strip_prefix(lower).ok()?.to_owned())
                });
            let slot = bound.map(Path::to_owned).or_else(|| overlaid.next())?;
            let slot = slot.iter().next().and_then(|slot| slot.to_str()?.parse().ok());
            Some((slot.and_then(Slot::new), entry))
        })
    }
}
