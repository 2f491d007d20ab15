//! The span table: what the decoders found, with digests, windows and the seekable copy made of it.
//!
//! All that a decoder need not wait for is done here, so that another thread can do it. Windows and copy
//! are given out while they grow, for they grow with the tar; a span stays here with 88 bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    CodecError, Span, SpanCoding, SpanSource, copy::CopyWriter, held::Held, window::WindowPacker,
};
use crate::stage::Work;

/// Shared with the other end: things on their way back from the table.
pub(super) struct Returned<T>(Arc<Mutex<T>>);

impl<T> Returned<T> {
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        // No change to it can panic halfway
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Returned<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Returned<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// A span of deflate data, with all that its record is made of.
#[derive(Default)]
pub(super) struct DeflateSpan {
    /// Where `held` begins in the blob.
    pub(super) offset: u64,
    /// High bits of the first byte of `held` that belong to the span; 0 when all do.
    pub(super) bits: u8,
    /// The compressed bytes.
    pub(super) held: Held,
    /// The tar bytes before the span, as far as its first member reaches back, with zeros for those
    /// that the span does not refer to; empty where it refers to none.
    pub(super) window: Vec<u8>,
    pub(super) tar_len: u64,
}

impl DeflateSpan {
    pub(super) fn restart(&mut self, offset: u64, bits: u8) {
        self.offset = offset;
        self.bits = bits;
        self.held.clear();
        self.window.clear();
        self.tar_len = 0;
    }
}

/// What comes next in the tar.
pub(super) enum Job {
    Deflate(DeflateSpan),
    /// A range of the blob that needs no window.
    Range {
        tar_len: u64,
        offset: u64,
        len: u64,
        digest: [u8; 32],
        coding: SpanCoding,
    },
    /// Tar bytes for a frame of the copy.
    Copy(Vec<u8>),
}

/// The heap of windows: its end, and what it takes to do without its beginning.
#[derive(Default)]
pub(super) struct WindowHeap {
    /// Bytes that were taken out.
    pub(super) taken: u64,
    /// What follows them.
    pub(super) rest: Vec<u8>,
    hasher: blake3::Hasher,
}

impl WindowHeap {
    /// Where the window is put; 0 for an empty one.
    fn add(&mut self, window: &[u8]) -> u64 {
        if window.is_empty() {
            return 0;
        }
        let offset = self.taken + self.rest.len() as u64;
        self.rest.extend_from_slice(window);
        self.hasher.update(window);
        offset
    }

    /// The bytes that were not taken, where they are at least so many; nothing otherwise.
    pub(super) fn take(&mut self, least: usize) -> Vec<u8> {
        if self.rest.len() < least {
            return Vec::new();
        }
        self.taken += self.rest.len() as u64;
        std::mem::take(&mut self.rest)
    }

    /// BLAKE3 of the whole heap.
    pub(super) fn checksum(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }
}

/// Collects spans in the order of the tar, without gaps.
#[derive(Default)]
pub(super) struct SpanTable {
    pub(super) spans: Vec<Span>,
    pub(super) windows: Returned<WindowHeap>,
    /// Tar bytes that have their span.
    pub(super) covered: u64,
    /// Made at the first window.
    packer: Option<WindowPacker>,
    copy: CopyWriter,
    /// The seekable copy, as far as nobody took it.
    pub(super) copied: Returned<Vec<u8>>,
    /// Spans and frames whose memory can be used again.
    pub(super) spare_spans: Returned<Vec<DeflateSpan>>,
    pub(super) spare_frames: Returned<Vec<Vec<u8>>>,
}

impl Work for SpanTable {
    type Job = Job;
    type Error = CodecError;

    fn run(&mut self, job: Job) -> Result<(), CodecError> {
        match job {
            Job::Deflate(span) => self.deflate(span)?,
            Job::Range { tar_len, offset, len, digest, coding } => self.add(Span {
                tar_offset: self.covered,
                tar_len: narrow(tar_len),
                source: SpanSource::Blob,
                offset,
                len: narrow(len),
                coding,
                window_offset: 0,
                window_len: 0,
                digest,
            }),
            Job::Copy(tar) => self.copy_frame(tar)?,
        }
        Ok(())
    }

    fn weight(job: &Job) -> usize {
        match job {
            Job::Deflate(span) => span.held.len() + span.window.len(),
            Job::Range { .. } => 0,
            Job::Copy(tar) => tar.len(),
        }
    }
}

impl SpanTable {
    fn deflate(&mut self, mut span: DeflateSpan) -> Result<(), CodecError> {
        let packer = match &mut self.packer {
            Some(packer) => packer,
            none => none.insert(WindowPacker::new()?),
        };
        let window = packer.pack(&span.window)?;
        let window_offset = self.windows.lock().add(window);
        let window_len = narrow(window.len() as u64);
        self.add(Span {
            tar_offset: self.covered,
            tar_len: narrow(span.tar_len),
            source: SpanSource::Blob,
            offset: span.offset,
            len: narrow(span.held.len() as u64),
            coding: SpanCoding::Deflate { bits: span.bits },
            window_offset,
            window_len,
            digest: span.held.digest(),
        });
        // Buffers that others read go back at once
        span.held.clear();
        self.spare_spans.lock().push(span);
        Ok(())
    }

    fn copy_frame(&mut self, mut tar: Vec<u8>) -> Result<(), CodecError> {
        let frame = self.copy.frame(&tar, &mut self.copied.lock())?;
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
        tar.clear();
        self.spare_frames.lock().push(tar);
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
