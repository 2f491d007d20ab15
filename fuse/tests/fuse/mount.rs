//! What a mount shows, and how it comes and goes.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::{
        fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    process::Command,
    time::Duration,
};

use peel_fuse::session::{LowerMount, LowerState, READAHEAD_KIB, clear_stale, raise_readahead};

use crate::{
    image::{Kind, MemorySource, Node, noise, slot},
    keeper::{Keeper, can_mount, skip},
    listing::{self, Seen},
    sample::{expected, image},
};

const LIMIT: Duration = Duration::from_secs(120);

#[track_caller]
fn assert_same(found: &BTreeMap<String, Seen>, expected: &BTreeMap<String, Seen>) {
    let names = |of: &BTreeMap<String, Seen>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (path, seen) in found {
        // Contents are too long to be printed
        let [a, b] = [seen, &expected[path]].map(|s| Seen { content: Vec::new(), ..s.clone() });
        assert_eq!(a, b, "{path}");
        assert!(seen.content == expected[path].content, "content of {path}");
    }
}

#[test]
fn a_tree_is_what_was_put_in() {
    if !can_mount("a_tree_is_what_was_put_in") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    assert_same(&listing::tree(&keeper.tree(17)).expect("no error"), &expected());
    // Once more, from what the kernel kept
    assert_same(&listing::tree(&keeper.tree(17)).expect("no error"), &expected());

    let upper = keeper.tree(18);
    assert_eq!(fs::read(upper.join("new")).expect("readable"), b"new");
    assert!(!upper.join("etc/empty").exists());
    let ino = |tree, path: &str| fs::metadata(keeper.tree(tree).join(path)).expect("there").ino();
    assert_eq!(ino(17, "bin/tool"), ino(18, "bin/tool"));
}

#[test]
fn names_and_numbers() {
    if !can_mount("names_and_numbers") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let error = |path: &str| fs::metadata(keeper.lower().join(path)).map_err(|e| e.raw_os_error());
    for path in ["19", "017", "etc", "17/none", "17/etc/none"] {
        assert_eq!(error(path).expect_err("not there"), Some(libc::ENOENT), "{path}");
    }
    assert_eq!(error("17/one/x").expect_err("a file"), Some(libc::ENOTDIR));
    assert_eq!(fs::read_dir(keeper.lower()).expect("the root").count(), 0);
    let root = fs::metadata(keeper.lower()).expect("the root");
    assert_eq!((root.ino(), root.mode() & 0o7777), (1, 0o755));
    let above = fs::metadata(keeper.tree(17).join("..")).expect("the root");
    assert_eq!(above.ino(), 1);

    let statistics = rustix::fs::statvfs(keeper.tree(17)).expect("statistics");
    assert_eq!((statistics.f_bsize, statistics.f_namemax, statistics.f_bavail), (4096, 255, 0));
    assert!(statistics.f_blocks >= 2_500_001 / 4096 && statistics.f_files > 3000);
    let tool = fs::metadata(keeper.tree(17).join("bin/tool")).expect("there");
    assert_eq!((tool.blocks(), tool.blksize()), (2_500_001u64.div_ceil(512), 4096));
}

#[test]
fn nothing_can_be_written() {
    if !can_mount("nothing_can_be_written") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let root = keeper.tree(17);
    let file = root.join("one");
    let results = [
        fs::write(&file, "x"),
        fs::File::create(root.join("fresh")).map(drop),
        fs::create_dir(root.join("fresh")),
        fs::remove_file(&file),
        fs::remove_dir(root.join("dev")),
        fs::rename(&file, root.join("moved")),
        fs::hard_link(&file, root.join("linked")),
        std::os::unix::fs::symlink("x", root.join("fresh")),
        fs::set_permissions(&file, fs::Permissions::from_mode(0o777)),
        rustix::fs::lsetxattr(&file, "user.x", b"1", rustix::fs::XattrFlags::empty())
            .map_err(Into::into),
    ];
    for (number, result) in results.into_iter().enumerate() {
        let error = result.expect_err("read-only").raw_os_error();
        assert_eq!(error, Some(libc::EROFS), "{number}");
    }
}

#[test]
fn reads_at_odd_places() {
    if !can_mount("reads_at_odd_places") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let content = noise(2_500_001, 7);
    let mut file = fs::File::open(keeper.tree(17).join("bin/tool")).expect("open");
    for (offset, len) in [(0, 1), (4095, 2), (1_048_575, 700_000), (2_499_999, 100), (1, 131_072)] {
        let mut room = vec![0; len];
        let got = file.read_at(&mut room, offset as u64).expect("readable");
        let end = content.len().min(offset + len);
        assert!(got > 0 && room[..got] == content[offset..end.min(offset + got)], "{offset}");
    }
    assert_eq!(file.read_at(&mut [0; 9], 2_500_001).expect("the end"), 0);
    assert_eq!(file.read_at(&mut [0; 9], 1 << 40).expect("past the end"), 0);
    assert_eq!(file.seek(SeekFrom::End(-5)).expect("seekable"), 2_499_996);
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).expect("readable");
    assert_eq!(rest, content[2_499_996..]);
}

#[test]
fn device_nodes_suid_and_exec_work() {
    if !can_mount("device_nodes_suid_and_exec_work") {
        return;
    }
    let sleeper = fs::read("/bin/true").expect("every machine has it");
    let mut source = MemorySource::default();
    let id = fs::read("/usr/bin/id").expect("every machine has it");
    let files = [
        Node::file("true", sleeper).mode(0o755),
        Node::file("id", id).mode(0o4755).owner(1234, 0),
        Node::new("zero", Kind::CharDevice(1, 5)).mode(0o666),
    ];
    source.add_layer(slot(1), &files);
    source.add_tree(slot(2), &[slot(1)]);
    let keeper = Keeper::serve(&source, LIMIT);
    let status = Command::new(keeper.tree(2).join("true")).status().expect("it runs");
    assert!(status.success());
    let output = Command::new(keeper.tree(2).join("id")).arg("-u").output().expect("it runs");
    assert_eq!(output.stdout, b"1234\n", "suid");
    let mut room = [1; 16];
    let mut zero = fs::File::open(keeper.tree(2).join("zero")).expect("a device");
    zero.read_exact(&mut room).expect("zeros");
    assert_eq!(room, [0; 16]);
}

#[test]
fn a_mount_without_a_worker_waits_for_one() {
    if !can_mount("a_mount_without_a_worker_waits_for_one") {
        return;
    }
    let mut keeper = Keeper::mount(&image(), LIMIT);
    let mount = LowerMount::find(keeper.lower()).expect("mountinfo").expect("it is mounted");
    assert_eq!(mount.state(Duration::from_millis(200)), LowerState::Silent);
    assert_eq!(clear_stale(keeper.lower(), Duration::from_millis(200)).expect("mountinfo"), 0);
    keeper.start_worker();
    assert_eq!(mount.state(LIMIT), LowerState::Serving);

    keeper.kill_worker();
    keeper.let_go();
    assert_eq!(mount.state(LIMIT), LowerState::Stale);
    let error = fs::metadata(keeper.lower()).expect_err("nobody serves it");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    assert_eq!(clear_stale(keeper.lower(), LIMIT).expect("unmounted"), 1);
    assert_eq!(LowerMount::find(keeper.lower()).expect("mountinfo"), None);
    assert_eq!(fs::read_dir(keeper.lower()).expect("a directory again").count(), 0);
}

#[test]
fn readahead_is_raised() {
    if !can_mount("readahead_is_raised") {
        return;
    }
    let keeper = Keeper::mount(&image(), LIMIT);
    match raise_readahead(keeper.lower(), READAHEAD_KIB) {
        Ok(()) => {
            let device = rustix::fs::stat(keeper.lower().parent().expect("above")).map(drop);
            assert_eq!(device, Ok(()), "no request was sent");
        }
        Err(error) => skip("readahead_is_raised", &error.to_string()),
    }
}

#[test]
fn permissions_are_the_images() {
    if !can_mount("permissions_are_the_images") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    // The way there is private to root; the mount itself is not
    fs::set_permissions(keeper.dir(), fs::Permissions::from_mode(0o711)).expect("chmod");
    let cat = |uid: u32, path: &str| {
        let path = keeper.tree(17).join(path);
        let output = Command::new("cat").arg(path).uid(uid).output().expect("cat runs");
        output.status.success()
    };
    assert!(cat(1000, "one"));
    assert!(!cat(1000, "etc/secret"), "its directory is closed to others");
    assert!(cat(0, "etc/secret"));
    assert_eq!(
        fs::File::open(keeper.tree(17).join("etc/none")).map_err(|e| e.raw_os_error()).err(),
        Some(Some(libc::ENOENT))
    );
}
