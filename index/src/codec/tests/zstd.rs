//! zstd blobs: frames, groups of frames, frames too large for a span.

use ::zstd::bulk::compress;

use super::*;

/// Header of a skippable frame.
fn skippable(len: u32) -> Vec<u8> {
    let mut frame = vec![0x53, 0x2a, 0x4d, 0x18];
    frame.extend(len.to_le_bytes());
    frame
}

/// Start of a frame with a window of `1 << window_log`, without content size or checksum.
fn frame_header(window_log: u8) -> Vec<u8> {
    vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3]
}

const EMPTY_BLOCK: [u8; 3] = [0, 0, 0];
const EMPTY_LAST_BLOCK: [u8; 3] = [1, 0, 0];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn spans_give_the_tar_back(
        seed: u64,
        lens in prop::collection::vec(
            prop_oneof![Just(0usize), 1..2000usize, 1000..40_000usize],
            1..30,
        ),
        level in 1..6,
    ) {
        let mut random = Random::new(seed);
        let (mut blob, mut tar) = (Vec::new(), Vec::new());
        for len in lens {
            let data = random.mixture(len);
            match random.below(4) {
                0 => {
                    let len = random.below(9000);
                    blob.extend(skippable(len as u32));
                    blob.extend(random.bytes(len));
                }
                // Without content size, with a checksum
                1 => {
                    let mut encoder = ::zstd::Encoder::new(&mut blob, level).unwrap();
                    encoder.include_checksum(true).unwrap();
                    std::io::copy(&mut data.as_slice(), &mut encoder).unwrap();
                    encoder.finish().unwrap();
                    tar.extend(data);
                }
                _ => {
                    blob.extend(compress(&data, level).unwrap());
                    tar.extend(data);
                }
            }
        }
        check_with(&blob, &tar, SMALL);
    }
}

#[test]
fn one_large_frame_goes_to_the_copy() {
    let tar = Random::new(1).text(6 << 20);
    let blob = compress(&tar, 3).unwrap();
    let decoded = check(&blob, &tar);
    assert_eq!(decoded.compression, Compression::Zstd);
    assert_eq!(copied(&decoded), tar.len() as u64);
    assert_eq!(decoded.spans.len(), 24);
}

#[test]
fn a_frame_that_fits_is_a_span() {
    let tar = Random::new(2).text(SPAN_MAX as usize);
    let decoded = check(&compress(&tar, 1).unwrap(), &tar);
    assert_eq!(decoded.spans.len(), 1);
    assert_eq!(copied(&decoded), 0);
}

#[test]
fn small_frames_share_a_span_and_large_ones_do_not_take_them_along() {
    let mut random = Random::new(3);
    let (mut blob, mut tar) = (Vec::new(), Vec::new());
    let lens = [&[100_000; 25][..], &[5 << 20], &[100_000; 3][..]].concat();
    for len in lens {
        let data = random.text(len);
        blob.extend(compress(&data, 1).unwrap());
        tar.extend(data);
    }
    blob.extend(skippable(1000));
    blob.extend([1; 1000]);
    let decoded = check(&blob, &tar);
    let lens: Vec<u32> =
        decoded.spans.iter().filter(|s| s.source == SpanSource::Blob).map(|s| s.tar_len).collect();
    assert_eq!(lens, [1_100_000, 1_100_000, 300_000, 300_000]);
    assert_eq!(copied(&decoded), 5 << 20);
    let last = decoded.spans.last().unwrap();
    assert_eq!(last.offset + u64::from(last.len), blob.len() as u64 - 1008);
}

#[test]
fn every_truncation_is_an_error_or_ends_between_frames() {
    let data = Random::new(4).mixture(4000);
    let mut blob = Vec::new();
    let mut ends = Vec::new();
    for piece in data.chunks(1500) {
        blob.extend(compress(piece, 3).unwrap());
        ends.push(blob.len());
        blob.extend(skippable(5));
        blob.extend([9; 5]);
        ends.push(blob.len());
    }
    for len in 4..blob.len() {
        match decode(&blob[..len], SMALL) {
            Ok((tar, decoded)) => {
                assert!(ends.contains(&len), "{len}");
                assert!(data.starts_with(&tar));
                assert_spans(&blob[..len], &tar, &decoded, SMALL);
            }
            Err(CodecError::Truncated { compression, offset }) => {
                assert_eq!((compression, offset), (Compression::Zstd, len as u64));
                assert!(!ends.contains(&len));
            }
            Err(error) => panic!("{len}: {error}"),
        }
    }
}

#[test]
fn junk_after_a_frame_is_an_error() {
    let mut blob = compress(b"content", 1).unwrap();
    blob.extend([0; 20]);
    assert!(matches!(decode(&blob, SMALL), Err(CodecError::Zstd { .. })));
}

#[test]
fn windows_above_128_mib_are_refused() {
    let blob = [frame_header(27), EMPTY_LAST_BLOCK.to_vec()].concat();
    check(&blob, b"");
    let blob = [frame_header(28), EMPTY_LAST_BLOCK.to_vec()].concat();
    let error = decode(&blob, SMALL).unwrap_err();
    assert!(error.to_string().contains("needs a window of more than 134217728 bytes"), "{error}");
}

#[test]
fn frames_and_blocks_without_content_are_not_held() {
    let content = compress(&[b'x'; 500], 1).unwrap();
    let tar = [b'x'; 1000];
    // In one skippable frame, in the blocks of one frame, and in many frames
    let long = [skippable(1 << 20), vec![0; 1 << 20]].concat();
    let blocks =
        [frame_header(17), EMPTY_BLOCK.repeat(300_000), EMPTY_LAST_BLOCK.to_vec()].concat();
    let frames = [frame_header(17), EMPTY_LAST_BLOCK.to_vec()].concat().repeat(100_000);
    for filler in [long, blocks, frames] {
        let blob = [content.as_slice(), &filler, &content, &filler].concat();
        let mut decoder = decoder(SMALL);
        let mut got = Vec::new();
        for piece in blob.chunks(10_000) {
            decoder
                .push(piece, &mut |bytes| {
                    got.extend_from_slice(bytes);
                    Ok(())
                })
                .unwrap();
            let Stream::Zstd(stream) = &decoder.stream else { panic!("it is zstd") };
            assert!(stream.held_capacity() < 200_000, "{}", stream.held_capacity());
        }
        assert_eq!(got, tar);
        let decoded = check_with(&blob, &tar, SMALL);
        assert_eq!(copied(&decoded), 0);
        assert_eq!(decoded.spans.len(), 2);
        assert_eq!(decoded.spans[0].len as usize, content.len());
    }
}
