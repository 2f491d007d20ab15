//! A span that is decoded as far as somebody asks, and goes on later.

use ::zstd::bulk::Decompressor;

use super::{
    CodecError, Span, SpanCoding,
    inflate::{SLACK, WINDOW},
    members::Members,
    span::{verify, zstd_failed},
};

/// What a reader takes besides its buffers, in bytes.
const OWN: usize = size_of::<SpanReader>();

/// A span being decoded: may stop and go on.
///
/// Reading a few KiB in the middle of a span takes half the time of decoding all of it, and whoever
/// reads on does not decode anything twice.
pub struct SpanReader {
    span: Span,
    /// What is decoded, from the span's start.
    tar: Vec<u8>,
    rest: Rest,
}

/// What the bytes not yet decoded come from.
enum Rest {
    Deflate { members: Box<Members>, compressed: Vec<u8> },
    Zstd { compressed: Vec<u8> },
    Nothing,
}

impl SpanReader {
    /// Verifies `compressed`, which must be exactly the span's range of the blob or copy, and
    /// unpacks the window; decodes nothing of the span.
    ///
    /// # Errors
    ///
    /// As [`SpanDecoder::decode`](super::SpanDecoder::decode).
    pub(crate) fn new(span: &Span, window: &[u8], compressed: Vec<u8>) -> Result<Self, CodecError> {
        verify(span, &compressed)?;
        let (origin, offset) = (span.source, span.offset);
        let mut reader = Self { span: *span, tar: Vec::new(), rest: Rest::Nothing };
        match span.coding {
            SpanCoding::Plain => {
                reader.tar = compressed;
                reader.tar.truncate(reader.tar_len());
                if !reader.is_complete() {
                    return Err(reader.short());
                }
            }
            SpanCoding::ZstdFrames => reader.rest = Rest::Zstd { compressed },
            SpanCoding::Deflate { bits } => {
                let mut unpacked = Vec::new();
                if !window.is_empty() {
                    unpacked.reserve_exact(WINDOW);
                    let what = Decompressor::new()
                        .map_err(zstd_failed)?
                        .decompress_to_buffer(window, &mut unpacked);
                    what.map_err(|error| CodecError::Window {
                        origin,
                        offset,
                        what: error.to_string(),
                    })?;
                }
                let members = Box::new(Members::new(bits, &unpacked, &compressed));
                reader.rest = Rest::Deflate { members, compressed };
            }
        }
        Ok(reader)
    }

    /// Decodes on until at least the first `upto` bytes of the span's tar are there, or all of them
    /// where it has fewer. May decode more: zstd does a whole span at once.
    ///
    /// # Errors
    ///
    /// [`CodecError::Short`] when the span does not decode to what the index says; again whenever
    /// it is called after that.
    pub fn advance(&mut self, upto: usize) -> Result<(), CodecError> {
        let upto = upto.min(self.tar_len());
        let filled = self.tar.len();
        if upto <= filled {
            return Ok(());
        }
        match &mut self.rest {
            Rest::Deflate { members, compressed } => {
                let room = (upto + SLACK).min(self.span.tar_len as usize);
                self.tar.reserve_exact(room - filled);
                self.tar.resize(room, 0);
                let decoded = members.decode(compressed, &mut self.tar, filled, upto);
                self.tar.truncate(decoded);
            }
            Rest::Zstd { compressed } => {
                let mut tar = Vec::with_capacity(self.span.tar_len as usize);
                // A single call: a frame's declared window needs no memory, for the output is the
                // window
                let mut zstd = Decompressor::new().map_err(zstd_failed)?;
                if zstd.decompress_to_buffer(compressed, &mut tar).is_ok() {
                    self.tar = tar;
                }
            }
            Rest::Nothing => {}
        }
        if self.tar.len() < upto {
            return Err(self.short());
        }
        if self.is_complete() {
            self.rest = Rest::Nothing;
        }
        Ok(())
    }

    /// The tar bytes decoded so far, from the span's start.
    pub fn decoded(&self) -> &[u8] {
        &self.tar
    }

    /// Length of the whole span's tar in bytes.
    pub fn tar_len(&self) -> usize {
        self.span.tar_len as usize
    }

    /// Whether all of the span is decoded. The compressed bytes and the decoder's state are gone
    /// then.
    pub fn is_complete(&self) -> bool {
        self.tar.len() == self.tar_len()
    }

    /// Bytes of memory that the reader holds: tar, compressed bytes and state.
    pub fn memory(&self) -> usize {
        let rest = match &self.rest {
            Rest::Deflate { members, compressed } => members.memory() + compressed.capacity(),
            Rest::Zstd { compressed } => compressed.capacity(),
            Rest::Nothing => 0,
        };
        OWN + self.tar.capacity() + rest
    }

    /// The tar bytes decoded: the whole span's, once it is complete.
    pub fn into_bytes(self) -> Vec<u8> {
        self.tar
    }

    fn short(&self) -> CodecError {
        CodecError::Short {
            origin: self.span.source,
            offset: self.span.offset,
            expected: self.span.tar_len,
            found: self.tar.len(),
        }
    }
}

impl std::fmt::Debug for SpanReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpanReader")
            .field("span", &self.span)
            .field("decoded", &self.tar.len())
            .finish_non_exhaustive()
    }
}
