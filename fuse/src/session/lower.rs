//! Looking at mounts that an earlier peel left behind, without being hung up by them.
//!
//! A FUSE mount whose last descriptor is closed answers ENOTCONN to everything, even to stat(2) of
//! its mount point. One whose descriptor is still open somewhere, but that nobody serves, answers
//! nothing at all: it must only ever be asked from a thread that may be left behind.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use rustix::{io::Errno, mount::UnmountFlags};

use super::{mount::FS_TYPE, mountinfo};

/// A mount of peel's file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerMount {
    target: PathBuf,
}

/// Whether somebody serves a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowerState {
    /// It answers.
    Serving,
    /// No process holds the connection any more; it can only be unmounted.
    Stale,
    /// It did not answer in time: a process holds the connection, and does not serve it yet.
    Silent,
}

impl LowerMount {
    /// The topmost mount on `target`; `None` where that is not one of peel's.
    ///
    /// # Errors
    /// Where mountinfo cannot be read or the parent of `target` does not exist.
    pub fn find(target: &Path) -> io::Result<Option<Self>> {
        let target = canonical_parent(target)?;
        let mounts = mountinfo::mounts_on(&target)?;
        let ours = mounts.last().filter(|m| m.fs_type == FS_TYPE && m.root == Path::new("/"));
        Ok(ours.map(|_| Self { target: target.clone() }))
    }

    /// Where it is mounted.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Asks the mount for its statistics, for `timeout` at most. A thread stays behind where it
    /// does not answer.
    pub fn state(&self, timeout: Duration) -> LowerState {
        let (sender, answer) = mpsc::channel();
        let target = self.target.clone();
        let ask = move || {
            // The asker may have given up
            let _ = sender.send(rustix::fs::statfs(&target).map(drop));
        };
        if std::thread::Builder::new().name("lower-state".to_owned()).spawn(ask).is_err() {
            return LowerState::Silent;
        }
        match answer.recv_timeout(timeout) {
            Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => LowerState::Stale,
            Ok(_) => LowerState::Serving,
            Err(_) => LowerState::Silent,
        }
    }

    /// Ends the connection, for all its users, and unmounts: every request under way and every
    /// later one fails with ENOTCONN. The way out of a mount that hangs.
    ///
    /// A forced unmount does that wherever it is allowed at all, while the control file system
    /// under /sys/fs/fuse often is not mounted.
    pub fn abort(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(&self.target, UnmountFlags::FORCE | UnmountFlags::DETACH)?)
    }

    /// Takes the mount out of the tree of mounts; its users keep it until they are done.
    pub fn detach(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(&self.target, UnmountFlags::DETACH)?)
    }
}

/// Unmounts whatever stale mounts of peel's are stacked on `target`; says how many there were.
/// One that is served, or silent for `timeout`, stays and ends the search.
///
/// # Errors
/// Where mountinfo cannot be read or unmounting fails.
pub fn clear_stale(target: &Path, timeout: Duration) -> io::Result<u32> {
    let mut cleared = 0;
    while let Some(mount) = LowerMount::find(target)? {
        if mount.state(timeout) != LowerState::Stale {
            break;
        }
        mount.detach()?;
        cleared += 1;
    }
    Ok(cleared)
}

/// `target` without symlinks in its parents. The last component is not looked at, as that would
/// ask the mount.
fn canonical_parent(target: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    Ok(parent.canonicalize()?.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_mounts_are_not_ours() {
        assert_eq!(LowerMount::find(Path::new("/proc")).expect("readable"), None);
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(LowerMount::find(dir.path()).expect("readable"), None);
        assert_eq!(clear_stale(dir.path(), Duration::from_secs(1)).expect("readable"), 0);
    }

    #[test]
    fn paths_without_a_name_are_refused() {
        for path in ["/", "..", ""] {
            assert!(LowerMount::find(Path::new(path)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn symlinks_above_are_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let real = dir.path().canonicalize().expect("it exists");
        std::fs::create_dir(dir.path().join("state")).expect("mkdir");
        std::os::unix::fs::symlink("state", dir.path().join("link")).expect("symlink");
        let found = canonical_parent(&dir.path().join("link/lower")).expect("parent exists");
        assert_eq!(found, real.join("state/lower"));
    }
}
