//! Decoding tables of Huffman codes: one look-up gives a symbol's meaning and all lengths of it.
//!
//! The first bits of the input index the main table. What is longer goes on in a sub-table behind it.
//! Everything that a symbol says is in its entry, ready to be added and shifted by:
//!
//! ```text
//!             31        30..16          15      14      13     12       11..8        7..0
//! literal      1        the byte        0       0       0      0        code length  code length
//! length       0        base            0       0       0      0        code length  code and extra bits
//! distance     base (31..16)            0       0       0      0        code length  code and extra bits
//! end          0        0               SPECIAL 0       END    0        code length  code length
//! sub-table    0        where it begins SPECIAL SUB     0      0        its bits     bits of the main table
//! no symbol    0        0               SPECIAL 0       0      0        code length  code length
//! ```
//! In a sub-table, lengths count only what follows the main table's bits.

/// Bits that index the main table of literals and lengths. Most codes of real streams are no longer;
/// a bit more would cost cache and time to build.
pub(super) const LITLEN_BITS: u32 = 11;
/// Bits that index the main table of distances.
pub(super) const DISTANCE_BITS: u32 = 8;
/// The longest code of a code length.
pub(super) const PRE_BITS: u32 = 7;

/// Entries of the largest main table with its sub-tables that a complete code of 288 symbols of up
/// to 15 bits takes (as zlib's `examples/enough.c` counts them).
const LITLEN_ENTRIES: usize = 2342;
/// The same for 32 distances.
const DISTANCE_ENTRIES: usize = 402;
const PRE_ENTRIES: usize = 1 << PRE_BITS;

pub(super) const LITERAL: u32 = 1 << 31;
pub(super) const SPECIAL: u32 = 1 << 15;
pub(super) const SUB: u32 = 1 << 14;
pub(super) const END: u32 = 1 << 13;

/// The longest code there is (RFC 1951, section 3.2.7).
const MAX_LEN: usize = 15;
/// Symbols of literals and lengths, and of distances, in the fixed code.
const LITLENS: usize = 288;
const DISTANCES: usize = 32;
/// The symbol that ends a block.
pub(super) const END_OF_BLOCK: usize = 256;

/// What a symbol says, before its code is known.
const LITLEN_SYMBOLS: [u32; LITLENS] = litlen_symbols();
const DISTANCE_SYMBOLS: [u32; DISTANCES] = distance_symbols();
const PRE_SYMBOLS: [u32; 19] = pre_symbols();

const fn litlen_symbols() -> [u32; LITLENS] {
    let mut symbols = [SPECIAL; LITLENS];
    let mut byte = 0;
    while byte < 256 {
        symbols[byte] = LITERAL | (byte as u32) << 16;
        byte += 1;
    }
    symbols[END_OF_BLOCK] = SPECIAL | END;
    // 257..=284 in groups of four with one more extra bit each; 285 is the longest match
    let (mut number, mut base) = (0, 3);
    while number < 28 {
        let extra = if number < 8 { 0 } else { number / 4 - 1 };
        symbols[257 + number as usize] = base << 16 | extra;
        base += 1 << extra;
        number += 1;
    }
    symbols[285] = 258 << 16;
    symbols
}

const fn distance_symbols() -> [u32; DISTANCES] {
    let mut symbols = [SPECIAL; DISTANCES];
    let (mut number, mut base) = (0, 1);
    while number < 30 {
        let extra = if number < 4 { 0 } else { number / 2 - 1 };
        symbols[number as usize] = base << 16 | extra;
        base += 1 << extra;
        number += 1;
    }
    symbols
}

const fn pre_symbols() -> [u32; 19] {
    let mut symbols = [0; 19];
    let mut number = 0;
    while number < 19 {
        symbols[number] = (number as u32) << 16;
        number += 1;
    }
    symbols
}

/// Bits of an entry's code (without those of the main table, in a sub-table).
pub(super) fn code_len(entry: u32) -> u32 {
    entry >> 8 & 0xf
}

/// Bits of an entry's code with its extra bits.
pub(super) fn total_len(entry: u32) -> u32 {
    entry & 0xff
}

/// The code lengths are none of a code: too many, or too few but for the one exception.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoCode;

/// The tables of a block.
pub(super) struct Tables {
    pub(super) litlen: [u32; LITLEN_ENTRIES],
    pub(super) distance: [u32; DISTANCE_ENTRIES],
}

impl Tables {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { litlen: [0; LITLEN_ENTRIES], distance: [0; DISTANCE_ENTRIES] })
    }

    /// Makes the tables of the fixed code (RFC 1951, section 3.2.6).
    pub(super) fn fixed(&mut self) {
        let mut lens = [8; LITLENS];
        lens[144..256].fill(9);
        lens[256..280].fill(7);
        let made = self.dynamic(&lens, &[5; DISTANCES]);
        debug_assert_eq!(made, Ok(()));
    }

    /// Makes the tables of two codes, given the length of each symbol's code, 0 for none.
    pub(super) fn dynamic(&mut self, litlens: &[u8], distances: &[u8]) -> Result<(), NoCode> {
        build(&mut self.litlen, LITLEN_BITS, litlens, &LITLEN_SYMBOLS, true)?;
        build(&mut self.distance, DISTANCE_BITS, distances, &DISTANCE_SYMBOLS, true)
    }
}

/// The table of the code in which code lengths are written. An entry's high half is the symbol.
pub(super) struct PreTable([u32; PRE_ENTRIES]);

impl PreTable {
    pub(super) fn new() -> Self {
        Self([0; PRE_ENTRIES])
    }

    pub(super) fn make(&mut self, lens: &[u8; 19]) -> Result<(), NoCode> {
        build(&mut self.0, PRE_BITS, lens, &PRE_SYMBOLS, false)?;
        if lens.iter().all(|&len| len == 0) {
            // As zlib has it; such a block fails for want of an end-of-block code
            self.0.fill(0x101);
        }
        Ok(())
    }

    pub(super) fn entry(&self, bits: u64) -> u32 {
        self.0[bits as usize % PRE_ENTRIES]
    }
}

/// Fills `table`, of which `bits` bits index the main table, for a canonical code.
///
/// Like zlib, takes an incomplete code only where it has no symbol at all, or (`lone`) a single one
/// of one bit; what has no symbol is an entry that says so.
fn build(
    table: &mut [u32],
    bits: u32,
    lens: &[u8],
    symbols: &[u32],
    lone: bool,
) -> Result<(), NoCode> {
    let mut counts = [0_u16; MAX_LEN + 1];
    for &len in lens {
        counts[usize::from(len) & MAX_LEN] += 1;
    }
    counts[0] = 0;
    let main = 1 << bits;
    let Some(longest) = counts.iter().rposition(|&count| count > 0) else {
        table[..main].fill(SPECIAL | 0x101);
        return Ok(());
    };
    let mut left = 1_i32;
    let mut firsts = [0_u16; MAX_LEN + 2];
    for len in 1..=MAX_LEN {
        left = (left << 1) - i32::from(counts[len]);
        if left < 0 {
            return Err(NoCode);
        }
        firsts[len + 1] = firsts[len] + counts[len];
    }
    if left > 0 {
        if !lone || longest != 1 {
            return Err(NoCode);
        }
        table[..main].fill(SPECIAL | 0x101);
    }

    // Symbols by the length of their code, then by number: the order of the codes
    let mut sorted = [0_u16; LITLENS];
    for (symbol, &len) in (0..).zip(lens) {
        let len = usize::from(len) & MAX_LEN;
        if len > 0 {
            sorted[usize::from(firsts[len])] = symbol;
            firsts[len] += 1;
        }
    }
    let mut sorted = sorted[..usize::from(firsts[longest])].iter();

    // A table for codes of `len` bits is twice the one of a bit less, and then the new codes
    let mut code = 0;
    for len in 1..=bits {
        let half = 1 << (len - 1);
        if len > 1 && left == 0 {
            table.copy_within(..half, half);
        }
        let count = usize::from(counts[len as usize]);
        for &symbol in sorted.by_ref().take(count) {
            table[code as usize] = symbols[usize::from(symbol)] + len * 0x101;
            code = after(code, len);
        }
    }
    if left > 0 {
        // The lone code is a zero bit
        let entry = table[0];
        table[..main].iter_mut().step_by(2).for_each(|slot| *slot = entry);
        return Ok(());
    }

    // Codes that begin with the same bits of the main table follow one another
    let (mut prefix, mut begin, mut end) = (usize::MAX, 0, main);
    for len in bits + 1..=longest as u32 {
        let own = len - bits;
        let mut count = usize::from(counts[len as usize]);
        while count > 0 {
            if code as usize % main != prefix {
                prefix = code as usize % main;
                begin = end;
                let bits_below = sub_bits(&counts, len, bits, count);
                end += 1 << bits_below;
                table[prefix] = (begin as u32) << 16 | SPECIAL | SUB | bits_below << 8 | bits;
            }
            let symbol = sorted.next().map_or(0, |&symbol| usize::from(symbol));
            let entry = symbols[symbol] + own * 0x101;
            let places = &mut table[begin..end][code as usize >> bits..];
            places.iter_mut().step_by(1 << own).for_each(|slot| *slot = entry);
            code = after(code, len);
            count -= 1;
        }
    }
    Ok(())
}

/// Bits that a sub-table takes whose first code is of `len` bits, where `count` codes of that length
/// are left: enough for all codes that still fit below the same bits of the main table.
fn sub_bits(counts: &[u16; MAX_LEN + 1], len: u32, bits: u32, count: usize) -> u32 {
    let mut len = len;
    let mut used = count;
    while used < 1 << (len - bits) && (len as usize) < MAX_LEN {
        len += 1;
        used = (used << 1) + usize::from(counts[len as usize]);
    }
    len - bits
}

/// The code after `code` among those of `len` bits, in the order in which they are read: the highest
/// bit comes first in a code, and is the lowest here. Zero after the last one.
fn after(code: u32, len: u32) -> u32 {
    let zeros = !code & ((1 << len) - 1);
    if zeros == 0 {
        return 0;
    }
    let carry = 1 << zeros.ilog2();
    code & (carry - 1) | carry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_those_of_the_rfc() {
        let of = |entry: u32| (entry >> 16, total_len(entry));
        assert_eq!(of(LITLEN_SYMBOLS[257]), (3, 0));
        assert_eq!(of(LITLEN_SYMBOLS[264]), (10, 0));
        assert_eq!(of(LITLEN_SYMBOLS[265]), (11, 1));
        assert_eq!(of(LITLEN_SYMBOLS[277]), (67, 4));
        assert_eq!(of(LITLEN_SYMBOLS[284]), (227, 5));
        assert_eq!(of(LITLEN_SYMBOLS[285]), (258, 0));
        assert_eq!(LITLEN_SYMBOLS[286], SPECIAL);
        assert_eq!(of(DISTANCE_SYMBOLS[0]), (1, 0));
        assert_eq!(of(DISTANCE_SYMBOLS[4]), (5, 1));
        assert_eq!(of(DISTANCE_SYMBOLS[29]), (24577, 13));
        assert_eq!(DISTANCE_SYMBOLS[30], SPECIAL);
    }

    /// Every code of every symbol is found, whatever follows it; no table runs over.
    fn assert_found(table: &[u32], bits: u32, lens: &[u8], symbols: &[u32]) {
        let mut code = 0_u32;
        for len in 1..=15 {
            code <<= 1;
            for (symbol, _) in lens.iter().enumerate().filter(|&(_, &found)| found == len) {
                let reversed = code.reverse_bits() >> (32 - u32::from(len));
                for rest in [0, u32::MAX] {
                    let input = reversed | rest << len;
                    let mut entry = table[(input & ((1 << bits) - 1)) as usize];
                    let mut used = 0;
                    if entry & SUB != 0 {
                        used = bits;
                        let below = input >> bits & ((1 << code_len(entry)) - 1);
                        entry = table[((entry >> 16) + below) as usize];
                    }
                    assert_eq!(code_len(entry) + used, u32::from(len));
                    assert_eq!(entry - code_len(entry) * 0x101, symbols[symbol]);
                }
                code += 1;
            }
        }
    }

    /// The worst code for a root of 11 bits, and others that are deep.
    #[test]
    fn deep_codes_fit() {
        let mut tables = Tables::new();
        let mut deep = vec![0_u8; 288];
        for (i, slot) in deep.iter_mut().take(16).enumerate() {
            *slot = (i as u8 + 1).min(15);
        }
        tables.dynamic(&deep, &[1, 1]).expect("complete");
        assert_found(&tables.litlen, LITLEN_BITS, &deep, &LITLEN_SYMBOLS);
        let mut seed = 1_u64;
        for _ in 0..3000 {
            let (litlens, distances) = (random_code(&mut seed, 288), random_code(&mut seed, 30));
            tables.dynamic(&litlens, &distances).expect("complete");
            assert_found(&tables.litlen, LITLEN_BITS, &litlens, &LITLEN_SYMBOLS);
            assert_found(&tables.distance, DISTANCE_BITS, &distances, &DISTANCE_SYMBOLS);
        }
    }

    /// Splits leaves of a tree at random until there are as many as symbols.
    fn random_code(seed: &mut u64, symbols: usize) -> Vec<u8> {
        let mut below = |limit: usize| {
            *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (*seed >> 33) as usize % limit
        };
        let mut lens = vec![1, 1];
        let (wanted, deep) = (2 + below(symbols - 1), below(2) == 0);
        while lens.len() < wanted {
            let at =
                if deep { lens.len() - 1 - below(lens.len().min(3)) } else { below(lens.len()) };
            if lens[at] < 15 {
                lens[at] += 1;
                lens.push(lens[at]);
            } else if lens.iter().all(|&len| len == 15) || below(20) == 0 {
                break;
            }
        }
        lens.resize(symbols, 0);
        (1..symbols).for_each(|i| lens.swap(i, below(i + 1)));
        lens
    }

    #[test]
    fn what_is_no_code_is_refused() {
        let mut tables = Tables::new();
        let mut make = |litlens: &[u8], distances: &[u8]| tables.dynamic(litlens, distances);
        assert_eq!(make(&[1, 1, 1], &[1, 1]), Err(NoCode), "over-subscribed");
        assert_eq!(make(&[1, 2], &[1, 1]), Err(NoCode), "incomplete");
        assert_eq!(make(&[2, 0], &[1, 1]), Err(NoCode), "a lone code of two bits");
        assert_eq!(make(&[1, 0], &[1, 0]), Ok(()), "lone codes");
        assert_eq!(make(&[1, 1], &[0, 0]), Ok(()), "no distances");
        assert_eq!(make(&[1, 1], &[0, 2]), Err(NoCode));
        let mut pre = PreTable::new();
        let mut lens = [0; 19];
        assert_eq!(pre.make(&lens), Ok(()), "none at all");
        lens[3] = 1;
        assert_eq!(pre.make(&lens), Err(NoCode), "a lone code length");
        lens[4] = 1;
        assert_eq!(pre.make(&lens), Ok(()));
    }
}
