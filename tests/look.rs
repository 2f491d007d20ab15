//! Looking into images without mounting them: fs, which, and the first layers alone.

mod support;

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use serde_json::json;
use support::{
    Peel, can_mount,
    image::{Layer, Layout, noise},
};

fn layout(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new()
            .dir("etc", 0o750)
            .file("etc/old", 0o600, "old\n")
            .file("etc/name", 0o644, "first\n")
            .file("big", 0o644, noise(7, 3_000_000))
            .symlink("etc/out", "/../../../etc/name")
            .hard_link("etc/again", "etc/old"),
        Layer::new().dir("etc", 0o755).file("etc/name", 0o4755, "second\n").whiteout("etc/old"),
        Layer::new().file("third", 0o644, "3"),
    ];
    layout.image("v1", layers, json!({}));
    layout
}

#[test]
fn files_are_listed_shown_and_copied() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).reference("v1");
    peel.peel(["fs", "ls", &reference]).fails(3);
    peel.peel(["pull", "-q", &reference]).ok();
    assert_eq!(peel.peel(["fs", "ls", &reference]).ok(), "big\netc\nthird\n");
    assert_eq!(peel.peel(["fs", "ls", &reference, "/etc"]).ok(), "again\nname\nout\n");
    let long = peel.peel(["fs", "ls", "-l", &reference, "etc"]).ok();
    assert!(long.contains("-rwsr-xr-x") && long.contains("out -> /../../../etc/name"), "{long}");
    let list = peel.json(["fs", "ls", "--json", &reference, "/etc"]);
    assert_eq!(list[1]["name"], "name");
    assert_eq!(list[1]["size"], 7);
    assert_eq!(list[1]["time"], "2020-09-13T12:26:40Z");
    assert_eq!(list[2]["kind"], "symlink");

    // Links lead to where they would in a container
    assert_eq!(
        peel.peel(["fs", "cat", &reference, "etc/out", "/etc/name"]).ok(),
        "second\nsecond\n"
    );
    let error = peel.peel(["fs", "cat", &reference, "/etc"]).fails(2);
    assert!(error.contains("is a directory"), "{error}");
    peel.peel(["fs", "cat", &reference, "/etc/old"]).fails(3);
    let stat = peel.json(["fs", "stat", "--json", &reference, "/etc/name"]);
    assert_eq!((&stat["mode"], &stat["uid"]), (&json!("4755"), &json!(0)));

    peel.peel(["fs", "cp", &reference, "/etc", "out"]).ok();
    assert_eq!(fs::read_to_string(peel.path("out/name")).expect("read"), "second\n");
    assert_eq!(fs::read_link(peel.path("out/out")).expect("link"), Path::new("/../../../etc/name"));
    let copied = fs::metadata(peel.path("out/name")).expect("copied");
    assert_eq!((copied.mode() & 0o7777, copied.mtime()), (0o755, 1_600_000_000));
    peel.peel(["fs", "cp", "-a", &reference, "/etc/name", "exact"]).ok();
    assert_eq!(fs::metadata(peel.path("exact")).expect("copied").mode() & 0o7777, 0o4755);
    fs::create_dir(peel.path("into")).expect("create");
    peel.peel(["fs", "cp", &reference, "/big", "into"]).ok();
    assert!(fs::read(peel.path("into/big")).expect("read") == noise(7, 3_000_000));
    let error = peel.peel(["fs", "cp", &reference, "/big", "into"]).fails(4);
    assert!(error.contains("into/big"), "{error}");
    assert_eq!(peel.json(["mounts", "--json"]), json!([]));
}

#[test]
fn the_layer_of_a_file_is_found() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let reference = layout.reference("v1");
    peel.peel(["pull", "-q", &reference]).ok();
    let layers = &peel.json(["inspect", &reference])["layers"];
    for (path, number) in [("/big", 1), ("/etc/name", 2), ("/third", 3), ("etc/again", 1)] {
        let found = peel.json(["which", "--json", &reference, path]);
        assert_eq!(found["layer"]["number"], number, "{path}: {found}");
        assert_eq!(found["layer"]["digest"], layers[number - 1]["digest"], "{path}");
        // The bytes are where it says
        let extent = &found["extents"][0];
        let blob = fs::read(layout.blob_path(found["layer"]["digest"].as_str().expect("text")));
        let mut tar = Vec::new();
        let blob = blob.expect("read");
        let mut gzip = flate2::read::GzDecoder::new(blob.as_slice());
        std::io::Read::read_to_end(&mut gzip, &mut tar).expect("inflate");
        let at = extent["tar_offset"].as_u64().expect("number") as usize;
        let len = extent["size"].as_u64().expect("number") as usize;
        let expected = peel.path("copy");
        peel.peel(["fs", "cp", &reference, path, "copy"]).ok();
        assert!(tar[at..at + len] == fs::read(&expected).expect("read"), "{path}");
        fs::remove_file(expected).expect("remove");
        assert!(!found["spans"].as_array().expect("list").is_empty(), "{path}");
    }
    let text = peel.peel(["which", &reference, "/etc/name"]).ok();
    assert!(text.starts_with("/etc/name: layer 2 of 3\n"), "{text}");
    assert!(peel.peel(["which", &reference, "/etc"]).ok().contains("merged from 3 layers"));
    peel.peel(["which", &reference, "/none"]).fails(3);
}

#[test]
fn the_first_layers_are_an_image_too() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let reference = layout(&peel).reference("v1");
    peel.peel(["pull", "-q", &reference]).ok();
    peel.peel(["mount", "--layers", "1", &reference, "m"]).ok();
    assert_eq!(fs::read_to_string(peel.path("m/etc/name")).expect("read"), "first\n");
    assert_eq!(fs::read_to_string(peel.path("m/etc/old")).expect("read"), "old\n");
    // What it shows is no garbage
    assert_eq!(peel.json(["gc", "--json"])["items"], json!([]));
    assert!(!peel.path("m/third").exists());
    peel.peel(["umount", "m"]).ok();
    peel.peel(["mount", "--rw", "--layers", "2", "--name", "w", &reference, "m"]).ok();
    fs::write(peel.path("m/new"), "new").expect("write");
    peel.peel(["umount", "m"]).ok();
    peel.peel(["gc"]).ok();
    let error = peel.peel(["mount", "--rw", "--name", "w", &reference, "m"]).fails(4);
    assert!(error.contains("another image"), "{error}");
    peel.peel(["mount", "--rw", "--layers", "2", "--name", "w", &reference, "m"]).ok();
    assert_eq!(fs::read_to_string(peel.path("m/new")).expect("read"), "new");
    peel.peel(["umount", "--rm", "m"]).ok();
    assert_eq!(
        peel.peel(["fs", "ls", &reference, "/etc", "--layers", "1"]).ok(),
        "again\nname\nold\nout\n"
    );
    let error = peel.peel(["mount", "--layers", "4", &reference, "m"]).fails(2);
    assert!(error.contains("fewer layers"), "{error}");
}

#[test]
fn devices_and_fifos_are_copied_where_they_are_asked_for() {
    if !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layer = Layer::new()
        .dir("d", 0o755)
        .node("d/null", tar::EntryType::Char, 0o666, (1, 3))
        .node("d/disk", tar::EntryType::Block, 0o640, (7, 99))
        .node("d/pipe", tar::EntryType::Fifo, 0o622, (0, 0))
        .hard_link("d/null too", "d/null")
        .file("d/file", 0o600, "file");
    layout.image("v1", vec![layer], json!({}));
    let reference = layout.reference("v1");
    peel.peel(["pull", "-q", &reference]).ok();
    let long = peel.peel(["fs", "ls", "-l", &reference, "/d"]).ok();
    for part in ["crw-r--r--", "brw-r-----", "prw--w--w-"] {
        assert!(long.contains(part), "{part} in {long}");
    }
    let stat = peel.json(["fs", "stat", "--json", &reference, "/d/pipe"]);
    assert_eq!(stat["kind"], "fifo");
    // Nothing is waited for: a fifo has no end, and a device answers for itself
    for path in ["/d/pipe", "/d/null", "/d/disk"] {
        let error = peel.peel(["fs", "cat", &reference, path]).fails(2);
        assert!(error.contains("has no content"), "{error}");
    }

    let plain = peel.peel(["fs", "cp", &reference, "/d", "plain"]);
    assert_eq!(plain.stderr.matches("left out").count(), 4, "{plain:?}");
    plain.ok();
    assert_eq!(fs::read_dir(peel.path("plain")).expect("read").count(), 1);
    peel.peel(["fs", "cp", "-a", &reference, "/d", "exact"]).ok();
    let of = |name: &str| fs::symlink_metadata(peel.path("exact").join(name)).expect(name);
    let (null, disk, pipe) = (of("null"), of("disk"), of("pipe"));
    assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
    assert!(disk.file_type().is_block_device() && disk.rdev() == rustix::fs::makedev(7, 99));
    assert!(pipe.file_type().is_fifo());
    let modes = [&null, &disk, &pipe].map(|found| found.mode() & 0o7777);
    // The link's own header was the last to say
    assert_eq!(modes, [0o644, 0o640, 0o622]);
    assert_eq!((of("null too").ino(), null.nlink(), null.mtime()), (null.ino(), 2, 1_600_000_000));
}
