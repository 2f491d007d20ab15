//! GC: takes what nothing names, leaves what anything uses, beside everything else that runs.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use peel_index::Digest;
use serde_json::{Value, json};
use support::{
    Peel, can_mount, eventually,
    image::{Layer, Layout, noise},
    proxy::{Fault, Proxy},
    registry::{Registry, can_serve},
    run, walk,
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
        if writable {
            fs::write(peel.path("m/d/written"), noise(5, 50_000)).expect("write");
        }
        peel.peel(["umount", "--lazy", "m"]).ok();
        if writable {
            // No mountinfo knows of it: the kernel itself is asked
            let error = peel.peel(["snapshots", "rm", "w"]).fails(4);
            assert!(error.contains("still used") && error.contains("hint: "), "{error}");
        } else {
            peel.peel(["rm", &reference]).ok();
        }
        peel.peel(["gc"]).ok();
        fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
        let found = sitting.read("shared").expect("read");
        assert!(found == noise(1, 300_000), "writable: {writable}");
        if writable {
            assert!(sitting.read("written").expect("read") == noise(5, 50_000));
        }
        drop(sitting);
        if writable {
            peel.peel(["snapshots", "rm", "w"]).ok();
            peel.peel(["rm", &reference]).ok();
        } else {
            assert!(!items(&peel.json(["gc", "--json"])).is_empty());
        }
        assert_eq!(stored(&peel), Vec::<PathBuf>::new());
    }
}

#[test]
fn an_upper_stays_while_anything_of_it_is_open() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    peel.peel(["images"]).ok();
    // Of a container whose snapshot is gone, while a process still has a file of it open
    let dir = peel.root().join("snapshots/77");
    let (lower, target) = (peel.path("lower"), peel.path("m"));
    for made in [&dir.join("fs"), &dir.join("work"), &lower, &target] {
        fs::create_dir_all(made).expect("create");
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        dir.join("fs").display(),
        dir.join("work").display()
    );
    let mount = || {
        let mut command = Command::new("mount");
        run(command.args(["-t", "overlay", "x", "-o", &options]).arg(&target)).ok();
    };
    mount();
    fs::write(target.join("f"), noise(6, 50_000)).expect("write");
    let mut open = fs::File::open(target.join("f")).expect("open");
    assert_eq!(items(&peel.json(["gc", "--json"])), [""; 0], "it is mounted");
    run(Command::new("umount").arg("-l").arg(&target)).ok();
    assert_eq!(items(&peel.json(["gc", "--json"])), [""; 0], "it is open");
    let mut found = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut found).expect("read");
    assert!(found == noise(6, 50_000));
    // Asking left no mark that would keep anybody from mounting it
    drop(open);
    mount();
    assert!(fs::read(target.join("f")).expect("read") == noise(6, 50_000));
    run(Command::new("umount").arg(&target)).ok();
    assert_eq!(items(&peel.json(["gc", "--json", "--dry-run"])), ["upper"]);
    mount();
    run(Command::new("umount").arg(&target)).ok();
    assert_eq!(items(&peel.json(["gc", "--json"])), ["upper"]);
    assert_eq!(stored(&peel), Vec::<PathBuf>::new());
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
fn a_lease_keeps_what_no_image_needs() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel, 2);
    let registry = Registry::start();
    registry.push(&layout.reference("v0"), "app:v0", &[]);
    let proxy = Proxy::start(&registry.host, |_| Fault::None);
    let reference = format!("{}/app:v0", proxy.host);
    peel.peel(["pull", "-q", &reference]).ok();
    peel.peel(["pull", "-q", &layout.reference("v1")]).ok();
    let own = peel.json(["inspect", &layout.reference("v1")])["layers"][1]["digest"].clone();
    let own = own.as_str().expect("text");
    let create = ["leases", "create", "--id", "keep", "--label", "a=b", &reference, own];
    assert_eq!(peel.peel(create).ok(), "keep\n");
    let error = peel.peel(["leases", "create", "--id", "keep"]).fails(4);
    assert!(error.contains("keep is taken"), "{error}");
    let leases = peel.json(["leases", "ls", "--json"]);
    assert_eq!(
        (&leases[0]["labels"]["a"], leases.as_array().map(Vec::len)),
        (&json!("b"), Some(1))
    );
    assert_eq!(leases[0]["blobs"].as_array().map(Vec::len), Some(5));
    assert!(leases[0]["expires_at_ns"].as_i64() > leases[0]["created_at_ns"].as_i64());
    for name in [&reference, &layout.reference("v1")] {
        peel.peel(["rm", name]).ok();
    }
    peel.peel(["gc"]).ok();
    assert_eq!(peel.json(["images", "--json"]), json!([]));
    let blobs = || walk(&peel.root().join("content/blobs")).filter(|path| path.is_file()).count();
    assert_eq!(blobs(), 5, "the image's four, and a layer of the other");
    // Nothing is fetched again but the word of what the tag stands for
    let before = proxy.blob_bytes();
    peel.peel(["pull", "-q", &reference]).ok();
    assert_eq!(proxy.blob_bytes(), before);
    peel.peel(["mount", &reference, "m"]).ok();
    assert!(fs::read(peel.path("m/own")).expect("read") == noise(100, 200_000));
    peel.peel(["umount", "m"]).ok();

    let table = peel.peel(["leases", "ls"]).ok();
    assert!(table.contains("keep") && table.contains("a=b"), "{table}");
    peel.peel(["leases", "rm", "keep"]).ok();
    peel.peel(["leases", "rm", "keep"]).fails(3);
    assert_eq!(blobs(), 4);
    // One that ends by itself, and one that never does
    peel.peel(["leases", "create", "--expires", "1s", &reference]).ok();
    peel.peel(["leases", "create", "--expires", "0", "--id", "ever"]).ok();
    peel.peel(["rm", &reference]).ok();
    eventually("it has ended", || {
        peel.peel(["gc"]).ok();
        stored(&peel).is_empty()
    });
    let leases = peel.json(["leases", "ls", "--json"]);
    assert_eq!((&leases[0]["id"], &leases[0]["expires_at_ns"]), (&json!("ever"), &Value::Null));
    peel.peel(["leases", "create", "--id", "not/plain"]).fails(2);
    peel.peel(["leases", "create", "--label", "peel.pull=x"]).fails(2);
    peel.peel(["leases", "create", "none.example/x:1"]).fails(3);
}
