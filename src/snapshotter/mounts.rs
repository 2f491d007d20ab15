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
//! `index=off` because containerd commits a snapshot while it is still mounted. Source: `mounts` in
//! containerd's `snapshots/overlay/overlay.go`.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Below, Snapshotter, SnapshotterError, Trees};
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
            lowers.push(Lower { path, uid: metadata.uid(), gid: metadata.gid() });
        }
        if !below.layers.is_empty() {
            let tree = trees.merged(&below.layers)?;
            lowers.push(Lower { path: tree.path, uid: tree.uid, gid: tree.gid });
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
        let mount = match lowers {
            [] => bind(own()?, is_view),
            [one] if is_view => bind(text(&one.path)?, true),
            lowers => {
                let mut options = vec!["index=off".to_owned()];
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

fn bind(source: String, read_only: bool) -> Mount {
    let access = if read_only { "ro" } else { "rw" };
    Mount { kind: "bind", source, options: vec![access.to_owned(), "rbind".to_owned()] }
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
