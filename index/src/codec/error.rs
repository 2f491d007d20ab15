//! What can go wrong between a compressed blob and its tar.

use std::{error::Error, fmt};

use super::{Compression, SpanSource};

/// Why a blob, or one span of it, does not give its tar bytes.
///
/// Offsets are in bytes from the start of the blob (or of the seekable copy, where a source says so).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The gzip header of the blob's first member is none that can be read.
    #[error("gzip header at blob offset {offset}: {what}")]
    GzipHeader {
        /// Where the member begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The deflate data breaks RFC 1951.
    #[error("corrupt deflate data near blob offset {offset}")]
    Deflate {
        /// How far the blob was read when it showed.
        offset: u64,
    },
    /// The zstd data breaks RFC 8878, or uses what is not supported (dictionaries).
    #[error("zstd data near blob offset {offset}: {what}")]
    Zstd {
        /// How far the blob was read when it showed.
        offset: u64,
        /// The decoder's own words.
        what: String,
    },
    /// A zstd frame asks for more memory than is granted.
    #[error("zstd frame near blob offset {offset} needs a window of more than {max} bytes")]
    ZstdWindow {
        /// How far the blob was read when it showed.
        offset: u64,
        /// The largest window that is accepted, in bytes.
        max: u64,
    },
    /// The blob ends inside its compressed data.
    #[error("{compression} data is cut off at blob offset {offset}")]
    Truncated {
        /// What the blob is compressed with.
        compression: Compression,
        /// The length of the blob.
        offset: u64,
    },
    /// The compressed range is not the one that was indexed.
    #[error(
        "span at {origin} offset {offset}: blake3 is {}, expected {}",
        Hex(found),
        Hex(expected)
    )]
    Digest {
        /// What the range was read from.
        origin: SpanSource,
        /// Where the range begins.
        offset: u64,
        /// The digest in the index.
        expected: [u8; 32],
        /// The digest of the bytes given.
        found: [u8; 32],
    },
    /// Fewer or more compressed bytes were given than the span has.
    #[error("span at {origin} offset {offset}: got {found} compressed bytes, expected {expected}")]
    Length {
        /// What the range was read from.
        origin: SpanSource,
        /// Where the range begins.
        offset: u64,
        /// The span's length.
        expected: u32,
        /// The number of bytes given.
        found: usize,
    },
    /// The span decodes to less than the index says, or not at all.
    #[error("span at {origin} offset {offset}: decodes to {found} bytes, expected {expected}")]
    Short {
        /// What the range was read from.
        origin: SpanSource,
        /// Where the range begins.
        offset: u64,
        /// The span's length in the tar.
        expected: u32,
        /// Bytes decoded before the data ended or broke.
        found: usize,
    },
    /// The span's window does not decompress to at most 32 KiB.
    #[error("span at {origin} offset {offset}: its window is damaged: {what}")]
    Window {
        /// What the span is read from.
        origin: SpanSource,
        /// Where the span begins.
        offset: u64,
        /// The decoder's own words.
        what: String,
    },
    /// The span's fields are impossible; the index is damaged.
    #[error("span at {origin} offset {offset}: {field} is {found}, at most {max} is possible")]
    Field {
        /// What the span is read from.
        origin: SpanSource,
        /// Where the span begins.
        offset: u64,
        /// The field's name.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The largest value that makes sense.
        max: u64,
    },
    /// A codec could not be set up or could not write; in practice it is out of memory.
    #[error("{codec} failed: {what}")]
    Codec {
        /// Which one.
        codec: &'static str,
        /// Its own words.
        what: String,
    },
    /// Whoever takes the tar bytes refused them.
    #[error("{0}")]
    Sink(#[source] Box<dyn Error + Send + Sync>),
    /// The decoder was used on after it had failed.
    #[error("the decoder has failed before and cannot go on")]
    Spent,
}

impl CodecError {
    /// Wraps an error of whoever takes the tar bytes.
    pub fn sink(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Sink(error.into())
    }
}

struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
