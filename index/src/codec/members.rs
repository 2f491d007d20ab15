//! Decoding a run of deflate data that may go on through the ends of gzip members.

use super::{
    CodecError,
    header::{Header, TRAILER},
    zlib::{Inflate, Status, Stop},
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
    /// At the start of `compressed`: at the `bits` high bits of its first byte (0: at the whole
    /// byte), with `window` before it.
    pub(super) fn new(bits: u8, window: &[u8], compressed: &[u8]) -> Result<Self, CodecError> {
        let mut inflate = Inflate::new()?;
        let used = compressed.len() - inflate.resume(compressed, bits, window).len();
        Ok(Self { inflate, used, ended: false })
    }

    /// Starts anew, with another run.
    pub(super) fn reset(&mut self, bits: u8, window: &[u8], compressed: &[u8]) {
        self.used = compressed.len() - self.inflate.resume(compressed, bits, window).len();
        self.ended = false;
    }

    /// Fills `tar` with what comes next, from the same `compressed` as before. Returns the number
    /// of bytes decoded: less than `tar` holds when the data ends before or is corrupt.
    pub(super) fn decode(&mut self, compressed: &[u8], tar: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < tar.len() && !self.ended {
            let input = compressed.get(self.used..).unwrap_or_default();
            let step = self.inflate.run(input, &mut tar[filled..], Stop::Never);
            filled += step.produced;
            self.used += step.consumed;
            let moved = step.consumed > 0 || step.produced > 0;
            match step.status {
                Status::More | Status::Boundary { .. } if moved => {}
                Status::End => match next_member(&input[step.consumed..]) {
                    Some(rest) => {
                        self.used = compressed.len() - rest.len();
                        self.inflate.reset();
                    }
                    None => self.ended = true,
                },
                Status::More | Status::Boundary { .. } | Status::Corrupt => self.ended = true,
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
