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
    find::{Found, Image, find, find_all},
    job::{Job, feed, progress},
    source::Source,
};
use crate::{
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

impl Images {
    /// Pulls an image; what is here already is not fetched again.
    ///
    /// The caller keeps GC away meanwhile. After a failure or a cancellation the caller lets GC
    /// remove what was stored: nothing names it. Layers that were under way are kept to go on with.
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
        let resolve = async {
            let source = Arc::new(Source::open(&registry, &reference, &wanted).await?);
            let mut found = find(&source, wanted.clone()).await?;
            if options.all_platforms {
                find_all(&source, &mut found).await?;
            }
            Ok::<_, Failure>((source, found))
        };
        let (source, found) = tokio::select! {
            result = resolve => result?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        let layers = found.layers();
        let waiting = layers.iter().enumerate();
        events(PullEvent::Resolved {
            name: reference.name(),
            manifest: found.image.manifest.digest,
            layers: waiting.map(|(n, (_, layer))| progress(n, layer, Stage::Waiting)).collect(),
        });
        let key = reference.name();
        let (store, name) = (Arc::clone(&self.store), key.clone());
        let wanted: Vec<_> = layers.iter().map(|(_, layer)| layer.digest).collect();
        blocking(move || Ok(store.content.keep_blobs(&name, &wanted)?)).await?;
        let fetch = async {
            self.store_documents(&found).await?;
            let jobs = match options.jobs {
                0 => PARALLEL_LAYERS,
                jobs => jobs.min(MAX_PARALLEL_LAYERS),
            };
            self.fetch_layers(&source, layers, jobs, &events, &cancel).await?;
            for attached in &found.attached {
                self.fetch_attached(&source, attached, &cancel).await?;
            }
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            self.record(&reference, found).await
        };
        let result = fetch.await;
        // Who only lost the line comes back for the rest
        let comes_back =
            |failure: &Failure| cancel.is_cancelled() || failure.class == Class::Unavailable;
        if !result.as_ref().is_err_and(comes_back) {
            let store = Arc::clone(&self.store);
            blocking(move || Ok(store.content.unkeep(&key)?)).await?;
        }
        result
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

    async fn record(&self, reference: &Reference, found: Found) -> Result<ImageRecord, Failure> {
        let Found { target, image, others, attached, documents } = found;
        let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
        let now = now_ns();
        let mut known = vec![target.digest, image.manifest.digest, image.manifest.config.digest];
        known.extend(others.iter().flat_map(|o| [o.manifest.digest, o.manifest.config.digest]));
        let between = |digest: &Digest| !known.contains(digest);
        let mut record = ImageRecord {
            name: reference.name(),
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
        };
        let store = Arc::clone(&self.store);
        blocking(move || {
            if let Some(old) = store.metadata.image(&record.name)? {
                record.created_at_ns = old.created_at_ns;
                record.labels = old.labels;
            }
            store.metadata.put_image(&record)?;
            store.write_index()?;
            Ok(record)
        })
        .await
    }
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
