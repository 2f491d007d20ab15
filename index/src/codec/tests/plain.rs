//! Blobs that are the tar itself.

use super::*;

#[test]
fn spans_are_slices() {
    let target = SPAN_TARGET as usize;
    for len in [0, 1, 3, 4, 5, target - 1, target, target + 1, 3 * target + 100] {
        let tar = Random::new(len as u64).text(len);
        let decoded = check(&tar, &tar);
        assert_eq!(decoded.compression, Compression::None);
        assert_eq!(decoded.spans.len(), len.div_ceil(target));
        for span in &decoded.spans {
            assert_eq!((span.coding, span.offset), (SpanCoding::Plain, span.tar_offset));
        }
    }
}

#[test]
fn damaged_spans_are_errors() {
    let tar = Random::new(1).text(5000);
    let (_, decoded) = decode(&tar, Limits::default()).unwrap();
    let span = decoded.spans[0];
    let longer = Span { tar_len: 5001, ..span };
    assert!(matches!(
        decode_span(&longer, &[], &tar),
        Err(CodecError::Short { expected: 5001, found: 5000, .. })
    ));
    let shorter = Span { tar_len: 10, ..span };
    assert_eq!(decode_span(&shorter, &[], &tar).unwrap(), &tar[..10]);
    let huge = Span { tar_len: u32::MAX, ..span };
    assert!(matches!(
        decode_span(&huge, &[], &tar),
        Err(CodecError::Field { field: "tar_len", .. })
    ));
    let bits = Span { coding: SpanCoding::Deflate { bits: 8 }, ..span };
    assert!(matches!(decode_span(&bits, &[], &tar), Err(CodecError::Field { field: "bits", .. })));
    let window = Span { coding: SpanCoding::Deflate { bits: 3 }, ..span };
    assert!(matches!(decode_span(&window, b"junk", &tar), Err(CodecError::Window { .. })));
    // A window that would have more than 32 KiB
    let bomb = ::zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
    assert!(matches!(decode_span(&window, &bomb, &tar), Err(CodecError::Window { .. })));
}
