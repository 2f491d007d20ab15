//! One symbol at a time, where input or room for output may end at any byte.

use super::{
    Flow, Halt, Inflate, Phase,
    tables::{self, DISTANCE_BITS, END, LITERAL, LITLEN_BITS, SPECIAL, SUB},
};

impl Inflate {
    /// Decodes a symbol, with its distance and all; says whether it was the end of the block.
    pub(super) fn symbol(&mut self, flow: &mut Flow<'_>) -> Result<bool, Halt> {
        let bits = &mut flow.bits;
        bits.refill();
        let (mut buf, mut left) = (bits.buf, bits.count);
        let entry = symbol(&self.tables.litlen, LITLEN_BITS, &mut buf, &mut left)?;
        if entry & SPECIAL != 0 {
            if entry & END == 0 {
                return Err(Halt::Corrupt);
            }
            bits.drop(bits.count - left);
            return Ok(true);
        }
        if flow.at >= flow.enough.min(flow.out.len()) {
            return Err(Halt::Output);
        }
        if entry & LITERAL != 0 {
            bits.drop(bits.count - left);
            flow.out[flow.at] = (entry >> 16) as u8;
            flow.at += 1;
            return Ok(false);
        }
        let len = value(entry, &mut buf, &mut left)?;
        let entry = symbol(&self.tables.distance, DISTANCE_BITS, &mut buf, &mut left)?;
        if entry & SPECIAL != 0 {
            return Err(Halt::Corrupt);
        }
        let distance = value(entry, &mut buf, &mut left)?;
        bits.drop(bits.count - left);
        self.go_on(flow, distance, len)?;
        Ok(false)
    }

    /// Copies a match, or what is left of it, as far as there is room.
    pub(super) fn go_on(
        &mut self,
        flow: &mut Flow<'_>,
        distance: usize,
        len: usize,
    ) -> Result<(), Halt> {
        let (at, floor) = (flow.at, flow.floor);
        let copied = len.min(flow.room());
        if distance > at - floor {
            if !self.past.copy(flow.out, floor, at, distance, copied) {
                return Err(Halt::Corrupt);
            }
        } else if distance >= copied {
            flow.out.copy_within(at - distance..at - distance + copied, at);
        } else {
            for to in at..at + copied {
                flow.out[to] = flow.out[to - distance];
            }
        }
        flow.at += copied;
        if copied < len {
            self.phase = Phase::Match { distance: distance as u16, left: (len - copied) as u16 };
            return Err(Halt::Output);
        }
        self.phase = Phase::Body;
        Ok(())
    }
}

/// Looks a symbol up and takes its code from `buf`; its extra bits are left there.
fn symbol(table: &[u32], main_bits: u32, buf: &mut u64, left: &mut u32) -> Result<u32, Halt> {
    let mut entry = table[(*buf & ((1 << main_bits) - 1)) as usize];
    if entry & SUB != 0 {
        take(main_bits, buf, left)?;
        let below = *buf & ((1 << tables::code_len(entry)) - 1);
        entry = table[(entry >> 16) as usize + below as usize];
    }
    take(tables::code_len(entry), buf, left)?;
    Ok(entry)
}

/// The base of an entry and its extra bits, which are taken from `buf`.
fn value(entry: u32, buf: &mut u64, left: &mut u32) -> Result<usize, Halt> {
    let extra = tables::total_len(entry) - tables::code_len(entry);
    let low = *buf & ((1 << extra) - 1);
    take(extra, buf, left)?;
    Ok((entry >> 16) as usize + low as usize)
}

fn take(count: u32, buf: &mut u64, left: &mut u32) -> Result<(), Halt> {
    *left = left.checked_sub(count).ok_or(Halt::Input)?;
    *buf >>= count;
    Ok(())
}
