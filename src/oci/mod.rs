//! Names and documents of the OCI world: references, media types, platforms, manifests, configs.
//!
//! ```text
//! text ──Reference──▶ where an image is
//! bytes ──Manifest::parse──▶ ImageIndex ──Selection──▶ ImageManifest ──ImageConfig::parse──▶ config
//! ```
//!
//! Parsing, not validating: what leaves this module has digests that are digests, layers whose media
//! type is understood, and as many diffIDs as layers. The JSON shapes come from `oci_spec::image`.
//!
//! Architecture invariant: this module is pure. Bytes come in, structs go out; of peel's own code it
//! knows [`peel_index::Digest`] and nothing else.

mod config;
mod error;
mod json;
mod manifest;
mod media;
mod platform;
mod reference;
mod selection;

pub use config::{History, ImageConfig, MAX_CONFIG_SIZE};
pub use error::OciError;
pub use manifest::{
    Descriptor, ImageIndex, ImageManifest, LayerDescriptor, MAX_MANIFEST_SIZE, Manifest, references,
};
pub use media::{
    ACCEPTED_MANIFESTS, DocumentKind, LayerCompression, LayerKind, MEDIA_TYPE_DOCKER_CONFIG,
    MEDIA_TYPE_DOCKER_LIST, MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_OCI_CONFIG,
    MEDIA_TYPE_OCI_INDEX, MEDIA_TYPE_OCI_MANIFEST, essence,
};
pub use platform::{Platform, PlatformError};
pub use reference::{
    ArchiveReference, LayoutReference, Reference, ReferenceError, RegistryReference, Repository,
    Tag,
};
pub use selection::{MAX_INDEX_DEPTH, MAX_VISITS, Selection, Step};

/// Annotation of an index entry that holds the entry's name in an image layout.
///
/// Source: OCI image-spec, annotations.md.
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
