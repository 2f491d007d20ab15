//! The way from whatever a reference names to the manifest of one image.
//!
//! Sans I/O: the caller fetches what a step asks for, from a registry or a directory, and gives the
//! bytes back.

use peel_index::Digest;

use super::{
    error::OciError,
    manifest::{Descriptor, ImageManifest, Manifest},
    media::DocumentKind,
    platform::Platform,
};

/// How deep indexes may be nested. In the field it is one; two where a layout's entry is an index.
pub const MAX_INDEX_DEPTH: usize = 4;

/// How many manifests and indexes are looked at for one image; a limit on hostile indexes whose
/// entries have no platform.
pub const MAX_VISITS: usize = 32;

/// A search for the image of a platform.
#[derive(Debug)]
pub struct Selection {
    wanted: Platform,
    root: Digest,
    visits: usize,
    /// What is still to be looked at, the best last, with its depth.
    pending: Vec<(Descriptor, usize)>,
    depth: usize,
    seen: Vec<Platform>,
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// Fetch this, and give its bytes to [`Selection::visit`].
    Fetch(Descriptor),
    /// This is the image; `platform` is what the index says about it. Where an index says nothing,
    /// the caller compares its config's platform and may call [`Selection::reject`].
    Image {
        /// The image's manifest.
        manifest: Box<ImageManifest>,
        /// Its platform by the index that lists it.
        platform: Option<Platform>,
    },
}

impl Selection {
    /// A search that begins at `root`, which may be a manifest itself.
    pub fn new(wanted: Platform, root: &Descriptor) -> Self {
        let root = root.digest;
        Self { wanted, root, visits: 0, pending: Vec::new(), depth: 0, seen: Vec::new() }
    }

    /// Looks at a fetched document: the root first, then what [`Step::Fetch`] asked for.
    pub fn visit(&mut self, descriptor: &Descriptor, bytes: &[u8]) -> Result<Step, OciError> {
        self.visits += 1;
        let index = match Manifest::parse(descriptor, bytes)? {
            Manifest::Image(manifest) => {
                return Ok(Step::Image { manifest, platform: descriptor.platform.clone() });
            }
            Manifest::Index(index) => index,
        };
        let depth = self.depth + 1;
        if depth > MAX_INDEX_DEPTH {
            return Err(self.too_deep("nested indexes", MAX_INDEX_DEPTH));
        }
        self.seen.extend(index.manifests.iter().filter_map(|entry| entry.platform.clone()));
        let mut ranked: Vec<(usize, Descriptor)> = index
            .manifests
            .into_iter()
            .filter(|entry| {
                // An entry that says what it is and is neither image nor index is passed over
                use DocumentKind::{Index, Manifest};
                matches!(DocumentKind::from_media_type(&entry.media_type), Some(Index | Manifest))
            })
            .filter_map(|entry| match &entry.platform {
                Some(platform) => self.wanted.rank(platform).map(|rank| (rank, entry)),
                None => Some((usize::MAX, entry)),
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        self.pending.extend(ranked.into_iter().rev().map(|(_, entry)| (entry, depth)));
        self.next()
    }

    /// Goes on after an image whose config turned out to be for another platform.
    pub fn reject(&mut self, found: Platform) -> Result<Step, OciError> {
        self.seen.push(found);
        self.next()
    }

    fn next(&mut self) -> Result<Step, OciError> {
        let Some((descriptor, depth)) = self.pending.pop() else {
            let mut found = std::mem::take(&mut self.seen);
            found.sort_by_key(Platform::to_string);
            found.dedup();
            return Err(OciError::NoPlatform {
                digest: self.root.into(),
                wanted: self.wanted.clone().into(),
                found,
            });
        };
        if self.visits >= MAX_VISITS {
            return Err(self.too_deep("manifests to look at", MAX_VISITS));
        }
        self.depth = depth;
        Ok(Step::Fetch(descriptor))
    }

    fn too_deep(&self, what: &'static str, limit: usize) -> OciError {
        OciError::TooDeep { digest: self.root.into(), what, limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{MEDIA_TYPE_OCI_CONFIG, MEDIA_TYPE_OCI_INDEX, MEDIA_TYPE_OCI_MANIFEST};
    use std::collections::HashMap;

    #[derive(Default)]
    struct Store(HashMap<Digest, Vec<u8>>);

    impl Store {
        fn put(&mut self, media_type: &str, text: String) -> Descriptor {
            let digest = Digest::sha256(text.as_bytes());
            let size = text.len() as u64;
            self.0.insert(digest, text.into_bytes());
            Descriptor::new(media_type, digest, size)
        }

        fn image(&mut self, name: &str, platform: Option<&str>) -> Descriptor {
            let config = Digest::sha256(name.as_bytes());
            let text = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{MEDIA_TYPE_OCI_CONFIG}","digest":"{config}","size":1}},"layers":[],"annotations":{{"name":"{name}"}}}}"#
            );
            let mut descriptor = self.put(MEDIA_TYPE_OCI_MANIFEST, text);
            descriptor.platform = platform.map(|p| p.parse().unwrap());
            descriptor
        }

        fn index(&mut self, entries: &[Descriptor]) -> Descriptor {
            let entries: Vec<String> = entries.iter().map(entry).collect();
            let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
            self.put(MEDIA_TYPE_OCI_INDEX, text)
        }

        /// Walks to the first image, or to the first that is not in `reject`.
        fn select(
            &self,
            wanted: &str,
            root: &Descriptor,
            reject: &[&str],
        ) -> Result<String, OciError> {
            let mut selection = Selection::new(wanted.parse().unwrap(), root);
            let mut step = selection.visit(root, &self.0[&root.digest])?;
            loop {
                step = match step {
                    Step::Fetch(next) => selection.visit(&next, &self.0[&next.digest])?,
                    Step::Image { manifest, .. } => {
                        let name = manifest.annotations["name"].clone();
                        if !reject.contains(&name.as_str()) {
                            return Ok(name);
                        }
                        selection.reject("linux/s390x".parse().unwrap())?
                    }
                };
            }
        }
    }

    fn entry(descriptor: &Descriptor) -> String {
        let platform = descriptor.platform.as_ref().map_or(String::new(), |p| {
            let variant = p.variant().map_or(String::new(), |v| format!(r#","variant":"{v}""#));
            format!(
                r#","platform":{{"os":"{}","architecture":"{}"{variant}}}"#,
                p.os(),
                p.architecture()
            )
        });
        format!(
            r#"{{"mediaType":"{}","digest":"{}","size":{}{platform}}}"#,
            descriptor.media_type, descriptor.digest, descriptor.size
        )
    }

    #[test]
    fn the_best_platform_is_taken() {
        let mut store = Store::default();
        let arm6 = store.image("arm6", Some("linux/arm/v6"));
        let arm7 = store.image("arm7", Some("linux/arm/v7"));
        let amd = store.image("amd", Some("linux/amd64"));
        let attestation = store.image("attestation", Some("unknown/unknown"));
        let root = store.index(&[attestation, arm6, arm7, amd]);
        assert_eq!(store.select("linux/amd64", &root, &[]).unwrap(), "amd");
        assert_eq!(store.select("linux/arm/v7", &root, &[]).unwrap(), "arm7");
        assert_eq!(store.select("linux/arm/v6", &root, &[]).unwrap(), "arm6");
        assert_eq!(store.select("linux/arm64", &root, &[]).unwrap(), "arm7");
        let error = store.select("linux/s390x", &root, &[]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("linux/s390x, found: linux/amd64, linux/arm/v6"), "{message}");
        assert!(error.hint().unwrap().contains("--platform"));
    }

    #[test]
    fn a_lone_manifest_is_the_image() {
        let mut store = Store::default();
        let image = store.image("only", None);
        assert_eq!(store.select("linux/riscv64", &image, &[]).unwrap(), "only");
    }

    #[test]
    fn nested_indexes_and_entries_without_platform_are_searched() {
        let mut store = Store::default();
        let arm = store.image("arm", Some("linux/arm64"));
        let first = store.index(&[arm]);
        let amd = store.image("amd", Some("linux/amd64"));
        let plain = store.image("plain", None);
        let second = store.index(&[plain, amd]);
        let root = store.index(&[first, second]);
        assert_eq!(store.select("linux/amd64", &root, &[]).unwrap(), "amd");
        assert_eq!(store.select("linux/arm64", &root, &[]).unwrap(), "arm");
        assert_eq!(store.select("linux/ppc64le", &root, &[]).unwrap(), "plain");
        let error = store.select("linux/ppc64le", &root, &["plain"]).unwrap_err();
        assert!(error.to_string().contains("linux/s390x"), "{error}");
    }

    #[test]
    fn depth_and_number_are_bounded() {
        let mut store = Store::default();
        let mut deep = store.image("bottom", None);
        for _ in 0..=MAX_INDEX_DEPTH {
            deep = store.index(&[deep]);
        }
        let error = store.select("linux/amd64", &deep, &[]).unwrap_err();
        assert!(matches!(error, OciError::TooDeep { limit: MAX_INDEX_DEPTH, .. }), "{error}");
        let names: Vec<String> = (0..=MAX_VISITS).map(|n| n.to_string()).collect();
        let many: Vec<_> = names.iter().map(|name| store.image(name, None)).collect();
        let wide = store.index(&many);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let error = store.select("linux/amd64", &wide, &names).unwrap_err();
        assert!(matches!(error, OciError::TooDeep { limit: MAX_VISITS, .. }), "{error}");
    }
}
