//! A worker in this process, with a listener between it and the kernel that counts what is asked.
//!
//! ```text
//! /dev/fuse ◀──▶ two threads that count ◀──socket pair──▶ worker (adopt)
//! ```

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use peel_fuse::{Filesystem, ServeOptions, adopt};
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
};

use crate::{image::MemorySource, keeper::Keeper};

/// Room for the longest message: a read of 1 MiB with its header.
const MESSAGE_ROOM: usize = (1 << 20) + (64 << 10);

/// What is counted, by its number on the wire (`enum fuse_opcode` of fuse.h).
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const LSEEK: u32 = 46;
}

/// `FUSE_FORGET` and `FUSE_BATCH_FORGET`: they come when the kernel likes, and nobody waits.
const UNCOUNTED: [u32; 2] = [2, 42];

/// Requests since the last look, by opcode, and the longest read among them in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) count: BTreeMap<u32, u64>,
    pub(crate) longest_read: u32,
}

impl Requests {
    pub(crate) fn of(&self, opcode: u32) -> u64 {
        self.count.get(&opcode).copied().unwrap_or(0)
    }

    fn note(&mut self, message: &[u8]) {
        let word = |at: usize| {
            let bytes = message.get(at..at + 4).and_then(|b| b.try_into().ok());
            u32::from_ne_bytes(bytes.expect("a request has a header and its arguments"))
        };
        let opcode = word(4);
        if UNCOUNTED.contains(&opcode) {
            return;
        }
        *self.count.entry(opcode).or_default() += 1;
        if opcode == opcode::READ {
            // fuse_in_header, then fh and offset of fuse_read_in
            self.longest_read = self.longest_read.max(word(40 + 16));
        }
    }
}

/// A mounted image whose requests are counted.
pub(crate) struct Tap {
    // Unmounts when it is dropped, which ends the threads
    pub(crate) keeper: Keeper,
    requests: Arc<Mutex<Requests>>,
}

impl Tap {
    pub(crate) fn serve(source: MemorySource, limit: Duration) -> Self {
        let keeper = Keeper::mount(&source, limit);
        let (ours, workers) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket pair");
        for socket in [&ours, &workers] {
            sockopt::set_socket_send_buffer_size_force(socket, 4 * MESSAGE_ROOM).expect("root");
        }
        let requests = Arc::<Mutex<Requests>>::default();
        let device = || keeper.mounted().device().try_clone_to_owned().expect("dup");
        let (from, to) = (device(), ours.try_clone().expect("dup"));
        let counted = Arc::clone(&requests);
        std::thread::spawn(move || listen(&from, &to, &counted));
        let to = device();
        std::thread::spawn(move || answer(&ours, &to));

        let handshake = *keeper.mounted().handshake();
        let filesystem = Filesystem::new(Arc::new(source));
        let server = adopt(workers, &handshake, filesystem, &ServeOptions::default());
        let server = server.expect("adopted");
        // Ends with an error when the socket is closed, which is no concern of the test
        std::thread::spawn(move || server.run());
        Self { keeper, requests }
    }

    /// What was asked since the last call.
    pub(crate) fn take(&self) -> Requests {
        std::mem::take(&mut *self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A tree's root by a path that asks nothing: the file system's root, through which the usual
    /// one leads, is asked each time.
    pub(crate) fn held(&self, number: u32) -> Held {
        Held(std::fs::File::open(self.keeper.tree(number)).expect("a tree"))
    }
}

/// A directory that is held open.
pub(crate) struct Held(std::fs::File);

impl Held {
    pub(crate) fn join(&self, path: impl AsRef<Path>) -> std::path::PathBuf {
        use std::os::fd::AsRawFd as _;
        Path::new(&format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(path)
    }
}

/// Kernel to worker, until the connection ends.
fn listen(device: &OwnedFd, worker: &OwnedFd, requests: &Mutex<Requests>) {
    let mut room = vec![0; MESSAGE_ROOM];
    loop {
        match rustix::io::read(device, &mut room) {
            Ok(len) => {
                let message = &room[..len];
                requests.lock().unwrap_or_else(PoisonError::into_inner).note(message);
                if rustix::net::send(worker, message, SendFlags::NOSIGNAL) != Ok(len) {
                    break;
                }
            }
            // ENOENT: the request was given up between being queued and being read
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            Err(_) => break,
        }
    }
    // The worker sees the end of its socket, and `answer` that of ours
    let _ = rustix::net::shutdown(worker, rustix::net::Shutdown::Both);
}

/// Worker to kernel.
fn answer(worker: &OwnedFd, device: &OwnedFd) {
    let mut room = vec![0; MESSAGE_ROOM];
    while let Ok((len, _)) = rustix::net::recv(worker.as_fd(), &mut *room, RecvFlags::empty()) {
        if len == 0 {
            break;
        }
        // An answer to a request that was given up meanwhile is refused, and that is fine
        let _ = rustix::io::write(device, &room[..len]);
    }
}
