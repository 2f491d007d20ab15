//! The layers of an image in a registry one at a time, for a caller that asks in an order of its
//! own.

use std::{path::Path, sync::Arc};

use peel_index::{Digest, chain_id};
use tokio_util::sync::CancellationToken;

use super::{Images, cancelled, find::find, ingest::Wanted, job::Job, source::Source};
use crate::{
    failure::Failure,
    metadata::LayerRef,
    oci::{LayerDescriptor, Platform, Reference},
    registry::Credentials,
};

/// An image whose manifest and config are known.
pub struct RemoteImage {
    source: Arc<Source>,
    layers: Vec<(LayerDescriptor, LayerRef)>,
}

impl RemoteImage {
    /// How many layers it has.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// One of its layers, counted from the lowest.
    pub fn layer(&self, number: usize) -> Option<&LayerRef> {
        self.layers.get(number).map(|(_, layer)| layer)
    }

    /// The number of the layer up to which the chainID is that one.
    pub fn find(&self, chain: &Digest) -> Option<usize> {
        let diff_ids: Vec<_> = self.layers.iter().map(|(_, layer)| layer.diff_id).collect();
        (0..diff_ids.len()).find(|last| chain_id(&diff_ids[..=*last]).as_ref() == Some(chain))
    }
}

impl Images {
    /// Finds out which layers an image has; fetches none.
    ///
    /// # Errors
    /// Where the reference, the registry or a document is not what it should be.
    pub async fn resolve(
        &self,
        reference: &str,
        credentials: Arc<dyn Credentials>,
    ) -> Result<RemoteImage, Failure> {
        let reference: Reference = reference.parse()?;
        let wanted = Platform::host();
        let registry = Arc::new(self.registry.session(credentials));
        let source = Arc::new(Source::open(&registry, &reference, &wanted, &self.scratch()).await?);
        let image = find(&source, wanted).await?.image;
        let layers = image.manifest.layers.into_iter().zip(image.layers).collect();
        Ok(RemoteImage { source, layers })
    }

    /// Fetches, verifies and indexes one layer; nothing is done for one that is here already.
    ///
    /// `local` is a file that may hold its blob: it is read instead where it does. The caller keeps
    /// GC away until a record names the layer.
    ///
    /// # Errors
    /// Where the layer cannot be had or is not what it should be, or `cancel` calls it off.
    pub async fn fetch_layer(
        &self,
        image: &RemoteImage,
        number: usize,
        local: Option<&Path>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let Some((descriptor, layer)) = image.layers.get(number) else { return Err(cancelled()) };
        if let Some(path) = local
            && !self.is_here(layer).await?
        {
            match self.adopt(path, Wanted::from(layer), cancel).await {
                Err(error) if !cancel.is_cancelled() => {
                    tracing::warn!(layer = %layer.digest, %error, "a local blob is of no use");
                }
                done => return done.map(drop),
            }
        }
        let job = Job {
            store: Arc::clone(&self.store),
            source: Arc::clone(&image.source),
            flight: self.flight(layer.diff_id),
            descriptor: descriptor.clone(),
            layer: layer.clone(),
            number,
            events: Arc::new(|_| {}),
            call_off: cancel.clone(),
        };
        // Never closed
        let _place = Arc::clone(&self.store.places).acquire_owned().await;
        job.run().await
    }
}
