//! Manifests and indexes, from bytes whose digest has been verified.
//!
//! Sources: OCI image-spec, manifest.md and image-index.md; a document that could be read both as
//! a manifest and as an index is refused (CVE-2021-41190).

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use oci_spec::image as spec;
use peel_index::Digest;
use serde::Deserialize;

use super::{
    error::OciError,
    json,
    media::{DocumentKind, LayerKind},
    platform::Platform,
};

/// Largest manifest or index in bytes: what registries have to take, and most take no more.
///
/// Source: OCI distribution-spec, "Pushing Manifests".
pub const MAX_MANIFEST_SIZE: u64 = 4 << 20;

/// A reference to content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What the content is, as written.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// For an entry of an index: where it runs.
    pub platform: Option<Platform>,
    /// Annotations of the descriptor.
    pub annotations: BTreeMap<String, String>,
    /// The content itself, as the descriptor has it; nobody has verified it.
    pub data: Option<Bytes>,
}

impl Descriptor {
    /// A descriptor without platform, annotations and content.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        let (media_type, annotations) = (media_type.into(), BTreeMap::new());
        Self { media_type, digest, size, platform: None, annotations, data: None }
    }
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob, compressed as it is.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// The media type, as written.
    pub media_type: String,
    /// What the media type means.
    pub kind: LayerKind,
    /// Where a foreign layer can be fetched.
    pub urls: Vec<String>,
    /// Annotations of the descriptor.
    pub annotations: BTreeMap<String, String>,
    /// The content itself, as the descriptor has it; nobody has verified it.
    pub data: Option<Bytes>,
}

impl LayerDescriptor {
    /// The plain descriptor of the blob.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest,
            size: self.size,
            platform: None,
            annotations: self.annotations.clone(),
            data: self.data.clone(),
        }
    }
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    /// The manifest's own digest.
    pub digest: Digest,
    /// The image's config.
    pub config: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<LayerDescriptor>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// An index of manifests, or of further indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageIndex {
    /// The index's own digest.
    pub digest: Digest,
    /// Its entries, in its order.
    pub manifests: Vec<Descriptor>,
    /// Annotations of the index.
    pub annotations: BTreeMap<String, String>,
}

/// What a manifest's bytes turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// One image.
    Image(Box<ImageManifest>),
    /// Several.
    Index(ImageIndex),
}

/// The parts that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
    /// Only artifact manifests of an early draft have it.
    blobs: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Parses the bytes that `descriptor` names; their digest has to be verified by the caller.
    ///
    /// The descriptor's media type may be a vague one such as `application/json`: then the
    /// document's own type and shape decide.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self, OciError> {
        let digest = descriptor.digest;
        check_size("manifest", digest, bytes, MAX_MANIFEST_SIZE)?;
        let probe: Probe = serde_json::from_slice(bytes).map_err(|source| OciError::Json {
            what: "manifest",
            digest: digest.into(),
            source,
        })?;
        match kind_of(&probe, descriptor)? {
            DocumentKind::Index => ImageIndex::parse(digest, bytes).map(Self::Index),
            _ => ImageManifest::parse(digest, bytes).map(|image| Self::Image(Box::new(image))),
        }
    }
}

impl ImageManifest {
    fn parse(digest: Digest, bytes: &[u8]) -> Result<Self, OciError> {
        let what = "manifest";
        let manifest: spec::ImageManifest = json::parse(bytes, &["/layers"])
            .map_err(|source| OciError::Json { what, digest: digest.into(), source })?;
        let at = |position: &str| At { what, digest, position: position.to_owned() };
        let config = at("config").descriptor(manifest.config())?;
        // What is no image often has a config without content, so this comes before its size
        if DocumentKind::from_media_type(&config.media_type) != Some(DocumentKind::Config) {
            let found = match manifest.artifact_type() {
                Some(artifact) => artifact.to_string(),
                None => config.media_type,
            };
            return Err(OciError::Artifact { digest: digest.into(), found });
        }
        let layer = |(number, layer): (usize, &spec::Descriptor)| {
            let at = at(&format!("layers[{number}]"));
            let Descriptor { media_type, digest: blob, size, annotations, data, .. } =
                at.descriptor(layer)?;
            let Some(kind) = LayerKind::from_media_type(&media_type) else {
                return Err(OciError::LayerType {
                    digest: digest.into(),
                    layer: blob.into(),
                    found: media_type,
                });
            };
            at.sized(size)?;
            let urls = layer.urls().clone().unwrap_or_default();
            Ok(LayerDescriptor { digest: blob, size, media_type, kind, urls, annotations, data })
        };
        at("config").sized(config.size)?;
        Ok(Self {
            digest,
            config,
            layers: manifest.layers().iter().enumerate().map(layer).collect::<Result<_, _>>()?,
            annotations: sorted(manifest.annotations()),
        })
    }
}

impl ImageIndex {
    /// Parses an index, the `index.json` of an image layout included.
    pub fn parse(digest: Digest, bytes: &[u8]) -> Result<Self, OciError> {
        let what = "index";
        check_size(what, digest, bytes, MAX_MANIFEST_SIZE)?;
        let index: spec::ImageIndex = json::parse(bytes, &["/manifests"])
            .map_err(|source| OciError::Json { what, digest: digest.into(), source })?;
        let entry = |(number, entry): (usize, &spec::Descriptor)| {
            let at = At { what, digest, position: format!("manifests[{number}]") };
            let descriptor = at.descriptor(entry)?;
            at.sized(descriptor.size)?;
            Ok(descriptor)
        };
        Ok(Self {
            digest,
            manifests: index.manifests().iter().enumerate().map(entry).collect::<Result<_, _>>()?,
            annotations: sorted(index.annotations()),
        })
    }
}

/// Everything that a manifest or an index of any kind names: what has to be there for it to be
/// whole. What is no image has blobs of any media type, and sizes of zero.
pub fn references(digest: Digest, bytes: &[u8]) -> Result<Vec<Descriptor>, OciError> {
    #[derive(Deserialize)]
    struct Named {
        config: Option<spec::Descriptor>,
        #[serde(default)]
        layers: Vec<spec::Descriptor>,
        #[serde(default)]
        blobs: Vec<spec::Descriptor>,
        #[serde(default)]
        manifests: Vec<spec::Descriptor>,
    }
    let what = "manifest";
    check_size(what, digest, bytes, MAX_MANIFEST_SIZE)?;
    let named: Named = json::parse(bytes, &["/layers", "/manifests", "/blobs"])
        .map_err(|source| OciError::Json { what, digest: digest.into(), source })?;
    let at = At { what, digest, position: "descriptors".to_owned() };
    let all = named.config.iter().chain(&named.layers).chain(&named.blobs).chain(&named.manifests);
    all.map(|found| at.descriptor(found)).collect()
}

/// Where in a document a descriptor stands.
struct At {
    what: &'static str,
    digest: Digest,
    position: String,
}

impl At {
    fn descriptor(&self, found: &spec::Descriptor) -> Result<Descriptor, OciError> {
        let digest = found.digest().as_ref().parse().map_err(|source| OciError::Digest {
            what: self.what,
            digest: self.digest.into(),
            position: format!("{}.digest", self.position),
            source,
        })?;
        let platform = found.platform().as_ref().map(|p| {
            Platform::new(
                &p.os().to_string(),
                &p.architecture().to_string(),
                p.variant().as_deref(),
            )
        });
        Ok(Descriptor {
            media_type: found.media_type().to_string(),
            digest,
            size: found.size(),
            platform,
            annotations: sorted(found.annotations()),
            // What is no base64 is nothing, and is fetched
            data: found
                .data()
                .as_ref()
                .and_then(|data| STANDARD.decode(data).ok())
                .map(Bytes::from),
        })
    }

    fn sized(&self, size: u64) -> Result<(), OciError> {
        if size > 0 {
            return Ok(());
        }
        let position = format!("{}.size", self.position);
        Err(OciError::NoSize { what: self.what, digest: self.digest.into(), position })
    }
}

/// The kind of a document: what it says itself, else what its descriptor says, else its shape.
fn kind_of(probe: &Probe, descriptor: &Descriptor) -> Result<DocumentKind, OciError> {
    use DocumentKind::{Artifact, Index, Manifest, Schema1};
    let digest = descriptor.digest;
    let own = probe.media_type.as_deref().and_then(DocumentKind::from_media_type);
    let declared = DocumentKind::from_media_type(&descriptor.media_type);
    if probe.schema_version == Some(1) || probe.fs_layers.is_some() || own == Some(Schema1) {
        return Err(OciError::Schema1 { digest: digest.into() });
    }
    let artifact = probe.blobs.is_some() && probe.layers.is_none() && probe.manifests.is_none();
    if own == Some(Artifact) || artifact {
        let found = probe.media_type.clone().unwrap_or_else(|| descriptor.media_type.clone());
        return Err(OciError::Artifact { digest: digest.into(), found });
    }
    let mismatch = |expected, found: &str| {
        Err(OciError::Kind { digest: digest.into(), expected, found: found.to_owned() })
    };
    let shape = match (&probe.manifests, probe.layers.is_some() || probe.config.is_some()) {
        (Some(_), true) => return mismatch("a manifest or an index", "both in one document"),
        (Some(_), false) => Some(Index),
        (None, true) => Some(Manifest),
        (None, false) => None,
    };
    let name = |kind| {
        if kind == Index { "an index" } else { "a manifest" }
    };
    for promised in [own, declared].into_iter().flatten() {
        match shape {
            Some(shape) if shape != promised => return mismatch(name(promised), name(shape)),
            _ => {}
        }
    }
    match own.or(declared).or(shape) {
        Some(kind @ (Index | Manifest)) => Ok(kind),
        _ => mismatch("a manifest or an index", "neither layers nor manifests"),
    }
}

pub(super) fn check_size(
    what: &'static str,
    digest: Digest,
    bytes: &[u8],
    limit: u64,
) -> Result<(), OciError> {
    let found = bytes.len() as u64;
    if found > limit {
        return Err(OciError::TooLarge { what, digest: digest.into(), limit, found });
    }
    Ok(())
}

pub(super) fn sorted(
    map: &Option<std::collections::HashMap<String, String>>,
) -> BTreeMap<String, String> {
    map.iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests;
