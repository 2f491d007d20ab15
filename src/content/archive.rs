//! Archives of images: a tar of an image layout, or what `docker save` writes, read in place.
//!
//! One pass over the headers finds every file; content is read from its place in the archive. An
//! archive that is compressed as a whole is first decompressed into a file without a name.
//!
//! What `docker save` writes has no manifests of its own: one is made up for each image, byte for
//! byte as containerd's importer makes it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read as _, Seek as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use peel_index::{Digest, Hasher};
use serde::Deserialize;
use serde_json::json;

use super::{
    error::ContentError,
    file::{open_regular, space_or_io},
};
use crate::oci::{
    ANNOTATION_REF_NAME, Descriptor, MAX_CONFIG_SIZE, MAX_MANIFEST_SIZE, MEDIA_TYPE_DOCKER_CONFIG,
    MEDIA_TYPE_DOCKER_MANIFEST, Reference,
};

/// Most files that an archive may have: of 100 images of 100 layers, and more.
const MAX_FILES: usize = 1 << 17;
/// Links in a row, as older archives of Docker have them between layers.
const MAX_LINKS: usize = 8;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A part of a file.
#[derive(Debug)]
pub struct Part {
    /// The file.
    pub file: File,
    /// Where it begins.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    /// Offset and length by name.
    files: HashMap<String, (u64, u64)>,
    /// Blobs that have another name than a layout gives them.
    blobs: HashMap<Digest, (u64, u64)>,
    /// Manifests that were made up, and configs.
    documents: HashMap<Digest, Vec<u8>>,
}

/// An entry of `manifest.json`; source: Docker's image specification 1.2.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct DockerConfig {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Archive {
    /// Opens an archive; `scratch` is where it is decompressed where it has to be.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Self, ContentError> {
        let (mut file, _) = open_regular(path)?;
        let mut magic = [0; 4];
        let len = read_some(&file, &mut magic).map_err(ContentError::io("read", path))?;
        file.rewind().map_err(ContentError::io("read", path))?;
        let gzip = magic[..len].starts_with(&GZIP);
        if gzip || magic[..len].starts_with(&ZSTD) {
            let plain = tempfile::tempfile_in(scratch);
            let mut plain = plain.map_err(|e| space_or_io(e, "create", scratch, None))?;
            let copied = match gzip {
                true => io::copy(&mut MultiGzDecoder::new(BufReader::new(file)), &mut plain),
                // Refuses windows of more than 128 MiB
                false => zstd::Decoder::new(file)
                    .and_then(|mut decoder| io::copy(&mut decoder, &mut plain)),
            };
            copied.map_err(|e| space_or_io(e, "decompress", path, None))?;
            file = plain;
        }
        file.rewind().map_err(ContentError::io("read", path))?;
        let files = files(&file, path)?;
        let (blobs, documents) = (HashMap::new(), HashMap::new());
        Ok(Self { path: path.to_owned(), file, files, blobs, documents })
    }

    /// Whether there is a file of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// A whole file of at most `max` bytes.
    pub(super) fn read(&self, name: &str, max: u64) -> Result<Vec<u8>, ContentError> {
        let place = self.files.get(name);
        let place = place.ok_or_else(|| not_an_archive(&self.path, "a file of an image", name))?;
        self.read_at(*place, max)
    }

    fn read_at(&self, (offset, len): (u64, u64), max: u64) -> Result<Vec<u8>, ContentError> {
        if len > max {
            let path = self.path.clone();
            return Err(ContentError::TooLarge { path, limit: max, found: len });
        }
        // `len` is at most `max`
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(ContentError::io("read", &self.path))?;
        Ok(bytes)
    }

    fn place(&self, digest: &Digest) -> Option<(u64, u64)> {
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        self.blobs.get(digest).or_else(|| self.files.get(&name)).copied()
    }

    /// Where a blob is.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Part, ContentError> {
        let (offset, len) = self.place(digest).ok_or_else(|| self.missing(digest))?;
        let file = self.file.try_clone().map_err(ContentError::io("open", &self.path))?;
        Ok(Part { file, offset, len })
    }

    /// A whole blob of at most `max` bytes, not verified.
    pub(super) fn read_blob(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, ContentError> {
        if let Some(document) = self.documents.get(digest) {
            return Ok(document.clone());
        }
        self.read_at(self.place(digest).ok_or_else(|| self.missing(digest))?, max)
    }

    fn missing(&self, digest: &Digest) -> ContentError {
        ContentError::Missing { digest: (*digest).into(), path: self.path.clone() }
    }

    /// Makes manifests for what `docker save` wrote; an entry for each name.
    pub(super) fn docker_images(&mut self) -> Result<Vec<Descriptor>, ContentError> {
        let bytes = self.read("manifest.json", MAX_MANIFEST_SIZE)?;
        let images: Vec<DockerImage> = serde_json::from_slice(&bytes)
            .map_err(|e| self.malformed("JSON in manifest.json", &e.to_string()))?;
        let mut entries = Vec::new();
        for image in images {
            let manifest = self.docker_image(&image)?;
            let descriptor = Descriptor::new(
                MEDIA_TYPE_DOCKER_MANIFEST,
                Digest::sha256(&manifest),
                manifest.len() as u64,
            );
            self.documents.insert(descriptor.digest, manifest);
            let names = image.repo_tags.unwrap_or_default();
            if names.is_empty() {
                entries.push(descriptor.clone());
            }
            for name in names {
                let mut entry = descriptor.clone();
                // A short name has to mean the same as a full one
                let full = name.parse::<Reference>().map_or(name, |full| full.name());
                entry.annotations.insert(ANNOTATION_REF_NAME.to_owned(), full);
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn docker_image(&mut self, image: &DockerImage) -> Result<Vec<u8>, ContentError> {
        let config = self.read(&clean(&image.config), MAX_CONFIG_SIZE)?;
        let parsed: DockerConfig = serde_json::from_slice(&config)
            .map_err(|e| self.malformed("an image config", &e.to_string()))?;
        let layers = image.layers.as_deref().unwrap_or_default();
        let diff_ids = parsed.rootfs.diff_ids;
        if layers.len() != diff_ids.len() {
            let found = format!("{} layers and {} diffIDs", layers.len(), diff_ids.len());
            return Err(self.malformed("as many layers as diffIDs", &found));
        }
        let mut descriptors = Vec::new();
        for (name, diff_id) in layers.iter().zip(&diff_ids) {
            let name = clean(name);
            let Some(place) = self.files.get(&name).copied() else {
                return Err(self.malformed("every layer that manifest.json names", &name));
            };
            let (digest, suffix) = self.layer(&name, place, diff_id)?;
            self.blobs.insert(digest, place);
            descriptors.push(json!({
                "mediaType": format!("application/vnd.docker.image.rootfs.diff.tar{suffix}"),
                "digest": digest.to_string(),
                "size": place.1,
            }));
        }
        let digest = Digest::sha256(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_DOCKER_MANIFEST,
            "config": {
                "mediaType": MEDIA_TYPE_DOCKER_CONFIG,
                "digest": digest.to_string(),
                "size": config.len(),
            },
            "layers": descriptors,
        });
        self.documents.insert(digest, config);
        Ok(manifest.to_string().into_bytes())
    }

    /// The digest of a layer's file, and what its media type ends with.
    fn layer(
        &self,
        name: &str,
        (offset, len): (u64, u64),
        diff_id: &str,
    ) -> Result<(Digest, &'static str), ContentError> {
        let mut magic = [0; 4];
        let first = usize::try_from(len.min(4)).unwrap_or(4);
        let io = || ContentError::io("read", &self.path);
        self.file.read_exact_at(&mut magic[..first], offset).map_err(io())?;
        let suffix = match magic {
            [a, b, ..] if [a, b] == GZIP => ".gzip",
            ZSTD => ".zstd",
            _ => {
                // The tar itself: what it unpacks to is what it is, and is verified as such
                let digest = diff_id.parse();
                return digest
                    .map(|digest| (digest, ""))
                    .map_err(|_| self.malformed("a digest as diffID", diff_id));
            }
        };
        let named = name.strip_prefix("blobs/").map(|name| name.replacen('/', ":", 1));
        if let Some(Ok(digest)) = named.map(|name| name.parse()) {
            return Ok((digest, suffix));
        }
        let mut hasher = Hasher::new(peel_index::Algorithm::Sha256);
        let (mut at, mut chunk) = (0, vec![0; 128 << 10]);
        while at < len {
            let wanted = chunk.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut chunk[..wanted], offset + at).map_err(io())?;
            hasher.update(&chunk[..wanted]);
            at += wanted as u64;
        }
        Ok((hasher.finish(), suffix))
    }

    fn malformed(&self, expected: &'static str, found: &str) -> ContentError {
        not_an_archive(&self.path, expected, found)
    }
}

pub(super) fn not_an_archive(path: &Path, expected: &'static str, found: &str) -> ContentError {
    let found = found.chars().filter(|c| !c.is_control()).take(200).collect();
    ContentError::NotALayout { path: path.to_owned(), expected, found }
}

fn read_some(mut file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < bytes.len() {
        match file.read(&mut bytes[len..])? {
            0 => break,
            n => len += n,
        }
    }
    Ok(len)
}

/// A name without `.` and doubled slashes; `..` takes the part before it away.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Every regular file of a tar, links followed.
fn files(file: &File, path: &Path) -> Result<HashMap<String, (u64, u64)>, ContentError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            not_an_archive(path, "a tar", &e.to_string())
        }
        _ => ContentError::io("read", path)(e),
    };
    let end = file.metadata().map_err(failed)?.len();
    let mut files = HashMap::new();
    let mut links: HashMap<String, String> = HashMap::new();
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = clean(&name);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let (offset, len) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(len).is_none_or(|past| past > end) {
                return Err(not_an_archive(path, "a whole tar", "one that ends early"));
            }
            files.insert(name, (offset, len));
        } else if let Some(target) = entry.link_name_bytes() {
            let target = String::from_utf8_lossy(&target).into_owned();
            let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
            let target = match kind.is_symlink() {
                true => clean(&format!("{dir}/{target}")),
                false => clean(&target),
            };
            links.insert(name, target);
        }
        if files.len() + links.len() > MAX_FILES {
            let expected = "at most 131072 files in an archive";
            return Err(not_an_archive(path, expected, "more"));
        }
    }
    for name in links.keys() {
        let mut target = name;
        for _ in 0..MAX_LINKS {
            let Some(next) = links.get(target) else { break };
            target = next;
        }
        if let Some(place) = files.get(target).copied() {
            files.insert(name.clone(), place);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
