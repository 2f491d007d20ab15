//! A span that is decoded as far as somebody asks, and goes on later.

use ::zstd::bulk::Decompressor;

use super::{
    CodecError, Span, SpanCoding,
    inflate::WINDOW,
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
    /// Room for all of the span. What is past `filled` is of no meaning, as is all of it in a buffer
    /// that was lent: nothing is cleared just to be overwritten.
    tar: Vec<u8>,
    /// Bytes decoded, from the span's start.
    filled: usize,
    rest: Rest,
}

/// What the bytes not yet decoded come from.
enum Rest {
    Deflate {
        members: Box<Members>,
        compressed: Vec<u8>,
    },
    Zstd {
        compressed: Vec<u8>,
    },
    /// Nothing is left to decode; the compressed bytes' buffer waits to be taken.
    Nothing {
        spent: Vec<u8>,
    },
}

impl Default for Rest {
    fn default() -> Self {
        Self::Nothing { spent: Vec::new() }
    }
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
        let mut reader = Self { span: *span, tar: Vec::new(), filled: 0, rest: Rest::default() };
        match span.coding {
            SpanCoding::Plain => {
                reader.filled = compressed.len().min(reader.tar_len());
                reader.tar = compressed;
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

    /// Gives memory to decode to, instead of that which would be allocated: a buffer whose content is
    /// of no use any more. To be called before anything is decoded.
    pub fn lend(&mut self, buffer: Vec<u8>) {
        if self.filled == 0 {
            self.tar = buffer;
        }
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
        if upto <= self.filled {
            return Ok(());
        }
        if self.tar.capacity() < self.tar_len() {
            // Fresh from the kernel in most cases, and so cleared without any work
            self.tar = vec![0; self.tar_len()];
        } else {
            self.tar.resize(self.tar_len(), 0);
        }
        match &mut self.rest {
            Rest::Deflate { members, compressed } => {
                self.filled = members.decode(compressed, &mut self.tar, self.filled, upto);
            }
            Rest::Zstd { compressed } => {
                // A single call: a frame's declared window needs no memory, for the output is the
                // window
                let mut zstd = Decompressor::new().map_err(zstd_failed)?;
                let decoded = zstd.decompress_to_buffer(compressed, self.tar.as_mut_slice());
                self.filled = decoded.unwrap_or(0);
            }
            Rest::Nothing { .. } => {}
        }
        if self.filled < upto {
            return Err(self.short());
        }
        if self.is_complete() {
            let (Rest::Deflate { compressed, .. }
            | Rest::Zstd { compressed }
            | Rest::Nothing { spent: compressed }) = std::mem::take(&mut self.rest);
            self.rest = Rest::Nothing { spent: compressed };
        }
        Ok(())
    }

    /// The tar bytes decoded so far, from the span's start.
    pub fn decoded(&self) -> &[u8] {
        &self.tar[..self.filled]
    }

    /// Length of the whole span's tar in bytes.
    pub fn tar_len(&self) -> usize {
        self.span.tar_len as usize
    }

    /// Whether all of the span is decoded. The decoder's state is gone then.
    pub fn is_complete(&self) -> bool {
        self.filled == self.tar_len()
    }

    /// The buffer of the compressed bytes, once, when nothing is left to decode from it.
    pub fn take_spent(&mut self) -> Option<Vec<u8>> {
        match &mut self.rest {
            Rest::Nothing { spent } if spent.capacity() > 0 => Some(std::mem::take(spent)),
            _ => None,
        }
    }

    /// Bytes of memory that the reader holds: tar, compressed bytes and state.
    pub fn memory(&self) -> usize {
        let rest = match &self.rest {
            Rest::Deflate { members, compressed } => members.memory() + compressed.capacity(),
            Rest::Zstd { compressed } => compressed.capacity(),
            Rest::Nothing { spent } => spent.capacity(),
        };
        OWN + self.tar.capacity() + rest
    }

    /// The tar bytes decoded: the whole span's, once it is complete.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.tar.truncate(self.filled);
        self.tar
    }

    /// The buffers of tar and of compressed bytes, to be used again; either may be empty.
    pub fn into_buffers(self) -> (Vec<u8>, Vec<u8>) {
        let (Rest::Deflate { compressed, .. }
        | Rest::Zstd { compressed }
        | Rest::Nothing { spent: compressed }) = self.rest;
        (self.tar, compressed)
    }

    fn short(&self) -> CodecError {
        CodecError::Short {
            origin: self.span.source,
            offset: self.span.offset,
            expected: self.span.tar_len,
            found: self.filled,
        }
    }
}

impl std::fmt::Debug for SpanReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpanReader")
            .field("span", &self.span)
            .field("decoded", &self.filled)
            .finish_non_exhaustive()
    }
}
