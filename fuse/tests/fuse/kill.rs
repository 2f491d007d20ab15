//! Workers that are killed while the mount is in use. Needs root and /dev/fuse.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use peel_fuse::{FileSource, ReadError, source::Sink};
use peel_index::{Layer, NodeId, Slot, Tree};

use crate::{
    image::{MemorySource, Node, noise, slot},
    keeper::{Keeper, can_mount, skip},
};

/// How often the worker is killed: a sample here, at length elsewhere.
const KILLS: u32 = 6;
const FILES: u64 = 400;
const BIG: usize = 5 << 20;

fn content(number: u64) -> Vec<u8> {
    noise(1 + (number as usize * 37) % 9000, number)
}

fn image() -> MemorySource {
    let mut nodes: Vec<_> = (0..FILES)
        .map(|n| Node::file(&format!("d{}/s{}/file-{n}", n % 7, n % 3), content(n)))
        .collect();
    nodes.push(Node::file("big", noise(BIG, 99)));
    let mut source = MemorySource::default();
    source.add_layer(slot(1), &nodes);
    source.add_tree(slot(2), &[slot(1)]);
    source
}

fn check_files(root: &Path) -> std::io::Result<()> {
    for number in 0..FILES {
        let path = root.join(format!("d{}/s{}/file-{number}", number % 7, number % 3));
        let found = fs::read(&path)?;
        assert!(found == content(number), "wrong bytes in {}", path.display());
    }
    Ok(())
}

fn check_big(root: &Path) -> std::io::Result<()> {
    let file = fs::File::open(root.join("big"))?;
    // Out of the page cache, so that it is asked for again
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let expected = noise(BIG, 99);
    let mut room = vec![0; 300_007];
    for offset in (0..BIG).step_by(room.len()).rev() {
        let len = room.len().min(BIG - offset);
        file.read_exact_at(&mut room[..len], offset as u64)?;
        assert!(room[..len] == expected[offset..offset + len], "wrong bytes at {offset}");
    }
    Ok(())
}

fn check_walk(root: &Path) -> std::io::Result<()> {
    let mut queue = vec![root.to_owned()];
    let mut files = 0;
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                queue.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    assert_eq!(files, FILES + 1);
    Ok(())
}

#[test]
fn nobody_notices_a_killed_worker() {
    if !can_mount("nobody_notices_a_killed_worker") {
        return;
    }
    let mut keeper = Keeper::serve(&image(), Duration::from_secs(180));
    if !keeper.mounted().handshake().can_resend() {
        return skip("nobody_notices_a_killed_worker", "the kernel cannot resend");
    }
    let root = keeper.tree(2);
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let checks: [fn(&Path) -> std::io::Result<()>; 4] =
        [check_files, check_big, check_big, check_walk];
    let mut pauses = Vec::new();
    std::thread::scope(|scope| {
        let load = checks.map(|check| {
            let (root, stop, rounds) = (&root, &stop, &rounds);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    check(root).expect("no error, whatever happens to the worker");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let dropper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Names too have to be asked for again
                fs::write("/proc/sys/vm/drop_caches", "2").expect("root");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let wait = |text: &str| {
            let (before, start) = (rounds.load(Ordering::Relaxed), Instant::now());
            while rounds.load(Ordering::Relaxed) < before + 4 {
                let failed = load.iter().any(|thread| thread.is_finished());
                let late = start.elapsed() > Duration::from_secs(60);
                if failed || late {
                    stop.store(true, Ordering::Relaxed);
                    panic!("no progress {text}");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait("at first");
        for kill in 0..KILLS {
            std::thread::sleep(Duration::from_millis(30 + u64::from(kill) * 17));
            keeper.kill_worker();
            let start = Instant::now();
            keeper.start_worker();
            fs::metadata(root.join("..")).expect("no error");
            pauses.push(start.elapsed());
            wait("after a kill");
        }
        stop.store(true, Ordering::Relaxed);
        dropper.join().expect("no panic");
        for thread in load {
            thread.join().expect("no wrong byte and no error");
        }
    });
    pauses.sort_unstable();
    println!(
        "{KILLS} kills, {} rounds of checks, next answer after {:?} (median) and {:?} (worst)",
        rounds.into_inner(),
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1],
    );
}

#[test]
fn requests_wait_for_the_next_worker() {
    if !can_mount("requests_wait_for_the_next_worker") {
        return;
    }
    let mut keeper = Keeper::serve(&image(), Duration::from_secs(60));
    let root = keeper.tree(2);
    fs::metadata(root.join("d1")).expect("served");
    keeper.kill_worker();
    let reader = std::thread::spawn(move || fs::read(root.join("d1/s0/file-15")));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!reader.is_finished(), "nobody is there to answer");
    keeper.start_worker();
    let found = reader.join().expect("no panic").expect("no error");
    assert!(found == content(15));
}

/// A source that ends its process when one inode's content is asked for.
pub(crate) struct Crashing {
    pub(crate) source: MemorySource,
    /// The inode; 0 for none.
    pub(crate) deadly: u64,
}

impl FileSource for Crashing {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.source.tree(slot)
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.source.layer(slot)
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        if (NodeId::Layer { slot: layer, number }).to_raw() == self.deadly {
            std::process::abort();
        }
        self.source.read(layer, number, offset, len, sink)
    }
}

/// Reads all but file 17.
fn check_healthy(root: &Path) -> std::io::Result<()> {
    for number in (0..FILES).filter(|number| *number != 17) {
        let path = root.join(format!("d{}/s{}/file-{number}", number % 7, number % 3));
        let file = fs::File::open(path)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let expected = content(number);
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0)?;
        assert!(found == expected, "wrong bytes in file {number}");
    }
    Ok(())
}

#[test]
fn a_request_that_kills_its_workers_is_refused_and_all_else_is_served() {
    let name = "a_request_that_kills_its_workers_is_refused_and_all_else_is_served";
    if !can_mount(name) {
        return;
    }
    let mut keeper = Keeper::serve(&image(), Duration::from_secs(180));
    if !keeper.mounted().handshake().can_resend() {
        return skip(name, "the kernel cannot resend");
    }
    let root = keeper.tree(2);
    let deadly = root.join("d3/s2/file-17");
    let ino = fs::metadata(&deadly).expect("served").ino();
    // The first close asks for FLUSH, and is told never to ask again. This process reads and starts
    // workers: a child that closed what it inherited would wait for the worker that it is to become
    fs::read(root.join("d1/s0/file-15")).expect("served");
    keeper.kill_worker();
    keeper.make_deadly(ino);
    keeper.start_worker();

    type Check = fn(&Path) -> std::io::Result<()>;
    let checks: [Check; 3] = [check_healthy, check_healthy, check_big];
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut deaths, mut culprits) = (0, Vec::new());
    std::thread::scope(|scope| {
        let load = checks.map(|check| {
            let (root, stop, rounds) = (&root, &stop, &rounds);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    check(root).expect("no error: these files are well");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        // Two at once: neither may take a healthy one down with it
        let victims = [(); 2].map(|()| scope.spawn(|| fs::read(&deadly)));
        let mut settled = None;
        let started = Instant::now();
        loop {
            if let Some(found) = keeper.tend() {
                deaths += 1;
                culprits.extend(found);
            }
            if settled.is_none() && victims.iter().all(|victim| victim.is_finished()) {
                settled = Some(rounds.load(Ordering::Relaxed));
            }
            let on = settled.is_some_and(|before| rounds.load(Ordering::Relaxed) > before + 6);
            let failed = load.iter().any(|thread| thread.is_finished());
            if on || failed || started.elapsed() > Duration::from_secs(120) {
                stop.store(true, Ordering::Relaxed);
                assert!(on, "after {deaths} deaths: failed {failed}, settled {settled:?}");
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for victim in victims {
            let error = victim.join().expect("no panic").expect_err("nobody can read it");
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
        for thread in load {
            thread.join().expect("no wrong byte and no error");
        }
    });
    println!("{deaths} deaths, barred: {culprits:?}");
    assert!((2..=4).contains(&deaths), "{deaths} deaths: two a place, at two places at most");
    assert!(!culprits.is_empty() && culprits.iter().all(|culprit| culprit.ino == ino));
    let error = fs::read(&deadly).expect_err("still refused");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(keeper.tend(), None, "nobody died of that");
}
