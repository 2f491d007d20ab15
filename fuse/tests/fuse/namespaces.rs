//! Mounts in user namespaces, and mounts that map owners.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, process::CommandExt as _},
    },
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use peel_fuse::{Filesystem, ServeOptions, adopt, mount};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    mount::{OpenTreeFlags, UnmountFlags},
};

use crate::{
    keeper::{Keeper, can_mount, skip},
    sample::image,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Tells the test binary that it is in a user namespace of its own.
const INSIDE: &str = "PEEL_FUSE_TEST_USERNS";

#[test]
fn a_user_namespace_can_mount() {
    if !can_mount("a_user_namespace_can_mount") {
        return;
    }
    let possible = Command::new("unshare").args(["-Urm", "true"]).stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        return skip("a_user_namespace_can_mount", "unshare -Urm is not allowed");
    }
    let output = Command::new("timeout")
        .args(["-k", "5", "60", "unshare", "-Urm"])
        .arg(std::env::current_exe().expect("the test binary"))
        .args(["--exact", "namespaces::user_namespace_process", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("timeout and unshare run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Keeper and worker in one process, in a user namespace; an empty test in any other process.
#[test]
fn user_namespace_process() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let mounted = mount(dir.path()).expect("mounted");
    let device = mounted.device().try_clone_to_owned().expect("dup");
    let filesystem = Filesystem::new(Arc::new(image()));
    let server = adopt(device, mounted.handshake(), filesystem, &ServeOptions::default());
    let server = server.expect("adopted");
    let served = std::thread::spawn(move || server.run());
    assert_eq!(fs::read(mounted.target().join("18/new")).expect("readable"), b"new");
    let output = Command::new("cat").arg(mounted.target().join("18/new")).uid(0).output();
    assert_eq!(output.expect("cat runs").stdout, b"new");
    rustix::mount::unmount(mounted.target(), UnmountFlags::DETACH).expect("mounted by us");
    served.join().expect("no panic").expect("the connection ended");
}

/// A process in a user namespace that maps 0 and up to 100,000 and up.
struct Namespace(Child);

impl Namespace {
    fn start() -> Option<Self> {
        let child = Command::new("unshare").args(["-U", "sleep", "60"]).spawn().ok()?;
        let namespace = Self(child);
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let start = Instant::now();
        while of(&namespace.0.id().to_string()) == of("self") {
            if start.elapsed() > LIMIT {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", namespace.0.id()), "0 100000 65536").ok()?;
        }
        Some(namespace)
    }

    fn open(&self) -> OwnedFd {
        File::open(format!("/proc/{}/ns/user", self.0.id())).expect("it lives").into()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn map_owners(tree: &OwnedFd, namespace: &OwnedFd) -> std::io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    // SAFETY: the path is a C string, and the structure and its size belong together.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of_val(&attr),
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn owners_can_be_mapped() {
    if !can_mount("owners_can_be_mapped") {
        return;
    }
    let keeper = Keeper::serve(&image(), LIMIT);
    let flag = peel_fuse::session::init::flags::ALLOW_IDMAP;
    if keeper.mounted().handshake().reply.flags & flag == 0 {
        return skip("owners_can_be_mapped", "the kernel has no idmapped FUSE mounts");
    }
    let Some(namespace) = Namespace::start() else {
        return skip("owners_can_be_mapped", "unshare -U is not allowed");
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, keeper.tree(17), flags).expect("a copy of the mount");
    map_owners(&tree, &namespace.open()).expect("it can be idmapped");
    let stat = rustix::fs::statat(&tree, "one", AtFlags::empty()).expect("there");
    assert_eq!((stat.st_uid, stat.st_gid), (100_005, 100_006));
    let plain = fs::metadata(keeper.tree(17).join("one")).expect("there");
    assert_eq!((plain.uid(), plain.gid()), (5, 6));
    let file = rustix::fs::openat(&tree, "one", OFlags::RDONLY, Mode::empty()).expect("readable");
    let mut room = [0; 16];
    let len = rustix::io::read(file, &mut room).expect("readable");
    assert_eq!(&room[..len], b"linked");
}
