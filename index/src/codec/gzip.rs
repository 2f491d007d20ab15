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
//! until it is closed. They give its digest (in `table.rs`), and when a span turns into a gap they are
//! decoded once more, to the seekable copy. The decoder stops at every block boundary, and records
//! which bytes before the span it looks at. Within SPAN_MAX of tar, a block is at most twice its
//! content, and blocks without content are cut off at HELD_TARGET, so a few MiB are held at most.

use bytes::Bytes;

use super::{
    CodecError, Compression, TarSink,
    assembly::{Assembly, Limits},
    header::{Fault, Header, TRAILER},
    held::Held,
    inflate::{Inflate, Status, Stop, WINDOW},
    members::Members,
    output::Output,
    table::DeflateSpan,
};

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
    output: Output,
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
    /// Tar bytes of it so far, or [`WINDOW`] where there are more: what a match can reach.
    reach: usize,
    /// The last blob byte consumed: a boundary may lie inside it.
    last: u8,
    /// What is being pushed, where others have it as well.
    shared: Option<Bytes>,
}

impl Default for GzipStream {
    fn default() -> Self {
        Self {
            inflate: Inflate::new(),
            output: Output::new(),
            phase: Phase::Header(Header::new()),
            stretch: Stretch::Between,
            open: DeflateSpan::default(),
            complete: (0, 0),
            offset: 0,
            member: 0,
            reach: 0,
            last: 0,
            shared: None,
        }
    }
}

impl GzipStream {
    /// `blob` is a part of `shared`, where there is that. Where data is corrupt, what was decoded
    /// before is with the sink.
    pub(super) fn push(
        &mut self,
        assembly: &mut Assembly,
        blob: &[u8],
        shared: Option<&Bytes>,
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        self.shared = shared.cloned();
        let pushed = self.advance(assembly, blob, sink);
        self.shared = None;
        self.output.tell(sink, pushed.is_err())?;
        pushed
    }

    fn advance(
        &mut self,
        assembly: &mut Assembly,
        mut blob: &[u8],
        sink: &mut dyn TarSink,
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

    pub(super) fn finish(
        &mut self,
        assembly: &mut Assembly,
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        self.output.tell(sink, true)?;
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
        let shared = self.shared.as_ref();
        let (taken, rest) = blob.split_at(blob.len() - left);
        if let Some(&last) = taken.last() {
            self.last = last;
            self.offset += taken.len() as u64;
        }
        if self.stretch == Stretch::Span {
            self.open.held.extend(taken, shared);
        }
        *blob = rest;
    }

    fn begin_member(&mut self) {
        self.phase = Phase::Body;
        self.inflate.restart();
        self.reach = 0;
        if self.stretch == Stretch::Between {
            self.stretch = Stretch::Span;
            self.begin_span(0);
            self.inflate.set_floor(&[]);
        }
    }

    /// Decodes until the input is used up or the member ends.
    fn body(
        &mut self,
        assembly: &mut Assembly,
        blob: &mut &[u8],
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        loop {
            let (out, from, enough) = self.output.room(sink)?;
            let step = self.inflate.run(blob, out, from, enough, Stop::Boundary);
            let left = blob.len() - step.consumed;
            self.consume(blob, left);
            if step.produced > 0 {
                self.take_tar(assembly, step.produced)?;
            }
            match step.status {
                Status::Output => {}
                Status::Input => return Ok(()),
                Status::Boundary { bits } => self.boundary(assembly, bits)?,
                Status::End => return self.end_member(assembly),
                Status::Corrupt => return Err(CodecError::Deflate { offset: self.offset }),
            }
        }
    }

    /// Whether the span ends at a boundary here. Depends on nothing but the blob: on the tar bytes
    /// and the compressed bytes since the span began.
    fn is_due(&self, limits: &Limits) -> bool {
        self.open.tar_len >= limits.target || self.open.held.len() > limits.held_target
    }

    /// Sees to the tar bytes that were decoded last.
    fn take_tar(&mut self, assembly: &mut Assembly, len: usize) -> Result<(), CodecError> {
        let tar = self.output.add(len);
        self.reach = (self.reach + len).min(WINDOW);
        if self.stretch == Stretch::Gap {
            return assembly.copy_tar(tar);
        }
        self.open.tar_len += len as u64;
        if self.open.tar_len > assembly.limits.max {
            self.begin_gap(assembly)?;
        }
        Ok(())
    }

    /// The span has grown too long: all of it goes to the copy, and what follows up to the next
    /// boundary.
    fn begin_gap(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        let open = &mut self.open;
        self.inflate.sparse_window(&mut open.window);
        let mut tar = vec![0; open.tar_len as usize];
        let held = open.held.joined();
        let mut members = Members::new(open.bits, &open.window, &held);
        if members.decode(&held, &mut tar, 0, usize::MAX) != tar.len() {
            return Err(CodecError::Deflate { offset: self.offset });
        }
        self.stretch = Stretch::Gap;
        self.open.held = Held::default();
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
            // Blocks without content before the span's first: it begins after them, and the floor
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
        self.inflate.set_floor(self.output.last(self.reach));
        Ok(())
    }

    /// Begins a span at a boundary that leaves `bits` high bits of the last byte.
    fn begin_span(&mut self, bits: u8) {
        self.open.restart(self.offset - u64::from(bits > 0), bits);
        self.complete = (0, 0);
        if bits > 0 {
            self.open.held.extend(&[self.last], None);
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
        self.inflate.sparse_window(&mut span.window);
        span.held.truncate(held);
        span.tar_len = tar_len;
        self.open = assembly.deflate_span(span)?;
        Ok(())
    }
}
