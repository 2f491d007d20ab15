//! From a reference to the images it stands for: one platform's, or all.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use peel_index::{Algorithm, Digest};

use super::{pull::blocking, source::Source};
use crate::{
    content::ContentStore,
    failure::{Class, Failure},
    metadata::{LayerRef, OtherPlatform},
    oci::{
        Descriptor, ImageConfig, ImageManifest, LayerDescriptor, MAX_CONFIG_SIZE, MAX_INDEX_DEPTH,
        MAX_MANIFEST_SIZE, Manifest, OciError, Platform, Selection, Step, references,
    },
};

/// Most documents that are looked at for one image of many platforms.
const MAX_DOCUMENTS: usize = 512;

/// What a reference led to.
pub(super) struct Found {
    /// What it names.
    pub(super) target: Descriptor,
    /// The image of the platform that was asked for.
    pub(super) image: Image,
    /// Images of other platforms.
    pub(super) others: Vec<Image>,
    /// Blobs of what is no image: attestations and the like.
    pub(super) attached: Vec<Descriptor>,
    /// Indexes, manifests and configs, to be stored as they came.
    pub(super) documents: Vec<(Digest, Vec<u8>)>,
}

/// The image of one platform.
pub(super) struct Image {
    pub(super) manifest: ImageManifest,
    pub(super) manifest_type: String,
    pub(super) config: ImageConfig,
    /// As the manifest and the config name them, lowest first.
    pub(super) layers: Vec<LayerRef>,
}

impl Image {
    fn new(
        manifest: ImageManifest,
        manifest_type: String,
        config: ImageConfig,
    ) -> Result<Self, Failure> {
        let layers = layer_refs(&manifest, &config)?;
        Ok(Self { manifest, manifest_type, config, layers })
    }

    pub(super) fn other(&self) -> OtherPlatform {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id).collect();
        OtherPlatform {
            manifest: self.manifest.digest,
            manifest_type: self.manifest_type.clone(),
            config: self.manifest.config.digest,
            platform: self.config.platform.to_string(),
            layers: self.layers.clone(),
            chain_id: peel_index::chain_id(&diff_ids),
        }
    }
}

impl Found {
    /// The layers of all images, each once.
    pub(super) fn layers(&self) -> Vec<(LayerDescriptor, LayerRef)> {
        let mut seen = HashSet::new();
        let images = [&self.image].into_iter().chain(&self.others);
        let layers =
            images.flat_map(|i| i.manifest.layers.iter().cloned().zip(i.layers.iter().cloned()));
        // An image may name a layer twice, and a hostile one with two diffIDs
        layers.filter(|(_, layer)| seen.insert((layer.digest, layer.diff_id))).collect()
    }

    fn has(&self, digest: &Digest) -> bool {
        self.documents.iter().any(|(known, _)| known == digest)
    }
}

/// Where documents come from: a source, and what is here already.
#[derive(Clone, Copy)]
pub(super) struct Documents<'a> {
    pub(super) source: &'a Source,
    pub(super) here: Option<&'a Arc<ContentStore>>,
}

impl Documents<'_> {
    async fn manifest(self, descriptor: &Descriptor) -> Result<Vec<u8>, Failure> {
        match self.known(descriptor, MAX_MANIFEST_SIZE).await? {
            Some(bytes) => Ok(bytes),
            None => self.source.manifest(descriptor).await,
        }
    }

    async fn config(self, descriptor: &Descriptor) -> Result<Vec<u8>, Failure> {
        match self.known(descriptor, MAX_CONFIG_SIZE).await? {
            Some(bytes) => Ok(bytes),
            None => self.source.config(descriptor).await,
        }
    }

    /// What is here, verified.
    async fn known(self, descriptor: &Descriptor, max: u64) -> Result<Option<Vec<u8>>, Failure> {
        let Some(here) = self.here.map(Arc::clone) else { return Ok(None) };
        let digest = descriptor.digest;
        // Damaged ones are fetched again
        let found = blocking(move || Ok(here.read_blob(&digest, max).ok())).await?;
        Ok(found.filter(|bytes| bytes.len() as u64 == descriptor.size))
    }
}

/// Walks from the reference's target to the image of the platform.
pub(super) async fn find(source: &Source, wanted: Platform) -> Result<Found, Failure> {
    find_in(Documents { source, here: None }, wanted).await
}

/// The same, with documents that may be here.
pub(super) async fn find_in(source: Documents<'_>, wanted: Platform) -> Result<Found, Failure> {
    let (target, bytes) = source.source.resolve().await?;
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
                let image = Image::new(*manifest, descriptor.media_type, config)?;
                let (others, attached) = (Vec::new(), Vec::new());
                return Ok(Found { target, image, others, attached, documents });
            }
        }
    }
}

/// Finds everything else that the target names.
pub(super) async fn find_all(source: Documents<'_>, found: &mut Found) -> Result<(), Failure> {
    let mut pending = VecDeque::from([(found.target.clone(), 0)]);
    let mut seen = HashSet::new();
    while let Some((descriptor, depth)) = pending.pop_front() {
        if !seen.insert(descriptor.digest) {
            continue;
        }
        if depth > MAX_INDEX_DEPTH || seen.len() > MAX_DOCUMENTS {
            let message = format!(
                "index {} has too many manifests: expected at most {MAX_DOCUMENTS}, at most \
                 {MAX_INDEX_DEPTH} deep",
                found.target.digest
            );
            return Err(Failure::new(Class::BadData, message).hint("pull one platform of it"));
        }
        let known = found.documents.iter().find(|(digest, _)| *digest == descriptor.digest);
        let bytes = match known {
            Some((_, bytes)) => bytes.clone(),
            None => source.manifest(&descriptor).await?,
        };
        match Manifest::parse(&descriptor, &bytes) {
            Ok(Manifest::Index(index)) => {
                pending.extend(index.manifests.into_iter().map(|entry| (entry, depth + 1)));
            }
            Ok(Manifest::Image(manifest)) if manifest.digest == found.image.manifest.digest => {}
            Ok(Manifest::Image(manifest)) => {
                let config = source.config(&manifest.config).await?;
                let parsed = ImageConfig::parse(&manifest, &config)?;
                if !found.has(&manifest.config.digest) {
                    found.documents.push((manifest.config.digest, config));
                }
                found.others.push(Image::new(*manifest, descriptor.media_type, parsed)?);
            }
            // Signatures, attestations: kept, so that the index is whole
            Err(OciError::Artifact { .. } | OciError::LayerType { .. }) => {
                found.attached.extend(references(descriptor.digest, &bytes)?);
            }
            Err(error) => return Err(error.into()),
        }
        if !found.has(&descriptor.digest) {
            found.documents.push((descriptor.digest, bytes));
        }
    }
    Ok(())
}

fn layer_refs(manifest: &ImageManifest, config: &ImageConfig) -> Result<Vec<LayerRef>, Failure> {
    let layers = manifest.layers.iter().zip(&config.diff_ids);
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
