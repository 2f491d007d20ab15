//! Why a layer cannot be indexed.

use crate::{codec::CodecError, format::HeapFull, tar::TarError};

/// Why a layer cannot be indexed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The blob cannot be decompressed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The tar cannot be parsed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry of the tar cannot be represented.
    #[error("entry {path:?} at tar offset {offset}: {problem}")]
    Entry {
        /// The path as the tar has it, made printable.
        path: String,
        /// Offset of the entry's header in the uncompressed tar, in bytes.
        offset: u64,
        /// What is wrong.
        #[source]
        problem: EntryProblem,
    },
    /// Content of a file lies outside the tar.
    #[error("file content out of range: expected an end of at most {expected}, found {found}")]
    Content {
        /// Length of the tar in bytes.
        expected: u64,
        /// Where the content ends, as the entry says.
        found: u64,
    },
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// A component of the path is too long.
    #[error("name too long: expected at most 255 bytes, found {found}")]
    Name {
        /// Its length in bytes.
        found: usize,
    },
    /// The whole path is too long, or that to which it leads through symlinks.
    #[error("path too long: expected at most 4096 bytes, found {found}")]
    Path {
        /// Its length in bytes, cleaned, a slash before each name.
        found: usize,
    },
    /// The path or link target holds a NUL byte.
    #[error("NUL byte in path or link target")]
    Nul,
    /// A symlink or hard link without a target.
    #[error("empty link target")]
    EmptyLink,
    /// A link target is too long.
    #[error("link target too long: expected at most 4096 bytes, found {found}")]
    Link {
        /// Its length in bytes.
        found: usize,
    },
    /// `.wh.`, `.wh..` and `.wh...`: a whiteout of nothing, of its directory or of its parent.
    #[error("invalid whiteout name")]
    Whiteout,
    /// A hard link whose target is a directory.
    #[error("hard link to a directory: {target:?}")]
    DirectoryLink {
        /// The target as the tar has it, made printable.
        target: String,
    },
    /// A component of the path, or of a hard link's target, is neither directory nor symlink.
    #[error("not a directory: {path:?}")]
    NotDirectory {
        /// The component's path, made printable.
        path: String,
    },
    /// Too many symlinks on the way, or too long ones.
    #[error("too many symlinks in a path: expected at most 255")]
    Links,
    /// The name of an extended attribute is empty, too long or holds a NUL byte.
    #[error("name of an extended attribute: expected 1 to 255 bytes without NUL, found {found}")]
    XattrName {
        /// Its length in bytes.
        found: usize,
    },
    /// The value of an extended attribute is too long.
    #[error("value of an extended attribute too long: expected at most 65536 bytes, found {found}")]
    XattrValue {
        /// Its length in bytes.
        found: usize,
    },
    /// An inode has too many extended attributes, those of earlier headers included.
    #[error(
        "too many extended attributes: expected at most 65536 bytes of names and 1048576 in all, \
         found {found}"
    )]
    Xattrs {
        /// Bytes of all names and values.
        found: usize,
    },
    /// The paths of all entries so far lead through too many and too long symlinks together, or
    /// their extended attributes were merged too often.
    #[error(
        "symlinks and extended attributes take too long: expected at most {expected} steps in all \
         entries so far"
    )]
    Effort {
        /// The limit: 2^26, and 64 for each entry. A step is a name on the way through a symlink, or
        /// 16 bytes of a symlink's target or of extended attributes.
        expected: u64,
    },
    /// The file is larger than `off_t` can say, or its extents overlap or leave it.
    #[error("file size or extents out of range: size {size}")]
    Size {
        /// Its size in bytes.
        size: u64,
    },
    /// A limit of the whole layer is reached.
    #[error(transparent)]
    Full(#[from] HeapFull),
}
