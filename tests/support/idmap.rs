//! What a client does that maps ids, as containerd does from 2.0 on: it binds what is below with the
//! ids of a user namespace, mounts the overlay over that, and takes the bind away again.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use peel::api::containerd::types::Mount;
use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount},
};

use super::{Ran, eventually, run};

/// A user namespace, for as long as this lives.
pub struct UserNamespace(Child);

impl UserNamespace {
    /// One with these maps, as containerd's labels have them.
    pub fn new(uids: &str, gids: &str) -> Self {
        let mut unshare = Command::new("unshare");
        let child = unshare.args(["--user", "sleep", "1000"]).stdin(Stdio::null()).spawn();
        let namespace = Self(child.expect("unshare"));
        let link = |path: PathBuf| fs::read_link(path).expect("a namespace");
        let own = link("/proc/self/ns/user".into());
        eventually("it is in another namespace", || link(namespace.proc("ns/user")) != own);
        for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
            fs::write(namespace.proc(name), map.replace(':', " ").replace(',', "\n")).expect(name);
        }
        namespace
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.0.id().to_string()).join(name)
    }

    /// Runs a line of shell as root in it.
    pub fn sh(&self, line: &str) -> Ran {
        let pid = self.0.id().to_string();
        let root = ["--setuid", "0", "--setgid", "0"];
        let mut command = Command::new("nsenter");
        run(command.args(["--user", "--target", &pid]).args(root).args(["sh", "-c", line]))
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]
fn set_idmap(tree: impl AsFd, namespace: impl AsFd) -> std::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_fd().as_raw_fd()).expect("a descriptor"),
    };
    // SAFETY: the kernel reads a string and a structure of the length that is given with it; both
    // live until the call has returned.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Binds a directory with the ids of a namespace.
fn bind(source: &Path, target: &Path, namespace: &UserNamespace) {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags).expect("open_tree");
    let users = fs::File::open(namespace.proc("ns/user")).expect("a namespace");
    set_idmap(&tree, &users).expect("the kernel maps ids of it");
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, target, flags).expect("move_mount");
}

/// Performs an overlay's mount on a directory, in whose parent there may be another.
pub fn mount_mapped(mount: &Mount, target: &Path, namespace: &UserNamespace) {
    assert_eq!(mount.r#type, "overlay");
    let mut maps = 0;
    let mut options = Vec::new();
    let common = target.with_extension("mapped");
    fs::create_dir(&common).expect("directory");
    for option in &mount.options {
        match option.split_once('=') {
            Some(("uidmap" | "gidmap", _)) => maps += 1,
            Some(("lowerdir", lower)) => {
                let lower = Path::new(lower);
                bind(lower.parent().expect("a parent"), &common, namespace);
                let mapped = common.join(lower.file_name().expect("a name"));
                options.push(format!("lowerdir={}", mapped.display()));
            }
            _ => options.push(option.clone()),
        }
    }
    assert_eq!(maps, 2, "both are asked for: {mount:?}");
    let options = options.join(",");
    run(Command::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]).arg(target)).ok();
    unmount(&common, UnmountFlags::empty()).expect("the overlay has one of its own");
}
