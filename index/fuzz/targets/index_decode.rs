//! `Layer::open` and `Tree::open` on any file. Mutations change the sections of a file and close it
//! again with right checksums, which the fuzzer would never find; a few go to the file as it is.
//!
//! Invariants: no panic, whatever is in the file; memory in proportion to it; what is opened can be
//! walked to its end and every range is in bounds; merging an opened layer with itself and with a good
//! one succeeds or fails, and a merged tree can be opened and walked.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use peel_index::{FileType, Layer, Tree, peek_header};
use peel_index_fuzz::{
    file::Parts,
    input::{Input, Random},
    memory,
    stack::{Sample, buildable, layers, merged, sample},
    testing::tar_of,
    walk,
};

/// A layer with some of everything, in a slot that no seed has.
static GOOD: LazyLock<Sample> = LazyLock::new(|| {
    let bytes: Vec<u8> = (0..60).map(|byte: u8| byte.wrapping_mul(29) % 0xef).collect();
    let items = buildable(layers(&mut Input::new(&bytes)).concat());
    sample(99, tar_of(&items)).expect("each entry was tried")
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random::new(seed.into());
    let Some(mut parts) = Parts::of(&data[..size]).filter(|_| random.below(32) != 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..=random.below(3) {
        parts.mutate(&mut random, |section| {
            let (size, max_size) = (section.len(), section.len() + 64);
            section.resize(max_size, 0);
            let size = fuzzer_mutate(section, size, max_size);
            section.truncate(size);
        });
    }
    let file = parts.close();
    if file.len() > max_size {
        return size;
    }
    data[..file.len()].copy_from_slice(&file);
    file.len()
});

fn check_layer(layer: &Layer) {
    walk::layer(layer);
    let good = &GOOD.layer;
    if layer.slot() == good.slot() {
        return;
    }
    for stack in [&[layer][..], &[layer, layer], &[good, layer], &[layer, good, layer]] {
        if let Some(tree) = merged(stack) {
            walk::tree(&tree);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let file = Arc::new(data.to_vec());
    let limit = (16 << 10) + 8 * data.len();
    let layer = memory::bounded(limit, || Layer::open(file.clone()));
    let tree = memory::bounded(limit, || Tree::open(file.clone()));
    let kind = peek_header(data).map(|header| header.kind);
    if let Ok(layer) = layer {
        assert_eq!(kind, Ok(FileType::Layer));
        check_layer(&layer);
    }
    if let Ok(tree) = tree {
        assert_eq!(kind, Ok(FileType::Tree));
        walk::tree(&tree);
    }
});
