//! Pull: resolve, choose the platform, fetch and index the layers, record the image.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::StreamExt as _;
use peel_index::{Algorithm, Digest, chain_id};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::{
    Events, Images, LayerProgress, PullEvent, Stage, cancelled,
    ingest::Input,
    source::{Blob, Source},
};
use crate::{
    failure::{Class, Failure},
    metadata::{ImageRecord, LayerRef, TargetDescriptor, now_ns},
    oci::{Descriptor, ImageConfig, ImageManifest, Platform, Reference, Selection, Step},
};

/// Layers fetched at the same time; as many as containerd's default.
const PARALLEL_LAYERS: usize = 3;
/// Chunks that may wait for the indexing thread: with chunks of tens of KiB, a MiB or two.
const CHUNKS_AHEAD: usize = 32;

/// What a reference led to.
struct Found {
    target: Descriptor,
    manifest: ImageManifest,
    manifest_type: String,
    config: ImageConfig,
    /// Indexes, manifest and config, to be stored as they came.
    documents: Vec<(Digest, Vec<u8>)>,
}

impl Images {
    /// Pulls an image; what is here already is not fetched again.
    ///
    /// The caller keeps GC away meanwhile. After a failure or a cancellation the caller lets GC
    /// remove what was stored: nothing is half written, but nothing names it either.
    ///
    /// # Errors
    /// Where the reference, the source, a document or a layer is not what it should be.
    pub async fn pull(
        &self,
        reference: &str,
        platform: &str,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<ImageRecord, Failure> {
        let reference: Reference = reference.parse::<Reference>()?;
        let wanted: Platform =
            if platform.is_empty() { Platform::host() } else { platform.parse()? };
        let resolve = async {
            let source = Arc::new(Source::open(&self.registry, &reference, &wanted).await?);
            let found = find(&source, wanted).await?;
            Ok::<_, Failure>((source, found))
        };
        let (source, found) = tokio::select! {
            result = resolve => result?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        let layers = layer_refs(&found)?;
        events(PullEvent::Resolved {
            name: reference.name(),
            manifest: found.manifest.digest,
            layers: layers
                .iter()
                .enumerate()
                .map(|(n, l)| progress(n, l, Stage::Waiting))
                .collect(),
        });
        self.store_documents(&found).await?;
        self.fetch_layers(&source, &found, &layers, &events, &cancel).await?;
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.record(&reference, found, layers).await
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
        found: &Found,
        layers: &[LayerRef],
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let permits = Arc::new(Semaphore::new(PARALLEL_LAYERS));
        let call_off = cancel.child_token();
        let mut tasks = JoinSet::new();
        for (number, layer) in layers.iter().enumerate() {
            let job = Job {
                store: Arc::clone(&self.store),
                source: Arc::clone(source),
                flight: self.flight(layer.diff_id),
                descriptor: found.manifest.layers[number].descriptor(),
                layer: layer.clone(),
                number,
                events: Arc::clone(events),
                call_off: call_off.clone(),
            };
            let permits = Arc::clone(&permits);
            let places = Arc::clone(&self.store.places);
            tasks.spawn(async move {
                // Neither is ever closed
                let _permit = permits.acquire_owned().await;
                let _place = places.acquire_owned().await;
                job.run().await
            });
        }
        let mut first = Ok(());
        while let Some(ended) = tasks.join_next().await {
            let result = ended.unwrap_or_else(|panic| Err(Failure::new(Class::Other, panic)));
            if first.is_ok() && result.is_err() {
                call_off.cancel();
                first = result;
            }
        }
        first
    }

    async fn record(
        &self,
        reference: &Reference,
        found: Found,
        layers: Vec<LayerRef>,
    ) -> Result<ImageRecord, Failure> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
        let now = now_ns();
        let between = |digest: &Digest| {
            ![found.target.digest, found.manifest.digest, found.manifest.config.digest]
                .contains(digest)
        };
        let mut record = ImageRecord {
            name: reference.name(),
            target: TargetDescriptor {
                media_type: found.target.media_type.clone(),
                digest: found.target.digest,
                size: found.target.size,
            },
            indexes: found.documents.iter().map(|(digest, _)| *digest).filter(between).collect(),
            manifest: found.manifest.digest,
            manifest_type: found.manifest_type,
            config: found.manifest.config.digest,
            platform: found.config.platform.to_string(),
            layers,
            chain_id: chain_id(&diff_ids),
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

/// One layer on its way.
struct Job {
    store: Arc<super::Store>,
    source: Arc<Source>,
    flight: Arc<tokio::sync::Mutex<()>>,
    descriptor: Descriptor,
    layer: LayerRef,
    number: usize,
    events: Events,
    call_off: CancellationToken,
}

impl Job {
    async fn run(self) -> Result<(), Failure> {
        let _alone = tokio::select! {
            biased;
            () = self.call_off.cancelled() => return Err(cancelled()),
            alone = self.flight.lock() => alone,
        };
        let (store, layer) = (Arc::clone(&self.store), self.layer.clone());
        if blocking(move || Ok(store.layer_is_usable(&layer))).await? {
            (self.events)(PullEvent::Layer(progress(self.number, &self.layer, Stage::Exists)));
            return Ok(());
        }
        let (store, layer) = (Arc::clone(&self.store), self.layer.clone());
        if self.store.has_blob(&layer) {
            let call_off = self.call_off.clone();
            blocking(move || store.index_local(&layer, &call_off)).await?;
            let done = LayerProgress {
                received: self.layer.size,
                ..progress(self.number, &self.layer, Stage::Done)
            };
            (self.events)(PullEvent::Layer(done));
            return Ok(());
        }
        let blob = tokio::select! {
            blob = self.source.blob(&self.descriptor) => blob?,
            () = self.call_off.cancelled() => return Err(cancelled()),
        };
        self.index(blob).await
    }

    async fn index(&self, blob: Blob) -> Result<(), Failure> {
        let (sender, input) = match blob {
            Blob::File(file) => (None, Input::File(file)),
            Blob::Stream(stream) => {
                let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
                (Some((sender, stream)), Input::Stream(receiver))
            }
        };
        let (store, layer) = (Arc::clone(&self.store), self.layer.clone());
        let (events, number) = (Arc::clone(&self.events), self.number);
        let call_off = self.call_off.clone();
        let indexing = spawn_blocking(move || {
            let tell = |stage, received, indexed| {
                let progress =
                    LayerProgress { received, indexed, ..progress(number, &layer, stage) };
                events(PullEvent::Layer(progress));
            };
            let mut last = (0, 0);
            store.fetch(&layer, input, &call_off, &mut |received, indexed| {
                last = (received, indexed);
                tell(Stage::Running, received, indexed);
            })?;
            tell(Stage::Done, last.0, last.1);
            Ok(())
        });
        if let Some((sender, mut stream)) = sender {
            loop {
                let chunk = tokio::select! {
                    chunk = stream.next() => chunk,
                    () = self.call_off.cancelled() => Some(Err(cancelled())),
                };
                let Some(chunk) = chunk else { break };
                let ends = chunk.is_err();
                // The indexing thread has gone: it says why
                if sender.send(chunk).await.is_err() || ends {
                    break;
                }
            }
        }
        joined(indexing.await)
    }
}

fn progress(number: usize, layer: &LayerRef, stage: Stage) -> LayerProgress {
    LayerProgress {
        index: number,
        digest: layer.digest,
        stage,
        received: 0,
        size: layer.size,
        indexed: 0,
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    joined(spawn_blocking(call).await)
}

fn joined<T>(result: Result<Result<T, Failure>, tokio::task::JoinError>) -> Result<T, Failure> {
    result.unwrap_or_else(|panic| Err(Failure::new(Class::Other, panic)))
}

/// Walks from the reference's target to the image of the platform.
async fn find(source: &Source, wanted: Platform) -> Result<Found, Failure> {
    let (target, bytes) = source.resolve().await?;
    let mut selection = Selection::new(wanted.clone(), &target);
    let mut documents = Vec::new();
    let mut descriptor = target.clone();
    let mut step = selection.visit(&descriptor, &bytes)?;
    documents.push((descriptor.digest, bytes));
    loop {
        match step {
            Step::Fetch(next) => {
                let bytes = source.manifest(&next).await?;
                step = selection.visit(&next, &bytes)?;
                documents.push((next.digest, bytes));
                descriptor = next;
            }
            Step::Image { manifest, platform } => {
                let bytes = source.config(&manifest.config).await?;
                let config = ImageConfig::parse(&manifest, &bytes)?;
                // Only the index's word, or the config's where it has none, decides
                if platform.is_none() && wanted.rank(&config.platform).is_none() {
                    documents.retain(|(digest, _)| *digest != manifest.digest);
                    step = selection.reject(config.platform)?;
                    continue;
                }
                documents.push((manifest.config.digest, bytes));
                let manifest_type = descriptor.media_type;
                return Ok(Found { target, manifest, manifest_type, config, documents });
            }
        }
    }
}

fn layer_refs(found: &Found) -> Result<Vec<LayerRef>, Failure> {
    let layers = found.manifest.layers.iter().zip(&found.config.diff_ids);
    let refs = layers.map(|(layer, diff_id)| {
        if diff_id.algorithm() != Algorithm::Sha256 {
            let message = format!(
                "diffID of layer {} uses another algorithm: expected sha256, found {diff_id}",
                layer.digest
            );
            return Err(Failure::new(Class::BadData, message));
        }
        Ok(LayerRef {
            digest: layer.digest,
            size: layer.size,
            media_type: layer.media_type.clone(),
            diff_id: *diff_id,
        })
    });
    refs.collect()
}
