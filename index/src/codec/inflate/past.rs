//! What was decoded before a checkpoint, and which of it is looked at.

use super::WINDOW;

/// The bytes before the *floor*: the start of a stream, or the place where it was resumed.
#[derive(Default)]
pub(super) struct Past {
    /// At most [`WINDOW`] of them.
    window: Vec<u8>,
    /// As long as `window`: the bytes that were looked at, zeros for others. Empty where nobody asks.
    sparse: Vec<u8>,
    records: bool,
    looked_at: bool,
}

impl Past {
    /// Begins with `window` before the floor, of which the end counts.
    pub(super) fn restart(&mut self, window: &[u8], records: bool) {
        let window = &window[window.len().saturating_sub(WINDOW)..];
        self.window.clear();
        self.window.extend_from_slice(window);
        self.sparse.clear();
        if records {
            self.sparse.resize(window.len(), 0);
        }
        self.records = records;
        self.looked_at = false;
    }

    /// The next stream begins: what came before is out of reach. What was looked at remains known.
    pub(super) fn forget(&mut self) {
        self.window.clear();
    }

    /// Frees what is of no more use once [`WINDOW`] bytes came after the floor.
    pub(super) fn release(&mut self) {
        if !self.records {
            self.window = Vec::new();
        }
    }

    /// Replaces the content of `sparse` by the bytes looked at since [`Self::restart`], with zeros
    /// for others; by nothing where there were none.
    pub(super) fn sparse(&self, sparse: &mut Vec<u8>) {
        sparse.clear();
        if self.looked_at {
            sparse.extend_from_slice(&self.sparse);
        }
    }

    /// Copies `len` bytes to `out[at..]` that begin `distance` before it, which is before the floor
    /// at `floor`. Whether there was as much.
    #[cold]
    pub(super) fn copy(
        &mut self,
        out: &mut [u8],
        floor: usize,
        at: usize,
        distance: usize,
        len: usize,
    ) -> bool {
        let reach = distance - (at - floor);
        let Some(begin) = self.window.len().checked_sub(reach) else {
            return false;
        };
        let before = len.min(reach);
        let bytes = &self.window[begin..begin + before];
        out[at..at + before].copy_from_slice(bytes);
        if self.records {
            self.sparse[begin..begin + before].copy_from_slice(bytes);
            self.looked_at = true;
        }
        for i in before..len {
            out[at + i] = out[floor + i - before];
        }
        true
    }

    pub(super) fn memory(&self) -> usize {
        self.window.capacity() + self.sparse.capacity()
    }
}
