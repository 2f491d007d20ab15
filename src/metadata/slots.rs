//! Slots: the numbers of layer indexes and trees in inode numbers (`peel_index::nodeid`).
//!
//! Architecture invariant: a slot is never handed out twice, whatever is lost. Counting goes on
//! above the highest of three guards: the file `slots`, which is on disk before a slot below its
//! number is handed out; the database's copy of it; and every slot that the caller finds on disk.
//!
//! Locking: the allocator's own mutex, then the writer's.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use peel_index::Slot;

use super::{
    error::MetadataError,
    files,
    record::{SLOT_COUNTER, counter_key},
    shared::Shared,
    transaction::{Transaction, View},
};

/// Slots reserved at a time: two fsyncs for so many layers and trees. What is left of a reservation
/// when the worker ends is lost; 2^24 slots stand a million such ends.
const STEP: u32 = 16;

pub(super) const SLOTS_NAME: &str = "slots";

/// Hands out slots.
#[derive(Debug)]
pub struct SlotAllocator {
    shared: Arc<Shared>,
    path: PathBuf,
    state: Mutex<Reserved>,
}

#[derive(Debug)]
struct Reserved {
    /// The highest slot handed out or seen.
    last: u32,
    /// The highest slot that may be handed out before the next reservation.
    high: u32,
}

impl SlotAllocator {
    pub(super) fn open(shared: Arc<Shared>) -> Result<Self, MetadataError> {
        let path = shared.dir.join("slots");
        let file = files::read_number(&path, SLOTS_NAME)?.unwrap_or(0);
        let copy = shared.number(&counter_key(SLOT_COUNTER))?.unwrap_or(0);
        let high = u32::try_from(file.max(copy)).unwrap_or(u32::MAX);
        Ok(Self { shared, path, state: Mutex::new(Reserved { last: high, high }) })
    }

    /// Says that a slot is in use (found in a file's header): later ones will lie above it, also
    /// once that file is gone.
    pub fn raise(&self, slot: Slot) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last = state.last.max(slot.number());
        if state.last > state.high
            && let Err(error) = self.reserve(&mut state)
        {
            // The next allocation tries again before it hands anything out
            tracing::warn!(%error, %slot, "cannot note the highest slot on disk");
        }
    }

    /// A slot that was never handed out before.
    ///
    /// Must not be called within a transaction of the same store, whose writer it needs.
    pub fn allocate(&self) -> Result<Slot, MetadataError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last >= state.high {
            self.reserve(&mut state)?;
        }
        let exhausted =
            MetadataError::SlotsExhausted { expected: Slot::MAX.number(), found: state.last };
        let slot = Slot::new(state.last.saturating_add(1)).ok_or(exhausted)?;
        state.last = slot.number();
        Ok(slot)
    }

    /// Writes the mark again where its file is damaged.
    pub(super) fn write_anew(&self) -> Result<(), MetadataError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.reserve(&mut state)
    }

    /// Puts a high-water mark above `last` on disk, in both places.
    fn reserve(&self, state: &mut Reserved) -> Result<(), MetadataError> {
        let high = state.last.saturating_add(STEP).min(Slot::MAX.number());
        files::replace_number(&self.path, SLOTS_NAME, high.into())?;
        let mut writer = self.shared.writer()?;
        let mut transaction = Transaction::new(&self.shared);
        transaction.raise_counter(SLOT_COUNTER, high.into())?;
        self.shared.commit(&mut writer, transaction.into_changes())?;
        state.high = high;
        Ok(())
    }
}
