//! The input as a row of bits, lowest first.

use super::wide;

/// Bits that are there after a refill, unless the input ends.
pub(super) const FULL: u32 = 56;

/// Bits taken from the input that are not used yet, and the input.
///
/// Above the `count` low bits of `buf` there may be more, which are the true next ones of the input:
/// a refill may set them again.
pub(super) struct Bits<'a> {
    pub(super) buf: u64,
    pub(super) count: u32,
    pub(super) input: &'a [u8],
    /// Bytes of the input that are in `buf` or were.
    pub(super) at: usize,
}

impl Bits<'_> {
    /// Takes as much as fits: at least [`FULL`] bits, or all that there is.
    pub(super) fn refill(&mut self) {
        if let Some(next) = wide::load(self.input, self.at) {
            self.buf |= next << self.count;
            self.at += ((63 - self.count) >> 3) as usize;
            self.count |= FULL;
        } else {
            while self.count <= FULL {
                let Some(&byte) = self.input.get(self.at) else { break };
                self.buf |= u64::from(byte) << self.count;
                self.at += 1;
                self.count += 8;
            }
        }
    }

    /// Whether `count` bits (at most [`FULL`]) are there.
    pub(super) fn need(&mut self, count: u32) -> bool {
        if self.count < count {
            self.refill();
        }
        self.count >= count
    }

    pub(super) fn drop(&mut self, count: u32) {
        debug_assert!(count <= self.count);
        self.buf >>= count;
        self.count -= count;
    }

    /// The next `count` bits (at most 31), which must be there.
    pub(super) fn take(&mut self, count: u32) -> u32 {
        let value = self.buf as u32 & ((1 << count) - 1);
        self.drop(count);
        value
    }

    /// Gives whole bytes back to the input, as far as they came from it.
    pub(super) fn give_back(&mut self) {
        let bytes = (self.count as usize / 8).min(self.at);
        self.at -= bytes;
        self.count -= 8 * bytes as u32;
        self.buf &= (1 << self.count) - 1;
    }
}
