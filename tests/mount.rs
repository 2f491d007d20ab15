//! `peel mount` and what belongs to it, over real mounts.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde_json::json;
use support::{
    Peel, can_mount,
    image::{Layer, Layout, noise},
    walk,
};

/// Two layers with a whiteout, an opaque directory and a hard link.
fn sample(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    let lower = Layer::new()
        .dir("a", 0o750)
        .file("a/kept", 0o600, "kept")
        .file("a/hidden", 0o644, "hidden")
        .dir("opaque", 0o755)
        .file("opaque/old", 0o644, "old")
        .file("big", 0o644, noise(1, 5 << 20))
        .hard_link("big2", "big")
        .symlink("link", "a/kept");
    let upper = Layer::new().whiteout("a/hidden").file("opaque/.wh..wh..opq", 0o644, "").file(
        "opaque/new",
        0o4755,
        "new",
    );
    layout.image("v1", vec![lower, upper], json!({ "Cmd": ["/bin/true"] }));
    layout
}

#[test]
fn a_mounted_image_is_what_its_layers_say() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = sample(&peel).reference("v1");
    let mount = peel.path("m");
    peel.peel(["mount", &reference, "m"]).ok();
    let names: Vec<_> = {
        let mut names: Vec<PathBuf> =
            walk(&mount).map(|p| p.strip_prefix(&mount).expect("below").to_owned()).collect();
        names.sort();
        names
    };
    let expected = ["a", "a/kept", "big", "big2", "link", "opaque", "opaque/new"];
    assert_eq!(names, expected.map(PathBuf::from));
    assert_eq!(fs::read(mount.join("big")).expect("read"), noise(1, 5 << 20));
    assert_eq!(fs::read(mount.join("link")).expect("read"), b"kept");
    assert_eq!(fs::read_link(mount.join("link")).expect("readlink"), Path::new("a/kept"));
    let of = |name: &str| fs::symlink_metadata(mount.join(name)).expect("metadata");
    assert_eq!(of("a").permissions().mode() & 0o7777, 0o750);
    assert_eq!(of("opaque/new").permissions().mode() & 0o7777, 0o4755);
    assert_eq!(of("big").ino(), of("big2").ino());
    assert_eq!(of("big").nlink(), 2);
    assert_eq!(of("a/kept").mtime(), 1_600_000_000);

    let error = fs::write(mount.join("new"), "").expect_err("read-only");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    let mounts = peel.json(["mounts", "--json"]);
    assert_eq!(mounts[0]["target"], mount.to_str().expect("text"));
    assert_eq!(mounts[0]["writable"], false);
    let again = peel.peel(["mount", &reference, "m"]).fails(4);
    assert!(again.contains("already a mount point") && again.contains("hint: "), "{again}");
    let removal = peel.peel(["rm", &reference]).fails(4);
    assert!(removal.contains("is mounted on"), "{removal}");

    peel.peel(["umount", "m"]).ok();
    assert!(!mount.exists(), "the directory was made for the mount");
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
    peel.peel(["umount", "m"]).fails(3);
}

#[test]
fn writes_go_to_a_snapshot_that_is_kept_resumed_and_dropped() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = sample(&peel);
    let reference = layout.reference("v1");
    fs::create_dir(peel.path("m")).expect("directory");
    let mount = peel.path("m");
    peel.peel(["mount", "--rw", &reference, "m"]).ok();
    fs::write(mount.join("new"), "written").expect("write");
    fs::remove_file(mount.join("a/kept")).expect("remove");
    fs::rename(mount.join("opaque"), mount.join("renamed")).expect("a lower directory moves");
    fs::set_permissions(mount.join("big"), fs::Permissions::from_mode(0o600)).expect("chmod");

    let upper = peel.root().join("snapshots");
    let in_upper: BTreeMap<_, _> = walk(&upper)
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)))
        .collect();
    assert_eq!(fs::read(&in_upper["new"]).expect("in the upper"), b"written");
    let whiteout = fs::symlink_metadata(&in_upper["kept"]).expect("whiteout");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);

    peel.peel(["mount", &reference, "ro"]).ok();
    assert_eq!(fs::read(peel.path("ro/a/kept")).expect("the image is unchanged"), b"kept");
    assert!(!peel.path("ro/new").exists());

    let busy = peel.peel(["mount", "--rw", "--name", "m", &reference, "other"]).fails(4);
    assert!(busy.contains("snapshot m is mounted"), "{busy}");
    assert!(!peel.path("other").exists());
    peel.peel(["snapshots", "rm", "m"]).fails(4);

    let kept = peel.peel(["umount", "m"]);
    assert!(kept.stderr.contains("snapshot m kept"), "{kept:?}");
    assert!(mount.exists(), "the directory was there before");
    let snapshots = peel.json(["snapshots", "ls", "--json"]);
    assert_eq!(snapshots[0]["name"], "m");
    assert_eq!(snapshots[0]["image"], reference);
    assert!(snapshots[0]["inodes"].as_u64().expect("number") >= 4);

    layout.image("v2", vec![Layer::new().file("x", 0o644, "x")], json!({}));
    let other = layout.reference("v2");
    let refused = peel.peel(["mount", "--rw", "--name", "m", &other, "other"]).fails(4);
    assert!(refused.contains("belongs to another image"), "{refused}");

    let resumed = peel.peel(["mount", "--rw", "--name", "m", &reference, "elsewhere"]);
    assert!(resumed.stderr.contains("snapshot m resumed"), "{resumed:?}");
    assert_eq!(fs::read(peel.path("elsewhere/new")).expect("read"), b"written");
    assert!(!peel.path("elsewhere/a/kept").exists());
    assert!(peel.path("elsewhere/renamed/new").exists());

    peel.peel(["umount", "--rm", "elsewhere"]).ok();
    assert_eq!(peel.json(["snapshots", "ls", "--json"]), json!([]));
    assert_eq!(walk(&upper).count(), 0);
}

#[test]
fn the_root_of_a_writable_mount_looks_as_the_image_says() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let mut root = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o2751);
    header.set_uid(12);
    header.set_gid(34);
    header.set_mtime(1_234_567_890);
    header.set_size(0);
    root.append_data(&mut header, "./", &[][..]).expect("append");
    let tar = root.into_inner().expect("finish");
    let diff_id = peel_index::Digest::sha256(&tar).to_string();
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &tar);
    layout.manifest("plain", vec![layer], &[diff_id], json!({}));
    peel.peel(["mount", "--rw", &layout.reference("plain"), "rw"]).ok();
    peel.peel(["mount", &layout.reference("plain"), "ro"]).ok();
    for mount in ["rw", "ro"] {
        let root = fs::metadata(peel.path(mount)).expect("metadata");
        let found = (root.permissions().mode() & 0o7777, root.uid(), root.gid(), root.mtime());
        assert_eq!(found, (0o2751, 12, 34, 1_234_567_890), "{mount}");
    }
}

#[test]
fn after_a_pull_no_file_of_the_image_is_on_disk() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let mut layer = Layer::new();
    for n in 0..2000 {
        layer = layer.file(&format!("dir{}/file{n}", n % 10), 0o644, format!("{n}"));
    }
    layout.image("many", vec![layer], json!({}));
    let reference = layout.reference("many");
    peel.peel(["pull", &reference]).ok();
    let before = peel.inodes();
    assert!(before < 30, "{before} inodes for one layer");
    peel.peel(["mount", &reference, "m"]).ok();
    assert_eq!(walk(&peel.path("m")).count(), 2010);
    assert!(peel.inodes() <= before + 1, "a mount adds a tree at most");
    peel.peel(["umount", "m"]).ok();

    peel.peel(["rm", &reference]).ok();
    for dir in ["content/blobs/sha256", "layers", "trees"] {
        let left: Vec<_> = walk(&peel.root().join(dir)).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "{dir}");
    }
    assert_eq!(peel.json(["images", "--json"]), json!([]));
}

#[test]
fn layers_are_shared_and_removed_with_their_last_image() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let base = || Layer::new().file("base", 0o644, noise(7, 100_000));
    layout.image("one", vec![base()], json!({}));
    layout.image("two", vec![base(), Layer::new().file("top", 0o644, "top")], json!({}));
    let (one, two) = (layout.reference("one"), layout.reference("two"));
    peel.peel(["pull", &one]).ok();
    let second = peel.peel(["pull", &two]);
    assert!(second.stderr.contains("exists"), "{second:?}");
    peel.peel(["mount", &one, "m1"]).ok();
    peel.peel(["mount", &two, "m2"]).ok();
    let ino = |path: &str| fs::metadata(peel.path(path)).expect("metadata").ino();
    assert_eq!(ino("m1/base"), ino("m2/base"), "one inode, so one page cache");
    peel.peel(["umount", "m1"]).ok();
    peel.peel(["rm", &one]).ok();
    assert_eq!(fs::read(peel.path("m2/base")).expect("read"), noise(7, 100_000));
    peel.peel(["umount", "m2"]).ok();
    peel.peel(["rm", &two]).ok();
    assert_eq!(walk(&peel.root().join("layers")).count(), 0);
}

#[test]
fn paths_with_the_separators_of_mount_options() {
    if !can_mount() {
        return;
    }
    let peel = Peel::named("peel:a,b=c\\ d-");
    // A reference to a layout ends its directory at a colon
    let plain = Peel::new();
    let reference = sample(&plain).reference("v1");
    peel.peel(["mount", "--rw", &reference, "m:x,y"]).ok();
    fs::write(peel.path("m:x,y/new"), "written").expect("write");
    assert_eq!(fs::read(peel.path("m:x,y/a/kept")).expect("read"), b"kept");
    let mounts = peel.json(["mounts", "--json"]);
    assert_eq!(mounts[0]["live"], true);
    peel.peel(["umount", "--rm", "m:x,y"]).ok();
}

#[test]
fn layers_of_every_compression_hold_the_same() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let body = || noise(21, 3 << 20);
    let files = |name: &str| {
        let layer = Layer::new().file(&format!("{name}/noise"), 0o644, body());
        // Zeros, which deflate packs into blocks of megabytes and zstd into nothing
        layer.file(&format!("{name}/zeros"), 0o644, vec![0; 12 << 20]).tar()
    };
    let gzip = |tar: &[u8]| {
        use std::io::Write as _;
        let level = flate2::Compression::default();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(tar).expect("compress");
        encoder.finish().expect("compress")
    };
    let one_frame = |tar: &[u8]| zstd::encode_all(tar, 3).expect("compress");
    let many_frames = |tar: &[u8]| tar.chunks(700_000).flat_map(one_frame).collect::<Vec<_>>();
    type Encode<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let kinds: [(&str, &str, Encode); 4] = [
        ("plain", "tar", &|tar| tar.to_vec()),
        ("gzip", "tar+gzip", &gzip),
        ("zstd", "tar+zstd", &one_frame),
        ("frames", "tar+zstd", &many_frames),
    ];
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for (name, suffix, encode) in kinds {
        let tar = files(name);
        diff_ids.push(peel_index::Digest::sha256(&tar).to_string());
        let media_type = format!("application/vnd.oci.image.layer.v1.{suffix}");
        layers.push(layout.blob(&media_type, &encode(&tar)));
    }
    layout.manifest("all", layers, &diff_ids, json!({}));
    let reference = layout.reference("all");
    peel.peel(["mount", &reference, "m"]).ok();
    for (name, ..) in kinds {
        assert!(fs::read(peel.path("m").join(name).join("noise")).expect("read") == body());
        let zeros = fs::read(peel.path("m").join(name).join("zeros")).expect("read");
        assert!(zeros.len() == 12 << 20 && zeros.iter().all(|b| *b == 0), "{name}");
    }
    peel.peel(["umount", "m"]).ok();
    peel.peel(["rm", &reference]).ok();
    assert_eq!(walk(&peel.root().join("layers")).count(), 0, "seekable copies go as well");
}
