//! `StreamDecoder` over any bytes: gzip, zstd, or neither.
//!
//! Invariants: no panic; splits do not matter, neither for success nor for what comes out; the spans,
//! each decoded by itself, are exactly the tar; another decoder that takes the blob as well gives the
//! same tar; memory is bounded. The first byte says how to split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peel_index_fuzz::{blob, input::split, memory};

/// Longer tars only cost time.
const MAX_TAR: usize = 1 << 20;

/// Buffers of the decoders, tar and spans of [`MAX_TAR`] with a window for each.
const MAX_MEMORY: usize = 24 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&way, bytes)) = data.split_first() else { return };
    let decode = || blob::decode([bytes].into_iter(), MAX_TAR);
    let whole = memory::bounded(MAX_MEMORY, decode);
    let again = blob::decode(split(bytes, way), MAX_TAR);
    assert!(whole == again, "another split");
    let Some((tar, decoded)) = whole else { return };
    blob::check_spans(bytes, &tar, &decoded);
    if let Some(expected) = blob::reference(bytes) {
        assert!(tar == expected, "another decoder gives other bytes");
    }
});
