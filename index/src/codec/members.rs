//! Decoding a run of deflate data that may go on through the ends of gzip members.

use super::{
    header::{Header, TRAILER},
    inflate::{Inflate, Status, Stop},
};

/// Where the decoding of a run stands.
pub(super) struct Members {
    inflate: Inflate,
    /// Compressed bytes used.
    used: usize,
    /// Whether the data ended or broke.
    ended: bool,
}

impl Members {
    /// At the start of a run.
    pub(super) fn new(bits: u8, window: &[u8], compressed: &[u8]) -> Self {
        let mut members = Self { inflate: Inflate::new(), used: 0, ended: false };
        members.restart(bits, window, compressed);
        members
    }

    /// Goes to the start of `compressed`: to the `bits` high bits of its first byte (0: to the whole
    /// byte), with `window` before it.
    pub(super) fn restart(&mut self, bits: u8, window: &[u8], compressed: &[u8]) {
        self.used = self.inflate.resume(compressed, bits, window);
        self.ended = false;
    }

    /// Decodes on, from the same `compressed` as before, to `tar[filled..]`, until there are
    /// `enough` bytes in `tar` (which is a little faster where there is room for some more), the
    /// data ends or is corrupt. `tar[..filled]` is what was decoded before. Returns the number of
    /// bytes that are in `tar`.
    pub(super) fn decode(
        &mut self,
        compressed: &[u8],
        tar: &mut [u8],
        filled: usize,
        enough: usize,
    ) -> usize {
        let mut filled = filled;
        while filled < enough.min(tar.len()) && !self.ended {
            let input = compressed.get(self.used..).unwrap_or_default();
            let step = self.inflate.run(input, tar, filled, enough, Stop::Never);
            filled += step.produced;
            self.used += step.consumed;
            match step.status {
                Status::Output | Status::Boundary { .. } => {}
                Status::End => match next_member(&input[step.consumed..]) {
                    Some(rest) => {
                        self.used = compressed.len() - rest.len();
                        self.inflate.restart();
                    }
                    None => self.ended = true,
                },
                Status::Input | Status::Corrupt => self.ended = true,
            }
        }
        filled
    }

    /// Bytes of memory that the decoder's state takes.
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + self.inflate.memory()
    }
}

/// Skips a member's trailer and the header of the next one.
fn next_member(input: &[u8]) -> Option<&[u8]> {
    let mut rest = input.get(TRAILER..)?;
    match Header::new().push(&mut rest) {
        Ok(true) => Some(rest),
        Ok(false) | Err(_) => None,
    }
}
