//! Which processes are about to mount what they were given.
//!
//! Architecture invariant: this is only ever a reason to give up on a pending mount early. A worker
//! that has just started knows of none, and lets them time out.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// Clients by the id of the mount that they prepared.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<u64, Option<OwnedFd>>>);

impl Clients {
    /// `client` has prepared this mount; one that ended already counts as gone.
    pub(super) fn add(&self, mount: u64, client: Pid) {
        let process = match pidfd_open(client, PidfdFlags::empty()) {
            Ok(process) => Some(process),
            Err(rustix::io::Errno::SRCH) => None,
            // It cannot be watched, and has as long as any
            Err(_) => return,
        };
        self.with(|clients| clients.insert(mount, process));
    }

    /// The mount is confirmed or released.
    pub(super) fn remove(&self, mount: u64) {
        self.with(|clients| clients.remove(&mount));
    }

    /// Whether the client that prepared this mount is known to have ended.
    pub(super) fn has_ended(&self, mount: u64) -> bool {
        self.with(|clients| clients.get(&mount).is_some_and(|process| ended(process.as_ref())))
    }

    fn with<T>(&self, change: impl FnOnce(&mut HashMap<u64, Option<OwnedFd>>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A descriptor of a process can be read once that has ended; source: pidfd_open(2).
fn ended(process: Option<&OwnedFd>) -> bool {
    let Some(process) = process else { return true };
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_client_that_was_killed_has_ended() {
        let clients = Clients::default();
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = Pid::from_child(&child);
        clients.add(1, pid);
        assert!(!clients.has_ended(1));
        assert!(!clients.has_ended(2), "nothing is known of it");
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(clients.has_ended(1));
        clients.add(2, pid);
        assert!(clients.has_ended(2));
        clients.remove(1);
        assert!(!clients.has_ended(1));
    }
}
