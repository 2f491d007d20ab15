//! A blob that is the tar itself: spans are equal slices of it.

use super::{
    CodecError, SpanCoding, TarSink,
    assembly::{Assembly, Range},
};

#[derive(Default)]
pub(super) struct PlainStream {
    digest: blake3::Hasher,
    len: u64,
    offset: u64,
}

impl PlainStream {
    pub(super) fn push(
        &mut self,
        assembly: &mut Assembly,
        mut blob: &[u8],
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        if blob.is_empty() {
            return Ok(());
        }
        sink.take(blob)?;
        while !blob.is_empty() {
            let room = assembly.limits.target - self.len;
            let (piece, rest) = blob.split_at((blob.len() as u64).min(room) as usize);
            self.digest.update(piece);
            self.len += piece.len() as u64;
            if self.len == assembly.limits.target {
                self.close(assembly)?;
            }
            blob = rest;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        if self.len > 0 { self.close(assembly) } else { Ok(()) }
    }

    fn close(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        let range = Range {
            offset: self.offset,
            len: self.len,
            digest: *self.digest.finalize().as_bytes(),
        };
        assembly.blob_span(self.len, range, SpanCoding::Plain)?;
        self.offset += self.len;
        self.len = 0;
        self.digest.reset();
        Ok(())
    }
}
