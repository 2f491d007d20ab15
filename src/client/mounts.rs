//! The mounts that the daemon asks for, performed in the caller's mount namespace.

use std::{
    ffi::OsStr,
    io,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::Path,
};

use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_remount,
        move_mount, unmount,
    },
};

use crate::{
    api::{MountSpec, OverlayMount, mount_spec::Spec},
    mountinfo::overlay_path,
};

/// A mount or an unmount failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {target}: {source}{detail}")]
pub struct MountError {
    action: &'static str,
    target: String,
    source: io::Error,
    /// What the kernel said in the file system context.
    detail: String,
}

impl MountError {
    fn of(action: &'static str, target: &Path) -> impl Fn(rustix::io::Errno) -> Self {
        let target = target.display().to_string();
        move |e| Self { action, target: target.clone(), source: e.into(), detail: String::new() }
    }

    /// The error of the system call.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Performs mounts in order on `target`; when one fails, those before it are undone.
///
/// # Errors
/// Which mount failed and why, with the kernel's own words where it gave any.
pub fn perform(mounts: &[MountSpec], target: &Path) -> Result<(), MountError> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = perform_one(mount, target) {
            for _ in 0..done {
                // The first error is the one to tell
                let _ = unmount(target, UnmountFlags::DETACH);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn perform_one(mount: &MountSpec, target: &Path) -> Result<(), MountError> {
    match &mount.spec {
        Some(Spec::Bind(bind)) => {
            let source = Path::new(OsStr::from_bytes(&bind.source));
            mount_bind(source, target)
                .map_err(MountError::of("bind the image's tree to", target))?;
            let mut flags = MountFlags::BIND;
            flags.set(MountFlags::RDONLY, mount.read_only);
            flags.set(MountFlags::NOSUID, mount.nosuid);
            flags.set(MountFlags::NODEV, mount.nodev);
            mount_remount(target, flags, "").map_err(|e| {
                let _ = unmount(target, UnmountFlags::DETACH);
                MountError::of("make read-only", target)(e)
            })
        }
        Some(Spec::Overlay(overlay)) => {
            let mut attributes = MountAttrFlags::empty();
            attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, mount.read_only);
            attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, mount.nosuid);
            attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, mount.nodev);
            mount_overlay(overlay, attributes, target)
        }
        None => Err(MountError::of("mount on", target)(rustix::io::Errno::INVAL)),
    }
}

/// Through fsconfig: every path is a string of its own, so none needs escaping.
fn mount_overlay(
    overlay: &OverlayMount,
    attributes: MountAttrFlags,
    target: &Path,
) -> Result<(), MountError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(MountError::of("open an overlay for", target))?;
    let failed = |e| MountError {
        detail: kernel_message(&context),
        ..MountError::of("mount an overlay on", target)(e)
    };
    let set = |key: &str, value: &[u8]| {
        fsconfig_set_string(context.as_fd(), key, OsStr::from_bytes(value)).map_err(failed)
    };
    set("source", b"peel")?;
    for lower in &overlay.lower {
        set("lowerdir+", lower)?;
    }
    set("upperdir", &overlay_path(&overlay.upper))?;
    set("workdir", &overlay_path(&overlay.work))?;
    for (key, value) in &overlay.options {
        set(key, value.as_bytes())?;
    }
    fsconfig_create(context.as_fd()).map_err(failed)?;
    let mount =
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)?;
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)
}

/// The messages that wait in a file system context; source: fsopen(2).
fn kernel_message(context: &impl std::os::fd::AsFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while let Ok(len) = rustix::io::read(context, &mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..len]);
        let message = message.get(2..).unwrap_or_default().trim();
        text.push_str(if text.is_empty() { ": " } else { ", " });
        text.push_str(message);
        if len == 0 {
            break;
        }
    }
    text
}

/// Unmounts; `lazy` detaches at once even where it is in use.
///
/// # Errors
/// `ResourceBusy` where it is in use, `InvalidInput` where nothing is mounted.
pub fn unmount_target(target: &Path, lazy: bool) -> Result<(), MountError> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    unmount(target, flags).map_err(MountError::of("unmount", target))
}
