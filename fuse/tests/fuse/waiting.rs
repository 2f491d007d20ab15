//! Reads that have to wait, reads that need not, and work ahead of them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use peel_fuse::{Ahead, FileSource, Filesystem, ReadError, ServeOptions, Sink, Spare, adopt};
use peel_index::{Layer, Slot, Tree};

use crate::{
    image::{MemorySource, Node, noise, slot},
    keeper::{Keeper, can_mount},
};

const LIMIT: Duration = Duration::from_secs(120);
/// Files, and so reads that wait at once: more than a worker has threads.
const FILES: usize = 40;

/// A source whose reads wait until a gate is opened.
struct Gated {
    source: MemorySource,
    open: Mutex<bool>,
    opened: Condvar,
    /// Reads that came, at once or through the pool.
    at_once: AtomicUsize,
    pooled: AtomicUsize,
    worked_ahead: AtomicUsize,
}

impl Gated {
    fn set(&self, open: bool) {
        *self.open.lock().expect("gate") = open;
        self.opened.notify_all();
    }
}

impl FileSource for Gated {
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
        self.pooled.fetch_add(1, Ordering::SeqCst);
        sink.ahead(Ahead::Span { layer, span: number });
        let mut open = self.open.lock().expect("gate");
        while !*open {
            open = self.opened.wait(open).expect("gate");
        }
        drop(open);
        self.source.read(layer, number, offset, len, sink)
    }

    fn read_ready(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> bool {
        let open = *self.open.lock().expect("gate");
        // In one piece, or not at all
        let mut bytes = Vec::new();
        if !open || self.source.read(layer, number, offset, len, &mut bytes).is_err() {
            return false;
        }
        self.at_once.fetch_add(1, Ordering::SeqCst);
        sink.data(&bytes);
        true
    }

    fn ahead(&self, _wish: Ahead, spare: &dyn Spare) {
        if spare.go_on() {
            self.worked_ahead.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn serve() -> (Keeper, Arc<Gated>) {
    let nodes: Vec<_> =
        (0..FILES).map(|n| Node::file(&format!("f{n}"), noise(9000 + n, n as u64))).collect();
    let mut source = MemorySource::default();
    source.add_layer(slot(1), &nodes);
    source.add_tree(slot(2), &[slot(1)]);
    let keeper = Keeper::mount(&source, LIMIT);
    let gated = Arc::new(Gated {
        source,
        open: Mutex::new(false),
        opened: Condvar::new(),
        at_once: AtomicUsize::new(0),
        pooled: AtomicUsize::new(0),
        worked_ahead: AtomicUsize::new(0),
    });
    let device = keeper.mounted().device().try_clone_to_owned().expect("dup");
    let filesystem = Filesystem::new(Arc::clone(&gated));
    let handshake = keeper.mounted().handshake();
    let server = adopt(device, handshake, filesystem, &ServeOptions::default()).expect("adopted");
    // Ends when the keeper unmounts
    thread::spawn(move || server.run());
    (keeper, gated)
}

fn until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn reads_that_wait_hold_up_nothing_but_themselves() {
    if !can_mount("reads_that_wait_hold_up_nothing_but_themselves") {
        return;
    }
    let (keeper, gated) = serve();
    let root = keeper.tree(2);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..FILES)
            .map(|n| {
                let path = root.join(format!("f{n}"));
                scope.spawn(move || fs::read(path).expect("readable") == noise(9000 + n, n as u64))
            })
            .collect();
        until("all threads of the pool wait", || {
            gated.pooled.load(Ordering::SeqCst) >= ServeOptions::default().read_threads
        });
        // Names that nobody asked for, so that the worker has to answer
        for n in 0..500 {
            assert!(!root.join(format!("missing{n}")).exists());
        }
        assert_eq!(fs::read_dir(&root).expect("a directory").count(), FILES);
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        gated.set(true);
        assert!(readers.into_iter().all(|reader| reader.join().expect("no panic")));
    });
    until("work ahead runs once reads do not wait", || {
        gated.worked_ahead.load(Ordering::SeqCst) > 0
    });
}

#[test]
fn what_is_in_memory_is_answered_without_the_pool() {
    if !can_mount("what_is_in_memory_is_answered_without_the_pool") {
        return;
    }
    let (keeper, gated) = serve();
    gated.set(true);
    for n in 0..FILES {
        let file = File::open(keeper.tree(2).join(format!("f{n}"))).expect("open");
        let mut room = vec![0; 5000];
        file.read_exact_at(&mut room, 1234).expect("readable");
        assert!(room == noise(9000 + n, n as u64)[1234..6234]);
    }
    assert_eq!(gated.pooled.load(Ordering::SeqCst), 0);
    assert!(gated.at_once.load(Ordering::SeqCst) >= FILES);
}
