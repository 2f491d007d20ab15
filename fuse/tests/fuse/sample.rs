//! An image with one of everything, and what the kernel should show of it.

use std::collections::BTreeMap;

use crate::{
    image::{Kind, MemorySource, Node, noise, slot},
    listing::Seen,
};

/// The entries of its one layer.
fn nodes() -> Vec<Node> {
    let mut nodes = vec![
        Node::dir("etc").mode(0o1770).owner(10, 20).xattr("user.dir", b"yes"),
        Node::file("etc/empty", "").mtime("-1.25"),
        Node::file("etc/secret", "s").mode(0o600).owner(1000, 1000).mtime("4102444800.123456789"),
        Node::file("etc/name with\nnewline \\ and \u{e9}", "x"),
        Node::dir("bin"),
        Node::file("bin/tool", noise(2_500_001, 7))
            .mode(0o6755)
            .xattr("security.capability", &CAPABILITY)
            .xattr("user.long", &noise(3000, 8))
            .xattr("user.none", b""),
        Node::dir("dev"),
        Node::new("dev/zero", Kind::CharDevice(1, 5)).mode(0o666),
        Node::new("dev/high", Kind::BlockDevice(259, 300)),
        Node::new("dev/pipe", Kind::Fifo).mode(0o620),
        Node::new("link", Kind::Symlink("bin/../etc/empty".into())).mode(0o777),
        Node::file("one", "linked").owner(5, 6),
        Node::new("etc/two", Kind::HardLink("one".into())).owner(5, 6),
        Node::dir("many"),
        Node::dir(&["deep"; 20].join("/")),
        Node::file(&format!("{}/file", ["deep"; 20].join("/")), "bottom"),
    ];
    nodes.extend((0..3000).map(|n| Node::file(&format!("many/file-{n}"), n.to_string())));
    nodes
}

/// cap_net_raw+ep, version 2 (linux/capability.h).
pub(crate) const CAPABILITY: [u8; 20] =
    [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Tree 17 is layer 5, tree 18 has layer 6 on top of it.
pub(crate) fn image() -> MemorySource {
    let mut source = MemorySource::default();
    source.add_layer(slot(5), &nodes());
    source.add_layer(slot(6), &[Node::file("etc/.wh.empty", ""), Node::file("new", "new")]);
    source.add_tree(slot(17), &[slot(5)]);
    source.add_tree(slot(18), &[slot(5), slot(6)]);
    source
}

/// What the kernel should show of tree 17.
pub(crate) fn expected() -> BTreeMap<String, Seen> {
    let nodes = nodes();
    let implied = (1..20).map(|n| Node::dir(&["deep"; 20][..n].join("/")).mtime("0"));
    let root = Node::dir("").mtime("0");
    let all: Vec<_> = nodes.iter().cloned().chain(implied).chain([root]).collect();
    let children = |path: &str| {
        let below = |p: &str| match (path, p.rsplit_once('/')) {
            (_, Some((parent, _))) => parent == path,
            ("", None) => !p.is_empty(),
            _ => false,
        };
        all.iter().filter(|n| n.kind == Kind::Directory && below(&n.path)).count() as u64
    };
    let mut seen = BTreeMap::new();
    for node in &all {
        let target = match &node.kind {
            Kind::HardLink(target) => all.iter().find(|n| n.path == *target).expect("linked"),
            _ => node,
        };
        let names = all.iter().filter(|n| n.kind == Kind::HardLink(target.path.clone()));
        let names: Vec<_> = names.map(|n| &n.path).chain([&target.path]).collect();
        let (kind, rdev, content) = match &target.kind {
            Kind::Directory => ('d', 0, &[][..]),
            Kind::File(content) => ('f', 0, &content[..]),
            Kind::Symlink(to) => ('l', 0, to.as_bytes()),
            Kind::CharDevice(major, minor) => ('c', libc::makedev(*major, *minor), &[][..]),
            Kind::BlockDevice(major, minor) => ('b', libc::makedev(*major, *minor), &[][..]),
            Kind::Fifo => ('p', 0, &[][..]),
            Kind::HardLink(_) | Kind::Sparse(..) => panic!("not in this image"),
        };
        let directory = kind == 'd';
        seen.insert(
            node.path.clone(),
            Seen {
                kind,
                mode: target.mode,
                uid: target.uid,
                gid: target.gid,
                nlink: if directory { 2 + children(&node.path) } else { names.len() as u64 },
                rdev,
                size: if directory { 4096 } else { content.len() as u64 },
                mtime: time(&target.mtime),
                first: (*names.iter().min().expect("itself")).clone(),
                content: content.to_vec(),
                xattrs: target.xattrs.iter().cloned().collect(),
            },
        );
    }
    seen
}

/// Seconds and nanoseconds of a decimal number; nanoseconds count upwards.
fn time(text: &str) -> (i64, i64) {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanos = format!("{fraction:0<9}").parse::<i64>().expect("digits");
    let seconds = whole.parse::<i64>().expect("digits");
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => (seconds - 1, 1_000_000_000 - nanos),
        _ => (seconds, nanos),
    }
}
