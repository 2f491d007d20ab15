//! What the readers of layers and trees hand out: kinds, attributes, entries, pieces of content.

use std::sync::Arc;

use crate::nodeid::NodeId;

/// What backs an index file: bytes that stay put, such as an mmap or a `Vec<u8>`.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Largest size of a file, in bytes: what `off_t` holds.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// Bits of a mode that say the kind of file (`S_IFMT`, inode(7)).
pub(crate) const TYPE_MASK: u32 = 0o170_000;

/// Bits of a mode that chmod(2) sets.
pub(crate) const PERMISSION_MASK: u32 = 0o7777;

/// Size that stat(2) gives for a directory, in bytes; ext4 shows the same for a small one.
pub(crate) const DIRECTORY_SIZE: u64 = 4096;

/// The kinds of file that a layer can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

impl FileKind {
    /// The kind as `S_IFMT` bits of a mode (inode(7)).
    pub fn type_bits(self) -> u32 {
        u32::from(self.code()) << 12
    }

    /// The kind that a mode's `S_IFMT` bits name; `None` for sockets and what is no kind.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Self::from_code(((mode & TYPE_MASK) >> 12) as u8)
    }

    /// The kind as readdir(3)'s `d_type`.
    pub fn code(self) -> u8 {
        match self {
            Self::Fifo => 1,
            Self::CharDevice => 2,
            Self::Directory => 4,
            Self::BlockDevice => 6,
            Self::Regular => 8,
            Self::Symlink => 10,
        }
    }

    /// The kind that a `d_type` names.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            _ => return None,
        })
    }
}

/// The attributes of an inode, as stat(2) shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Kind of file.
    pub kind: FileKind,
    /// Permission bits with suid, sgid and sticky (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; of a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Device number in the kernel's 64-bit encoding (makedev(3)); 0 for what is no device.
    pub rdev: u64,
    /// Size in bytes; of a symlink the length of its target.
    pub size: u64,
    /// Time of last modification, whole seconds since the epoch, may be negative.
    pub mtime_sec: i64,
    /// Nanoseconds to add to `mtime_sec`, below 1,000,000,000 also for negative times.
    pub mtime_nsec: u32,
}

/// An entry of a merged directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The name: 1 to 255 bytes without `/` and NUL, neither `.` nor `..`.
    pub name: &'a [u8],
    /// Kind of the inode it names.
    pub kind: FileKind,
    /// The inode it names.
    pub node: NodeId,
}

/// A run of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes that stand in the uncompressed tar.
    Data {
        /// Where in the tar.
        tar_offset: u64,
        /// How many bytes, never 0.
        len: u64,
    },
    /// A hole: zeros.
    Zero {
        /// How many bytes, never 0.
        len: u64,
    },
}

/// The device number that makedev(3) gives, which is what stat(2) shows as `st_rdev`.
pub(crate) fn makedev(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & 0xffff_f000) << 32
        | (major & 0x0000_0fff) << 8
        | (minor & 0xffff_ff00) << 12
        | (minor & 0x0000_00ff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_round_trip() {
        for code in 0..=255 {
            if let Some(kind) = FileKind::from_code(code) {
                assert_eq!(kind.code(), code);
                assert_eq!(FileKind::from_mode(kind.type_bits() | 0o7777), Some(kind));
            }
        }
        assert_eq!(FileKind::from_mode(0o140_755), None, "a socket");
        assert_eq!(FileKind::Directory.type_bits(), 0o040_000);
    }

    #[test]
    fn device_numbers_are_linux() {
        assert_eq!(makedev(0, 0), 0);
        assert_eq!(makedev(1, 3), 0x103);
        assert_eq!(makedev(259, 0x12345), 0x1231_0345);
        assert_eq!(makedev(0xfff, 0xff), 0xf_ffff);
        assert_eq!(makedev(u32::MAX, u32::MAX), u64::MAX);
    }
}
