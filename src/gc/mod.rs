//! Removal of what nothing names any more: mark from the records, then sweep the rest.
//!
//! ```text
//! roots    images · leases · snapshots · trees that a process has mounted · labels gc.root
//! marks    tree ─▶ layer indexes ─▶ blobs ─▶ labels gc.ref.content ─▶ blobs …
//! garbage  trees, indexes, blobs, uppers, ingests, leases and labels that are not marked
//! ```
//! What a mount still shows is kept whatever the records say: overlays live on in other mount
//! namespaces and after lazy unmounts. Such a tree without a name is a *zombie*.
//!
//! The caller makes sure that nothing is being made meanwhile that no record names: a pull takes a
//! lease before it stores anything. A sweep that is interrupted leaves garbage and nothing else:
//! users go before what they use.

mod keyed;
mod mark;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, path::Path};

use peel_index::{Digest, Slot};

use self::{keyed::Keyed, mark::Marked};
use crate::{
    content::{ContentStore, DeadIngest},
    failure::Failure,
    layers::Layers,
    metadata::Metadata,
    snapshot::Snapshots,
};

/// Where everything is.
#[derive(Clone, Copy)]
pub struct Stores<'a> {
    /// Names, leases, labels.
    pub metadata: &'a Metadata,
    /// Blobs.
    pub content: &'a ContentStore,
    /// Indexes and trees.
    pub layers: &'a Layers,
    /// Uppers.
    pub snapshots: &'a Snapshots,
}

/// Trees that an image, a snapshot or a snapshot by key names.
///
/// # Errors
/// Where the records cannot be read.
pub fn named_trees(metadata: &Metadata) -> Result<HashSet<Option<Digest>>, Failure> {
    let mut named: HashSet<_> = metadata.images()?.iter().map(|image| image.chain_id).collect();
    named.extend(metadata.snapshots()?.iter().map(|snapshot| snapshot.chain_id));
    named.extend(Keyed::of(metadata.keyed_snapshots()?).chains().into_iter().map(Some));
    Ok(named)
}

/// What keeps things beside the records.
#[derive(Clone, Copy)]
pub struct Roots<'a> {
    /// Slots of trees and layers that processes use.
    pub held: &'a HashSet<Slot>,
    /// Leases of calls that are under way.
    pub running: &'a HashSet<String>,
    /// Says of an upper whether some process has it mounted.
    pub in_use: &'a dyn Fn(&Path) -> bool,
    /// The time, in nanoseconds since 1970.
    pub now_ns: i64,
}

/// A kind of thing that can be garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A merged tree.
    Tree,
    /// A layer's index.
    Layer,
    /// A blob.
    Blob,
    /// An upper without a record.
    Upper,
    /// A blob that was never completed.
    Ingest,
    /// A lease that has ended.
    Lease,
}

impl Kind {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Layer => "layer",
            Self::Blob => "blob",
            Self::Upper => "upper",
            Self::Ingest => "ingest",
            Self::Lease => "lease",
        }
    }
}

/// One thing that nothing names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its digest, number or name.
    pub id: String,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What can go. Nothing is removed before [`Garbage::sweep`].
#[derive(Debug, Default)]
pub struct Garbage {
    trees: Vec<(Option<Digest>, u64)>,
    layers: Vec<(Digest, u64)>,
    blobs: Vec<(Digest, u64)>,
    uppers: Vec<(u64, u64)>,
    ingests: Vec<DeadIngest>,
    leases: Vec<String>,
    labels: Vec<Digest>,
}

impl Garbage {
    /// Marks and lists what is left over.
    ///
    /// # Errors
    /// Where a store cannot be read.
    pub fn find(stores: Stores<'_>, roots: Roots<'_>) -> Result<Self, Failure> {
        let Stores { metadata, content, layers, snapshots } = stores;
        let marked = Marked::from(stores, roots)?;
        let mut garbage = Self { leases: marked.ended, ..Self::default() };
        for chain in layers.chain_ids().into_iter().filter(|chain| !marked.trees.contains(chain)) {
            garbage.trees.push((chain, layers.tree_bytes(chain)));
        }
        for id in layers.diff_ids().into_iter().filter(|id| !marked.diff_ids.contains(id)) {
            garbage.layers.push((id, layers.layer_bytes(&id)));
        }
        let mut there = HashSet::new();
        for blob in content.blobs()? {
            let blob = blob?;
            there.insert(blob.digest);
            if !marked.blobs.contains(&blob.digest) {
                garbage.blobs.push((blob.digest, blob.size));
            }
        }
        let mut recorded: HashSet<u64> = metadata.snapshots()?.iter().map(|s| s.id).collect();
        recorded.extend(marked.uppers);
        for id in snapshots.ids()?.into_iter().filter(|id| !recorded.contains(id)) {
            if !(roots.in_use)(&snapshots.upper(id)) {
                garbage.uppers.push((id, snapshots.usage(id)?.bytes));
            }
        }
        garbage.ingests = content.dead_ingests()?;
        let known = metadata.contents()?.into_iter().map(|known| known.digest);
        garbage.labels.extend(
            known.filter(|digest| !marked.blobs.contains(digest) || !there.contains(digest)),
        );
        // What a lease waits for may be labelled already
        garbage.labels.retain(|digest| !marked.leased.contains(digest));
        Ok(garbage)
    }

    /// Whether anything goes that a mount could show.
    pub fn has_files(&self) -> bool {
        !self.trees.is_empty() || !self.layers.is_empty()
    }

    /// Everything, by kind, the largest first.
    pub fn items(&self) -> Vec<Item> {
        let item = |kind, id: String, bytes| Item { kind, id, bytes };
        let name = |chain: &Option<Digest>| chain.map_or("empty".to_owned(), |c| c.to_string());
        let mut items = Vec::new();
        items.extend(self.trees.iter().map(|(id, n)| item(Kind::Tree, name(id), *n)));
        items.extend(self.layers.iter().map(|(id, n)| item(Kind::Layer, id.to_string(), *n)));
        items.extend(self.blobs.iter().map(|(id, n)| item(Kind::Blob, id.to_string(), *n)));
        items.extend(self.uppers.iter().map(|(id, n)| item(Kind::Upper, id.to_string(), *n)));
        items.extend(self.ingests.iter().map(|ingest| {
            let name = ingest.dir().file_name().unwrap_or_default();
            item(Kind::Ingest, name.to_string_lossy().into_owned(), ingest.bytes())
        }));
        items.extend(self.leases.iter().map(|id| item(Kind::Lease, id.clone(), 0)));
        items.sort_by(|a, b| {
            (a.kind, std::cmp::Reverse(a.bytes), &a.id).cmp(&(
                b.kind,
                std::cmp::Reverse(b.bytes),
                &b.id,
            ))
        });
        items
    }

    /// Removes it all; returns the bytes freed.
    ///
    /// # Errors
    /// The first failure; what was removed before stays removed.
    pub fn sweep(self, stores: Stores<'_>) -> Result<u64, Failure> {
        let Stores { metadata, content, layers, snapshots } = stores;
        let mut freed = 0;
        for (chain, _) in self.trees {
            freed += layers.remove_tree(chain)?;
        }
        for (diff_id, _) in self.layers {
            freed += layers.remove_layer(&diff_id)?;
        }
        for ingest in self.ingests {
            freed += ingest.bytes();
            ingest.remove()?;
        }
        for (digest, size) in self.blobs {
            if content.remove(&digest)? {
                freed += size;
            }
        }
        for (id, bytes) in self.uppers {
            snapshots.remove(id)?;
            freed += bytes;
        }
        let (leases, labels) = (self.leases, self.labels);
        if !leases.is_empty() || !labels.is_empty() {
            metadata.transaction(|tx| {
                for id in &leases {
                    tx.remove_lease(id)?;
                }
                for digest in &labels {
                    tx.remove_content(digest)?;
                }
                Ok::<_, Failure>(())
            })?;
        }
        Ok(freed)
    }
}
