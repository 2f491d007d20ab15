//! Leases that users take: what they name stays, whatever becomes of images.

use std::collections::{BTreeMap, BTreeSet};

use peel_index::Digest;
use serde_json::{Value, json};

use super::engine::Engine;
use crate::{
    api,
    failure::{Class, Failure},
    metadata::{ImageRecord, LABEL_CALL, LABEL_PULL, LeaseRecord, now_ns},
};

/// Longest name of a lease, in bytes; containerd's rule for identifiers.
const ID_MAX: usize = 76;

impl Engine {
    /// All leases, the oldest first.
    pub(super) fn list_leases(&self) -> Result<Value, Failure> {
        let mut leases = self.metadata.leases()?;
        leases.sort_by(|a, b| (a.created_at_ns, &a.id).cmp(&(b.created_at_ns, &b.id)));
        let running = self.images.running();
        let texts = |digests: &[Digest]| digests.iter().map(Digest::to_string).collect::<Vec<_>>();
        let leases = leases.iter().map(|lease| {
            json!({
                "id": lease.id,
                "created_at_ns": lease.created_at_ns,
                "expires_at_ns": lease.expires_at_ns,
                "labels": lease.labels,
                "blobs": texts(&lease.blobs),
                "diff_ids": texts(&lease.diff_ids),
                "running": running.contains(&lease.id),
            })
        });
        Ok(leases.collect())
    }

    /// Takes a lease on images, with all that they are made of, and on blobs; gives its name.
    pub(super) fn create_lease(&self, request: api::CreateLeaseRequest) -> Result<String, Failure> {
        let now = now_ns();
        let id = match request.id.as_str() {
            "" => format!("lease-{now}"),
            id => checked(id)?.to_owned(),
        };
        let labels: BTreeMap<_, _> = request.labels.into_iter().map(|l| (l.key, l.value)).collect();
        if let Some(key) =
            labels.keys().find(|key| [LABEL_CALL, LABEL_PULL].contains(&key.as_str()))
        {
            return Err(Failure::new(Class::Usage, format!("label {key} is peel's own")));
        }
        // No sweep between the look and the lease
        let _busy = self.busy();
        let (mut blobs, mut diff_ids) = (BTreeSet::new(), BTreeSet::new());
        for resource in &request.resources {
            match (self.find_image(resource), resource.parse::<Digest>()) {
                (Ok(image), _) => {
                    blobs.extend(image.blobs());
                    diff_ids.extend(ImageRecord::diff_ids(&image));
                }
                (Err(_), Ok(digest)) => {
                    self.has_content(&digest)?;
                    blobs.insert(digest);
                }
                (Err(failure), Err(_)) => return Err(failure),
            }
        }
        let seconds = i64::try_from(request.expires_seconds).unwrap_or(i64::MAX);
        let life = seconds.saturating_mul(1_000_000_000);
        let lease = LeaseRecord {
            id,
            created_at_ns: now,
            expires_at_ns: (seconds > 0).then(|| now.saturating_add(life)),
            labels,
            blobs: blobs.into_iter().collect(),
            diff_ids: diff_ids.into_iter().collect(),
        };
        self.metadata.transaction(|tx| {
            if tx.leases()?.iter().any(|known| known.id == lease.id) {
                return Err(Failure::new(Class::Conflict, format!("lease {} is taken", lease.id)));
            }
            tx.put_lease(&lease)?;
            Ok(())
        })?;
        Ok(lease.id)
    }

    /// Ends a lease, and removes what nothing else keeps.
    pub(super) fn remove_lease(&self, id: &str) -> Result<(), Failure> {
        if self.images.running().contains(id) {
            let message = format!("lease {id} is of a call that is under way");
            return Err(Failure::new(Class::Conflict, message).hint("it goes with the call"));
        }
        if self.metadata.transaction(|tx| tx.remove_lease(id))?.is_none() {
            return Err(Failure::new(Class::NotFound, format!("no lease named {id}"))
                .hint("list them with: peel leases ls"));
        }
        self.collect_garbage()?;
        Ok(())
    }
}

fn checked(id: &str) -> Result<&str, Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let is_good = id.len() <= ID_MAX
        && id.bytes().all(plain)
        && id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if is_good {
        return Ok(id);
    }
    let message = format!(
        "malformed lease: expected at most {ID_MAX} letters, digits, '_', '.', '-', found {id:?}"
    );
    Err(Failure::new(Class::Usage, message))
}
