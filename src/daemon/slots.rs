//! Slots for new indexes and trees.

use std::sync::Arc;

use peel_index::Slot;

use crate::{failure::Failure, image::NewSlot, metadata::Metadata};

pub(super) struct Slots(Arc<Metadata>);

impl Slots {
    /// Counting goes on above every slot on disk.
    pub(super) fn new(metadata: Arc<Metadata>, on_disk: Option<Slot>) -> Self {
        if let Some(slot) = on_disk {
            metadata.slots().raise(slot);
        }
        Self(metadata)
    }
}

impl NewSlot for Slots {
    fn next(&self) -> Result<Slot, Failure> {
        Ok(self.0.slots().allocate()?)
    }
}
