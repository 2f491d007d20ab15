//! The seekable copy: zstd frames of tar bytes that the blob itself gives no access to.
//!
//! Where a blob has no place to resume within [`SPAN_MAX`](super::SPAN_MAX) of tar, that stretch is
//! compressed again while it streams by. One frame holds [`COPY_FRAME`](super::COPY_FRAME) bytes of
//! tar (the last of a stretch less) and is a span of its own.

use ::zstd::bulk::Compressor;

use super::CodecError;

/// Fast enough (540 MB/s) not to hold up a pull; what it stores is rare or already zstd.
const LEVEL: i32 = 1;

/// One frame that was written to the copy.
pub(super) struct Frame {
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) digest: [u8; 32],
}

/// Compresses frames.
#[derive(Default)]
pub(super) struct CopyWriter {
    /// Made at the first frame: most layers need none.
    encoder: Option<Compressor<'static>>,
    offset: u64,
}

impl CopyWriter {
    /// Compresses a frame and appends it to `copy`.
    pub(super) fn frame(&mut self, tar: &[u8], copy: &mut Vec<u8>) -> Result<Frame, CodecError> {
        let failed = |error: std::io::Error| CodecError::Codec {
            codec: "zstd encoder",
            what: error.to_string(),
        };
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => none.insert(Compressor::new(LEVEL).map_err(failed)?),
        };
        let frame = encoder.compress(tar).map_err(failed)?;
        let offset = self.offset;
        self.offset += frame.len() as u64;
        copy.extend_from_slice(&frame);
        let digest = *blake3::hash(&frame).as_bytes();
        Ok(Frame { offset, len: frame.len(), digest })
    }
}
