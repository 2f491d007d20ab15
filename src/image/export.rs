//! Export: archives that other tools load, with the blobs byte for byte as they came.
//!
//! ```text
//! oci      blobs/<alg>/<hex> index.json manifest.json oci-layout    as containerd writes it: an
//!          image layout that Docker loads as well
//! docker   <config>.json <diffID>/layer.tar manifest.json           layers uncompressed
//! ```
//! The same images give the same archive: files are sorted and have no time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
    sync::Arc,
};

use peel_index::Digest;
use serde_json::{Value, json};

use super::{Images, Store, import::ANNOTATION_FULL_NAME, lease::Goods, pull::blocking};
use crate::{
    failure::{Class, Failure},
    metadata::ImageRecord,
    oci::{ANNOTATION_REF_NAME, Descriptor, MAX_CONFIG_SIZE, MEDIA_TYPE_OCI_INDEX, Reference},
};

/// What an archive looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// A tar of an image layout.
    Oci,
    /// What `docker save` wrote before it wrote that.
    Docker,
}

/// What is to be exported.
pub struct ExportOptions {
    /// The images.
    pub images: Vec<ImageRecord>,
    /// As what.
    pub format: ArchiveFormat,
    /// All that their indexes name, or nothing.
    pub all_platforms: bool,
}

/// A file of an archive.
enum Content {
    Bytes(Vec<u8>),
    Blob(Digest, u64),
    /// The tar of a layer, by its diffID.
    Tar(Digest),
}

impl Images {
    /// Writes an archive to `out`.
    ///
    /// # Errors
    /// Where content is missing here, or `out` cannot be written to.
    pub async fn export<W: Write + Send + 'static>(
        &self,
        mut options: ExportOptions,
        out: W,
    ) -> Result<(), Failure> {
        // However they are named, and how often
        options.images.sort_by(|a, b| a.name.cmp(&b.name));
        options.images.dedup_by(|a, b| a.name == b.name);
        let images = &options.images;
        let goods = Goods {
            blobs: images.iter().flat_map(ImageRecord::blobs).collect(),
            diff_ids: images.iter().flat_map(ImageRecord::diff_ids).collect(),
        };
        let hold = self.hold(None, goods).await?;
        if options.format == ArchiveFormat::Docker {
            tokio::task::block_in_place(|| {
                options.images.iter().try_for_each(|image| self.ensure_indexed(&image.layers))
            })?;
        }
        let store = Arc::clone(&self.store);
        let written = blocking(move || {
            let files = match options.format {
                ArchiveFormat::Oci => store.layout_files(&options)?,
                ArchiveFormat::Docker => store.docker_files(&options.images)?,
            };
            store.write_archive(files, out)
        });
        let written = written.await;
        self.end(hold).await?;
        written
    }
}

/// A name as Docker's tools write it, where it has a tag.
fn familiar(name: &str) -> Option<String> {
    let Ok(Reference::Registry(reference)) = name.parse() else { return None };
    reference.tag()?;
    let plain = name.split('@').next().unwrap_or(name);
    let plain = plain.strip_prefix("docker.io/").unwrap_or(plain);
    Some(plain.strip_prefix("library/").unwrap_or(plain).to_owned())
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

impl Store {
    fn layout_files(&self, options: &ExportOptions) -> Result<BTreeMap<String, Content>, Failure> {
        let mut files = BTreeMap::new();
        let (mut entries, mut docker) = (Vec::new(), BTreeMap::new());
        let tags: Vec<_> = options.images.iter().map(|image| tag(&image.name)).collect();
        for (image, tag) in options.images.iter().zip(&tags) {
            let (top, content) = self.exported(image, options.all_platforms)?;
            for blob in &content {
                files.insert(blob_name(&blob.digest), Content::Blob(blob.digest, blob.size));
            }
            let is_unique = tags.iter().filter(|other| *other == tag).count() == 1;
            let name = if is_unique { tag.clone() } else { image.name.clone() };
            entries.push(index_entry(&top, &image.name, &name));
            let layers: Vec<_> = image.layers.iter().map(|l| blob_name(&l.digest)).collect();
            // Layers that are elsewhere are in no archive
            if layers.iter().all(|name| files.contains_key(name)) {
                add_docker(&mut docker, image, blob_name(&image.config), layers);
            }
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_OCI_INDEX,
            "manifests": entries,
        });
        let layout = r#"{"imageLayoutVersion":"1.0.0"}"#;
        let docker: Vec<Value> = docker.into_values().collect();
        for (name, text) in [
            ("index.json", index.to_string()),
            ("manifest.json", json!(docker).to_string()),
            ("oci-layout", layout.to_owned()),
        ] {
            files.insert(name.to_owned(), Content::Bytes(text.into_bytes()));
        }
        Ok(files)
    }

    /// What is exported of an image, and all that belongs to it.
    fn exported(
        &self,
        image: &ImageRecord,
        all: bool,
    ) -> Result<(Descriptor, Vec<Descriptor>), Failure> {
        let target = image.target.descriptor();
        if let Some(content) = self.whole(&target)? {
            return Ok((target, content));
        }
        let missing = |what: String, how: &str| {
            let hint = format!("fetch it with: peel pull {how}{}", image.name);
            Failure::new(Class::NotFound, what).hint(hint)
        };
        if all {
            let what = format!("not every platform of {} is here", image.name);
            return Err(missing(what, "--all-platforms "));
        }
        let size = self.content.info(&image.manifest)?.map_or(0, |found| found.size);
        let manifest = Descriptor {
            platform: image.platform.parse().ok(),
            ..Descriptor::new(&image.manifest_type, image.manifest, size)
        };
        let content = self.whole(&manifest)?;
        let content = content
            .ok_or_else(|| missing(format!("some content of {} is not here", image.name), ""))?;
        Ok((manifest, content))
    }

    fn docker_files(&self, images: &[ImageRecord]) -> Result<BTreeMap<String, Content>, Failure> {
        let (mut files, mut docker) = (BTreeMap::new(), BTreeMap::new());
        for image in images {
            let config = format!("{}.json", image.config.hex());
            let bytes = self.content.read_blob(&image.config, MAX_CONFIG_SIZE)?;
            files.insert(config.clone(), Content::Bytes(bytes));
            let layers = image.layers.iter().map(|layer| {
                let name = format!("{}/layer.tar", layer.diff_id.hex());
                files.insert(name.clone(), Content::Tar(layer.diff_id));
                name
            });
            let layers = layers.collect();
            add_docker(&mut docker, image, config, layers);
        }
        let docker: Vec<Value> = docker.into_values().collect();
        let text = json!(docker).to_string();
        files.insert("manifest.json".to_owned(), Content::Bytes(text.into_bytes()));
        Ok(files)
    }

    fn write_archive<W: Write>(
        &self,
        files: BTreeMap<String, Content>,
        out: W,
    ) -> Result<(), Failure> {
        let failed = |e: io::Error| Failure::io(&e, format!("cannot write an archive: {e}"));
        let mut tar = tar::Builder::new(out);
        let mut dirs = BTreeSet::new();
        for (name, content) in files {
            for (end, _) in name.match_indices('/') {
                if dirs.insert(name[..end].to_owned()) {
                    let mut header = header(tar::EntryType::Directory, 0o755, 0);
                    let path = format!("{}/", &name[..end]);
                    tar.append_data(&mut header, path, io::empty()).map_err(failed)?;
                }
            }
            let (len, mut bytes): (u64, Box<dyn Read>) = match content {
                Content::Bytes(bytes) => (bytes.len() as u64, Box::new(io::Cursor::new(bytes))),
                Content::Blob(digest, size) => {
                    let file: File = self.content.open_blob(&digest)?;
                    (size, Box::new(file.take(size)))
                }
                Content::Tar(diff_id) => {
                    let layer = self.layers.tar(&diff_id)?.ok_or_else(|| {
                        Failure::new(Class::NotFound, format!("layer {diff_id} has no index"))
                    })?;
                    (layer.tar_len(), Box::new(layer))
                }
            };
            let mut header = header(tar::EntryType::Regular, 0o444, len);
            let mut counted = Counted { bytes: &mut bytes, left: len };
            tar.append_data(&mut header, &name, &mut counted).map_err(failed)?;
            if counted.left > 0 {
                let message = format!("{name} is shorter than expected: {} missing", counted.left);
                return Err(Failure::new(Class::BadData, message).hint("pull the image again"));
            }
        }
        tar.into_inner().and_then(|mut out| out.flush()).map_err(failed)
    }
}

/// Counts what is read: a short file would spoil everything after it.
struct Counted<'a> {
    bytes: &'a mut dyn Read,
    left: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.read(out)?;
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }
}

fn header(kind: tar::EntryType, mode: u32, len: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(len);
    header
}

/// The part of a name that tells images of one repository apart.
fn tag(name: &str) -> String {
    match name.parse() {
        Ok(Reference::Registry(reference)) => {
            reference.tag().map_or_else(|| reference.target(), str::to_owned)
        }
        Ok(Reference::Layout(layout)) => layout.tag.unwrap_or_else(|| "latest".to_owned()),
        Ok(Reference::OciArchive(archive) | Reference::DockerArchive(archive)) => {
            let image = archive.image.unwrap_or_else(|| "latest".to_owned());
            image.rsplit(['/', ':']).next().unwrap_or_default().to_owned()
        }
        Err(_) => name.to_owned(),
    }
}

fn index_entry(top: &Descriptor, full: &str, name: &str) -> Value {
    let mut annotations = top.annotations.clone();
    if matches!(full.parse(), Ok(Reference::Registry(_))) {
        annotations.insert(ANNOTATION_FULL_NAME.to_owned(), full.to_owned());
    }
    annotations.insert(ANNOTATION_REF_NAME.to_owned(), name.to_owned());
    let mut entry = json!({
        "mediaType": top.media_type,
        "digest": top.digest.to_string(),
        "size": top.size,
        "annotations": annotations,
    });
    if let Some(platform) = &top.platform {
        entry["platform"] = json!({ "architecture": platform.architecture(), "os": platform.os() });
        if let Some(variant) = platform.variant() {
            entry["platform"]["variant"] = variant.into();
        }
    }
    entry
}

/// Adds an image to what becomes `manifest.json`; several names of one image are one entry.
fn add_docker(
    docker: &mut BTreeMap<String, Value>,
    image: &ImageRecord,
    config: String,
    layers: Vec<String>,
) {
    let entry = docker
        .entry(config.clone())
        .or_insert_with(|| json!({ "Config": config, "RepoTags": [], "Layers": layers }));
    if let (Some(name), Some(tags)) = (familiar(&image.name), entry["RepoTags"].as_array_mut()) {
        tags.push(name.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_other_tools() {
        let digest = Digest::sha256(b"x");
        let both = format!("a.example/x:1@{digest}");
        let table = [
            ("docker.io/library/nginx:1.27", Some("nginx:1.27"), "1.27"),
            ("docker.io/x/y:1", Some("x/y:1"), "1"),
            ("ghcr.io/x/y:1", Some("ghcr.io/x/y:1"), "1"),
            (&both, Some("a.example/x:1"), "1"),
            ("oci:/dir:v1", None, "v1"),
            ("oci:/dir", None, "latest"),
            ("docker-archive:/f.tar:docker.io/library/x:2", None, "2"),
        ];
        for (name, docker, short) in table {
            assert_eq!(familiar(name).as_deref(), docker, "{name}");
            assert_eq!(tag(name), short, "{name}");
        }
    }
}
