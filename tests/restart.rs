//! What a daemon makes of what it finds on disk.

mod support;

use std::{fs, path::Path};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{
    Peel, can_mount, eventually,
    image::{Layer, Layout},
    kill_process, walk,
};

/// Images `a`, `b` and `c`, one layer and one file each.
fn images(peel: &Peel) -> [String; 3] {
    let mut layout = Layout::new(peel.path("layout"));
    ["a", "b", "c"].map(|name| {
        let layer = Layer::new().file("file", 0o644, name.repeat(100_000));
        layout.image(name, vec![layer], json!({ "Cmd": ["/file"] }));
        layout.reference(name)
    })
}

/// Ends both processes at once, as the power does.
fn kill_all(peel: &Peel) {
    let status = peel.json(["status", "--json"]);
    let pids = ["keeper", "worker"].map(|process| status[process]["pid"].as_i64().expect("pid"));
    pids.into_iter().for_each(|pid| kill_process(pid, Signal::STOP));
    pids.into_iter().for_each(|pid| kill_process(pid, Signal::KILL));
    let lock = fs::File::open(peel.state().join("keeper.lock")).expect("lock");
    eventually("they are gone", || {
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(&lock, shared).is_ok()
    });
}

/// Takes away what a reboot takes away.
fn reboot(peel: &Peel) {
    kill_all(peel);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let ours = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let ours: Vec<_> = ours.filter(|target| target.starts_with(peel.dir())).collect();
    for target in ours.into_iter().rev() {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(target, flags).expect("unmounted");
    }
    fs::remove_dir_all(peel.state()).expect("it is a tmpfs");
}

fn worker(peel: &Peel) -> Value {
    let status = peel.peel(["status", "--json"]);
    let status: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    if status["running"] == true { status["worker"]["pid"].clone() } else { Value::Null }
}

#[test]
fn after_a_reboot_mounts_are_forgotten_and_what_was_written_is_there() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let [a, b, _] = images(&peel);
    peel.peel(["mount", &a, "view"]).ok();
    peel.peel(["mount", "--rw", "--name", "work", &a, "rw"]).ok();
    peel.peel(["bundle", &b, "web"]).ok();
    fs::write(peel.path("rw/written"), "1").expect("write");
    fs::write(peel.path("web/rootfs/written"), "2").expect("write");
    fs::write(peel.path("web/config.json"), "{\"mine\": true}").expect("write");
    reboot(&peel);

    let mounts = peel.json(["mounts", "--json"]);
    let left: Vec<_> = mounts.as_array().expect("list").iter().map(|m| &m["live"]).collect();
    assert_eq!(left, [&json!(false)], "only the bundle is still known: {mounts}");
    assert_eq!(peel.json(["snapshots", "ls", "--json"]).as_array().map(Vec::len), Some(2));
    assert_eq!(peel.json(["images", "--json"]).as_array().map(Vec::len), Some(2));

    let resumed = peel.peel(["mount", "--rw", "--name", "work", &a, "rw"]);
    assert!(resumed.stderr.contains("snapshot work resumed"), "{resumed:?}");
    assert_eq!(fs::read(peel.path("rw/written")).expect("read"), b"1");
    let again = peel.peel(["bundle", &b, "web"]);
    assert!(again.stderr.contains("mounted again bundle web"), "{again:?}");
    assert_eq!(fs::read(peel.path("web/rootfs/written")).expect("read"), b"2");
    assert_eq!(fs::read(peel.path("web/config.json")).expect("read"), b"{\"mine\": true}");

    // A bundle whose directory went with the reboot leaves nothing behind but what was written
    reboot(&peel);
    fs::remove_dir_all(peel.path("web")).expect("removed");
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
    peel.peel(["snapshots", "rm", "web", "work"]).ok();
    assert_eq!(fs::read_dir(peel.root().join("snapshots")).expect("there").count(), 0);
}

#[test]
fn one_damaged_image_stops_no_other() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let [a, b, c] = images(&peel);
    for (reference, target) in [(&a, "a"), (&b, "b"), (&c, "c")] {
        peel.peel(["mount", reference, target]).ok();
    }
    let file = |kind: &str, reference: &str| {
        let inspected = peel.json(["inspect", reference]);
        let id = match kind {
            "trees" => inspected["chain_id"].clone(),
            _ => inspected["layers"][0]["diff_id"].clone(),
        };
        let id = id.as_str().expect("digest").replacen(':', "-", 1);
        peel.root().join(kind).join(id)
    };
    // A bit in the middle of one, and another without its head
    let tree = file("trees", &a);
    let mut bytes = fs::read(&tree).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&tree).expect("unlinked: the worker has it mapped");
    fs::write(&tree, bytes).expect("write");
    let index = file("layers", &b);
    let bytes = fs::read(&index).expect("read");
    fs::remove_file(&index).expect("unlinked");
    fs::write(&index, &bytes[8..]).expect("write");
    fs::write(peel.root().join("layers/stray"), "x").expect("write");

    let before = worker(&peel);
    kill_process(before.as_i64().expect("pid"), Signal::KILL);
    eventually("another worker", || {
        let now = worker(&peel);
        now.is_i64() && now != before
    });
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
    let served = fs::read(peel.path("c/file")).expect("this one is well");
    assert_eq!(served, "c".repeat(100_000).into_bytes());
    for damaged in ["a/file", "b/file"] {
        assert!(fs::read(peel.path(damaged)).is_err(), "{damaged}: nothing rather than anything");
    }
    let unserved = peel.json(["status", "--json"])["unserved"].clone();
    let unserved = unserved.as_array().expect("list");
    assert_eq!(unserved.len(), 2, "{unserved:?}");
    let told = peel.peel(["status"]).ok();
    assert_eq!(told.lines().filter(|line| line.starts_with("unserved")).count(), 2, "{told}");
    let log = peel.peel(["logs", "-n", "500"]).ok();
    for reference in [&a, &b] {
        let lines = log.lines().filter(|line| {
            line.contains("ERROR") && line.contains(&format!("cannot serve {reference} on"))
        });
        assert_eq!(lines.count(), 1, "one line in: {log}");
    }
    // Asked for again, both are built again
    for target in ["a", "b"] {
        peel.peel(["umount", target]).ok();
    }
    for (reference, target, name) in [(&a, "a", "a"), (&b, "b", "b")] {
        peel.peel(["mount", reference, target]).ok();
        let found = fs::read(peel.path(target).join("file")).expect("read");
        assert_eq!(found, name.repeat(100_000).into_bytes());
    }
    assert_eq!(peel.json(["status", "--json"])["unserved"], json!([]));
}

#[test]
fn half_a_pull_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let [a, b, _] = images(&peel);
    peel.peel(["pull", "--quiet", &a]).ok();
    peel.peel(["daemon", "stop"]).ok();
    let before = peel.inodes();
    // What a pull has on disk when the power goes: an ingest, temporary files, a blob and an index
    // that no image names
    let root = peel.root();
    let ingest = root.join("content/ingest/0123");
    fs::create_dir_all(&ingest).expect("directory");
    fs::write(ingest.join("data"), [0; 5000]).expect("write");
    fs::write(root.join("layers/.tmp-abc"), "half").expect("write");
    fs::write(root.join("trees/.tmp-abc"), "half").expect("write");
    let digest = peel_index::Digest::sha256(b"orphan");
    fs::write(root.join("content/blobs/sha256").join(digest.hex()), "orphan").expect("write");
    peel.peel(["images"]).ok();
    let after: Vec<_> = walk(&root).collect();
    assert_eq!(peel.inodes(), before, "{after:?}");
    peel.peel(["pull", "--quiet", &b]).ok();
}
