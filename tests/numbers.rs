//! Inode numbers of real mounts, over everything that may come between two looks at them.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use serde_json::json;
use support::{
    Peel, can_mount, drop_caches,
    image::{Layer, Layout, noise},
    walk,
};

const BIG: usize = 3 << 20;

fn base() -> Layer {
    Layer::new()
        .dir("dir", 0o755)
        .file("dir/one", 0o644, "one")
        .file("dir/two", 0o644, "two")
        .file("big", 0o644, noise(3, BIG))
        .symlink("link", "dir/one")
}

/// Inode number, link count and blocks by path, the root left out.
fn numbers(root: &Path) -> BTreeMap<String, (u64, u64, u64)> {
    let of = |path: std::path::PathBuf| {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        let name = path.strip_prefix(root).expect("below").to_str().expect("text").to_owned();
        (name, (meta.ino(), meta.nlink(), meta.blocks()))
    };
    walk(root).map(of).collect()
}

fn inodes(root: &Path) -> Vec<(String, u64)> {
    numbers(root).into_iter().map(|(name, (ino, ..))| (name, ino)).collect()
}

#[test]
fn inode_numbers_outlive_mounts_daemons_caches_and_copy_up() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    layout.image("v1", vec![base(), Layer::new().file("dir/three", 0o644, "3")], json!({}));
    let reference = layout.reference("v1");
    peel.peel(["mount", &reference, "ro"]).ok();
    peel.peel(["mount", "--rw", "--name", "s", &reference, "rw"]).ok();
    let bare = numbers(&peel.path("ro"));
    assert_eq!(bare.len(), 6);
    let overlay = inodes(&peel.path("rw"));

    let at = |path: &str| peel.path("rw").join(path);
    fs::File::options()
        .append(true)
        .open(at("dir/one"))
        .expect("open")
        .write_all(b"!")
        .expect("write");
    fs::set_permissions(at("dir/two"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::set_permissions(at("dir"), fs::Permissions::from_mode(0o700)).expect("chmod");
    assert_eq!(inodes(&peel.path("rw")), overlay, "copied up");
    drop_caches();
    assert_eq!(inodes(&peel.path("rw")), overlay, "caches dropped");
    assert_eq!(numbers(&peel.path("ro")), bare, "caches dropped");

    for (stop, what) in [(false, "mounted again"), (true, "another daemon")] {
        peel.peel(["umount", "rw"]).ok();
        peel.peel(["umount", "ro"]).ok();
        if stop {
            peel.peel(["daemon", "stop"]).ok();
        }
        drop_caches();
        peel.peel(["mount", &reference, "ro"]).ok();
        peel.peel(["mount", "--rw", "--name", "s", &reference, "rw"]).ok();
        assert_eq!(numbers(&peel.path("ro")), bare, "{what}");
        assert_eq!(inodes(&peel.path("rw")), overlay, "{what}");
    }
    assert_eq!(fs::read(at("dir/one")).expect("read"), b"one!");
}

/// A whole file, mapped.
fn map(path: &Path) -> memmap2::Mmap {
    let file = fs::File::open(path).expect("open");
    // SAFETY: an image never changes, and what the test writes goes to another inode
    #[expect(unsafe_code, reason = "pages are looked at where they are")]
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("map");
    map
}

/// Pages of a file that are in memory, whoever brought them there.
fn resident(path: &Path) -> usize {
    let map = map(path);
    let mut pages = vec![0u8; map.len().div_ceil(4096)];
    // SAFETY: the map is this process's, and there is a byte for each of its pages
    #[expect(unsafe_code, reason = "mincore(2) takes an address")]
    let result =
        unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|page| *page & 1 == 1).count()
}

#[test]
fn containers_of_images_with_one_base_share_its_pages() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let top = |name: &str| Layer::new().file(name, 0o644, name);
    layout.image("one", vec![base(), top("first")], json!({}));
    layout.image("two", vec![base(), top("second")], json!({}));
    let (one, two) = (layout.reference("one"), layout.reference("two"));
    for (image, dir) in [(&one, "1"), (&two, "2")] {
        peel.peel(["mount", image, &format!("ro{dir}")]).ok();
        peel.peel(["mount", "--rw", image, &format!("rw{dir}")]).ok();
    }
    let big = |mount: &str| peel.path(mount).join("big");
    let pages = BIG.div_ceil(4096);
    assert_eq!(resident(&big("rw1")), 0);
    // Pages that are mapped stay, also when another test drops all caches
    let mapped = map(&big("rw1"));
    assert!(*mapped == *noise(3, BIG));
    let all = ["rw1", "rw2", "ro1", "ro2"];
    assert_eq!(
        all.map(|mount| resident(&big(mount))),
        [pages; 4],
        "read once, through one of them"
    );
    let ino = |mount: &str| fs::metadata(big(mount)).expect("metadata").ino();
    assert_eq!(ino("ro1"), ino("ro2"));

    // What is written goes to one container's upper, and the pages of the others stay
    let file = fs::File::options().write(true).open(big("rw2")).expect("writable");
    file.write_at(b"changed", 0).expect("write");
    assert_eq!(fs::read(big("rw2")).expect("read")[..7], *b"changed");
    assert_eq!(["rw1", "ro1", "ro2"].map(|mount| resident(&big(mount))), [pages; 3]);
    assert!(fs::read(big("rw1")).expect("read") == noise(3, BIG));
}
