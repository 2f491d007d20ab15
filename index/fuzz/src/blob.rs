//! A tar compressed in several ways.

use std::io::{Read, Write};

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder},
};
use peel_index::{CodecError, Decoded, SpanSource, StreamDecoder, decode_span};

use crate::input::{self, Input};

/// Header of a gzip member with no name, no time and nothing optional.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Most members, frames or flushes: each costs the fuzzer as much as some KiB of tar.
const MAX_PARTS: usize = 12;

/// Compresses `tar` as two bytes of the input say.
pub fn compress(tar: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let coding = input.below(16);
    let parts = parts(tar, input.byte());
    let members = |level| parts.iter().flat_map(move |part| gzip(part, level));
    match coding {
        0 => tar.to_vec(),
        1..=9 => gzip(tar, coding.into()),
        10 => members(1).collect(),
        11 => flushed(&parts),
        12 => gzip(tar, 0).into_iter().chain(vec![0; parts.len()]).collect(),
        13 => members(0).chain(gzip(b"", 6)).collect(),
        14 => zstd(tar),
        _ => parts.iter().flat_map(|part| zstd(part)).collect(),
    }
}

/// The first few pieces of a split, and what is left.
fn parts(tar: &[u8], way: u8) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = input::split(tar, way).take(MAX_PARTS).collect();
    let len = parts.iter().map(|part| part.len()).sum();
    parts.push(&tar[len..]);
    parts
}

/// One gzip member.
pub fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data).expect("into memory");
    encoder.finish().expect("into memory")
}

/// One gzip member with a flush after each part.
fn flushed(parts: &[&[u8]]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(GZIP_HEADER.to_vec(), Compression::new(6));
    for part in parts {
        encoder.write_all(part).expect("into memory");
        encoder.flush().expect("into memory");
    }
    let mut blob = encoder.finish().expect("into memory");
    // Checksum and length: not looked at
    blob.extend_from_slice(&[0; 8]);
    blob
}

/// One zstd frame.
pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 1).expect("into memory")
}

/// Decodes a blob in the pieces given. The copy in the result is whole. `None` as well when the tar
/// is longer than `limit` bytes.
pub fn decode<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    limit: usize,
) -> Option<(Vec<u8>, Decoded)> {
    let mut tar = Vec::new();
    let mut sink = |bytes: &[u8]| {
        tar.extend_from_slice(bytes);
        if tar.len() > limit { Err(CodecError::sink("too long")) } else { Ok(()) }
    };
    let mut decoder = StreamDecoder::new();
    let mut copy = Vec::new();
    for piece in pieces {
        decoder.push(piece, &mut sink).ok()?;
        copy.append(&mut decoder.take_copy());
    }
    let mut decoded = decoder.finish(&mut sink).ok()?;
    copy.append(&mut decoded.copy);
    decoded.copy = copy;
    Some((tar, decoded))
}

/// What another decoder makes of a blob, if it takes all of it.
pub fn reference(blob: &[u8]) -> Option<Vec<u8>> {
    let mut tar = Vec::new();
    match peel_index::Compression::detect(blob) {
        peel_index::Compression::None => tar.extend_from_slice(blob),
        peel_index::Compression::Gzip => {
            flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar).ok().map(drop)?;
        }
        peel_index::Compression::Zstd => zstd::stream::copy_decode(blob, &mut tar).ok()?,
    }
    Some(tar)
}

/// # Panics
/// When the spans do not give exactly `tar`.
pub fn check_spans(blob: &[u8], tar: &[u8], decoded: &Decoded) {
    assert_eq!(decoded.tar_len, tar.len() as u64);
    let mut covered = 0;
    for span in &decoded.spans {
        assert_eq!(span.tar_offset, covered as u64);
        let source = match span.source {
            SpanSource::Blob => blob,
            SpanSource::Copy => &decoded.copy,
        };
        let range = &source[span.offset as usize..][..span.len as usize];
        let window = &decoded.windows[span.window_offset as usize..][..span.window_len as usize];
        let got = decode_span(span, window, range).unwrap_or_else(|e| panic!("{span:?}: {e}"));
        let expected = &tar[covered..covered + span.tar_len as usize];
        assert!(got == expected, "{span:?} gives other bytes");
        covered += span.tar_len as usize;
    }
    assert_eq!(covered, tar.len());
}
