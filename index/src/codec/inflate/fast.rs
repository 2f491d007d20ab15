//! The inner loop: symbols, as long as input and room for output are plenty.
//!
//! Per turn one refill serves up to three literals, or two and a length, mostly with its distance.
//! The look-up of the next symbol is begun before a match is copied. Matches are copied in chunks,
//! over their end, where the next bytes will go.

use super::{
    Flow,
    past::Past,
    tables::{self, DISTANCE_BITS, END, LITERAL, LITLEN_BITS, SPECIAL, SUB, Tables},
    wide,
};

/// Bytes of input that a turn and the refill before the first one may look at: a refill loads eight
/// bytes and moves by up to seven, and a turn has two.
pub(super) const INPUT_MARGIN: usize = 7 + 7 + 8;
/// Bytes of output that a turn may write to: two literals, the longest match, and what its copy
/// goes over the end.
pub(super) const OUTPUT_MARGIN: usize = 2 + LONGEST + OVER;

const LONGEST: usize = 258;
/// A match of one byte is copied as two chunks of 16.
const OVER: usize = 31;

/// Bits that a distance takes at most, and the look-up of the next symbol after it. Fewer may be left
/// after two literals and a length; then, and only then (5 % faster), there is a second refill.
const DISTANCE_NEEDS: u32 = 15 + 13 + LITLEN_BITS;

const LITLEN_MASK: u64 = (1 << LITLEN_BITS) - 1;
const DISTANCE_MASK: u64 = (1 << DISTANCE_BITS) - 1;

/// Why the loop stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// Input or room for output is no longer plenty, or there is output enough.
    Margin,
    EndOfBlock,
    Corrupt,
}

/// Decodes from the input to `out[at..]` of `flow`, while there is room before `end` (which leaves
/// [`OUTPUT_MARGIN`] of `out`) and [`INPUT_MARGIN`] of input; both are there at first.
pub(super) fn decode(tables: &Tables, past: &mut Past, flow: &mut Flow<'_>, end: usize) -> Exit {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { decode_bmi(tables, past, flow, end) };
    }
    decode_anywhere(tables, past, flow, end)
}

/// Shifts by any count and masks of any length take one instruction each: 4 % faster.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn decode_bmi(tables: &Tables, past: &mut Past, flow: &mut Flow<'_>, end: usize) -> Exit {
    turns(tables, past, flow, end)
}

// Apart from the caller, for the sake of registers
#[inline(never)]
fn decode_anywhere(tables: &Tables, past: &mut Past, flow: &mut Flow<'_>, end: usize) -> Exit {
    turns(tables, past, flow, end)
}

#[inline(always)]
fn turns(tables: &Tables, past: &mut Past, flow: &mut Flow<'_>, end: usize) -> Exit {
    let Flow { bits, out, at, floor, .. } = flow;
    let floor = *floor;
    let input = bits.input;
    // What the accesses without checks rest on
    assert!(bits.at + INPUT_MARGIN <= input.len());
    assert!(floor <= *at && *at < end && end + OUTPUT_MARGIN <= out.len());
    // A look-up needs the bits of a code, which may not be there yet
    bits.refill();
    let last = input.len() - INPUT_MARGIN;
    // Only the low byte of `left` counts bits, what is above has no meaning: so whole entries can be
    // subtracted from it
    let (mut buf, mut left, mut next, mut to) = (bits.buf, bits.count, bits.at, *at);

    macro_rules! refill {
        () => {
            // SAFETY: a turn begins with `next` at `last`, or seven behind it the first time, and
            // moves by up to seven before the second refill; eight more bytes are there.
            let more = unsafe { wide::load_within(input, next) };
            buf |= more.wrapping_shl(left);
            next += 7;
            next -= (left >> 3 & 7) as usize;
            left |= 56;
        };
    }
    macro_rules! take {
        ($entry:expr) => {
            buf = buf.wrapping_shr($entry);
            left = left.wrapping_sub($entry);
        };
    }
    macro_rules! literal {
        ($entry:expr) => {
            // SAFETY: a turn begins with `to` before `end`, and comes here three times at most.
            unsafe { wide::store_within(out, to, ($entry >> 16) as u8) };
            to += 1;
        };
    }

    // A look-up for the turn to come
    let mut entry = tables.litlen[(buf & LITLEN_MASK) as usize];
    let exit = loop {
        refill!();
        let mut saved = buf;
        take!(entry);
        let mut is_literal = entry & LITERAL != 0;
        if is_literal {
            literal!(entry);
            entry = tables.litlen[(buf & LITLEN_MASK) as usize];
            saved = buf;
            take!(entry);
            is_literal = entry & LITERAL != 0;
            if is_literal {
                literal!(entry);
                entry = tables.litlen[(buf & LITLEN_MASK) as usize];
                saved = buf;
                take!(entry);
                is_literal = entry & LITERAL != 0;
            }
        }
        if entry & SPECIAL != 0 {
            if entry & SUB != 0 {
                let below = buf & !u64::MAX.wrapping_shl(tables::code_len(entry));
                entry = tables.litlen[(entry >> 16) as usize + below as usize];
                saved = buf;
                take!(entry);
                is_literal = entry & LITERAL != 0;
            }
            if entry & SPECIAL != 0 {
                break if entry & END != 0 { Exit::EndOfBlock } else { Exit::Corrupt };
            }
        }
        if is_literal {
            literal!(entry);
            entry = tables.litlen[(buf & LITLEN_MASK) as usize];
        } else {
            let len = (entry >> 16) as usize + extra(saved, entry);
            if left & 0xff < DISTANCE_NEEDS {
                refill!();
            }
            let mut entry_of_distance = tables.distance[(buf & DISTANCE_MASK) as usize];
            if entry_of_distance & SPECIAL != 0 {
                if entry_of_distance & SUB != 0 {
                    take!(DISTANCE_BITS);
                    let code_len = tables::code_len(entry_of_distance);
                    let below = buf & !u64::MAX.wrapping_shl(code_len);
                    let at = (entry_of_distance >> 16) as usize + below as usize;
                    entry_of_distance = tables.distance[at];
                }
                if entry_of_distance & SPECIAL != 0 {
                    break Exit::Corrupt;
                }
            }
            let saved = buf;
            take!(entry_of_distance);
            let distance = (entry_of_distance >> 16) as usize + extra(saved, entry_of_distance);
            entry = tables.litlen[(buf & LITLEN_MASK) as usize];

            if distance <= to - floor {
                debug_assert!(0 < distance && 0 < len && len <= LONGEST);
                // SAFETY: `to` is at most two after a place before `end`, which leaves the margin;
                // `distance` is at most `to`.
                unsafe { copy(out, to, distance, len) };
            } else if !past.copy(out, floor, to, distance, len) {
                break Exit::Corrupt;
            }
            to += len;
        }
        if next > last || to >= end {
            break Exit::Margin;
        }
    };
    *at = to;
    bits.buf = buf;
    bits.count = left & 0xff;
    bits.at = next;
    exit
}

/// The extra bits of an entry; `saved` begins with its code.
#[inline(always)]
fn extra(saved: u64, entry: u32) -> usize {
    let both = saved & !u64::MAX.wrapping_shl(entry);
    // Above the code's length, up to where the shift looks, a length or distance has zeros
    both.wrapping_shr(entry >> 8) as usize
}

/// Copies a match to `out[to..]`, and up to [`OVER`] bytes over its end.
///
/// # Safety
/// `distance` is at most `to` and not zero; `to + len + OVER` is at most `out.len()`; `len` is not
/// zero.
#[inline(always)]
unsafe fn copy(out: &mut [u8], to: usize, distance: usize, len: usize) {
    debug_assert!(distance <= to && to + len + OVER <= out.len());
    // SAFETY: no chunk begins behind the match, but the second of 16 bytes, and none ends more than
    // 31 bytes behind it; `from` is before `to`.
    unsafe {
        let (from, mut done) = (to - distance, 0);
        if distance >= 16 {
            wide::copy_within::<16>(out, from, to);
            wide::copy_within::<16>(out, from + 16, to + 16);
            done = 32;
            while done < len {
                wide::copy_within::<16>(out, from + done, to + done);
                done += 16;
            }
        } else if distance == 1 {
            let byte = out[from];
            out[to..to + len].fill(byte);
        } else {
            // What repeats after some bytes also repeats after twice as many
            let mut distance = distance;
            while distance < 8 && done < len {
                wide::copy_within::<8>(out, to + done - distance, to + done);
                done += distance;
                distance *= 2;
            }
            while done < len {
                wide::copy_within::<8>(out, to + done - distance, to + done);
                done += 8;
            }
        }
    }
}
