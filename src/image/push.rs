//! Push: blobs that the registry lacks, a few at a time, then manifests, byte for byte.

use std::{collections::HashSet, sync::Arc};

use peel_index::Digest;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Events, Images, LayerProgress, PullEvent, Stage, cancelled,
    lease::Goods,
    pull::{PARALLEL_LAYERS, blocking},
};
use crate::{
    failure::{Class, Failure},
    metadata::ImageRecord,
    oci::{
        Descriptor, DocumentKind, LayerKind, MAX_MANIFEST_SIZE, Reference, RegistryReference,
        Repository,
    },
    registry::{Credentials, Uploaded},
};

/// Most repositories that a registry is asked to take a blob from: each costs a request.
const MAX_SOURCES: usize = 3;
/// Bytes between two words of progress.
const TELL_EVERY: u64 = 1 << 20;

/// What is to be pushed, where, and for whom.
pub struct PushOptions {
    /// The image.
    pub image: ImageRecord,
    /// A reference of a registry; empty for the image's own name.
    pub target: String,
    /// Everything that the image's index names, or nothing.
    pub all_platforms: bool,
    /// Blobs at the same time; 0 for the default.
    pub jobs: usize,
    /// Who asks.
    pub credentials: Arc<dyn Credentials>,
}

/// What a push has written.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The reference that names it now.
    pub name: String,
    /// What the name points at.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Whether it is one platform's manifest out of an index, the rest of which is not here.
    pub partial: bool,
}

impl Images {
    /// Pushes an image; what the registry has already is not sent again.
    ///
    /// A lease keeps GC from it meanwhile.
    ///
    /// # Errors
    /// Where the target is none, content is missing here, or the registry refuses.
    pub async fn push(
        &self,
        options: PushOptions,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Pushed, Failure> {
        let image = options.image;
        let name = if options.target.is_empty() { &image.name } else { &options.target };
        let target = match name.parse::<Reference>()? {
            Reference::Registry(target) => target,
            other => {
                let message = format!("cannot push to {other}: expected an image of a registry");
                return Err(Failure::new(Class::Usage, message)
                    .hint("name where to: peel push IMAGE REGISTRY/NAME:TAG"));
            }
        };
        let goods = Goods { blobs: image.blobs().collect(), diff_ids: Vec::new() };
        let hold = self.hold(None, goods).await?;
        let (content, partial) = self.what_to_push(&image, options.all_platforms).await?;
        let Some(top) = content.last().cloned() else {
            return Err(Failure::new(Class::Other, format!("{} has no content", image.name)));
        };
        if let Some(digest) = target.digest().filter(|digest| **digest != top.digest) {
            let message =
                format!("cannot push to {target}: expected {digest}, found {}", top.digest);
            return Err(Failure::new(Class::Conflict, message).hint("name a tag instead"));
        }
        let (documents, blobs): (Vec<_>, Vec<_>) = content.into_iter().partition(is_document);
        // Registries do not take what may not be passed on; its URLs stand in the manifest
        let foreign = |blob: &Descriptor| {
            LayerKind::from_media_type(&blob.media_type).is_some_and(|kind| kind.foreign)
        };
        let blobs: Vec<_> = blobs.into_iter().filter(|blob| !foreign(blob)).collect();
        events(PullEvent::Resolved {
            name: target.to_string(),
            manifest: top.digest,
            layers: blobs
                .iter()
                .enumerate()
                .map(|(n, blob)| progress(n, blob, Stage::Waiting, 0))
                .collect(),
        });
        let registry = self.registry.session(options.credentials);
        let jobs = if options.jobs == 0 { PARALLEL_LAYERS } else { options.jobs };
        let push = async {
            self.push_blobs(&registry, &target, blobs, jobs, &events).await?;
            for document in documents {
                let bytes = self.document_bytes(&document).await?;
                let is_top = document.digest == top.digest;
                registry.push_manifest(&target, &document, bytes.into(), is_top).await?;
            }
            Ok::<_, Failure>(())
        };
        tokio::select! {
            result = push => result?,
            () = cancel.cancelled() => return Err(cancelled()),
        }
        self.end(hold).await?;
        let (digest, media_type) = (top.digest, top.media_type);
        Ok(Pushed { name: target.to_string(), digest, media_type, partial })
    }

    /// Everything to be pushed, what it hangs on last; and whether that is but one platform of it.
    async fn what_to_push(
        &self,
        image: &ImageRecord,
        all: bool,
    ) -> Result<(Vec<Descriptor>, bool), Failure> {
        let (store, image) = (Arc::clone(&self.store), image.clone());
        blocking(move || {
            if let Some(content) = store.whole(&image.target.descriptor())? {
                return Ok((content, false));
            }
            let missing = |what: &str| Failure::new(Class::NotFound, what);
            if all {
                let message = format!("not every platform of {} is here", image.name);
                return Err(missing(&message)
                    .hint(format!("pull them with: peel pull --all-platforms {}", image.name)));
            }
            let size = store.content.info(&image.manifest)?.map_or(0, |found| found.size);
            let manifest = Descriptor::new(&image.manifest_type, image.manifest, size);
            let content = store.whole(&manifest)?.ok_or_else(|| {
                missing(&format!("some content of {} is not here", image.name))
                    .hint(format!("fetch it again with: peel pull {}", image.name))
            })?;
            Ok((content, image.manifest != image.target.digest))
        })
        .await
    }

    async fn document_bytes(&self, document: &Descriptor) -> Result<Vec<u8>, Failure> {
        let (store, digest) = (Arc::clone(&self.store), document.digest);
        blocking(move || Ok(store.content.read_blob(&digest, MAX_MANIFEST_SIZE)?)).await
    }

    async fn push_blobs(
        &self,
        registry: &crate::registry::Registry,
        target: &RegistryReference,
        blobs: Vec<Descriptor>,
        jobs: usize,
        events: &Events,
    ) -> Result<(), Failure> {
        let permits = Arc::new(Semaphore::new(jobs));
        let mut tasks = JoinSet::new();
        for (number, blob) in blobs.into_iter().enumerate() {
            let from = self.sources_of(&blob, target.repository()).await?;
            let (registry, store) = (registry.clone(), Arc::clone(&self.store));
            let (events, permits) = (Arc::clone(events), Arc::clone(&permits));
            let repository = target.repository().clone();
            tasks.spawn(async move {
                // The semaphore is never closed
                let _permit = permits.acquire_owned().await;
                let digest = blob.digest;
                let file = blocking(move || Ok(store.content.open_blob(&digest)?)).await?;
                let sent = {
                    let (events, blob) = (Arc::clone(&events), blob.clone());
                    let so_far = std::sync::Mutex::new((0, 0));
                    Arc::new(move |bytes| {
                        let mut so_far =
                            so_far.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        so_far.0 += bytes;
                        // Tries that broke are sent again
                        let (sent, told) = *so_far;
                        if sent - told >= TELL_EVERY {
                            so_far.1 = sent;
                            let sent = sent.min(blob.size);
                            let progress = progress(number, &blob, Stage::Running, sent);
                            events(PullEvent::Layer(progress));
                        }
                    })
                };
                let uploaded =
                    registry.push_blob(&repository, &blob, Arc::new(file), &from, sent).await?;
                let stage = match uploaded {
                    Uploaded::Exists => Stage::Exists,
                    Uploaded::Mounted => Stage::Mounted,
                    Uploaded::Sent => Stage::Done,
                };
                events(PullEvent::Layer(progress(number, &blob, stage, blob.size)));
                Ok::<_, Failure>(())
            });
        }
        // The rest is dropped, and so called off, where one fails
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap_or_else(|panic| Err(Failure::new(Class::Other, panic)))?;
        }
        Ok(())
    }

    /// Other repositories of the same registry that may have a blob: those of images here.
    async fn sources_of(
        &self,
        blob: &Descriptor,
        target: &Repository,
    ) -> Result<Vec<Repository>, Failure> {
        let store = Arc::clone(&self.store);
        let images = blocking(move || Ok(store.metadata.images()?)).await?;
        let has = |image: &&ImageRecord| {
            let others = image.others.iter().flat_map(|other| &other.layers);
            image.config == blob.digest
                || image.layers.iter().chain(others).any(|layer| layer.digest == blob.digest)
        };
        let mut seen = HashSet::from([target.clone()]);
        let names = images.iter().filter(has).filter_map(|image| image.name.parse().ok());
        let repositories = names.filter_map(|name: Reference| match name {
            Reference::Registry(name) => Some(name.repository().clone()),
            _ => None,
        });
        Ok(repositories
            .filter(|found| found.host() == target.host() && seen.insert(found.clone()))
            .take(MAX_SOURCES)
            .collect())
    }
}

fn is_document(descriptor: &Descriptor) -> bool {
    use DocumentKind::{Artifact, Index, Manifest};
    let kind = DocumentKind::from_media_type(&descriptor.media_type);
    matches!(kind, Some(Index | Manifest | Artifact))
}

fn progress(number: usize, blob: &Descriptor, stage: Stage, sent: u64) -> LayerProgress {
    LayerProgress {
        index: number,
        digest: blob.digest,
        stage,
        received: sent,
        size: blob.size,
        indexed: 0,
    }
}
