//! Pull: resolve, choose the platform, fetch and index the layers, record the image.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use peel_index::{Digest, chain_id};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::{
    Events, Images, PullEvent, Stage, cancelled,
    find::{Documents, Found, Image, find_all, find_in},
    job::{Job, feed, progress},
    labels,
    lease::{Goods, Hold},
    source::Source,
};
use crate::{
    content::ContentError,
    failure::{Class, Failure},
    metadata::{ImageRecord, LayerRef, TargetDescriptor, now_ns},
    oci::{Descriptor, LayerDescriptor, Platform, Reference},
    registry::Credentials,
};

/// Layers fetched at the same time; as many as containerd's default.
pub(super) const PARALLEL_LAYERS: usize = 3;
/// Most of them that a caller may ask for.
const MAX_PARALLEL_LAYERS: usize = 32;

/// What is to be pulled, and for whom.
pub struct PullOptions {
    /// Any reference, oci: paths absolute.
    pub reference: String,
    /// os/arch[/variant]; empty for this machine's.
    pub platform: String,
    /// Everything that an index names, and not one platform alone.
    pub all_platforms: bool,
    /// Layers at the same time; 0 for the default.
    pub jobs: usize,
    /// Who asks.
    pub credentials: Arc<dyn Credentials>,
}

/// An image that is to be taken from where it is.
pub(super) struct Taking {
    pub(super) source: Arc<Source>,
    /// What it is called here.
    pub(super) name: String,
    /// What it is called there, where that is known.
    pub(super) origin: Option<Reference>,
    pub(super) wanted: Platform,
    pub(super) all_platforms: bool,
    pub(super) jobs: usize,
}

impl Images {
    /// Pulls an image; what is here already is not fetched again.
    ///
    /// A lease keeps GC from what is stored meanwhile. After a failure or a cancellation the caller
    /// lets GC remove it. Layers that were under way are kept to go on with.
    ///
    /// # Errors
    /// Where the reference, the source, a document or a layer is not what it should be.
    pub async fn pull(
        &self,
        options: PullOptions,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<ImageRecord, Failure> {
        let reference: Reference = options.reference.parse::<Reference>()?;
        let wanted: Platform = match options.platform.as_str() {
            "" => Platform::host(),
            platform => platform.parse()?,
        };
        let registry = Arc::new(self.registry.session(Arc::clone(&options.credentials)));
        let scratch = self.scratch();
        let open = Source::open(&registry, &reference, &wanted, &scratch);
        let source = tokio::select! {
            result = open => result?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        let taking = Taking {
            source: Arc::new(source),
            name: reference.name(),
            origin: Some(reference),
            wanted,
            all_platforms: options.all_platforms,
            jobs: options.jobs,
        };
        self.take(taking, &events, &cancel).await
    }

    /// A directory for large files that nobody else sees.
    pub(super) fn scratch(&self) -> std::path::PathBuf {
        self.store.content.root().join("ingest")
    }

    /// Takes an image from a source; see [`Images::pull`].
    pub(super) async fn take(
        &self,
        taking: Taking,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<ImageRecord, Failure> {
        let Taking { source, wanted, .. } = &taking;
        let resolve = async {
            let source = Documents { source, here: Some(&self.store.content) };
            let mut found = find_in(source, wanted.clone()).await?;
            if taking.all_platforms {
                find_all(source, &mut found).await?;
            }
            Ok::<_, Failure>(found)
        };
        let found = tokio::select! {
            result = resolve => result?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        let layers = found.layers();
        let waiting = layers.iter().enumerate();
        events(PullEvent::Resolved {
            name: taking.name.clone(),
            manifest: found.image.manifest.digest,
            layers: waiting.map(|(n, (_, layer))| progress(n, layer, Stage::Waiting)).collect(),
        });
        let hold = self.hold(Some(&taking.name), goods(&found, &layers)).await?;
        let fetch = async {
            self.foresee_space(&layers)?;
            self.store_documents(&found).await?;
            let jobs = match taking.jobs {
                0 => PARALLEL_LAYERS,
                jobs => jobs.min(MAX_PARALLEL_LAYERS),
            };
            self.fetch_layers(source, layers, jobs, events, cancel).await?;
            for attached in &found.attached {
                self.fetch_attached(source, attached, cancel).await?;
            }
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            self.record(&taking, found, &hold).await
        };
        let result = fetch.await;
        // Who only lost the line comes back for the rest
        let comes_back =
            |failure: &Failure| cancel.is_cancelled() || failure.class == Class::Unavailable;
        if result.as_ref().is_err_and(|failure| !comes_back(failure)) {
            self.end(hold).await?;
        }
        result
    }

    /// Refuses what the disk has no room for, before anything of it is fetched.
    fn foresee_space(&self, layers: &[(LayerDescriptor, LayerRef)]) -> Result<(), Failure> {
        let content = &self.store.content;
        let missing = layers.iter().filter(|(_, layer)| !self.store.has_blob(layer));
        let needed: u64 = missing
            .map(|(_, layer)| {
                layer.size - content.partial(&layer.digest.to_string()).min(layer.size)
            })
            .fold(0, u64::saturating_add);
        let Some(available) = content.available().filter(|available| *available < needed) else {
            return Ok(());
        };
        let (path, needed) = (content.root().to_owned(), Some(needed));
        Err(ContentError::NoSpace { path, needed, available }.into())
    }

    async fn store_documents(&self, found: &Found) -> Result<(), Failure> {
        for (digest, bytes) in &found.documents {
            let flight = self.flight(*digest);
            let _alone = flight.lock().await;
            let (store, digest, bytes) = (Arc::clone(&self.store), *digest, bytes.clone());
            blocking(move || store.put(&digest, &bytes)).await?;
        }
        Ok(())
    }

    /// All layers; when one fails the others are called off, and awaited all the same.
    async fn fetch_layers(
        &self,
        source: &Arc<Source>,
        layers: Vec<(LayerDescriptor, LayerRef)>,
        jobs: usize,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let permits = Arc::new(Semaphore::new(jobs));
        let call_off = cancel.child_token();
        // What failed first; the others end because of it
        let first = Arc::new(OnceLock::new());
        let mut tasks = JoinSet::new();
        for (number, (descriptor, layer)) in layers.into_iter().enumerate() {
            let job = Job {
                store: Arc::clone(&self.store),
                source: Arc::clone(source),
                flight: self.flight(layer.diff_id),
                descriptor,
                layer,
                number,
                events: Arc::clone(events),
                call_off: call_off.clone(),
            };
            // Lowest first. Neither semaphore is ever closed
            let permit = Arc::clone(&permits).acquire_owned().await;
            let place = Arc::clone(&self.store.places).acquire_owned().await;
            if call_off.is_cancelled() {
                break;
            }
            let (first, call_off) = (Arc::clone(&first), call_off.clone());
            tasks.spawn(async move {
                let _places = (permit, place);
                if let Err(failure) = job.run().await {
                    // Only the first counts
                    let _ = first.set(failure);
                    call_off.cancel();
                }
            });
        }
        let mut panicked = None;
        while let Some(ended) = tasks.join_next().await {
            if let Err(panic) = ended {
                call_off.cancel();
                panicked = Some(Failure::new(Class::Other, panic));
            }
        }
        match panicked.or_else(|| first.get().cloned()) {
            Some(failure) => Err(failure),
            None if call_off.is_cancelled() => Err(cancelled()),
            None => Ok(()),
        }
    }

    /// A blob that is no layer, one at a time: such blobs are small and few.
    async fn fetch_attached(
        &self,
        source: &Arc<Source>,
        descriptor: &Descriptor,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let flight = self.flight(descriptor.digest);
        let _alone = flight.lock().await;
        if self.store.content.contains(&descriptor.digest)? {
            return Ok(());
        }
        let (store, wanted) = (Arc::clone(&self.store), descriptor.clone());
        let call_off = cancel.clone();
        feed(
            move |input| store.fetch_plain(&wanted, input, &call_off),
            |_| source.blob(descriptor, 0),
            cancel,
            &AtomicBool::new(false),
        )
        .await
    }

    async fn record(
        &self,
        taking: &Taking,
        found: Found,
        hold: &Hold,
    ) -> Result<ImageRecord, Failure> {
        let labels = labels::of_pull(taking.origin.as_ref(), &found);
        let Found { target, image, others, attached, documents } = found;
        let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let now = now_ns();
        let mut known = vec![target.digest, image.manifest.digest, image.manifest.config.digest];
        known.extend(others.iter().flat_map(|o| [o.manifest.digest, o.manifest.config.digest]));
        let between = |digest: &Digest| !known.contains(digest);
        let mut record = ImageRecord {
            name: taking.name.clone(),
            target: TargetDescriptor {
                media_type: target.media_type.clone(),
                digest: target.digest,
                size: target.size,
                annotations: target.annotations.clone(),
            },
            indexes: documents.iter().map(|(digest, _)| *digest).filter(between).collect(),
            manifest: image.manifest.digest,
            manifest_type: image.manifest_type,
            config: image.manifest.config.digest,
            platform: image.config.platform.to_string(),
            layers: image.layers,
            chain_id: chain_id(&diff_ids),
            others: others.iter().map(Image::other).collect(),
            attached: attached.iter().map(|blob| blob.digest).collect(),
            created_at_ns: now,
            updated_at_ns: now,
            labels: BTreeMap::new(),
            mounted_at_ns: 0,
            pinned: false,
        };
        let metadata = &self.store.metadata;
        // Milliseconds, and nothing else is to be done
        tokio::task::block_in_place(|| {
            metadata.transaction(|tx| {
                if let Some(old) = tx.image(&record.name)? {
                    record.take_over(old);
                }
                tx.put_image(&record)?;
                for (digest, labels) in labels {
                    tx.label_content(&digest, labels.into_iter().map(|(k, v)| (k, Some(v))))?;
                }
                hold.end_in(tx)
            })?;
            self.store.write_index()?;
            Ok(record)
        })
    }
}

/// Everything that a pull stores.
fn goods(found: &Found, layers: &[(LayerDescriptor, LayerRef)]) -> Goods {
    let documents = found.documents.iter().map(|(digest, _)| *digest);
    let attached = found.attached.iter().map(|blob| blob.digest);
    let blobs = documents.chain(attached).chain(layers.iter().map(|(_, layer)| layer.digest));
    let diff_ids = layers.iter().map(|(_, layer)| layer.diff_id);
    Goods { blobs: blobs.collect(), diff_ids: diff_ids.collect() }
}

pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    joined(spawn_blocking(call).await)
}

pub(super) fn joined<T>(
    result: Result<Result<T, Failure>, tokio::task::JoinError>,
) -> Result<T, Failure> {
    result.unwrap_or_else(|panic| Err(Failure::new(Class::Other, panic)))
}
