//! zstd: spans are whole frames; a frame too large for a span goes to the seekable copy.
//!
//! Nothing can be resumed inside a frame, so frame ends are the only boundaries. Small frames are
//! grouped to about SPAN_TARGET of tar. A frame goes to the copy when it alone gives more than
//! SPAN_MAX of tar or is longer than HELD_MAX (a frame may consist of empty blocks, a skippable one
//! may have 4 GiB); the frames before it become a span of their own. Most images' layers are one
//! frame, all of which then goes to the copy.
//!
//! Held until it is known what becomes of them: the compressed bytes of the group, at most HELD_MAX
//! and a bit, and the tar of the last frame, at most SPAN_MAX and a bit. The decoder's own memory is
//! bounded by [`WINDOW_LOG_MAX`].

use ::zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::{
    CodecError, Compression, SpanCoding, TarSink,
    assembly::{Assembly, Range},
};

/// Largest window of a frame, as a power of two: 128 MiB, as the zstd command line accepts.
const WINDOW_LOG_MAX: u32 = 27;

/// Tar bytes decoded, and blob bytes given, at a time: one zstd block, the decoder's own step.
const STEP: usize = 128 << 10;

pub(super) struct ZstdStream {
    decoder: Decoder<'static>,
    /// Blob bytes consumed.
    offset: u64,
    /// Whether the last frame is incomplete.
    in_frame: bool,
    /// Where the group begins in the blob.
    group: u64,
    /// The compressed bytes of the group.
    held: Vec<u8>,
    /// Where the current frame begins in `held`.
    frame: usize,
    /// Where the last frame that gave tar ends in `held`.
    complete: usize,
    /// Tar bytes of the group's complete frames.
    group_tar: u64,
    /// Tar bytes of the current frame; in a large frame, of the last step.
    tar: Vec<u8>,
    /// The current frame goes to the copy.
    large: bool,
}

impl ZstdStream {
    pub(super) fn new() -> Result<Self, CodecError> {
        let failed = |error: std::io::Error| CodecError::Codec {
            codec: "zstd decoder",
            what: error.to_string(),
        };
        let mut decoder = Decoder::new().map_err(failed)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(failed)?;
        Ok(Self {
            decoder,
            offset: 0,
            in_frame: false,
            group: 0,
            held: Vec::new(),
            frame: 0,
            complete: 0,
            group_tar: 0,
            tar: Vec::new(),
            large: false,
        })
    }

    pub(super) fn push(
        &mut self,
        assembly: &mut Assembly,
        mut blob: &[u8],
        sink: &mut dyn TarSink,
    ) -> Result<(), CodecError> {
        let mut more = false;
        while more || !blob.is_empty() {
            more = self.step(assembly, &mut blob, sink)?;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        if self.in_frame {
            let (compression, offset) = (Compression::Zstd, self.offset);
            return Err(CodecError::Truncated { compression, offset });
        }
        self.close_group(assembly)
    }

    /// What the compressed bytes of the group take in memory.
    #[cfg(test)]
    pub(super) fn held_capacity(&self) -> usize {
        self.held.capacity()
    }

    /// Decodes one step. Returns whether the decoder has output left that it had no room for.
    fn step(
        &mut self,
        assembly: &mut Assembly,
        blob: &mut &[u8],
        sink: &mut dyn TarSink,
    ) -> Result<bool, CodecError> {
        let filled = self.tar.len();
        self.tar.reserve(STEP);
        let given = &blob[..blob.len().min(STEP)];
        let mut input = InBuffer::around(given);
        let mut output = OutBuffer::around_pos(&mut self.tar, filled);
        let hint = self.decoder.run(&mut input, &mut output);
        let full = output.pos() == output.capacity();
        let (taken, rest) = blob.split_at(input.pos());
        *blob = rest;
        self.offset += taken.len() as u64;
        let hint = hint.map_err(|error| self.explain(&error))?;
        self.in_frame = hint != 0;

        if self.tar.len() > filled {
            sink.take(&self.tar[filled..])?;
        }
        if self.large {
            assembly.copy_tar(&self.tar)?;
            self.tar.clear();
        } else {
            self.held.extend_from_slice(taken);
            self.check_size(assembly)?;
        }
        if !self.in_frame {
            self.end_frame(assembly)?;
        }
        Ok(full && self.in_frame)
    }

    /// Splits what has grown too large for one span. Depends on totals since a frame began, and on
    /// nothing that a push could split.
    fn check_size(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        let (tar_max, held_max) = (assembly.limits.max, assembly.limits.held_max);
        let frame_tar = self.tar.len() as u64;
        if self.group_tar + frame_tar <= tar_max && self.held.len() <= held_max {
            return Ok(());
        }
        if self.frame > 0 {
            let held = self.held.split_off(self.frame);
            self.close_group(assembly)?;
            self.group = self.offset - held.len() as u64;
            self.held = held;
        }
        if frame_tar > tar_max || self.held.len() > held_max {
            self.large = true;
            self.held = Vec::new();
            let tar = std::mem::take(&mut self.tar);
            assembly.copy_tar(&tar)?;
        }
        Ok(())
    }

    fn end_frame(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        if self.large {
            self.large = false;
            assembly.flush_copy()?;
        } else {
            if !self.tar.is_empty() {
                self.complete = self.held.len();
                self.group_tar += self.tar.len() as u64;
                self.tar.clear();
            }
            self.frame = self.held.len();
            let limits = &assembly.limits;
            if self.group_tar > 0
                && self.group_tar < limits.target
                && self.held.len() < limits.held_target
            {
                return Ok(());
            }
        }
        self.close_group(assembly)
    }

    /// Makes a span of the group's complete frames, if they give any tar, and begins a new group
    /// here.
    fn close_group(&mut self, assembly: &mut Assembly) -> Result<(), CodecError> {
        if self.group_tar > 0 {
            let range = Range::of(self.group, &self.held[..self.complete]);
            assembly.blob_span(self.group_tar, range, SpanCoding::ZstdFrames)?;
        }
        self.group = self.offset;
        self.held.clear();
        self.frame = 0;
        self.complete = 0;
        self.group_tar = 0;
        Ok(())
    }

    fn explain(&self, error: &std::io::Error) -> CodecError {
        let (offset, what) = (self.offset, error.to_string());
        if what.contains("too much memory") {
            CodecError::ZstdWindow { offset, max: 1 << WINDOW_LOG_MAX }
        } else {
            CodecError::Zstd { offset, what }
        }
    }
}
