//! Files of a mounted rootfs, read without trusting it.
//!
//! An image's `/etc/passwd` may be a symlink to `/etc/shadow`, a fifo that never answers or a
//! device that acts when it is opened. So every path is resolved with the rootfs as its root, and
//! a file is opened for reading only once it is known to be a regular one.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// How often a resolution is tried again that a rename elsewhere interrupted.
const TRIES: u32 = 32;

/// The content of the regular file at `path` within `rootfs_dir`; `None` where there is none.
///
/// Symlinks, absolute ones and those with `..` included, are followed within the rootfs. An error
/// where the path leads to anything but a regular file, to a loop, or to more than `max` bytes.
pub fn rootfs_file(rootfs_dir: &Path, path: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(found) = resolve(rootfs_dir, path)? else {
        return Ok(None);
    };
    let stat = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let text = format!("{path} of the image: expected a regular file, found {kind:?}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let file = reopen(&found)?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        let text = format!("{path} of the image: expected at most {max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(Some(bytes))
}

fn resolve(rootfs_dir: &Path, path: &str) -> io::Result<Option<OwnedFd>> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs_dir, directory, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
            Ok(found) => return Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // The kernel cannot rule out an escape while something is renamed above the path
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// For reading, through the descriptor itself: nothing is resolved a second time.
fn reopen(found: &OwnedFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", found.as_fd().as_raw_fd());
    File::open(path)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    struct Rootfs(tempfile::TempDir);

    impl Rootfs {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("temporary directory");
            fs::create_dir_all(dir.path().join("rootfs/etc")).expect("rootfs");
            fs::create_dir(dir.path().join("etc")).expect("outside");
            fs::write(dir.path().join("etc/shadow"), "secret").expect("outside");
            fs::write(dir.path().join("secret"), "secret").expect("outside");
            Self(dir)
        }

        fn dir(&self) -> std::path::PathBuf {
            self.0.path().join("rootfs")
        }

        fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, io::ErrorKind> {
            rootfs_file(&self.dir(), path, max).map_err(|e| e.kind())
        }
    }

    #[test]
    fn reads_within_the_bound() {
        let rootfs = Rootfs::new();
        fs::write(rootfs.dir().join("etc/passwd"), "12345").expect("write");
        for path in ["etc/passwd", "/etc/passwd", "../../etc/passwd"] {
            assert_eq!(rootfs.read(path, 5), Ok(Some(b"12345".to_vec())), "{path}");
        }
        assert_eq!(rootfs.read("etc/passwd", 4), Err(io::ErrorKind::FileTooLarge));
        assert_eq!(rootfs.read("etc/passwd", u64::MAX), Ok(Some(b"12345".to_vec())));
        assert_eq!(rootfs.read("etc/group", 5), Ok(None));
        assert_eq!(rootfs.read("etc/passwd/x", 5), Ok(None));
        assert!(rootfs_file(&rootfs.dir().join("none"), "etc/passwd", 5).is_err());
    }

    #[test]
    fn no_symlink_leaves_the_rootfs() {
        let targets = [
            "../../secret",
            "../../../../../../../../../../etc/shadow",
            "/etc/shadow",
            "/proc/self/root/etc/shadow",
            "/../secret",
        ];
        for target in targets {
            let rootfs = Rootfs::new();
            symlink(target, rootfs.dir().join("etc/passwd")).expect("symlink");
            assert_eq!(rootfs.read("etc/passwd", 1 << 20), Ok(None), "{target}");
        }
        let rootfs = Rootfs::new();
        let outside = rootfs.0.path().join("secret");
        symlink(&outside, rootfs.dir().join("etc/passwd")).expect("symlink");
        assert_eq!(rootfs.read("etc/passwd", 1 << 20), Ok(None), "{outside:?}");
        symlink("../..", rootfs.dir().join("etc/up")).expect("symlink");
        assert_eq!(rootfs.read("etc/up/secret", 1 << 20), Ok(None));
    }

    #[test]
    fn symlinks_within_the_rootfs_are_followed() {
        let rootfs = Rootfs::new();
        fs::create_dir(rootfs.dir().join("usr")).expect("directory");
        fs::write(rootfs.dir().join("usr/passwd"), "x").expect("write");
        for target in ["/usr/passwd", "../usr/passwd", "../../../usr/passwd"] {
            let link = rootfs.dir().join("etc/passwd");
            symlink(target, &link).expect("symlink");
            assert_eq!(rootfs.read("etc/passwd", 9), Ok(Some(b"x".to_vec())), "{target}");
            fs::remove_file(link).expect("remove");
        }
        symlink("passwd", rootfs.dir().join("etc/passwd")).expect("loop");
        let error = rootfs_file(&rootfs.dir(), "etc/passwd", 9).expect_err("a loop");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let rootfs = Rootfs::new();
        // A read-only open of a fifo would wait for a writer for ever
        let mode = Mode::from_raw_mode(0o644);
        let cwd = rustix::fs::CWD;
        let fifo = rootfs.dir().join("etc/passwd");
        rustix::fs::mknodat(cwd, &fifo, FileType::Fifo, mode, 0).expect("fifo");
        assert_eq!(rootfs.read("etc/passwd", 9), Err(io::ErrorKind::InvalidData));
        assert_eq!(rootfs.read("etc", 9), Err(io::ErrorKind::InvalidData));
    }
}
