//! From the bytes of an input to choices.

/// An input read from its front, which gives zeros once it is used up.
///
/// One choice is one byte: so a byte that the fuzzer changes changes one choice, and seeds are easy to
/// write.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all of it is used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit.max(1)
    }

    /// The next bytes, fewer at the end.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A run of bytes that says its length, at most 255, in a byte before it.
    pub fn run(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.take(len.into())
    }

    /// A little-endian number of four bytes.
    pub fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(self.0.len())
    }
}

/// Pseudo-random numbers (xorshift64*).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`, 0 for a limit of 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as usize % limit.max(1)
    }
}

/// The sizes that pushes are at most cut to: single bytes, around a block of tar, and larger.
const SIZES: [usize; 6] = [1, 3, 30, 511, 513, 4000];

/// Cuts `bytes` into pieces, in one of 256 ways.
pub fn split(bytes: &[u8], way: u8) -> impl Iterator<Item = &[u8]> {
    let mut random = Random::new(way.into());
    let most = SIZES[usize::from(way) % SIZES.len()];
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = (1 + random.below(most)).min(rest.len());
        let (piece, after) = rest.split_at(len);
        rest = after;
        (len > 0).then_some(piece)
    })
}
