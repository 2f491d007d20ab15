//! The keeper's side: opening the device, mounting, and answering the kernel's INIT.
//!
//! The keeper answers INIT itself because the kernel sends it once, while workers come and go.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

use super::init::{Handshake, InitError, InitReply, InitRequest};

const DEVICE: &str = "/dev/fuse";

/// Type of the mount, as mountinfo shows it.
pub const FS_TYPE: &str = "fuse.peel";

/// How long the kernel may take from mount(2) to its INIT; it queues it before mount(2) returns.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Room for one request. The kernel refuses to fill less than 8 KiB; INIT needs 104 bytes.
const REQUEST_ROOM: usize = 64 << 10;

/// Why mounting failed. Nothing stays mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// /dev/fuse cannot be opened: no FUSE in the kernel, no device node, or no right to it.
    #[error("cannot open {DEVICE}")]
    Device(#[source] io::Error),
    /// The directory is not there, or is none.
    #[error("cannot mount on {}", target.display())]
    Target {
        /// The directory.
        target: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("mounting {FS_TYPE} on {} failed", target.display())]
    Mount {
        /// The directory.
        target: PathBuf,
        /// What the system said; EPERM where the caller may not mount.
        #[source]
        source: io::Error,
    },
    /// The kernel sent no INIT.
    #[error("no INIT from the kernel within {} s", INIT_TIMEOUT.as_secs())]
    Silent,
    /// Reading INIT or writing its answer failed.
    #[error("exchange with the kernel over {DEVICE} failed")]
    Exchange(#[source] io::Error),
    /// INIT is not what peel can work with.
    #[error(transparent)]
    Init(#[from] InitError),
}

/// A connection that is mounted and initialised, and that nobody serves yet.
///
/// Dropping it closes this process's hold on the connection, but unmounts nothing: a worker may
/// live on.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    device: OwnedFd,
    handshake: Handshake,
}

impl Mounted {
    /// Where it is mounted: absolute, without symlinks.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// What kernel and keeper agreed on.
    pub fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// The connection's descriptor, for the workers. It is close-on-exec: hand on a duplicate.
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Takes the mount out of the tree of mounts. The connection ends when the last user of the
    /// mount and the last descriptor are gone.
    pub fn unmount(&self) -> io::Result<()> {
        Ok(rustix::mount::unmount(&self.target, UnmountFlags::DETACH)?)
    }
}

/// Mounts peel's file system on the directory `target` and answers the kernel's INIT.
///
/// The mount is read-only, open to all users, with permissions checked by the kernel, and honours
/// device nodes and suid bits: what a container gets is decided by the mount that it sees. The
/// owner of the connection is the caller, so this works in a user namespace too.
///
/// # Errors
/// After an error nothing is mounted.
pub fn mount(target: &Path) -> Result<Mounted, MountError> {
    let at = |source: io::Error| MountError::Target { target: target.to_owned(), source };
    let canonical = target.canonicalize().map_err(at)?;
    if !canonical.is_dir() {
        return Err(at(Errno::NOTDIR.into()));
    }

    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| MountError::Device(e.into()))?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let data = CString::new(data).expect("numbers and words hold no NUL");
    rustix::mount::mount("peel", &canonical, FS_TYPE, MountFlags::RDONLY, data.as_c_str())
        .map_err(|e| MountError::Mount { target: canonical.clone(), source: e.into() })?;

    let device = File::from(device);
    match exchange(&device) {
        Ok(handshake) => Ok(Mounted { target: canonical, device: device.into(), handshake }),
        Err(error) => {
            if let Err(source) = rustix::mount::unmount(&canonical, UnmountFlags::DETACH) {
                tracing::warn!(target = %canonical.display(), %source, "unmounting failed");
            }
            Err(error)
        }
    }
}

/// Answers INIT. Nothing else can come before it.
fn exchange(device: &File) -> Result<Handshake, MountError> {
    let mut room = vec![0; REQUEST_ROOM];
    loop {
        let len = receive(device, &mut room)?;
        let request = InitRequest::parse(&room[..len])?;
        match InitReply::negotiate(&request) {
            Ok(reply) => {
                send(device, &reply.encode(request.unique))?;
                return Ok(Handshake { request, reply });
            }
            Err(InitError::TooNew { .. }) => {
                send(device, &InitReply::version_only(request.unique))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive(device: &File, room: &mut [u8]) -> Result<usize, MountError> {
    let timeout = Timespec::try_from(INIT_TIMEOUT).expect("a few seconds");
    loop {
        let mut ready = [PollFd::new(device, PollFlags::IN)];
        match rustix::event::poll(&mut ready, Some(&timeout)) {
            Ok(0) => return Err(MountError::Silent),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => return Err(MountError::Exchange(e.into())),
        }
        match rustix::io::read(device, &mut *room) {
            Ok(len) => return Ok(len),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(e) => return Err(MountError::Exchange(e.into())),
        }
    }
}

fn send(device: &File, message: &[u8]) -> Result<(), MountError> {
    match rustix::io::write(device, message) {
        Ok(len) if len == message.len() => Ok(()),
        Ok(_) => Err(MountError::Exchange(io::ErrorKind::WriteZero.into())),
        Err(e) => Err(MountError::Exchange(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_directory_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let result = mount(file.path());
        assert!(matches!(result, Err(MountError::Target { .. })), "{result:?}");
        let result = mount(Path::new("/nonexistent/peel"));
        assert!(matches!(result, Err(MountError::Target { .. })), "{result:?}");
    }
}
