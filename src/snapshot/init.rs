//! The layer between an image and a container's upper: what a runtime mounts on and the image lacks.
//!
//! So the runtime makes no mount points in the upper, and they are in no `diff` and no `commit`.
//! Source: moby's daemon/initlayer.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use peel_index::{FileKind, NodeId, Tree};

use super::{RootAttributes, SnapshotError, Snapshots};

/// What stands at one of the [`PLACES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    Directory,
    /// An empty file.
    File,
    /// A symlink to this.
    Symlink(&'static str),
}

/// Paths, relative to the root, that a container has whatever its image.
pub const PLACES: [(&str, Place); 9] = [
    ("dev/console", Place::File),
    ("dev/pts", Place::Directory),
    ("dev/shm", Place::Directory),
    ("etc/hostname", Place::File),
    ("etc/hosts", Place::File),
    ("etc/mtab", Place::Symlink("/proc/mounts")),
    ("etc/resolv.conf", Place::File),
    ("proc", Place::Directory),
    ("sys", Place::Directory),
];

/// What the layer has, by path relative to the root.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InitLayer(BTreeMap<PathBuf, Item>);

#[derive(Debug, PartialEq, Eq)]
enum Item {
    /// A directory of the image, to look like it.
    Through(RootAttributes),
    /// What the image lacks.
    New(Place),
}

impl InitLayer {
    /// What `tree` lacks of [`PLACES`]. Where something that is no directory stands in the way of one,
    /// that is left as it is.
    pub fn of(tree: &Tree) -> Self {
        let mut items = BTreeMap::new();
        for (path, place) in PLACES {
            if let Some(found) = missing(tree, path, place) {
                for (path, item) in found {
                    // The first place makes the directories of the next
                    items.entry(path).or_insert(item);
                }
            }
        }
        Self(items)
    }
}

/// The directories to a path that a tree lacks, and the path itself.
fn missing(tree: &Tree, path: &str, place: Place) -> Option<Vec<(PathBuf, Item)>> {
    let mut items = Vec::new();
    let mut directory = Some(1);
    let path = Path::new(path);
    for parent in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
        let Some(name) = parent.file_name() else { continue };
        let found = directory.and_then(|number| tree.lookup(number, name.as_encoded_bytes()));
        directory = match found {
            Some(entry) => match entry.node {
                NodeId::Tree { number, .. } if entry.kind == FileKind::Directory => Some(number),
                _ => return None,
            },
            None => None,
        };
        let item = match directory {
            Some(number) => Item::Through(RootAttributes::of(tree, number)?),
            None => Item::New(Place::Directory),
        };
        items.push((parent.to_owned(), item));
    }
    let name = path.file_name()?.as_encoded_bytes();
    if directory.is_some_and(|number| tree.lookup(number, name).is_some()) {
        return None;
    }
    items.push((path.to_owned(), Item::New(place)));
    Some(items)
}

impl Snapshots {
    /// Where a snapshot's layer of this kind is, should it have one.
    pub fn init(&self, id: u64) -> Option<PathBuf> {
        let dir = self.dir.join(id.to_string()).join("init");
        dir.is_dir().then_some(dir)
    }

    /// Makes one for a new snapshot; nothing where the image has everything.
    ///
    /// # Errors
    /// Where it cannot be made: it goes with the snapshot.
    pub fn create_init(&self, id: u64, layer: &InitLayer) -> Result<(), SnapshotError> {
        if layer.0.is_empty() {
            return Ok(());
        }
        let dir = self.dir.join(id.to_string()).join("init");
        let failed = SnapshotError::of("fill", &dir);
        fill(&dir, layer).map_err(failed)
    }
}

fn fill(dir: &Path, layer: &InitLayer) -> io::Result<()> {
    fs::create_dir(dir)?;
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    mode(dir, 0o755)?;
    for (path, item) in &layer.0 {
        let path = dir.join(path);
        match item {
            Item::Through(_) | Item::New(Place::Directory) => {
                fs::create_dir(&path)?;
                mode(&path, 0o755)?;
            }
            Item::New(Place::File) => {
                fs::File::create_new(&path)?;
                mode(&path, 0o644)?;
            }
            Item::New(Place::Symlink(target)) => symlink(target, &path)?,
        }
    }
    // What is made in a directory changes its time
    for (path, item) in layer.0.iter().rev() {
        if let Item::Through(attributes) = item {
            attributes.apply(&dir.join(path))?;
        }
    }
    Ok(())
}
