//! Stacks of layers and what they must show. Each row of `index/MERGE.md` has its test here or in
//! `build/tests.rs`.

use crate::{
    Digest, FileKind, MergeError, NodeId, chain_id, merge,
    testing::{
        Item, Sample, Shown, build, device, dir, file, hard_link, merge_samples, open_layer,
        open_tree, sample, slot, symlink, walk,
    },
};

/// `path kind content nlink`, the kind with a `*` where the inode is a file of the tree.
fn line(shown: &Shown) -> String {
    let kind = match shown.attr.kind {
        FileKind::Regular => 'f',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
    };
    let is_own = kind != 'd' && matches!(shown.node, NodeId::Tree { .. });
    let own = if is_own { "*" } else { "" };
    let content = String::from_utf8_lossy(&shown.content);
    format!("/{} {kind}{own} {content} {}", shown.path, shown.attr.nlink)
}

fn samples(layers: &[Vec<Item>]) -> Vec<Sample> {
    (1..).zip(layers).map(|(number, items)| sample(number, items)).collect()
}

fn shown(layers: &[Vec<Item>]) -> Result<Vec<Shown>, MergeError> {
    let samples = samples(layers);
    let samples: Vec<&Sample> = samples.iter().collect();
    Ok(walk(&merge_samples(&samples)?, &samples))
}

fn dot(path: &str) -> Item {
    file(path, "")
}

#[test]
fn layers_become_a_tree() {
    type Case = (&'static str, Vec<Vec<Item>>, &'static [&'static str]);
    let table: Vec<Case> = vec![
        ("no layer", vec![], &["/ d  2"]),
        ("an empty layer", vec![vec![]], &["/ d  2"]),
        (
            "names of all layers",
            vec![
                vec![file("a", "1"), dir("d"), file("d/x", "1")],
                vec![file("b", "2"), file("d/y", "2")],
            ],
            &["/ d  3", "/a f 1 1", "/b f 2 1", "/d d  2", "/d/x f 1 1", "/d/y f 2 1"],
        ),
        (
            "an upper file replaces, of any kind",
            vec![
                vec![file("a", "1"), symlink("b", "x"), dir("c"), file("c/x", "1"), file("d", "1")],
                vec![symlink("a", "y"), file("b", "2"), file("c", "2"), dir("d")],
            ],
            &["/ d  3", "/a l y 1", "/b f 2 1", "/c f 2 1", "/d d  2"],
        ),
        (
            "whiteouts and their limits",
            vec![
                vec![
                    file("a", "1"),
                    dir("d"),
                    file("d/x", "1"),
                    file("d/y", "1"),
                    file("e/x", "1"),
                ],
                vec![dot(".wh.a"), dot("d/.wh.x"), dot(".wh.e"), dot(".wh.none"), dot("new/.wh.x")],
            ],
            &["/ d  4", "/d d  2", "/d/y f 1 1", "/new d  2"],
        ),
        (
            "a whiteout does not hide its own layer",
            vec![
                vec![file("a", "1"), file("d/x", "1"), file("i/x", "1")],
                vec![
                    file("a", "2"),
                    dot(".wh.a"),
                    dir("d"),
                    file("d/y", "2"),
                    dot(".wh.d"),
                    dot(".wh.i"),
                    file("i/y", "2"),
                ],
            ],
            &["/ d  4", "/a f 2 1", "/d d  2", "/d/y f 2 1", "/i d  2", "/i/y f 2 1"],
        ),
        (
            "opaque directories hide lower content only",
            vec![
                vec![file("d/x", "1"), file("d/s/y", "1")],
                vec![file("d/z", "2"), dot("d/.wh..wh..opq"), dot("d/s/.wh.y")],
            ],
            &["/ d  3", "/d d  3", "/d/s d  2", "/d/z f 2 1"],
        ),
        (
            "an opaque root",
            vec![vec![file("a", "1"), file("d/x", "1")], vec![dot(".wh..wh..opq"), file("b", "2")]],
            &["/ d  2", "/b f 2 1"],
        ),
        (
            "a file and then a directory in one layer let lower content through",
            vec![vec![file("d/x", "1")], vec![file("d", "2"), dir("d"), file("d/y", "2")]],
            &["/ d  3", "/d d  2", "/d/x f 1 1", "/d/y f 2 1"],
        ),
        (
            "content comes back three layers up",
            vec![
                vec![file("d/x", "1")],
                vec![dot(".wh.d")],
                vec![dir("d")],
                vec![file("d/x", "4")],
            ],
            &["/ d  3", "/d d  2", "/d/x f 4 1"],
        ),
        (
            "a file over a directory and back, over three layers",
            vec![vec![file("d/x", "1")], vec![file("d", "2")], vec![file("d/y", "3")]],
            &["/ d  3", "/d d  2", "/d/y f 3 1"],
        ),
        (
            "an implicit directory replaces a lower symlink",
            vec![
                vec![dir("usr/lib"), file("usr/lib/x", "1"), symlink("lib", "usr/lib")],
                vec![file("lib/y", "2"), dot("lib/.wh.x"), file("lib/sub/z", "2")],
            ],
            &[
                "/ d  4",
                "/lib d  3",
                "/lib/sub d  2",
                "/lib/sub/z f 2 1",
                "/lib/y f 2 1",
                "/usr d  3",
                "/usr/lib d  2",
                "/usr/lib/x f 1 1",
            ],
        ),
        (
            "a listed directory replaces a lower symlink",
            vec![
                vec![file("usr/lib/x", "1"), symlink("lib", "usr/lib")],
                vec![dir("lib"), file("lib/y", "2")],
            ],
            &[
                "/ d  4",
                "/lib d  2",
                "/lib/y f 2 1",
                "/usr d  3",
                "/usr/lib d  2",
                "/usr/lib/x f 1 1",
            ],
        ),
        (
            "a whited out symlink is not followed",
            vec![vec![dir("b"), symlink("a", "b")], vec![dot(".wh.a"), file("a/x", "2")]],
            &["/ d  4", "/a d  2", "/a/x f 2 1", "/b d  2"],
        ),
        (
            "an implicit directory replaces any other file, behind a symlink nothing",
            vec![
                vec![file("f", "1"), file("g", "1"), symlink("s", "g")],
                vec![file("f/x", "2"), file("s/x", "2")],
            ],
            &["/ d  4", "/f d  2", "/f/x f 2 1", "/g f 1 1", "/s d  2", "/s/x f 2 1"],
        ),
        (
            "hard links within a layer stay one inode of the layer",
            vec![vec![file("a", "1"), hard_link("b", "a")], vec![file("c", "2")]],
            &["/ d  2", "/a f 1 2", "/b f 1 2", "/c f 2 1"],
        ),
        (
            "a hidden name lowers the link count",
            vec![
                vec![file("a", "1"), hard_link("b", "a"), hard_link("c", "a")],
                vec![dot(".wh.b")],
            ],
            &["/ d  2", "/a f* 1 2", "/c f* 1 2"],
        ),
        (
            "a hard link into a lower layer",
            vec![vec![file("a", "1")], vec![hard_link("d/b", "a"), hard_link("c", "d/b")]],
            &["/ d  3", "/a f* 1 3", "/c f* 1 3", "/d d  2", "/d/b f* 1 3"],
        ),
        (
            "a hard link splits a name from its lower group",
            vec![
                vec![file("a", "1"), hard_link("b", "a"), hard_link("c", "a")],
                vec![hard_link("x", "a")],
            ],
            &["/ d  2", "/a f* 1 2", "/b f* 1 2", "/c f* 1 2", "/x f* 1 2"],
        ),
        (
            "the same layer hides the target of its hard link",
            vec![
                vec![file("a", "1"), file("b", "1"), file("d/c", "1")],
                vec![
                    hard_link("x", "a"),
                    dot(".wh.a"),
                    hard_link("y", "b"),
                    file("b", "2"),
                    hard_link("z", "d/c"),
                    dot("d/.wh..wh..opq"),
                ],
            ],
            &["/ d  3", "/b f 2 1", "/d d  2", "/x f* 1 1", "/y f* 1 1", "/z f* 1 1"],
        ),
        (
            "hard links over three layers",
            vec![
                vec![file("a", "1")],
                vec![hard_link("b", "a")],
                vec![hard_link("c", "b")],
                vec![dot(".wh.b")],
            ],
            &["/ d  2", "/a f* 1 1", "/c f* 1 1"],
        ),
        (
            "targets through lower symlinks, one file by two paths",
            vec![
                vec![file("d/f", "1"), symlink("s", "d"), symlink("d/l", "f")],
                vec![hard_link("x", "s/f"), hard_link("y", "d/f"), hard_link("z", "s/l")],
            ],
            &[
                "/ d  3",
                "/d d  2",
                "/d/f f* 1 3",
                "/d/l l* f 2",
                "/s l d 1",
                "/x f* 1 3",
                "/y f* 1 3",
                "/z l* f 2",
            ],
        ),
    ];
    for (what, layers, expected) in table {
        let shown = shown(&layers).unwrap_or_else(|error| panic!("{what}: {error}"));
        let lines: Vec<String> = shown.iter().map(line).collect();
        assert_eq!(lines, expected, "{what}");
    }
}

#[test]
fn groups_share_numbers() {
    let shown = shown(&[
        vec![file("a", "1"), hard_link("b", "a"), hard_link("c", "a")],
        vec![hard_link("x", "a").mode(0o640).uid(9).mtime(77)],
    ])
    .expect("valid");
    let by_path = |path: &str| shown.iter().find(|shown| shown.path == path).expect("shown");
    assert_eq!(by_path("a").node, by_path("x").node);
    assert_eq!(by_path("b").node, by_path("c").node);
    assert_ne!(by_path("a").node, by_path("b").node);
    let (a, b) = (by_path("a").attr, by_path("b").attr);
    assert_eq!((a.mode, a.uid, a.mtime_sec), (0o640, 9, 77));
    assert_eq!((b.mode, b.uid, b.mtime_sec), (0o644, 0, 1));
}

#[test]
fn the_last_header_of_a_group_wins() {
    let shown = shown(&[
        vec![file("d/f", "1"), symlink("s", "d")],
        vec![
            hard_link("x", "s/f").mode(0o600),
            hard_link("y", "d/f").mode(0o640),
            hard_link("z", "s/f").mode(0o444),
        ],
    ])
    .expect("valid");
    for path in ["d/f", "x", "y", "z"] {
        let attr = shown.iter().find(|shown| shown.path == path).expect("shown").attr;
        assert_eq!((attr.mode, attr.nlink), (0o444, 4), "{path}");
    }
}

#[test]
fn attributes_of_directories() {
    let listed = |path: &str, mode| dir(path).mode(mode).uid(mode).mtime(mode.into());
    type Case = (&'static str, Vec<Vec<Item>>, &'static str, (u32, u32, i64));
    let table: Vec<Case> = vec![
        ("never listed", vec![vec![file("a/x", "")]], "a", (0o755, 0, 0)),
        ("an unlisted root", vec![vec![file("a/x", "")]], "", (0o755, 0, 0)),
        ("a listed root", vec![vec![listed("./", 0o700)]], "", (0o700, 0o700, 0o700)),
        ("no layers", vec![], "", (0o755, 0, 0)),
        (
            "the topmost that lists it",
            vec![vec![listed("a", 0o700)], vec![listed("a", 0o711)], vec![file("a/x", "")]],
            "a",
            (0o711, 0o711, 0o711),
        ),
        (
            "a root listed below",
            vec![vec![listed("/", 0o700)], vec![file("a", "")]],
            "",
            (0o700, 0o700, 0o700),
        ),
        (
            "opaque, not listed",
            vec![vec![listed("a", 0o700)], vec![file("a/.wh..wh..opq", "")]],
            "a",
            (0o700, 0o700, 0o700),
        ),
        (
            "whited out, not listed",
            vec![vec![listed("a", 0o700)], vec![file(".wh.a", ""), file("a/x", "")]],
            "a",
            (0o755, 0, 0),
        ),
        (
            "in place of a symlink: where it leads in its own layer",
            vec![vec![listed("a", 0o700), symlink("s", "a")], vec![file("s/x", "")]],
            "s",
            (0o700, 0o700, 0o700),
        ),
        (
            "… and nowhere else, but then further down",
            vec![
                vec![listed("a", 0o700), listed("s", 0o711)],
                vec![symlink("s", "a")],
                vec![file("s/x", "")],
            ],
            "s",
            (0o711, 0o711, 0o711),
        ),
        (
            "below the symlink",
            vec![
                vec![listed("a", 0o700), listed("a/b", 0o711), symlink("s", "/x/../a")],
                vec![file("s/b/c/x", "")],
            ],
            "s/b",
            (0o711, 0o711, 0o711),
        ),
        (
            "through an implicit directory of the symlink's layer",
            vec![
                vec![listed("a", 0o700)],
                vec![file("a/x", ""), symlink("s", "a")],
                vec![file("s/x", "")],
            ],
            "s",
            (0o700, 0o700, 0o700),
        ),
        (
            "a file in a layer between",
            vec![vec![listed("a", 0o700)], vec![file("a", "")], vec![file("a/x", "")]],
            "a",
            (0o755, 0, 0),
        ),
        (
            "behind an opaque mark",
            vec![
                vec![listed("a", 0o711), listed("a/b", 0o700)],
                vec![file("a/.wh..wh..opq", "")],
                vec![file("a/b/x", "")],
            ],
            "a/b",
            (0o700, 0o700, 0o700),
        ),
        (
            "behind an opaque mark of its own layer",
            vec![vec![listed("a/b", 0o700)], vec![file("a/.wh..wh..opq", ""), file("a/b/x", "")]],
            "a/b",
            (0o700, 0o700, 0o700),
        ),
        (
            "behind an opaque mark, and there behind a whiteout",
            vec![
                vec![listed("a/b", 0o700)],
                vec![file("a/.wh.b", "")],
                vec![file("a/.wh..wh..opq", ""), file("a/b/x", "")],
            ],
            "a/b",
            (0o755, 0, 0),
        ),
        (
            "behind an opaque mark, made anew by a whiteout there",
            vec![
                vec![listed("a/b", 0o700)],
                vec![file("a/.wh.b", ""), file("a/b/y", "")],
                vec![file("a/.wh..wh..opq", ""), file("a/b/x", "")],
            ],
            "a/b",
            (0o755, 0, 0),
        ),
    ];
    for (what, layers, path, expected) in table {
        let shown = shown(&layers).expect("valid");
        let attr = shown.iter().find(|shown| shown.path == path).expect("shown").attr;
        assert_eq!((attr.mode, attr.uid, attr.mtime_sec), expected, "{what}");
    }
}

#[test]
fn extended_attributes() {
    let shown = shown(&[
        vec![
            dir("d").xattr("user.low", "1"),
            dir("e").xattr("user.low", "1"),
            file("a", "").xattr("user.keep", "1").xattr("security.capability", "1"),
            file("b", "").xattr("security.capability", "1"),
            file("c", "").xattr("user.c", "1"),
            hard_link("c2", "c").xattr("user.c", "1"),
            hard_link("c3", "c").xattr("user.c", "1"),
        ],
        vec![
            dir("d").xattr("user.high", "2"),
            file("e/x", ""),
            hard_link("x", "a").xattr("user.new", "2"),
            hard_link("y", "b").xattr("security.capability", "2"),
            file(".wh.c3", ""),
        ],
    ])
    .expect("valid");
    let table: &[(&str, &[(&str, &str)])] = &[
        ("", &[]),
        ("d", &[("user.high", "2")]),
        ("e", &[("user.low", "1")]),
        ("a", &[("user.keep", "1"), ("user.new", "2")]),
        ("x", &[("user.keep", "1"), ("user.new", "2")]),
        ("b", &[("security.capability", "2")]),
        ("c2", &[("user.c", "1")]),
    ];
    for (path, expected) in table {
        let found = &shown.iter().find(|shown| shown.path == *path).expect("shown").xattrs;
        let expected: Vec<(Vec<u8>, Vec<u8>)> =
            expected.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        assert_eq!(*found, expected, "{path}");
    }
}

#[test]
fn devices_and_pipes_can_be_linked_too() {
    let shown = shown(&[
        vec![
            device("null", tar::EntryType::Char, 1, 3),
            device("zero", tar::EntryType::Char, 0, 0),
            device("disk", tar::EntryType::Block, 8, 1),
            device("pipe", tar::EntryType::Fifo, 0, 0),
        ],
        vec![hard_link("n", "null"), hard_link("d", "disk"), hard_link("p", "pipe")],
    ])
    .expect("valid");
    let lines: Vec<String> =
        shown.iter().map(|shown| format!("{} {:x}", line(shown), shown.attr.rdev)).collect();
    assert_eq!(
        lines,
        [
            "/ d  2 0",
            "/d b*  2 801",
            "/disk b*  2 801",
            "/n c*  2 103",
            "/null c*  2 103",
            "/p p*  2 0",
            "/pipe p*  2 0",
            "/zero c  1 0"
        ]
    );
}

#[test]
fn what_cannot_be_merged_says_why() {
    let table: Vec<(Vec<Vec<Item>>, &str)> = vec![
        (vec![vec![hard_link("a", "b/c")]], "hard link to a missing file: \"b/c\""),
        (vec![vec![file("b", "")], vec![hard_link("a", "b/c")]], "missing file: \"b/c\""),
        (
            vec![vec![file("b", "")], vec![file(".wh.b", "")], vec![hard_link("a", "b")]],
            "missing file: \"b\"",
        ),
        (vec![vec![dir("b")], vec![hard_link("a", "b")]], "hard link to a directory: \"b\""),
        (
            vec![vec![symlink("b", "b")], vec![hard_link("a", "b/c")]],
            "too many symlinks in path: \"b/c\"",
        ),
    ];
    for (layers, expected) in table {
        let error = shown(&layers).expect_err(expected).to_string();
        let top = build(layers.last().expect("a layer")).expect("valid").diff_id;
        assert!(error.contains(expected) && error.contains(&top.to_string()), "{error}");
    }
    let one = sample(1, &[file("a", "")]);
    let other = sample(1, &[file("b", "")]);
    let error = merge_samples(&[&one, &other]).expect_err("one slot").to_string();
    assert!(error.starts_with("two layers have slot 1: "), "{error}");
}

#[test]
fn a_layer_may_occur_twice() {
    let low = sample(1, &[file("a", "1"), hard_link("b", "a"), file("d/x", "1")]);
    let high = sample(2, &[file("a", "2"), file(".wh.d", "")]);
    let stack = [&low, &high, &low];
    let tree = merge_samples(&stack).expect("valid");
    let lines: Vec<String> = walk(&tree, &stack).iter().map(line).collect();
    assert_eq!(lines, ["/ d  3", "/a f 1 2", "/b f 1 2", "/d d  2", "/d/x f 1 1"]);
    assert_eq!(tree.layers().count(), 3);

    // Seen at one path, though a layer between them hid it
    let twice = sample(1, &[file("s/x", "1").xattr("user.a", "1"), hard_link("y", "s/x")]);
    let between = sample(2, &[symlink("s", "g"), file(".wh.y", "")]);
    let above = sample(3, &[file(".wh.y", "")]);
    let stack = [&twice, &between, &twice, &above];
    let tree = merge_samples(&stack).expect("valid");
    let shown = walk(&tree, &stack);
    let lines: Vec<String> = shown.iter().map(line).collect();
    assert_eq!(lines, ["/ d  3", "/s d  2", "/s/x f* 1 1"]);
    assert_eq!((tree.totals().inodes, tree.totals().bytes), (3, 1));
}

#[test]
fn a_tree_knows_its_layers_and_totals() {
    let low =
        sample(7, &[file("a", "123"), hard_link("b", "a"), symlink("l", "a"), file("c", "x")]);
    let high = sample(9, &[file("d/e", "45"), file(".wh.b", ""), hard_link("c2", "c")]);
    let diff_ids = [low.layer.diff_id(), high.layer.diff_id()];
    let chain = chain_id(&diff_ids);
    let built = merge(&[&low.layer, &high.layer], chain).expect("valid");
    assert_eq!(built.entries(), 6);
    let (one, other) = (built.encode(slot(3)), built.encode(slot(4)));
    assert_eq!(one[128..], other[128..], "only the header depends on the slot");
    let tree = open_tree(one).expect("valid");
    assert_eq!((tree.slot(), tree.chain_id()), (slot(3), chain));
    assert_eq!(tree.numbering(), built.numbering());
    assert_eq!(open_tree(other).expect("valid").numbering(), built.numbering());
    let layers: Vec<_> = tree.layers().collect();
    assert_eq!(layers.iter().map(|layer| layer.slot).collect::<Vec<_>>(), [slot(7), slot(9)]);
    assert_eq!(layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(), diff_ids);
    assert_eq!(layers[0].numbering, low.layer.numbering());
    assert_eq!(layers[0].inodes, low.layer.inode_count());
    // root, d, a, l, c, d/e
    assert_eq!((tree.totals().inodes, tree.totals().bytes), (6, 6));
    assert_eq!(tree.totals(), built.totals());

    assert_eq!((tree.parent(1), tree.parent(2), tree.parent(99)), (Some(1), None, None));
    assert_eq!(tree.entry_count(1), Some(5));
    assert_eq!((tree.entry_count(2), tree.entry_count(0)), (None, None));
    assert_eq!((tree.lookup(1, b"nothing"), tree.entry(1, 5)), (None, None));
    let a = tree.lookup(1, b"a").expect("there");
    assert_eq!(a.node, NodeId::Tree { slot: slot(3), number: 2 }, "numbered depth first");
    assert_eq!(tree.content(2), Some((slot(7), 2)));
    assert_eq!(tree.content(1), None);
    let d = tree.lookup(1, b"d").expect("there");
    assert_eq!((d.kind, d.node), (FileKind::Directory, NodeId::Tree { slot: slot(3), number: 4 }));
    let symlink = tree.lookup(1, b"l").expect("there").node;
    assert_eq!(symlink, NodeId::Layer { slot: slot(7), number: 3 });

    // Another slot of a layer changes the numbering; another stack of equal trees does too
    let moved = open_layer(build(&[file("a", "123")]).expect("valid").encode(slot(8)));
    let still = open_layer(build(&[file("a", "123")]).expect("valid").encode(slot(7)));
    let (moved, still) = (moved.expect("valid"), still.expect("valid"));
    let of = |layer| merge(&[layer], None).expect("valid").numbering();
    assert_ne!(of(&moved), of(&still));
    assert_eq!(merge(&[], None).expect("valid").entries(), 0);
    let no_chain = open_tree(merge(&[], None).expect("valid").encode(slot(1))).expect("valid");
    assert_eq!((no_chain.chain_id(), no_chain.layers().count()), (None, 0));
    assert_ne!(chain, Some(Digest::sha256(b"")));
}

#[test]
fn deep_trees_and_many_layers() {
    let deep = vec!["d"; 2000].join("/");
    let items = |n: u32| vec![file(&format!("{deep}/f{n}"), "x"), file(&format!("l{n}"), "y")];
    let layers: Vec<Sample> = (1..=128).map(|n| sample(n, &items(n))).collect();
    let layers: Vec<_> = layers.iter().map(|sample| &sample.layer).collect();
    let built = merge(&layers, None).expect("valid");
    assert_eq!(built.entries(), 2000 + 128 * 2);
    let tree = open_tree(built.encode(slot(1))).expect("valid");
    let mut directory = 1;
    for _ in 0..2000 {
        match tree.lookup(directory, b"d").expect("there").node {
            NodeId::Tree { number, .. } => directory = number,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(tree.entry_count(directory), Some(128));
}
