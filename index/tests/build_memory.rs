//! Peak memory of building the index of a long layer, counted at the allocator.
//!
//! Everything runs in one test: the counters are the process's.

mod support;

use std::{
    fmt::Write as _,
    io::{Seek as _, Write as _},
    sync::Arc,
};

use flate2::{Compress, Compression, FlushCompress};
use peel_index::{Algorithm, Layer, LayerBuilder, Slot};
use support::{allocator, headers};

const PIECE: usize = 1 << 20;

/// What the peak may be: buffers, a span, and what is taken out only now and then.
const MOST: usize = 12 << 20;

/// What it may grow by from the first length to the second: a span takes up to 300 bytes.
const GROWTH: usize = 512 << 10;

/// Words of which no two lines are the same.
fn text() -> Vec<u8> {
    let (mut text, mut state) = (String::with_capacity(PIECE + 64), 1_u64);
    while text.len() < PIECE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let _ = writeln!(text, "{:x} lorem ipsum dolor {} sit amet", state >> 40, state >> 60);
    }
    text.truncate(PIECE);
    text.into_bytes()
}

/// A gzip blob in three parts: the header of a tar and the first piece of its file; the same piece
/// after itself, to be repeated; the end.
fn parts(pieces: usize) -> [Vec<u8>; 3] {
    let mut header = headers::ustar(b'0', "long", "");
    header[124..136].copy_from_slice(format!("{:011o}\0", pieces * PIECE).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    let (text, mut encoder) = (text(), Compress::new(Compression::new(1), false));
    let mut compress = |bytes: &[u8], flush| {
        let mut out = Vec::with_capacity(bytes.len() + 1024);
        encoder.compress_vec(bytes, &mut out, flush).expect("compress");
        assert!(out.len() < out.capacity(), "room was left");
        out
    };
    let mut first = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    first.extend(compress(&header, FlushCompress::Sync));
    first.extend(compress(&text, FlushCompress::Sync));
    let again = compress(&text, FlushCompress::Sync);
    let mut last = compress(&[0; 1024], FlushCompress::Finish);
    // Nobody looks at checksum and length
    last.extend([0; 8]);
    [first, again, last]
}

/// Peak of the build, and the index.
fn build(pieces: usize, spread: bool) -> (usize, Vec<u8>) {
    let [first, again, last] = parts(pieces);
    let mut windows = tempfile::tempfile().expect("a file");
    let (built, peak) = allocator::peak(|| {
        let mut builder = LayerBuilder::new(Algorithm::Sha256);
        if spread {
            builder.spread();
        }
        let mut push = |part: &[u8]| {
            builder.push(part).expect("valid");
            assert!(builder.take_copy().is_empty());
            windows.write_all(&builder.take_windows()).expect("written");
        };
        push(&first);
        (1..pieces).for_each(|_| push(&again));
        push(&last);
        builder.finish().expect("valid")
    });
    let mut index = Vec::new();
    let slot = Slot::new(1).expect("a slot");
    windows.rewind().expect("rewind");
    built.write_to(slot, &mut index, &windows).expect("written");
    if windows.metadata().expect("a length").len() > 0 {
        let too_few = built.write_to(slot, &mut Vec::new(), std::io::empty());
        assert!(too_few.is_err(), "the windows are missing");
    }
    (peak, index)
}

#[test]
fn peak_of_a_build_does_not_grow_with_the_tar() {
    // Longer by hand, for figures
    let pieces = std::env::var("PEEL_TEST_PIECES").ok().and_then(|pieces| pieces.parse().ok());
    let pieces: [usize; 2] = [448, pieces.unwrap_or(1024)];
    for spread in [false, true] {
        let [short, long] = pieces.map(|pieces| {
            let (peak, index) = build(pieces, spread);
            println!("{pieces} MiB, threads {spread}: peak {peak}, index {} bytes", index.len());
            assert!(peak <= MOST, "{pieces} MiB: {peak} bytes, expected at most {MOST}");
            let layer = Layer::open(Arc::new(index)).expect("a whole index");
            assert!(layer.tar_len() > (pieces * PIECE) as u64);
            peak
        });
        assert!(long <= short + GROWTH, "{short} bytes grow to {long}");
    }
}
