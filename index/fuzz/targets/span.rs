//! `decode_span` over a hostile span: any coding, lengths, window and compressed bytes, with a digest
//! that is right.
//!
//! Invariants: no panic; what comes out is as long as the span says; memory in proportion to that; a
//! decoder that has seen it before, or failed over it, gives the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peel_index::{SPAN_MAX, Span, SpanCoding, SpanDecoder, SpanSource, decode_span};
use peel_index_fuzz::{input::Input, memory};

/// The state of inflate, and the deflate window twice.
const MAX_OVERHEAD: usize = 256 << 10;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let coding = input.byte();
    let coding = SpanCoding::from_code(coding).unwrap_or(SpanCoding::Deflate { bits: coding });
    let (tar_len, window_len) = (input.number() % (2 * SPAN_MAX), input.number() % 16384);
    let window = input.take(window_len as usize);
    let compressed = input.rest();
    let span = Span {
        tar_offset: 0,
        tar_len,
        source: SpanSource::Blob,
        offset: 0,
        len: compressed.len() as u32,
        coding,
        window_offset: 0,
        window_len: window.len() as u32,
        digest: *blake3::hash(compressed).as_bytes(),
    };
    let limit = tar_len.min(SPAN_MAX) as usize + MAX_OVERHEAD;
    let expected = memory::bounded(limit, || decode_span(&span, window, compressed)).ok();
    assert!(expected.as_ref().is_none_or(|tar| tar.len() == tar_len as usize));
    let (mut decoder, mut tar) = (SpanDecoder::default(), Vec::new());
    for _ in 0..2 {
        let decoded = decoder.decode(&span, window, compressed, &mut tar);
        assert_eq!(decoded.is_ok(), expected.is_some());
        assert!(expected.as_ref().is_none_or(|expected| *expected == tar));
    }
});
