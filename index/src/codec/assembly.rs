//! Where the decoders put what they find: the span table, the windows and the seekable copy.

use super::{
    COPY_FRAME, CodecError, Decoded, HELD_MAX, HELD_TARGET, SPAN_MAX, SPAN_TARGET, Span,
    SpanCoding, SpanSource, copy::CopyWriter,
};
use crate::codec::Compression;

/// The sizes that decide where spans are cut, in bytes; tests use smaller ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) target: u64,
    pub(super) max: u64,
    pub(super) held_target: usize,
    pub(super) held_max: usize,
    pub(super) copy_frame: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            target: u64::from(SPAN_TARGET),
            max: u64::from(SPAN_MAX),
            held_target: HELD_TARGET,
            held_max: HELD_MAX,
            copy_frame: COPY_FRAME,
        }
    }
}

/// A compressed range of the blob.
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) digest: [u8; 32],
}

impl Range {
    pub(super) fn of(offset: u64, compressed: &[u8]) -> Self {
        let digest = *blake3::hash(compressed).as_bytes();
        Self { offset, len: compressed.len() as u64, digest }
    }
}

/// Collects spans in the order of the tar, without gaps.
#[derive(Default)]
pub(super) struct Assembly {
    pub(super) limits: Limits,
    spans: Vec<Span>,
    windows: Vec<u8>,
    copy: CopyWriter,
    /// Tar bytes on their way to the copy, less than a frame of them.
    pending: Vec<u8>,
    /// Tar bytes that have their span.
    covered: u64,
}

impl Assembly {
    /// Adds the next `tar_len` bytes of tar, which are decoded from `range` of the blob.
    pub(super) fn blob_span(
        &mut self,
        tar_len: u64,
        range: Range,
        coding: SpanCoding,
        window: &[u8],
    ) {
        debug_assert!(self.pending.is_empty(), "the copy is flushed before the blob goes on");
        let window_offset = if window.is_empty() { 0 } else { self.windows.len() as u64 };
        self.windows.extend_from_slice(window);
        self.add(Span {
            tar_offset: self.covered,
            tar_len: narrow(tar_len),
            source: SpanSource::Blob,
            offset: range.offset,
            len: narrow(range.len),
            coding,
            window_offset,
            window_len: narrow(window.len() as u64),
            digest: range.digest,
        });
    }

    /// Sends the next bytes of tar to the seekable copy.
    pub(super) fn copy_tar(&mut self, mut tar: &[u8]) -> Result<(), CodecError> {
        let size = self.limits.copy_frame;
        while !tar.is_empty() {
            if self.pending.is_empty() && tar.len() >= size {
                let (frame, rest) = tar.split_at(size);
                self.copy_frame(frame)?;
                tar = rest;
                continue;
            }
            let (piece, rest) = tar.split_at(tar.len().min(size - self.pending.len()));
            self.pending.extend_from_slice(piece);
            tar = rest;
            if self.pending.len() == size {
                self.flush_copy()?;
            }
        }
        Ok(())
    }

    /// Ends a stretch that goes to the copy.
    pub(super) fn flush_copy(&mut self) -> Result<(), CodecError> {
        if !self.pending.is_empty() {
            let mut pending = std::mem::take(&mut self.pending);
            self.copy_frame(&pending)?;
            pending.clear();
            self.pending = pending;
        }
        Ok(())
    }

    pub(super) fn take_copy(&mut self) -> Vec<u8> {
        self.copy.take()
    }

    pub(super) fn finish(mut self, compression: Compression) -> Decoded {
        debug_assert!(self.pending.is_empty(), "the copy is flushed at the end of a stretch");
        Decoded {
            compression,
            copy: self.copy.take(),
            spans: self.spans,
            windows: self.windows,
            tar_len: self.covered,
        }
    }

    fn copy_frame(&mut self, tar: &[u8]) -> Result<(), CodecError> {
        let frame = self.copy.frame(tar)?;
        self.add(Span {
            tar_offset: self.covered,
            tar_len: narrow(tar.len() as u64),
            source: SpanSource::Copy,
            offset: frame.offset,
            len: narrow(frame.len as u64),
            coding: SpanCoding::ZstdFrames,
            window_offset: 0,
            window_len: 0,
            digest: frame.digest,
        });
        Ok(())
    }

    fn add(&mut self, span: Span) {
        self.covered += u64::from(span.tar_len);
        self.spans.push(span);
    }
}

/// Span lengths: bounded by the limits, a few MiB.
fn narrow(len: u64) -> u32 {
    u32::try_from(len).expect("spans are bounded far below 4 GiB")
}
