//! Media types, and what they say about a document or a layer.
//!
//! Sources: OCI image-spec, media-types.md; Docker's image manifest version 2, schema 2.

/// An OCI image manifest.
pub const MEDIA_TYPE_OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index.
pub const MEDIA_TYPE_OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image config.
pub const MEDIA_TYPE_OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A Docker image manifest of schema 2.
pub const MEDIA_TYPE_DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A Docker manifest list.
pub const MEDIA_TYPE_DOCKER_LIST: &str =
    "application/vnd.docker.distribution.manifest.list.v2+json";
/// A Docker image config.
pub const MEDIA_TYPE_DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const MEDIA_TYPE_DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const MEDIA_TYPE_DOCKER_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const MEDIA_TYPE_OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// What a registry is asked for, in order of preference.
pub const ACCEPTED_MANIFESTS: [&str; 4] = [
    MEDIA_TYPE_OCI_INDEX,
    MEDIA_TYPE_OCI_MANIFEST,
    MEDIA_TYPE_DOCKER_LIST,
    MEDIA_TYPE_DOCKER_MANIFEST,
];

/// What a document is, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentKind {
    /// The manifest of one image.
    Manifest,
    /// An index of manifests: an OCI index or a Docker manifest list.
    Index,
    /// The config of an image.
    Config,
    /// A Docker manifest of schema 1, which peel refuses.
    Schema1,
    /// A manifest of something that is no image.
    Artifact,
}

impl DocumentKind {
    /// The kind that a media type names; parameters and case do not matter.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match essence(media_type).as_str() {
            MEDIA_TYPE_OCI_MANIFEST | MEDIA_TYPE_DOCKER_MANIFEST => Some(Self::Manifest),
            MEDIA_TYPE_OCI_INDEX | MEDIA_TYPE_DOCKER_LIST => Some(Self::Index),
            MEDIA_TYPE_OCI_CONFIG | MEDIA_TYPE_DOCKER_CONFIG => Some(Self::Config),
            MEDIA_TYPE_DOCKER_SCHEMA1 | MEDIA_TYPE_DOCKER_SIGNED => Some(Self::Schema1),
            MEDIA_TYPE_OCI_ARTIFACT => Some(Self::Artifact),
            _ => None,
        }
    }
}

/// How the media type says that a layer's tar is compressed. The bytes decide in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// A plain tar.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// What a layer's media type says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerKind {
    /// How its tar is compressed.
    pub compression: LayerCompression,
    /// Whether registries keep it elsewhere, to be fetched from the descriptor's `urls`
    /// ("foreign", "nondistributable").
    pub foreign: bool,
}

impl LayerKind {
    /// The kind that a media type names; `None` for what is no tar layer.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        let essence = essence(media_type);
        STEMS.iter().find_map(|(stem, foreign)| {
            let compression = match essence.strip_prefix(stem)? {
                "" => LayerCompression::Plain,
                "+gzip" | ".gzip" => LayerCompression::Gzip,
                "+zstd" | ".zstd" => LayerCompression::Zstd,
                _ => return None,
            };
            Some(Self { compression, foreign: *foreign })
        })
    }
}

/// How media types of layers begin, and whether those are foreign. OCI joins the compression with a
/// plus sign and Docker with a dot; writers mix them up.
const STEMS: [(&str, bool); 4] = [
    ("application/vnd.oci.image.layer.v1.tar", false),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", true),
    ("application/vnd.docker.image.rootfs.diff.tar", false),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", true),
];

/// A media type without its parameters, in lower case.
pub fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_classified() {
        use LayerCompression::{Gzip, Plain, Zstd};
        let table = [
            ("application/vnd.oci.image.layer.v1.tar", Some((Plain, false))),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some((Gzip, false))),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some((Zstd, false))),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar", Some((Plain, true))),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some((Gzip, true))),
            ("application/vnd.docker.image.rootfs.diff.tar", Some((Plain, false))),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some((Gzip, false))),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Some((Zstd, false))),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some((Gzip, true))),
            ("Application/vnd.oci.image.layer.v1.tar+gzip; x=y", Some((Gzip, false))),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tarball", None),
            ("application/vnd.in-toto+json", None),
            ("", None),
        ];
        for (media_type, expected) in table {
            let kind = LayerKind::from_media_type(media_type);
            assert_eq!(kind.map(|k| (k.compression, k.foreign)), expected, "{media_type}");
        }
    }

    #[test]
    fn documents_are_classified() {
        let kind = DocumentKind::from_media_type;
        for media_type in ACCEPTED_MANIFESTS {
            assert!(matches!(kind(media_type), Some(DocumentKind::Manifest | DocumentKind::Index)));
        }
        let with_parameter = format!("{MEDIA_TYPE_OCI_INDEX}; charset=utf-8");
        assert_eq!(kind(&with_parameter), Some(DocumentKind::Index));
        assert_eq!(kind(MEDIA_TYPE_DOCKER_SIGNED), Some(DocumentKind::Schema1));
        assert_eq!(kind("application/json"), None);
    }
}
