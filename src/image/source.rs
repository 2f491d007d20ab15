//! Where an image comes from: a registry, or an image layout or archive on this disk.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use peel_index::Hasher;

use super::pull::blocking;
use crate::{
    content::{OciLayout, Part},
    failure::{Failure, chain},
    oci::{
        Descriptor, LayerDescriptor, MAX_CONFIG_SIZE, MAX_MANIFEST_SIZE, Platform, Reference,
        RegistryReference,
    },
    registry::{BlobStream, Registry},
};

/// The compressed bytes of a layer.
pub(super) enum Blob {
    /// As they arrive, from the byte on that was asked for.
    Stream {
        stream: BoxStream<'static, Result<Bytes, Failure>>,
        /// Whether they are not of one answer.
        pieced: Arc<AtomicBool>,
    },
    /// A part of a file here, with all of them.
    File(Part),
    /// All of them, from the manifest itself.
    Bytes(Bytes),
}

/// See the module.
pub(super) enum Source {
    Registry { registry: Arc<Registry>, reference: RegistryReference },
    Layout { layout: Arc<OciLayout>, target: Descriptor },
}

impl Source {
    pub(super) async fn open(
        registry: &Arc<Registry>,
        reference: &Reference,
        wanted: &Platform,
        scratch: &Path,
    ) -> Result<Self, Failure> {
        match reference {
            Reference::Registry(reference) => {
                Ok(Self::Registry { registry: Arc::clone(registry), reference: reference.clone() })
            }
            Reference::Layout(reference) => {
                let (reference, wanted) = (reference.clone(), wanted.clone());
                blocking(move || {
                    let layout = OciLayout::open(&reference.dir)?;
                    let target = layout.resolve(reference.tag.as_deref(), &wanted)?.clone();
                    Ok(Self::Layout { layout: Arc::new(layout), target })
                })
                .await
            }
            Reference::OciArchive(archive) | Reference::DockerArchive(archive) => {
                let (archive, wanted) = (archive.clone(), wanted.clone());
                let scratch = scratch.to_owned();
                blocking(move || {
                    let layout = OciLayout::open_archive(&archive.file, &scratch)?;
                    let target = layout.resolve(archive.image.as_deref(), &wanted)?.clone();
                    Ok(Self::Layout { layout: Arc::new(layout), target })
                })
                .await
            }
        }
    }

    /// What the reference names: its descriptor and its bytes.
    pub(super) async fn resolve(&self) -> Result<(Descriptor, Vec<u8>), Failure> {
        match self {
            Self::Registry { registry, reference } => {
                let (descriptor, bytes) = registry.resolve(reference).await?;
                Ok((descriptor, bytes.to_vec()))
            }
            Self::Layout { target, .. } => {
                let bytes = self.manifest(target).await?;
                Ok((target.clone(), bytes))
            }
        }
    }

    /// A manifest or index, verified.
    pub(super) async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Failure> {
        if let Some(bytes) = inline(descriptor) {
            return Ok(bytes.to_vec());
        }
        match self {
            Self::Registry { registry, reference } => {
                Ok(registry.manifest(reference.repository(), descriptor).await?.to_vec())
            }
            Self::Layout { layout, .. } => read(layout, descriptor, MAX_MANIFEST_SIZE).await,
        }
    }

    /// A config, verified.
    pub(super) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Failure> {
        if let Some(bytes) = inline(descriptor) {
            return Ok(bytes.to_vec());
        }
        match self {
            Self::Registry { registry, reference } => {
                let repository = reference.repository();
                Ok(registry.read_blob(repository, descriptor, MAX_CONFIG_SIZE).await?.to_vec())
            }
            Self::Layout { layout, .. } => read(layout, descriptor, MAX_CONFIG_SIZE).await,
        }
    }

    /// A layer, from its byte `from` on where it comes over a network; not verified yet.
    ///
    /// A foreign layer is looked for where its manifest says first, as containerd does: registries
    /// seldom have it.
    pub(super) async fn layer(&self, layer: &LayerDescriptor, from: u64) -> Result<Blob, Failure> {
        if let Self::Registry { registry, reference } = self {
            let descriptor = layer.descriptor();
            for url in layer.urls.iter().filter(|_| layer.kind.foreign) {
                let repository = reference.repository();
                match registry.foreign(url, repository, &descriptor, from).await {
                    Ok(stream) => return Ok(Blob::of(stream)),
                    Err(error) => {
                        let error = chain(&error);
                        tracing::warn!(layer = %layer.digest, error, "no foreign layer at its URL");
                    }
                }
            }
        }
        self.blob(&layer.descriptor(), from).await
    }

    /// Any blob, as a layer.
    pub(super) async fn blob(&self, descriptor: &Descriptor, from: u64) -> Result<Blob, Failure> {
        if let Some(bytes) = inline(descriptor) {
            return Ok(Blob::Bytes(bytes));
        }
        match self {
            Self::Registry { registry, reference } => {
                Ok(Blob::of(registry.blob(reference.repository(), descriptor, from).await?))
            }
            Self::Layout { layout, .. } => {
                let (layout, descriptor) = (Arc::clone(layout), descriptor.clone());
                blocking(move || Ok(Blob::File(layout.open_blob(&descriptor)?))).await
            }
        }
    }
}

impl Blob {
    fn of(stream: BlobStream) -> Self {
        let pieced = stream.pieced();
        Self::Stream { stream: stream.map(|chunk| chunk.map_err(Failure::from)).boxed(), pieced }
    }
}

/// The content that a descriptor carries itself, where it is what the descriptor says.
fn inline(descriptor: &Descriptor) -> Option<Bytes> {
    let data = descriptor.data.as_ref()?;
    let mut hasher = Hasher::new(descriptor.digest.algorithm());
    hasher.update(data);
    let is_good = data.len() as u64 == descriptor.size && hasher.finish() == descriptor.digest;
    if !is_good {
        tracing::warn!(digest = %descriptor.digest, "a descriptor's own data is not what it says");
    }
    is_good.then(|| data.clone())
}

async fn read(
    layout: &Arc<OciLayout>,
    descriptor: &Descriptor,
    max: u64,
) -> Result<Vec<u8>, Failure> {
    let (layout, descriptor) = (Arc::clone(layout), descriptor.clone());
    blocking(move || Ok(layout.read_blob(&descriptor, max)?)).await
}
