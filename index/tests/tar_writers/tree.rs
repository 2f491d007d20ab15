//! Files to pack: as much as a format can hold.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

/// What a format can hold.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    /// Names past 99 bytes.
    pub(crate) long: bool,
    /// Names and targets past the fields of ustar.
    pub(crate) very_long: bool,
    /// Names that are not UTF-8.
    pub(crate) binary: bool,
    /// Times before 1970.
    pub(crate) negative: bool,
    /// Fractions of a second.
    pub(crate) fraction: bool,
    /// Fifos.
    pub(crate) special: bool,
}

pub(crate) const V7: Format = Format {
    long: false,
    very_long: false,
    binary: true,
    negative: false,
    fraction: false,
    special: false,
};
pub(crate) const USTAR: Format = Format { long: true, special: true, ..V7 };
pub(crate) const GNU: Format = Format { very_long: true, negative: true, ..USTAR };
pub(crate) const PAX: Format = Format { fraction: true, ..GNU };

pub(crate) fn tree(format: Format) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/empty"), b"").unwrap();
    fs::write(at("dir/small"), b"abc").unwrap();
    fs::write(at("dir/block"), [b'b'; 512]).unwrap();
    let big: Vec<u8> = (0..100_001_u32).map(|index| (index / 7) as u8).collect();
    fs::write(at("big"), big).unwrap();
    fs::hard_link(at("big"), at("dir/same")).unwrap();
    symlink("../big", at("dir/link")).unwrap();
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2711), ("private", 0o400)] {
        fs::write(at(name), name).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(at("sticky")).unwrap();
    fs::set_permissions(at("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    if format.binary {
        fs::write(dir.path().join(OsStr::from_bytes(b"not\xff\xfeUTF-8\n=")), b"bytes").unwrap();
    }
    if format.long {
        let name = format!("dir/{}/{}", "d".repeat(90), "f".repeat(90));
        fs::create_dir(at(&name).parent().unwrap()).unwrap();
        fs::write(at(&name), b"long").unwrap();
    }
    if format.very_long {
        let name = vec!["d".repeat(200); 4].join("/");
        fs::create_dir_all(at(&name)).unwrap();
        fs::write(at(&name).join("f".repeat(250)), b"very long").unwrap();
        fs::hard_link(at(&name).join("f".repeat(250)), at("hard")).unwrap();
        symlink("t".repeat(999), at("far")).unwrap();
    }
    if format.special {
        let status = Command::new("mkfifo").arg(at("fifo")).status().unwrap();
        assert!(status.success());
    }
    let since = |nanoseconds| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
    set_mtime(&at("dir/small"), since(1_600_000_000_123_456_789));
    set_mtime(&at("dir/empty"), since(0));
    if format.negative {
        let before = |milliseconds| SystemTime::UNIX_EPOCH - Duration::from_millis(milliseconds);
        set_mtime(&at("dir/block"), before(5000));
        // Without fractions, writers differ in which way they round
        set_mtime(&at("big"), before(if format.fraction { 86_400_750 } else { 86_400_000 }));
    }
    dir
}

pub(crate) fn set_mtime(path: &Path, time: SystemTime) {
    File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
}

/// All names below a directory, parents first.
pub(crate) fn names(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(name) = found.get(next).cloned() {
        next += 1;
        if root.join(&name).symlink_metadata().unwrap().is_dir() {
            let mut children: Vec<_> =
                fs::read_dir(root.join(&name)).unwrap().map(|child| child.unwrap()).collect();
            children.sort_by_key(|child| child.file_name());
            found.extend(children.iter().map(|child| name.join(child.file_name())));
        }
    }
    found.remove(0);
    found
}
