//! One span: a run of tar bytes that can be decoded on its own, and how.

use std::fmt;

use super::{CodecError, SPAN_MAX, members, window, zlib::Inflate};

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

/// Decodes a span: exactly its `tar_len` bytes of tar.
///
/// `compressed` is the span's range of the blob or copy, and is verified before anything else;
/// `window` is the span's part of the heap of windows. Neither they nor the span's fields are
/// trusted: at most [`SPAN_MAX`] bytes are allocated for the result.
///
/// # Errors
///
/// [`CodecError::Digest`] when the bytes are not those that were indexed, [`CodecError::Length`] when
/// they are too few or too many. [`CodecError::Field`], [`CodecError::Window`] and
/// [`CodecError::Short`] when the index itself is damaged.
pub fn decode_span(span: &Span, window: &[u8], compressed: &[u8]) -> Result<Vec<u8>, CodecError> {
    let (origin, offset) = (span.source, span.offset);
    if span.tar_len > SPAN_MAX {
        let (found, max) = (u64::from(span.tar_len), u64::from(SPAN_MAX));
        return Err(CodecError::Field { origin, offset, field: "tar_len", found, max });
    }
    if compressed.len() != span.len as usize {
        let (expected, found) = (span.len, compressed.len());
        return Err(CodecError::Length { origin, offset, expected, found });
    }
    let found = *blake3::hash(compressed).as_bytes();
    if found != span.digest {
        return Err(CodecError::Digest { origin, offset, expected: span.digest, found });
    }

    let mut tar = vec![0; span.tar_len as usize];
    let decoded = match span.coding {
        SpanCoding::Plain => {
            let len = compressed.len().min(tar.len());
            tar[..len].copy_from_slice(&compressed[..len]);
            len
        }
        SpanCoding::Deflate { bits } => {
            if bits > 7 {
                let found = u64::from(bits);
                return Err(CodecError::Field { origin, offset, field: "bits", found, max: 7 });
            }
            let window = window::unpack(window).map_err(|error| CodecError::Window {
                origin,
                offset,
                what: error.to_string(),
            })?;
            members::decode(&mut Inflate::new()?, compressed, bits, &window, &mut tar)
        }
        // A single call: a frame's declared window needs no memory, for the output is the window
        SpanCoding::ZstdFrames => {
            let mut decoder = ::zstd::bulk::Decompressor::new().map_err(zstd_failed)?;
            decoder.decompress_to_buffer(compressed, tar.as_mut_slice()).unwrap_or(0)
        }
    };
    if decoded != tar.len() {
        return Err(CodecError::Short { origin, offset, expected: span.tar_len, found: decoded });
    }
    Ok(tar)
}

fn zstd_failed(error: std::io::Error) -> CodecError {
    CodecError::Codec { codec: "zstd decoder", what: error.to_string() }
}
