//! Sparse windows: only those of the 32 KiB before a checkpoint that a resumed decoder looks at.
//!
//! A match reaches 32 KiB back, so only the first 32 KiB of a span's output can refer to the window,
//! and they use a fraction of it. Which bytes these are shows when the span's start is decoded
//! again with windows that are wrong in a known way: deflate moves bytes without looking at them, so
//! an output byte that stems from window byte `i` differs from the true one by exactly what byte `i`
//! differs. Two marks of eight bits name `i`: the first, never zero, is its remainder by 255 plus
//! one, the second the quotient. All other window bytes are zeroed, and what remains is compressed
//! with zstd: about six times less than whole windows.
//!
//! The window keeps its length, for matches count from its end.

use ::zstd::{bulk::Compressor, zstd_safe::compress_bound};

use super::{
    CodecError,
    zlib::{Inflate, Status, Stop, WINDOW},
};

/// Levels above gain nothing on bytes that are mostly zero.
const LEVEL: i32 = 3;

const RADIX: usize = 255;

/// The start of a span, as far as its window matters.
pub(super) struct SpanStart<'a> {
    /// Tar bytes before the span, at most [`WINDOW`].
    pub(super) window: &'a [u8],
    /// Unused high bits of the first compressed byte; 0 when it is whole.
    pub(super) bits: u8,
    pub(super) compressed: &'a [u8],
    /// The span's first tar bytes, [`WINDOW`] of them or all.
    pub(super) tar: &'a [u8],
}

pub(super) struct WindowPacker {
    inflate: Inflate,
    encoder: Compressor<'static>,
    marked: Vec<u8>,
    sparse: Vec<u8>,
    remainders: Vec<u8>,
    quotients: Vec<u8>,
    packed: Vec<u8>,
}

impl WindowPacker {
    pub(super) fn new() -> Result<Self, CodecError> {
        Ok(Self {
            inflate: Inflate::new()?,
            encoder: Compressor::new(LEVEL).map_err(encoder_failed)?,
            marked: Vec::with_capacity(WINDOW),
            sparse: Vec::with_capacity(WINDOW),
            remainders: vec![0; WINDOW],
            quotients: vec![0; WINDOW],
            packed: Vec::with_capacity(compress_bound(WINDOW)),
        })
    }

    /// The compressed window to store for a span; empty when the span refers to none of it.
    pub(super) fn pack(&mut self, start: &SpanStart<'_>) -> Result<&[u8], CodecError> {
        if start.window.is_empty() {
            return Ok(&[]);
        }
        let len = start.tar.len().min(WINDOW);
        self.mark(start.window, |i| (i % RADIX) as u8 + 1);
        let len = decode(&mut self.inflate, start, &self.marked, &mut self.remainders[..len]);
        let differ = |(tar, remainder): (&u8, &u8)| tar != remainder;
        let Some(last) = start.tar.iter().zip(&self.remainders[..len]).rposition(differ) else {
            return Ok(&[]);
        };
        self.mark(start.window, |i| (i / RADIX) as u8);
        let len = decode(&mut self.inflate, start, &self.marked, &mut self.quotients[..=last]);

        self.sparse.clear();
        self.sparse.resize(start.window.len(), 0);
        let marks = self.remainders[..len].iter().zip(&self.quotients[..len]);
        for (&tar, (&remainder, &quotient)) in start.tar.iter().zip(marks) {
            if tar != remainder {
                let i = usize::from((tar ^ remainder) - 1) + RADIX * usize::from(tar ^ quotient);
                if let (Some(slot), Some(&byte)) = (self.sparse.get_mut(i), start.window.get(i)) {
                    *slot = byte;
                }
            }
        }
        self.packed.clear();
        self.encoder
            .compress_to_buffer(&self.sparse[..], &mut self.packed)
            .map_err(encoder_failed)?;
        Ok(&self.packed)
    }

    fn mark(&mut self, window: &[u8], mark: impl Fn(usize) -> u8) {
        self.marked.clear();
        self.marked.extend(window.iter().enumerate().map(|(i, byte)| byte ^ mark(i)));
    }
}

/// Decodes the start of a span after a given window, up to the end of `output` or of the gzip
/// member (the next one does not see the window). Returns the number of bytes decoded.
fn decode(inflate: &mut Inflate, start: &SpanStart<'_>, window: &[u8], output: &mut [u8]) -> usize {
    let mut input = inflate.resume(start.compressed, start.bits, window);
    let mut filled = 0;
    while filled < output.len() {
        let step = inflate.run(input, &mut output[filled..], Stop::Never);
        filled += step.produced;
        input = &input[step.consumed..];
        let stuck = step.consumed == 0 && step.produced == 0;
        if step.status != Status::More || stuck {
            break;
        }
    }
    filled
}

fn encoder_failed(error: std::io::Error) -> CodecError {
    CodecError::Codec { codec: "zstd encoder", what: error.to_string() }
}
