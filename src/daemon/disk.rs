//! What uses the disk, and whether images are whole.

use std::collections::{HashMap, HashSet};

use peel_index::Digest;
use serde_json::{Value, json};

use super::engine::Engine;
use crate::{failure::Failure, gc, metadata::ImageRecord};

/// Sizes of everything in the store that images share.
struct Sizes {
    blobs: HashMap<Digest, u64>,
    indexes: HashMap<Digest, u64>,
    trees: HashMap<Option<Digest>, u64>,
}

/// A thing that images share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Blob(Digest),
    Index(Digest),
    Tree(Option<Digest>),
}

impl Sizes {
    fn of(&self, part: &Part) -> u64 {
        let found = match part {
            Part::Blob(digest) => self.blobs.get(digest),
            Part::Index(diff_id) => self.indexes.get(diff_id),
            Part::Tree(chain) => self.trees.get(chain),
        };
        found.copied().unwrap_or(0)
    }

    fn total(&self) -> u64 {
        let blobs = self.blobs.values().chain(self.indexes.values());
        blobs.chain(self.trees.values()).sum()
    }
}

fn parts(image: &ImageRecord) -> HashSet<Part> {
    let blobs = image.blobs().map(Part::Blob);
    let indexes = image.diff_ids().map(Part::Index);
    let others = image.others.iter().map(|other| Part::Tree(other.chain_id));
    blobs.chain(indexes).chain(others).chain([Part::Tree(image.chain_id)]).collect()
}

impl Engine {
    fn sizes(&self) -> Result<Sizes, Failure> {
        let mut blobs = HashMap::new();
        for blob in self.content.blobs()? {
            let blob = blob?;
            blobs.insert(blob.digest, blob.size);
        }
        let ids = self.layers.diff_ids().into_iter();
        let chains = self.layers.chain_ids().into_iter();
        Ok(Sizes {
            blobs,
            indexes: ids.map(|id| (id, self.layers.layer_bytes(&id))).collect(),
            trees: chains.map(|chain| (chain, self.layers.tree_bytes(chain))).collect(),
        })
    }

    /// Bytes of all blobs, indexes and trees.
    pub(super) fn stored_bytes(&self) -> Result<u64, Failure> {
        Ok(self.sizes()?.total())
    }

    /// Bytes that would be free were these images removed.
    pub(super) fn freed_by(&self, images: &[ImageRecord]) -> Result<u64, Failure> {
        let sizes = self.sizes()?;
        let mut own: HashSet<Part> = images.iter().flat_map(parts).collect();
        for other in self.metadata.images()? {
            if !images.iter().any(|image| image.name == other.name) {
                own.retain(|part| !parts(&other).contains(part));
            }
        }
        Ok(own.iter().map(|part| sizes.of(part)).sum())
    }

    /// Everything that takes room.
    pub(super) fn disk_usage(&self) -> Result<Value, Failure> {
        let sizes = self.sizes()?;
        let images = self.metadata.images()?;
        let mut users: HashMap<Part, usize> = HashMap::new();
        for part in images.iter().flat_map(parts) {
            *users.entry(part).or_default() += 1;
        }
        let each = images.iter().map(|image| {
            let parts = parts(image);
            let unique = parts.iter().filter(|part| users.get(part) == Some(&1));
            let unique: u64 = unique.map(|part| sizes.of(part)).sum();
            let size: u64 = parts.iter().map(|part| sizes.of(part)).sum();
            json!({
                "name": image.name,
                "size": size,
                "shared": size - unique,
                "unique": unique,
                "pinned": image.pinned,
                "mounted_at_ns": image.mounted_at_ns,
            })
        });
        let each: Vec<_> = each.collect();
        let mut uppers = Vec::new();
        for snapshot in self.metadata.snapshots()? {
            let usage = self.snapshots.usage(snapshot.id)?;
            uppers.push(json!({
                "name": snapshot.name, "image": snapshot.image,
                "size": usage.bytes, "inodes": usage.inodes,
            }));
        }
        // Trees without a name that something still shows
        let named = gc::named_trees(&self.metadata)?;
        let zombies = sizes.trees.iter().filter(|(chain, _)| !named.contains(chain));
        let zombies: Vec<u64> = zombies.map(|(_, size)| *size).collect();
        // Where it cannot be told now, none is told of
        let (garbage, reclaimable) =
            self.collect_now(true, std::time::Duration::from_secs(2)).unwrap_or_default();
        let sum = |map: &mut dyn Iterator<Item = &u64>| map.sum::<u64>();
        Ok(json!({
            "images": each,
            "snapshots": uppers,
            "totals": {
                "blobs": { "count": sizes.blobs.len(), "size": sum(&mut sizes.blobs.values()) },
                "indexes": {
                    "count": sizes.indexes.len(), "size": sum(&mut sizes.indexes.values()),
                },
                "trees": { "count": sizes.trees.len(), "size": sum(&mut sizes.trees.values()) },
                "zombies": { "count": zombies.len(), "size": zombies.iter().sum::<u64>() },
                "garbage": { "count": garbage.len(), "size": reclaimable },
            },
        }))
    }

    /// Whether all that an image is made of is here.
    pub(super) fn check_image(&self, image: &ImageRecord) -> Result<Value, Failure> {
        let mut missing = Vec::new();
        let (mut size, mut here) = (0, 0);
        let mut seen = HashSet::new();
        let documents = [
            ("target", image.target.digest, Some(image.target.size)),
            ("manifest", image.manifest, None),
            ("config", image.config, None),
        ];
        let indexes = image.indexes.iter().map(|digest| ("index", *digest, None));
        let others = image
            .others
            .iter()
            .flat_map(|other| [("manifest", other.manifest, None), ("config", other.config, None)]);
        let attached = image.attached.iter().map(|digest| ("attached", *digest, None));
        let layers = image.all_layers().map(|l| ("layer", l.digest, Some(l.size)));
        let all = documents.into_iter().chain(indexes).chain(others).chain(attached).chain(layers);
        for (kind, digest, expected) in all {
            if !seen.insert(digest) {
                continue;
            }
            let found = self.content.info(&digest)?.map(|found| found.size);
            size += expected.or(found).unwrap_or(0);
            if found.is_some() && expected.is_none_or(|expected| found == Some(expected)) {
                here += found.unwrap_or(0);
                continue;
            }
            missing.push(json!({
                "kind": kind,
                "digest": digest.to_string(),
                "size": expected,
                "found": found,
            }));
        }
        let indexed = |id: &Digest| matches!(self.layers.layer_by_diff_id(id), Ok(Some(_)));
        let indexed = image.layers.iter().filter(|layer| indexed(&layer.diff_id)).count();
        Ok(json!({
            "name": image.name,
            "digest": image.target.digest.to_string(),
            "complete": missing.is_empty(),
            "size": size,
            "here": here,
            "layers": image.layers.len(),
            "indexed": indexed,
            "missing": missing,
        }))
    }
}
