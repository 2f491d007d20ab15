//! Bytes that are not what they were: found, mended where that is possible, and never served.

mod support;

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use support::{
    Peel, can_mount, eventually,
    image::{Layer, Layout, noise},
    load::{checksum, drop_caches, image},
};

/// Flips a bit in place, as a disk does.
fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("write");
}

struct Files {
    blob: PathBuf,
    manifest: PathBuf,
    config: PathBuf,
    index: PathBuf,
    tree: PathBuf,
}

fn files(peel: &Peel, reference: &str) -> Files {
    let inspected = peel.json(["inspect", reference]);
    let text = |value: &Value| value.as_str().expect("digest").to_owned();
    let blob =
        |value: &Value| peel.root().join("content/blobs").join(text(value).replacen(':', "/", 1));
    let below =
        |kind: &str, value: &Value| peel.root().join(kind).join(text(value).replacen(':', "-", 1));
    Files {
        blob: blob(&inspected["layers"][0]["digest"]),
        manifest: blob(&inspected["manifest"]["digest"]),
        config: blob(&inspected["config"]["digest"]),
        index: below("layers", &inspected["layers"][0]["diff_id"]),
        tree: below("trees", &inspected["chain_id"]),
    }
}

#[test]
fn what_is_damaged_is_found_and_mended_under_a_mount() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    let expected = checksum(&peel, "m");
    let sound = peel.json(["scrub", "--json"]);
    assert_eq!(
        (&sound["found"], &sound["blobs"], &sound["trees"]),
        (&0.into(), &1.into(), &1.into())
    );
    let Files { blob, manifest, config, index, tree } = files(&peel, &reference);
    let mounted = peel.json(["mounts", "--json"]);
    let kinds = [
        (&blob, "blob"),
        (&manifest, "manifest"),
        (&config, "config"),
        (&index, "layer index"),
        (&tree, "tree"),
    ];
    for (path, kind) in kinds {
        let before = fs::read(path).expect("read");
        for at in [0, before.len() as u64 / 2, before.len() as u64 - 1] {
            flip(path, at);
            let checked = peel.peel(["scrub", "--check", "--json"]);
            assert_eq!(checked.code, Some(5), "{kind} at {at}: {checked:?}");
            let checked: Value = serde_json::from_str(&checked.stdout).expect("JSON");
            assert_eq!(checked["findings"][0]["kind"], kind, "{checked}");
            assert_eq!(checked["findings"][0]["images"], json!([reference]));
            assert_eq!(checked["findings"][0]["mended"], false);
            let mended = peel.json(["scrub", &reference, "--json"]);
            assert_eq!((&mended["found"], &mended["left"]), (&1.into(), &0.into()), "{mended}");
            // The same bytes, slot included: what is mounted goes on
            assert!(fs::read(path).expect("read") == before, "{kind} at {at}");
            assert_eq!(peel.json(["scrub", "--json"])["found"], 0);
            drop_caches();
            assert_eq!(checksum(&peel, "m"), expected, "{kind} at {at}");
        }
        // A truncated one as well
        fs::write(path.with_extension("cut"), &before[..before.len() / 3]).expect("write");
        fs::rename(path.with_extension("cut"), path).expect("rename");
        let told = peel.peel(["scrub"]);
        assert!(told.stdout.starts_with(&format!("mended: {kind} ")), "{told:?}");
        told.ok();
        assert!(fs::read(path).expect("read") == before, "{kind} cut short");
    }
    assert_eq!(peel.json(["mounts", "--json"]), mounted);
    drop_caches();
    assert_eq!(checksum(&peel, "m"), expected);
}

#[test]
fn a_reader_of_damaged_bytes_gets_the_right_ones_while_they_can_be_had() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    let expected = checksum(&peel, "m");
    let Files { blob, .. } = files(&peel, &reference);
    let len = fs::metadata(&blob).expect("there").len();
    drop_caches();
    // Nothing of the span cache: another worker
    peel.peel(["daemon", "reload"]).ok();
    for part in 1..8 {
        flip(&blob, len / 8 * part);
    }
    assert_eq!(checksum(&peel, "m"), expected, "not one reader sees an error");
    assert_eq!(peel.json(["scrub", "--json"])["found"], 0, "the whole blob is well again");
    let log = peel.peel(["logs", "-n", "500"]).ok();
    assert_eq!(log.matches("the layer is well again").count(), 1, "{log}");

    // Nowhere to be had: an error, and a line that says all there is to say
    fs::rename(peel.path("layout"), peel.path("gone")).expect("rename");
    peel.peel(["daemon", "reload"]).ok();
    drop_caches();
    flip(&blob, len / 10 * 8);
    assert!(fs::read(peel.path("m/big")).is_err());
    let log = peel.peel(["logs", "-n", "500"]).ok();
    let told: Vec<_> = log.lines().filter(|line| line.contains("cannot be served")).collect();
    assert_eq!(told.len(), 1, "{log}");
    for part in [reference.as_str(), "/big", "sha256:", "bytes "] {
        assert!(told[0].contains(part), "{part} in {told:?}");
    }
    let left = peel.peel(["scrub"]);
    assert!(left.stdout.starts_with("damaged: blob "), "{left:?}");
    assert!(left.fails(5).contains("hint: "));
    fs::rename(peel.path("gone"), peel.path("layout")).expect("rename");
    peel.peel(["scrub"]).ok();
    assert_eq!(checksum(&peel, "m"), expected);
}

#[test]
fn an_index_cut_short_under_its_map_costs_its_own_image_alone() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    let mut layout = Layout::new(peel.path("other"));
    layout.image("v1", vec![Layer::new().file("file", 0o644, noise(5, 3 << 20))], json!({}));
    let other = layout.reference("v1");
    peel.peel(["mount", &reference, "m"]).ok();
    peel.peel(["mount", &other, "o"]).ok();
    let expected = checksum(&peel, "m");
    let Files { index, .. } = files(&peel, &reference);
    let before = fs::read(&index).expect("read");
    let cut = fs::File::options().write(true).open(&index).expect("open");
    cut.set_len(4096).expect("cut");
    drop_caches();
    let read = fs::read(peel.path("m/d3/f3"));
    assert!(read.is_err(), "{:?} bytes", read.map(|bytes| bytes.len()));
    drop_caches();
    assert!(fs::read(peel.path("o/file")).expect("this one is well") == noise(5, 3 << 20));
    let status = peel.json(["status", "--json"]);
    assert_eq!(status["restarts"], 0, "SIGBUS kills nobody: {status}");
    assert_eq!(status["unserved"].as_array().map(Vec::len), Some(1), "{status}");
    peel.peel(["scrub"]).ok();
    assert!(fs::read(&index).expect("read") == before);
    drop_caches();
    assert_eq!(checksum(&peel, "m"), expected, "mounted all along");
}

#[test]
fn metadata_is_checked_and_restored() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = image(&peel);
    peel.peel(["mount", "--rw", "--name", "w", &reference, "m"]).ok();
    // An export is there
    peel.peel(["daemon", "reload"]).ok();
    let metadata = peel.root().join("metadata");
    for name in ["export.json", "generation", "slots"] {
        flip(&metadata.join(name), 5);
        let left = peel.peel(["scrub", "--check"]);
        assert!(left.stdout.contains(&format!("metadata {name}")), "{left:?}");
        let told = peel.peel(["scrub"]).ok();
        assert!(told.contains(&format!("mended: metadata {name}")), "{told}");
        assert_eq!(peel.json(["scrub", "--json"])["found"], 0, "{name}");
    }
    let before = peel.json(["status", "--json"])["worker"]["pid"].clone();
    let database = metadata.join("db/db");
    let cut = fs::File::options().write(true).open(&database).expect("open");
    let len = cut.metadata().expect("there").len();
    cut.write_all_at(&vec![0x5a; 4096], 0).expect("write");
    assert!(len >= 4096);
    let told = peel.peel(["scrub"]).ok();
    assert!(told.contains("mended: metadata db"), "{told}");
    eventually("another worker", || {
        let answer = peel.peel(["status", "--json"]);
        let status: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        status["worker"]["pid"].is_i64() && status["worker"]["pid"] != before
    });
    assert_eq!(peel.json(["images", "--json"])[0]["name"], reference);
    assert_eq!(peel.json(["mounts", "--json"]).as_array().map(Vec::len), Some(1));
    assert_eq!(peel.json(["snapshots", "ls", "--json"])[0]["name"], "w");
    assert_eq!(peel.json(["scrub", "--json"])["found"], 0);
}
