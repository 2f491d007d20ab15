//! Attributes as fuser writes them to the kernel.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use peel_index::{Attr, FileKind};

use crate::fs::{BLOCK_SIZE, Inode};

/// The kind of file on the wire.
pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
    }
}

/// The attributes on the wire. There is one time: a layer's tar has no other.
pub(super) fn file_attr(inode: &Inode) -> FileAttr {
    let Inode { ino, attr, .. } = inode;
    let time = system_time(attr);
    FileAttr {
        ino: INodeNo(*ino),
        size: attr.size,
        blocks: inode.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The kernel's dev_t has 12 and 20 bits, which are the low 32 of makedev(3)
        rdev: attr.rdev as u32,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Nanoseconds count upwards from the second also before the epoch. What the system's clock type
/// cannot hold becomes the epoch.
fn system_time(attr: &Attr) -> SystemTime {
    let seconds = Duration::from_secs(attr.mtime_sec.unsigned_abs());
    let second = match attr.mtime_sec {
        0.. => UNIX_EPOCH.checked_add(seconds),
        _ => UNIX_EPOCH.checked_sub(seconds),
    };
    let time = second.and_then(|s| s.checked_add(Duration::from_nanos(attr.mtime_nsec.into())));
    time.unwrap_or(UNIX_EPOCH)
}

/// What stands for "no such entry" in an answer that the kernel may keep: inode 0.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(mtime_sec: i64, mtime_nsec: u32) -> Attr {
        Attr {
            kind: FileKind::CharDevice,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            nlink: 3,
            rdev: libc::makedev(0x123, 0x45678),
            size: 0,
            mtime_sec,
            mtime_nsec,
        }
    }

    #[test]
    fn times_on_both_sides_of_the_epoch() {
        let nanos = |n| Duration::from_nanos(n);
        let table = [
            (0, 0, UNIX_EPOCH),
            (1, 5, UNIX_EPOCH + nanos(1_000_000_005)),
            (-1, 0, UNIX_EPOCH - nanos(1_000_000_000)),
            (-2, 800_000_000, UNIX_EPOCH - nanos(1_200_000_000)),
            (-1, 999_999_999, UNIX_EPOCH - nanos(1)),
        ];
        for (seconds, nanoseconds, expected) in table {
            assert_eq!(system_time(&attr(seconds, nanoseconds)), expected, "{seconds}");
        }
        for seconds in [i64::MIN, i64::MIN + 1, i64::MAX] {
            // No panic, whatever the clock type holds
            system_time(&attr(seconds, 999_999_999));
        }
    }

    #[test]
    fn device_numbers_in_the_kernels_form() {
        let inode =
            Inode { ino: 9, attr: attr(0, 0), attr_ttl: Duration::ZERO, entry_ttl: Duration::ZERO };
        let wire = file_attr(&inode);
        let expected = 0x123 << 8 | 0x78 | (0x456 << 8) << 12;
        assert_eq!((wire.rdev, wire.perm, wire.nlink), (expected, 0o4755, 3));
    }
}
