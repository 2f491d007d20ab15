//! Where an image comes from: a registry, or an image layout on this disk.

use std::{fs::File, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};

use super::pull::blocking;
use crate::{
    content::OciLayout,
    failure::{Class, Failure},
    oci::{Descriptor, MAX_CONFIG_SIZE, MAX_MANIFEST_SIZE, Platform, Reference, RegistryReference},
    registry::Registry,
};

/// The compressed bytes of a layer.
pub(super) enum Blob {
    /// As they arrive.
    Stream(BoxStream<'static, Result<Bytes, Failure>>),
    /// A file here.
    File(File),
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
            Reference::OciArchive(_) | Reference::DockerArchive(_) => {
                let message = format!("cannot pull from an archive yet: {reference}");
                Err(Failure::new(Class::Usage, message)
                    .hint("unpack it to a layout first: skopeo copy oci-archive:FILE oci:DIR:TAG"))
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
        match self {
            Self::Registry { registry, reference } => {
                Ok(registry.manifest(reference.repository(), descriptor).await?.to_vec())
            }
            Self::Layout { layout, .. } => read(layout, descriptor, MAX_MANIFEST_SIZE).await,
        }
    }

    /// A config, verified.
    pub(super) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Registry { registry, reference } => {
                let repository = reference.repository();
                Ok(registry.read_blob(repository, descriptor, MAX_CONFIG_SIZE).await?.to_vec())
            }
            Self::Layout { layout, .. } => read(layout, descriptor, MAX_CONFIG_SIZE).await,
        }
    }

    /// A layer; not verified yet.
    pub(super) async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, Failure> {
        match self {
            Self::Registry { registry, reference } => {
                let stream = registry.blob(reference.repository(), descriptor).await?;
                Ok(Blob::Stream(stream.map(|chunk| chunk.map_err(Failure::from)).boxed()))
            }
            Self::Layout { layout, .. } => {
                let (layout, descriptor) = (Arc::clone(layout), descriptor.clone());
                blocking(move || Ok(Blob::File(layout.open_blob(&descriptor)?))).await
            }
        }
    }
}

async fn read(
    layout: &Arc<OciLayout>,
    descriptor: &Descriptor,
    max: u64,
) -> Result<Vec<u8>, Failure> {
    let (layout, descriptor) = (Arc::clone(layout), descriptor.clone());
    blocking(move || Ok(layout.read_blob(&descriptor, max)?)).await
}
