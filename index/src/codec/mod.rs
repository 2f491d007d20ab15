//! Between a compressed layer blob and its tar: one pass that decodes the blob and finds out how to
//! get at any part of the tar later, and the way back from there.
//!
//! # Spans
//!
//! The tar is divided into *spans* without gaps, each of which is decoded on its own from a range of
//! the blob. Where a span is cut is a pure function of the blob: no split of the pushes and no buffer
//! size has a say, so two builds of an index agree.
//!
//! | blob | a span may end | coding |
//! | --- | --- | --- |
//! | tar | anywhere | `Plain`, each of `SPAN_TARGET` |
//! | gzip | after any deflate block (a *checkpoint*), at the end of a member | `Deflate` |
//! | zstd | at the end of a frame | `ZstdFrames` |
//!
//! A span is cut at the first place where it may end once it has `SPAN_TARGET` of tar, or
//! `HELD_TARGET` of compressed bytes: blocks, members and frames without content must not pile up.
//! What has no such place within `SPAN_MAX` of tar goes to the *seekable copy*, compressed again as
//! frames of `COPY_FRAME` of tar ([`SpanSource::Copy`]): for gzip, from the last checkpoint up to the
//! next; for zstd, the whole frame, which for most images is the whole layer.
//!
//! Blocks, members and skippable frames that lead to no tar bytes are in no span, unless others
//! with content stand before and after them.
//!
//! # Windows
//!
//! Deflate refers to up to 32 KiB of output before the checkpoint. The bytes that a span does refer
//! to are recorded by the decoder (`inflate/`) and stored in the heap of windows (see `window.rs`);
//! they come from the tar and are compressed on their own. Zstd frames and members of gzip begin
//! with nothing.
//!
//! # What is verified
//!
//! While decoding: the structure of gzip, deflate and zstd, and the content checksums of zstd frames
//! that have one. Not gzip's CRC32 and length: the diffID, which the caller compares over all of the
//! tar, decides. Bytes after the last gzip member that are no gzip header are ignored, like gzip(1)
//! does; after zstd frames they are an error, as they are for zstd(1). While reading: blake3 over a
//! span's compressed range, before it is looked at.
//!
//! # Memory
//!
//! Bounded whatever the blob: the compressed bytes of one span, a few buffers of 128 KiB, and for
//! zstd the frame's window of at most 128 MiB and `SPAN_MAX` of tar. Spans grow by about 90 KiB per GiB
//! of tar. So do windows by up to 2 MiB, and the copy, where nobody takes them out.

mod assembly;
mod copy;
mod error;
mod gzip;
mod header;
mod held;
mod inflate;
mod members;
mod output;
mod plain;
mod reader;
mod span;
mod table;
mod window;
mod zstd;

#[cfg(test)]
mod tests;

use std::{fmt, ops::Range};

use bytes::Bytes;

use crate::stage::Helper;

use self::{assembly::Assembly, gzip::GzipStream, plain::PlainStream, zstd::ZstdStream};
pub use self::{
    error::CodecError,
    reader::SpanReader,
    span::{Span, SpanCoding, SpanDecoder, SpanSource, decode_span},
};

/// Tar bytes after which a span is cut at the next opportunity. A 4 KiB read costs half a
/// millisecond then; half as much would double the windows, twice as much the time.
pub const SPAN_TARGET: u32 = 1 << 20;

/// Most tar bytes of a span; what cannot be cut below goes to the seekable copy.
pub const SPAN_MAX: u32 = 4 << 20;

/// Tar bytes of a frame of the seekable copy: 145 us to decode.
const COPY_FRAME: usize = 256 << 10;

/// Compressed bytes after which a span is cut at the next opportunity. Above what SPAN_TARGET of
/// incompressible tar takes, so that only compressed bytes without content make a difference.
const HELD_TARGET: usize = 2 << 20;

/// Most compressed bytes of a zstd frame within a span. Above what SPAN_MAX of incompressible tar
/// takes.
const HELD_MAX: usize = 8 << 20;

/// Takes tar bytes, in order.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<(), CodecError> + 'a;

/// Takes tar bytes, in order, and whole buffers where that spares a copy.
pub(crate) trait TarSink {
    /// Takes bytes that stay where they are.
    fn take(&mut self, tar: &[u8]) -> Result<(), CodecError>;

    /// Whether [`Self::take`] would have to copy: buffers are better.
    fn takes_buffers(&self) -> bool;

    /// A buffer of `len` bytes to decode to, in exchange for one that [`Self::give`] takes. `None`
    /// where it does not.
    fn exchange(&mut self, len: usize) -> Option<Vec<u8>>;

    /// Takes a buffer, of which `tar` is the part that comes next.
    fn give(&mut self, buffer: Vec<u8>, tar: Range<usize>) -> Result<(), CodecError>;
}

struct Lend<'a, 'b>(&'a mut Sink<'b>);

impl TarSink for Lend<'_, '_> {
    fn take(&mut self, tar: &[u8]) -> Result<(), CodecError> {
        (self.0)(tar)
    }

    fn takes_buffers(&self) -> bool {
        false
    }

    fn exchange(&mut self, _len: usize) -> Option<Vec<u8>> {
        None
    }

    fn give(&mut self, buffer: Vec<u8>, tar: Range<usize>) -> Result<(), CodecError> {
        self.take(&buffer[tar])
    }
}

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: the blob is the tar.
    None,
    /// gzip (RFC 1952), of any number of members.
    Gzip,
    /// Zstandard (RFC 8878), of any number of frames.
    Zstd,
}

/// Bytes that [`Compression::detect`] needs to see.
const DETECT: usize = 4;

impl Compression {
    /// Tells the compression by the first bytes of a blob; four of them are enough.
    pub fn detect(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before it
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// One byte that stands for the compression in an index file.
    pub fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Zstd => 2,
        }
    }

    /// Undoes [`Compression::code`].
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// What a whole blob decodes to, besides the tar bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// How the blob is compressed.
    pub compression: Compression,
    /// Covers the tar without gaps, in order.
    pub spans: Vec<Span>,
    /// The end of the heap of windows that the spans refer to: what [`StreamDecoder::take_windows`]
    /// has not handed out. Mostly that is all of it.
    pub windows: Vec<u8>,
    /// Bytes of the heap that it has handed out.
    pub windows_taken: u64,
    /// BLAKE3 of the whole heap.
    pub windows_checksum: [u8; 32],
    /// Length of the tar in bytes.
    pub tar_len: u64,
    /// The end of the seekable copy: what [`StreamDecoder::take_copy`] has not handed out yet.
    pub copy: Vec<u8>,
}

enum Stream {
    /// The first bytes, too few to tell.
    Unknown(Vec<u8>),
    Plain(Box<PlainStream>),
    Gzip(Box<GzipStream>),
    Zstd(Box<ZstdStream>),
}

/// Decodes a blob that arrives in pieces, and finds its spans.
pub struct StreamDecoder {
    stream: Stream,
    assembly: Assembly,
    failed: bool,
}

impl Default for StreamDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamDecoder {
    /// A decoder that tells the compression from the first bytes.
    pub fn new() -> Self {
        Self { stream: Stream::Unknown(Vec::new()), assembly: Assembly::default(), failed: false }
    }

    /// Takes the next bytes of the blob, in any split; hands tar bytes to `sink`, in order.
    ///
    /// # Errors
    ///
    /// [`CodecError`] when the blob is no valid gzip or zstd stream, and whatever `sink` returns.
    /// The decoder cannot be used after that.
    pub fn push(&mut self, blob: &[u8], sink: &mut Sink<'_>) -> Result<(), CodecError> {
        self.push_to(blob, &mut Lend(sink))
    }

    /// As [`Self::push`]; the end of what is decoded may come in a later call.
    pub(crate) fn push_to(
        &mut self,
        blob: &[u8],
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        self.guard(|decoder| decoder.advance(blob, None, false, sink))
    }

    /// The same for bytes that others read as well; they may be kept for a while.
    pub(crate) fn push_shared(
        &mut self,
        blob: &Bytes,
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        self.guard(|decoder| decoder.advance(blob, Some(blob), false, sink))
    }

    /// Shares with a helper what the decoding itself need not wait for (digests, windows, the copy)
    /// from here on. The result is the same.
    pub(crate) fn share(&mut self, helper: &Helper) {
        self.assembly.share(helper);
    }

    /// Bytes to append to the seekable copy, written since the last call; empty for most layers.
    /// They stay in memory until they are taken.
    pub fn take_copy(&mut self) -> Vec<u8> {
        self.assembly.take_copy()
    }

    /// The next bytes of the heap of windows, where there are many; empty for most layers
    /// below 300 MB. They stay in memory until they are taken.
    pub fn take_windows(&mut self) -> Vec<u8> {
        self.assembly.take_windows()
    }

    /// The end of the blob.
    ///
    /// # Errors
    ///
    /// [`CodecError::Truncated`] when compressed data is incomplete.
    pub fn finish(self, sink: &mut Sink<'_>) -> Result<Decoded, CodecError> {
        self.finish_to(&mut Lend(sink))
    }

    /// As [`Self::finish`].
    pub(crate) fn finish_to(mut self, sink: &mut dyn TarSink) -> Result<Decoded, CodecError> {
        self.guard(|decoder| decoder.advance(&[], None, true, sink))?;
        let compression = match &mut self.stream {
            Stream::Unknown(_) => Compression::None,
            Stream::Plain(stream) => {
                stream.finish(&mut self.assembly)?;
                Compression::None
            }
            Stream::Gzip(stream) => {
                stream.finish(&mut self.assembly, sink)?;
                Compression::Gzip
            }
            Stream::Zstd(stream) => {
                stream.finish(&mut self.assembly)?;
                Compression::Zstd
            }
        };
        self.assembly.finish(compression)
    }

    fn guard(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), CodecError>,
    ) -> Result<(), CodecError> {
        if self.failed {
            return Err(CodecError::Spent);
        }
        let result = work(self);
        self.failed = result.is_err();
        result
    }

    fn advance(
        &mut self,
        blob: &[u8],
        shared: Option<&Bytes>,
        end: bool,
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        let assembly = &mut self.assembly;
        match &mut self.stream {
            Stream::Unknown(first) => {
                let (begin, rest) = blob.split_at(blob.len().min(DETECT - first.len()));
                first.extend_from_slice(begin);
                if first.len() == DETECT || (end && !first.is_empty()) {
                    let first = std::mem::take(first);
                    self.stream = match Compression::detect(&first) {
                        Compression::None => Stream::Plain(Box::default()),
                        Compression::Gzip => Stream::Gzip(Box::default()),
                        Compression::Zstd => Stream::Zstd(Box::new(ZstdStream::new()?)),
                    };
                    self.advance(&first, None, end, sink)?;
                    self.advance(rest, shared, end, sink)?;
                }
                Ok(())
            }
            Stream::Plain(stream) => stream.push(assembly, blob, sink),
            Stream::Gzip(stream) => stream.push(assembly, blob, shared, sink),
            Stream::Zstd(stream) => stream.push(assembly, blob, sink),
        }
    }
}
