//! Looks out for the next request for a moment before sleeping.
use std::{os::fd::OwnedFd, sync::OnceLock, time::{Duration, Instant}};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use rustix::event::{PollFd, PollFlags, poll};

#[derive(Debug, Default)]
pub(crate) struct Linger {
    device: OnceLock<OwnedFd>,
    score: AtomicI32,
    pub(crate) hits: AtomicU64,
    pub(crate) fails: AtomicU64,
}

fn limit() -> Duration {
    static L: OnceLock<u64> = OnceLock::new();
    Duration::from_micros(*L.get_or_init(|| std::env::var("PEEL_X_LINGER").ok().and_then(|v| v.parse().ok()).unwrap_or(0)))
}

impl Linger {
    pub(crate) fn watch(&self, device: OwnedFd) {
        let _ = self.device.set(device);
    }

    pub(crate) fn linger(&self, busy: impl Fn() -> bool) {
        let Some(device) = self.device.get() else { return };
        let limit = limit();
        if limit.is_zero() { return }
        let begun = Instant::now();
        loop {
            let mut fds = [PollFd::new(device, PollFlags::IN)];
            if poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0) {
                self.hits.fetch_add(1, Relaxed);
                self.score.fetch_add(1, Relaxed);
                return;
            }
            if begun.elapsed() > limit || busy() {
                self.fails.fetch_add(1, Relaxed);
                return;
            }
            for _ in 0..4 { std::hint::spin_loop(); }
        }
    }
}
