//! Tests of the codecs against full decompression: whatever the blob, its spans, each on its own,
//! give the tar back.

mod deflate;
mod gzip;
mod hostile;
mod inflate;
mod oracle;
mod plain;
mod tools;
mod zstd;

use proptest::prelude::*;

use super::{assembly::Limits, *};

/// Limits that put a few spans, gaps and copies into some ten KiB.
const SMALL: Limits =
    Limits { target: 3000, max: 20_000, held_target: 6000, held_max: 24_000, copy_frame: 1000 };

/// A small generator of pseudo-random numbers (xorshift64*), so that a failure comes back.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit.max(1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Words from a small vocabulary, as text compresses.
    fn text(&mut self, len: usize) -> Vec<u8> {
        let words: Vec<Vec<u8>> = (0..400)
            .map(|_| {
                let len = 2 + self.below(9);
                let mut word: Vec<u8> = (0..len).map(|_| b'a' + self.below(26) as u8).collect();
                word.push(b' ');
                word
            })
            .collect();
        let mut text = Vec::with_capacity(len + 16);
        while text.len() < len {
            let word = self.below(words.len()).min(self.below(words.len()));
            text.extend_from_slice(&words[word]);
        }
        text.truncate(len);
        text
    }

    /// A stretch of everything: text, noise, runs of one byte, repeats from up to 40 KiB before.
    fn mixture(&mut self, len: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let piece = 1 + self.below(5000);
            match self.below(5) {
                0 => data.extend(self.bytes(piece)),
                1 => data.resize(data.len() + piece, 0),
                2 | 3 if data.len() > 4 => {
                    let distance = 1 + self.below(data.len().min(40 << 10));
                    let from = data.len() - distance;
                    (0..piece).for_each(|i| data.push(data[from + i]));
                }
                _ => data.extend(self.text(piece)),
            }
        }
        data.truncate(len);
        data
    }
}

fn decoder(limits: Limits) -> StreamDecoder {
    let mut decoder = StreamDecoder::new();
    decoder.assembly.limits = limits;
    decoder
}

/// Decodes a blob pushed in pieces of the sizes that `split` gives. The copy in the result is whole.
fn decode_split(
    blob: &[u8],
    limits: Limits,
    mut split: impl FnMut() -> usize,
) -> Result<(Vec<u8>, Decoded), CodecError> {
    let mut decoder = decoder(limits);
    let (mut tar, mut copy) = (Vec::new(), Vec::new());
    let mut rest = blob;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(split().clamp(1, rest.len()));
        decoder.push(piece, &mut |bytes| {
            tar.extend_from_slice(bytes);
            Ok(())
        })?;
        copy.append(&mut decoder.take_copy());
        rest = after;
    }
    let mut decoded = decoder.finish(&mut |bytes| {
        tar.extend_from_slice(bytes);
        Ok(())
    })?;
    copy.append(&mut decoded.copy);
    decoded.copy = copy;
    Ok((tar, decoded))
}

fn decode(blob: &[u8], limits: Limits) -> Result<(Vec<u8>, Decoded), CodecError> {
    decode_split(blob, limits, || usize::MAX)
}

/// What a span's range and window are, with nothing around them.
fn parts<'a>(span: &Span, blob: &'a [u8], decoded: &'a Decoded) -> (&'a [u8], &'a [u8]) {
    let source = match span.source {
        SpanSource::Blob => blob,
        SpanSource::Copy => &decoded.copy,
    };
    let range = &source[span.offset as usize..][..span.len as usize];
    let window = &decoded.windows[span.window_offset as usize..][..span.window_len as usize];
    (window, range)
}

/// The spans cover the tar, and each gives its part of it.
fn assert_spans(blob: &[u8], tar: &[u8], decoded: &Decoded, limits: Limits) {
    assert_eq!(decoded.tar_len, tar.len() as u64);
    let mut covered = 0;
    for span in &decoded.spans {
        assert_eq!(span.tar_offset, covered, "{span:?}");
        assert!((1..=limits.max).contains(&u64::from(span.tar_len)), "{span:?}");
        let (window, range) = parts(span, blob, decoded);
        let got = decode_span(span, window, range).unwrap_or_else(|e| panic!("{span:?}: {e}"));
        let expected = &tar[covered as usize..][..span.tar_len as usize];
        assert!(got == expected, "{span:?} decodes to something else");
        assert_reader(span, window, range, expected);
        covered += u64::from(span.tar_len);
    }
    assert_eq!(covered, decoded.tar_len);
}

/// A reader gives the same in whatever steps.
fn assert_reader(span: &Span, window: &[u8], range: &[u8], expected: &[u8]) {
    let mut reader = SpanReader::new(span, window, range.to_vec()).unwrap();
    assert_eq!(reader.tar_len(), expected.len());
    let mut random = Random::new(span.tar_offset ^ range.len() as u64);
    let mut upto = 0;
    while !reader.is_complete() {
        assert!(reader.memory() > reader.decoded().len());
        upto += random.below(expected.len() / 3 + 300);
        reader.advance(upto).unwrap();
        assert!(reader.decoded().len() >= upto.min(expected.len()));
        assert!(expected.starts_with(reader.decoded()), "{span:?} differs before {upto}");
    }
    reader.advance(usize::MAX).unwrap();
    assert!(reader.into_bytes() == expected);
}

/// Decodes `blob` in several splits, which must make no difference, and checks every span.
fn check_with(blob: &[u8], tar: &[u8], limits: Limits) -> Decoded {
    let (got, decoded) = decode(blob, limits).unwrap();
    assert!(got == tar, "the tar differs: {} bytes, expected {}", got.len(), tar.len());
    assert_spans(blob, tar, &decoded, limits);
    let mut random = Random::new(blob.len() as u64);
    let mut sizes: Vec<usize> = vec![1 + random.below(100_000), 4096];
    if blob.len() < 30_000 {
        sizes.extend([1, 2, 7]);
    }
    for size in sizes {
        let (again, other) = decode_split(blob, limits, || size).unwrap();
        assert!(again == tar && other == decoded, "pushes of {size} bytes make a difference");
    }
    let (again, other) = decode_split(blob, limits, || random.below(3000)).unwrap();
    assert!(again == tar && other == decoded, "pushes of random sizes make a difference");
    decoded
}

fn check(blob: &[u8], tar: &[u8]) -> Decoded {
    check_with(blob, tar, Limits::default())
}

/// Copies of the spans count, for expectations.
fn copied(decoded: &Decoded) -> u64 {
    let copies = decoded.spans.iter().filter(|span| span.source == SpanSource::Copy);
    copies.map(|span| u64::from(span.tar_len)).sum()
}

#[test]
fn codes_come_back() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        assert_eq!(Compression::from_code(compression.code()), Some(compression));
    }
    for source in [SpanSource::Blob, SpanSource::Copy] {
        assert_eq!(SpanSource::from_code(source.code()), Some(source));
    }
    let deflate = (0..8).map(|bits| SpanCoding::Deflate { bits });
    let codings = [SpanCoding::Plain, SpanCoding::ZstdFrames].into_iter().chain(deflate);
    let codes: Vec<u8> = codings
        .map(|coding| {
            assert_eq!(SpanCoding::from_code(coding.code()), Some(coding));
            coding.code()
        })
        .collect();
    for code in 0..=255 {
        assert_eq!(SpanCoding::from_code(code).is_some(), codes.contains(&code), "{code}");
    }
}

#[test]
fn compression_shows_in_the_first_bytes() {
    let cases: &[(&[u8], Compression)] = &[
        (b"", Compression::None),
        (b"\x1f", Compression::None),
        (b"\x1f\x8b", Compression::Gzip),
        (b"\x1f\x8b\x08\x00", Compression::Gzip),
        (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        (b"\x50\x2a\x4d\x18", Compression::Zstd),
        (b"\x5f\x2a\x4d\x18rest", Compression::Zstd),
        (b"\x60\x2a\x4d\x18", Compression::None),
        (b"etc/passwd", Compression::None),
    ];
    for &(first, expected) in cases {
        assert_eq!(Compression::detect(first), expected, "{first:x?}");
    }
}

#[test]
fn a_refusing_sink_ends_the_decoder() {
    for blob in
        [b"a tar".to_vec(), gzip::gzip(b"a tar", 6), ::zstd::bulk::compress(b"a tar", 1).unwrap()]
    {
        let mut decoder = StreamDecoder::new();
        let error = decoder.push(&blob, &mut |_| Err(CodecError::sink("not today"))).unwrap_err();
        assert_eq!(error.to_string(), "not today");
        assert!(matches!(decoder.push(b"", &mut |_| Ok(())), Err(CodecError::Spent)));
        assert!(matches!(decoder.finish(&mut |_| Ok(())), Err(CodecError::Spent)));
    }
}

#[test]
fn the_decoder_moves_between_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<StreamDecoder>();
    assert_send::<CodecError>();
}
