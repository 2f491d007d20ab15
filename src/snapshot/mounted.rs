//! Whether an overlay writes to an upper, in the kernel's own word.
//!
//! mountinfo tells of what is mounted somewhere; an overlay that was detached (`umount -l`) lives on
//! in no mountinfo, with whoever has a file of it open, mapped or as a working directory. The kernel
//! keeps the directories of every living overlay locked, and an overlay with `index=on` is refused
//! (`EBUSY`) where its upper or work directory is another's. So one is made that nobody ever sees.
//!
//! Source: `ovl_get_upper`, `ovl_report_in_use` in the kernel's fs/overlayfs/super.c.

use std::{ffi::OsStr, fs, io, os::fd::AsFd as _, os::unix::ffi::OsStrExt as _, path::Path};

use rustix::{
    io::Errno,
    mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen},
};

use crate::mountinfo::overlay_path;

/// Whether a living overlay, mounted or detached, has `upper` as its upper, or the work directory
/// beside it as its own. Leaves notes of the kernel's in both where there is none: this is for what
/// is about to be removed. What is not there is not in use.
///
/// # Errors
/// Where the kernel cannot be asked: then nothing is known.
pub fn is_in_use(upper: &Path) -> io::Result<bool> {
    let Some(dir) = upper.parent() else { return Ok(false) };
    // A lower has to be apart from them, and may be empty
    let lower = dir.join("none");
    match fs::create_dir(&lower) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let found = try_overlay(&lower, upper, &dir.join("work"));
    // It goes with the rest, or is found there the next time
    let _ = fs::remove_dir(&lower);
    match found {
        Ok(()) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        // Half removed
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes an overlay without a mount: it is gone when this returns.
fn try_overlay(lower: &Path, upper: &Path, work: &Path) -> rustix::io::Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &[u8]| {
        fsconfig_set_string(context.as_fd(), key, OsStr::from_bytes(value))
    };
    set("lowerdir+", lower.as_os_str().as_bytes())?;
    set("upperdir", &overlay_path(upper.as_os_str().as_bytes()))?;
    set("workdir", &overlay_path(work.as_os_str().as_bytes()))?;
    set("index", b"on")?;
    fsconfig_create(context.as_fd())
}
