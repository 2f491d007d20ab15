//! The mounts that show a snapshot: containerd performs them.
//!
//! | snapshot | stands on | mount |
//! | --- | --- | --- |
//! | active | nothing | `bind` of its directory, `rw` |
//! | active | something | `overlay` with its directory above |
//! | view | nothing | `bind` of its empty directory, `ro` |
//! | view | one directory or one tree | `bind` of that, `ro` |
//! | view | more | `overlay` of these, without an upper |
//!
//! Where labels ask for it, `uidmap` and `gidmap` come first: see [`super::ids`]. `index=off` because containerd commits a snapshot while it is still mounted. Source: `mounts` in
//! containerd's `snapshots/overlay/overlay.go`.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Below, MergedTree, Snapshotter, SnapshotterError, Trees, ids::IdMaps};
use crate::{
    failure::{Class, Failure},
    metadata::{KeyedKind, KeyedSnapshot},
};

/// A mount to be performed; source: `containerd.types.Mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// A directory, or `overlay`.
    pub source: String,
    /// As for mount(8).
    pub options: Vec<String>,
}

/// A directory below a snapshot.
pub(super) struct Lower {
    path: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// A mount of it can map ids.
    pub(super) maps_ids: bool,
}

impl Snapshotter {
    /// What is mounted below a snapshot, topmost first.
    pub(super) fn lowers(
        &self,
        trees: &dyn Trees,
        below: &Below,
    ) -> Result<Vec<Lower>, SnapshotterError> {
        let mut lowers = Vec::new();
        for id in &below.uppers {
            let path = self.uppers.upper(*id);
            let metadata = fs::metadata(&path).map_err(|e| gone(&path, &e))?;
            let (uid, gid) = (metadata.uid(), metadata.gid());
            lowers.push(Lower { path, uid, gid, maps_ids: true });
        }
        if !below.layers.is_empty() {
            let tree = trees.merged(&below.layers)?;
            let MergedTree { path, uid, gid, maps_ids } = tree;
            lowers.push(Lower { path, uid, gid, maps_ids });
        }
        Ok(lowers)
    }

    pub(super) fn mounts_of(
        &self,
        snapshot: &KeyedSnapshot,
        lowers: &[Lower],
    ) -> Result<Vec<Mount>, SnapshotterError> {
        let is_view = snapshot.kind == KeyedKind::View;
        let own = || text(&self.uppers.upper(snapshot.id));
        let maps = IdMaps::of(&snapshot.labels)?;
        let maps = maps.map_or(Ok(Vec::new()), |maps| maps.options(lowers))?;
        let mount = match lowers {
            [] => bind(maps, own()?, is_view),
            [one] if is_view => bind(maps, text(&one.path)?, true),
            lowers => {
                let mut options = maps;
                options.push("index=off".to_owned());
                if !is_view {
                    options.push(format!("workdir={}", text(&self.uppers.work(snapshot.id))?));
                    options.push(format!("upperdir={}", own()?));
                }
                let paths = lowers.iter().map(|lower| text(&lower.path));
                let paths = paths.collect::<Result<Vec<_>, _>>()?;
                options.push(format!("lowerdir={}", paths.join(":")));
                Mount { kind: "overlay", source: "overlay".to_owned(), options }
            }
        };
        Ok(vec![mount])
    }
}

fn bind(maps: Vec<String>, source: String, read_only: bool) -> Mount {
    let access = if read_only { "ro" } else { "rw" };
    let mut options = maps;
    options.extend([access.to_owned(), "rbind".to_owned()]);
    Mount { kind: "bind", source, options }
}

fn gone(path: &Path, error: &io::Error) -> Failure {
    Failure::io(error, format!("cannot read {}: {error}", path.display()))
}

/// A path as a mount option can hold it.
fn text(path: &Path) -> Result<String, SnapshotterError> {
    match path.to_str().filter(|text| !text.contains([':', ',', '\\'])) {
        Some(text) => Ok(text.to_owned()),
        None => {
            let message = format!(
                "the path {} cannot stand in mount options: expected no colon, comma or \
                 backslash, and UTF-8",
                path.display()
            );
            Err(Failure::new(Class::Usage, message)
                .hint("start the daemon with another --root and --state")
                .into())
        }
    }
}
