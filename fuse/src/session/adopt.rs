//! The worker's side: taking over a connection that the keeper initialised.
//!
//! The fuser crate starts a session by reading INIT. A worker lets it do so over a socket pair,
//! with a request that says what kernel and keeper agreed on, and then puts the real device in the
//! place of the socket. What an earlier worker had taken and not answered is asked for again.

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::FileType,
    io::{DupFlags, FdFlags},
    net::{AddressFamily, SocketFlags, SocketType},
};

use super::init::{Handshake, OUT_HEADER_LEN, REPLY_LEN};
use crate::{
    adapter::{Adapter, BusyPoll, Records},
    flight::Flights,
    fs::Filesystem,
    metrics::Metrics,
    source::FileSource,
};

/// Device number of /dev/fuse (Documentation/admin-guide/devices.txt).
const DEVICE_NUMBER: (u32, u32) = (10, 229);

/// `FUSE_NOTIFY_RESEND` of fuse.h.
const NOTIFY_RESEND: i32 = 7;

/// What looking out for requests may take unless it is said otherwise: three of four gaps between
/// the requests of a program that starts are shorter.
pub const BUSY_POLL: Duration = Duration::from_micros(200);

/// How a [`Server`] works.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Longest time that the thread for requests looks out for the next one before it sleeps. That
    /// thread takes all requests and answers those about metadata: 140,000 a second.
    pub busy_poll: Duration,
    /// Threads that read and inflate, at least two.
    pub read_threads: usize,
    /// Of these, those that may work ahead at a time.
    pub ahead_threads: usize,
    /// Where requests are written down while they are worked on; nowhere, where it is `None`.
    pub flights: Option<Arc<Flights>>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            busy_poll: BUSY_POLL,
            read_threads: (2 * cores).clamp(4, 16),
            ahead_threads: cores.clamp(1, 8),
            flights: None,
        }
    }
}

/// Why a connection cannot be taken over. It stays as it is, for the next worker.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The descriptor is not that of /dev/fuse.
    #[error("descriptor {number} is not /dev/fuse")]
    NotDevice {
        /// Its number.
        number: RawFd,
        /// What the system said, where it said anything.
        #[source]
        source: Option<io::Error>,
    },
    /// Setting up the session failed.
    #[error("taking over the FUSE connection failed: {step}")]
    Setup {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The answer to the synthetic INIT is no success.
    #[error("fuser refused INIT: expected {REPLY_LEN} bytes and error 0, found {len} and {error}")]
    Refused {
        /// Length of the answer, in bytes.
        len: usize,
        /// Errno in it, negated as on the wire.
        error: i32,
    },
}

/// The connection's descriptor that the keeper passed on as number `number`.
///
/// The result is a duplicate that is close-on-exec, and the inherited one is made so too, as no
/// child of the worker may hold the connection.
///
/// # Errors
/// [`AdoptError::NotDevice`] where that number is not open, or is not /dev/fuse.
pub fn inherited_device(number: RawFd) -> Result<OwnedFd, AdoptError> {
    let not_device = |source: Option<io::Error>| AdoptError::NotDevice { number, source };
    if number < 0 {
        return Err(not_device(None));
    }
    // SAFETY: the number is not -1, and what it stands for is only looked at and duplicated; a
    // number that is not open gives EBADF.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let stat = rustix::fs::fstat(inherited).map_err(|e| not_device(Some(e.into())))?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let is_char = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_char || device != DEVICE_NUMBER {
        return Err(not_device(None));
    }
    rustix::io::fcntl_setfd(inherited, FdFlags::CLOEXEC).map_err(|e| not_device(Some(e.into())))?;
    rustix::io::fcntl_dupfd_cloexec(inherited, 3).map_err(|e| not_device(Some(e.into())))
}

/// A worker's hold on the connection, ready to serve.
///
/// There is no way to stop it but to leave the process, which is safe at any point: requests that
/// are not answered by then go to the next worker. Dropping it without running it does no harm
/// either.
#[derive(Debug)]
pub struct Server<S: FileSource> {
    session: fuser::Session<Adapter<S>>,
    metrics: Arc<Metrics>,
}

impl<S: FileSource> Server<S> {
    /// What is counted while it serves.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Serves until the connection ends, which is when it is unmounted everywhere or aborted.
    ///
    /// # Errors
    /// What reading from the device failed with.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// Takes over the connection behind `device`, of which `handshake` tells what was agreed.
///
/// At most one worker may serve at a time: the last one has to be gone.
///
/// # Errors
/// The connection is as before, and another worker may try.
pub fn adopt<S: FileSource>(
    device: OwnedFd,
    handshake: &Handshake,
    filesystem: Filesystem<S>,
    options: &ServeOptions,
) -> Result<Server<S>, AdoptError> {
    let failed = |step| move |e: rustix::io::Errno| AdoptError::Setup { step, source: e.into() };

    let (kernel, session) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed("socketpair"))?;
    rustix::io::write(&kernel, &handshake.synthetic_request().encode())
        .map_err(failed("sending INIT"))?;

    let metrics = Arc::<Metrics>::default();
    let records = Records { metrics: Arc::clone(&metrics), flights: options.flights.clone() };
    let ServeOptions { read_threads, ahead_threads, .. } = *options;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let busy_poll = Arc::new(BusyPoll::new(options.busy_poll, cores));
    let polling = Arc::clone(&busy_poll);
    let adapter = Adapter::new(filesystem, read_threads, ahead_threads, records, polling)
        .map_err(|source| AdoptError::Setup { step: "starting threads", source })?;
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(1);
    // A cloned descriptor has requests of its own, which end with the process
    config.clone_fd = false;
    let session = fuser::Session::from_fd(adapter, session, fuser::SessionACL::All, config)
        .map_err(|source| AdoptError::Setup { step: "fuser's handshake", source })?;
    expect_success(&kernel)?;

    replace(session.as_fd(), device.as_fd()).map_err(failed("putting the device in place"))?;
    busy_poll.watch(device);
    if handshake.can_resend() {
        resend(session.as_fd()).map_err(failed("asking for unanswered requests"))?;
    } else {
        tracing::warn!("this kernel cannot send requests again (Linux 6.9 can)");
    }
    Ok(Server { session, metrics })
}

/// Reads fuser's answer to INIT. Only its success counts: fuser keeps nothing of what it agrees
/// to, and the kernel has had the keeper's answer.
fn expect_success(kernel: &OwnedFd) -> Result<(), AdoptError> {
    let mut room = [0; 256];
    let len = rustix::io::read(kernel, &mut room)
        .map_err(|e| AdoptError::Setup { step: "reading INIT's answer", source: e.into() })?;
    let error = i32::from_ne_bytes([room[4], room[5], room[6], room[7]]);
    if len != REPLY_LEN || error != 0 {
        return Err(AdoptError::Refused { len, error });
    }
    Ok(())
}

/// Makes the descriptor number of `old` stand for what `new` stands for.
fn replace(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: the number is open and belongs to the session, which outlives this borrow. It stays
    // open and the session's: ManuallyDrop keeps it from being closed here.
    let mut old = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(old.as_raw_fd()) });
    rustix::io::dup3(new, &mut old, DupFlags::CLOEXEC)
}

/// Asks the kernel to queue again what was taken and not answered. Such a request has the top bit
/// of its id set, and its answer carries the same id.
fn resend(device: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut message = [0; OUT_HEADER_LEN];
    message[..4].copy_from_slice(&(OUT_HEADER_LEN as u32).to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(device, &message).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_device_is_refused() {
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        for number in [-1, i32::MAX, file.as_raw_fd()] {
            let result = inherited_device(number);
            assert!(matches!(result, Err(AdoptError::NotDevice { .. })), "{number}: {result:?}");
        }
    }

    #[test]
    fn replacing_keeps_the_number() {
        let (a, b) = (std::fs::File::open("/dev/null"), std::fs::File::open("/dev/zero"));
        let (a, b) = (a.expect("/dev/null"), b.expect("/dev/zero"));
        let number = a.as_raw_fd();
        replace(a.as_fd(), b.as_fd()).expect("both are open");
        assert_eq!(a.as_raw_fd(), number);
        let rdev = |f: &std::fs::File| rustix::fs::fstat(f).expect("open").st_rdev;
        assert_eq!(rdev(&a), rdev(&b));
    }
}
