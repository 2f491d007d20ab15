//! Streams that were made to hurt, and accidents.

use ::zstd::bulk::compress;

use super::{deflate::DeflateWriter, gzip::gzip, *};

/// Decodes whatever it is; where that works, its spans must work as well.
fn survive(blob: &[u8], step: usize) -> bool {
    let Ok((tar, decoded)) = decode_split(blob, SMALL, || step) else {
        return false;
    };
    assert_spans(blob, &tar, &decoded, SMALL);
    true
}

#[test]
fn mutations_never_panic_and_splits_do_not_matter() {
    let mut random = Random::new(1);
    let data = random.mixture(12_000);
    let mut writer = DeflateWriter::default();
    for (i, piece) in data.chunks(700).enumerate() {
        if i % 2 == 0 {
            writer.stored(false, piece);
        } else {
            writer.begin_fixed(false);
            piece.iter().for_each(|&byte| writer.literal(byte));
            writer.end_block();
        }
    }
    writer.empty_fixed(true);
    let frames: Vec<u8> = data.chunks(2500).flat_map(|piece| compress(piece, 3).unwrap()).collect();
    let seeds = [
        gzip(&data, 6),
        [gzip(&data[..4000], 9), gzip(&data[4000..], 1)].concat(),
        writer.into_member(),
        frames,
        compress(&data, 3).unwrap(),
    ];
    for seed in &seeds {
        assert!(survive(seed, 4096));
        for _ in 0..300 {
            let mut blob = seed.clone();
            for _ in 0..1 + random.below(4) {
                let at = random.below(blob.len());
                match random.below(4) {
                    0 => blob[at] ^= 1 << random.below(8),
                    1 => blob[at] = random.next() as u8,
                    2 => blob.truncate(at.max(4)),
                    _ => {
                        let from = random.below(blob.len());
                        let piece = blob[from..(from + 30).min(blob.len())].to_vec();
                        blob.splice(at..at, piece);
                    }
                }
            }
            assert_eq!(survive(&blob, usize::MAX), survive(&blob, 1 + random.below(300)));
        }
    }
}

/// A damaged index must not do more harm than an error.
#[test]
fn spans_with_wrong_fields_never_panic() {
    let mut random = Random::new(2);
    let data = random.mixture(60_000);
    for blob in [gzip(&data, 6), compress(&data, 3).unwrap()] {
        let (_, decoded) = decode(&blob, SMALL).unwrap();
        for span in &decoded.spans {
            let (window, range) = parts(span, &blob, &decoded);
            for _ in 0..20 {
                let (from, to) = (random.below(range.len()), 1 + random.below(range.len()));
                let range = &range[from.min(to)..to];
                let window = &window[..random.below(window.len() + 1)];
                let wrong = Span {
                    tar_len: random.below(1 << 16) as u32,
                    len: range.len() as u32,
                    coding: SpanCoding::from_code(random.below(24) as u8).unwrap_or(span.coding),
                    digest: *blake3::hash(range).as_bytes(),
                    ..*span
                };
                if let Ok(tar) = decode_span(&wrong, window, range) {
                    assert_eq!(tar.len(), wrong.tar_len as usize);
                }
            }
        }
    }
}

/// Pushes a gzip blob and watches what is held.
fn push_watched(blob: &[u8], most: usize) -> (usize, Result<Decoded, CodecError>) {
    let mut decoder = decoder(SMALL);
    let mut tar = 0;
    for piece in blob.chunks(10_000) {
        let pushed = decoder.push(piece, &mut |bytes| {
            tar += bytes.len();
            Ok(())
        });
        if let Err(error) = pushed {
            return (tar, Err(error));
        }
        if let Stream::Gzip(stream) = &decoder.stream {
            assert!(stream.held_capacity() <= most, "{} are held", stream.held_capacity());
        }
    }
    (tar, decoder.finish(&mut |_| Ok(())))
}

#[test]
fn blocks_without_content_are_not_held() {
    for before in [&b""[..], b"content"] {
        let mut writer = DeflateWriter::default();
        writer.stored(false, before);
        for _ in 0..200_000 {
            writer.empty_fixed(false);
        }
        for _ in 0..100_000 {
            writer.stored(false, b"");
        }
        writer.begin_fixed(true);
        (0..100).for_each(|_| writer.literal(b'x'));
        writer.end_block();
        let blob = writer.into_member();
        let tar = [before, &[b'x'; 100]].concat();
        let (len, decoded) = push_watched(&blob, 40_000);
        assert_eq!(len, tar.len());
        let decoded = decoded.unwrap();
        assert_spans(&blob, &tar, &decoded, SMALL);
        // What leads to the first tar byte is in no span
        let last = decoded.spans.last().unwrap();
        assert!((100..200).contains(&last.len), "{last:?}");
    }
}

#[test]
fn members_without_content_are_not_held() {
    let content = gzip(b"content", 6);
    let blob = [content.as_slice(), &gzip(b"", 6).repeat(50_000), &content].concat();
    let (_, decoded) = push_watched(&blob, 40_000);
    let decoded = decoded.unwrap();
    assert_eq!(decoded.spans.len(), 2);
    assert_spans(&blob, b"contentcontent", &decoded, SMALL);
}

#[test]
fn an_endless_header_is_an_error() {
    let content = gzip(b"content", 6);
    let mut endless = vec![0x1f, 0x8b, 8, 1 << 3, 0, 0, 0, 0, 0, 3];
    endless.resize(4 << 20, b'n');
    let blob = [content.as_slice(), &endless].concat();
    let (_, result) = push_watched(&blob, 3 << 20);
    let expected = format!("gzip header at blob offset {}: longer than 1 MiB", content.len());
    assert_eq!(result.unwrap_err().to_string(), expected);
}

/// A block as dense as can be: what is held stays in proportion to the tar.
#[test]
fn blocks_without_end_are_not_held() {
    let mut writer = DeflateWriter::default();
    writer.begin_fixed(true);
    let tar = [255; 1 << 20];
    tar.iter().for_each(|&byte| writer.literal(byte));
    writer.end_block();
    let (len, decoded) = push_watched(&writer.into_member(), 400_000);
    assert_eq!(len, 1 << 20);
    assert_eq!(copied(&decoded.unwrap()), 1 << 20);
}
