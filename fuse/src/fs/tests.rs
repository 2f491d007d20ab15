use std::collections::BTreeMap;

use super::*;

#[path = "../../tests/fuse/image.rs"]
mod image;
mod losing;

use image::{Kind, MemorySource, Node, noise, slot};

const TREE: u32 = 17;

fn lower() -> Vec<Node> {
    vec![
        Node::dir("etc").mode(0o2750).owner(3, 4).mtime("-1.5").xattr("user.dir", b"d"),
        Node::file("etc/passwd", "root").mode(0o640).mtime("12.000000005"),
        Node::file("etc/shadow", "gone"),
        Node::dir("bin"),
        Node::file("bin/busybox", noise(3 << 20, 1))
            .mode(0o4755)
            .xattr("security.capability", b"\x01\0\0\x02cap")
            .xattr("user.b", b"")
            .xattr("user.a", &[0xff; 300]),
        // A link's header is applied to the file, and its chown drops capabilities
        Node::new("bin/sh", Kind::HardLink("bin/busybox".into()))
            .mode(0o4755)
            .xattr("security.capability", b"\x01\0\0\x02cap"),
        Node::new("bin/ash", Kind::Symlink("../bin/sh".into())),
        Node::dir("dev"),
        Node::new("dev/null", Kind::CharDevice(1, 3)).mode(0o666),
        Node::new("dev/sda", Kind::BlockDevice(8, 0)),
        Node::new("dev/pipe", Kind::Fifo),
    ]
}

fn upper() -> Vec<Node> {
    vec![
        Node::dir("etc").mode(0o750).owner(3, 4),
        Node::file("etc/.wh.shadow", ""),
        Node::file("etc/hosts", "127.0.0.1"),
        // Its header is applied to the file below: the tree gets an inode of its own
        Node::new("bin/link", Kind::HardLink("bin/busybox".into())).mode(0o700).owner(7, 8),
    ]
}

fn source() -> MemorySource {
    let mut source = MemorySource::default();
    source.add_layer(slot(5), &lower());
    source.add_layer(slot(6), &upper());
    source.add_tree(slot(TREE), &[slot(5), slot(6)]);
    source.add_tree(slot(18), &[slot(5)]);
    source
}

fn filesystem() -> Filesystem<MemorySource> {
    Filesystem::new(Arc::new(source()))
}

impl<S: FileSource> Filesystem<S> {
    /// Follows names from the root.
    fn walk(&self, path: &str) -> Inode {
        let start = self.getattr(1).expect("the root");
        path.split('/').fold(start, |at, name| match self.lookup(at.ino, name.as_bytes()) {
            Ok(Lookup::Found(inode)) => inode,
            other => panic!("{name} in {path}: {other:?}"),
        })
    }

    fn list_all(&self, ino: u64, room: usize) -> BTreeMap<Vec<u8>, (u64, u64)> {
        let mut found = BTreeMap::new();
        let mut offset = 0;
        loop {
            let mut left = room;
            let before = found.len();
            self.readdir(ino, offset, &mut |entry| {
                if left == 0 {
                    return true;
                }
                left -= 1;
                offset = entry.offset;
                let old = found.insert(entry.name.to_vec(), (entry.ino, entry.offset));
                assert_eq!(old, None, "listed twice");
                false
            })
            .expect("a directory");
            if found.len() == before {
                return found;
            }
        }
    }
}

fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> i32 {
    result.expect_err("it has to fail").errno()
}

#[test]
fn root_has_trees_and_remembers_nothing() {
    let fs = filesystem();
    let root = fs.getattr(1).expect("the root");
    assert_eq!((root.attr.kind, root.attr.nlink), (FileKind::Directory, 2));
    let tree = fs.walk("17");
    assert_eq!((tree.entry_ttl, tree.attr_ttl), (Duration::ZERO, FOREVER));
    assert_eq!(NodeId::from_raw(tree.ino), Some(NodeId::Tree { slot: slot(17), number: 1 }));
    for name in ["19", "0", "017", "+17", "-1", " 17", "17 ", "", "x", "16777217", "99999999999"] {
        let found = fs.lookup(1, name.as_bytes()).expect("no error");
        assert_eq!(found, Lookup::Missing { ttl: Duration::ZERO }, "{name:?}");
    }
    assert_eq!(fs.list_all(1, 9).into_keys().collect::<Vec<_>>(), [b".".to_vec(), b"..".to_vec()]);
}

#[test]
fn attributes() {
    let fs = filesystem();
    let etc = fs.walk("17/etc").attr;
    assert_eq!((etc.mode, etc.uid, etc.gid, etc.mtime_sec), (0o750, 3, 4, 1_700_000_000));
    let etc = fs.walk("18/etc");
    assert_eq!((etc.attr.mode, etc.attr.nlink, etc.blocks()), (0o2750, 2, 0));
    assert_eq!((etc.attr.mtime_sec, etc.attr.mtime_nsec), (-2, 500_000_000));
    let passwd = fs.walk("17/etc/passwd");
    assert_eq!((passwd.attr.mode, passwd.attr.size, passwd.blocks()), (0o640, 4, 1));
    assert_eq!((passwd.attr.mtime_sec, passwd.attr.mtime_nsec), (12, 5));
    assert_eq!((passwd.entry_ttl, passwd.attr_ttl), (FOREVER, FOREVER));
    assert_eq!(fs.getattr(passwd.ino).expect("it is there"), passwd);
    let null = fs.walk("17/dev/null").attr;
    assert_eq!((null.kind, null.rdev), (FileKind::CharDevice, libc::makedev(1, 3)));
    assert_eq!(fs.walk("17/dev/sda").attr.rdev, libc::makedev(8, 0));
    assert_eq!(fs.walk("17/dev/pipe").attr.kind, FileKind::Fifo);
}

#[test]
fn a_file_is_one_inode_in_every_tree() {
    let source = source();
    let header = peel_index::peek_header(&source.layers[&slot(5)].index).expect("an index");
    let fs = Filesystem::new(Arc::new(source));
    let passwd = NodeId::from_raw(fs.walk("17/etc/passwd").ino);
    assert!(matches!(passwd, Some(NodeId::Layer { slot, .. }) if slot == header.slot));
    assert_eq!(fs.walk("17/etc/passwd").ino, fs.walk("18/etc/passwd").ino);
    assert_eq!(fs.walk("18/bin/busybox").ino, fs.walk("18/bin/sh").ino);
    assert_eq!(fs.walk("18/bin/sh").attr.nlink, 2);
    assert_ne!(fs.walk("17/etc").ino, fs.walk("18/etc").ino);
}

#[test]
fn files_that_the_merge_changed() {
    let fs = filesystem();
    let link = fs.walk("17/bin/link");
    assert!(matches!(NodeId::from_raw(link.ino), Some(NodeId::Tree { .. })));
    assert_eq!((link.attr.mode, link.attr.uid, link.attr.nlink), (0o700, 7, 2));
    assert_eq!(fs.walk("17/bin/busybox"), link);
    assert_ne!(fs.walk("17/bin/sh").ino, link.ino, "the group is split, as by an overlay");
    let mut content = Vec::new();
    fs.read(link.ino, 1 << 20, 1 << 20, &mut Vec::new(), &mut content).expect("it has content");
    assert_eq!(content, noise(3 << 20, 1)[1 << 20..2 << 20]);
}

#[test]
fn missing_names_are_remembered() {
    let fs = filesystem();
    let etc = fs.walk("17/etc").ino;
    for name in ["shadow", "nothing", ".wh.shadow"] {
        let found = fs.lookup(etc, name.as_bytes()).expect("no error");
        assert_eq!(found, Lookup::Missing { ttl: FOREVER }, "{name}");
    }
}

#[test]
fn dots() {
    let fs = filesystem();
    let [tree, bin, link, passwd] =
        ["17", "17/bin", "17/bin/link", "17/etc/passwd"].map(|p| fs.walk(p).ino);
    let find = |ino, name: &str| match fs.lookup(ino, name.as_bytes()) {
        Ok(Lookup::Found(inode)) => Ok(inode.ino),
        Ok(Lookup::Missing { .. }) => Err(0),
        Err(error) => Err(error.errno()),
    };
    for ino in [1, tree, bin, link, passwd] {
        assert_eq!(find(ino, "."), Ok(ino));
    }
    assert_eq!(find(bin, ".."), Ok(tree));
    assert_eq!(find(tree, ".."), Ok(1));
    assert_eq!(find(1, ".."), Ok(1));
    for file in [link, passwd] {
        assert_eq!(find(file, ".."), Err(libc::ENOTDIR));
        assert_eq!(find(file, "x"), Err(libc::ENOTDIR));
    }
}

#[test]
fn listing_goes_on_where_it_stopped() {
    let fs = filesystem();
    let bin = fs.walk("17/bin").ino;
    let whole = fs.list_all(bin, usize::MAX);
    let names: Vec<_> = whole.keys().map(|n| String::from_utf8_lossy(n).into_owned()).collect();
    assert_eq!(names, [".", "..", "ash", "busybox", "link", "sh"]);
    assert_eq!(whole[&b".."[..]], (fs.walk("17").ino, 2));
    assert_eq!(whole[&b"ash"[..]], (fs.walk("17/bin/ash").ino, 3));
    for room in 1..8 {
        assert_eq!(fs.list_all(bin, room), whole, "{room}");
    }
    for offset in [6, 7, u64::from(u32::MAX) + 2, u64::MAX] {
        fs.readdir(bin, offset, &mut |entry| panic!("{entry:?} at {offset}")).expect("the end");
    }
    assert_eq!(errno(fs.readdir(fs.walk("17/etc/passwd").ino, 0, &mut |_| true)), libc::ENOTDIR);
}

#[test]
fn listing_with_inodes() {
    let fs = filesystem();
    let bin = fs.walk("17/bin");
    let mut found = Vec::new();
    fs.readdirplus(bin.ino, 0, &mut |entry, inode| {
        found.push((entry.name.to_vec(), *inode));
        false
    })
    .expect("a directory");
    assert_eq!(found.len(), 6);
    for (name, inode) in &found[2..] {
        let name = std::str::from_utf8(name).expect("ascii");
        assert_eq!(*inode, fs.walk(&format!("17/bin/{name}")));
    }
}

/// A source that has lost a layer.
struct Without(MemorySource, Slot);

impl FileSource for Without {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.0.tree(slot)
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.0.layer(slot).filter(|_| slot != self.1)
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        self.0.read(layer, number, offset, len, sink)
    }
}

#[test]
fn a_lost_layer_costs_its_files_only() {
    let fs = Filesystem::new(Arc::new(Without(source(), slot(5))));
    let etc = fs.walk("17/etc").ino;
    let lost = fs.lookup(etc, b"passwd").expect_err("the layer is gone");
    assert_eq!((lost.errno(), lost.level()), (libc::EIO, tracing::Level::ERROR));
    assert!(matches!(fs.lookup(etc, b"hosts"), Ok(Lookup::Found(_))));
    let raw = NodeId::Layer { slot: slot(5), number: 1 }.to_raw();
    assert_eq!(errno(fs.getattr(raw)), libc::ESTALE);

    let mut names = Vec::new();
    let mut list = |offset| {
        fs.readdirplus(etc, offset, &mut |entry, _| {
            names.push(entry.name.to_vec());
            false
        })
    };
    list(0).expect("what comes before the lost one");
    assert_eq!(errno(list(3)), libc::EIO);
    assert_eq!(names, [&b"."[..], b"..", b"hosts"]);
}

#[test]
fn reading() {
    let fs = filesystem();
    let (ino, content) = (fs.walk("18/bin/busybox").ino, noise(3 << 20, 1));
    let end = content.len() as u64;
    for (offset, len) in
        [(0, 1), (0, 4096), (1 << 20, 1 << 20), (end - 5, 100), (end, 9), (u64::MAX, 9), (7, 0)]
    {
        let mut out = b"kept".to_vec();
        fs.read(ino, offset, len, &mut Vec::new(), &mut out).expect("readable");
        let from = content.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        assert_eq!(&out[4..], &from[..from.len().min(len as usize)], "{len} at {offset}");
    }
    let mut out = Vec::new();
    assert_eq!(
        errno(fs.read(fs.walk("17/etc").ino, 0, 1, &mut Vec::new(), &mut out)),
        libc::EISDIR
    );
    assert_eq!(
        errno(fs.read(fs.walk("17/bin/ash").ino, 0, 1, &mut Vec::new(), &mut out)),
        libc::EINVAL
    );
    assert_eq!(errno(fs.read(1, 0, 1, &mut Vec::new(), &mut out)), libc::EISDIR);
}

/// A source that stops one byte early.
struct Short(MemorySource);

impl FileSource for Short {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.0.tree(slot)
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.0.layer(slot)
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        self.0.read(layer, number, offset, len - 1, sink)
    }
}

#[test]
fn a_short_read_is_an_error() {
    let fs = Filesystem::new(Arc::new(Short(source())));
    let error = fs.read(fs.walk("17/etc/passwd").ino, 0, 4096, &mut Vec::new(), &mut Vec::new());
    let error = error.expect_err("a byte is missing");
    assert_eq!((error.errno(), error.level()), (libc::EIO, tracing::Level::ERROR));
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(
        cause.starts_with("expected 4 bytes of inode") && cause.ends_with("found 3"),
        "{cause}"
    );
}

#[test]
fn symlinks() {
    let fs = filesystem();
    let ash = fs.walk("17/bin/ash");
    assert_eq!((ash.attr.kind, ash.attr.size), (FileKind::Symlink, 9));
    assert_eq!(fs.readlink(ash.ino).expect("a symlink"), b"../bin/sh");
    assert_eq!(errno(fs.readlink(fs.walk("17/etc/passwd").ino)), libc::EINVAL);
    assert_eq!(errno(fs.readlink(fs.walk("17/etc").ino)), libc::EISDIR);
}

#[test]
fn extended_attributes() {
    let fs = filesystem();
    let file = fs.walk("18/bin/busybox").ino;
    let names = fs.listxattr(file).expect("a list");
    assert_eq!(names, b"security.capability\0user.a\0user.b\0");
    assert_eq!(fs.getxattr(file, b"user.a").expect("it is there"), [0xff; 300]);
    assert_eq!(fs.getxattr(file, b"user.b").expect("it is there"), b"");
    assert_eq!(fs.getxattr(fs.walk("18/etc").ino, b"user.dir").expect("it is there"), b"d");
    for ino in [file, 1, fs.walk("18/etc").ino, fs.walk("18/dev/null").ino] {
        assert_eq!(errno(fs.getxattr(ino, b"user.none")), libc::ENODATA);
    }
    assert_eq!(fs.listxattr(1).expect("a list"), b"");
}

#[test]
fn statistics() {
    let fs = filesystem();
    let tree = fs.statfs(fs.walk("18").ino).expect("statistics");
    assert_eq!(tree.inodes, 11, "ten of the layer, with one hard link, and the root");
    assert_eq!(tree.blocks, ((3 << 20) + 8u64).div_ceil(4096));
    let file = fs.statfs(fs.walk("18/etc/passwd").ino).expect("statistics");
    assert!(file.blocks >= tree.blocks);
    assert_eq!(fs.statfs(1).expect("statistics").blocks, 0);
}

#[test]
fn numbers_from_nowhere_are_stale() {
    let fs = filesystem();
    let nodes = [
        NodeId::Layer { slot: slot(99), number: 1 },
        NodeId::Layer { slot: slot(5), number: 1000 },
        NodeId::Tree { slot: slot(99), number: 1 },
        NodeId::Tree { slot: slot(17), number: 1000 },
        // A tree's slot is no layer's, and the reverse
        NodeId::Layer { slot: slot(17), number: 1 },
        NodeId::Tree { slot: slot(5), number: 1 },
    ];
    for ino in nodes.map(NodeId::to_raw).into_iter().chain([0, 2, u64::MAX, 1 << 57]) {
        let mut out = Vec::new();
        let errors = [
            errno(fs.getattr(ino)),
            errno(fs.lookup(ino, b"x")),
            errno(fs.lookup(ino, b".")),
            errno(fs.readlink(ino)),
            errno(fs.read(ino, 0, 1, &mut Vec::new(), &mut out)),
            errno(fs.readdir(ino, 0, &mut |_| true)),
            errno(fs.readdirplus(ino, 0, &mut |_, _| true)),
            errno(fs.getxattr(ino, b"user.x")),
            errno(fs.listxattr(ino)),
        ];
        assert!(errors.iter().all(|e| *e == libc::ESTALE), "{ino:#x}: {errors:?}");
    }
}

#[test]
fn holes_read_as_zeros_beyond_4_gib() {
    const SIZE: u64 = 5 << 30;
    let data = noise(3000, 4);
    let mut source = MemorySource::default();
    let extents = vec![((4 << 30) - 1000, data.clone())];
    source.add_layer(slot(5), &[Node::new("huge", Kind::Sparse(SIZE, extents))]);
    source.add_tree(slot(TREE), &[slot(5)]);
    let filesystem = Filesystem::new(Arc::new(source));
    let huge = filesystem.walk("17/huge");
    assert_eq!(huge.attr.size, SIZE);
    let read = |offset: u64, len: u32| {
        let mut out = Vec::new();
        filesystem.read(huge.ino, offset, len, &mut Vec::new(), &mut out).expect("a file");
        out
    };
    assert_eq!(read((4 << 30) - 1010, 3020), [&[0; 10], &data[..], &[0; 10]].concat());
    assert_eq!(read((4 << 30) + 1, 5), data[1001..1006]);
    assert_eq!(read(SIZE - 2, 100), [0, 0]);
    assert_eq!(read(SIZE, 100), []);
    assert_eq!(read(u64::MAX, u32::MAX), []);
}

/// Gives what it has in pieces of a given length.
struct Pieces(MemorySource, usize);

impl FileSource for Pieces {
    fn tree(&self, slot: Slot) -> Option<Arc<Tree>> {
        self.0.tree(slot)
    }

    fn layer(&self, slot: Slot) -> Option<Arc<Layer>> {
        self.0.layer(slot)
    }

    fn read(
        &self,
        layer: Slot,
        number: u32,
        offset: u64,
        len: u32,
        sink: &mut dyn Sink,
    ) -> Result<(), ReadError> {
        let mut bytes = Vec::new();
        self.0.read(layer, number, offset, len, &mut bytes)?;
        bytes.chunks(self.1).for_each(|piece| sink.data(piece));
        Ok(())
    }
}

/// Counts answers.
#[derive(Default)]
struct Answers(Vec<Vec<u8>>);

impl Sink for Answers {
    fn data(&mut self, bytes: &[u8]) {
        self.0.push(bytes.to_vec());
    }

    fn ahead(&mut self, _wish: Ahead) {}
}

#[test]
fn a_read_is_answered_once_and_copied_only_where_it_comes_in_pieces() {
    let content = noise(3 << 20, 1);
    for (piece, copied) in [(5000, 0), (4999, 5000), (1, 5000), (2500, 5000)] {
        let fs = Filesystem::new(Arc::new(Pieces(source(), piece)));
        let ino = fs.walk("17/bin/busybox").ino;
        let (mut buffer, mut answers) = (Vec::new(), Answers::default());
        fs.read(ino, 100, 5000, &mut buffer, &mut answers).expect("readable");
        assert_eq!(answers.0, [&content[100..5100]], "{piece}");
        assert_eq!(buffer.len(), copied, "{piece}");
        let (mut buffer, mut answers) = (Vec::new(), Answers::default());
        fs.read(ino, 3 << 20, 5000, &mut buffer, &mut answers).expect("the end");
        assert_eq!(answers.0, [b""], "an empty answer is one");
    }
}
