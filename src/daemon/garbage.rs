//! When GC runs, and what it must not touch.

use std::{
    collections::HashSet,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{detached, engine::Engine};
use crate::{
    failure::{Class, Failure},
    gc::{Garbage, Item, Roots, Stores},
    metadata::now_ns,
};

/// How often it is looked whether GC may run.
const GATE_POLL: Duration = Duration::from_millis(5);

impl Engine {
    fn stores(&self) -> Stores<'_> {
        let Self { metadata, content, layers, snapshots, .. } = self;
        Stores { metadata, content, layers, snapshots: snapshots.as_ref() }
    }

    /// What nothing names. The caller holds the gate alone, and `mounting`.
    fn find_garbage(&self) -> Result<Garbage, Failure> {
        let mut held: HashSet<_> = self.held_trees()?.into_iter().collect();
        let running = self.images.running();
        let now_ns = now_ns();
        let in_use = self.uppers_in_use();
        let in_use = |upper: &Path| in_use(upper);
        let find = |held: &HashSet<_>| {
            let roots = Roots { held, running: &running, in_use: &in_use, now_ns };
            Garbage::find(self.stores(), roots)
        };
        let garbage = find(&held)?;
        if !garbage.has_files() {
            return Ok(garbage);
        }
        // A search through all processes, which is worth it where something would go
        let used = detached::scan(&self.paths.lower());
        if used.unknown {
            held.extend(self.layers.tree_slots().into_iter().map(|(_, slot)| slot));
        }
        if used.unknown || !used.slots.is_empty() {
            held.extend(used.slots);
            return find(&held);
        }
        Ok(garbage)
    }

    /// Says that something is there which nothing names: the next sweep finds it.
    pub(super) fn note_garbage(&self) {
        self.garbage.store(true, Ordering::SeqCst);
    }

    /// Removes what nothing names, unless something is being made just now; returns bytes freed.
    pub(super) fn collect_garbage(&self) -> Result<u64, Failure> {
        self.note_garbage();
        self.collect_if_due()
    }

    /// Runs the GC that was kept away; for whoever has just let go of the gate.
    pub(super) fn collect_if_due(&self) -> Result<u64, Failure> {
        let mut freed = 0;
        while self.garbage.load(Ordering::SeqCst) {
            let Ok(_alone) = self.gate.try_write() else { break };
            let _one_at_a_time = self.mounting();
            self.garbage.store(false, Ordering::SeqCst);
            freed += self.find_garbage()?.sweep(self.stores())?;
        }
        Ok(freed)
    }

    /// The same for whoever has something else to answer: a failure is logged.
    pub(super) fn sweep_if_due(&self) {
        if let Err(failure) = self.collect_if_due() {
            tracing::error!(error = %failure, "cannot remove what is not needed any more");
        }
    }

    /// GC as a user asks for it: waits for its turn for a while. Gives what went, or would go, and
    /// the bytes freed.
    pub(super) fn collect_now(
        &self,
        dry_run: bool,
        patience: Duration,
    ) -> Result<(Vec<Item>, u64), Failure> {
        self.live_mounts()?;
        let begun = Instant::now();
        let _alone = loop {
            // Whoever waits in line for the gate keeps everybody out who comes later
            if let Ok(alone) = self.gate.try_write() {
                break alone;
            }
            if begun.elapsed() >= patience {
                let message = "layers are being made all the time: cannot collect garbage now";
                return Err(Failure::new(Class::Conflict, message).hint("try again later"));
            }
            std::thread::sleep(GATE_POLL);
        };
        let _one_at_a_time = self.mounting();
        let garbage = self.find_garbage()?;
        let items = garbage.items();
        let freed = match dry_run {
            true => items.iter().map(|item| item.bytes).sum(),
            false => garbage.sweep(self.stores())?,
        };
        if !dry_run && !items.is_empty() {
            tracing::info!(items = items.len(), freed, "garbage collected");
        }
        Ok((items, freed))
    }

    /// Removes images where the store is larger than it may be, but not the one that was `pulled`
    /// just now: whoever pulled it is about to use it.
    pub(super) fn keep_to_size(&self, pulled: Option<&str>) -> Result<(), Failure> {
        self.max_size.map_or(Ok(()), |most| self.make_room(most, pulled))
    }

    /// What is done now and then: leases end, and mounts go, without a word to anybody.
    pub(super) fn tidy(&self) {
        let tidied = self.live_mounts().and_then(|_| self.collect_garbage());
        let tidied = tidied.and_then(|_| self.keep_to_size(None));
        if let Err(error) = tidied {
            tracing::error!(%error, "cannot clean up");
        }
    }
}
