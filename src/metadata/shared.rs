//! The one writer: every change of the database goes through [`Shared::commit`].
//!
//! Each commit counts a *generation* up and carries a *sum* over all records (a hash of each, added
//! up), so that opening finds a record that sled lost or took back without a word. The generation
//! stands in the file `generation` as well, which is how a whole commit that went missing is found.

use std::{
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use peel_index::{Algorithm, digest::Hasher};
use serde::{Deserialize, Serialize};

use super::{
    error::{MetadataError, show},
    files::{Mark, Spare, io_error},
    record::RECORD_VERSION,
    store::{Changes, Pairs, Store},
    transaction::View,
};

/// Where the generation and the sum stand. All other keys are summed.
pub(super) const STATE_KEY: &[u8] = b"meta/state";

/// Bytes that have to be free before anything is added: two of sled's segments and a snapshot.
/// sled must not meet a full disk, since a failed write of its log ends the worker.
const SPARE_BYTES: u64 = 4 << 20;

const KEY_MAX: usize = 8 << 10;
const VALUE_MAX: usize = 4 << 20;

/// Generation and sum as of the last commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u64,
    pub(super) sum: u128,
}

#[derive(Serialize, Deserialize)]
struct StateDocument {
    v: u64,
    generation: u64,
    sum: String,
}

impl State {
    fn encode(self) -> Vec<u8> {
        let Self { generation, sum } = self;
        format!(r#"{{"v":{RECORD_VERSION},"generation":{generation},"sum":"{sum:032x}"}}"#)
            .into_bytes()
    }

    /// `Err` says what is wrong with the document.
    pub(super) fn decode(value: &[u8]) -> Result<Self, String> {
        let document: StateDocument =
            serde_json::from_slice(value).map_err(|e| format!("state: {e}"))?;
        let sum = u128::from_str_radix(&document.sum, 16).map_err(|e| format!("sum: {e}"))?;
        Ok(Self { generation: document.generation, sum })
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let digest = hasher.finish();
    let first = digest.as_bytes().first_chunk().copied().unwrap_or_default();
    u128::from_le_bytes(first)
}

/// The sum over everything but the state itself.
pub(super) fn sum_of(pairs: &Pairs) -> u128 {
    let records = pairs.iter().filter(|(key, _)| key != STATE_KEY);
    records.fold(0, |sum, (key, value)| sum.wrapping_add(hash(key, value)))
}

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) store: Store,
    mark: Mark,
    spare: Spare,
    writer: Mutex<State>,
    failed: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(dir: PathBuf, store: Store, mark: Mark, spare: Spare, state: State) -> Self {
        Self { dir, store, mark, spare, writer: Mutex::new(state), failed: AtomicBool::new(false) }
    }

    /// The writer's place; whoever holds it sees no change but its own.
    pub(super) fn writer(&self) -> Result<MutexGuard<'_, State>, MetadataError> {
        // A closure that panicked has changed nothing: its changes were never committed
        let guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        Ok(guard)
    }

    /// An error after a commit that failed half-way.
    pub(super) fn check(&self) -> Result<(), MetadataError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(MetadataError::Failed { path: self.dir.clone() });
        }
        Ok(())
    }

    /// Writes all changes or none and counts the generation up; on disk when this returns.
    pub(super) fn commit(
        &self,
        state: &mut State,
        mut changes: Changes,
    ) -> Result<(), MetadataError> {
        let mut sum = state.sum;
        let mut unchanged = Vec::new();
        for (key, value) in &changes {
            check_len("key", key, key.len(), KEY_MAX)?;
            check_len("record", key, value.as_ref().map_or(0, Vec::len), VALUE_MAX)?;
            let old = self.store.get(key)?;
            if old == *value {
                unchanged.push(key.clone());
                continue;
            }
            sum = sum.wrapping_sub(old.map_or(0, |v| hash(key, &v)));
            sum = sum.wrapping_add(value.as_ref().map_or(0, |v| hash(key, v)));
        }
        for key in unchanged {
            changes.remove(&key);
        }
        if changes.is_empty() {
            return Ok(());
        }
        let found = self.free_bytes()?;
        if found < SPARE_BYTES {
            // Removals are let through: they are how space comes back
            if changes.values().any(Option::is_some) {
                let path = self.dir.clone();
                return Err(MetadataError::NoSpace { path, expected: SPARE_BYTES, found });
            }
            self.spare.release();
        }
        let next = State { generation: state.generation + 1, sum };
        changes.insert(STATE_KEY.to_vec(), Some(next.encode()));
        // Should the write fail or panic, memory and disk may differ from then on. Not set before:
        // readers look at it without the writer's lock
        let closes = Closes(&self.failed);
        self.store.write(changes)?;
        std::mem::forget(closes);
        *state = next;
        if let Err(error) = self.mark.set(next.generation) {
            tracing::warn!(%error, "the mark of the last metadata change is behind");
        }
        Ok(())
    }

    /// Writes the state alone: a generation that was raised, over records that stay.
    pub(super) fn restate(&self) -> Result<(), MetadataError> {
        let state = *self.writer()?;
        self.store.write(Changes::from([(STATE_KEY.to_vec(), Some(state.encode()))]))
    }

    /// Brings the file `generation` up to the last commit.
    pub(super) fn set_mark(&self) -> Result<(), MetadataError> {
        self.mark.set(self.writer()?.generation)
    }

    fn free_bytes(&self) -> Result<u64, MetadataError> {
        let dir = self.store.place();
        let stat = rustix::fs::statvfs(dir).map_err(|e| io_error("stat", dir)(e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Closes the store when it goes, also in a panic.
struct Closes<'a>(&'a AtomicBool);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn check_len(
    what: &'static str,
    key: &[u8],
    found: usize,
    expected: usize,
) -> Result<(), MetadataError> {
    if found > expected {
        return Err(MetadataError::TooLong { what, key: show(key), expected, found });
    }
    Ok(())
}
