//! What is read of an image when it comes into use is decoded ahead the next time.

mod support;

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};
use support::{
    Peel, can_mount, drop_caches, eventually,
    image::{Layer, Layout, noise},
};

/// A file is longer than a span.
const LEN: usize = 1_200_000;
const FILES: u64 = 12;
const ORDER: [u64; 8] = [7, 2, 10, 4, 9, 0, 11, 5];

fn image(peel: &Peel) -> String {
    let mut layout = Layout::new(peel.path("layout"));
    let file = |layer: Layer, n| layer.file(&format!("f{n}"), 0o644, noise(n, LEN));
    layout.image("v1", vec![(0..FILES).fold(Layer::new(), file)], json!({}));
    layout.reference("v1")
}

/// Reads a page in the middle of a file, and no more than that.
fn read(peel: &Peel, n: u64) {
    let file = fs::File::open(peel.path(&format!("m/f{n}"))).expect("open");
    fadvise(&file, 0, None, Advice::Random).expect("advice");
    let (at, mut page) = (LEN / 2, [0; 4096]);
    file.read_exact_at(&mut page, at as u64).expect("read");
    assert!(page[..] == noise(n, LEN)[at..at + page.len()], "wrong bytes of f{n}");
}

fn courses(peel: &Peel) -> usize {
    let names = fs::read_dir(peel.root().join("layers")).expect("layers");
    let paths = names.map(|entry| entry.expect("entry").path());
    paths.filter(|path| Path::extension(path).is_some_and(|e| e == "start")).count()
}

fn stats(peel: &Peel) -> Value {
    peel.json(["stats", "--json"])
}

#[test]
fn a_start_is_noted_and_the_next_one_is_faster_for_it() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    ORDER.into_iter().for_each(|n| read(&peel, n));
    let first = stats(&peel);
    assert_eq!((&first["starts"], &first["start_spans"]), (&json!(1), &json!(0)), "{first:#}");
    let again = |peel: &Peel| {
        peel.peel(["umount", "m"]).ok();
        peel.peel(["daemon", "stop"]).ok();
        peel.peel(["mount", &reference, "m"]).ok();
        drop_caches();
    };
    again(&peel);
    assert_eq!(courses(&peel), 1, "kept at the latest when the daemon ends");

    assert!(!peel.path("m/missing").exists(), "a look-up, and nothing is read");
    let decoded = || stats(&peel)["start_spans"].as_u64() >= Some(ORDER.len() as u64);
    eventually("the files are decoded", decoded);
    assert_eq!(stats(&peel)["served_bytes"], 0);
    ORDER.into_iter().for_each(|n| read(&peel, n));
    let second = stats(&peel);
    let [misses, used] = [&second["cache_requests"]["miss"], &second["cache_ahead"]["used"]];
    assert!(misses.as_u64() <= Some(1) && used.as_u64() >= Some(8), "{second:#}");
    let inflated = |stats: &Value| stats["inflated_bytes"].as_u64().expect("a number");
    assert!(inflated(&second) < inflated(&first) * 5 / 4, "no more than what is read");

    // Told not to: nothing ahead, and the same bytes
    peel.peel(["umount", "m"]).ok();
    peel.peel(["daemon", "stop"]).ok();
    let told = support::run(
        peel.command().env("PEEL_NO_FOLLOW_STARTS", "1").args(["mount", &reference, "m"]),
    );
    told.ok();
    drop_caches();
    assert!(!peel.path("m/missing").exists());
    ORDER.into_iter().for_each(|n| read(&peel, n));
    let third = stats(&peel);
    assert_eq!((&third["starts"], &third["start_spans"]), (&json!(0), &json!(0)), "{third:#}");

    peel.peel(["umount", "m"]).ok();
    peel.peel(["rm", &reference]).ok();
    eventually("its course goes with a layer", || {
        // Mount namespaces that other tests make have copies of the mount for a while
        peel.peel(["gc"]).ok();
        courses(&peel) == 0
    });
}
