//! gzip: members around deflate data, cut into spans at deflate block boundaries.
//!
//! Members are walked by hand over raw inflate: that is what allows to stop between two blocks. The
//! CRC32 and length in a member's trailer are not verified; a layer is right when its tar has the
//! diffID that the image's config names, and that is checked over every byte by whoever takes them.
//!
//! ```text
//!        Header ──complete──▶ Body ──last block──▶ Trailer ──8 bytes──▶ Header
//!          │ not gzip, and a member came before
//!          └──▶ Ignored: zeros or junk after the last member, as gzip(1) ignores them
//! ```
//!
//! Beside it runs the *stretch* of tar that has no span yet: `Between` (nothing decoded), `Span`, or
//! `Gap` once more than SPAN_MAX came without a boundary. The compressed bytes of a span are held
//! until it is closed. They give its digest and its window (in `table.rs`), and when a span turns into a gap they
//! are decoded once more, to the seekable copy. Within SPAN_MAX of tar, a block is at most twice its
//! content, and blocks without content are cut off at HELD_TARGET, so a few MiB are held at most.

use super::{
    CodecError, Compression, Sink,
    assembly::{Assembly, Limits},
    header::{Fault, Header, TRAILER},
    members::Members,
    table::DeflateSpan,
    zlib::{Inflate, Status, Stop, WINDOW},
};

/// Tar bytes decoded at a time: stays in the second-level cache until the sink has seen it.
const OUTPUT: usize = 128 << 10;

enum Phase {
    Header(Header),
    Body,
    Trailer { left: usize },
    Ignored,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stretch {
    Between,
    Span,
    Gap,
}

pub(super) struct GzipStream {
    inflate: Inflate,
    output: Vec<u8>,
    phase: Phase,
    stretch: Stretch,
    /// The span that is being collected.
    open: DeflateSpan,
    /// Length of what is held of it, and of its tar, at the end of the last member that gave tar
    /// bytes.
    complete: (usize, u64),
    /// Blob bytes consumed.
    offset: u64,
    /// Where the current member begins in the blob.
    member: u64,
    /// The last blob byte consumed: a boundary may lie inside it.
    last: u8,
}

impl GzipStream {
    pub(super) fn new() -> Result<Self, CodecError> {
        Ok(Self {
            inflate: Inflate::new()?,
            output: vec![0; OUTPUT],
            phase: Phase::Header(Header::new()),
            stretch: Stretch::Between,
            open: DeflateSpan::default(),
            complete: (0, 0),
            offset: 0,
            member: 0,
            last: 0,
        })
    }

    pub(super) fn push(
        &mut self,
        assembly: &mut Assembly,
        mut blob: &[u8],
        sink: &mut Sink<'_>,
    ) -> Result<(), CodecError> {
        while !blob.is_empty() {
            match &mut self.phase {
                Phase::Header(header) => {
                    let mut rest = blob;
                    let result = header.push(&mut rest);
                    self.consume(&mut blob, rest.len());
                    match result {
                        Ok(false) => {}
                        Ok(true) => self.begin_member(),
                        Err(Fault::Foreign(_)) if self.member > 0 => {
                            self.phase = Phase::Ignored;
                            self.close_complete(assembly)?;
                        }
                        Err(fault) => {
                            let what = fault.what();
                            return Err(CodecError::GzipHeader { offset: self.member, what });
                        }
                    }
                }
                Phase::Body => self.body(assembly, &mut blob, sink)?,
                Phase::Trailer { left } => {
                    let taken = blob.len().min(*left);
                    *left -= taken;
                    let done = *left == 0;
                    let rest = blob.len() - taken;
                    self.consume(&mut blob, rest);
                    if done {
                        self.member = self.offset;
                        self.phase = Phase::Header(Header::new());
                    }
                }
                Phase::Ignored => {
                    self.offset += blob.len() as u64;
                    blob = &[];
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        match &self.phase {
            Phase::Ignored => Ok(()),
            Phase::Header(header) if self.member > 0 && !header.is_recognised() => {
                self.close_complete(assembly)
            }
            Phase::Header(_) | Phase::Body | Phase::Trailer { .. } => {
                Err(CodecError::Truncated { compression: Compression::Gzip, offset: self.offset })
            }
        }
    }

    /// What the compressed bytes of the open span take in memory.
    #[cfg(test)]
    pub(super) fn held_capacity(&self) -> usize {
        self.open.held.capacity()
    }

    /// Takes bytes from the front of `blob`, until `left` remain.
    fn consume(&mut self, blob: &mut &[u8], left: usize) {
        let (taken, rest) = blob.split_at(blob.len() - left);
        if let Some(&last) = taken.last() {
            self.last = last;
            self.offset += taken.len() as u64;
        }
        if self.stretch == Stretch::Span {
            self.open.held.extend_from_slice(taken);
        }
        *blob = rest;
    }

    fn begin_member(&mut self) {
        self.phase = Phase::Body;
        self.inflate.reset();
        if self.stretch == Stretch::Between {
            self.stretch = Stretch::Span;
            self.open.restart(self.offset, 0);
            self.complete = (0, 0);
            self.open.window.clear();
        }
    }

    /// Decodes until the input is used up or the member ends.
    fn body(
        &mut self,
        assembly: &mut Assembly,
        blob: &mut &[u8],
        sink: &mut Sink<'_>,
    ) -> Result<(), CodecError> {
        loop {
            let (given, room, stop) = self.stride(blob, &assembly.limits);
            let step = self.inflate.run(given, &mut self.output[..room], stop);
            let starved = step.consumed == given.len();
            let left = blob.len() - step.consumed;
            self.consume(blob, left);
            if step.produced > 0 {
                self.take_tar(assembly, step.produced, sink)?;
            }
            match step.status {
                Status::More if step.produced == room => {}
                Status::More if blob.is_empty() => return Ok(()),
                Status::More if starved => {}
                Status::More | Status::Corrupt => {
                    return Err(CodecError::Deflate { offset: self.offset });
                }
                Status::Boundary { bits } => self.boundary(assembly, bits)?,
                Status::End => return self.end_member(assembly),
            }
        }
    }

    /// How far to decode without losing sight of a boundary that matters: the input, the room for
    /// output, and where to stop.
    ///
    /// Stopping at every block costs 4 %. So blocks run through as long as whatever boundary they
    /// pass cannot end the span ([`Self::is_due`]), nor move its beginning.
    fn stride<'b>(&self, blob: &'b [u8], limits: &Limits) -> (&'b [u8], usize, Stop) {
        let tar = limits.target.saturating_sub(self.open.tar_len + 1);
        let held = limits.held_target.saturating_sub(self.open.held.len());
        let begun = self.stretch == Stretch::Span && self.open.tar_len > 0;
        if begun && tar > 0 && held > 0 {
            let room = tar.min(OUTPUT as u64) as usize;
            (&blob[..blob.len().min(held)], room, Stop::Never)
        } else {
            (blob, OUTPUT, Stop::Boundary)
        }
    }

    /// Whether the span ends at a boundary here. Depends on nothing but the blob: on the tar bytes
    /// and the compressed bytes since the span began.
    fn is_due(&self, limits: &Limits) -> bool {
        self.open.tar_len >= limits.target || self.open.held.len() > limits.held_target
    }

    fn take_tar(
        &mut self,
        assembly: &mut Assembly,
        len: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), CodecError> {
        let tar = &self.output[..len];
        sink(tar)?;
        if self.stretch == Stretch::Gap {
            return assembly.copy_tar(tar);
        }
        let open = &mut self.open;
        let head = tar.len().min(WINDOW - open.head.len());
        open.head.extend_from_slice(&tar[..head]);
        open.tar_len += len as u64;
        if open.tar_len > assembly.limits.max {
            self.begin_gap(assembly)?;
        }
        Ok(())
    }

    /// The span has grown too long: all of it goes to the copy, and what follows up to the next
    /// boundary.
    fn begin_gap(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        let open = &self.open;
        let mut tar = vec![0; open.tar_len as usize];
        let decoded =
            Members::new(open.bits, &open.window, &open.held)?.decode(&open.held, &mut tar);
        if decoded != tar.len() {
            return Err(CodecError::Deflate { offset: self.offset });
        }
        self.stretch = Stretch::Gap;
        self.open.held = Vec::new();
        assembly.copy_tar(&tar)
    }

    /// Between two blocks.
    fn boundary(&mut self, assembly: &mut Assembly, bits: u8) -> Result<(), CodecError> {
        let open = &self.open;
        match self.stretch {
            Stretch::Gap => {
                assembly.flush_copy()?;
                self.stretch = Stretch::Span;
            }
            // Blocks without content before the span's first: it begins after them, and the window
            // is still the same
            Stretch::Span if open.tar_len == 0 => {
                self.begin_span(bits);
                return Ok(());
            }
            Stretch::Span if self.is_due(&assembly.limits) => {
                self.close(assembly, open.held.len(), open.tar_len)?;
            }
            Stretch::Span | Stretch::Between => return Ok(()),
        }
        self.begin_span(bits);
        self.inflate.copy_window(&mut self.open.window);
        Ok(())
    }

    /// Begins a span at a boundary that leaves `bits` high bits of the last byte.
    fn begin_span(&mut self, bits: u8) {
        self.open.restart(self.offset - u64::from(bits > 0), bits);
        self.complete = (0, 0);
        if bits > 0 {
            self.open.held.push(self.last);
        }
    }

    fn end_member(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        self.phase = Phase::Trailer { left: TRAILER };
        let open = &self.open;
        match self.stretch {
            Stretch::Between => {}
            Stretch::Gap => {
                assembly.flush_copy()?;
                self.stretch = Stretch::Between;
            }
            Stretch::Span if open.tar_len == 0 => self.stretch = Stretch::Between,
            Stretch::Span => {
                if open.tar_len > self.complete.1 {
                    self.complete = (open.held.len(), open.tar_len);
                }
                if self.is_due(&assembly.limits) {
                    self.close_complete(assembly)?;
                }
            }
        }
        Ok(())
    }

    /// Closes the span, if there is one, at the end of the last member.
    fn close_complete(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        if self.stretch == Stretch::Span {
            let (held, tar_len) = self.complete;
            self.close(assembly, held, tar_len)?;
            self.stretch = Stretch::Between;
        }
        Ok(())
    }

    /// Hands the span over: the first `held` bytes of what is held give `tar_len` bytes of tar.
    fn close(
        &mut self,
        assembly: &mut Assembly,
        held: usize,
        tar_len: u64,
    ) -> Result<(), CodecError> {
        let mut span = std::mem::take(&mut self.open);
        span.held.truncate(held);
        span.tar_len = tar_len;
        self.open = assembly.deflate_span(span)?;
        Ok(())
    }
}
