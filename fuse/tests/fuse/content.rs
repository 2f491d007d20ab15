//! Ways to a file's content: offsets beyond 4 GiB, maps, programs, and what is not a plain read(2).

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Advice, FallocateFlags, SeekFrom, inotify},
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

use crate::{
    image::{Kind, MemorySource, Node, noise, slot},
    keeper::{Keeper, can_mount, skip},
    mapped::Mapped,
    sample::image,
    tap::{Tap, opcode},
};

const LIMIT: Duration = Duration::from_secs(120);

/// Length of `bin/tool` in the sample image.
const TOOL: usize = 2_500_001;

fn tool() -> Vec<u8> {
    noise(TOOL, 7)
}

fn serve(nodes: &[Node]) -> Keeper {
    let mut source = MemorySource::default();
    source.add_layer(slot(1), nodes);
    source.add_tree(slot(2), &[slot(1)]);
    Keeper::serve(&source, LIMIT)
}

#[test]
fn offsets_beyond_32_bits() {
    if !can_mount("offsets_beyond_32_bits") {
        return;
    }
    const SIZE: u64 = (6 << 30) + 123;
    let (low, high) = (noise(5000, 1), noise(70_000, 2));
    let end = noise(100, 3);
    let extents =
        vec![(1 << 20, low.clone()), ((4 << 30) - 35_000, high.clone()), (SIZE - 100, end.clone())];
    let keeper = serve(&[Node::new("huge", Kind::Sparse(SIZE, extents))]);
    let file = File::open(keeper.tree(2).join("huge")).expect("a file");
    let meta = file.metadata().expect("attributes");
    assert_eq!((meta.len(), meta.blocks()), (SIZE, SIZE.div_ceil(512)));
    let read = |offset: u64, len: usize| {
        let mut room = vec![1; len];
        let mut got = 0;
        while got < len {
            match file.read_at(&mut room[got..], offset + got as u64).expect("readable") {
                0 => break,
                more => got += more,
            }
        }
        room.truncate(got);
        room
    };
    let zeros = |len| vec![0; len];
    assert_eq!(read(1 << 20, 5000), low);
    assert_eq!(read((1 << 20) + 4990, 20), [&low[4990..], &zeros(10)].concat());
    assert_eq!(read((4 << 30) - 35_100, 70_200), [&zeros(100), &high[..], &zeros(100)].concat());
    assert_eq!(read(5 << 30, 4096), zeros(4096));
    assert_eq!(read(SIZE - 200, 500), [&zeros(100), &end[..]].concat());
    for beyond in [SIZE, SIZE + 1, 1 << 40, i64::MAX as u64 - 4096] {
        assert_eq!(read(beyond, 10), [], "{beyond}");
    }
}

#[test]
fn maps_show_the_content() {
    if !can_mount("maps_show_the_content") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let file = File::open(keeper.tree(17).join("bin/tool")).expect("a file");
    let content = tool();
    let shared = Mapped::shared(&file, TOOL);
    assert!(*shared == *content);
    let mut own = Mapped::private(&file, TOOL);
    own.put(4096, !content[4096]);
    assert_eq!((own[4096], shared[4096]), (!content[4096], content[4096]));
    assert_eq!((own[4095], own[4097]), (content[4095], content[4097]));
    assert!(fs::read(keeper.tree(17).join("bin/tool")).expect("readable") == content);
    let writable = Mapped::new(&file, TOOL, ProtFlags::WRITE, MapFlags::SHARED);
    assert_eq!(writable.map(drop), Err(Errno::ACCESS), "it was opened for reading");
}

#[test]
fn programs_run_from_the_mount_and_find_their_interpreters_there() {
    const TEST: &str = "programs_run_from_the_mount_and_find_their_interpreters_there";
    if !can_mount(TEST) {
        return;
    }
    let Ok(busybox) = fs::read("/bin/busybox") else {
        return skip(TEST, "no /bin/busybox, a static program");
    };
    let keeper = serve(&[
        Node::file("bin/busybox", busybox).mode(0o755),
        Node::new("bin/sh", Kind::Symlink("busybox".into())),
        Node::file("script", "#!/bin/sh\nread first rest < /script; echo \"$0 $1 $first\"\n")
            .mode(0o755),
        Node::file("closed", "#!/bin/sh\n").mode(0o644),
    ]);
    let output = Command::new(keeper.tree(2).join("bin/busybox")).args(["echo", "static"]).output();
    assert_eq!(output.expect("it runs").stdout, b"static\n");
    let inside = |program: &str| {
        let output = Command::new("chroot").arg(keeper.tree(2)).args([program, "one"]).output();
        output.expect("chroot runs")
    };
    let output = inside("/script");
    assert_eq!(output.stdout, b"/script one #!/bin/sh\n", "{output:?}");
    assert!(!inside("/closed").status.success(), "not even root runs what has no x bit");
}

#[test]
fn direct_reads_pass_the_page_cache_and_give_the_right_bytes() {
    if !can_mount("direct_reads_pass_the_page_cache_and_give_the_right_bytes") {
        return;
    }
    let tap = Tap::serve(image(), LIMIT);
    let root = tap.held(17);
    let path = root.join("bin/tool");
    let content = tool();
    assert!(fs::read(&path).expect("readable") == content);
    tap.take();
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).expect("allowed");
    for round in 1..=2 {
        // Neither offset nor memory need to be aligned
        for (offset, len) in [(0, 4096), (4096, 1 << 20), (1, 70_001), (TOOL - 100, 4096)] {
            let mut room = vec![0; len];
            let got = file.read_at(&mut room, offset as u64).expect("readable");
            let expected = &content[offset..TOOL.min(offset + len)];
            assert!(room[..got] == *expected, "{got} bytes at {offset}");
        }
        assert!(tap.take().of(opcode::READ) >= 4, "round {round} asks again");
    }
    assert_eq!(file.read_at(&mut [0; 64], TOOL as u64).expect("its end"), 0);
}

#[test]
fn bytes_move_without_passing_through_the_process() {
    if !can_mount("bytes_move_without_passing_through_the_process") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let file = File::open(keeper.tree(17).join("bin/tool")).expect("a file");
    let content = tool();

    let target = tempfile::tempfile().expect("a file");
    let mut offset = 3;
    while rustix::fs::sendfile(&target, &file, Some(&mut offset), 1 << 20).expect("sent") > 0 {}
    assert_eq!(offset, TOOL as u64);
    let mut sent = vec![0; TOOL - 3];
    target.read_exact_at(&mut sent, 0).expect("readable");
    assert!(sent == content[3..]);

    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let taker = std::thread::spawn(move || {
        let mut taken = Vec::new();
        File::from(reader).read_to_end(&mut taken).map(|_| taken)
    });
    let mut offset = 0;
    let flags = rustix::pipe::SpliceFlags::empty();
    while rustix::pipe::splice(&file, Some(&mut offset), &writer, None, 1 << 20, flags)
        .expect("spliced")
        > 0
    {}
    drop(writer);
    assert!(taker.join().expect("no panic").expect("readable") == content);

    // The kernel copies between file systems of one kind only; copying tools go on by themselves
    let target = keeper.dir().join("copy");
    let out = File::create(&target).expect("a file");
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &out, None, 1 << 20);
    assert_eq!(copied, Err(Errno::XDEV));
    fs::copy(keeper.tree(17).join("bin/tool"), &target).expect("copied");
    assert!(fs::read(&target).expect("readable") == content);
}

#[test]
fn files_have_no_holes_to_seek_and_take_no_room() {
    if !can_mount("files_have_no_holes_to_seek_and_take_no_room") {
        return;
    }
    let mut source = MemorySource::default();
    source
        .add_layer(slot(1), &[Node::new("s", Kind::Sparse(1 << 20, vec![(4096, noise(512, 1))]))]);
    source.add_tree(slot(2), &[slot(1)]);
    let tap = Tap::serve(source, LIMIT);
    let root = tap.held(2);
    let file = File::open(root.join("s")).expect("a file");
    let seek = |to| rustix::fs::seek(&file, to);
    // All of it counts as data: tools that copy read it all, and write what they read
    assert_eq!(seek(SeekFrom::Data(0)), Ok(0));
    assert_eq!(seek(SeekFrom::Data(65_536)), Ok(65_536));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(1 << 20));
    assert_eq!(seek(SeekFrom::Data(1 << 20)), Err(Errno::NXIO));
    assert!(tap.take().of(opcode::LSEEK) <= 1, "the kernel was told once that it need not ask");
    let room = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 8192);
    assert_eq!(room, Err(Errno::BADF), "it was opened for reading");
    let writing = File::options().write(true).open(root.join("s")).expect_err("read-only");
    assert_eq!(writing.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn advice_fills_and_empties_the_page_cache() {
    if !can_mount("advice_fills_and_empties_the_page_cache") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let file = File::open(keeper.tree(17).join("bin/tool")).expect("a file");
    let pages = Mapped::shared(&file, TOOL);
    let resident = || pages.resident().iter().filter(|page| **page).count();
    assert_eq!(resident(), 0);
    // No more at a time than the kernel reads ahead: 128 KiB where that was not raised
    for start in (0..TOOL as u64).step_by(64 << 10) {
        let len = std::num::NonZeroU64::new(64 << 10);
        rustix::fs::fadvise(&file, start, len, Advice::WillNeed).expect("a file");
    }
    let start = Instant::now();
    while resident() < TOOL.div_ceil(4096) {
        assert!(start.elapsed() < LIMIT, "{} pages came", resident());
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("a file");
    assert_eq!(resident(), 0);
}

#[test]
fn watches_see_what_is_read() {
    if !can_mount("watches_see_what_is_read") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let dir = keeper.tree(17).join("etc");
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .expect("inotify");
    let events = inotify::WatchFlags::OPEN
        | inotify::WatchFlags::ACCESS
        | inotify::WatchFlags::CLOSE_NOWRITE
        | inotify::WatchFlags::MODIFY;
    inotify::add_watch(&watch, &dir, events).expect("it can be watched");
    fs::read(dir.join("two")).expect("readable");
    let mut room = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watch, &mut room);
    let mut seen = inotify::ReadFlags::empty();
    while let Ok(event) = reader.next() {
        if event.file_name().is_some_and(|name| name.to_bytes() == b"two") {
            seen |= event.events();
        }
    }
    let expected =
        inotify::ReadFlags::OPEN | inotify::ReadFlags::ACCESS | inotify::ReadFlags::CLOSE_NOWRITE;
    assert_eq!(seen, expected);
}

#[test]
fn extended_attributes_by_their_rules() {
    if !can_mount("extended_attributes_by_their_rules") {
        return;
    }
    let file = Node::file("f", "x")
        .xattr("user.b", b"2")
        .xattr("user.a", b"1")
        .xattr("security.capability", &crate::sample::CAPABILITY);
    let keeper = serve(&[file, Node::file("plain", "")]);
    let path = keeper.tree(2).join("f");
    // Sorted, whatever their order in the layer
    let names = b"security.capability\0user.a\0user.b\0";
    let mut room = [0; 64];
    assert_eq!(rustix::fs::llistxattr(&path, &mut room), Ok(names.len()));
    assert_eq!(&room[..names.len()], names);
    assert_eq!(rustix::fs::llistxattr_query(&path), Ok(names.len()));
    assert_eq!(rustix::fs::llistxattr(&path, &mut room[..8]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::lgetxattr(&path, "user.a", &mut room), Ok(1));
    assert_eq!(
        rustix::fs::lgetxattr(&path, "security.capability", &mut room[..8]),
        Err(Errno::RANGE)
    );
    assert_eq!(rustix::fs::lgetxattr(&path, "user.c", &mut room), Err(Errno::NODATA));
    assert_eq!(rustix::fs::llistxattr(keeper.tree(2).join("plain"), &mut room), Ok(0));
    if let Ok(output) = Command::new("getcap").arg(&path).output() {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("cap_net_raw=ep"), "{output:?}");
    }
}

#[test]
fn what_setcap_wrote_into_a_layer_comes_out_again() {
    const TEST: &str = "what_setcap_wrote_into_a_layer_comes_out_again";
    if !can_mount(TEST) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("f");
    File::create(&file).and_then(|mut f| f.write_all(b"x")).expect("written");
    let set =
        Command::new("setcap").arg("cap_net_bind_service,cap_sys_nice+ei").arg(&file).status();
    if !set.is_ok_and(|status| status.success()) {
        return skip(TEST, "no setcap, or no file system that keeps capabilities");
    }
    let mut value = [0; 64];
    let len = rustix::fs::lgetxattr(&file, "security.capability", &mut value).expect("just set");
    let keeper = serve(&[Node::file("f", "x").xattr("security.capability", &value[..len])]);
    let shown = |path: &Path| {
        let output = Command::new("getcap").arg(path).output().expect("it comes with setcap");
        let text = String::from_utf8(output.stdout).expect("text");
        text.trim().rsplit(' ').next().map(str::to_owned)
    };
    let served = shown(&keeper.tree(2).join("f"));
    assert_eq!(served, shown(&file));
    assert!(served.is_some_and(|text| text.contains("cap_sys_nice")));
}

#[test]
fn others_read_what_the_modes_let_them() {
    use std::os::unix::process::CommandExt as _;
    if !can_mount("others_read_what_the_modes_let_them") {
        return;
    }
    let files = [("all", 0o644, 0), ("group", 0o640, 100), ("owner", 0o600, 0), ("none", 0o000, 0)];
    let nodes = files.map(|(name, mode, gid)| Node::file(name, "x").mode(mode).owner(1000, gid));
    let keeper = serve(&nodes);
    // The way there is private to root; the mount itself is not
    fs::set_permissions(keeper.dir(), fs::Permissions::from_mode(0o711)).expect("chmod");
    let readable = |uid: u32, gid: u32| {
        files.map(|(name, ..)| {
            let path = keeper.tree(2).join(name);
            let cat = Command::new("cat").arg(path).uid(uid).gid(gid).output().expect("cat runs");
            cat.status.success()
        })
    };
    assert_eq!(readable(1000, 1000), [true, true, true, false], "the owner");
    assert_eq!(readable(1001, 100), [true, true, false, false], "the group");
    assert_eq!(readable(1001, 1001), [true, false, false, false], "all others");
    assert_eq!(readable(0, 0), [true; 4], "root");
}
