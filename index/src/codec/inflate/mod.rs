//! Raw deflate (RFC 1951), decoded so that it can stop anywhere, and be entered at any block.
//!
//! ```text
//!         ┌──────────────────────────────── end of block ──────────────────────────────┐
//!         ▼                                                                            │
//!        Head ──stored──▶ StoredLen ──▶ Stored ────────────────────────────────────────┤
//!         │ ├────fixed────────────────────────────────▶ Body ◀──▶ Match (output full) ─┤
//!         │ └───dynamic──▶ Counts ──▶ PreLens ──▶ Lens ──┘                             │
//!         └◀ the last one: End ◀───────────────────────────────────────────────────────┘
//! ```
//!
//! Input comes in any split, output goes to a buffer of the caller, in which up to 32 KiB of what came
//! before stay in front of it. No step takes a symbol by halves: what a step cannot finish for want
//! of input stays in the bit buffer, which takes 64 bits, and only there. Between two blocks, whole
//! bytes are given back to the input. So a *checkpoint* is a place in the blob and up to seven bits.
//!
//! Where a stream is resumed is its *floor*: matches that reach below it read the window that was
//! stored for it (`past.rs`). While the pipeline decodes, it sets a floor at each checkpoint just to
//! learn what is looked at below.
//!
//! What is valid is what zlib takes: the tests compare the two.
//!
//! `fast.rs` has the loop in which nearly all time is spent; `careful.rs` its slow twin for the ends
//! of input and output. `tables.rs` makes the tables of both.

mod bits;
mod careful;
mod fast;
mod past;
mod tables;
mod wide;

use self::{
    bits::Bits,
    fast::{Exit, INPUT_MARGIN, OUTPUT_MARGIN},
    past::Past,
    tables::{PreTable, Tables},
};

/// The farthest a match reaches back, in bytes (RFC 1951, section 2).
pub(super) const WINDOW: usize = 32 << 10;

/// Room for output past what is wanted, with which all of that is decoded at full speed.
pub(super) const SLACK: usize = OUTPUT_MARGIN;

/// In this order, the code lengths of code lengths come (RFC 1951, section 3.2.7).
const PRE_ORDER: [u8; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Most symbols of the two codes of a block.
const MOST_LITLENS: usize = 286;
const MOST_DISTANCES: usize = 30;

/// What one call of [`Inflate::run`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Bytes of input used.
    pub(super) consumed: usize,
    /// Bytes of output written.
    pub(super) produced: usize,
    pub(super) status: Status,
}

/// Why [`Inflate::run`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// All input is used.
    Input,
    /// There is output enough, or no more room.
    Output,
    /// Between two blocks; the `bits` high bits of the last byte consumed belong to the next one.
    Boundary { bits: u8 },
    /// The stream is complete; what was consumed ends with its last byte.
    End,
    /// The data is no deflate stream.
    Corrupt,
}

/// Where [`Inflate::run`] stops, besides at the end of input, output or stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// At the end of every block but the stream's last.
    Boundary,
    /// Nowhere else.
    Never,
}

/// What comes next in the stream.
#[derive(Clone, Copy)]
enum Phase {
    Head,
    StoredLen,
    Stored { left: u16 },
    Counts,
    PreLens,
    Lens,
    Body,
    Match { distance: u16, left: u16 },
    Boundary,
    End,
    Corrupt,
}

/// A step could not be finished.
enum Halt {
    Input,
    Output,
    Corrupt,
}

/// Where a stream of deflate data stands. About 12 KiB, and the window.
pub(super) struct Inflate {
    phase: Phase,
    /// Bits taken from the input and not used, `count` of them; zeros above.
    buf: u64,
    count: u32,
    is_last_block: bool,
    /// Bytes decoded since the floor, or [`WINDOW`] where there are more.
    since: usize,
    past: Past,
    tables: Box<Tables>,
    has_fixed: bool,
    codes: Codes,
}

/// The code lengths of a dynamic block, while they are read.
struct Codes {
    litlens: u16,
    distances: u16,
    pre: u8,
    /// How many lengths are read, of the code of lengths or of the two others.
    read: u16,
    pre_lens: [u8; 19],
    pre_table: PreTable,
    lens: [u8; MOST_LITLENS + MOST_DISTANCES],
}

impl Inflate {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Head,
            buf: 0,
            count: 0,
            is_last_block: false,
            since: 0,
            past: Past::default(),
            tables: Tables::new(),
            has_fixed: false,
            codes: Codes {
                litlens: 0,
                distances: 0,
                pre: 0,
                read: 0,
                pre_lens: [0; 19],
                pre_table: PreTable::new(),
                lens: [0; MOST_LITLENS + MOST_DISTANCES],
            },
        }
    }

    /// Goes to the start of a stream, before which nothing can be referred to.
    pub(super) fn restart(&mut self) {
        self.phase = Phase::Head;
        self.buf = 0;
        self.count = 0;
        self.since = 0;
        self.past.forget();
    }

    /// Goes to a checkpoint: to the `bits` high bits of the first byte of `compressed` (1 to 7; 0:
    /// to the whole byte), after `window`. Returns how many bytes of `compressed` are used by that.
    pub(super) fn resume(&mut self, compressed: &[u8], bits: u8, window: &[u8]) -> usize {
        self.restart();
        self.past.restart(window, false);
        match compressed.first() {
            Some(&first) if (1..8).contains(&bits) => {
                self.buf = u64::from(first >> (8 - bits));
                self.count = bits.into();
                1
            }
            _ => 0,
        }
    }

    /// Sets the floor here, and records from now on what is looked at of `window`: what was decoded
    /// last, as far as the stream reaches back.
    pub(super) fn set_floor(&mut self, window: &[u8]) {
        self.past.restart(window, true);
        self.since = 0;
    }

    /// Replaces the content of `sparse` by the window of [`Self::set_floor`] with zeros for all that
    /// was not looked at; by nothing where all of it was not.
    pub(super) fn sparse_window(&self, sparse: &mut Vec<u8>) {
        self.past.sparse(sparse);
    }

    /// Decodes from `input` to `out[from..]` until it has to stop, or there are `enough` bytes in
    /// `out`: at full speed where [`SLACK`] is behind them. Bytes behind those produced may be
    /// written over.
    ///
    /// `out[..from]` ends with what was decoded since the floor, or with the last [`WINDOW`] of it.
    pub(super) fn run(
        &mut self,
        input: &[u8],
        out: &mut [u8],
        from: usize,
        enough: usize,
        stop: Stop,
    ) -> Step {
        let bits = Bits { buf: self.buf, count: self.count, input, at: 0 };
        debug_assert!(from >= self.since && from <= out.len());
        let floor = from - self.since.min(from);
        let mut flow = Flow { bits, out, at: from, floor, enough };
        let status = loop {
            let step = match self.phase {
                Phase::Head => self.head(&mut flow.bits),
                Phase::StoredLen => self.stored_len(&mut flow.bits),
                Phase::Stored { left } => self.stored(&mut flow, left.into()),
                Phase::Counts => self.counts(&mut flow.bits),
                Phase::PreLens => self.pre_lens(&mut flow.bits),
                Phase::Lens => self.lens(&mut flow.bits),
                Phase::Body => self.body(&mut flow),
                Phase::Match { distance, left } => {
                    self.go_on(&mut flow, distance.into(), left.into())
                }
                Phase::Boundary => {
                    self.phase = Phase::Head;
                    if stop == Stop::Boundary {
                        flow.bits.give_back();
                        // What is left was taken in this call, but for the bits of one byte
                        debug_assert!(flow.bits.count < 8);
                        break Status::Boundary { bits: flow.bits.count as u8 };
                    }
                    Ok(())
                }
                Phase::End => {
                    flow.bits.give_back();
                    flow.bits.drop(flow.bits.count);
                    break Status::End;
                }
                Phase::Corrupt => {
                    flow.bits.give_back();
                    break Status::Corrupt;
                }
            };
            match step {
                Ok(()) => {}
                Err(Halt::Input) => break Status::Input,
                Err(Halt::Output) => {
                    flow.bits.give_back();
                    break Status::Output;
                }
                Err(Halt::Corrupt) => self.phase = Phase::Corrupt,
            }
        };
        let Flow { bits, at, .. } = flow;
        self.count = bits.count;
        self.buf = bits.buf & ((1 << bits.count) - 1);
        let produced = at - from;
        self.since = (self.since + produced).min(WINDOW);
        if self.since == WINDOW {
            self.past.release();
        }
        Step { consumed: bits.at, produced, status }
    }

    /// Bytes of memory that the state takes.
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + size_of::<Tables>() + self.past.memory()
    }

    fn head(&mut self, bits: &mut Bits<'_>) -> Result<(), Halt> {
        if !bits.need(3) {
            return Err(Halt::Input);
        }
        self.is_last_block = bits.take(1) == 1;
        self.phase = match bits.take(2) {
            0 => {
                bits.drop(bits.count % 8);
                Phase::StoredLen
            }
            1 => {
                if !self.has_fixed {
                    self.tables.fixed();
                    self.has_fixed = true;
                }
                Phase::Body
            }
            2 => Phase::Counts,
            _ => return Err(Halt::Corrupt),
        };
        Ok(())
    }

    fn stored_len(&mut self, bits: &mut Bits<'_>) -> Result<(), Halt> {
        if !bits.need(32) {
            return Err(Halt::Input);
        }
        let (len, complement) = (bits.take(16) as u16, bits.take(16) as u16);
        if len != !complement {
            return Err(Halt::Corrupt);
        }
        self.phase = Phase::Stored { left: len };
        Ok(())
    }

    fn stored(&mut self, flow: &mut Flow<'_>, left: usize) -> Result<(), Halt> {
        let mut left = left;
        // Whole bytes can be in the buffer that an earlier call took
        flow.bits.give_back();
        while left > 0 && flow.bits.count > 0 && flow.room() > 0 {
            flow.out[flow.at] = flow.bits.take(8) as u8;
            flow.at += 1;
            left -= 1;
        }
        if flow.bits.count == 0 {
            let input = &flow.bits.input[flow.bits.at..];
            let len = left.min(input.len()).min(flow.room());
            flow.out[flow.at..flow.at + len].copy_from_slice(&input[..len]);
            flow.bits.at += len;
            flow.at += len;
            left -= len;
        }
        self.phase = Phase::Stored { left: left as u16 };
        if left == 0 {
            self.end_block();
            Ok(())
        } else if flow.room() == 0 {
            Err(Halt::Output)
        } else {
            Err(Halt::Input)
        }
    }

    fn counts(&mut self, bits: &mut Bits<'_>) -> Result<(), Halt> {
        if !bits.need(14) {
            return Err(Halt::Input);
        }
        let codes = &mut self.codes;
        codes.litlens = 257 + bits.take(5) as u16;
        codes.distances = 1 + bits.take(5) as u16;
        codes.pre = 4 + bits.take(4) as u8;
        if usize::from(codes.litlens) > MOST_LITLENS
            || usize::from(codes.distances) > MOST_DISTANCES
        {
            return Err(Halt::Corrupt);
        }
        codes.pre_lens = [0; 19];
        codes.read = 0;
        self.phase = Phase::PreLens;
        Ok(())
    }

    fn pre_lens(&mut self, bits: &mut Bits<'_>) -> Result<(), Halt> {
        let codes = &mut self.codes;
        for &symbol in &PRE_ORDER[usize::from(codes.read)..usize::from(codes.pre)] {
            if !bits.need(3) {
                return Err(Halt::Input);
            }
            codes.pre_lens[usize::from(symbol)] = bits.take(3) as u8;
            codes.read += 1;
        }
        codes.pre_table.make(&codes.pre_lens).map_err(|_| Halt::Corrupt)?;
        codes.read = 0;
        self.phase = Phase::Lens;
        Ok(())
    }

    fn lens(&mut self, bits: &mut Bits<'_>) -> Result<(), Halt> {
        let codes = &mut self.codes;
        let all = usize::from(codes.litlens + codes.distances);
        let lens = &mut codes.lens[..all];
        let mut read = usize::from(codes.read);
        while read < all {
            codes.read = read as u16;
            // A code of up to 7 bits and 7 more
            bits.need(14);
            let entry = codes.pre_table.entry(bits.buf);
            let (len, symbol) = (tables::code_len(entry), (entry >> 16) as u8);
            let extra = match symbol {
                0..=15 => 0,
                16 => 2,
                17 => 3,
                _ => 7,
            };
            if bits.count < len + extra {
                return Err(Halt::Input);
            }
            bits.drop(len);
            let more = bits.take(extra) as usize;
            let (value, times) = match symbol {
                0..=15 => (symbol, 1),
                16 => (*lens[..read].last().ok_or(Halt::Corrupt)?, 3 + more),
                17 => (0, 3 + more),
                _ => (0, 11 + more),
            };
            let Some(run) = lens.get_mut(read..read + times) else { return Err(Halt::Corrupt) };
            run.fill(value);
            read += times;
        }
        let (litlens, distances) = lens.split_at(codes.litlens.into());
        if litlens[tables::END_OF_BLOCK] == 0 {
            return Err(Halt::Corrupt);
        }
        self.has_fixed = false;
        self.tables.dynamic(litlens, distances).map_err(|_| Halt::Corrupt)?;
        self.phase = Phase::Body;
        Ok(())
    }

    fn body(&mut self, flow: &mut Flow<'_>) -> Result<(), Halt> {
        loop {
            let end = flow.enough.min(flow.out.len().saturating_sub(OUTPUT_MARGIN));
            if flow.at < end && flow.bits.input.len() - flow.bits.at >= INPUT_MARGIN {
                match fast::decode(&self.tables, &mut self.past, flow, end) {
                    Exit::Margin => {}
                    Exit::EndOfBlock => {
                        self.end_block();
                        return Ok(());
                    }
                    Exit::Corrupt => return Err(Halt::Corrupt),
                }
            }
            if self.symbol(flow)? {
                self.end_block();
                return Ok(());
            }
        }
    }

    fn end_block(&mut self) {
        self.phase = if self.is_last_block { Phase::End } else { Phase::Boundary };
    }
}

/// What flows through one call of [`Inflate::run`].
struct Flow<'a> {
    bits: Bits<'a>,
    out: &'a mut [u8],
    /// Where the next byte goes.
    at: usize,
    /// Where in `out` the floor is, or [`WINDOW`] before the first byte where it is farther.
    floor: usize,
    /// Where to stop.
    enough: usize,
}

impl Flow<'_> {
    fn room(&self) -> usize {
        self.out.len() - self.at
    }
}
