//! Many readers, many images, few descriptors: right bytes, and a worker that does not grow.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    Peel, can_mount, drop_caches, eventually,
    image::{Layer, Layout, noise},
    run, walk,
};

/// What the worker may take beside its span cache.
const MEMORY: u64 = 40 << 20;

/// Drops what can be dropped: the page cache, names and inodes.
fn number(stats: &Value, pointer: &str) -> u64 {
    let found = stats.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no {pointer} in {stats:#}"))
}

/// Memory of the worker that only it uses.
fn memory(stats: &Value) -> u64 {
    number(stats, "/memory_bytes/worker/anon") + number(stats, "/memory_bytes/worker/shmem")
}

/// Every regular file's content.
fn read_all(dir: &Path) -> u64 {
    let files = walk(dir).filter(|path| path.symlink_metadata().is_ok_and(|m| m.is_file()));
    files.map(|path| fs::read(path).expect("readable").len() as u64).sum()
}

/// Text that compresses, unlike [`noise`], with a position in every line.
fn lines(seed: u64, len: usize) -> Vec<u8> {
    let lines = (0_u64..).flat_map(|n| format!("{seed}: line {n}, {:x}\n", n * n).into_bytes());
    lines.take(len).collect()
}

/// Big and small files of all sorts in three layers, unpacked beside.
fn sorts(peel: &Peel) -> (String, PathBuf) {
    let layer = |from: u64| {
        let dir = format!("d{from}");
        let layer = Layer::new().dir(&dir, 0o755);
        let layer = layer.file(&format!("{dir}/noise"), 0o644, noise(from, 9 << 20));
        let layer = layer.file(&format!("{dir}/lines"), 0o644, lines(from, 20 << 20));
        // One deflate block for many spans: there is no way into its middle but a copy
        let layer = layer.file(&format!("{dir}/zeros"), 0o644, vec![0; 6 << 20]);
        (0..300).fold(layer, |layer, n| {
            layer.file(&format!("{dir}/f{n}"), 0o644, noise(1000 * from + n, (n * 97) as usize))
        })
    };
    let extracted = peel.path("extracted");
    for number in 1..=3 {
        tar::Archive::new(&layer(number).tar()[..]).unpack(&extracted).expect("unpack");
    }
    let mut layout = Layout::new(peel.path("layout"));
    layout.image("v1", (1..=3).map(layer).collect(), json!({}));
    (layout.reference("v1"), extracted)
}

/// The next number of a reader's own; xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Compares a random range of a random file.
fn compare(files: &[PathBuf], mount: &Path, extracted: &Path, random: &mut u64) {
    let name = &files[(next(random) % files.len() as u64) as usize];
    let (ours, theirs) = (mount.join(name), extracted.join(name));
    let (ours, theirs) = (File::open(ours).expect("open"), File::open(theirs).expect("open"));
    let len = theirs.metadata().expect("size").len();
    assert_eq!(ours.metadata().expect("size").len(), len, "{}", name.display());
    let start = next(random) % (len + 1);
    let wanted = (next(random) % (300 << 10)).min(len - start) as usize;
    let (mut found, mut expected) = (vec![1; wanted], vec![2; wanted]);
    ours.read_exact_at(&mut found, start).expect("read");
    theirs.read_exact_at(&mut expected, start).expect("read");
    assert!(found == expected, "{wanted} bytes at {start} of {}", name.display());
}

#[test]
fn a_hundred_readers_of_random_ranges_get_the_right_bytes() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let (reference, extracted) = sorts(&peel);
    peel.peel(["mount", &reference, "m"]).ok();
    peel.peel(["mount", "--rw", &reference, "rw"]).ok();
    let files = walk(&extracted).filter(|path| path.is_file());
    let files: Vec<_> =
        files.map(|path| path.strip_prefix(&extracted).expect("below").to_owned()).collect();
    assert_eq!(files.len(), 909);

    let (done, drops, reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let readers: Vec<_> = (1..=100_u64)
            .map(|seed| {
                let mount = peel.path(if seed % 3 == 0 { "rw" } else { "m" });
                let (files, extracted, drops, reads) = (&files, &extracted, &drops, &reads);
                scope.spawn(move || {
                    let mut random = seed;
                    // Until caches were dropped under it again and again
                    while drops.load(Ordering::SeqCst) < 20 || reads.load(Ordering::SeqCst) < 2000 {
                        compare(files, &mount, extracted, &mut random);
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let done = &done;
        let drops = &drops;
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                drop_caches();
                drops.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(30));
            }
        });
        let ended: Vec<_> = readers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::SeqCst);
        assert!(ended.into_iter().all(|reader| reader.is_ok()), "a reader failed");
    });

    let stats = peel.json(["stats", "--json"]);
    let faults = stats["faults"].as_object().expect("by cause");
    assert!(faults.values().all(|count| *count == 0), "{stats:#}");
    assert!(memory(&stats) <= MEMORY + number(&stats, "/cache_capacity_bytes"), "{stats:#}");
    eventually("nothing is under way", || {
        let stats = peel.json(["stats", "--json"]);
        (&stats["requests_under_way"], &stats["reads_queued"]) == (&json!(0), &json!(0))
    });
}

/// Images that share a base, each with a layer of its own.
fn many(peel: &Peel, images: u64) -> Vec<String> {
    let mut layout = Layout::new(peel.path("layout"));
    for image in 0..images {
        let base = (0..40).fold(Layer::new().dir("base", 0o755), |layer, n| {
            layer.file(&format!("base/f{n}"), 0o644, lines(n, 50_000))
        });
        let own = (0..20).fold(Layer::new().dir("own", 0o755), |layer, n| {
            layer.file(&format!("own/f{n}"), 0o644, noise(image * 100 + n, 40_000))
        });
        layout.image(&format!("v{image}"), vec![base, own], json!({}));
    }
    (0..images).map(|image| layout.reference(&format!("v{image}"))).collect()
}

/// Runs a command for each of many things, a few at a time.
fn for_each(all: &[String], make: impl Fn(usize, &str) -> Command + Sync) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst) as usize;
                    let Some(one) = all.get(number) else { break };
                    run(&mut make(number, one)).ok();
                }
            });
        }
    });
}

#[test]
fn a_hundred_images_in_bounded_memory() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let images = many(&peel, 100);
    for_each(&images, |number, image| {
        let mut command = peel.command();
        command.args(["mount", image, &format!("m{number}")]);
        command
    });
    let mounted = peel.json(["stats", "--json"]);
    assert_eq!(mounted["mounts"], 100);
    let capacity = number(&mounted, "/cache_capacity_bytes");

    // A read of everything, then rounds of work until no round takes more than those before
    let round = || {
        drop_caches();
        let read: u64 = (0..100).map(|n| read_all(&peel.path(&format!("m{n}")))).sum();
        assert_eq!(read, 100 * (40 * 50_000 + 20 * 40_000));
        peel.peel(["mount", "--rw", &images[7], "extra"]).ok();
        fs::write(peel.path("extra/new"), "x").expect("write");
        peel.peel(["umount", "--rm", "extra"]).ok();
        let stats = peel.json(["stats", "--json"]);
        assert!(memory(&stats) <= MEMORY + capacity, "{stats:#}");
        stats
    };
    let first = [round(), round()];
    let settled = first.iter().map(memory).max().expect("rounds");
    let mut last = round();
    for _ in 0..2 {
        last = round();
    }
    let found = memory(&last);
    assert!(found <= settled + (4 << 20), "grew from {settled} to {found} bytes");
    let open = |stats: &Value| number(stats, "/descriptors/worker");
    assert!(open(&last) <= open(&first[0]) + 4, "descriptors: {} by now", open(&last));
    assert!(number(&last, "/threads/worker") <= 64, "{last:#}");
    let faults = last["faults"].as_object().expect("by cause");
    assert!(faults.values().all(|count| *count == 0), "{last:#}");
}

#[test]
fn more_layers_than_descriptors() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layer = |n: u64| Layer::new().file(&format!("f{n}"), 0o644, noise(n, 50_000));
    layout.image("v1", (0..120).map(layer).collect(), json!({}));
    let reference = layout.reference("v1");
    // What a caller's shell allows at most holds for the daemon that its command starts
    let mut mount = Command::new("sh");
    let shown = peel.command();
    mount.args(["-c", "ulimit -n 96 && exec \"$0\" \"$@\""]).arg(shown.get_program());
    for (name, value) in shown.get_envs() {
        match value {
            Some(value) => mount.env(name, value),
            None => mount.env_remove(name),
        };
    }
    run(mount.current_dir(peel.dir()).args(["mount", &reference, "m"])).ok();
    for _ in 0..2 {
        drop_caches();
        for n in 0..120 {
            let found = fs::read(peel.path(&format!("m/f{n}"))).expect("read");
            assert!(found == noise(n, 50_000), "f{n}");
        }
    }
    let stats = peel.json(["stats", "--json"]);
    assert_eq!(number(&stats, "/descriptor_limit/worker"), 96);
    assert_eq!(number(&stats, "/layers/open"), 120);
    let faults = stats["faults"].as_object().expect("by cause");
    assert!(faults.values().all(|count| *count == 0), "{stats:#}");
}
