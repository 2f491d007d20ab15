//! gzip blobs: members, blocks, windows, gaps.

use std::io::Write;

use flate2::{Compress, Compression as Level, FlushCompress, write::GzEncoder};

use super::{deflate::DeflateWriter, *};

pub(super) fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A member whose encoder is flushed after every piece: that puts many blocks, and empty ones, into
/// a little data.
fn flushed(data: &[u8], level: u32, random: &mut Random) -> Vec<u8> {
    let mut deflate = Vec::new();
    let mut encoder = Compress::new(Level::new(level), false);
    let mut rest = data;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(1 + random.below(6000)));
        let flush = match random.below(4) {
            _ if after.is_empty() => FlushCompress::Finish,
            0 => FlushCompress::None,
            1 => FlushCompress::Partial,
            2 => FlushCompress::Sync,
            _ => FlushCompress::Full,
        };
        let mut piece = piece;
        loop {
            deflate.reserve(piece.len() + 1024);
            let before = encoder.total_in();
            let status = encoder.compress_vec(piece, &mut deflate, flush).unwrap();
            piece = &piece[(encoder.total_in() - before) as usize..];
            let room = deflate.capacity() > deflate.len();
            if status == flate2::Status::StreamEnd || (piece.is_empty() && room) {
                break;
            }
        }
        if after.is_empty() {
            break;
        }
        rest = after;
    }
    let mut member = vec![0x1f, 0x8b, 8, 0b1_1110, 0, 0, 0, 0, 0, 3];
    member.extend(b"\x04\x00more");
    member.extend(b"name\0comment\0\x00\x00");
    member.extend(deflate);
    member.extend([0; 8]);
    member
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn spans_give_the_tar_back(
        seed: u64,
        lens in prop::collection::vec(prop_oneof![Just(0usize), 1..60_000usize], 1..4),
        level in 0..10u32,
        junk in prop_oneof![Just(0usize), 0..2000usize],
    ) {
        let mut random = Random::new(seed);
        let (mut blob, mut tar) = (Vec::new(), Vec::new());
        for len in lens {
            let data = random.mixture(len);
            if random.below(3) == 0 {
                blob.extend(gzip(&data, level));
            } else {
                blob.extend(flushed(&data, level, &mut random));
            }
            tar.extend(data);
        }
        blob.resize(blob.len() + junk, 0);
        check_with(&blob, &tar, SMALL);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn spans_of_a_few_mib_give_the_tar_back(seed: u64, level in 0..10u32) {
        let tar = Random::new(seed).mixture(3 << 20);
        let decoded = check(&gzip(&tar, level), &tar);
        // Even at level 1, where zlib-rs writes a single block
        prop_assert_eq!(copied(&decoded), 0);
    }
}

#[test]
fn text_makes_spans_of_about_one_mib_with_small_windows() {
    let tar = Random::new(1).text(8 << 20);
    let blob = gzip(&tar, 6);
    let decoded = check(&blob, &tar);
    assert_eq!(copied(&decoded), 0);
    let (last, full) = decoded.spans.split_last().unwrap();
    for span in full {
        assert!((SPAN_TARGET..SPAN_TARGET + (512 << 10)).contains(&span.tar_len), "{span:?}");
    }
    assert!(last.tar_len < SPAN_TARGET + (512 << 10));
    assert!(decoded.spans[1..].iter().any(|span| span.coding != SpanCoding::Deflate { bits: 0 }));
    assert_eq!(decoded.spans[0].window_len, 0);
    assert!(decoded.windows.len() < decoded.spans.len() * 16_000, "{}", decoded.windows.len());
}

#[test]
fn windows_hold_what_is_used_and_zeros() {
    let mut random = Random::new(2);
    let tar = random.mixture(2 << 20);
    let blob = gzip(&tar, 6);
    let limits = Limits { target: 50_000, max: 1 << 20, held_target: 1 << 20, ..SMALL };
    let decoded = check_with(&blob, &tar, limits);
    assert!(decoded.windows.len() > 1000);
    let mut zeros = 0;
    for span in decoded.spans.iter().filter(|span| span.window_len > 0) {
        let (stored, _) = parts(span, &blob, &decoded);
        let window = ::zstd::bulk::decompress(stored, 32 << 10).unwrap();
        let end = span.tar_offset as usize;
        let truth = &tar[end - window.len()..end];
        for (&byte, &truth) in window.iter().zip(truth) {
            assert!(byte == truth || byte == 0);
            zeros += usize::from(byte != truth);
        }
    }
    assert!(zeros > 0);
}

/// Matches at the far end of the window name its first byte.
#[test]
fn the_oldest_byte_of_the_window_is_found() {
    let window = Random::new(3).bytes(32 << 10);
    let mut writer = DeflateWriter::default();
    writer.stored(false, &window);
    writer.begin_fixed(true);
    writer.match3(32768);
    writer.match3(3);
    writer.literal(200);
    writer.match3(1);
    writer.end_block();
    let blob = writer.into_member();
    let mut tar = window.clone();
    tar.extend_from_slice(&window[..3]);
    tar.extend_from_slice(&window[..3]);
    tar.extend([200; 4]);
    let limits = Limits { max: 40_000, held_target: 40_000, ..SMALL };
    let decoded = check_with(&blob, &tar, limits);
    assert_eq!(decoded.spans.len(), 2);
    let (stored, _) = parts(&decoded.spans[1], &blob, &decoded);
    let sparse = ::zstd::bulk::decompress(stored, 32 << 10).unwrap();
    assert_eq!(sparse.len(), window.len());
    assert_eq!(sparse[..3], window[..3]);
    assert!(sparse[3..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_span_that_looks_back_at_nothing_has_no_window() {
    let mut writer = DeflateWriter::default();
    for i in 0..10 {
        writer.stored(i == 9, &[i; 4000]);
    }
    let tar: Vec<u8> = (0..10).flat_map(|i| [i; 4000]).collect();
    let decoded = check_with(&writer.into_member(), &tar, SMALL);
    assert_eq!(decoded.spans.len(), 10);
    assert!(decoded.windows.is_empty());
}

#[test]
fn small_members_share_a_span() {
    let mut random = Random::new(4);
    let (mut blob, mut tar) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let data = random.text(40_000);
        blob.extend(gzip(&data, 6));
        blob.extend(gzip(b"", 6));
        tar.extend(data);
    }
    blob.extend(gzip(b"", 6));
    let decoded = check(&blob, &tar);
    assert_eq!(decoded.spans.len(), 4);
    assert!(decoded.windows.is_empty());
    let last = decoded.spans[3];
    assert!(last.offset + u64::from(last.len) < blob.len() as u64 - 2 * 20, "empty members count");
}

#[test]
fn empty_members_alone_make_an_empty_tar() {
    let blob = gzip(b"", 6).repeat(3);
    let decoded = check(&blob, b"");
    assert!(decoded.spans.is_empty());
    assert_eq!(decoded.compression, Compression::Gzip);
}

#[test]
fn what_follows_the_last_member_is_ignored() {
    let tar = Random::new(5).text(50_000);
    let member = gzip(&tar, 6);
    let plain = check(&member, &tar);
    let junk: &[&[u8]] = &[
        b"\0",
        b"\x1f",
        &[0; 100_000],
        b"\x1f\x00",
        b"\x1f\x8b\x07 another method",
        b"\x1f\x8b\x08\xff",
        b"junk",
        b"\0\0\0\x1f\x8b\x08\0\0\0\0\0\0\0",
    ];
    for junk in junk {
        let blob = [&member, *junk].concat();
        assert_eq!(check(&blob, &tar), plain, "{:x?}", &junk[..junk.len().min(8)]);
    }
}

#[test]
fn a_first_header_that_is_broken_is_an_error() {
    for (blob, what) in [
        (b"\x1f\x8b\x07\0\0\0\0\0\0\0".as_slice(), "unknown compression method"),
        (b"\x1f\x8b\x08\xe0\0\0\0\0\0\0", "reserved flags are set"),
    ] {
        let error = decode(blob, SMALL).unwrap_err();
        assert_eq!(error.to_string(), format!("gzip header at blob offset 0: {what}"));
    }
}

#[test]
fn every_truncation_is_an_error_or_ends_between_members() {
    let mut random = Random::new(6);
    let data = random.mixture(9000);
    let first = flushed(&data[..5000], 6, &mut random);
    let blob = [first.as_slice(), &gzip(&data[5000..], 9)].concat();
    for len in 2..blob.len() {
        match decode(&blob[..len], SMALL) {
            Ok((tar, decoded)) => {
                assert!(len == first.len() || len == first.len() + 1, "{len}");
                assert_eq!(tar, &data[..5000]);
                assert_spans(&blob[..len], &tar, &decoded, SMALL);
            }
            Err(CodecError::Truncated { compression, offset }) => {
                assert_eq!((compression, offset), (Compression::Gzip, len as u64));
            }
            Err(error) => panic!("{len}: {error}"),
        }
    }
    check_with(&blob, &data, SMALL);
}

#[test]
fn a_corrupt_block_is_an_error_with_its_place() {
    let mut writer = DeflateWriter::default();
    writer.stored(false, &[7; 5000]);
    let place = writer.len() + 10;
    let mut blob = writer.into_member();
    blob.truncate(place);
    blob.extend([0b110; 20]);
    let error = decode(&blob, SMALL).unwrap_err();
    let expected = format!("corrupt deflate data near blob offset {}", place + 1);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn zeros_go_to_the_copy_until_the_next_checkpoint() {
    let mut random = Random::new(7);
    let mut tar = random.text(2 << 20);
    tar.resize(tar.len() + (40 << 20), 0);
    tar.extend(random.text(4 << 20));
    let blob = gzip(&tar, 6);
    let decoded = check(&blob, &tar);
    let copied = copied(&decoded);
    assert!((35 << 20..44 << 20).contains(&copied), "{copied}");
    assert!(decoded.copy.len() < 1 << 20);
    let copies = decoded.spans.iter().filter(|span| span.source == SpanSource::Copy);
    assert!(copies.map(|span| span.tar_len as usize).all(|len| len <= COPY_FRAME));
    let last = decoded.spans.last().unwrap();
    assert_eq!(last.source, SpanSource::Blob);
}

#[test]
fn one_endless_block_goes_to_the_copy() {
    let tar = Random::new(8).text(70_000);
    let mut writer = DeflateWriter::default();
    writer.stored(false, &tar[..5000]);
    writer.begin_fixed(false);
    tar[5000..65_000].iter().for_each(|&byte| writer.literal(byte));
    writer.end_block();
    writer.stored(true, &tar[65_000..]);
    let decoded = check_with(&writer.into_member(), &tar, SMALL);
    assert_eq!(copied(&decoded), 60_000);
    let sources: Vec<_> = decoded.spans.iter().map(|span| span.source).collect();
    assert_eq!(sources.first(), Some(&SpanSource::Blob));
    assert_eq!(sources.last(), Some(&SpanSource::Blob));
    assert_eq!(decoded.spans.len(), 62);
}

/// Blocks that end where limits are reached: no split may see more boundaries than another.
#[test]
fn the_first_boundary_at_the_target_ends_a_span() {
    for (len, expected) in [(2999, 5998), (3000, 3000), (3001, 3001)] {
        let tar = Random::new(13).text(len * 6);
        let mut writer = DeflateWriter::default();
        for (i, piece) in tar.chunks(len).enumerate() {
            writer.begin_fixed(i == 5);
            piece.iter().for_each(|&byte| writer.literal(byte));
            writer.end_block();
        }
        let decoded = check_with(&writer.into_member(), &tar, SMALL);
        assert!(decoded.spans.iter().all(|span| span.tar_len == expected), "{len}");
    }
}

#[test]
fn the_first_boundary_above_the_held_target_ends_a_span() {
    let mut writer = DeflateWriter::default();
    for _ in 0..3 {
        writer.stored(false, b"ten bytes!");
        (0..2000).for_each(|_| writer.stored(false, b""));
    }
    writer.stored(true, b"");
    let decoded = check_with(&writer.into_member(), &b"ten bytes!".repeat(3), SMALL);
    let spans: Vec<_> = decoded.spans.iter().map(|span| (span.tar_len, span.len)).collect();
    // 15 bytes with content, 1198 blocks of 5 bytes without, then none until there is content again
    assert_eq!(spans, [(10, 6005); 3]);
}

/// The longest span there may be, and one byte more.
#[test]
fn a_gap_begins_above_the_maximum() {
    for (len, expected) in [(20_000, 0), (20_001, 20_001)] {
        let tar = Random::new(9).text(len + 10);
        let mut writer = DeflateWriter::default();
        writer.begin_fixed(false);
        tar[..len].iter().for_each(|&byte| writer.literal(byte));
        writer.end_block();
        writer.stored(true, &tar[len..]);
        let limits = Limits { held_target: 30_000, ..SMALL };
        let decoded = check_with(&writer.into_member(), &tar, limits);
        assert_eq!(copied(&decoded), expected);
    }
}

#[test]
fn incompressible_data_makes_ordinary_spans() {
    let tar = Random::new(10).bytes(40 << 20);
    for level in [0, 6] {
        let blob = gzip(&tar, level);
        let (got, decoded) = decode(&blob, Limits::default()).unwrap();
        assert!(got == tar);
        assert_spans(&blob, &tar, &decoded, Limits::default());
        assert_eq!(copied(&decoded), 0);
        assert!((36..=40).contains(&decoded.spans.len()), "{}", decoded.spans.len());
        assert!(decoded.spans.iter().all(|span| span.len < 2 << 20));
    }
}

#[test]
fn changed_bytes_are_a_digest_error() {
    let tar = Random::new(11).mixture(60_000);
    let blob = gzip(&tar, 6);
    let (_, decoded) = decode(&blob, SMALL).unwrap();
    let mut random = Random::new(12);
    for span in &decoded.spans {
        let (window, range) = parts(span, &blob, &decoded);
        let mut changed = range.to_vec();
        let bit = random.below(changed.len() * 8);
        changed[bit / 8] ^= 1 << (bit % 8);
        match decode_span(span, window, &changed) {
            Err(CodecError::Digest { origin, offset, expected, found }) => {
                assert_eq!((origin, offset, expected), (span.source, span.offset, span.digest));
                assert_ne!(found, expected);
            }
            other => panic!("{other:?}"),
        }
        changed.pop();
        assert!(matches!(decode_span(span, window, &changed), Err(CodecError::Length { .. })));
    }
}
