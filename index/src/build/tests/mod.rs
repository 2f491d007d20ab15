//! Entries of a tar against the directories and inodes of its layer.

use crate::{
    Algorithm, BuildError, EntryKind, EntryProblem, Extent, FileKind, Layer, LayerBuilder, Piece,
    TarEntry, chain_id,
    format::{HIDES_LOWER, LOWER_LINK, WHITEOUT_KIND},
    testing::{
        Item, build, build_blob, device, dir, file, global, gzip, hard_link, open_layer, read,
        sample, slot, symlink, tar_of,
    },
};

use super::{apply::LayerTree, encode};

mod hostile;

/// One line an entry: `number kind path flags`, where flags are `?` implicit, `!` opaque, `^` hides
/// lower directories.
fn dump(layer: &Layer) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![(String::new(), 1)];
    let flags = |number| {
        let mut flags = String::new();
        for (is_set, flag) in [(layer.is_implicit(number), '?'), (layer.is_opaque(number), '!')] {
            flags.extend(is_set.then_some(flag));
        }
        flags
    };
    lines.push(format!("1 d /{}", flags(1)));
    while let Some((path, directory)) = pending.pop() {
        for entry in layer.children(directory).1 {
            let name = String::from_utf8_lossy(layer.name(entry));
            let (path, number) = (format!("{path}/{name}"), entry.inode.get());
            if entry.kind == WHITEOUT_KIND {
                lines.push(format!("0 w {path}"));
                continue;
            }
            let Some(attr) = layer.inode(number) else {
                let found = layer.lower_links().find(|(link, _)| *link == number);
                let target = String::from_utf8_lossy(found.expect("a lower link").1);
                lines.push(format!("{number} L {path} => {target}"));
                continue;
            };
            lines.push(match attr.kind {
                FileKind::Directory => {
                    let hides = if entry.flags & HIDES_LOWER != 0 { "^" } else { "" };
                    pending.push((path.clone(), number));
                    format!("{number} d {path}{}{hides}", flags(number))
                }
                FileKind::Symlink => {
                    let target = layer.symlink_target(number).expect("a target");
                    format!("{number} l {path} -> {}", String::from_utf8_lossy(target))
                }
                FileKind::Regular => format!("{number} f {path} {}", attr.size),
                FileKind::CharDevice => format!("{number} c {path} {:x}", attr.rdev),
                FileKind::BlockDevice => format!("{number} b {path} {:x}", attr.rdev),
                FileKind::Fifo => format!("{number} p {path}"),
            });
        }
    }
    let path = |line: &String| {
        line.split(' ').nth(2).map(|path| path.trim_end_matches(['?', '!', '^']).to_owned())
    };
    lines.sort_by_key(path);
    lines
}

#[test]
fn entries_become_a_tree() {
    let char_device = tar::EntryType::Char;
    let table: Vec<(&str, Vec<Item>, &[&str])> = vec![
        ("nothing", vec![], &["1 d /?"]),
        (
            "every kind",
            vec![
                dir("./"),
                dir("./d/"),
                file("./d/f", "abc"),
                symlink("./d/l", "../x"),
                device("./c", char_device, 1, 3),
                device("./zero", char_device, 0, 0),
                device("./b", tar::EntryType::Block, 259, 0x101),
                device("./p", tar::EntryType::Fifo, 0, 0),
                hard_link("./h", "d/f"),
            ],
            &[
                "1 d /",
                "7 b /b 110301",
                "5 c /c 103",
                "2 d /d",
                "3 f /d/f 3",
                "4 l /d/l -> ../x",
                "3 f /h 3",
                "8 p /p",
                "6 c /zero 0",
            ],
        ),
        (
            "names never leave the root",
            vec![file("/../a", ""), file("../../b/./c", ""), file("d//e/../f", "")],
            &["1 d /?", "2 f /a 0", "3 d /b?", "4 f /b/c 0", "5 d /d?", "6 f /d/f 0"],
        ),
        ("only a directory can be the root", vec![file(".", "x"), symlink("/", "y")], &["1 d /?"]),
        (
            "a global header makes the directories above it, and takes its path for itself",
            vec![
                file("f", ""),
                dir("d"),
                global("a/b/PaxHeaders/c"),
                global("f"),
                global("d"),
                global("d/.wh.x"),
                global("/"),
                file("a/f", ""),
            ],
            &[
                "1 d /?",
                "2 d /a?",
                "3 d /a/b?",
                "4 d /a/b/PaxHeaders?",
                "6 f /a/f 0",
                "5 d /d?",
                "0 w /d/x",
            ],
        ),
        (
            "a later entry of the same path wins",
            vec![file("a", "1"), file("b", ""), file("a", "22")],
            &["1 d /?", "3 f /a 2", "2 f /b 0"],
        ),
        (
            "a directory over a directory keeps what is in it",
            vec![dir("a"), file("a/b", ""), dir("a").mode(0o700)],
            &["1 d /?", "2 d /a", "3 f /a/b 0"],
        ),
        (
            "an implicit directory that is listed later is no longer implicit",
            vec![file("a/b", ""), dir("a")],
            &["1 d /?", "2 d /a", "3 f /a/b 0"],
        ),
        (
            "a file over a directory removes what is in it",
            vec![dir("a"), dir("a/b"), file("a/b/c", ""), file("a", "x")],
            &["1 d /?", "2 f /a 1"],
        ),
        (
            "a directory over a file",
            vec![file("a", "x"), file("z", ""), dir("a"), file("a/b", "")],
            &["1 d /?", "3 d /a", "4 f /a/b 0", "2 f /z 0"],
        ),
        (
            "hard links in the layer, chained and to a symlink",
            vec![
                file("a", "x"),
                hard_link("b", "a"),
                hard_link("c", "/b"),
                symlink("l", "a"),
                hard_link("m", "./l"),
            ],
            &["1 d /?", "2 f /a 1", "2 f /b 1", "2 f /c 1", "3 l /l -> a", "3 l /m -> a"],
        ),
        (
            "a hard link keeps the file that its target was",
            vec![file("a", "x"), hard_link("b", "a"), file("a", "yy")],
            &["1 d /?", "3 f /a 2", "2 f /b 1"],
        ),
        (
            "a hard link to itself is ignored",
            vec![file("a", "x"), hard_link("./a", "a"), hard_link("b/c", "b/c")],
            &["1 d /?", "2 f /a 1", "3 d /b?"],
        ),
        (
            "a hard link replaces a directory, even the one its target is in",
            vec![dir("a"), file("a/x", "1"), dir("b"), hard_link("b", "a/x"), hard_link("a", "b")],
            &["1 d /?", "2 f /a 1", "2 f /b 1"],
        ),
        (
            "hard links into lower layers share an inode",
            vec![hard_link("a", "usr/x"), hard_link("b", "/usr/./x"), hard_link("c", "b")],
            &["1 d /?", "2 L /a => usr/x", "2 L /b => usr/x", "2 L /c => usr/x"],
        ),
        (
            "a target that comes later is not in the layer yet",
            vec![hard_link("a", "b"), file("b", "x"), hard_link("c", "b")],
            &["1 d /?", "2 L /a => b", "3 f /b 1", "3 f /c 1"],
        ),
        (
            "a target is looked up through symlinks of the layer, its last name is not",
            vec![
                symlink("l", "/d"),
                symlink("d/s", "x"),
                hard_link("a", "l/s"),
                hard_link("b", "l/gone/f"),
            ],
            &[
                "1 d /?",
                "4 l /a -> x",
                "5 L /b => d/gone/f",
                "3 d /d?",
                "4 l /d/s -> x",
                "2 l /l -> /d",
            ],
        ),
        (
            "symlinked parents are followed inside the root",
            vec![
                dir("usr/lib"),
                symlink("lib", "../../usr/lib"),
                file("lib/x", ""),
                symlink("abs", "/usr/./lib/../share"),
                file("abs/y", ""),
                file("lib", "z"),
            ],
            &[
                "1 d /?",
                "5 l /abs -> /usr/./lib/../share",
                "8 f /lib 1",
                "2 d /usr?",
                "3 d /usr/lib",
                "4 f /usr/lib/x 0",
                "6 d /usr/share?",
                "7 f /usr/share/y 0",
            ],
        ),
        (
            "whiteouts hide lower content only",
            vec![
                file(".wh.a", ""),
                file("b/.wh.c", ""),
                file("e", ""),
                file(".wh.e", ""),
                dir("f"),
                file(".wh.f", ""),
                file(".wh.g", ""),
                file("g/x", ""),
            ],
            &[
                "1 d /?",
                "0 w /a",
                "2 d /b?",
                "0 w /b/c",
                "3 f /e 0",
                "4 d /f^",
                "5 d /g?^",
                "6 f /g/x 0",
            ],
        ),
        (
            "opaque directories, wherever the mark stands",
            vec![
                dir("a"),
                file("a/.wh..wh..opq", ""),
                file("b/.wh..wh..opq", ""),
                dir("b"),
                file("c/x", ""),
                file("c/.wh..wh..opq", ""),
                file(".wh..wh..opq", ""),
            ],
            &["1 d /?!", "2 d /a!", "3 d /b!", "4 d /c?!", "5 f /c/x 0"],
        ),
        (
            "a whiteout goes with its directory",
            vec![file("a/.wh.b", ""), file("a", "x"), dir("a"), dir("a/b")],
            &["1 d /?", "2 d /a", "3 d /a/b"],
        ),
        (
            "names of other union file systems are ignored",
            vec![file(".wh..wh.aufs", ""), dir("a/.wh..wh.plnk"), file("a/.wh..wh.plnk/1.2", "")],
            &["1 d /?"],
        ),
        (
            "only the last name makes a whiteout",
            vec![file(".wh.a/b", "")],
            &["1 d /?", "2 d /.wh.a?", "3 f /.wh.a/b 0"],
        ),
    ];
    for (what, items, expected) in table {
        assert_eq!(dump(&sample(1, &items).layer), expected, "{what}");
    }
}

#[test]
fn attributes_come_from_the_header() {
    let sample = sample(
        1,
        &[
            file("a", "x").mode(0o106_755).uid(1000).mtime(5).xattr("user.one", "1"),
            hard_link("b", "a").mode(0o600).uid(7).mtime(9).xattr("user.two", "2"),
            symlink("l", "target").mode(0o644).xattr("user.one", "1"),
            dir("d").mode(0o1777).uid(3),
            file("i/x", ""),
            dir(".").mode(0o711).uid(4).mtime(6),
        ],
    );
    let layer = &sample.layer;
    let attr = |number| layer.inode(number).expect("there");
    let a = attr(2);
    assert_eq!((a.mode, a.uid, a.gid, a.nlink, a.size), (0o600, 7, 0, 2, 1));
    assert_eq!((a.mtime_sec, a.mtime_nsec), (9, 0));
    assert_eq!(layer.xattrs(2).count(), 2, "setxattr keeps the others");
    let l = attr(3);
    assert_eq!((l.mode, l.size, l.nlink), (0o777, 6, 1));
    assert_eq!(layer.xattrs(3).count(), 0, "a symlink has no user.*");
    assert_eq!((attr(4).mode, attr(4).uid, attr(4).nlink), (0o1777, 3, 2));
    let implicit = attr(5);
    assert_eq!((implicit.mode, implicit.uid, implicit.mtime_sec), (0o755, 0, 0));
    assert_eq!((attr(1).mode, attr(1).uid, attr(1).mtime_sec, attr(1).nlink), (0o711, 4, 6, 4));
    assert_eq!((layer.inode(0), layer.inode(7), layer.inode(u32::MAX)), (None, None, None));
    assert_eq!(layer.symlink_target(2), None);
}

#[test]
fn extended_attributes_are_filtered_and_merged() {
    let capability = "security.capability";
    let sample = sample(
        1,
        &[
            file("a", "")
                .xattr("user.z", "1")
                .xattr("user.a", "")
                .xattr("user.overlay.opaque", "y")
                .xattr("trusted.overlay.opaque", "y")
                .xattr("trusted.other", "y")
                .xattr("unknown.space", "y")
                .xattr("system.posix_acl_access", "acl")
                .xattr("user.z", "2\nlast wins"),
            file("b", "").xattr(capability, "x").xattr("user.keep", "1"),
            hard_link("c", "b"),
            file("d", "").xattr(capability, "x"),
            hard_link("e", "d").xattr(capability, "y"),
            dir("f").xattr("user.one", "1").xattr("user.two", "1"),
            dir("f").xattr("user.two", "2"),
        ],
    );
    let table: [(u32, &[(&str, &str)]); 5] = [
        (2, &[("system.posix_acl_access", "acl"), ("user.a", ""), ("user.z", "2\nlast wins")]),
        (3, &[("user.keep", "1")]),
        (4, &[(capability, "y")]),
        (5, &[("user.one", "1"), ("user.two", "2")]),
        (9, &[]),
    ];
    for (number, expected) in table {
        let expected = expected.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        assert!(sample.layer.xattrs(number).eq(expected), "{number}");
    }
}

#[test]
fn entries_that_cannot_be_represented_are_refused() {
    let long = "x".repeat(256);
    let deep = "d/".repeat(2049);
    let chain = |len: usize| {
        let mut items: Vec<Item> =
            (0..len).map(|n| symlink(&format!("l{n}"), &format!("l{}", n + 1))).collect();
        items.push(dir(&format!("l{len}")));
        items.push(file("l0/x", ""));
        items
    };
    assert!(build(&chain(255)).is_ok());
    let big = |len| file("a", "").xattr("user.a", &"v".repeat(len));
    assert!(build(&[big(65536)]).is_ok());
    type Check = fn(&EntryProblem) -> bool;
    let table: Vec<(Vec<Item>, Check)> = vec![
        (vec![file(&long, "")], |p| matches!(p, EntryProblem::Name { found: 256 })),
        (vec![dir(&format!("{long}/a"))], |p| matches!(p, EntryProblem::Name { .. })),
        (vec![dir(&deep)], |p| matches!(p, EntryProblem::Path { found: 4098 })),
        (vec![symlink("a", "")], |p| matches!(p, EntryProblem::EmptyLink)),
        (vec![hard_link("a", "")], |p| matches!(p, EntryProblem::EmptyLink)),
        (vec![symlink("a", &"x".repeat(4097))], |p| matches!(p, EntryProblem::Link { .. })),
        (vec![file(".wh.", "")], |p| matches!(p, EntryProblem::Whiteout)),
        (vec![file("a/.wh..", "")], |p| matches!(p, EntryProblem::Whiteout)),
        (vec![file(".wh...", "")], |p| matches!(p, EntryProblem::Whiteout)),
        (vec![dir("d"), hard_link("a", "d")], |p| matches!(p, EntryProblem::DirectoryLink { .. })),
        (vec![hard_link("a", "..")], |p| matches!(p, EntryProblem::DirectoryLink { .. })),
        (vec![file("f", ""), file("f/x", "")], |p| matches!(p, EntryProblem::NotDirectory { .. })),
        (vec![hard_link("f", "lower"), file("f/x", "")], |p| {
            matches!(p, EntryProblem::NotDirectory { .. })
        }),
        (vec![file("f", ""), hard_link("a", "f/x")], |p| {
            matches!(p, EntryProblem::NotDirectory { .. })
        }),
        (vec![symlink("a", "a"), file("a/x", "")], |p| matches!(p, EntryProblem::Links)),
        (chain(257), |p| matches!(p, EntryProblem::Links)),
        (vec![file("a", "").xattr(&format!("user.{long}"), "")], |p| {
            matches!(p, EntryProblem::XattrName { found: 261 })
        }),
        (vec![big(65537)], |p| matches!(p, EntryProblem::XattrValue { found: 65537 })),
    ];
    for (items, is_expected) in table {
        match build(&items) {
            Err(BuildError::Entry { problem, .. }) if is_expected(&problem) => {}
            other => panic!("{:?}: {other:?}", items.last()),
        }
    }
    let error = build(&[dir("d"), file("d/.wh.", "")]).expect_err("bad whiteout");
    assert_eq!(
        error.to_string(),
        "entry \"d/.wh.\" at tar offset 512: invalid whiteout name",
        "names entry and offset"
    );
}

fn entry(path: &str, size: u64, data: Vec<Extent>) -> TarEntry {
    TarEntry {
        path: path.into(),
        kind: EntryKind::File,
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime_sec: -5,
        mtime_nsec: 999_999_999,
        rdev_major: 0,
        rdev_minor: 0,
        size,
        header_offset: 512,
        data,
        xattrs: vec![],
    }
}

fn extent(logical: u64, tar_offset: u64, len: u64) -> Extent {
    Extent { logical, tar_offset, len }
}

/// A layer of the given entries over a tar of 64 KiB of no meaning.
fn layer_of(entries: &[TarEntry]) -> Result<Layer, BuildError> {
    let tar: Vec<u8> = (0..65536u32).map(|n| (n % 251) as u8).collect();
    let mut tree = LayerTree::new();
    entries.iter().try_for_each(|entry| tree.apply(entry))?;
    let empty = build(&[])?;
    let mut decoder = crate::StreamDecoder::new();
    decoder.push(&tar, &mut |_| Ok(()))?;
    let decoded = decoder.finish(&mut |_| Ok(()))?;
    let mut raw = [0; 64];
    raw[..32].copy_from_slice(empty.diff_id.as_bytes());
    let meta = crate::format::LayerMeta {
        blob_len: (tar.len() as u64).into(),
        tar_len: (tar.len() as u64).into(),
        copy_len: 0.into(),
        lower_links: 0.into(),
        compression: decoded.compression.code(),
        blob_algorithm: Algorithm::Sha256.code(),
        diff_algorithm: Algorithm::Sha256.code(),
        reserved: 0,
        reserved_tail: 0.into(),
        blob: raw,
        diff_id: raw,
    };
    let sealed = encode::seal(tree.arena, meta, decoded)?;
    Ok(open_layer(sealed.encode(slot(1))).expect("valid"))
}

#[test]
fn pieces_of_sparse_files() {
    let data = |tar_offset, len| Piece::Data { tar_offset, len };
    let zero = |len| Piece::Zero { len };
    let sparse = vec![extent(10, 1000, 5), extent(15, 2000, 5), extent(30, 3000, 10)];
    let layer = layer_of(&[
        entry("plain", 100, vec![extent(0, 512, 100)]),
        entry("sparse", 50, sparse),
        entry("hole", 7, vec![]),
        entry("huge", i64::MAX as u64, vec![extent(1 << 62, 0, 3), extent(i64::MAX as u64, 0, 0)]),
        entry("empty", 0, vec![]),
    ])
    .expect("valid");
    let all = u64::MAX;
    let table: Vec<(u32, u64, u64, Vec<Piece>)> = vec![
        (2, 0, all, vec![data(512, 100)]),
        (2, 10, 20, vec![data(522, 20)]),
        (2, 99, 20, vec![data(611, 1)]),
        (2, 100, 1, vec![]),
        (2, all, all, vec![]),
        (
            3,
            0,
            all,
            vec![zero(10), data(1000, 5), data(2000, 5), zero(10), data(3000, 10), zero(10)],
        ),
        (3, 12, 5, vec![data(1002, 3), data(2000, 2)]),
        (3, 15, 1, vec![data(2000, 1)]),
        (3, 20, 10, vec![zero(10)]),
        (3, 39, 3, vec![data(3009, 1), zero(2)]),
        (3, 45, 100, vec![zero(5)]),
        (3, 5, 0, vec![]),
        (4, 0, all, vec![zero(7)]),
        (5, (1 << 62) - 1, 5, vec![zero(1), data(0, 3), zero(1)]),
        (6, 0, all, vec![]),
        (1, 0, all, vec![]),
        (99, 0, all, vec![]),
    ];
    for (number, offset, len, expected) in table {
        let pieces: Vec<Piece> = layer.pieces(number, offset, len).collect();
        assert_eq!(pieces, expected, "{number} {offset} {len}");
    }
    let attr = layer.inode(2).expect("there");
    assert_eq!((attr.mtime_sec, attr.mtime_nsec), (-5, 999_999_999));
}

#[test]
fn content_that_is_not_in_the_tar_is_refused() {
    let table = [
        ("past i64", entry("a", 1 << 63, vec![extent(0, 0, 1)])),
        ("overlap", entry("a", 9, vec![extent(0, 0, 5), extent(4, 10, 5)])),
        ("disorder", entry("a", 9, vec![extent(5, 0, 1), extent(0, 1, 1)])),
        ("past the size", entry("a", 9, vec![extent(5, 0, 5)])),
        ("past the tar", entry("a", 70000, vec![extent(0, 0, 70000)])),
        ("past the tar, sparse", entry("a", 9, vec![extent(0, 65530, 8)])),
        ("overflow", entry("a", 9, vec![extent(u64::MAX, 0, 2)])),
        ("overflow in the tar", entry("a", 9, vec![extent(0, u64::MAX, 2)])),
    ];
    for (what, entry) in table {
        assert!(layer_of(&[entry]).is_err(), "{what}");
    }
    let dead = [entry("a", 9, vec![extent(0, u64::MAX, 9)]), entry("a", 0, vec![])];
    assert!(layer_of(&dead).is_ok(), "only living files count");
}

#[test]
fn the_same_layer_gives_the_same_file() {
    let items = [dir("a"), file("a/b", &"content ".repeat(1000)), symlink("c", "a/b")];
    let tar = tar_of(&items);
    let blob = gzip(&tar);
    let built = build_blob(&blob).expect("valid");
    let mut bytewise = LayerBuilder::new(Algorithm::Sha256);
    blob.iter().for_each(|byte| bytewise.push(&[*byte]).expect("valid"));
    assert_eq!(bytewise.tar_bytes(), tar.len() as u64);
    let bytewise = bytewise.finish().expect("valid");
    let (one, two) = (built.encode(slot(1)), built.encode(slot(2)));
    assert_eq!(one, bytewise.encode(slot(1)));
    assert_eq!(one[128..], two[128..], "only the header depends on the slot");

    let layer = open_layer(two).expect("valid");
    assert_eq!(layer.slot(), slot(2));
    assert_eq!(layer.numbering(), built.numbering());
    assert_eq!((layer.blob(), layer.blob_len()), (built.blob, blob.len() as u64));
    assert_eq!(layer.blob(), crate::Digest::sha256(&blob));
    assert_eq!((layer.diff_id(), layer.tar_len()), (built.diff_id, tar.len() as u64));
    assert_eq!(Some(layer.diff_id()), chain_id(&[crate::Digest::sha256(&tar)]));
    assert_eq!((layer.compression(), layer.copy_len()), (crate::Compression::Gzip, 0));
    assert_eq!(layer.inode_count(), 4);
    assert_eq!(read(&layer, &blob, 3, 0, u64::MAX), "content ".repeat(1000).as_bytes());
    assert_eq!(read(&layer, &blob, 3, 3, 9), b"tent cont");

    let plain = build_blob(&tar).expect("valid");
    assert_eq!(plain.numbering(), built.numbering(), "compression does not matter");
    assert_ne!(plain.encode(slot(1)), one);
}

#[test]
fn damaged_blobs_are_refused() {
    let tar = tar_of(&[file("a", "hello")]);
    let blob = gzip(&tar);
    assert!(matches!(build_blob(&blob[..blob.len() / 2]), Err(BuildError::Codec(_))));
    assert!(matches!(build_blob(&tar[..515]), Err(BuildError::Tar(_))));
    let mut bad = tar.clone();
    bad[0] ^= 1;
    assert!(matches!(build_blob(&bad), Err(BuildError::Tar(_))));
    assert!(matches!(build_blob(&gzip(&bad)), Err(BuildError::Tar(_))));
}

#[test]
fn spans_are_found_by_offset() {
    let items: Vec<Item> =
        (0..40).map(|n| file(&format!("f{n}"), &"0123456789abcdef".repeat(10_000))).collect();
    let sample = sample(1, &items);
    let layer = &sample.layer;
    assert!(layer.span_count() > 3);
    for index in 0..layer.span_count() {
        let span = layer.span(index).expect("in range");
        assert_eq!(layer.span_at(span.tar_offset), Some(index));
        assert_eq!(layer.span_at(span.tar_offset + u64::from(span.tar_len) - 1), Some(index));
    }
    assert_eq!(layer.span_at(layer.tar_len()), None);
    assert_eq!(layer.span(layer.span_count()), None);
    assert!(layer.decode_span(layer.span_count(), &[]).is_err());
    assert!(layer.decode_span(0, &[]).is_err());
    assert!(layer.record(2).is_some_and(|record| record.flags.get() & LOWER_LINK == 0));
}
