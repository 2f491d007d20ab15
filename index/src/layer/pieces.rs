//! From a range of a file to runs of tar bytes and holes.

use std::ops::Range;

use crate::{
    attr::{FileKind, Piece},
    format::{ExtentRecord, InodeRecord, SPARSE},
};

/// The pieces of a range of a file; made by [`crate::Layer::pieces`].
#[derive(Clone, Debug, Default)]
pub struct Pieces<'a> {
    /// What is left of the range.
    range: Range<u64>,
    content: Content<'a>,
}

#[derive(Clone, Debug)]
enum Content<'a> {
    /// The file begins at this offset of the tar.
    Contiguous(u64),
    /// The extents that end past the start of the range.
    Sparse(&'a [ExtentRecord]),
}

impl Default for Content<'_> {
    fn default() -> Self {
        Self::Contiguous(0)
    }
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(
        inode: &InodeRecord,
        extents: &'a [ExtentRecord],
        offset: u64,
        len: u64,
    ) -> Self {
        if FileKind::from_mode(inode.mode.get()) != Some(FileKind::Regular) {
            return Self::default();
        }
        let size = inode.size.get();
        let range = offset.min(size)..offset.saturating_add(len).min(size);
        if inode.flags.get() & SPARSE == 0 {
            return Self { range, content: Content::Contiguous(inode.data.get()) };
        }
        let first = usize::try_from(inode.data.get()).unwrap_or(usize::MAX);
        let end = first.saturating_add(inode.count.get() as usize);
        let own = extents.get(first..end).unwrap_or_default();
        let skip = own.partition_point(|extent| end_of(extent) <= range.start);
        Self { range, content: Content::Sparse(&own[skip..]) }
    }
}

fn end_of(extent: &ExtentRecord) -> u64 {
    extent.logical.get().saturating_add(extent.len.get())
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let Range { start, end } = self.range;
        if start >= end {
            return None;
        }
        let piece = match &mut self.content {
            Content::Contiguous(tar_offset) => {
                Piece::Data { tar_offset: tar_offset.saturating_add(start), len: end - start }
            }
            Content::Sparse(extents) => match extents.split_first() {
                Some((extent, rest)) if extent.logical.get() <= start => {
                    *extents = rest;
                    let within = start - extent.logical.get();
                    // At least 1: the constructor and the hole before left `start` inside
                    let len = end_of(extent).min(end).saturating_sub(start).max(1);
                    Piece::Data { tar_offset: extent.tar_offset.get().saturating_add(within), len }
                }
                next => {
                    let hole_end = next.map_or(end, |(next, _)| next.logical.get().min(end));
                    Piece::Zero { len: hole_end - start }
                }
            },
        };
        let (Piece::Data { len, .. } | Piece::Zero { len }) = piece;
        self.range.start = start.saturating_add(len);
        Some(piece)
    }
}
