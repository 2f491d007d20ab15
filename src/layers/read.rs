//! File content: inode → pieces of the tar → spans → bytes.

use std::{
    collections::HashSet,
    error::Error as StdError,
    io,
    ops::Range,
    sync::{Arc, MutexGuard, PoisonError},
};

use peel_fuse::{Ahead, FileSource, ReadError, Sink, Spare};
use peel_index::{Layer, Piece, Slot, Span, SpanCoding, SpanReader, SpanSource, Tree};

use super::{
    BlobSource, Layers, OpenLayer, SpanReadError,
    cache::{AheadExtent, Cost, Decoder, Origin, Room, SpanError},
    map::losses,
};

/// Bytes decoded past what a read needs. Whoever reads a bit of a span often reads the next bit, and
/// going on costs a look-up; 16 KiB take 15 us.
pub(super) const MARGIN: u64 = 16 << 10;

/// Compressed bytes that the kernel is told of before they are read ahead: some four spans.
const TOLD: u64 = 2 << 20;

/// Spans decoded ahead of a reader in order, and not asked for, take at most one part in so many of
/// the span cache.
const AHEAD_SHARE: u64 = 4;

/// What a decoder takes besides its buffers, in bytes; more than it turns out to be.
const DECODER: usize = 96 << 10;

/// What holes are made of.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Decoder for SpanReader {
    fn decoded(&self) -> &[u8] {
        self.decoded()
    }

    fn tar_len(&self) -> usize {
        self.tar_len()
    }

    fn memory(&self) -> usize {
        self.memory()
    }

    fn spent(&mut self) -> Option<Vec<u8>> {
        self.take_spent()
    }

    fn into_buffers(self) -> (Vec<u8>, Vec<u8>) {
        self.into_buffers()
    }
}

/// A span of an opened layer.
pub(super) struct SpanOrigin<'a> {
    layer: &'a OpenLayer,
    pub(super) number: u32,
    pub(super) span: Span,
}

impl Origin for SpanOrigin<'_> {
    type Decoder = SpanReader;

    fn cost(&self) -> Cost {
        let Span { len, tar_len, coding, .. } = self.span;
        let (tar, decoder) = match coding {
            // The compressed bytes are the tar
            SpanCoding::Plain => (0, 0),
            _ => (tar_len as usize, DECODER),
        };
        Cost { compressed: len as usize, tar, decoder }
    }

    fn open(&self, room: Room) -> Result<SpanReader, SpanError> {
        let Room { mut compressed, tar, .. } = room;
        let read = self.layer.compressed(&self.span, &mut compressed);
        read.map_err(|e| self.failed(Box::new(e)))?;
        let reader = self.layer.index.begin_span(self.number, compressed);
        let mut reader = reader.map_err(|e| self.failed(Box::new(e)))?;
        self.check()?;
        reader.lend(tar);
        Ok(reader)
    }

    fn advance(&self, reader: &mut SpanReader, upto: usize) -> Result<(), SpanError> {
        reader.advance(upto).map_err(|e| self.failed(Box::new(e)))?;
        self.check()?;
        if reader.is_complete() {
            self.layer.told().remove(&self.number);
        }
        Ok(())
    }
}

impl SpanOrigin<'_> {
    /// What the index said of the span counts only while that is whole.
    fn check(&self) -> Result<(), SpanError> {
        self.layer.map.check().map_err(|e| self.failed(Box::new(e)))
    }

    fn failed(&self, error: Box<dyn StdError + Send + Sync>) -> SpanError {
        Arc::new(self.layer.failed(&self.span, error))
    }

    /// What a reader gets: whoever meets the damage first has it told.
    fn read_error(&self, error: SpanError) -> ReadError {
        let again = !self.layer.told().insert(self.number);
        ReadError::Damaged { layer: self.layer.index.slot(), again, source: Box::new(error) }
    }
}

impl OpenLayer {
    pub(super) fn source(&self, span: &Span) -> io::Result<&dyn BlobSource> {
        let source = match span.source {
            SpanSource::Blob => Some(&self.blob),
            SpanSource::Copy => self.copy.as_ref(),
        };
        let missing = || io::Error::other("no seekable copy of the layer");
        source.map(AsRef::as_ref).ok_or_else(missing)
    }

    /// Reads the compressed range of a span.
    pub(super) fn compressed(&self, span: &Span, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.source(span)?.read_range(span.offset, span.len as usize, bytes)
    }

    pub(super) fn failed(
        &self,
        span: &Span,
        source: Box<dyn StdError + Send + Sync>,
    ) -> SpanReadError {
        SpanReadError {
            layer: self.index.diff_id(),
            slot: self.index.slot(),
            start: span.tar_offset,
            end: span.tar_offset + u64::from(span.tar_len),
            source,
        }
    }

    fn told(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn origin(&self, number: u32) -> Option<SpanOrigin<'_>> {
        Some(SpanOrigin { layer: self, number, span: self.index.span(number)? })
    }
}

impl Layers {
    /// Gives the tar bytes `tar` of a layer, span by span. Decodes up to `aim` where it has to.
    fn read_tar(
        &self,
        layer: &OpenLayer,
        tar: Range<u64>,
        aim: u64,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        let slot = layer.index.slot();
        let outside = || ReadError::Damaged {
            layer: slot,
            again: false,
            source: "the index points outside the tar".into(),
        };
        let Range { start: mut at, end } = tar;
        while at < end {
            let origin = layer.index.span_at(at).and_then(|number| layer.origin(number));
            let origin = origin.ok_or_else(outside)?;
            let within = within(&origin.span, at..end);
            let aim = aim.saturating_sub(origin.span.tar_offset).min(origin.span.tar_len.into());
            let key = (slot, origin.number);
            let later = self.note_start(layer, origin.number, within.end, sink);
            let pin = || self.cache.pin(key, within.end, aim as usize, &origin);
            let pin = pin().or_else(|error| self.mended(layer, error, pin));
            let pin = pin.map_err(|error| origin.read_error(error))?;
            let bytes = pin.get(within).filter(|bytes| !bytes.is_empty()).ok_or_else(outside)?;
            self.cache.count_served(bytes.len());
            sink.data(bytes);
            at += bytes.len() as u64;
            if let Some(wish) = later {
                sink.ahead(wish);
            }
        }
        Ok(())
    }

    /// Names the spans that whoever reads the tar bytes `tar` of a layer is about to want, after
    /// the first `skip` of them.
    fn look_ahead(
        &self,
        layer: &OpenLayer,
        tar: &Range<u64>,
        depth: u32,
        skip: u32,
        sink: &mut dyn Sink,
    ) {
        let (index, slot) = (&layer.index, layer.index.slot());
        let (Some(first), Some(last)) =
            (index.span_at(tar.start), index.span_at(tar.end.saturating_sub(1)))
        else {
            return;
        };
        let end = last.saturating_add(depth).saturating_add(1).min(index.span_count());
        for span in first.saturating_add(skip)..end {
            if self.cache.lacks((slot, span)) {
                sink.ahead(Ahead::Span { layer: slot, span });
            }
        }
    }
}

/// Where the part of `tar` that lies in a span stands in it.
fn within(span: &Span, tar: Range<u64>) -> Range<usize> {
    let end = (tar.end - span.tar_offset).min(span.tar_len.into());
    (tar.start - span.tar_offset) as usize..end as usize
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
            .inspect_err(|error| tracing::debug!(%slot, %error, "no layer to serve"))
            .ok()
    }

    fn losses(&self) -> u64 {
        losses()
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        let open = self.open_layer(layer).map_err(|error| {
            tracing::debug!(slot = %layer, %error, "no layer to read");
            ReadError::NoLayer { layer }
        })?;
        let asked = offset..offset.saturating_add(len.into());
        for piece in open.index.pieces(number, offset, u64::from(len)) {
            match piece {
                Piece::Zero { len } => {
                    let mut left = len;
                    while left > 0 {
                        let zeros =
                            &ZEROS[..ZEROS.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                        sink.data(zeros);
                        left -= zeros.len() as u64;
                    }
                }
                Piece::Data { tar_offset, len } => {
                    let tar = tar_offset..tar_offset.saturating_add(len);
                    let depth = self.streams.note(layer, tar.start, tar.end);
                    // The spans after the first can be decoded while that one is
                    self.look_ahead(&open, &tar, depth, 1, sink);
                    let aim = tar.end.saturating_add(MARGIN);
                    self.read_tar(&open, tar.clone(), aim, sink)
                        .map_err(|error| self.tell_of(error, &open, number, &asked))?;
                    if depth > 0 {
                        self.look_ahead(&open, &tar, 0, 0, sink);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_ready(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> bool {
        let Ok(open) = self.open_layer(layer) else { return false };
        let mut pieces = open.index.pieces(number, offset, u64::from(len));
        let (Some(Piece::Data { tar_offset, len: found }), None) = (pieces.next(), pieces.next())
        else {
            return false;
        };
        let tar = tar_offset..tar_offset.saturating_add(found);
        let origin = open.index.span_at(tar.start).and_then(|number| open.origin(number));
        let Some(origin) = origin else { return false };
        let within = within(&origin.span, tar.clone());
        if found != u64::from(len) || within.len() as u64 != found {
            return false;
        }
        let Some(pin) = self.cache.pin_ready((layer, origin.number), within.end) else {
            return false;
        };
        let reach = within.end;
        let Some(bytes) = pin.get(within) else { return false };
        self.cache.count_served(bytes.len());
        sink.data(bytes);
        drop(pin);
        if let Some(wish) = self.note_start(&open, origin.number, reach, sink) {
            sink.ahead(wish);
        }
        let depth = self.streams.note(layer, tar.start, tar.end);
        if depth > 0 {
            self.look_ahead(&open, &tar, depth, 0, sink);
        }
        true
    }

    fn visited(&self, tree: Slot, sink: &mut dyn Sink) {
        if self.following.visited(tree) {
            sink.ahead(Ahead::Starts { tree });
        }
    }

    fn ahead(&self, wish: Ahead, spare: &dyn Spare) {
        let layer = match wish {
            Ahead::Starts { tree } => return self.expect_starts(tree, spare),
            Ahead::Span { layer, .. } | Ahead::Start { layer } => layer,
        };
        // Whoever reads it for good meets the same error and tells of it
        let Ok(open) = self.open_layer(layer) else { return };
        match wish {
            Ahead::Span { span, .. } => {
                let Some(origin) = open.origin(span) else { return };
                if let Ok(source) = open.source(&origin.span) {
                    source.will_need(origin.span.offset, TOLD);
                }
                let extent = AheadExtent { upto: usize::MAX, share: AHEAD_SHARE, start: false };
                self.cache.ahead((layer, span), extent, &origin, &|| spare.go_on());
            }
            Ahead::Start { .. } | Ahead::Starts { .. } => self.follow_start(&open, spare),
        }
    }
}
