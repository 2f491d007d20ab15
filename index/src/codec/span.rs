//! One span: a run of tar bytes that can be decoded on its own, and how.

use std::fmt;

use ::zstd::bulk::Decompressor;

use super::{CodecError, SPAN_MAX, inflate::WINDOW, members::Members};

/// What a span's compressed range is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanSource {
    /// The blob as the registry has it.
    Blob,
    /// The seekable copy of what the blob gives no access to.
    Copy,
}

impl SpanSource {
    /// One byte that stands for the source in an index file.
    pub fn code(self) -> u8 {
        match self {
            Self::Blob => 0,
            Self::Copy => 1,
        }
    }

    /// Undoes [`SpanSource::code`].
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Blob),
            1 => Some(Self::Copy),
            _ => None,
        }
    }
}

impl fmt::Display for SpanSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blob => "blob",
            Self::Copy => "copy",
        })
    }
}

/// How a span's compressed range gives its tar bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanCoding {
    /// The range is the tar.
    Plain,
    /// Raw deflate (RFC 1951), resumed after the window. When it ends, a gzip trailer and the header
    /// of the next member follow within the range.
    Deflate {
        /// Of the first byte, only this many high bits belong to the span (1 to 7); 0 when all do.
        bits: u8,
    },
    /// One or more whole zstd frames, skippable ones among them.
    ZstdFrames,
}

const PLAIN: u8 = 0x00;
const ZSTD_FRAMES: u8 = 0x01;
/// The low three bits are the bits of [`SpanCoding::Deflate`].
const DEFLATE: u8 = 0x10;

impl SpanCoding {
    /// One byte that stands for the coding in an index file.
    pub fn code(self) -> u8 {
        match self {
            Self::Plain => PLAIN,
            Self::ZstdFrames => ZSTD_FRAMES,
            Self::Deflate { bits } => DEFLATE | (bits & 7),
        }
    }

    /// Undoes [`SpanCoding::code`].
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            PLAIN => Some(Self::Plain),
            ZSTD_FRAMES => Some(Self::ZstdFrames),
            _ if code & !7 == DEFLATE => Some(Self::Deflate { bits: code & 7 }),
            _ => None,
        }
    }
}

/// A run of tar bytes that can be decoded on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where the run begins in the tar, in bytes.
    pub tar_offset: u64,
    /// Its length in the tar, in bytes: 1 to [`SPAN_MAX`].
    pub tar_len: u32,
    /// Whether the compressed range lies in the blob or in the seekable copy.
    pub source: SpanSource,
    /// Where the compressed range begins there, in bytes. Ranges of neighbours share a byte where a
    /// boundary lies inside it, and bytes that hold no tar (headers, trailers) may be in no range.
    pub offset: u64,
    /// Length of the compressed range in bytes.
    pub len: u32,
    /// How the range is decoded.
    pub coding: SpanCoding,
    /// Where the span's window begins in the heap of windows, in bytes.
    pub window_offset: u64,
    /// Length of the window as stored, compressed; 0 when the span needs none.
    pub window_len: u32,
    /// blake3 of the compressed range.
    pub digest: [u8; 32],
}

/// Decodes a span: exactly its `tar_len` bytes of tar. As [`SpanDecoder::decode`], for one span.
///
/// # Errors
///
/// As [`SpanDecoder::decode`].
pub fn decode_span(span: &Span, window: &[u8], compressed: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut tar = Vec::new();
    SpanDecoder::default().decode(span, window, compressed, &mut tar)?;
    Ok(tar)
}

/// Decodes spans one after the other, with memory that is allocated once: about 40 KiB for deflate,
/// 100 KiB for zstd.
#[derive(Default)]
pub struct SpanDecoder {
    members: Option<Members>,
    zstd: Option<Decompressor<'static>>,
    window: Vec<u8>,
}

impl SpanDecoder {
    /// Replaces the content of `tar` by a span's `tar_len` bytes.
    ///
    /// `compressed` is the span's range of the blob or copy, and is verified before anything else;
    /// `window` is the span's part of the heap of windows. Neither they nor the span's fields are
    /// trusted: `tar` grows to [`SPAN_MAX`] bytes at most.
    ///
    /// # Errors
    ///
    /// [`CodecError::Digest`] when the bytes are not those that were indexed,
    /// [`CodecError::Length`] when they are too few or too many. [`CodecError::Field`],
    /// [`CodecError::Window`] and [`CodecError::Short`] when the index itself is damaged. `tar` is of
    /// no use then.
    pub fn decode(
        &mut self,
        span: &Span,
        window: &[u8],
        compressed: &[u8],
        tar: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        verify(span, compressed)?;
        let (origin, offset) = (span.source, span.offset);
        tar.resize(span.tar_len as usize, 0);
        let decoded = match span.coding {
            SpanCoding::Plain => {
                let len = compressed.len().min(tar.len());
                tar[..len].copy_from_slice(&compressed[..len]);
                len
            }
            SpanCoding::Deflate { bits } => {
                self.unpack_window(window)?.map_err(|error| CodecError::Window {
                    origin,
                    offset,
                    what: error.to_string(),
                })?;
                let members = match &mut self.members {
                    Some(members) => {
                        members.restart(bits, &self.window, compressed);
                        members
                    }
                    none => none.insert(Members::new(bits, &self.window, compressed)),
                };
                let len = tar.len();
                members.decode(compressed, tar, 0, len)
            }
            // A single call: a frame's declared window needs no memory, for the output is the window
            SpanCoding::ZstdFrames => {
                self.zstd()?.decompress_to_buffer(compressed, tar.as_mut_slice()).unwrap_or(0)
            }
        };
        if decoded != tar.len() {
            let (expected, found) = (span.tar_len, decoded);
            return Err(CodecError::Short { origin, offset, expected, found });
        }
        Ok(())
    }

    fn unpack_window(&mut self, stored: &[u8]) -> Result<std::io::Result<()>, CodecError> {
        self.window.clear();
        if stored.is_empty() {
            return Ok(Ok(()));
        }
        let mut window = std::mem::take(&mut self.window);
        window.reserve_exact(WINDOW);
        let unpacked = self.zstd()?.decompress_to_buffer(stored, &mut window);
        self.window = window;
        Ok(unpacked.map(|_| ()))
    }

    fn zstd(&mut self) -> Result<&mut Decompressor<'static>, CodecError> {
        match &mut self.zstd {
            Some(decoder) => Ok(decoder),
            none => Ok(none.insert(Decompressor::new().map_err(zstd_failed)?)),
        }
    }
}

/// Checks a span's fields, and that `compressed` are the bytes that were indexed.
pub(super) fn verify(span: &Span, compressed: &[u8]) -> Result<(), CodecError> {
    let (origin, offset) = (span.source, span.offset);
    let field = |field, found, max| CodecError::Field { origin, offset, field, found, max };
    if span.tar_len > SPAN_MAX {
        return Err(field("tar_len", span.tar_len.into(), SPAN_MAX.into()));
    }
    if compressed.len() != span.len as usize {
        let (expected, found) = (span.len, compressed.len());
        return Err(CodecError::Length { origin, offset, expected, found });
    }
    let found = *blake3::hash(compressed).as_bytes();
    if found != span.digest {
        return Err(CodecError::Digest { origin, offset, expected: span.digest, found });
    }
    match span.coding {
        SpanCoding::Deflate { bits } if bits > 7 => Err(field("bits", bits.into(), 7)),
        _ => Ok(()),
    }
}

pub(super) fn zstd_failed(error: std::io::Error) -> CodecError {
    CodecError::Codec { codec: "zstd decoder", what: error.to_string() }
}
