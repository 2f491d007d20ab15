//! Writes the inputs that the fuzzers begin with: `seeds DIRECTORY` makes a directory per target.
//!
//! They are made from a few stacks and tars, and the same every time. The program has libFuzzer's
//! `main`, like the targets, because what is instrumented does not link without libFuzzer.
#![no_main]

use std::{error::Error, fs, path::Path};

use libfuzzer_sys::fuzz_target;
use peel_index::{Layer, StreamDecoder, merge};
use peel_index_fuzz::{
    blob,
    input::{Input, Random},
    stack::{self, slot},
    testing::{Item, tar_of},
};
use tar::EntryType;

/// Random inputs for each of the targets with a grammar.
const RANDOM: u64 = 40;

fuzz_target!(init: main(), |_data: &[u8]| {});

/// Never returns, so libFuzzer does not begin.
fn main() {
    let result = write_all();
    if let Err(error) = &result {
        eprintln!("error: {error}");
    }
    std::process::exit(i32::from(result.is_err()));
}

fn write_all() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).ok_or("expected a directory")?;
    let directory = Path::new(&directory);
    for seed in 0..RANDOM {
        let mut random = Random::new(seed);
        let bytes = noise(&mut random, 10 + seed as usize * 4);
        let name = format!("random-{seed}");
        write(directory, "merge", &name, &bytes)?;
        write(directory, "layer", &name, &bytes)?;
        let layers = stack::layers(&mut Input::new(&bytes));
        write(directory, "tar", &name, &[&[0], &tar_of(&layers[0])[..]].concat())?;
        indexes(directory, &name, layers)?;
    }
    for (name, items) in (0..).zip(dialects().chunks(5)) {
        let tar = [&[0], &tar_of(items)[..]].concat();
        write(directory, "tar", &format!("dialects-{name}"), &tar)?;
    }
    blobs(directory)
}

fn write(directory: &Path, target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let directory = directory.join(target);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(name), bytes)
}

fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.below(256) as u8).collect()
}

/// The layers that can be built of a stack, and their tree.
fn indexes(directory: &Path, name: &str, layers: Vec<Vec<Item>>) -> Result<(), Box<dyn Error>> {
    let mut samples = Vec::new();
    for (number, items) in (1..).zip(layers) {
        let some = dialects().into_iter().take(number as usize * 4);
        let taken = stack::buildable(items.into_iter().chain(some));
        let tar = tar_of(&taken);
        let compressed = blob::gzip(&tar, 6);
        let mut builder = peel_index::LayerBuilder::new(peel_index::Algorithm::Sha256);
        builder.push(&compressed)?;
        let file = builder.finish()?.encode(slot(number));
        write(directory, "index_decode", &format!("{name}-layer-{number}"), &file)?;
        samples.push(stack::sample(number, tar)?);
    }
    let mut opened: Vec<&Layer> = Vec::new();
    for sample in &samples {
        opened.push(&sample.layer);
        if merge(&opened, None).is_err() {
            opened.pop();
        }
    }
    let tree = merge(&opened, None)?.encode(slot(1000));
    write(directory, "index_decode", &format!("{name}-tree"), &tree)?;
    Ok(())
}

/// One entry of each kind, some with what only PAX can say.
fn dialects() -> Vec<Item> {
    let record = |key: &str, value: &str| (key.into(), value.into());
    let file = || Item { content: b"content".repeat(90), ..Item::new("file", EntryType::Regular) };
    let sparse = |records: &[(&str, &str)]| Item {
        path: b"sparse".to_vec(),
        records: records.iter().map(|(key, value)| record(key, value)).collect(),
        ..file()
    };
    let mut map = b"2\n0\n100\n1000\n18\n".to_vec();
    map.resize(512, 0);
    map.extend([b'x'; 118]);
    let (major, minor) = (("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"));
    vec![
        file(),
        sparse(&[
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.map", "0,600,1000,30"),
            ("GNU.sparse.realsize", "2000"),
        ]),
        Item { content: map, ..sparse(&[major, minor, ("GNU.sparse.realsize", "2000")]) },
        Item { link: b"file".to_vec(), ..Item::new("symlink", EntryType::Symlink) },
        Item { link: b"file".to_vec(), ..Item::new("hard", EntryType::Link) },
        Item { link: b"symlink".to_vec(), ..Item::new("to/symlink", EntryType::Link) },
        Item { device: (8, 1), ..Item::new("device", EntryType::Char) },
        Item { device: (8, 300), ..Item::new("disk", EntryType::Block) },
        Item::new("pipe", EntryType::Fifo),
        Item { records: vec![record("mtime", "-1.5")], ..Item::new("dir/", EntryType::Directory) },
        Item { xattrs: vec![record("user.a", "1"), record("user.b", "")], ..file() },
        Item { records: vec![record("LIBARCHIVE.xattr.user.c", "AAEC")], ..file() },
        Item::new("long/".repeat(40) + "name", EntryType::Regular),
        Item { content: "old long name".repeat(20).into(), ..Item::new("L", EntryType::new(b'L')) },
        file(),
        Item {
            content: b"20 comment=anything\n".to_vec(),
            ..Item::new("g", EntryType::XGlobalHeader)
        },
        Item::new("dir/.wh.file", EntryType::Regular),
        Item::new("dir/.wh..wh..opq", EntryType::Regular),
    ]
}

/// Blobs of every compression, and their spans.
fn blobs(directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut random = Random::new(0);
    let mut tar = tar_of(&dialects()[..7]);
    tar.extend(noise(&mut random, 2000));
    tar.extend(tar.clone());
    for coding in 0..16 {
        let blob = blob::compress(&tar, &mut Input::new(&[coding, 5]));
        let name = format!("coding-{coding}");
        write(directory, "gzip", &name, &[&[5], &blob[..]].concat())?;
        let mut decoder = StreamDecoder::new();
        decoder.push(&blob, &mut |_| Ok(()))?;
        let decoded = decoder.finish(&mut |_| Ok(()))?;
        for (index, span) in decoded.spans.iter().enumerate().take(8) {
            let source = match span.source {
                peel_index::SpanSource::Blob => &blob,
                peel_index::SpanSource::Copy => &decoded.copy,
            };
            let window =
                &decoded.windows[span.window_offset as usize..][..span.window_len as usize];
            let seed = [
                &[span.coding.code()],
                &span.tar_len.to_le_bytes()[..],
                &span.window_len.to_le_bytes(),
                window,
                &source[span.offset as usize..][..span.len as usize],
            ];
            write(directory, "span", &format!("{name}-{index}"), &seed.concat())?;
        }
    }
    Ok(())
}
