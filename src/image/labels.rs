//! Labels of content, as containerd writes them: what refers to what, and where it came from.

use std::collections::BTreeMap;

use peel_index::Digest;

use super::find::Found;
use crate::{
    metadata::{LABEL_GC_REF, LABEL_SOURCE, LABEL_UNCOMPRESSED},
    oci::{Descriptor, DocumentKind, Reference, references},
};

/// Labels by blob.
pub(super) type Labels = Vec<(Digest, BTreeMap<String, String>)>;

/// The labels of everything that a pull has found; source: containerd's pull and its
/// distribution labels.
pub(super) fn of_pull(reference: Option<&Reference>, found: &Found) -> Labels {
    let mut labels: Labels = Vec::new();
    for (digest, bytes) in &found.documents {
        // A config refers to nothing
        let children = references(*digest, bytes).unwrap_or_default();
        labels.push((*digest, of_children(&children)));
    }
    for (_, layer) in found.layers() {
        let uncompressed = (LABEL_UNCOMPRESSED.to_owned(), layer.diff_id.to_string());
        labels.push((layer.digest, BTreeMap::from([uncompressed])));
    }
    labels.extend(found.attached.iter().map(|blob| (blob.digest, BTreeMap::new())));
    if let Some(Reference::Registry(reference)) = reference {
        let repository = reference.repository();
        let key = format!("{LABEL_SOURCE}.{}", repository.host());
        for (_, labels) in &mut labels {
            labels.insert(key.clone(), repository.path().to_owned());
        }
    }
    labels
}

/// The labels of a manifest or an index with these children.
pub(super) fn of_children(children: &[Descriptor]) -> BTreeMap<String, String> {
    use DocumentKind::{Artifact, Config, Index, Manifest};
    let (mut manifests, mut layers) = (0, 0);
    let next = |counter: &mut usize, kind: &str| {
        *counter += 1;
        format!("{LABEL_GC_REF}.{kind}.{}", *counter - 1)
    };
    let labels = children.iter().map(|child| {
        let key = match DocumentKind::from_media_type(&child.media_type) {
            Some(Index | Manifest | Artifact) => next(&mut manifests, "m"),
            Some(Config) => format!("{LABEL_GC_REF}.config"),
            _ => next(&mut layers, "l"),
        };
        (key, child.digest.to_string())
    });
    labels.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{MEDIA_TYPE_OCI_CONFIG, MEDIA_TYPE_OCI_MANIFEST};

    #[test]
    fn children_are_numbered_by_kind() {
        let child = |media_type: &str, text: &str| {
            Descriptor::new(media_type, Digest::sha256(text.as_bytes()), 1)
        };
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let image = [child(MEDIA_TYPE_OCI_CONFIG, "c"), child(layer, "a"), child(layer, "b")];
        let labels = of_children(&image);
        let keys: Vec<_> = labels.keys().map(|key| key.replace(LABEL_GC_REF, "")).collect();
        assert_eq!(keys, [".config", ".l.0", ".l.1"]);
        assert_eq!(labels[&format!("{LABEL_GC_REF}.l.1")], Digest::sha256(b"b").to_string());
        let index = [child(MEDIA_TYPE_OCI_MANIFEST, "x"), child(MEDIA_TYPE_OCI_MANIFEST, "y")];
        let keys: Vec<_> = of_children(&index).into_keys().collect();
        assert_eq!(keys, [format!("{LABEL_GC_REF}.m.0"), format!("{LABEL_GC_REF}.m.1")]);
    }
}
