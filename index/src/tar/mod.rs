//! Push parser for tar: bytes of a layer's uncompressed tar go in, entries with the place of their
//! content come out.
//!
//! ```text
//!  push(bytes) ──▶ parser   state machine: which part of the archive the next byte belongs to
//!                    ├──▶ header   one 512-byte block: V7, ustar, star, GNU; octal and base-256
//!                    ├──▶ pax      records of extended and global headers
//!                    ├──▶ sparse   the four sparse maps (old GNU; PAX 0.0, 0.1, 1.0)
//!                    └──▶ entry    one entry of all of these
//! ```
//!
//! Content is never copied nor looked at: an entry says at which offsets of the tar it lies.
//! A parser is owned by one thread; it takes no lock and holds no global state.
//!
//! Sources: POSIX.1-2017 `pax` ("pax Interchange Format", "ustar Interchange Format"), the GNU tar
//! manual ("Basic Tar Format", "Storing Sparse Files"), libarchive's `tar(5)`. Where they leave a
//! choice, the reference is Go's `archive/tar` as containerd's `pkg/archive` uses it, because a
//! mounted image has to equal what containerd unpacks.
//!
//! # Entry types
//!
//! | flag | read as | Go and containerd |
//! | --- | --- | --- |
//! | `0` | file, even with a trailing `/` | the same |
//! | NUL | file; a directory where the final name ends in `/` | the same |
//! | `7` (contiguous) | file | refuse it; POSIX says file |
//! | `S` (old GNU sparse) | file, in GNU headers only | Go decodes it, containerd refuses it |
//! | `1`, `2` | hard link, symbolic link; no content, whatever the size field says | the same |
//! | `3`, `4`, `5`, `6` | character and block device, directory, fifo; no content | the same |
//! | `x` | records for the next entry; of two in a row the second counts | the same |
//! | `g` | [`EntryKind::GlobalHeader`]; its records mean nothing | the same |
//! | `L`, `K` | name, link target of the next entry | the same |
//! | `V`, `M`, `N`, `D`, others | [`TarError::UnsupportedType`] | containerd refuses them |
//!
//! # Names and numbers
//!
//! - The path is the first of: `GNU.sparse.name`, GNU long name, PAX `path`, prefix and name of the
//!   header block, as in Go. (With GNU tar, PAX `path` wins. No writer is known to emit both.) The
//!   link target goes likewise. Of a global header it is that of its own records, else the block's.
//! - Names are bytes. A GNU-format header whose atime and ctime are no numbers but ASCII text holds
//!   a ustar prefix there: Go before 1.8, hence Docker of that time, wrote such layers.
//! - Where a PAX value is empty, the header block's field counts; an `SCHILY.xattr.` record with an empty value is an attribute with no bytes, as containerd sets.
//! - A blank number is 0. Owners from -2^31 to 2^32-1 are what `lchown` makes of them: taken modulo
//!   2^32, and -1, which leaves the owner alone, is the unpacking root: 0.
//! - Device numbers are only looked at in devices.
//! - `LIBARCHIVE.xattr.` records that do not decode are ignored (containerd ignores all of them).
//!
//! # Sparse files
//!
//! The map has to be in order, without overlap, within the real size, and account for exactly the
//! bytes stored, as in Go; anything else is an error. A sparse version that is not known leaves an
//! ordinary file, as in Go.
//!
//! # The end
//!
//! Two blocks of zeros end the archive; what follows is ignored. So do one block of zeros, or none,
//! right before the end of the stream. One block of zeros before something else is an error, as in
//! Go. The stream may end within the padding of the last content, as in Go; anywhere else inside an
//! entry it is [`TarError::Truncated`]. Records and long names that no entry follows are dropped,
//! as in Go.
//!
//! # Bounds
//!
//! Nothing is allocated by a declared size: buffers grow with the bytes that came in.
//! Payloads of `x`, `g`, `L` and `K` end at [`MAX_PAYLOAD`], sparse maps at [`MAX_RUNS`].

mod entry;
mod error;
mod header;
mod parser;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

pub use error::TarError;
pub use parser::TarParser;

/// Longest payload in bytes of a PAX header or GNU long name: the limit of libarchive and of Go's
/// `archive/tar` (`maxSpecialFileSize`).
pub const MAX_PAYLOAD: u64 = 1 << 20;

/// Most runs in a sparse map: the limit of Go's `archive/tar` (`maxSparseFileEntries`).
pub const MAX_RUNS: u64 = 1 << 20;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of an earlier entry, or of a file of a lower layer.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Nothing: a global PAX header, whose records containerd ignores. But it takes the header for an
    /// entry: it makes the directories above, and removes what is at the path.
    GlobalHeader,
}

/// One entry of the archive, PAX records and long names applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// The path as written, not normalised: it may be empty, absolute, or hold `..`.
    pub path: Vec<u8>,
    /// What the entry makes.
    pub kind: EntryKind,
    /// Target of a hard or symbolic link as written; empty for other kinds.
    pub link: Vec<u8>,
    /// Permission bits with set-user-id, set-group-id and sticky (mask 07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in whole seconds since 1970, rounded down.
    pub mtime_sec: i64,
    /// Nanoseconds to add to `mtime_sec`; below 10^9, also for times before 1970.
    pub mtime_nsec: u32,
    /// Major number of a device, else 0.
    pub rdev_major: u32,
    /// Minor number of a device, else 0.
    pub rdev_minor: u32,
    /// Size of a file's content in bytes, holes included, at most `i64::MAX`; 0 for other kinds.
    pub size: u64,
    /// Offset in the tar of the entry's first header block, be it a PAX or long-name header of it.
    pub header_offset: u64,
    /// Where the content is: sorted, not overlapping, none empty. What no extent covers is a hole.
    pub data: Vec<Extent>,
    /// Extended attributes, name and value, in order of appearance; of equal names the last counts.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A run of a file's content in the tar. Lengths and offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub logical: u64,
    /// Offset in the tar.
    pub tar_offset: u64,
    /// Length; not 0.
    pub len: u64,
}
