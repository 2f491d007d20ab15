//! A deflate writer for streams that no compressor would write.

use super::Random;

/// The codes of a block, by the length of each symbol's code.
pub(super) struct Codes {
    pub(super) litlens: Vec<u8>,
    pub(super) distances: Vec<u8>,
}

/// The code (first bit highest) and its length for each symbol of a canonical code.
fn codes(lens: &[u8]) -> Vec<(u32, u32)> {
    let mut codes = vec![(0, 0); lens.len()];
    let mut code = 0_u32;
    for len in 1..=15 {
        code <<= 1;
        for (symbol, _) in lens.iter().enumerate().filter(|&(_, &found)| found == len) {
            codes[symbol] = (code, len.into());
            code += 1;
        }
    }
    codes
}

/// A complete code of all `symbols` or fewer, with codes of up to `longest` bits; those of `needed`
/// have one.
pub(super) fn random_code(
    random: &mut Random,
    symbols: usize,
    longest: u8,
    needed: &[usize],
) -> Vec<u8> {
    let mut lens = vec![1_u8, 1];
    let wanted = 2.max(needed.len()) + random.below(symbols);
    let deep = random.below(3) == 0;
    while lens.len() < wanted.min(symbols) {
        let near = if deep { lens.len().min(3) } else { lens.len() };
        let at = lens.len() - 1 - random.below(near);
        if lens[at] < longest {
            lens[at] += 1;
            lens.push(lens[at]);
        } else if deep && lens.len() >= needed.len() {
            break;
        } else if let Some(shorter) = lens.iter_mut().find(|len| **len < longest) {
            *shorter += 1;
            let len = *shorter;
            lens.push(len);
        } else {
            break;
        }
    }
    lens.resize(symbols, 0);
    (1..symbols).for_each(|i| lens.swap(i, random.below(i + 1)));
    for &symbol in needed {
        if lens[symbol] == 0 {
            let from = (0..symbols).find(|i| lens[*i] > 0 && !needed.contains(i));
            lens.swap(symbol, from.expect("there are as many codes as are needed"));
        }
    }
    lens
}

#[derive(Default)]
pub(super) struct DeflateWriter {
    bytes: Vec<u8>,
    /// Bits used of the last byte; 0 when it is full.
    used: u32,
}

impl DeflateWriter {
    /// Writes the low `count` bits of `value`, lowest first.
    fn bits(&mut self, value: u32, count: u32) {
        for i in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let bit = (value >> i & 1) as u8;
            if let Some(last) = self.bytes.last_mut() {
                *last |= bit << self.used;
            }
            self.used = (self.used + 1) % 8;
        }
    }

    /// Writes a Huffman code: highest bit first.
    fn code(&mut self, code: u32, count: u32) {
        self.bits(code.reverse_bits() >> (32 - count), count);
    }

    pub(super) fn stored(&mut self, last: bool, content: &[u8]) {
        self.bits(u32::from(last), 3);
        self.used = 0;
        let len = content.len() as u16;
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(&(!len).to_le_bytes());
        self.bytes.extend_from_slice(content);
    }

    pub(super) fn begin_fixed(&mut self, last: bool) {
        self.bits(u32::from(last) | 1 << 1, 3);
    }

    pub(super) fn literal(&mut self, byte: u8) {
        match u32::from(byte) {
            low @ 0..=143 => self.code(0x30 + low, 8),
            high => self.code(0x190 + high - 144, 9),
        }
    }

    /// A match of three bytes at a distance of 1 to 4 or of exactly 32768.
    pub(super) fn match3(&mut self, distance: u32) {
        self.code(1, 7);
        match distance {
            1..=4 => self.code(distance - 1, 5),
            _ => {
                assert_eq!(distance, 32768);
                self.code(29, 5);
                self.bits(0x1fff, 13);
            }
        }
    }

    pub(super) fn end_block(&mut self) {
        self.code(0, 7);
    }

    /// The header of a block with codes of its own. Runs are written as such at random.
    pub(super) fn begin_dynamic(&mut self, last: bool, codes: &Codes, random: &mut Random) {
        self.bits(u32::from(last) | 2 << 1, 3);
        let Codes { litlens, distances } = codes;
        self.bits(litlens.len() as u32 - 257, 5);
        self.bits(distances.len() as u32 - 1, 5);
        // All 19 symbols: 13 of four bits, 6 of five
        self.bits(19 - 4, 4);
        let order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let pre: Vec<u8> = (0..19).map(|symbol| if symbol < 13 { 4 } else { 5 }).collect();
        order.iter().for_each(|&symbol| self.bits(pre[symbol].into(), 3));
        let pre = self::codes(&pre);
        let lens = [&litlens[..], &distances[..]].concat();
        let mut at = 0;
        while at < lens.len() {
            let same = lens[at..].iter().take_while(|&&len| len == lens[at]).count();
            let zeros = lens[at] == 0;
            let repeats = at > 0 && lens[at] == lens[at - 1];
            let (symbol, extra, run) = match random.below(3) {
                0 if zeros && same >= 11 => (18, 7, 11 + random.below(same.min(138) - 10)),
                0 | 1 if zeros && same >= 3 => (17, 3, 3 + random.below(same.min(10) - 2)),
                1 if repeats && same >= 3 => (16, 2, 3 + random.below(same.min(6) - 2)),
                _ => (usize::from(lens[at]), 0, 1),
            };
            let (code, len) = pre[symbol];
            self.code(code, len);
            if extra > 0 {
                self.bits(run as u32 - if extra == 7 { 11 } else { 3 }, extra);
            }
            at += run;
        }
    }

    /// A symbol of a code, if it has one, and bits after it; whether it has one.
    pub(super) fn symbol(&mut self, lens: &[u8], symbol: usize, extra: u32, count: u32) -> bool {
        let (code, len) = codes(lens)[symbol];
        if len > 0 {
            self.code(code, len);
            self.bits(extra, count);
        }
        len > 0
    }

    /// What was written, without a member around it.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn empty_fixed(&mut self, last: bool) {
        self.begin_fixed(last);
        self.end_block();
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// A gzip member around what was written. Its CRC is wrong, and nobody looks.
    pub(super) fn into_member(self) -> Vec<u8> {
        let mut member = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        member.extend(self.bytes);
        member.extend([0; 8]);
        member
    }
}
