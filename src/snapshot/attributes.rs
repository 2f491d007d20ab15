//! Attributes of a directory, taken over from a tree.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use peel_index::Tree;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, XattrFlags};

/// What an upper takes over from the root of the tree below it, or a layer from a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootAttributes {
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch.
    pub mtime_sec: i64,
    /// And nanoseconds.
    pub mtime_nsec: u32,
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl RootAttributes {
    /// Those of a directory of a tree; `None` where there is none of this number.
    pub fn of(tree: &Tree, number: u32) -> Option<Self> {
        let found = tree.inode(number)?;
        Some(Self {
            mode: found.mode,
            uid: found.uid,
            gid: found.gid,
            mtime_sec: found.mtime_sec,
            mtime_nsec: found.mtime_nsec,
            xattrs: tree.xattrs(number).map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
        })
    }

    pub(super) fn apply(&self, dir: &Path) -> io::Result<()> {
        // The mode after the owner: chown clears set-id bits
        std::os::unix::fs::chown(dir, Some(self.uid), Some(self.gid))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            rustix::fs::setxattr(dir, OsStr::from_bytes(name), value, XattrFlags::empty())?;
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: self.mtime_sec, tv_nsec: self.mtime_nsec.into() },
        };
        Ok(rustix::fs::utimensat(CWD, dir, &times, AtFlags::empty())?)
    }
}
