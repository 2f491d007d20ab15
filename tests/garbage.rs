//! GC: takes what nothing names, leaves what anything uses, beside everything else that runs.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use peel_index::Digest;
use serde_json::{Value, json};
use support::{
    Peel, can_mount, eventually,
    image::{Layer, Layout, noise},
    proxy::{Fault, Proxy},
    registry::{Registry, can_serve},
    walk,
};

/// Everything in the store that belongs to an image.
fn stored(peel: &Peel) -> Vec<PathBuf> {
    let dirs = ["content/blobs", "content/ingest", "layers", "trees", "snapshots"];
    let files = dirs.iter().flat_map(|dir| walk(&peel.root().join(dir)).collect::<Vec<_>>());
    let of_itself = |path: &Path| path.is_dir() && path.ends_with("sha256");
    let of_itself = |path: &Path| of_itself(path) || path.ends_with("blobs/sha512");
    files.filter(|path| !of_itself(path)).collect()
}

/// Images of two layers, the lower of which they share.
fn layout(peel: &Peel, images: usize) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    for n in 0..images {
        let layers = vec![
            Layer::new().dir("d", 0o755).file("d/shared", 0o644, noise(1, 300_000)),
            Layer::new().file("own", 0o644, noise(100 + n as u64, 200_000)),
        ];
        layout.image(&format!("v{n}"), layers, json!({}));
    }
    layout
}

fn items(gc: &Value) -> Vec<String> {
    let items = gc["items"].as_array().expect("list").iter();
    items.map(|item| item["kind"].as_str().expect("text").to_owned()).collect()
}

#[test]
fn what_nothing_names_is_listed_and_removed() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel, 2);
    for tag in ["v0", "v1"] {
        peel.peel(["pull", "-q", &layout.reference(tag)]).ok();
    }
    peel.peel(["mount", &layout.reference("v0"), "m"]).ok();
    let gc = peel.json(["gc", "--dry-run", "--json"]);
    assert_eq!(gc, json!({ "dry_run": true, "items": [], "freed": 0 }));

    // A blob, an index and an upper of nobody's
    let blobs = peel.root().join("content/blobs/sha256");
    let orphan = blobs.join(Digest::sha256(b"orphan").hex());
    fs::write(&orphan, "orphan").expect("write");
    let upper = peel.root().join("snapshots/77/fs");
    fs::create_dir_all(&upper).expect("create");
    fs::write(upper.join("x"), [1; 9000]).expect("write");
    let gc = peel.json(["gc", "--dry-run", "--json"]);
    assert_eq!(items(&gc), ["blob", "upper"]);
    assert!(gc["freed"].as_u64() > Some(9000), "{gc}");
    assert!(orphan.exists() && upper.exists());
    let ran = peel.peel(["gc"]);
    assert!(ran.stderr.contains("freed"), "{ran:?}");
    assert!(ran.ok().contains(&Digest::sha256(b"orphan").to_string()));
    assert!(!orphan.exists() && !upper.exists());

    // An image of which a mount is left: its layers stay, and go with the mount
    assert!(fs::read(peel.path("m/own")).expect("read") == noise(100, 200_000));
    peel.peel(["rm", &layout.reference("v1")]).ok();
    peel.peel(["rm", &layout.reference("v0")]).fails(4);
    peel.peel(["umount", "m"]).ok();
    peel.peel(["rm", &layout.reference("v0")]).ok();
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
}

/// A program that stays in a directory.
struct Sitting(Child);

impl Sitting {
    fn in_dir(dir: &Path) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").current_dir(dir).stdin(Stdio::null());
        Self(command.spawn().expect("sleep"))
    }

    /// A file as it sees it.
    fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        fs::read(format!("/proc/{}/cwd/{name}", self.0.id()))
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_detached_mount_keeps_what_it_shows() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel, 1);
    let reference = layout.reference("v0");
    for writable in [false, true] {
        peel.peel(["pull", "-q", &reference]).ok();
        match writable {
            true => peel.peel(["mount", "--rw", "--name", "w", &reference, "m"]).ok(),
            false => peel.peel(["mount", &reference, "m"]).ok(),
        };
        let sitting = Sitting::in_dir(&peel.path("m/d"));
        peel.peel(["umount", "--lazy", "m"]).ok();
        if writable {
            peel.peel(["snapshots", "rm", "w"]).ok();
        }
        peel.peel(["rm", &reference]).ok();
        peel.peel(["gc"]).ok();
        fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
        let found = sitting.read("shared").expect("read");
        assert!(found == noise(1, 300_000), "writable: {writable}");
        drop(sitting);
        assert!(!items(&peel.json(["gc", "--json"])).is_empty());
        assert_eq!(stored(&peel), Vec::<PathBuf>::new());
    }
}

#[test]
fn gc_runs_beside_a_pull() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let registry = Registry::start();
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new().file("a", 0o644, noise(11, 100_000)),
        Layer::new().file("b", 0o644, noise(12, 3_000_000)),
    ];
    layout.image("v1", layers, json!({}));
    layout.image("other", vec![Layer::new().file("c", 0o644, noise(13, 50_000))], json!({}));
    registry.push(&layout.reference("v1"), "app:v1", &[]);
    let proxy = Proxy::start(&registry.host, |r| match r.is_blob() {
        true => Fault::Slow(1_000_000),
        false => Fault::None,
    });
    let other = layout.reference("other");
    let reference = format!("{}/app:v1", proxy.host);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let pull = scope.spawn(|| {
            let ran = peel.peel(["pull", "-q", "--jobs", "1", &reference]);
            done.store(true, Ordering::SeqCst);
            ran
        });
        eventually("the pull has a layer", || proxy.blob_bytes() > 1_000_000);
        // Removals sweep, and nobody waits for the pull
        peel.peel(["pull", "-q", &other]).ok();
        peel.peel(["rm", &other]).ok();
        let gc = peel.json(["gc", "--json"]);
        assert_eq!(items(&gc), [""; 0], "{gc}");
        assert!(!done.load(Ordering::SeqCst), "the pull was to be under way");
        assert!(!stored(&peel).is_empty());
        pull.join().expect("thread").ok();
    });
    peel.peel(["mount", &reference, "m"]).ok();
    assert!(fs::read(peel.path("m/a")).expect("read") == noise(11, 100_000));
    assert!(fs::read(peel.path("m/b")).expect("read") == noise(12, 3_000_000));
    peel.peel(["umount", "m"]).ok();
    // One that breaks off leaves its large layer for the next, and nothing else
    peel.peel(["rm", &reference]).ok();
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
}

#[test]
fn nothing_that_is_reachable_goes_whatever_happens() {
    if !can_mount() {
        return;
    }
    const IMAGES: usize = 6;
    let peel = Peel::new();
    let layout = layout(&peel, IMAGES);
    let end = Instant::now() + Duration::from_secs(20);
    let (mounts, removals) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let may_fail = |code: Option<i32>| matches!(code, Some(0 | 3 | 4));
    thread::scope(|scope| {
        for user in 0..4_u64 {
            let (peel, layout, mounts, removals) = (&peel, &layout, &mounts, &removals);
            scope.spawn(move || {
                let target = format!("m{user}");
                let mut dice = noise(user, 1 << 16).into_iter();
                let mut dice = move || usize::from(dice.next().expect("enough"));
                while Instant::now() < end {
                    let n = dice() % IMAGES;
                    let reference = layout.reference(&format!("v{n}"));
                    match dice() % 5 {
                        0 => {
                            let ran = peel.peel(["rm", &reference]);
                            assert!(may_fail(ran.code), "{ran:?}");
                            removals.fetch_add(usize::from(ran.code == Some(0)), Ordering::SeqCst);
                        }
                        1 => drop(peel.peel(["gc"]).ok()),
                        2 => drop(peel.peel(["pull", "-q", &reference]).ok()),
                        kind => {
                            let mounted = match kind {
                                3 => peel.peel(["mount", &reference, &target]),
                                _ => peel.peel(["mount", "--rw", &reference, &target]),
                            };
                            // Removed, or pulled anew, between its pull and its mount
                            assert!(may_fail(mounted.code), "{mounted:?}");
                            if mounted.code != Some(0) {
                                continue;
                            }
                            let dir = peel.path(&target);
                            let own = fs::read(dir.join("own")).expect("read");
                            assert!(own == noise(100 + n as u64, 200_000));
                            let shared = fs::read(dir.join("d/shared")).expect("read");
                            assert!(shared == noise(1, 300_000));
                            mounts.fetch_add(1, Ordering::SeqCst);
                            match kind {
                                3 => peel.peel(["umount", &target]).ok(),
                                _ => peel.peel(["umount", "--rm", &target]).ok(),
                            };
                        }
                    }
                }
            });
        }
    });
    assert!(mounts.load(Ordering::SeqCst) > 5 && removals.load(Ordering::SeqCst) > 2);
    // The images that are left are whole, and nothing else is there
    for image in peel.json(["images", "--json"]).as_array().expect("list") {
        let name = image["name"].as_str().expect("text");
        peel.peel(["mount", name, "m"]).ok();
        assert!(fs::read(peel.path("m/d/shared")).expect("read") == noise(1, 300_000));
        peel.peel(["umount", "m"]).ok();
        peel.peel(["rm", name]).ok();
    }
    peel.peel(["gc"]).ok();
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
}
