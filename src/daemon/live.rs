//! What all processes see mounted at one moment.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use peel_index::Slot;

use crate::{
    metadata::MountRecord,
    mountinfo::{self, MountEntry, overlay_path},
    paths::Paths,
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

    /// Whether an overlay has a directory of ours as its upper, or as one of its lowers.
    pub(super) fn uses_upper(&self, upper: &Path) -> bool {
        let upper = upper.as_os_str().as_bytes();
        // As it was mounted: the client doubles backslashes
        let doubled = overlay_path(upper);
        let is_it = |dir: &[u8]| dir == upper || dir == doubled;
        self.0.iter().any(|(_, m)| {
            m.super_option("upperdir").any(|found| is_it(found.as_bytes()))
                || ["lowerdir", "lowerdir+"]
                    .into_iter()
                    .flat_map(|name| m.super_option(name))
                    .any(|dirs| dirs.as_bytes().split(|b| *b == b':').any(is_it))
        })
    }

    /// Slots of the trees below `lower` that are mounted somewhere; those of another daemon have
    /// another file system.
    pub(super) fn trees(&self, lower: &Path) -> Vec<Slot> {
        self.trees_and_mounts(lower).filter_map(|(slot, _)| slot).collect()
    }

    /// Overlays with an upper of ours over what has another name: a client of containerd's has bound
    /// what is below with other ids, mounted, and taken the bind away. Which tree it shows cannot be
    /// told.
    pub(super) fn mapped(&self, paths: &Paths) -> impl Iterator<Item = (u64, PathBuf)> {
        let (lower, uppers) = (paths.lower(), paths.uppers());
        let ours = [lower, uppers.clone()];
        let is_ours = move |dir: &[u8]| {
            let dir = Path::new(OsStr::from_bytes(dir));
            ours.iter().any(|ours| dir.starts_with(ours))
        };
        let is_mapped = move |m: &MountEntry| {
            let mut upper = m.super_option("upperdir");
            let mut lowers = m.super_option("lowerdir");
            upper.any(|upper| Path::new(&upper).starts_with(&uppers))
                && lowers.any(|dirs| !dirs.as_bytes().split(|b| *b == b':').all(&is_ours))
        };
        let mounts = self.0.iter().filter(move |(_, m)| is_mapped(m));
        mounts.map(|(namespace, m)| (*namespace, m.target.clone()))
    }

    /// What is mounted of what the daemon serves, views and overlays, the topmost on each target
    /// first: mount namespace and target.
    pub(super) fn on(&self, paths: &Paths) -> Vec<(u64, PathBuf)> {
        let lower = paths.lower();
        let mounts = self.trees_and_mounts(&lower);
        let mut mounts: Vec<_> = mounts.map(|(_, (ns, m))| (*ns, m.target.clone())).collect();
        mounts.extend(self.mapped(paths));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_whose_ids_are_mapped() {
        let mount = |target: &str, options: &str| {
            let line = format!("1 2 0:99 / {target} rw - overlay overlay rw,{options}");
            mountinfo::parse(line.as_bytes()).into_iter().map(|m| (7, m))
        };
        let all = [
            mount("/a", "lowerdir=/s/lower/3,upperdir=/r/snapshots/1/fs"),
            mount("/b", "lowerdir=/tmp/ovl-idmapped1/3,upperdir=/r/snapshots/2/fs"),
            mount("/c", "lowerdir=/r/snapshots/1/fs:/s/lower/3,upperdir=/r/snapshots/3/fs"),
            mount("/d", "lowerdir=/tmp/ovl-idmapped1/3,upperdir=/elsewhere/4/fs"),
            mount("/e", "lowerdir=/tmp/x/0:/tmp/x/1,upperdir=/r/snapshots/5/fs"),
        ];
        let live = Live(all.into_iter().flatten().collect());
        let paths = Paths::new(Some("/r".into()), Some("/s".into()), None).expect("paths");
        let mapped: Vec<_> = live.mapped(&paths).map(|(_, target)| target).collect();
        assert_eq!(mapped, [Path::new("/b"), Path::new("/e")]);
    }
}
