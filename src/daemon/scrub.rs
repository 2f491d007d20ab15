//! Scrub: everything at rest is read and compared with what it should be, and mended where it is
//! not.
//!
//! ```text
//! documents ─▶ blobs ─▶ indexes ─▶ trees ─▶ snapshots ─▶ metadata
//!   fetched again      built again from what stands before     from memory, or the export
//! ```
//! An index or tree that is built again keeps its slot where its inodes are numbered as before, so
//! that mounts go on. Mounted images are served meanwhile; GC waits.

use std::collections::{BTreeMap, HashSet};

use peel_index::Digest;
use tokio::runtime::Handle;

use super::engine::Engine;
use crate::{
    api::{self, finding::Outcome},
    failure::{Failure, chain},
    image::Document,
    metadata::{Fault, ImageRecord, LayerRef, MountRecord},
};

/// What a scrub tells while it runs; false where nobody listens any more.
pub(super) type Tell<'a> = &'a dyn Fn(api::scrub_event::Event) -> bool;

/// How a scrub ended.
pub(super) struct Scrubbed {
    pub(super) totals: api::ScrubTotals,
    /// The metadata is to be opened anew: it will be restored from the export.
    pub(super) restart: bool,
}

struct Scrub<'a> {
    engine: &'a Engine,
    runtime: Handle,
    mend: bool,
    tell: Tell<'a>,
    totals: api::ScrubTotals,
    /// Nobody listens any more.
    alone: bool,
}

/// Something that may be damaged, as it is reported.
struct Suspect<'a> {
    kind: &'a str,
    what: String,
    images: Vec<String>,
}

impl Engine {
    /// Checks an image, or everything where `reference` is empty; mends unless `check_only`. Blocks.
    ///
    /// # Errors
    /// Where there is no such image, or the metadata cannot be read.
    pub(super) fn scrub(
        &self,
        request: &api::ScrubRequest,
        runtime: Handle,
        tell: Tell<'_>,
    ) -> Result<Scrubbed, Failure> {
        let result = {
            let _busy = self.busy();
            let all = request.reference.is_empty();
            let images = match all {
                true => self.metadata.images()?,
                false => vec![self.find_image(&request.reference)?],
            };
            let (mend, totals) = (!request.check_only, api::ScrubTotals::default());
            let mut scrub = Scrub { engine: self, runtime, mend, tell, totals, alone: false };
            scrub.run(&images, all)
        };
        self.sweep_if_due();
        result
    }

    /// Has a layer, blob and index, be what it should be. Blocks, for as long as a fetch takes.
    ///
    /// # Errors
    /// Where that cannot be done.
    pub(super) fn mend_layer(&self, diff_id: &Digest, runtime: &Handle) -> Result<(), Failure> {
        let images = self.metadata.images()?;
        let of =
            |image: &ImageRecord| layers(image).find(|layer| layer.diff_id == *diff_id).cloned();
        let Some(layer) = images.iter().find_map(of) else {
            let message = format!("no image here has layer {diff_id}");
            return Err(Failure::new(crate::failure::Class::NotFound, message));
        };
        if self.content.check(&layer.digest).is_err() {
            self.fetch_layer(&images, &layer, runtime)?;
        }
        if self.layers.check_layer(diff_id).is_err() {
            self.images.index_again(&layer)?;
        }
        Ok(())
    }

    /// Fetches a blob from where any of the images that have it came from.
    fn fetch_layer(
        &self,
        images: &[ImageRecord],
        layer: &LayerRef,
        runtime: &Handle,
    ) -> Result<String, Failure> {
        let mut last = None;
        for image in images.iter().filter(|image| layers(image).any(|l| l == layer)) {
            match runtime.block_on(self.images.refetch_layer(image, layer)) {
                Ok(()) => return Ok(format!("fetched again from {}", image.name)),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| {
            Failure::new(crate::failure::Class::NotFound, "no image says where it came from")
        }))
    }
}

impl Scrub<'_> {
    fn run(&mut self, images: &[ImageRecord], all: bool) -> Result<Scrubbed, Failure> {
        for image in images {
            self.documents(image)?;
        }
        let mut all_layers: BTreeMap<String, &LayerRef> = BTreeMap::new();
        for layer in images.iter().flat_map(layers) {
            all_layers.insert(layer.digest.to_string(), layer);
        }
        let mut whole = HashSet::new();
        for layer in all_layers.values() {
            if self.blob(images, layer) {
                whole.insert(layer.diff_id);
            }
        }
        let mut indexed = HashSet::new();
        for layer in all_layers.values().filter(|layer| indexed.insert(layer.diff_id)) {
            self.index(images, layer, whole.contains(&layer.diff_id));
        }
        let mut chains = HashSet::new();
        for image in images.iter().filter(|image| chains.insert(image.chain_id)) {
            self.tree(images, image);
        }
        let mut restart = false;
        if all {
            self.strays(images, &chains)?;
            self.snapshots()?;
            restart = self.metadata()?;
        }
        Ok(Scrubbed { totals: self.totals, restart })
    }

    /// Counts what was looked at, and tells now and then.
    fn looked(&mut self, bytes: u64, count: impl FnOnce(&mut api::ScrubTotals) -> &mut u64) {
        *count(&mut self.totals) += 1;
        self.totals.bytes += bytes;
        self.say(api::scrub_event::Event::Progress(self.totals));
    }

    fn say(&mut self, event: api::scrub_event::Event) {
        self.alone |= !(self.tell)(event);
    }

    /// Reports damage, after `mend` where that is wanted; whether it is whole now.
    fn found(
        &mut self,
        suspect: Suspect<'_>,
        problem: String,
        mend: impl FnOnce(&Self) -> Result<String, Failure>,
    ) -> bool {
        // A client that has gone away wants nothing to be changed any more
        let mended = match self.mend && !self.alone {
            true => Some(mend(self)),
            false => None,
        };
        let (outcome, remark) = match mended {
            None => (Outcome::Left, "not asked to mend".to_owned()),
            Some(Ok(how)) => (Outcome::Mended, how),
            Some(Err(failure)) => (Outcome::Left, failure.to_string()),
        };
        let Suspect { kind, what, images } = suspect;
        let whole = outcome == Outcome::Mended;
        match whole {
            true => tracing::warn!(kind, what, ?images, problem, remark, "scrub mended damage"),
            false => tracing::error!(kind, what, ?images, problem, remark, "scrub found damage"),
        }
        self.totals.found += 1;
        self.totals.left += u64::from(!whole);
        self.say(api::scrub_event::Event::Finding(api::Finding {
            kind: kind.to_owned(),
            what,
            images,
            problem,
            outcome: outcome.into(),
            remark,
        }));
        whole
    }

    fn documents(&mut self, image: &ImageRecord) -> Result<(), Failure> {
        let engine = self.engine;
        let mend = |document: &Document, failure: Failure| {
            let what = document.descriptor.digest.to_string();
            let suspect = Suspect { kind: document.kind, what, images: vec![image.name.clone()] };
            self.found(suspect, failure.message, |scrub| {
                scrub.runtime.block_on(engine.images.refetch_document(image, document))?;
                Ok(format!("fetched again from {}", image.name))
            });
            Ok(())
        };
        for document in engine.images.documents(image, mend)? {
            self.looked(document.descriptor.size, |totals| &mut totals.documents);
        }
        Ok(())
    }

    /// Whether the blob is whole in the end.
    fn blob(&mut self, images: &[ImageRecord], layer: &LayerRef) -> bool {
        let engine = self.engine;
        let problem = match engine.content.check(&layer.digest) {
            Ok(len) => {
                self.looked(len, |totals| &mut totals.blobs);
                return true;
            }
            Err(error) => chain(&error),
        };
        self.looked(layer.size, |totals| &mut totals.blobs);
        let what = layer.digest.to_string();
        let images_of = names(images, |image| layers(image).any(|l| l == layer));
        let suspect = Suspect { kind: "blob", what, images: images_of };
        self.found(suspect, problem, |scrub| engine.fetch_layer(images, layer, &scrub.runtime))
    }

    fn index(&mut self, images: &[ImageRecord], layer: &LayerRef, whole: bool) {
        let engine = self.engine;
        let problem = match engine.layers.check_layer(&layer.diff_id) {
            Ok(Some(bytes)) => {
                self.looked(bytes, |totals| &mut totals.indexes);
                return;
            }
            Ok(None) => "there is none".to_owned(),
            Err(error) => chain(&error),
        };
        self.looked(0, |totals| &mut totals.indexes);
        let of = |image: &ImageRecord| layers(image).any(|l| l.diff_id == layer.diff_id);
        let (what, images) = (layer.diff_id.to_string(), names(images, of));
        self.found(Suspect { kind: "layer index", what, images }, problem, |_| {
            if !whole {
                let message = format!("its blob {} is damaged", layer.digest);
                return Err(Failure::new(crate::failure::Class::BadData, message));
            }
            engine.images.index_again(layer)?;
            Ok("built again from its blob".to_owned())
        });
    }

    fn tree(&mut self, images: &[ImageRecord], image: &ImageRecord) {
        let engine = self.engine;
        let problem = match engine.layers.check_tree(image.chain_id) {
            Ok(Some(bytes)) => {
                self.looked(bytes, |totals| &mut totals.trees);
                return;
            }
            // Merged when it is first mounted
            Ok(None) if !self.is_used(image.chain_id) => return,
            Ok(None) => "there is none, though it is mounted or has snapshots".to_owned(),
            Err(error) => chain(&error),
        };
        self.looked(0, |totals| &mut totals.trees);
        let what = image.chain_id.map_or_else(|| "empty".to_owned(), |chain| chain.to_string());
        let images = names(images, |other| other.chain_id == image.chain_id);
        self.found(Suspect { kind: "tree", what, images }, problem, |_| {
            engine.merge_again(image)?;
            let slot = engine.layers.tree_by_chain_id(image.chain_id)?.map(|tree| tree.slot());
            let slot = slot.map_or(0, |slot| slot.number());
            let other =
                |mount: &MountRecord| mount.chain_id == image.chain_id && mount.tree_slot != slot;
            Ok(match engine.metadata.mounts()?.iter().any(other) {
                false => "merged again from its layers".to_owned(),
                // What the kernel knows of it are numbers that may mean something else now
                true => "merged again from its layers; mount it again".to_owned(),
            })
        });
    }

    /// Whether a mount or a snapshot is made on a chain.
    fn is_used(&self, chain: Option<Digest>) -> bool {
        let metadata = &self.engine.metadata;
        metadata.mounts().is_ok_and(|all| all.iter().any(|mount| mount.chain_id == chain))
            || metadata.snapshots().is_ok_and(|all| all.iter().any(|s| s.chain_id == chain))
    }

    /// What is here and no image of now names: kept for mounts and snapshots, or about to go.
    fn strays(
        &mut self,
        images: &[ImageRecord],
        chains: &HashSet<Option<Digest>>,
    ) -> Result<(), Failure> {
        let engine = self.engine;
        let gone = |_: &Self| {
            let message = "no image says where it came from, or what it is made of";
            Err(Failure::new(crate::failure::Class::NotFound, message))
        };
        for (chain_id, _) in engine.layers.tree_slots() {
            if chains.contains(&chain_id) {
                continue;
            }
            let checked = engine.layers.check_tree(chain_id);
            let bytes = checked.as_ref().ok().copied().flatten().unwrap_or_default();
            self.looked(bytes, |totals| &mut totals.trees);
            if let Err(error) = checked {
                let what = chain_id.map_or_else(|| "empty".to_owned(), |chain| chain.to_string());
                self.found(Suspect { kind: "tree", what, images: vec![] }, chain(&error), gone);
            }
        }
        let known: HashSet<Digest> =
            images.iter().flat_map(layers).map(|layer| layer.diff_id).collect();
        for diff_id in engine.layers.diff_ids().into_iter().filter(|id| !known.contains(id)) {
            let checked = engine.layers.check_layer(&diff_id);
            let bytes = checked.as_ref().ok().copied().flatten().unwrap_or_default();
            self.looked(bytes, |totals| &mut totals.indexes);
            if let Err(error) = checked {
                let suspect =
                    Suspect { kind: "layer index", what: diff_id.to_string(), images: vec![] };
                self.found(suspect, chain(&error), gone);
            }
        }
        let named: HashSet<Digest> = images.iter().flat_map(blobs).collect();
        for blob in engine.content.blobs()? {
            let blob = blob?;
            if named.contains(&blob.digest) {
                continue;
            }
            self.looked(blob.size, |totals| &mut totals.blobs);
            if let Err(error) = engine.content.check(&blob.digest) {
                let suspect =
                    Suspect { kind: "blob", what: blob.digest.to_string(), images: vec![] };
                self.found(suspect, chain(&error), gone);
            }
        }
        Ok(())
    }

    /// Uppers hold what users wrote, for which there is no sum: only whether they are there.
    fn snapshots(&mut self) -> Result<(), Failure> {
        let engine = self.engine;
        for snapshot in engine.metadata.snapshots()? {
            self.looked(0, |totals| &mut totals.snapshots);
            let upper = engine.snapshots.upper(snapshot.id);
            if !upper.is_dir() {
                let problem = format!("its directory {} is gone", upper.display());
                let suspect = Suspect {
                    kind: "snapshot",
                    what: snapshot.name.clone(),
                    images: vec![snapshot.image.clone()],
                };
                self.found(suspect, problem, |_| {
                    let message = format!("drop it with: peel snapshots rm {}", snapshot.name);
                    Err(Failure::new(crate::failure::Class::NotFound, message))
                });
            }
        }
        Ok(())
    }

    /// Whether the worker has to open the metadata anew.
    fn metadata(&mut self) -> Result<bool, Failure> {
        let engine = self.engine;
        let mut restart = false;
        for Fault { file, problem, mended } in engine.metadata.check(self.mend)? {
            let suspect = Suspect { kind: "metadata", what: file.to_owned(), images: vec![] };
            self.found(suspect, problem, |_| {
                if mended {
                    return Ok("written again".to_owned());
                }
                engine.metadata.export_anew()?;
                restart = true;
                Ok("restored from the export by the next worker, which starts now".to_owned())
            });
        }
        Ok(restart)
    }
}

fn names(images: &[ImageRecord], has: impl Fn(&ImageRecord) -> bool) -> Vec<String> {
    images.iter().filter(|image| has(image)).map(|image| image.name.clone()).collect()
}

/// Those of all platforms that are here.
fn layers(image: &ImageRecord) -> impl Iterator<Item = &LayerRef> {
    image.layers.iter().chain(image.others.iter().flat_map(|other| &other.layers))
}

fn blobs(image: &ImageRecord) -> impl Iterator<Item = Digest> {
    let own = [image.target.digest, image.manifest, image.config];
    let indexes = image.indexes.iter().copied();
    let others = image.others.iter().flat_map(|other| [other.manifest, other.config]);
    own.into_iter().chain(indexes).chain(others).chain(layers(image).map(|layer| layer.digest))
}
