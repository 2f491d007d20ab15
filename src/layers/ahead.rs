//! Which reads are in order, so that what comes next is worth decoding ahead.
//!
//! Seen from a layer's tar, a big file read from its start and many small files read in the tar's
//! order are the same: reads that begin where others ended. Images are packed and walked in the
//! order of names, so `find | xargs cat`, `tar` and `cp -a` read nearly all files that way.
//!
//! Locking: one mutex, held for a look at a few numbers.

use std::sync::{Mutex, PoisonError};

use peel_index::Slot;

/// Readers that are told apart. An image has a handful of layers, and each may be read by some;
/// looking at all of these takes 20 ns.
const STREAMS: usize = 16;

/// How far past the end of the last read one may begin, in bytes of tar. Between two files there is
/// padding and a header or three; of 28,000 steps from file to file in the images measured, 99 %
/// were below 4 KiB, and nearly all others below this.
const GAP: u64 = 64 << 10;

/// Bytes read in order from which on the next span is decoded ahead: three of the kernel's reads. One
/// is what it reads around a page fault in a library, and says nothing of the next; random reads of
/// 4 KiB have to follow one another 96 times within [`GAP`] before they look like this.
const START: u64 = 384 << 10;

/// Bytes read in order for each further span ahead.
const MORE: u64 = 1 << 20;

/// Most spans decoded ahead of one reader. The second keeps both cores of a small machine at work
/// while the reader's own requests wait; the third covers for a slow one.
const MOST: u32 = 3;

#[derive(Debug, Clone, Copy)]
struct Stream {
    slot: Slot,
    /// Where the next read should begin.
    next: u64,
    /// Bytes read in order.
    run: u64,
    /// When it was read from last.
    used: u64,
}

/// Tells reads in order from others.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<(u64, Vec<Stream>)>);

impl Streams {
    /// Takes note of a read of the tar bytes `[start, end)`; gives how many spans after the one
    /// that it ends in are worth decoding ahead.
    pub(super) fn note(&self, slot: Slot, start: u64, end: u64) -> u32 {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (clock, streams) = &mut *guard;
        *clock += 1;
        let near = |s: &&mut Stream| {
            s.slot == slot && (s.next..=s.next.saturating_add(GAP)).contains(&start)
        };
        let run = match streams.iter_mut().find(near) {
            Some(stream) => {
                stream.used = *clock;
                stream.run += end.saturating_sub(start);
                stream.next = end;
                stream.run
            }
            None => {
                let run = end.saturating_sub(start);
                let stream = Stream { slot, next: end, run, used: *clock };
                if streams.len() < STREAMS {
                    streams.push(stream);
                } else if let Some(oldest) = streams.iter_mut().min_by_key(|s| s.used) {
                    *oldest = stream;
                }
                run
            }
        };
        match run {
            0..START => 0,
            _ => u32::try_from(run / MORE).unwrap_or(MOST).saturating_add(1).min(MOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: u32) -> Slot {
        Slot::new(n).expect("a slot")
    }

    #[test]
    fn a_file_from_its_start() {
        let streams = Streams::default();
        let mut seen = Vec::new();
        for n in 0..40 {
            seen.push(streams.note(slot(1), n * (128 << 10), (n + 1) * (128 << 10)));
        }
        assert_eq!((seen[1], seen[2], seen[7], seen[15], seen[39]), (0, 1, 2, MOST, MOST));
        assert!(seen.is_sorted());
    }

    #[test]
    fn small_files_one_after_the_other_and_requests_that_overtake() {
        let streams = Streams::default();
        let last = (0..100_u64).map(|n| streams.note(slot(1), n * 9000, n * 9000 + 8000)).last();
        assert_eq!(last, Some(1));
        let streams = Streams::default();
        for n in [1, 0, 3, 2, 5, 4_u64] {
            // One long request is reason enough
            assert!(streams.note(slot(1), n << 19, (n + 1) << 19) >= 1);
        }
    }

    #[test]
    fn readers_are_told_apart() {
        let streams = Streams::default();
        for n in 0..30_u64 {
            for reader in 1..=8 {
                let at = u64::from(reader) * (100 << 20) + n * (64 << 10);
                let depth = streams.note(slot(reader % 3 + 1), at, at + (64 << 10));
                assert_eq!(depth, [0, 1, 2][(n >= 5) as usize + (n >= 15) as usize], "{n}");
            }
        }
    }

    #[test]
    fn random_reads_start_nothing() {
        let streams = Streams::default();
        let mut at = 1_u64;
        for _ in 0..100_000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let start = (at >> 33) % (25 << 20);
            assert_eq!(streams.note(slot(1), start, start + 4096), 0);
        }
    }
}
