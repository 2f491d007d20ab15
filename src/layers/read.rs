//! File content: inode → pieces of the tar → spans → bytes.

use std::{io, sync::Arc};

use peel_fuse::{FileSource, ReadError};
use peel_index::{Layer, Piece, Slot, Span, SpanSource, Tree};

use super::{Layers, OpenLayer, SpanReadError, cache::SpanError};

impl OpenLayer {
    /// Reads the compressed range of a span.
    pub(super) fn compressed(&self, span: &Span) -> io::Result<Vec<u8>> {
        let source = match span.source {
            SpanSource::Blob => Some(&self.blob),
            SpanSource::Copy => self.copy.as_ref(),
        };
        let missing = || io::Error::other("no seekable copy of the layer");
        source.ok_or_else(missing)?.read_range(span.offset, span.len as usize)
    }

    pub(super) fn failed(
        &self,
        span: &Span,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> SpanReadError {
        SpanReadError {
            layer: self.index.diff_id(),
            slot: self.index.slot(),
            start: span.tar_offset,
            end: span.tar_offset + u64::from(span.tar_len),
            source,
        }
    }

    fn decode(&self, number: u32) -> Result<Vec<u8>, SpanError> {
        let span = self.index.span(number).ok_or("no such span in the index").map_err(plain)?;
        let failed = |error| -> SpanError { Arc::new(self.failed(&span, error)) };
        let compressed = self.compressed(&span).map_err(|e| failed(Box::new(e)))?;
        self.index.decode_span(number, &compressed).map_err(|e| failed(Box::new(e)))
    }
}

fn plain(text: &'static str) -> SpanError {
    Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(text))
}

impl Layers {
    /// Appends the tar bytes `[offset, offset + len)` of a layer.
    fn read_tar(
        &self,
        layer: &OpenLayer,
        mut offset: u64,
        mut len: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), SpanError> {
        let slot = layer.index.slot();
        while len > 0 {
            let outside = || plain("the index points outside the tar");
            let number = layer.index.span_at(offset).ok_or_else(outside)?;
            let span = layer.index.span(number).ok_or_else(outside)?;
            let bytes = self.cache.load((slot, number), || layer.decode(number))?;
            let start = (offset - span.tar_offset) as usize;
            let take = len.min(bytes.len() as u64 - start as u64);
            out.extend_from_slice(bytes.get(start..start + take as usize).ok_or_else(outside)?);
            if take == 0 {
                return Err(outside());
            }
            offset += take;
            len -= take;
        }
        Ok(())
    }
}

impl FileSource for Layers {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.open_tree(slot)
            .inspect_err(|error| tracing::debug!(%slot, %error, "no tree to serve"))
            .ok()
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.open_layer(slot)
            .map(|open| Arc::clone(&open.index))
            .inspect_err(|error| tracing::error!(%slot, %error, "no layer to serve"))
            .ok()
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let open = self.open_layer(layer).map_err(|error| {
            tracing::error!(slot = %layer, %error, "no layer to read");
            ReadError::NoLayer { layer }
        })?;
        let damaged = |error| ReadError::Damaged { layer, source: Box::new(error) };
        let pieces = open.index.pieces(number, offset, u64::from(len));
        for piece in pieces {
            match piece {
                Piece::Zero { len } => out.resize(out.len() + len as usize, 0),
                Piece::Data { tar_offset, len } => {
                    self.read_tar(&open, tar_offset, len, out).map_err(damaged)?;
                }
            }
        }
        Ok(())
    }
}
