//! Whole layers of every compression: the exact tar comes back, and threads change nothing.

use std::{fmt::Write as _, io::Write as _, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use peel_index::{
    Algorithm, BuildError, BuiltLayer, Digest, Hasher, Layer, LayerBuilder, Slot, SpanSource,
    TarStream,
};

/// Text that deflate makes about a third of, never the same twice.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let (mut text, mut state) = (String::with_capacity(len + 64), seed | 1);
    while text.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let _ = write!(text, "{:x} the quick brown fox {} ", state >> 33, state >> 60);
    }
    text.truncate(len);
    text.into_bytes()
}

/// Three files of text, and one of zeros that a gzip has no boundary in.
fn tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let contents = [text(3_000_000, 1), vec![0; 9_000_000], text(2_500_001, 3), Vec::new()];
    for (number, content) in contents.iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("dir/file{number}"), &content[..]).expect("append");
    }
    tar.into_inner().expect("finish")
}

fn gzip(tar: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(tar).expect("compress");
    encoder.finish().expect("compress")
}

fn zstd(tar: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(tar, 1).expect("compress")
}

fn chunks(tar: &[u8], len: usize, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    tar.chunks(len).flat_map(compress).collect()
}

/// The index and the seekable copy, with threads from the given offset of the blob on.
fn build(blob: &[u8], spread_at: Option<usize>) -> Result<(BuiltLayer, Vec<u8>), BuildError> {
    let (mut builder, mut copy) = (LayerBuilder::new(Algorithm::Sha256), Vec::new());
    let (before, after) = blob.split_at(spread_at.unwrap_or(blob.len()));
    before.chunks(100_003).try_for_each(|chunk| builder.push(chunk))?;
    if spread_at.is_some() {
        builder.spread();
    }
    for chunk in after.chunks(300_007) {
        builder.push(chunk)?;
        copy.append(&mut builder.take_copy());
    }
    let mut built = builder.finish()?;
    copy.append(&mut built.copy_rest);
    Ok((built, copy))
}

#[test]
fn the_tar_comes_back_and_threads_change_nothing() {
    let tar = tar();
    let blobs = [
        ("tar", tar.clone()),
        ("gzip -1", gzip(&tar, 1)),
        ("gzip -9", gzip(&tar, 9)),
        ("stored blocks", gzip(&tar, 0)),
        ("members", chunks(&tar, 400_000, |tar| gzip(tar, 6))),
        ("zstd", zstd(&tar)),
        ("zstd frames", chunks(&tar, 300_000, zstd)),
    ];
    for (what, blob) in blobs {
        let (built, copy) = build(&blob, None).expect(what);
        let file = built.encode(Slot::new(7).expect("a slot"));
        for spread_at in [0, blob.len() / 3] {
            let (other, other_copy) = build(&blob, Some(spread_at)).expect(what);
            assert!(other.encode(Slot::new(7).expect("a slot")) == file, "{what}: index");
            assert!(other_copy == copy, "{what}: copy");
        }
        let layer = Arc::new(Layer::open(Arc::new(file)).expect(what));
        assert_eq!(layer.copy_len(), copy.len() as u64, "{what}");
        let mut stream = TarStream::new(layer);
        let (mut digest, mut at) = (Hasher::new(Algorithm::Sha256), 0);
        while let Some(span) = stream.wanted() {
            let source = if span.source == SpanSource::Blob { &blob } else { &copy };
            let range = &source[span.offset as usize..][..span.len as usize];
            let damaged = [&range[..range.len() - 1], &[!range[range.len() - 1]]].concat();
            assert!(stream.push(&damaged).is_err(), "{what}");
            let bytes = stream.push(range).expect(what);
            assert!(tar[at..].starts_with(bytes), "{what}: at {at}");
            at += bytes.len();
            digest.update(bytes);
        }
        assert!(stream.push(&[]).is_err());
        assert_eq!(at, tar.len(), "{what}");
        assert_eq!(digest.finish(), built.diff_id, "{what}");
        assert_eq!(built.diff_id, Digest::sha256(&tar));
    }
}

#[test]
fn errors_are_the_same_with_threads() {
    let tar = tar();
    let mut wrong_header = tar.clone();
    wrong_header[(3_000_000usize + 512).next_multiple_of(512)] ^= 1;
    let mut cut = gzip(&wrong_header, 6);
    cut.truncate(cut.len() - 100);
    let mut corrupt = gzip(&tar, 6);
    let middle = corrupt.len() / 2;
    corrupt[middle..middle + 64].fill(0xff);
    let whole = gzip(&tar, 6);
    let blobs = [
        ("a wrong header, and later the end missing", cut),
        ("a wrong header", wrong_header.clone()),
        ("a wrong header in zstd", zstd(&wrong_header)),
        ("corrupt deflate data", corrupt),
        ("the end missing", whole[..whole.len() - 9].to_vec()),
        ("a tar without its end", gzip(&tar[..2_000_000], 6)),
    ];
    for (what, blob) in blobs {
        let expected = build(&blob, None).expect_err(what).to_string();
        for spread_at in [0, blob.len() / 3] {
            let found = build(&blob, Some(spread_at)).expect_err(what).to_string();
            assert_eq!(found, expected, "{what}");
        }
    }
}
