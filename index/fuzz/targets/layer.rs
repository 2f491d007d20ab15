//! `LayerBuilder` from end to end: entries of any kind and form to a tar, compressed in several ways,
//! and pushed in pieces, with a helper and without.
//!
//! Invariants: no panic; what is built can be opened; all of it can be walked and pieces stay in
//! bounds; the spans give the tar, and the diffID is its digest; splits and threads make no difference; a merge of
//! it, and twice of it, succeeds or fails and can be opened and walked.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use peel_index::{Algorithm, BuildError, BuiltLayer, Digest, Hasher, Layer, LayerBuilder};
use peel_index_fuzz::{
    blob,
    input::{Input, split},
    stack::{merged, slot},
    testing::{Item, push_item},
    walk,
};
use tar::EntryType;

const MAX_TAR: usize = 128 << 10;

const KEYS: [&str; 10] = [
    "path",
    "linkpath",
    "mtime",
    "uid",
    "GNU.sparse.map",
    "GNU.sparse.realsize",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "SCHILY.xattr.user.a",
    "LIBARCHIVE.xattr.user.a",
];

fn path(input: &mut Input<'_>) -> Vec<u8> {
    let names: [&[u8]; 8] = [b"a", b"b", b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh."];
    let count = input.below(8);
    if count == 7 {
        return input.run().to_vec();
    }
    let mut path = Vec::new();
    for _ in 0..=count {
        path.extend_from_slice(names[usize::from(input.below(8))]);
        path.push(b'/');
    }
    if input.below(4) != 0 {
        path.pop();
    }
    path
}

fn item(input: &mut Input<'_>) -> Item {
    let kind = input.byte();
    let kind = match kind % 8 {
        0..=6 => EntryType::new(b'0' + kind % 8),
        _ => EntryType::new(input.byte()),
    };
    let mut item = Item::new(path(input), kind);
    let style = input.byte();
    item.mode = u32::from(style) * 37;
    item.mtime = u64::from(style) << (style % 33);
    if kind == EntryType::Link || kind == EntryType::Symlink {
        item.link = path(input);
    }
    if kind == EntryType::Char || kind == EntryType::Block {
        item.device = (input.byte().into(), input.byte().into());
    }
    if kind == EntryType::Regular || style & 0x80 != 0 {
        let len = usize::from(input.byte()) << (style % 7);
        item.content = input.run().iter().copied().cycle().take(len).collect();
    }
    for _ in 0..style & 3 {
        let key = KEYS.get(usize::from(input.below(12))).map(|key| key.as_bytes());
        let key = key.unwrap_or_else(|| input.run());
        item.records.push((key.to_vec(), input.run().to_vec()));
    }
    item
}

fn tar_of(input: &mut Input<'_>) -> Vec<u8> {
    let mut tar = Vec::new();
    while !input.is_empty() && tar.len() < MAX_TAR {
        push_item(&mut tar, &item(input));
    }
    tar
}

/// Builds a layer from a blob in pieces; with the whole seekable copy.
fn build<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    spread: bool,
) -> Result<(BuiltLayer, Vec<u8>), BuildError> {
    let mut builder = LayerBuilder::new(Algorithm::Sha512);
    if spread {
        builder.spread();
    }
    let mut copy = Vec::new();
    for piece in pieces {
        builder.push(piece)?;
        copy.append(&mut builder.take_copy());
    }
    let mut built = builder.finish()?;
    copy.append(&mut built.copy_rest);
    Ok((built, copy))
}

fn digest(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let way = input.byte();
    let mut coding = Input::new(input.take(2));
    let tar = tar_of(&mut input);
    let blob = blob::compress(&tar, &mut coding);
    let whole = build([&blob[..]].into_iter(), way & 1 == 1);
    let again = build(split(&blob, way), way & 3 == 2);
    let (built, copy) = match (whole, again) {
        (Ok(built), Ok((again, copy))) => {
            assert!(built.0.encode(slot(1)) == again.encode(slot(1)), "another split");
            assert!(built.1 == copy, "another split");
            built
        }
        (Err(whole), Err(again)) => return assert_eq!(whole.to_string(), again.to_string()),
        (whole, again) => panic!("another split: {whole:?} {again:?}"),
    };
    assert_eq!((built.blob_len, built.tar_len), (blob.len() as u64, tar.len() as u64));
    assert_eq!(built.copy_len, copy.len() as u64);
    assert_eq!(built.blob, digest(Algorithm::Sha512, &blob));
    assert_eq!(built.diff_id, digest(Algorithm::Sha256, &tar));
    let layer = Arc::new(Layer::open(Arc::new(built.encode(slot(1)))).expect("just built"));
    assert_eq!((layer.blob(), layer.diff_id()), (built.blob, built.diff_id));
    assert_eq!(layer.numbering(), built.numbering());
    walk::layer(&layer);
    assert!(walk::tar(layer.clone(), &blob, &copy).expect("just built") == tar);
    for stack in [&[&*layer][..], &[&*layer, &*layer]] {
        if let Some(tree) = merged(stack) {
            walk::tree(&tree);
        }
    }
});
