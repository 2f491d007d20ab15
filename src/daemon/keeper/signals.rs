//! Signals as descriptors that poll(2) can wait for.

use std::{io, os::unix::net::UnixStream};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Becomes readable with each signal.
pub(super) struct Signals {
    pub(super) terminate: UnixStream,
    pub(super) interrupt: UnixStream,
    /// A terminal that is gone is no reason to end.
    _hang_up: UnixStream,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let on = |signal| {
            let (read, write) = UnixStream::pair()?;
            read.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, write)?;
            Ok::<_, io::Error>(read)
        };
        Ok(Self { terminate: on(SIGTERM)?, interrupt: on(SIGINT)?, _hang_up: on(SIGHUP)? })
    }

    pub(super) fn came(mut stream: &UnixStream) -> bool {
        matches!(io::Read::read(&mut stream, &mut [0; 64]), Ok(len) if len > 0)
    }
}
