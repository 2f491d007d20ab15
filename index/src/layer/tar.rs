//! The uncompressed tar of a layer again, byte for byte: its digest is the diffID.

use std::sync::Arc;

use super::Layer;
use crate::codec::{CodecError, Span, SpanDecoder};

/// Gives the tar of a layer, span by span: says which compressed range it wants next, takes it, and
/// gives the tar bytes. Holds one span, so 4 MiB at most.
///
/// ```no_run
/// # fn all(
/// #     layer: std::sync::Arc<peel_index::Layer>,
/// #     read: impl Fn(&peel_index::Span) -> Vec<u8>,
/// # ) -> Result<(), peel_index::CodecError> {
/// let mut stream = peel_index::TarStream::new(layer);
/// while let Some(span) = stream.wanted() {
///     let tar = stream.push(&read(&span))?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct TarStream {
    layer: Arc<Layer>,
    next: u32,
    decoder: SpanDecoder,
    tar: Vec<u8>,
}

impl TarStream {
    /// A stream at the start of the tar.
    pub fn new(layer: Arc<Layer>) -> Self {
        Self { layer, next: 0, decoder: SpanDecoder::default(), tar: Vec::new() }
    }

    /// The layer whose tar it is.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.layer
    }

    /// The span whose compressed range comes next: bytes `offset..offset + len` of its source.
    /// `None` at the end of the tar.
    pub fn wanted(&self) -> Option<Span> {
        self.layer.span(self.next)
    }

    /// The tar bytes that [`Self::push`] gave last; of no use after an error.
    pub fn tar(&self) -> &[u8] {
        &self.tar
    }

    /// Takes exactly the compressed range of the span wanted, verifies it, gives its tar bytes and
    /// goes on to the next one.
    ///
    /// # Errors
    /// As [`SpanDecoder::decode`], and at the end of the tar. The span stays wanted: right bytes can
    /// follow wrong ones.
    pub fn push(&mut self, compressed: &[u8]) -> Result<&[u8], CodecError> {
        let span = self.layer.known_span(self.next)?;
        let window = self.layer.window(&span);
        self.decoder.decode(&span, window, compressed, &mut self.tar)?;
        self.next += 1;
        Ok(&self.tar)
    }
}

impl std::fmt::Debug for TarStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarStream")
            .field("layer", &self.layer)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
