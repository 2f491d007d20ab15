//! What a service manager is told, and what it keeps for us.
//!
//! Source: sd_notify(3), sd_listen_fds(3), systemd.service(5) on `FileDescriptorStoreMax=`. The
//! protocol is one datagram a message; a store message carries its descriptor.

use std::{
    collections::HashMap,
    env, io,
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::estate::Estate;

/// First descriptor that a service manager passes (`SD_LISTEN_FDS_START`).
const FIRST_FD: RawFd = 3;

/// What the service manager may take to read a message where its queue is full.
const PATIENCE: Duration = Duration::from_secs(1);

/// Variables of the service manager's that mean this process, and none that it starts.
pub(super) const VARIABLES: [&str; 5] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// The way to the service manager.
pub(super) struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    /// The service manager that started this process as a service and wants to be told; `None`
    /// without one, or where its socket cannot be used.
    pub(super) fn find() -> Option<Self> {
        // Set for each service by systemd, and by nothing that only borrows its protocol
        env::var_os("INVOCATION_ID")?;
        let address = env::var_os("NOTIFY_SOCKET")?;
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
        };
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address?)?;
            // A manager that is busy gets time, and one that hangs does not hang this process
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok::<_, io::Error>(socket)
        };
        let socket = connect().inspect_err(|error| {
            tracing::warn!(%error, "cannot reach the service manager");
        });
        Some(Self { socket: socket.ok()? })
    }

    /// Tells the state of the service: `READY=1` and the like, one assignment a line.
    pub(super) fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send(state.as_bytes()) {
            tracing::warn!(%error, state, "cannot tell the service manager");
        }
    }

    /// Has every descriptor of the estate kept under its name.
    ///
    /// # Errors
    /// Of the socket. Whether they are kept is not known: the manager answers nothing.
    pub(super) fn store(&self, estate: &Estate) -> io::Result<()> {
        for (name, fd) in estate.fds() {
            let fds = [fd];
            let text = format!("FDSTORE=1\nFDNAME={name}\n");
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut room);
            if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let message = [IoSlice::new(text.as_bytes())];
            let socket = self.socket.as_fd();
            rustix::net::sendmsg(socket, &message, &mut control, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// Has nothing kept any more: the mount is gone.
    pub(super) fn forget(&self, estate: &Estate) {
        for (name, _) in estate.fds() {
            self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"));
        }
    }
}

/// What the service manager kept from a daemon before this one, by name.
///
/// To be called once, and before this process has opened anything.
pub(super) fn kept() -> HashMap<String, OwnedFd> {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    let numbers = (FIRST_FD..).take(count as usize);
    numbers.zip(names).filter_map(|(number, name)| Some((name, take(number)?))).collect()
}

/// Takes over an inherited descriptor, which no program that is started gets any more.
fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: looked at only; a number that is not open gives EBADF.
    #[expect(unsafe_code, reason = "a descriptor that crosses exec is a number")]
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and the service manager opened it for this process alone; the caller
    // asks once.
    #[expect(unsafe_code, reason = "a descriptor that crosses exec is a number")]
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
