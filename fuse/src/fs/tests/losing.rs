//! A source that loses what it gave out while somebody reads it.

use std::sync::atomic::{AtomicU64, Ordering};

use peel_index::Layer;

use super::*;

/// Gives something wrong with each call whose number is a square, and says that it lost something.
struct Losing {
    right: MemorySource,
    wrong: MemorySource,
    calls: AtomicU64,
    losses: AtomicU64,
}

impl Losing {
    fn new() -> Self {
        let mut wrong = MemorySource::default();
        wrong.add_layer(slot(5), &[Node::dir("etc"), Node::file("bin", "short")]);
        wrong.add_layer(slot(6), &[]);
        wrong.add_tree(slot(TREE), &[slot(5), slot(6)]);
        wrong.add_tree(slot(18), &[slot(5)]);
        Self { right: source(), wrong, calls: AtomicU64::new(0), losses: AtomicU64::new(0) }
    }

    fn pick(&self) -> &MemorySource {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call.isqrt().pow(2) == call {
            self.losses.fetch_add(1, Ordering::SeqCst);
            return &self.wrong;
        }
        &self.right
    }
}

impl FileSource for Losing {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.pick().tree(slot)
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.pick().layer(slot)
    }

    fn losses(&self) -> u64 {
        self.losses.load(Ordering::SeqCst)
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        if std::ptr::eq(self.pick(), &raw const self.wrong) {
            sink.data(&vec![0; len as usize]);
            return Ok(());
        }
        self.right.read(layer, number, offset, len, sink)
    }

    fn read_ready(&self, layer: Slot, number: u32, at: u64, len: u32, sink: &mut dyn Sink) -> bool {
        self.read(layer, number, at, len, sink).is_ok()
    }
}

#[test]
fn what_was_lost_meanwhile_reaches_nobody() {
    let fs = filesystem();
    let losing = Filesystem::new(Arc::new(Losing::new()));
    let names = ["17", "17/etc", "17/etc/passwd", "17/bin/busybox", "17/bin/link", "18/bin/ash"];
    let inodes = names.map(|name| fs.walk(name));
    for _ in 0..100 {
        for (name, inode) in names.iter().zip(inodes) {
            assert_eq!(losing.walk(name), inode, "{name}");
            assert_eq!(losing.getattr(inode.ino).ok(), fs.getattr(inode.ino).ok());
            assert_eq!(losing.statfs(inode.ino).ok(), fs.statfs(inode.ino).ok());
            assert_eq!(losing.listxattr(inode.ino).ok(), fs.listxattr(inode.ino).ok());
            let name = b"security.capability";
            let found = losing.getxattr(inode.ino, name).map_err(|e| e.errno());
            assert_eq!(found, fs.getxattr(inode.ino, name).map_err(|e| e.errno()));
        }
        assert_eq!(losing.readlink(inodes[5].ino).expect("a link"), b"../bin/sh");
        let missing = losing.lookup(inodes[1].ino, b"shadow").expect("no error");
        assert_eq!(missing, Lookup::Missing { ttl: FOREVER });
    }
    assert!(losing.source.losses() > 20);
}

#[test]
fn content_that_was_lost_meanwhile_is_read_again() {
    let losing = Filesystem::new(Arc::new(Losing::new()));
    let (busybox, body) = (filesystem().walk("17/bin/busybox").ino, noise(3 << 20, 1));
    let (mut ready, mut buffer) = (0, Vec::new());
    for offset in (0..body.len()).step_by(100_000) {
        let mut content = Vec::new();
        losing.read(busybox, offset as u64, 50_000, &mut buffer, &mut content).expect("read");
        assert!(content == body[offset..body.len().min(offset + 50_000)], "{offset}");
        content.clear();
        if losing.read_ready(busybox, offset as u64, 50_000, &mut content) {
            ready += 1;
            assert!(content == body[offset..body.len().min(offset + 50_000)], "{offset}");
        } else {
            assert!(content.is_empty(), "nothing reaches who is told no");
        }
    }
    assert!(ready > 20 && losing.source.losses() > 5, "{ready}");
}

#[test]
fn listings_stop_before_what_was_lost() {
    let fs = filesystem();
    let losing = Filesystem::new(Arc::new(Losing::new()));
    for _ in 0..100 {
        for name in ["17", "17/bin", "17/etc", "18"] {
            let ino = fs.walk(name).ino;
            assert_eq!(losing.list_all(ino, usize::MAX), fs.list_all(ino, usize::MAX), "{name}");
            assert_eq!(losing.list_plus(ino), fs.list_plus(ino), "{name}");
        }
    }
    assert!(losing.source.losses() > 20);
}

impl<S: FileSource> Filesystem<S> {
    /// All entries of a directory, with their inodes.
    fn list_plus(&self, ino: u64) -> Vec<(Vec<u8>, Inode)> {
        let mut found = Vec::new();
        loop {
            let before = found.len();
            let mut add = |entry: DirEntry<'_>, inode: &Inode| {
                found.push((entry.name.to_vec(), *inode));
                false
            };
            self.readdirplus(ino, before as u64, &mut add).expect("a directory");
            if found.len() == before {
                return found;
            }
        }
    }
}
