//! Peak memory of a merge, counted at the allocator.
//!
//! Everything runs in one test: the counters are the process's.

mod support;

use std::{sync::Arc, time::Instant};

use peel_index::{Algorithm, Layer, LayerBuilder, Slot, merge};
use support::{allocator, headers};

/// What a case puts into a stack of layers.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Files with names of their own, 100 in a directory.
    Files,
    /// Pairs of hard links, one of each hidden further up.
    Links,
    /// Only directories.
    Directories,
    /// All files in one directory.
    Wide,
}

fn stack(shape: Shape, entries: u32, layers: u32) -> Vec<Layer> {
    (0..layers)
        .map(|layer| {
            let mut builder = LayerBuilder::new(Algorithm::Sha256);
            let mut push = |kind, path: &str, link: &str| {
                builder.push(&headers::ustar(kind, path, link)).expect("a valid entry");
            };
            for number in (layer..entries).step_by(layers as usize) {
                fill(shape, number, entries, &mut push);
            }
            builder.push(&[0; 1024]).expect("the end");
            let file = builder.finish().expect("a layer").encode(slot(layer + 1));
            Layer::open(Arc::new(file)).expect("just built")
        })
        .collect()
}

fn fill(shape: Shape, number: u32, entries: u32, push: &mut impl FnMut(u8, &str, &str)) {
    let directory = number / 100;
    let parent = format!("usr/share/d{:03}/d{directory:06}", directory / 100);
    match shape {
        Shape::Files => push(b'0', &format!("{parent}/file{number}.txt"), ""),
        Shape::Links if number < entries / 2 => {
            push(b'0', &format!("{parent}/file{number}.txt"), "");
            push(
                b'1',
                &format!("{parent}/link{number}.txt"),
                &format!("{parent}/file{number}.txt"),
            );
        }
        Shape::Links => {
            let number = number - entries / 2;
            let directory = number / 100;
            let parent = format!("usr/share/d{:03}/d{directory:06}", directory / 100);
            push(b'0', &format!("{parent}/.wh.link{number}.txt"), "");
        }
        Shape::Directories => push(b'5', &format!("{parent}/directory{number}"), ""),
        Shape::Wide => push(b'0', &format!("wide/file{number}.txt"), ""),
    }
}

fn slot(number: u32) -> Slot {
    Slot::new(number).expect("a slot")
}

/// What a merge may take for each entry beyond 1 MiB; a directory is a record of 64 bytes more.
fn bytes_per_entry(shape: Shape) -> usize {
    match shape {
        Shape::Files | Shape::Links | Shape::Wide => 64,
        Shape::Directories => 64 + 64 + 8,
    }
}

#[test]
fn peak_of_a_merge_is_bounded() {
    let cases = [
        (Shape::Files, 1),
        (Shape::Files, 10),
        (Shape::Files, 128),
        (Shape::Links, 10),
        (Shape::Directories, 10),
        (Shape::Wide, 10),
    ];
    // More of them by hand, for figures: one million takes a minute
    let entries = std::env::var("PEEL_TEST_ENTRIES").ok().and_then(|entries| entries.parse().ok());
    for (shape, count) in cases {
        let layers = stack(shape, entries.unwrap_or(60_000), count);
        let layers: Vec<&Layer> = layers.iter().collect();
        let started = Instant::now();
        let (built, peak) = allocator::peak(|| merge(&layers, None).expect("layers merge"));
        let (took, entries) = (started.elapsed(), built.entries() as usize);
        println!(
            "{shape:?} in {count} layers: {entries} entries, {:.1} bytes an entry, {:.2} M entries/s",
            peak as f64 / entries as f64,
            entries as f64 / took.as_secs_f64() / 1e6,
        );
        let bound = (1 << 20) + bytes_per_entry(shape) * entries;
        assert!(
            peak <= bound,
            "{shape:?} in {count} layers: {peak} bytes, expected at most {bound}"
        );
    }
}
