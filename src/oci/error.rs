//! Why a document does not describe an image that peel can use.

use peel_index::{Digest, DigestError};

use super::platform::Platform;

/// What is wrong with a manifest, an index or a config.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// No JSON, or not the JSON that its media type promises; the source says where.
    #[error("{what} {digest} is malformed")]
    Json {
        /// `manifest`, `index` or `config`.
        what: &'static str,
        /// The document.
        digest: Box<Digest>,
        /// What serde_json says, with line and column.
        source: serde_json::Error,
    },
    /// A document larger than anyone needs.
    #[error("{what} {digest} is too large: expected at most {limit} bytes, found: {found}")]
    TooLarge {
        /// `manifest` or `config`.
        what: &'static str,
        /// The document.
        digest: Box<Digest>,
        /// Largest size in bytes.
        limit: u64,
        /// Its size in bytes.
        found: u64,
    },
    /// Media type and content disagree, or the content could be read in two ways.
    #[error("document {digest}: expected {expected}, found: {found}")]
    Kind {
        /// The document.
        digest: Box<Digest>,
        /// What its media type promises.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A Docker manifest of schema 1.
    #[error("manifest {digest}: expected schema version 2, found: Docker schema 1")]
    Schema1 {
        /// The manifest.
        digest: Box<Digest>,
    },
    /// The manifest of a signature, a chart, a module, an attestation, ….
    #[error("manifest {digest} is no container image: expected an image config, found: {found}")]
    Artifact {
        /// The manifest.
        digest: Box<Digest>,
        /// Its artifact type, else its config's media type.
        found: String,
    },
    /// A layer that is no tar, or compressed or encrypted in an unknown way.
    #[error("layer {layer} of manifest {digest}: expected a tar layer, found: {found:?}")]
    LayerType {
        /// The manifest.
        digest: Box<Digest>,
        /// The layer.
        layer: Box<Digest>,
        /// Its media type.
        found: String,
    },
    /// A descriptor's digest is none, or of an unknown algorithm.
    #[error("{what} {digest}, at {position}")]
    Digest {
        /// `manifest`, `index` or `config`.
        what: &'static str,
        /// The document.
        digest: Box<Digest>,
        /// Where in it, as in `layers[2].digest`.
        position: String,
        /// What is wrong.
        source: DigestError,
    },
    /// A descriptor says that there is nothing.
    #[error("{what} {digest}, at {position}: expected a size above zero, found: 0")]
    NoSize {
        /// `manifest` or `index`.
        what: &'static str,
        /// The document.
        digest: Box<Digest>,
        /// Where in it, as in `layers[2].size`.
        position: String,
    },
    /// The config lists another number of diffIDs than the manifest has layers.
    #[error("config {digest}: expected {expected} diffIDs for as many layers, found: {found}")]
    LayerCount {
        /// The config.
        digest: Box<Digest>,
        /// Layers of the manifest.
        expected: usize,
        /// diffIDs of the config.
        found: usize,
    },
    /// A rootfs that is not made of layers.
    #[error("config {digest}: expected a rootfs of type \"layers\", found: {found:?}")]
    RootFs {
        /// The config.
        digest: Box<Digest>,
        /// Its type.
        found: String,
    },
    /// Nothing in the index runs on the platform.
    #[error("index {digest} has no image for {wanted}, found: {}", list(found))]
    NoPlatform {
        /// The index.
        digest: Box<Digest>,
        /// The platform that was asked for.
        wanted: Box<Platform>,
        /// What there is.
        found: Vec<Platform>,
    },
    /// Indexes within indexes without end.
    #[error("index {digest}: expected at most {limit} {what}, found more")]
    TooDeep {
        /// The outermost index.
        digest: Box<Digest>,
        /// `nested indexes` or `manifests to look at`.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}

impl OciError {
    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Schema1 { .. } => {
                Some("push the image again with a current tool: schema 1 has no verifiable layers")
            }
            Self::Artifact { .. } => Some("name an image; this is another kind of artifact"),
            Self::LayerType { found, .. } if found.ends_with("+encrypted") => {
                Some("decrypt the image first, for example with: skopeo copy --decryption-key")
            }
            Self::NoPlatform { .. } => Some("choose one of those with: --platform OS/ARCH"),
            _ => None,
        }
    }
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none with a platform".to_owned();
    }
    let mut names: Vec<String> = platforms.iter().take(32).map(Platform::to_string).collect();
    if platforms.len() > names.len() {
        names.push("…".to_owned());
    }
    names.join(", ")
}
