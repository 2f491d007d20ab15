//! Overlays on top of a mount.

use std::{
    ffi::CString,
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::{
    image::{Kind, MemorySource, Node, noise, slot},
    keeper::{Keeper, can_mount},
    sample::{CAPABILITY, image},
};

const LIMIT: Duration = Duration::from_secs(120);

/// An overlay that goes away with the test.
pub(crate) struct Overlay {
    merged: PathBuf,
    upper: PathBuf,
}

impl Overlay {
    /// Mounts one with `lower` as its lower directory; all else is below `dir`/`name`, and is
    /// found again when an overlay of that name is mounted a second time.
    ///
    /// With `xino=on`: else an overlay does not follow file handles into a file system without a
    /// UUID, and after a remount the numbers of what was copied up would be the upper's.
    pub(crate) fn new(dir: &Path, name: &str, lower: &Path) -> Self {
        let [merged, upper, work] =
            ["merged", "upper", "work"].map(|part| dir.join(name).join(part));
        for dir in [&merged, &upper, &work] {
            fs::create_dir_all(dir).expect("mkdir");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=off,metacopy=on,redirect_dir=on,xino=on",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = CString::new(options).expect("no NUL");
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), &*options)
            .expect("an overlay");
        Self { merged, upper }
    }

    /// What both show together.
    pub(crate) fn path(&self) -> &Path {
        &self.merged
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.upper.join(path)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // A test that failed halfway may have unmounted it
        let _ = rustix::mount::unmount(&self.merged, UnmountFlags::DETACH);
    }
}

#[test]
fn overlays_work_on_top() {
    if !can_mount("overlays_work_on_top") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let overlay = Overlay::new(keeper.dir(), "one", &keeper.tree(17));
    let in_overlay = |path: &str| overlay.path().join(path);
    let (one, tool) = (in_overlay("many/file-1"), in_overlay("bin/tool"));

    fs::write(&one, "written").expect("writable");
    fs::remove_file(in_overlay("etc/secret")).expect("removable");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o700)).expect("writable");
    assert_eq!(fs::read(overlay.upper("many/file-1")).expect("in the upper"), b"written");
    let whiteout = fs::symlink_metadata(overlay.upper("etc/secret")).expect("a whiteout");
    assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
    assert!(fs::read(&tool).expect("still the lower's") == noise(2_500_001, 7));
    fs::File::options().append(true).open(&tool).expect("copied up").write_all(b"!").expect("room");
    assert!(fs::read(&tool).expect("copied up")[..2_500_001] == noise(2_500_001, 7));
    let mut value = [0; 64];
    let small = in_overlay("bin/small");
    fs::File::options().append(true).open(in_overlay("one")).expect("copied up");
    fs::rename(in_overlay("bin"), in_overlay("moved")).expect("a lower directory moves");
    assert!(!small.exists());
    let len = rustix::fs::lgetxattr(in_overlay("moved/tool"), "user.long", &mut [0; 4000]);
    assert_eq!(len, Ok(3000), "attributes are copied up");
    // A write takes a file's capabilities away, as everywhere
    let len = rustix::fs::lgetxattr(in_overlay("moved/tool"), "security.capability", &mut value);
    assert_eq!(len, Err(rustix::io::Errno::NODATA));
    let len =
        rustix::fs::lgetxattr(keeper.tree(17).join("bin/tool"), "security.capability", &mut value);
    assert_eq!(&value[..len.expect("the image is unchanged")], CAPABILITY);
    assert_eq!(fs::read(keeper.tree(17).join("many/file-1")).expect("unchanged"), b"1");
}

/// An image with programs that show what they may do.
fn programs() -> MemorySource {
    let [id, cat] = ["id", "cat"].map(|name| {
        let paths = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name));
        paths.iter().find_map(|path| fs::read(path).ok()).expect("every machine has it")
    });
    let nodes = [
        Node::file("id", id).mode(0o4755).owner(1234, 0),
        Node::file("cat", cat).mode(0o755).xattr("security.capability", &CAPABILITY),
        Node::new("null", Kind::CharDevice(1, 3)).mode(0o666),
        Node::new("pipe", Kind::Fifo).mode(0o666),
    ];
    let mut source = MemorySource::default();
    source.add_layer(slot(1), &nodes);
    source.add_tree(slot(2), &[slot(1)]);
    source
}

/// What is special about special files, at `root`.
fn check_special_files(root: &Path) {
    let output = Command::new(root.join("id")).arg("-u").uid(1000).output().expect("it runs");
    assert_eq!(output.stdout, b"1234\n", "suid");

    let mut value = [0; 64];
    let len = rustix::fs::lgetxattr(root.join("cat"), "security.capability", &mut value);
    assert_eq!(value[..len.expect("there")], CAPABILITY);
    let cat = Command::new(root.join("cat")).arg("/proc/self/status").uid(1000).output();
    let status = String::from_utf8(cat.expect("it runs").stdout).expect("text");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    assert_eq!(effective, Some(1 << 13), "cap_net_raw, and nothing else: {status}");

    let mut null =
        fs::File::options().read(true).write(true).open(root.join("null")).expect("a device");
    assert_eq!(null.read(&mut [0; 8]).expect("at its end"), 0);
    null.write_all(b"gone").expect("it takes all");

    let pipe = root.join("pipe");
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || {
            fs::File::options()
                .write(true)
                .open(pipe)
                .and_then(|mut pipe| pipe.write_all(b"through"))
        }
    });
    assert_eq!(fs::read(pipe).expect("what the other thread writes"), b"through");
    writer.join().expect("no panic").expect("written");
}

#[test]
fn suid_capabilities_devices_and_pipes_work_bare_and_below_an_overlay() {
    if !can_mount("suid_capabilities_devices_and_pipes_work_bare_and_below_an_overlay") {
        return;
    }
    let keeper = Keeper::serve(&programs(), LIMIT);
    // The way there is private to root; the mount itself is not
    fs::set_permissions(keeper.dir(), fs::Permissions::from_mode(0o711)).expect("chmod");
    check_special_files(&keeper.tree(2));
    let overlay = Overlay::new(keeper.dir(), "one", &keeper.tree(2));
    check_special_files(overlay.path());

    // Copied up by a change of its owner's name only, a file keeps what it may do
    fs::set_permissions(overlay.path().join("cat"), fs::Permissions::from_mode(0o711))
        .expect("chmod");
    let mode = fs::metadata(overlay.path().join("cat")).expect("there").mode();
    assert_eq!(mode & 0o7777, 0o711);
    check_special_files(overlay.path());
}

#[test]
fn sockets_are_made_in_the_upper_only() {
    if !can_mount("sockets_are_made_in_the_upper_only") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let dir = |name: &str| {
        // A socket's address is short, a test's directory is not
        keeper.dir().join(name)
    };
    symlink(keeper.tree(17).join("dev"), dir("d")).expect("symlink");
    let error = UnixListener::bind(dir("d").join("s")).expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let overlay = Overlay::new(keeper.dir(), "one", &keeper.tree(17));
    let path = overlay.path().join("dev/s");
    let listener = UnixListener::bind(&path).expect("writable");
    let mut stream = UnixStream::connect(&path).expect("somebody listens");
    stream.write_all(b"hello").expect("room");
    drop(stream);
    let mut text = String::new();
    listener.accept().expect("a caller").0.read_to_string(&mut text).expect("text");
    assert_eq!(text, "hello");
    let kind = fs::symlink_metadata(overlay.upper("dev/s")).expect("in the upper").mode();
    assert_eq!(kind & libc::S_IFMT, libc::S_IFSOCK);
}
