//! What the daemon itself counts, beside what is served.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, from 0 at the worker's start.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Pulls that ended well.
    pub(super) pulls: Counter,
    /// Pulls that failed.
    pub(super) pulls_failed: Counter,
    /// Layers that containerd wanted, which it then need not unpack.
    pub(super) layers_taken: Counter,
    /// Layers that containerd wanted and has to unpack.
    pub(super) layers_declined: Counter,
}
