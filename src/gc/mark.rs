//! What is reachable.

use std::collections::{HashMap, HashSet};

use peel_index::Digest;

use super::{Roots, Stores, keyed::Keyed};
use crate::{
    content::WORTH_KEEPING,
    failure::Failure,
    metadata::{
        ContentRecord, ImageRecord, LABEL_CALL, LABEL_GC_REF, LABEL_GC_ROOT, LABEL_PULL,
        LeaseRecord,
    },
};

/// What is reachable, and the leases that have ended.
pub(super) struct Marked {
    pub(super) trees: HashSet<Option<Digest>>,
    pub(super) diff_ids: HashSet<Digest>,
    pub(super) blobs: HashSet<Digest>,
    /// Blobs that leases name, whether or not they are here.
    pub(super) leased: HashSet<Digest>,
    pub(super) ended: Vec<String>,
    /// Uppers of snapshots by key.
    pub(super) uppers: Vec<u64>,
}

/// What becomes of a lease.
#[derive(Debug, PartialEq, Eq)]
enum Worth {
    /// It keeps all that it names.
    All,
    /// Its pull has broken off: it keeps what costs more to fetch again than to ask for.
    Large,
    /// It has ended.
    Nothing,
}

fn worth(lease: &LeaseRecord, roots: Roots<'_>) -> Worth {
    match () {
        () if roots.running.contains(&lease.id) => Worth::All,
        () if lease.has_expired(roots.now_ns) => Worth::Nothing,
        () if lease.labels.contains_key(LABEL_PULL) => Worth::Large,
        () if lease.labels.contains_key(LABEL_CALL) => Worth::Nothing,
        () => Worth::All,
    }
}

impl Marked {
    pub(super) fn from(stores: Stores<'_>, roots: Roots<'_>) -> Result<Self, Failure> {
        let Stores { metadata, content, layers, .. } = stores;
        // Leases before images: what a pull lets go of is an image by then
        let leases = metadata.leases()?;
        let images = metadata.images()?;
        let mut marked = Self {
            trees: images.iter().map(|i| i.chain_id).collect(),
            diff_ids: images.iter().flat_map(ImageRecord::diff_ids).collect(),
            blobs: images.iter().flat_map(ImageRecord::blobs).collect(),
            leased: HashSet::new(),
            ended: Vec::new(),
            uppers: Vec::new(),
        };
        let keyed = Keyed::of(metadata.keyed_snapshots()?);
        marked.blobs.extend(keyed.layers().map(|layer| layer.digest));
        marked.diff_ids.extend(keyed.layers().map(|layer| layer.diff_id));
        // Merged once something was prepared on them; of an answer given the slot must stay
        marked.trees.extend(keyed.chains().into_iter().map(Some));
        marked.uppers = keyed.uppers().collect();
        for lease in leases {
            match worth(&lease, roots) {
                Worth::All => {
                    marked.blobs.extend(&lease.blobs);
                    marked.diff_ids.extend(&lease.diff_ids);
                    marked.leased.extend(&lease.blobs);
                }
                Worth::Large => {
                    for digest in &lease.blobs {
                        let size = content.info(digest)?.map_or(0, |found| found.size);
                        if size >= WORTH_KEEPING {
                            marked.blobs.insert(*digest);
                        }
                    }
                    for diff_id in &lease.diff_ids {
                        let index = layers.layer_by_diff_id(diff_id).ok().flatten();
                        if index.is_some_and(|index| marked.blobs.contains(&index.blob())) {
                            marked.diff_ids.insert(*diff_id);
                        }
                    }
                }
                Worth::Nothing => marked.ended.push(lease.id),
            }
        }
        marked.mark_trees(stores, roots)?;
        for diff_id in layers.diff_ids() {
            if layers.layer_slot(&diff_id).is_some_and(|slot| roots.held.contains(&slot)) {
                marked.diff_ids.insert(diff_id);
            }
        }
        for diff_id in &marked.diff_ids {
            // An index may have been built from another blob of the same content
            if let Ok(Some(layer)) = layers.layer_by_diff_id(diff_id) {
                marked.blobs.insert(layer.blob());
            }
        }
        marked.follow(metadata.contents()?);
        Ok(marked)
    }

    fn mark_trees(&mut self, stores: Stores<'_>, roots: Roots<'_>) -> Result<(), Failure> {
        let uppers = stores.metadata.snapshots()?;
        for (chain, slot) in stores.layers.tree_slots() {
            // A snapshot needs what it was made on, though its image may have been pulled anew since
            if roots.held.contains(&slot) || uppers.iter().any(|s| s.chain_id == chain) {
                // A tree that does not open serves nobody
                let Ok(Some(tree)) = stores.layers.tree_by_chain_id(chain) else { continue };
                self.trees.insert(chain);
                self.diff_ids.extend(tree.layers().map(|layer| layer.diff_id));
            }
        }
        Ok(())
    }

    /// Marks what marked content refers to by its labels.
    fn follow(&mut self, known: Vec<ContentRecord>) {
        let known: HashMap<_, _> = known.into_iter().map(|c| (c.digest, c.labels)).collect();
        let roots = known.iter().filter(|(_, labels)| labels.contains_key(LABEL_GC_ROOT));
        self.blobs.extend(roots.map(|(digest, _)| *digest));
        let mut pending: Vec<Digest> = self.blobs.iter().copied().collect();
        while let Some(digest) = pending.pop() {
            let Some(labels) = known.get(&digest) else { continue };
            let is_reference = |key: &str| matches!(key.strip_prefix(LABEL_GC_REF), Some(rest) if rest.is_empty() || rest.starts_with(['.', '/']));
            let references = labels.iter().filter(|(key, _)| is_reference(key));
            for digest in references.filter_map(|(_, value)| value.parse().ok()) {
                if self.blobs.insert(digest) {
                    pending.push(digest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_end() {
        let lease = |label: &str, expires_at_ns| LeaseRecord {
            id: "x".to_owned(),
            created_at_ns: 0,
            expires_at_ns,
            labels: [(label.to_owned(), String::new())].into(),
            blobs: Vec::new(),
            diff_ids: Vec::new(),
        };
        let (held, running) = (HashSet::new(), HashSet::from(["x".to_owned()]));
        let none = HashSet::new();
        let idle = Roots { held: &held, running: &none, in_use: &|_| false, now_ns: 10 };
        let busy = Roots { running: &running, ..idle };
        let table = [
            ("mine", None, Worth::All),
            ("mine", Some(11), Worth::All),
            ("mine", Some(10), Worth::Nothing),
            (LABEL_PULL, Some(11), Worth::Large),
            (LABEL_PULL, Some(9), Worth::Nothing),
            (LABEL_CALL, Some(11), Worth::Nothing),
        ];
        for (label, expires, expected) in table {
            assert_eq!(worth(&lease(label, expires), idle), expected, "{label} {expires:?}");
            assert_eq!(worth(&lease(label, expires), busy), Worth::All, "{label} {expires:?}");
        }
    }
}
