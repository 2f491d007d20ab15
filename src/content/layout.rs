//! An OCI image layout that somebody else wrote, or an archive of images, as a source of images.
//!
//! Source: OCI image-spec, image-layout.md. Nothing of it is trusted: digests are parsed before
//! they become paths, and every read is bounded and verified.

use std::{
    io,
    path::{Path, PathBuf},
};

use peel_index::Digest;
use serde::Deserialize;

use super::{
    archive::{Archive, Part},
    error::ContentError,
    file::{open_regular, read_bounded, read_verified, verify},
    store::{blob_path, missing},
};
use crate::oci::{ANNOTATION_REF_NAME, Descriptor, ImageIndex, MAX_MANIFEST_SIZE, Platform};

/// The file that makes a directory a layout.
pub(super) const LAYOUT_FILE: &str = "oci-layout";
/// Most bytes of that file; it holds one short field.
const MAX_LAYOUT_FILE: u64 = 64 << 10;

/// A layout in a directory, or an archive that is read like one.
#[derive(Debug)]
pub struct OciLayout {
    dir: PathBuf,
    entries: Vec<Descriptor>,
    /// Where the files are, where they are not in the directory.
    archive: Option<Archive>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

impl OciLayout {
    /// Opens a layout and reads its `index.json`.
    pub fn open(dir: &Path) -> Result<Self, ContentError> {
        Self::check_version(dir)?;
        let path = dir.join("index.json");
        let bytes = read_bounded(&path, MAX_MANIFEST_SIZE).map_err(|error| match error {
            ContentError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                not_a_layout(dir, "an index.json", "none")
            }
            error => error,
        })?;
        let index = ImageIndex::parse(Digest::sha256(&bytes), &bytes)
            .map_err(|source| ContentError::Index { path, source })?;
        Ok(Self { dir: dir.to_owned(), entries: index.manifests, archive: None })
    }

    /// Opens an archive: a tar of a layout, or what `docker save` writes. `scratch` is a directory
    /// where there is room for it, should it be compressed as a whole.
    pub fn open_archive(path: &Path, scratch: &Path) -> Result<Self, ContentError> {
        let mut archive = Archive::open(path, scratch)?;
        let entries = match archive.has(LAYOUT_FILE) {
            true => {
                check_version(path, &archive.read(LAYOUT_FILE, MAX_LAYOUT_FILE)?)?;
                let bytes = archive.read("index.json", MAX_MANIFEST_SIZE)?;
                let index = ImageIndex::parse(Digest::sha256(&bytes), &bytes);
                let failed = |source| ContentError::Index { path: path.to_owned(), source };
                index.map_err(failed)?.manifests
            }
            false => archive.docker_images()?,
        };
        Ok(Self { dir: path.to_owned(), entries, archive: Some(archive) })
    }

    /// Checks that `dir` says it is a layout of a version that peel knows.
    pub(super) fn check_version(dir: &Path) -> Result<(), ContentError> {
        let bytes =
            read_bounded(&dir.join(LAYOUT_FILE), MAX_LAYOUT_FILE).map_err(|error| match error {
                ContentError::Io { source, .. }
                    if matches!(
                        source.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    let found = match dir.symlink_metadata() {
                        Ok(found) if found.is_file() => "a file",
                        Ok(_) => "none",
                        Err(_) => "no such directory",
                    };
                    not_a_layout(dir, "a file oci-layout", found)
                }
                error => error,
            })?;
        check_version(dir, &bytes)
    }

    /// The directory, or the archive.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The entries of its index, with their names where they have one.
    pub fn entries(&self) -> impl Iterator<Item = (Option<&str>, &Descriptor)> {
        self.entries.iter().map(|entry| (name(entry), entry))
    }

    /// The entry that `tag` names. Without a tag there has to be one image only; entries of one
    /// name (or all without) that differ by platform count as one, and the best for `platform` is
    /// taken.
    pub fn resolve(
        &self,
        tag: Option<&str>,
        platform: &Platform,
    ) -> Result<&Descriptor, ContentError> {
        let wanted: Vec<_> =
            self.entries.iter().filter(|entry| tag.is_none() || name(entry) == tag).collect();
        if let [only] = wanted[..] {
            return Ok(only);
        }
        let path = self.dir.clone();
        if wanted.is_empty() {
            return Err(match tag {
                Some(tag) => ContentError::NoTag { path, tag: tag.to_owned(), found: self.tags() },
                None => not_a_layout(&path, "an image in its index.json", "none"),
            });
        }
        let one_name = wanted.windows(2).all(|pair| name(pair[0]) == name(pair[1]));
        let suits =
            |entry: &&Descriptor| entry.platform.as_ref().and_then(|found| platform.rank(found));
        wanted
            .iter()
            .copied()
            .filter(|entry| one_name && suits(entry).is_some())
            .min_by_key(suits)
            .ok_or_else(|| ContentError::Ambiguous {
                path,
                count: wanted.len(),
                found: self.tags(),
            })
    }

    /// Opens a blob, whose length has to be the descriptor's. The caller verifies what it reads.
    pub fn open_blob(&self, descriptor: &Descriptor) -> Result<Part, ContentError> {
        let path = blob_path(&self.dir, &descriptor.digest);
        let part = match &self.archive {
            Some(archive) => archive.blob(&descriptor.digest)?,
            None => {
                let opened = open_regular(&path);
                let (file, len) = opened.map_err(|error| missing(error, &descriptor.digest))?;
                Part { file, offset: 0, len }
            }
        };
        let (expected, found) = (descriptor.size, part.len);
        if found != expected {
            return Err(ContentError::Size { path, expected, found });
        }
        Ok(part)
    }

    /// Reads a whole blob of at most `max` bytes and verifies it.
    pub fn read_blob(&self, descriptor: &Descriptor, max: u64) -> Result<Vec<u8>, ContentError> {
        let digest = &descriptor.digest;
        let path = blob_path(&self.dir, digest);
        let bytes = match &self.archive {
            Some(archive) => {
                let bytes = archive.read_blob(digest, max)?;
                verify(&path, digest, &bytes)?;
                bytes
            }
            None => read_verified(&path, digest, max).map_err(|error| missing(error, digest))?,
        };
        let (expected, found) = (descriptor.size, bytes.len() as u64);
        if found != expected {
            return Err(ContentError::Size { path, expected, found });
        }
        Ok(bytes)
    }

    fn tags(&self) -> Vec<String> {
        let mut tags: Vec<_> = self.entries.iter().filter_map(name).map(str::to_owned).collect();
        tags.sort();
        tags.dedup();
        tags
    }
}

fn check_version(path: &Path, bytes: &[u8]) -> Result<(), ContentError> {
    let version = serde_json::from_slice::<LayoutFile>(bytes)
        .map_err(|e| not_a_layout(path, "JSON in oci-layout", &e.to_string()))?
        .image_layout_version;
    if version.starts_with("1.") {
        return Ok(());
    }
    Err(not_a_layout(path, "version 1", &format!("version {version:?}")))
}

fn name(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(ANNOTATION_REF_NAME).map(String::as_str)
}

fn not_a_layout(dir: &Path, expected: &'static str, found: &str) -> ContentError {
    ContentError::NotALayout { path: dir.to_owned(), expected, found: found.to_owned() }
}

#[cfg(test)]
mod tests;
