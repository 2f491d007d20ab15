//! Removal of what nothing names any more: mark from the records, sweep the rest.
//!
//! What a mount still shows is kept whatever the records say: overlays live on in other mount
//! namespaces and after lazy unmounts. The caller makes sure that nothing is being made meanwhile.

mod keyed;

use std::{collections::HashSet, path::Path};

use peel_index::{Digest, Slot};

use self::keyed::Keyed;
use crate::{
    content::ContentStore,
    failure::Failure,
    layers::Layers,
    metadata::{ImageRecord, Metadata},
    snapshot::Snapshots,
};

/// Sweeps; `held` are trees that some process has mounted, and `in_use` says it of an upper. Returns
/// the bytes freed.
///
/// # Errors
/// The first failure; what was swept before stays swept.
pub fn sweep(
    metadata: &Metadata,
    content: &ContentStore,
    layers: &Layers,
    snapshots: &Snapshots,
    held: &[Slot],
    in_use: &dyn Fn(&Path) -> bool,
) -> Result<u64, Failure> {
    let images = metadata.images()?;
    let mut trees: HashSet<Option<Digest>> = images.iter().map(|i| i.chain_id).collect();
    let mut diff_ids: HashSet<Digest> = images.iter().flat_map(diff_ids).collect();
    let uppers = metadata.snapshots()?;
    let keyed = Keyed::of(metadata.keyed_snapshots()?);
    diff_ids.extend(keyed.layers().map(|layer| layer.diff_id));
    // Merged once something was prepared on them; of an answer given the slot must stay
    trees.extend(keyed.chains().into_iter().map(Some));
    for (chain, slot) in layers.tree_slots() {
        // A snapshot needs what it was made on, though its image may have been pulled anew since
        if held.contains(&slot) || uppers.iter().any(|s| s.chain_id == chain) {
            // A tree that does not open serves nobody
            let Ok(Some(tree)) = layers.tree_by_chain_id(chain) else { continue };
            trees.insert(chain);
            diff_ids.extend(tree.layers().map(|layer| layer.diff_id));
        }
    }
    let mut blobs: HashSet<Digest> = images.iter().flat_map(blobs).collect();
    blobs.extend(content.kept_blobs()?);
    blobs.extend(keyed.layers().map(|layer| layer.digest));
    for diff_id in &diff_ids {
        // An index may have been built from another blob of the same content
        if let Ok(Some(layer)) = layers.layer_by_diff_id(diff_id) {
            blobs.insert(layer.blob());
        }
    }

    let mut freed = 0;
    for chain in layers.chain_ids().into_iter().filter(|chain| !trees.contains(chain)) {
        freed += layers.remove_tree(chain)?;
    }
    for diff_id in layers.diff_ids().into_iter().filter(|id| !diff_ids.contains(id)) {
        freed += layers.remove_layer(&diff_id)?;
    }
    content.sweep_ingests()?;
    for blob in content.blobs()? {
        let blob = blob?;
        if !blobs.contains(&blob.digest) && content.remove(&blob.digest)? {
            freed += blob.size;
        }
    }
    let mut recorded: HashSet<u64> = uppers.iter().map(|s| s.id).collect();
    recorded.extend(keyed.uppers());
    for id in snapshots.ids()?.into_iter().filter(|id| !recorded.contains(id)) {
        if !in_use(&snapshots.upper(id)) {
            snapshots.remove(id)?;
        }
    }
    Ok(freed)
}

fn diff_ids(image: &ImageRecord) -> impl Iterator<Item = Digest> {
    let others = image.others.iter().flat_map(|other| &other.layers);
    image.layers.iter().chain(others).map(|layer| layer.diff_id)
}

fn blobs(image: &ImageRecord) -> impl Iterator<Item = Digest> {
    let own = [image.target.digest, image.manifest, image.config];
    let indexes = image.indexes.iter().copied();
    let others = image.others.iter().flat_map(|other| {
        let layers = other.layers.iter().map(|layer| layer.digest);
        [other.manifest, other.config].into_iter().chain(layers)
    });
    let layers = image.layers.iter().map(|layer| layer.digest);
    own.into_iter().chain(indexes).chain(layers).chain(others).chain(image.attached.iter().copied())
}
