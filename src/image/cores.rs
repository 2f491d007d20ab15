//! Shares the processor's cores out among the layers that are being indexed at a time.
//!
//! Every layer has one thread; a layer gets helpers when a core is left for them, also midway, when
//! another layer has ended. No locks: one counter of cores in use, right at any time.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread::available_parallelism,
};

/// The cores, and how many of them are taken.
pub(super) struct Cores {
    all: usize,
    taken: AtomicUsize,
}

impl Cores {
    /// All that this process may use; one where that cannot be told.
    pub(super) fn new() -> Self {
        let all = available_parallelism().map_or(1, usize::from);
        Self { all, taken: AtomicUsize::new(0) }
    }

    /// The share of a layer that begins: one core, whether or not one is free.
    pub(super) fn enter(&self) -> Share<'_> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Share { cores: self, own: 1 }
    }
}

/// The cores of one layer; given back when it is dropped.
pub(super) struct Share<'a> {
    cores: &'a Cores,
    own: usize,
}

impl Share<'_> {
    /// Takes a second core for the layer, once, if one is free; says whether it did.
    pub(super) fn grow(&mut self) -> bool {
        let free = |taken| (taken < self.cores.all).then_some(taken + 1);
        let is_first = self.own == 1;
        let order = Ordering::Relaxed;
        let grown = is_first && self.cores.taken.fetch_update(order, order, free).is_ok();
        self.own += usize::from(grown);
        grown
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.cores.taken.fetch_sub(self.own, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_shared_out_once() {
        let cores = |all| Cores { all, taken: AtomicUsize::new(0) };
        assert!(!cores(1).enter().grow());
        let two = cores(2);
        let mut first = two.enter();
        assert!(first.grow());
        assert!(!first.grow(), "once");
        let mut second = two.enter();
        assert!(!second.grow());
        drop(first);
        assert!(second.grow(), "when another layer has ended");
        drop(second);
        assert_eq!(two.taken.load(Ordering::Relaxed), 0);
    }
}
