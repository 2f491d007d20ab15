//! Leases of calls: what a pull or a push works on is no garbage meanwhile.
//!
//! A lease is on disk before the first byte of what it names, so that GC may run at any time after.
//! It is taken with the gate held shared, which GC holds alone: what was found to be here once the
//! lease is taken stays here.
//!
//! Locking: a mutex over the leases of this process, held for look-ups only.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use peel_index::Digest;

use super::{Images, pull::blocking};
use crate::{
    failure::Failure,
    metadata::{LABEL_CALL, LABEL_PULL, LeaseRecord, Transaction, now_ns},
};

/// How long a lease lasts, in nanoseconds: a day, as containerd's do.
pub const LEASE_NS: i64 = 24 * 3600 * 1_000_000_000;

/// The leases of calls that are under way.
#[derive(Default)]
pub(super) struct Running {
    last: AtomicU64,
    ids: Mutex<HashSet<String>>,
}

impl Running {
    fn ids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call works on.
pub(super) struct Goods {
    pub(super) blobs: Vec<Digest>,
    pub(super) diff_ids: Vec<Digest>,
}

/// A lease for as long as a call runs. Its record outlives it unless it is [ended](Images::end).
pub(super) struct Hold {
    id: String,
    /// What is being pulled.
    pulled: Option<String>,
    running: Arc<Running>,
}

impl Hold {
    /// Takes the record away, and those of earlier pulls of the same name.
    pub(super) fn end_in(&self, tx: &mut Transaction<'_>) -> Result<(), Failure> {
        tx.remove_lease(&self.id)?;
        self.forget_others(tx)
    }

    fn forget_others(&self, tx: &mut Transaction<'_>) -> Result<(), Failure> {
        let Some(name) = &self.pulled else { return Ok(()) };
        for lease in tx.leases()? {
            let is_same = lease.labels.get(LABEL_PULL) == Some(name);
            if is_same && !self.running.ids().contains(&lease.id) {
                tx.remove_lease(&lease.id)?;
            }
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.running.ids().remove(&self.id);
    }
}

impl Images {
    /// Takes a lease; `pulled` is the name of a pull, which a later one of that name goes on with.
    pub(super) async fn hold(&self, pulled: Option<&str>, goods: Goods) -> Result<Hold, Failure> {
        let no_sweep = Arc::clone(&self.gate).read_owned().await;
        let now = now_ns();
        let number = self.running.last.fetch_add(1, Ordering::Relaxed);
        let (kind, label, name) = match pulled {
            Some(name) => ("pull", LABEL_PULL, name.to_owned()),
            None => ("call", LABEL_CALL, std::process::id().to_string()),
        };
        let id = format!("{kind}-{now}-{number}");
        let lease = LeaseRecord {
            id: id.clone(),
            created_at_ns: now,
            expires_at_ns: Some(now.saturating_add(LEASE_NS)),
            labels: BTreeMap::from([(label.to_owned(), name)]),
            blobs: goods.blobs,
            diff_ids: goods.diff_ids,
        };
        let hold =
            Hold { id, pulled: pulled.map(str::to_owned), running: Arc::clone(&self.running) };
        self.running.ids().insert(hold.id.clone());
        let metadata = Arc::clone(&self.store.metadata);
        let taken = blocking(move || {
            metadata.transaction(|tx| {
                hold.forget_others(tx)?;
                tx.put_lease(&lease)?;
                Ok::<_, Failure>(())
            })?;
            Ok(hold)
        });
        let taken = taken.await;
        drop(no_sweep);
        taken
    }

    /// Ends a lease: what nothing else names is garbage from now on.
    pub(super) async fn end(&self, hold: Hold) -> Result<(), Failure> {
        let metadata = Arc::clone(&self.store.metadata);
        blocking(move || metadata.transaction(|tx| hold.end_in(tx))).await
    }

    /// Leases of calls that are under way.
    pub fn running(&self) -> HashSet<String> {
        self.running.ids().clone()
    }
}
