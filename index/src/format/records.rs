//! The fixed records of both kinds of file, little-endian and without alignment, used in place.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{I64, U16, U32, U64},
};

/// The file header, 128 bytes.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct HeaderRecord {
    pub(crate) magic: [u8; 8],
    pub(crate) version: U32,
    pub(crate) kind: U32,
    pub(crate) builder: U32,
    pub(crate) slot: U32,
    pub(crate) sections: U32,
    pub(crate) reserved: U32,
    pub(crate) file_len: U64,
    pub(crate) reserved_tail: U64,
    pub(crate) numbering: [u8; 32],
    pub(crate) table_checksum: [u8; 16],
    pub(crate) checksum: [u8; 32],
}

/// An entry of the section table, 56 bytes.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TableRecord {
    pub(crate) kind: U32,
    pub(crate) reserved: U32,
    pub(crate) offset: U64,
    pub(crate) len: U64,
    pub(crate) checksum: [u8; 32],
}

/// META of a layer index, 168 bytes.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LayerMeta {
    pub(crate) blob_len: U64,
    pub(crate) tar_len: U64,
    pub(crate) copy_len: U64,
    /// How many inodes have [`LOWER_LINK`].
    pub(crate) lower_links: U32,
    pub(crate) compression: u8,
    pub(crate) blob_algorithm: u8,
    pub(crate) diff_algorithm: u8,
    pub(crate) reserved: u8,
    pub(crate) reserved_tail: U64,
    /// Raw digest, zero-padded.
    pub(crate) blob: [u8; 64],
    /// Raw digest, zero-padded.
    pub(crate) diff_id: [u8; 64],
}

/// Inode flag: the directory is not listed by the tar, only implied by what it holds.
pub(crate) const IMPLICIT: u32 = 1 << 0;
/// Inode flag: the directory hides all content that lower layers have at its path.
pub(crate) const OPAQUE: u32 = 1 << 1;
/// Inode flag: a hard link whose target is in a lower layer; mode has no type bits.
pub(crate) const LOWER_LINK: u32 = 1 << 2;
/// Inode flag: the content of the file is given by EXTENTS.
pub(crate) const SPARSE: u32 = 1 << 3;

/// An inode of a layer, 64 bytes; number n is the n-th record, counted from 1.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct InodeRecord {
    /// Type and permission bits.
    pub(crate) mode: U32,
    pub(crate) flags: U32,
    pub(crate) uid: U32,
    pub(crate) gid: U32,
    pub(crate) mtime_sec: I64,
    pub(crate) size: U64,
    /// File: offset in the tar. Sparse file: index of its first extent. Directory: index of its
    /// first entry. Symlink and lower link: offset of the target in TARGETS. Device: its number.
    pub(crate) data: U64,
    /// Offset in the tar of the header that gave the attributes; 0 for an implicit directory.
    pub(crate) header: U64,
    /// Sparse file: extents. Directory: entries. Symlink and lower link: length of the target.
    pub(crate) count: U32,
    pub(crate) mtime_nsec: U32,
    /// Names within the layer; of a directory 2 + its subdirectories.
    pub(crate) nlink: U32,
    /// Offset in XATTRS of the set; 0 is the empty set.
    pub(crate) xattrs: U32,
}

/// Kind of a directory entry that only hides its name in lower layers (`DT_WHT`).
pub(crate) const WHITEOUT_KIND: u8 = 14;
/// Kind of a directory entry whose inode has [`LOWER_LINK`] (`DT_UNKNOWN`).
pub(crate) const LOWER_LINK_KIND: u8 = 0;
/// Entry flag: the directory it names is new, whatever lower layers have at its path.
pub(crate) const HIDES_LOWER: u8 = 1 << 0;

/// A directory entry of a layer, 12 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LayerDirent {
    pub(crate) name_offset: U32,
    pub(crate) inode: U32,
    pub(crate) name_len: U16,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
}

/// A run of a sparse file's content, 24 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ExtentRecord {
    pub(crate) logical: U64,
    pub(crate) tar_offset: U64,
    pub(crate) len: U64,
}

/// A span, 72 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct SpanRecord {
    pub(crate) tar_offset: U64,
    pub(crate) offset: U64,
    pub(crate) window_offset: U64,
    pub(crate) tar_len: U32,
    pub(crate) len: U32,
    pub(crate) window_len: U32,
    /// As [`crate::SpanSource::code`].
    pub(crate) source: u8,
    /// As [`crate::SpanCoding::code`].
    pub(crate) coding: u8,
    pub(crate) reserved: U16,
    pub(crate) digest: [u8; 32],
}

/// META of a tree, 88 bytes.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TreeMeta {
    /// Distinct inodes of the merged tree, directories included.
    pub(crate) inodes: U64,
    /// Sizes of its distinct regular files, summed up.
    pub(crate) bytes: U64,
    /// 0 where the tree has no chainID.
    pub(crate) chain_algorithm: u8,
    pub(crate) reserved: [u8; 7],
    /// Raw digest, zero-padded.
    pub(crate) chain_id: [u8; 64],
}

/// A layer that a tree was merged from, 112 bytes; lowest first.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TreeLayer {
    pub(crate) slot: U32,
    /// Inodes of that layer: the bound of the numbers that DIRENTS may hold.
    pub(crate) inodes: U32,
    pub(crate) diff_algorithm: u8,
    pub(crate) reserved: [u8; 7],
    /// Raw digest, zero-padded.
    pub(crate) diff_id: [u8; 64],
    pub(crate) numbering: [u8; 32],
}

/// An inode of a tree, 64 bytes; number n is the n-th record, counted from 1.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TreeInode {
    /// Type and permission bits.
    pub(crate) mode: U32,
    /// Number of the parent directory; 0 for what is no directory.
    pub(crate) parent: U32,
    pub(crate) uid: U32,
    pub(crate) gid: U32,
    pub(crate) mtime_sec: I64,
    pub(crate) size: U64,
    /// Directory: index of its first entry. Device: its number. Else 0.
    pub(crate) data: U64,
    /// File and symlink: raw number of the layer inode that has the content or target. Else 0.
    pub(crate) content: U64,
    /// Directory: entries. Else 0.
    pub(crate) count: U32,
    pub(crate) mtime_nsec: U32,
    pub(crate) nlink: U32,
    /// Offset in XATTRS of the set; 0 is the empty set.
    pub(crate) xattrs: U32,
}

/// A directory entry of a tree, 16 bytes.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TreeDirent {
    pub(crate) name_offset: U32,
    pub(crate) name_len: U16,
    pub(crate) kind: u8,
    pub(crate) reserved: u8,
    /// Raw inode number; an inode of this tree has slot 0, so that entries do not depend on it.
    pub(crate) node: U64,
}

const _: () = {
    assert!(size_of::<HeaderRecord>() == 128);
    assert!(size_of::<TableRecord>() == 56);
    assert!(size_of::<LayerMeta>() == 168);
    assert!(size_of::<InodeRecord>() == 64);
    assert!(size_of::<LayerDirent>() == 12);
    assert!(size_of::<ExtentRecord>() == 24);
    assert!(size_of::<SpanRecord>() == 72);
    assert!(size_of::<TreeMeta>() == 88);
    assert!(size_of::<TreeLayer>() == 112);
    assert!(size_of::<TreeInode>() == 64);
    assert!(size_of::<TreeDirent>() == 16);
};
