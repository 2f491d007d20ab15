//! Sparse windows: only those of the 32 KiB before a checkpoint that a resumed decoder looks at.
//!
//! A match reaches 32 KiB back, so only the first 32 KiB of a span's output can refer to the window,
//! and they use a fraction of it. Which bytes these are is recorded while the blob is decoded
//! (`inflate/past.rs`). All others are zeroed, and what remains is compressed with zstd: about six
//! times less than whole windows.
//!
//! The window keeps its length, for matches count from its end.

use ::zstd::{bulk::Compressor, zstd_safe::compress_bound};

use super::{CodecError, inflate::WINDOW};

/// Levels above gain next to nothing on bytes that are mostly zero: 3 takes 1 % off the windows, and
/// twice the time.
const LEVEL: i32 = 1;

pub(super) struct WindowPacker {
    encoder: Compressor<'static>,
    packed: Vec<u8>,
}

impl WindowPacker {
    pub(super) fn new() -> Result<Self, CodecError> {
        let encoder = Compressor::new(LEVEL).map_err(encoder_failed)?;
        Ok(Self { encoder, packed: Vec::with_capacity(compress_bound(WINDOW)) })
    }

    /// What to store of a window; nothing of an empty one.
    pub(super) fn pack(&mut self, sparse: &[u8]) -> Result<&[u8], CodecError> {
        self.packed.clear();
        if !sparse.is_empty() {
            self.encoder.compress_to_buffer(sparse, &mut self.packed).map_err(encoder_failed)?;
        }
        Ok(&self.packed)
    }
}

fn encoder_failed(error: std::io::Error) -> CodecError {
    CodecError::Codec { codec: "zstd encoder", what: error.to_string() }
}
