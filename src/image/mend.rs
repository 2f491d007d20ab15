//! Images put right again: blobs and documents fetched once more from where they came, indexes built
//! again from their blobs.

use std::sync::{Arc, atomic::AtomicBool};

use tokio_util::sync::CancellationToken;

use super::{Images, job::feed, pull::blocking, source::Source};
use crate::{
    failure::Failure,
    metadata::{ImageRecord, LayerRef},
    oci::{Descriptor, Manifest, Platform, Reference},
    registry::Anonymous,
};

/// A document of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is: `index`, `manifest` or `config`.
    pub kind: &'static str,
    /// Its descriptor.
    pub descriptor: Descriptor,
}

impl Images {
    /// Every document of an image with its descriptor, as those above it name it; `mend` is called
    /// for each that is not what it should be, and may put it right.
    ///
    /// Those below a document that stays damaged are left out: nothing says what they are. Blocks.
    ///
    /// # Errors
    /// The first error of `mend`.
    pub fn documents(
        &self,
        image: &ImageRecord,
        mut mend: impl FnMut(&Document, Failure) -> Result<(), Failure>,
    ) -> Result<Vec<Document>, Failure> {
        let top = image.target.descriptor();
        let others = || image.others.iter().map(|other| other.manifest);
        let is_manifest = |digest| digest == image.manifest || others().any(|m| m == digest);
        let kind = if is_manifest(top.digest) { "manifest" } else { "index" };
        let mut pending = vec![Document { kind, descriptor: top }];
        let mut found: Vec<Document> = Vec::new();
        while let Some(document) = pending.pop() {
            if found.iter().any(|d| d.descriptor.digest == document.descriptor.digest) {
                continue;
            }
            let digest = document.descriptor.digest;
            let mut bytes = self.document(&digest);
            if let Err(failure) = bytes {
                mend(&document, failure)?;
                bytes = self.document(&digest);
            }
            found.push(document.clone());
            let (Ok(bytes), "index" | "manifest") = (bytes, document.kind) else { continue };
            // It was parsed when it came in
            match Manifest::parse(&document.descriptor, &bytes) {
                Ok(Manifest::Image(manifest)) => {
                    pending.push(Document { kind: "config", descriptor: manifest.config });
                }
                Ok(Manifest::Index(index)) => {
                    pending.extend(index.manifests.into_iter().filter_map(|descriptor| {
                        let kind = if is_manifest(descriptor.digest) {
                            "manifest"
                        } else if image.indexes.contains(&descriptor.digest) {
                            "index"
                        } else {
                            return None;
                        };
                        Some(Document { kind, descriptor })
                    }))
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// Fetches a document again from where its image came from.
    ///
    /// # Errors
    /// Where it is not to be had there any more.
    pub async fn refetch_document(
        &self,
        image: &ImageRecord,
        document: &Document,
    ) -> Result<(), Failure> {
        let source = self.source_of(image).await?;
        let Document { kind, descriptor } = document;
        let bytes = match *kind {
            "config" => source.config(descriptor).await?,
            _ => source.manifest(descriptor).await?,
        };
        let flight = self.flight(descriptor.digest);
        let _alone = flight.lock().await;
        let (store, digest) = (Arc::clone(&self.store), descriptor.digest);
        blocking(move || {
            // What is there is damaged
            store.content.remove(&digest)?;
            store.put(&digest, &bytes)
        })
        .await
    }

    /// Fetches the blob of a layer again from where its image came from, in place of the one here.
    ///
    /// # Errors
    /// Where it is not to be had there any more.
    pub async fn refetch_layer(
        &self,
        image: &ImageRecord,
        layer: &LayerRef,
    ) -> Result<(), Failure> {
        let source = self.source_of(image).await?;
        let descriptor = Descriptor::new(&layer.media_type, layer.digest, layer.size);
        let flight = self.flight(layer.diff_id);
        let _alone = flight.lock().await;
        let blob = source.blob(&descriptor, 0).await?;
        let (store, wanted) = (Arc::clone(&self.store), layer.clone());
        let (never, in_thread) = (CancellationToken::new(), CancellationToken::new());
        let index = move |bytes| store.fetch(&wanted, bytes, false, &in_thread, &mut |_, _| {});
        feed(index, |_| async { Ok(blob) }, &never, &AtomicBool::new(false)).await?;
        self.store.layers.forget_open(&layer.diff_id);
        Ok(())
    }

    /// Builds the index of a layer again from its blob, in place of the one here. Blocks.
    ///
    /// # Errors
    /// Where the blob is gone or damaged, or the index cannot be written.
    pub fn index_again(&self, layer: &LayerRef) -> Result<(), Failure> {
        let flight = self.flight(layer.diff_id);
        let _alone = flight.blocking_lock();
        self.store.index_again(layer)
    }

    async fn source_of(&self, image: &ImageRecord) -> Result<Source, Failure> {
        let reference: Reference = image.name.parse()?;
        let wanted: Platform = image.platform.parse()?;
        // Nobody is there to ask for credentials
        let registry = Arc::new(self.registry.session(Arc::new(Anonymous)));
        Source::open(&registry, &reference, &wanted, &self.scratch()).await
    }
}
