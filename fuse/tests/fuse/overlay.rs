//! Overlays on top of a mount.

use std::{
    ffi::CString,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::{
    image::noise,
    keeper::{Keeper, can_mount},
    sample::{CAPABILITY, image},
};

const LIMIT: Duration = Duration::from_secs(120);

/// An overlay that goes away with the test.
struct Overlay<'a>(&'a Path);

impl<'a> Overlay<'a> {
    /// With `xino=on`: else an overlay does not follow file handles into a file system without a
    /// UUID, and after a remount the numbers of what was copied up would be the upper's.
    fn mount(target: &'a Path, lower: &Path, upper: &Path, work: &Path) -> Self {
        for dir in [target, upper, work] {
            fs::create_dir_all(dir).expect("mkdir");
        }
        let [lower, upper, work] = [lower, upper, work].map(Path::display);
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work},index=off,xino=on");
        let options = CString::new(options).expect("no NUL");
        rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), &*options)
            .expect("an overlay");
        Self(target)
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        // A test that failed halfway may have unmounted it
        let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn overlays_work_on_top() {
    if !can_mount("overlays_work_on_top") {
        return;
    }
    let mut keeper = Keeper::serve(&image(), LIMIT);
    let [target, upper, work] = ["merged", "upper", "work"].map(|n| keeper.dir().join(n));
    let overlay = Overlay::mount(&target, &keeper.tree(17), &upper, &work);
    // Not a file with several names, whose group an overlay without index takes apart
    let (one, tool) = (target.join("many/file-1"), target.join("bin/tool"));
    let ino = |path: &Path| fs::metadata(path).expect("there").ino();
    let before = (ino(&one), ino(&tool));

    fs::write(&one, "written").expect("writable");
    fs::remove_file(target.join("etc/secret")).expect("removable");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o700)).expect("writable");
    assert_eq!(fs::read(upper.join("many/file-1")).expect("in the upper"), b"written");
    let whiteout = fs::symlink_metadata(upper.join("etc/secret")).expect("a whiteout");
    assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
    assert!(fs::read(&tool).expect("copied up") == noise(2_500_001, 7));
    let mut value = [0; 64];
    let len = rustix::fs::lgetxattr(&tool, "security.capability", &mut value).expect("copied up");
    assert_eq!(value[..len], CAPABILITY);
    assert_eq!(before, (ino(&one), ino(&tool)), "copying up keeps the numbers");
    assert_eq!(fs::read(keeper.tree(17).join("many/file-1")).expect("unchanged"), b"1");

    // Numbers after a copy-up come from file handles, which have to open in another worker too,
    // when the kernel has forgotten the inodes
    keeper.kill_worker();
    drop(overlay);
    fs::write("/proc/sys/vm/drop_caches", "2").expect("root");
    keeper.start_worker();
    let overlay = Overlay::mount(&target, &keeper.tree(17), &upper, &work);
    assert_eq!(before, (ino(&one), ino(&tool)), "and so does another worker");
    drop(overlay);
}
