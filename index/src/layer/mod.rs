//! The index of one layer, read in place.
//!
//! Layout: [`crate::format`] and `index/FORMAT.md`. Everything is checked once in [`Layer::open`];
//! later access is bounds-checked all the same, so that a file changed under us can give wrong
//! answers but never a panic. No locking: a layer is immutable.

mod check;
mod pieces;
mod spans;
mod tar;
#[cfg(test)]
mod tests;

pub use pieces::Pieces;
pub use tar::TarStream;

use crate::{
    attr::{Attr, Bytes, DIRECTORY_SIZE, FileKind, PERMISSION_MASK},
    codec::{CodecError, Compression, Span, SpanReader, SpanSource, decode_span},
    digest::{Algorithm, Digest},
    format::{
        Container, FileType, FormatError, IMPLICIT, InodeRecord, LOWER_LINK, LayerDirent,
        LayerMeta, OPAQUE, Section, SpanRecord, Xattrs, slice,
    },
    nodeid::Slot,
};

pub(crate) use spans::span_record;

/// Number of a layer's root directory.
pub(crate) const ROOT: u32 = 1;

/// An opened layer index.
pub struct Layer {
    file: Container,
    blob: Digest,
    blob_len: u64,
    diff_id: Digest,
    tar_len: u64,
    compression: Compression,
    copy_len: u64,
    lower_links: u32,
}

impl Layer {
    /// Opens an index and checks all of it: checksums, then every offset, count and name.
    ///
    /// # Errors
    /// When the bytes are no layer index of this version, are damaged, or hold what no builder
    /// writes.
    pub fn open(bytes: Bytes) -> Result<Self, FormatError> {
        Container::open(bytes, FileType::Layer, Self::check)
    }

    fn check(file: Container) -> Result<Self, FormatError> {
        let meta: &LayerMeta = file.single(Section::Meta)?;
        let bad = |problem| Section::Meta.bad(0, problem);
        if meta.reserved != 0 || meta.reserved_tail.get() != 0 {
            return Err(bad("reserved bytes not zero"));
        }
        let blob = digest(meta.blob_algorithm, &meta.blob).ok_or(bad("malformed blob digest"))?;
        let diff_id = digest(meta.diff_algorithm, &meta.diff_id).ok_or(bad("malformed diffID"))?;
        let compression =
            Compression::from_code(meta.compression).ok_or(bad("unknown compression"))?;
        let (blob_len, tar_len) = (meta.blob_len.get(), meta.tar_len.get());
        let (copy_len, lower_links) = (meta.copy_len.get(), meta.lower_links.get());
        let layer =
            Self { blob, blob_len, diff_id, tar_len, compression, copy_len, lower_links, file };
        check::check(&layer)?;
        Ok(layer)
    }

    /// The slot under which the layer is served.
    pub fn slot(&self) -> Slot {
        self.file.header().slot
    }

    /// Version of the builder that numbered the inodes.
    pub fn builder(&self) -> u32 {
        self.file.header().builder
    }

    /// Digest of the compressed blob.
    pub fn blob(&self) -> Digest {
        self.blob
    }

    /// Length of the compressed blob in bytes.
    pub fn blob_len(&self) -> u64 {
        self.blob_len
    }

    /// Digest of the uncompressed tar.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// Length of the uncompressed tar in bytes.
    pub fn tar_len(&self) -> u64 {
        self.tar_len
    }

    /// Compression of the blob.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Length of the seekable copy in bytes; 0 where the layer needs none.
    pub fn copy_len(&self) -> u64 {
        self.copy_len
    }

    /// Digest of what inode numbers depend on.
    pub fn numbering(&self) -> [u8; 32] {
        self.file.header().numbering
    }

    /// How many inodes there are; they are numbered from 1.
    pub fn inode_count(&self) -> u32 {
        self.inodes().len() as u32
    }

    /// An inode's attributes; `None` for a number out of range and for a hard link whose inode is
    /// in a lower layer. `nlink` counts names within this layer.
    pub fn inode(&self, number: u32) -> Option<Attr> {
        let record = self.record(number)?;
        let kind = FileKind::from_mode(record.mode.get())?;
        Some(Attr {
            kind,
            mode: record.mode.get() & PERMISSION_MASK,
            uid: record.uid.get(),
            gid: record.gid.get(),
            nlink: record.nlink.get(),
            rdev: match kind {
                FileKind::CharDevice | FileKind::BlockDevice => record.data.get(),
                _ => 0,
            },
            size: match kind {
                FileKind::Directory => DIRECTORY_SIZE,
                _ => record.size.get(),
            },
            mtime_sec: record.mtime_sec.get(),
            mtime_nsec: record.mtime_nsec.get(),
        })
    }

    /// Target of a symlink; `None` for any other inode.
    pub fn symlink_target(&self, number: u32) -> Option<&[u8]> {
        let record = self.record(number)?;
        (FileKind::from_mode(record.mode.get()) == Some(FileKind::Symlink))
            .then(|| self.heap_text(record))?
    }

    /// Extended attributes of an inode, names ascending bytewise; nothing for a number out of
    /// range. `trusted.*` and `user.overlay.*` never come up: the builder drops them.
    pub fn xattrs(&self, number: u32) -> Xattrs<'_> {
        let Some(record) = self.record(number) else {
            return Xattrs::default();
        };
        Xattrs::at(self.file.section(Section::Xattrs), record.xattrs.get())
    }

    /// The runs of tar bytes and holes that make up `offset..offset + len` of a regular file, in
    /// order and without gaps, clipped to its size; nothing for any other inode.
    pub fn pieces(&self, number: u32, offset: u64, len: u64) -> Pieces<'_> {
        match self.record(number) {
            Some(record) => Pieces::new(record, self.file.records(Section::Extents), offset, len),
            None => Pieces::default(),
        }
    }

    /// How many spans there are.
    pub fn span_count(&self) -> u32 {
        self.spans().len() as u32
    }

    /// A span by its index, from 0.
    pub fn span(&self, index: u32) -> Option<Span> {
        spans::span(self.spans().get(index as usize)?)
    }

    /// Index of the span that holds a byte of the tar; `None` past its end.
    pub fn span_at(&self, tar_offset: u64) -> Option<u32> {
        if tar_offset >= self.tar_len {
            return None;
        }
        let after = self.spans().partition_point(|span| span.tar_offset.get() <= tar_offset);
        (after as u32).checked_sub(1)
    }

    /// The compressed window of a span; empty where it needs none.
    pub fn window(&self, span: &Span) -> &[u8] {
        let windows = self.file.section(Section::Windows);
        slice(windows, span.window_offset, span.window_len.into()).unwrap_or_default()
    }

    /// Verifies and decodes a span from exactly its compressed range.
    ///
    /// # Errors
    /// As [`decode_span`]; an index out of range is refused too.
    pub fn decode_span(&self, index: u32, compressed: &[u8]) -> Result<Vec<u8>, CodecError> {
        let span = self.known_span(index)?;
        decode_span(&span, self.window(&span), compressed)
    }

    /// Verifies exactly the compressed range of a span, its length and digest, and gives a reader
    /// that decodes it as far as it is asked to. Nothing is decoded yet.
    ///
    /// # Errors
    /// As [`Self::decode_span`].
    pub fn begin_span(&self, index: u32, compressed: Vec<u8>) -> Result<SpanReader, CodecError> {
        let span = self.known_span(index)?;
        SpanReader::new(&span, self.window(&span), compressed)
    }

    fn known_span(&self, index: u32) -> Result<Span, CodecError> {
        self.span(index).ok_or(CodecError::Field {
            origin: SpanSource::Blob,
            offset: 0,
            field: "index in the span table",
            found: index.into(),
            max: self.span_count().saturating_sub(1).into(),
        })
    }

    fn inodes(&self) -> &[InodeRecord] {
        self.file.records(Section::Inodes)
    }

    fn dirents(&self) -> &[LayerDirent] {
        self.file.records(Section::Dirents)
    }

    fn spans(&self) -> &[SpanRecord] {
        self.file.records(Section::Spans)
    }

    pub(crate) fn names(&self) -> &[u8] {
        self.file.section(Section::Names)
    }

    /// Target of a symlink or lower link.
    fn heap_text(&self, record: &InodeRecord) -> Option<&[u8]> {
        let targets = self.file.section(Section::Targets);
        slice(targets, record.data.get(), record.count.get().into())
    }

    // What the merge needs beyond the above.

    pub(crate) fn record(&self, number: u32) -> Option<&InodeRecord> {
        self.inodes().get(number.checked_sub(1)? as usize)
    }

    /// Entries of a directory, names ascending bytewise, whiteouts among them; before them the
    /// position of the first one in DIRENTS.
    pub(crate) fn children(&self, number: u32) -> (u32, &[LayerDirent]) {
        let children = || {
            let record = self.record(number)?;
            if FileKind::from_mode(record.mode.get()) != Some(FileKind::Directory) {
                return None;
            }
            let first = u32::try_from(record.data.get()).ok()?;
            let end = (first as usize).saturating_add(record.count.get() as usize);
            Some((first, self.dirents().get(first as usize..end)?))
        };
        children().unwrap_or_default()
    }

    /// The entry of a name in a directory, whiteouts included, and its position in DIRENTS.
    pub(crate) fn find_child(&self, number: u32, name: &[u8]) -> Option<(u32, &LayerDirent)> {
        let (first, children) = self.children(number);
        let found = children.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        Some((first + found as u32, &children[found]))
    }

    pub(crate) fn name(&self, entry: &LayerDirent) -> &[u8] {
        self.name_at(entry.name_offset.get(), entry.name_len.get().into())
    }

    pub(crate) fn name_at(&self, offset: u32, len: u32) -> &[u8] {
        slice(self.names(), offset.into(), len.into()).unwrap_or_default()
    }

    pub(crate) fn is_implicit(&self, number: u32) -> bool {
        self.has_flag(number, IMPLICIT)
    }

    pub(crate) fn is_opaque(&self, number: u32) -> bool {
        self.has_flag(number, OPAQUE)
    }

    fn has_flag(&self, number: u32, flag: u32) -> bool {
        self.record(number).is_some_and(|record| record.flags.get() & flag != 0)
    }

    /// Numbers and targets of the hard links into lower layers.
    pub(crate) fn lower_links(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let inodes = if self.lower_links == 0 { &[] } else { self.inodes() };
        (1..).zip(inodes).filter_map(|(number, record)| {
            let is_link = record.flags.get() & LOWER_LINK != 0;
            is_link.then(|| (number, self.heap_text(record).unwrap_or_default()))
        })
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("slot", &self.slot())
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// A digest as META and LAYERS hold it: raw bytes with zeros after them.
pub(crate) fn digest(algorithm: u8, raw: &[u8; 64]) -> Option<Digest> {
    let algorithm = Algorithm::from_code(algorithm)?;
    let (raw, padding) = raw.split_at_checked(algorithm.raw_len())?;
    padding.iter().all(|byte| *byte == 0).then(|| Digest::from_bytes(algorithm, raw))?
}

/// The reverse of [`digest`].
pub(crate) fn digest_record(digest: &Digest) -> (u8, [u8; 64]) {
    let mut raw = [0; 64];
    let bytes = digest.as_bytes();
    raw[..bytes.len()].copy_from_slice(bytes);
    (digest.algorithm().code(), raw)
}
