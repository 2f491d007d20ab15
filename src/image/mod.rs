//! Images: pull, which fetches, verifies and indexes in one pass, and the records of what is here.
//!
//! ```text
//! reference ─▶ manifest (platform chosen) ─▶ config ─▶ layers, a few at a time:
//!   bytes ─▶ content ingest ─┐
//!         └▶ LayerBuilder ───┴─▶ digest and diffID agree ─▶ blob and index in place
//! record last: an image is there as a whole or not at all
//! ```
//! Locking: one asynchronous mutex a diffID or document, so that each is fetched, stored and indexed
//! once however many pulls want it. No two are held at once.

mod adopt;
mod cores;
mod export;
mod failures;
mod find;
mod import;
mod ingest;
mod job;
mod labels;
mod layer;
mod lease;
mod make;
mod mend;
mod pull;
mod push;
mod remote;
mod source;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use peel_index::{Digest, Slot};
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;

use self::{cores::Cores, lease::Running};
pub use self::{
    export::{ArchiveFormat, ExportOptions},
    import::ImportOptions,
    layer::Compression,
    lease::LEASE_NS,
    make::{CommitOptions, new_name},
    mend::Document,
    pull::PullOptions,
    push::{PushOptions, Pushed},
    remote::RemoteImage,
};
use crate::{
    content::ContentStore,
    failure::{Class, Failure},
    layers::Layers,
    metadata::{ImageRecord, LayerRef, Metadata},
    oci::{Descriptor, ImageConfig, MAX_CONFIG_SIZE, Manifest},
    registry::{Registry, RegistryOptions},
};

/// Layers on their way at a time, over all pulls. Each has a thread, a connection, and buffers of
/// some megabytes; with more than this, pulls only get into each other's way.
pub const LAYERS_AT_ONCE: usize = 32;

/// Gives out slots, each once.
pub trait NewSlot: Send + Sync {
    /// A slot that was never used.
    ///
    /// # Errors
    /// Where the store that counts fails, or all slots are used.
    fn next(&self) -> Result<Slot, Failure>;
}

/// How far a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not begun.
    Waiting,
    /// Fetched and indexed.
    Running,
    /// In place.
    Done,
    /// It was there already.
    Exists,
    /// Of a push: the registry had it in another repository.
    Mounted,
}

/// Progress of one layer.
#[derive(Debug, Clone)]
pub struct LayerProgress {
    /// Its place in the manifest, lowest first.
    pub index: usize,
    /// The blob.
    pub digest: Digest,
    /// How far.
    pub stage: Stage,
    /// Compressed bytes so far.
    pub received: u64,
    /// Compressed bytes in all.
    pub size: u64,
    /// Bytes of uncompressed tar indexed so far.
    pub indexed: u64,
}

/// What a pull or a push tells while it runs.
#[derive(Debug, Clone)]
pub enum PullEvent {
    /// The manifest is known.
    Resolved {
        /// Canonical reference.
        name: String,
        /// The platform's manifest.
        manifest: Digest,
        /// All layers, lowest first.
        layers: Vec<LayerProgress>,
    },
    /// A layer moved on.
    Layer(LayerProgress),
}

/// Takes the events of a pull or a push; called from several threads.
pub type Events = Arc<dyn Fn(PullEvent) + Send + Sync>;

/// See the module.
pub struct Images {
    store: Arc<Store>,
    registry: Registry,
    in_flight: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    gate: Arc<RwLock<()>>,
    running: Arc<Running>,
}

/// What the indexing threads share.
struct Store {
    content: Arc<ContentStore>,
    layers: Arc<Layers>,
    metadata: Arc<Metadata>,
    slots: Arc<dyn NewSlot>,
    cores: Cores,
    /// Layers that may be on their way, over all pulls.
    places: Arc<Semaphore>,
}

impl Images {
    /// Images over the stores. GC holds `gate` alone while it looks and removes.
    ///
    /// # Errors
    /// Where no registry client can be made.
    pub fn new(
        content: Arc<ContentStore>,
        layers: Arc<Layers>,
        metadata: Arc<Metadata>,
        slots: Arc<dyn NewSlot>,
        network: RegistryOptions,
        gate: Arc<RwLock<()>>,
    ) -> Result<Self, Failure> {
        let (cores, places) = (Cores::new(), Arc::new(Semaphore::new(LAYERS_AT_ONCE)));
        Ok(Self {
            store: Arc::new(Store { content, layers, metadata, slots, cores, places }),
            registry: Registry::new(network)?,
            in_flight: Mutex::default(),
            gate,
            running: Arc::default(),
        })
    }

    /// The bytes of a manifest, index or config that is here, verified again.
    ///
    /// # Errors
    /// Where it is not here, or its bytes are not those of its digest.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>, Failure> {
        Ok(self.store.content.read_blob(digest, MAX_CONFIG_SIZE)?)
    }

    /// The config of an image that is here.
    ///
    /// # Errors
    /// Where it, or the manifest, is not here or is damaged.
    pub fn config(&self, image: &ImageRecord) -> Result<ImageConfig, Failure> {
        let bytes = self.document(&image.manifest)?;
        let descriptor = Descriptor::new(&image.manifest_type, image.manifest, bytes.len() as u64);
        let Manifest::Image(manifest) = Manifest::parse(&descriptor, &bytes)? else {
            let message = format!("{} is no image manifest but an index", image.manifest);
            return Err(Failure::new(Class::BadData, message));
        };
        Ok(ImageConfig::parse(&manifest, &self.document(&image.config)?)?)
    }

    /// Indexes again, from the local blob, each of an image's layers that has no usable index.
    ///
    /// Blocks; not for a task.
    ///
    /// # Errors
    /// Where a blob is gone or damaged.
    pub fn ensure_indexed(&self, layers: &[LayerRef]) -> Result<(), Failure> {
        for layer in layers {
            let flight = self.flight(layer.diff_id);
            let _alone = flight.blocking_lock();
            if self.store.layer_is_usable(layer) {
                continue;
            }
            tracing::warn!(layer = %layer.digest, "indexing again");
            self.store.index_local(layer, &CancellationToken::new())?;
        }
        Ok(())
    }

    /// Writes content/index.json, by which other tools find the images.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_index(&self) -> Result<(), Failure> {
        self.store.write_index()
    }

    fn flight(&self, digest: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| Arc::strong_count(flight) > 1);
        Arc::clone(flights.entry(digest).or_default())
    }
}

fn cancelled() -> Failure {
    Failure::new(Class::Other, "the pull was called off")
}
