//! Where the decoders put what they find, in the order of the tar.

use super::{
    COPY_FRAME, CodecError, Compression, Decoded, HELD_MAX, HELD_TARGET, SPAN_MAX, SPAN_TARGET,
    SpanCoding,
    table::{DeflateSpan, Job, Returned, SpanTable, WindowHeap},
};
use crate::stage::{Helper, Stage};

/// Bytes of windows that are worth a write to a file: those of about 300 MB of tar.
const WINDOWS_AT_ONCE: usize = 512 << 10;

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
        if cfg!(fuzzing) {
            // The inputs of fuzzers are some KiB, and have to make more than one span
            let (target, held_target, copy_frame) = (3000, 6000, 1000);
            return Self { target, max: 20_000, held_target, held_max: 24_000, copy_frame };
        }
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

/// Hands spans and stretches for the copy to the span table.
pub(super) struct Assembly {
    pub(super) limits: Limits,
    table: Stage<SpanTable>,
    copied: Returned<Vec<u8>>,
    windows: Returned<WindowHeap>,
    spare_spans: Returned<Vec<DeflateSpan>>,
    spare_frames: Returned<Vec<Vec<u8>>>,
    /// Tar bytes on their way to the copy, less than a frame of them.
    pending: Vec<u8>,
}

impl Default for Assembly {
    fn default() -> Self {
        let table = SpanTable::default();
        Self {
            limits: Limits::default(),
            copied: table.copied.clone(),
            windows: table.windows.clone(),
            spare_spans: table.spare_spans.clone(),
            spare_frames: table.spare_frames.clone(),
            table: Stage::Here(table),
            pending: Vec::new(),
        }
    }
}

impl Assembly {
    /// Shares the table with a helper from here on.
    pub(super) fn share(&mut self, helper: &Helper) {
        self.table.share(helper);
    }

    /// Adds the next `tar_len` bytes of tar, which are decoded from `range` of the blob.
    pub(super) fn blob_span(
        &mut self,
        tar_len: u64,
        range: Range,
        coding: SpanCoding,
    ) -> Result<(), CodecError> {
        debug_assert!(self.pending.is_empty(), "the copy is flushed before the blob goes on");
        let Range { offset, len, digest } = range;
        self.table.send(Job::Range { tar_len, offset, len, digest, coding })
    }

    /// Adds the next span of deflate data, and gives an old one whose memory is free.
    pub(super) fn deflate_span(&mut self, span: DeflateSpan) -> Result<DeflateSpan, CodecError> {
        debug_assert!(self.pending.is_empty(), "the copy is flushed before the blob goes on");
        self.table.send(Job::Deflate(span))?;
        Ok(self.spare_spans.lock().pop().unwrap_or_default())
    }

    /// Sends the next bytes of tar to the seekable copy.
    pub(super) fn copy_tar(&mut self, mut tar: &[u8]) -> Result<(), CodecError> {
        let size = self.limits.copy_frame;
        while !tar.is_empty() {
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
        if self.pending.is_empty() {
            return Ok(());
        }
        let spare = self.spare_frames.lock().pop().unwrap_or_default();
        let frame = std::mem::replace(&mut self.pending, spare);
        self.table.send(Job::Copy(frame))
    }

    pub(super) fn take_copy(&mut self) -> Vec<u8> {
        std::mem::take(&mut *self.copied.lock())
    }

    pub(super) fn take_windows(&mut self) -> Vec<u8> {
        self.windows.lock().take(WINDOWS_AT_ONCE)
    }

    pub(super) fn finish(self, compression: Compression) -> Result<Decoded, CodecError> {
        debug_assert!(self.pending.is_empty(), "the copy is flushed at the end of a stretch");
        // Whoever got an error from the table does not come here
        let table = self.table.into_inner()?.ok_or(CodecError::Spent)?;
        let copy = std::mem::take(&mut *self.copied.lock());
        let SpanTable { spans, windows, covered, .. } = table;
        let mut windows = windows.lock();
        Ok(Decoded {
            compression,
            copy,
            spans,
            windows_taken: windows.taken,
            windows_checksum: windows.checksum(),
            windows: std::mem::take(&mut windows.rest),
            tar_len: covered,
        })
    }
}
