//! What is done about a layer whose bytes turn out to be damaged while somebody reads them.
//!
//! ```text
//! span fails its digest ─▶ Mender::mend, once at a time ─▶ read again ─▶ the reader's bytes
//!                                  └─ cannot ─▶ EIO, and one line that names image, layer, file
//! ```
//! Who mends knows images and registries, which this module does not: it is put in from above.
//!
//! Locking: one mutex over the table of what was tried; waiting for somebody else's attempt lets go
//! of it.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use peel_fuse::ReadError;
use peel_index::{Digest, NodeId, Slot, Tree};

use super::{Layers, OpenLayer, cache::SpanError};

/// After an attempt that failed, none is made for so long: every read would wait for it.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// After a worker's start, what a read waits for somebody who can mend.
const START_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Most entries looked at for the name of a damaged file.
const SEARCHED: usize = 2_000_000;

/// A layer whose bytes are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wound {
    /// Its diffID.
    pub diff_id: Digest,
    /// The blob that its index was built from.
    pub blob: Digest,
    /// Length of that in bytes.
    pub blob_len: u64,
}

/// Puts bytes right again.
pub trait Mender: Send + Sync {
    /// Has the blob of a layer, and what was made of it, be what it was. Blocks.
    ///
    /// # Errors
    /// Why that cannot be, for the log.
    fn mend(&self, wound: &Wound) -> Result<(), String>;

    /// Names of the images whose merged tree is that of `chain`.
    fn images_of(&self, chain: Option<Digest>) -> Vec<String>;
}

/// Who mends, once there is somebody, and what was tried.
#[derive(Default)]
pub(super) struct MenderSlot {
    mender: OnceLock<Arc<dyn Mender>>,
    tried: Mutex<HashMap<Slot, Attempt>>,
    ended: Condvar,
}

enum Attempt {
    Runs,
    Failed(Instant),
    Done,
}

impl MenderSlot {
    fn tried(&self) -> MutexGuard<'_, HashMap<Slot, Attempt>> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Files are served before there is anybody.
    fn wait(&self) -> Option<&Arc<dyn Mender>> {
        let started = Instant::now();
        while self.mender.get().is_none() && started.elapsed() < START_LIMIT {
            std::thread::sleep(POLL);
        }
        self.mender.get()
    }

    /// Whether an attempt succeeded, made here or by somebody else meanwhile.
    fn mend(&self, slot: Slot, wound: &Wound) -> bool {
        let mut tried = self.tried();
        match tried.get(&slot) {
            Some(Attempt::Runs) => {
                let running = |t: &mut HashMap<_, _>| matches!(t.get(&slot), Some(Attempt::Runs));
                let waited = self.ended.wait_while(tried, running);
                let tried = waited.unwrap_or_else(PoisonError::into_inner);
                return matches!(tried.get(&slot), Some(Attempt::Done));
            }
            Some(Attempt::Failed(at)) if at.elapsed() < AGAIN_AFTER => return false,
            Some(Attempt::Failed(_) | Attempt::Done) | None => {}
        }
        tried.insert(slot, Attempt::Runs);
        drop(tried);
        let mut attempt = Ends { slot, of: self, outcome: Attempt::Failed(Instant::now()) };
        let Some(mender) = self.wait() else { return false };
        let layer = wound.diff_id;
        tracing::warn!(%layer, blob = %wound.blob, "damaged bytes were read; mending the layer");
        match mender.mend(wound) {
            Ok(()) => {
                tracing::warn!(%layer, blob = %wound.blob, "the layer is well again");
                attempt.outcome = Attempt::Done;
                true
            }
            Err(error) => {
                tracing::error!(%layer, blob = %wound.blob, %error, "cannot mend the layer");
                attempt.outcome = Attempt::Failed(Instant::now());
                false
            }
        }
    }

    /// What was mended is damaged all the same: nobody tries again for a while.
    fn give_up(&self, slot: Slot) {
        self.tried().insert(slot, Attempt::Failed(Instant::now()));
    }
}

/// Ends an attempt, also where it panics.
struct Ends<'a> {
    slot: Slot,
    of: &'a MenderSlot,
    outcome: Attempt,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Attempt::Runs);
        self.of.tried().insert(self.slot, outcome);
        self.of.ended.notify_all();
    }
}

impl Layers {
    /// Says who mends; the first to say so counts.
    pub fn set_mender(&self, mender: Arc<dyn Mender>) {
        let _ = self.mender.mender.set(mender);
    }

    /// After an error of a span: has the layer mended, and tries again.
    pub(super) fn mended<T>(
        &self,
        layer: &OpenLayer,
        error: SpanError,
        again: impl FnOnce() -> Result<T, SpanError>,
    ) -> Result<T, SpanError> {
        let index = &layer.index;
        let wound =
            Wound { diff_id: index.diff_id(), blob: index.blob(), blob_len: index.blob_len() };
        if !self.mender.mend(index.slot(), &wound) {
            return Err(error);
        }
        self.descriptors.forget(index.slot());
        again().inspect_err(|_| self.mender.give_up(index.slot()))
    }

    /// Logs damage that a reader has just met for the first time, with the names that people know.
    pub(super) fn tell_of(
        &self,
        error: ReadError,
        layer: &OpenLayer,
        number: u32,
        asked: &Range<u64>,
    ) -> ReadError {
        let ReadError::Damaged { layer: slot, again: false, source } = error else { return error };
        let (file, images) = self.name_of(slot, number).unwrap_or_default();
        let Range { start, end } = asked;
        tracing::error!(
            image = images.join(", "),
            layer = %layer.index.diff_id(),
            file,
            "bytes {start}..{end} cannot be served: {}",
            crate::failure::chain(&*source)
        );
        // Told now, not once more by whoever answers the reader
        ReadError::Damaged { layer: slot, again: true, source }
    }

    /// A path of a file of a layer, and the images that have it there.
    fn name_of(&self, slot: Slot, number: u32) -> Option<(String, Vec<String>)> {
        let open: Vec<Arc<Tree>> =
            self.tables().open_trees.values().map(|(tree, _)| Arc::clone(tree)).collect();
        let tree = open.iter().filter(|tree| tree.layers().any(|layer| layer.slot == slot));
        let (tree, path) = tree.into_iter().find_map(|tree| {
            let path = path_in(tree, slot, number)?;
            Some((tree, path))
        })?;
        let images = self.mender.mender.get().map(|mender| mender.images_of(tree.chain_id()));
        Some((path, images.unwrap_or_default()))
    }
}

/// Where a tree shows a layer's file.
fn path_in(tree: &Tree, slot: Slot, number: u32) -> Option<String> {
    let wanted = NodeId::Layer { slot, number };
    let is_it = |node: NodeId| match node {
        NodeId::Tree { number: own, .. } => tree.content(own) == Some((slot, number)),
        node => node == wanted,
    };
    let mut pending = vec![(1, String::new())];
    let mut looked = 0;
    while let Some((directory, path)) = pending.pop() {
        for index in 0..tree.entry_count(directory)? {
            looked += 1;
            let entry = tree.entry(directory, index).filter(|_| looked < SEARCHED)?;
            let name = format!("{path}/{}", String::from_utf8_lossy(entry.name));
            match entry.node {
                NodeId::Tree { number, .. } if tree.entry_count(number).is_some() => {
                    pending.push((number, name));
                }
                node if is_it(node) => return Some(name),
                _ => {}
            }
        }
    }
    None
}
