//! Uppers: the writable directories of overlays.
//!
//! ```text
//! <root>/snapshots/<n>/fs     upperdir
//! <root>/snapshots/<n>/work   workdir, beside it on the same file system
//! <root>/snapshots/<n>/init   a lower above the image's, of a container's; see `init`
//! ```
//! The number comes from the metadata store and is never used again. A directory that no record
//! names is the rest of an interrupted change, and GC removes it. `lost-<n>` is an upper whose record
//! was lost with the metadata: peel never touches it again.

mod attributes;
mod changes;
mod init;
mod mounted;
pub mod tarball;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

pub use attributes::RootAttributes;
pub use changes::{Change, ChangeKind, Found, Upper};
pub use init::{InitLayer, PLACES, Place};
pub use mounted::is_in_use;

use crate::failure::Failure;

/// An upper cannot be made, measured or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = path.display())]
pub struct SnapshotError {
    /// What was tried.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl SnapshotError {
    fn of(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        Self::io(&error.source, &error)
    }
}

/// Disk use of one upper.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in blocks, hard links counted once.
    pub bytes: u64,
    /// Inodes, the upper's own directory included.
    pub inodes: u64,
}

/// The directory of all uppers.
pub struct Snapshots {
    dir: PathBuf,
}

impl Snapshots {
    /// Uppers below `root`.
    ///
    /// # Errors
    /// Where the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, SnapshotError> {
        let dir = root.join("snapshots");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(SnapshotError::of("create", &dir))?;
        Ok(Self { dir })
    }

    /// The upperdir of a snapshot.
    pub fn upper(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string()).join("fs")
    }

    /// The number of the snapshot whose upperdir that is, whether or not it is there.
    pub fn id_of(&self, upper: &Path) -> Option<u64> {
        let number = upper.strip_prefix(&self.dir).ok()?.parent()?.to_str()?;
        number.parse().ok().filter(|id| self.upper(*id) == upper)
    }

    /// Whether nothing has been written to an upper.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn is_empty(&self, id: u64) -> Result<bool, SnapshotError> {
        let upper = self.upper(id);
        let mut entries = fs::read_dir(&upper).map_err(SnapshotError::of("read", &upper))?;
        Ok(entries.next().is_none())
    }

    /// The workdir of a snapshot.
    pub fn work(&self, id: u64) -> PathBuf {
        self.dir.join(id.to_string()).join("work")
    }

    /// Makes an upper whose root looks as `root` says: overlayfs shows the upper's own attributes
    /// on the root directory, not the lower's.
    ///
    /// # Errors
    /// Where a directory cannot be made or its attributes cannot be set; nothing is left then.
    pub fn create(&self, id: u64, root: &RootAttributes) -> Result<(), SnapshotError> {
        let dir = self.dir.join(id.to_string());
        let build = |path: &Path, mode| {
            let made = fs::DirBuilder::new().mode(mode).create(path);
            made.map_err(SnapshotError::of("create", path))
        };
        build(&dir, 0o700)?;
        let fill = || {
            build(&self.work(id), 0o711)?;
            let upper = self.upper(id);
            build(&upper, 0o755)?;
            root.apply(&upper).map_err(SnapshotError::of("set the attributes of", &upper))
        };
        fill().inspect_err(|_| {
            // The first error says more than one about cleaning up would
            let _ = fs::remove_dir_all(&dir);
        })
    }

    /// Removes an upper; one that is not there is fine.
    ///
    /// # Errors
    /// Where something below it cannot be removed.
    pub fn remove(&self, id: u64) -> Result<(), SnapshotError> {
        let dir = self.dir.join(id.to_string());
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(SnapshotError::of("remove", &dir)(e))
            }
            _ => Ok(()),
        }
    }

    /// Gives an upper a name that is no number, out of reach of everything but its owner; returns
    /// where it is.
    ///
    /// # Errors
    /// Where it cannot be renamed.
    pub fn set_aside(&self, id: u64) -> Result<PathBuf, SnapshotError> {
        let dir = self.dir.join(id.to_string());
        let aside = self.dir.join(format!("lost-{id}"));
        fs::rename(&dir, &aside).map_err(SnapshotError::of("set aside", &dir))?;
        Ok(aside)
    }

    /// Numbers of the uppers on disk.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<u64>, SnapshotError> {
        let failed = SnapshotError::of("read", &self.dir);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(&failed)? {
            let name = entry.map_err(&failed)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(ids)
    }

    /// Disk use of an upper.
    ///
    /// # Errors
    /// Where the tree cannot be walked; what vanishes meanwhile is left out.
    pub fn usage(&self, id: u64) -> Result<Usage, SnapshotError> {
        let upper = self.upper(id);
        let mut usage = Usage::default();
        let mut seen = std::collections::HashSet::new();
        let mut pending = vec![upper.clone()];
        while let Some(path) = pending.pop() {
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(SnapshotError::of("read", &path)(e)),
            };
            if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert(metadata.ino()) {
                continue;
            }
            usage.inodes += 1;
            usage.bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                let failed = SnapshotError::of("read", &path);
                let entries = match fs::read_dir(&path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    entries => entries.map_err(&failed)?,
                };
                for entry in entries {
                    pending.push(entry.map_err(&failed)?.path());
                }
            }
        }
        Ok(usage)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn create_measure_remove() {
        let root = tempfile::tempdir().expect("temporary directory");
        let snapshots = Snapshots::open(root.path()).expect("open");
        let attributes = RootAttributes {
            mode: 0o1750,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime_sec: -5,
            mtime_nsec: 7,
            xattrs: Vec::new(),
        };
        snapshots.create(3, &attributes).expect("create");
        assert_eq!(snapshots.ids().expect("ids"), [3]);
        let metadata = fs::metadata(snapshots.upper(3)).expect("upper");
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o1750);
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-5, 7));
        assert!(snapshots.work(3).is_dir());

        fs::write(snapshots.upper(3).join("a"), [1; 5000]).expect("write");
        fs::hard_link(snapshots.upper(3).join("a"), snapshots.upper(3).join("b")).expect("link");
        let usage = snapshots.usage(3).expect("usage");
        assert_eq!(usage.inodes, 2);
        assert!(usage.bytes >= 5000);

        let aside = snapshots.set_aside(3).expect("set aside");
        assert!(aside.join("fs/a").exists());
        assert_eq!(snapshots.ids().expect("ids"), [0; 0]);
        fs::rename(aside, root.path().join("snapshots/3")).expect("back");

        assert!(snapshots.create(3, &attributes).is_err(), "an upper is never taken over");
        assert!(snapshots.upper(3).join("a").exists());
        snapshots.remove(3).expect("remove");
        snapshots.remove(3).expect("removed already");
        assert_eq!(snapshots.ids().expect("ids"), [0; 0]);
    }
}
