//! Inode numbers, link counts and sizes that stay what they are.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use crate::{
    image::{MemorySource, Node, noise, slot},
    keeper::{Keeper, can_mount},
    overlay::Overlay,
    sample::image,
};

const LIMIT: Duration = Duration::from_secs(120);

/// Inode number, link count and blocks of everything below a directory, itself included.
fn numbers(root: &Path) -> BTreeMap<String, (u64, u64, u64)> {
    let mut found = BTreeMap::new();
    let mut queue = vec![String::new()];
    while let Some(name) = queue.pop() {
        let path = root.join(&name);
        let meta = fs::symlink_metadata(&path).expect("there");
        found.insert(name.clone(), (meta.ino(), meta.nlink(), meta.blocks()));
        if meta.is_dir() {
            for entry in fs::read_dir(&path).expect("a directory") {
                let entry = entry.expect("an entry").file_name();
                let entry = entry.to_str().expect("tests use UTF-8");
                queue.push(if name.is_empty() {
                    entry.to_owned()
                } else {
                    format!("{name}/{entry}")
                });
            }
        }
    }
    found
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root");
}

#[test]
fn numbers_outlive_caches_workers_and_mounts() {
    if !can_mount("numbers_outlive_caches_workers_and_mounts") {
        return;
    }
    let mut keeper = Keeper::serve(&image(), LIMIT);
    let before = numbers(&keeper.tree(17));
    assert!(before.len() > 3000);
    drop_caches();
    assert_eq!(numbers(&keeper.tree(17)), before, "after the caches were dropped");
    keeper.kill_worker();
    drop_caches();
    keeper.start_worker();
    assert_eq!(numbers(&keeper.tree(17)), before, "from another worker");
    keeper.mount_again();
    assert_eq!(numbers(&keeper.tree(17)), before, "on another mount");
}

#[test]
fn an_overlays_numbers_outlive_copy_up_caches_workers_and_mounts() {
    if !can_mount("an_overlays_numbers_outlive_copy_up_caches_workers_and_mounts") {
        return;
    }
    let mut keeper = Keeper::serve(&image(), LIMIT);
    let dir = keeper.dir().to_owned();
    let overlay = Overlay::new(&dir, "one", &keeper.tree(17));
    let inodes = |root: &Path| {
        let all = numbers(root);
        // The overlay's own root is a directory of the upper
        all.into_iter().filter(|(name, _)| !name.is_empty()).map(|(name, n)| (name, n.0)).collect()
    };
    let before: BTreeMap<String, u64> = inodes(overlay.path());

    // By content, by attribute, and a whole directory; not a file with several names, whose group
    // an overlay without index takes apart
    let at = |path: &str| overlay.path().join(path);
    fs::File::options()
        .append(true)
        .open(at("bin/tool"))
        .expect("opened")
        .write_all(b"!")
        .expect("room");
    fs::set_permissions(at("many/file-7"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::set_permissions(at("etc"), fs::Permissions::from_mode(0o700)).expect("chmod");
    rustix::fs::lsetxattr(at("many/file-8"), "user.x", b"1", rustix::fs::XattrFlags::empty())
        .expect("writable");
    assert_eq!(inodes(overlay.path()), before, "after copying up");
    drop_caches();
    assert_eq!(inodes(overlay.path()), before, "after the caches were dropped");

    // Numbers after a copy-up come from file handles, which have to open in another worker too,
    // when the kernel has forgotten the inodes
    keeper.kill_worker();
    drop(overlay);
    drop_caches();
    keeper.start_worker();
    let overlay = Overlay::new(&dir, "one", &keeper.tree(17));
    assert_eq!(inodes(overlay.path()), before, "from another worker");

    drop(overlay);
    keeper.mount_again();
    let overlay = Overlay::new(&dir, "one", &keeper.tree(17));
    assert_eq!(inodes(overlay.path()), before, "on another mount");
    assert!(
        fs::read(overlay.path().join("bin/tool")).expect("readable")[..2_500_001]
            == noise(2_500_001, 7)
    );
}

#[test]
fn links_blocks_and_statistics() {
    if !can_mount("links_blocks_and_statistics") {
        return;
    }
    let mut source = MemorySource::default();
    let link = |path: &str, to: &str| Node::new(path, crate::image::Kind::HardLink(to.to_owned()));
    source.add_layer(
        slot(1),
        &[
            Node::file("a", "x"),
            link("b", "a"),
            link("d/c", "a"),
            Node::dir("d"),
            Node::dir("d/e"),
            Node::dir("d/f"),
            Node::file("empty", ""),
            Node::file("full", noise(8193, 3)),
        ],
    );
    source.add_layer(slot(2), &[Node::file(".wh.b", ""), Node::dir("d/g")]);
    source.add_tree(slot(3), &[slot(1)]);
    source.add_tree(slot(4), &[slot(1), slot(2)]);
    let keeper = Keeper::serve(&source, LIMIT);
    let of = |tree: u32, path: &str| {
        let meta = fs::symlink_metadata(keeper.tree(tree).join(path)).expect("there");
        (meta.nlink(), meta.blocks())
    };
    let table = [
        (3, "a", (3, 1)),
        (3, "b", (3, 1)),
        (4, "a", (2, 1)),
        (4, "d/c", (2, 1)),
        (3, "d", (4, 0)),
        (4, "d", (5, 0)),
        (3, "d/e", (2, 0)),
        (3, "empty", (1, 0)),
        (3, "full", (1, 17)),
    ];
    for (tree, path, expected) in table {
        assert_eq!(of(tree, path), expected, "{path} in {tree}");
    }
    let one = rustix::fs::statvfs(keeper.tree(3)).expect("statistics");
    // 8194 bytes of content, and no room for more
    assert_eq!((one.f_bsize, one.f_frsize, one.f_blocks), (4096, 4096, 3));
    assert_eq!((one.f_bfree, one.f_bavail, one.f_ffree, one.f_namemax), (0, 0, 0, 255));
    // a, d, d/e, d/f, empty, full and the root
    assert_eq!(one.f_files, 7);
    let two = rustix::fs::statvfs(keeper.tree(4)).expect("statistics");
    assert_eq!(two.f_files, 8);
}
