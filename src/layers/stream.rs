//! The uncompressed tar of a layer again, for export and for differs.

use std::{
    io::{self, Read},
    ops::Range,
    sync::Arc,
};

use peel_index::{Digest, TarStream};

use super::{Layers, LayersError, OpenLayer};

/// Reads the tar of a layer from start to end, one span at a time and past the span cache.
///
/// Every compressed range is verified before it is decoded; a range that is damaged or cannot be
/// read is an error that names layer and offset.
pub struct LayerTar {
    open: Arc<OpenLayer>,
    stream: TarStream,
    compressed: Vec<u8>,
    /// What is left to read of the stream's last span.
    rest: Range<usize>,
}

impl Layers {
    /// The uncompressed tar of a layer, byte for byte: its digest is the diffID. `None` where the
    /// layer was never indexed.
    ///
    /// # Errors
    /// Where its index is damaged or gone, or the blob is.
    pub fn tar(&self, diff_id: &Digest) -> Result<Option<LayerTar>, LayersError> {
        let slot = self.tables().layers.get(diff_id).copied();
        slot.map(|slot| Ok(LayerTar::new(self.open_layer(slot)?))).transpose()
    }
}

impl LayerTar {
    fn new(open: Arc<OpenLayer>) -> Self {
        let stream = TarStream::new(Arc::clone(&open.index));
        Self { open, stream, compressed: Vec::new(), rest: 0..0 }
    }

    /// Length of the whole tar in bytes.
    pub fn tar_len(&self) -> u64 {
        self.stream.layer().tar_len()
    }

    /// Reads the next span; gives whether there was one.
    fn next_span(&mut self) -> io::Result<bool> {
        let wanted = self.stream.wanted();
        self.open.map.check().map_err(io::Error::other)?;
        let Some(span) = wanted else { return Ok(false) };
        let failed = |error| io::Error::other(self.open.failed(&span, error));
        let compressed = &mut self.compressed;
        self.open.compressed(&span, compressed).map_err(|error| failed(Box::new(error)))?;
        let tar = self.stream.push(compressed).map_err(|error| failed(Box::new(error)))?;
        self.rest = 0..tar.len();
        Ok(true)
    }
}

impl Read for LayerTar {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !out.is_empty() {
            if !self.next_span()? {
                return Ok(0);
            }
        }
        let len = self.rest.len().min(out.len());
        out[..len].copy_from_slice(&self.stream.tar()[self.rest.start..][..len]);
        self.rest.start += len;
        Ok(len)
    }
}
