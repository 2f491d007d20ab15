//! The content store.

use std::{
    collections::BTreeMap,
    fs::{self, DirEntry, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use peel_index::{Algorithm, Digest, Hasher};
use rustix::{
    fs::{AtFlags, CWD, linkat},
    io::Errno,
};
use serde_json::json;

use super::{
    error::ContentError,
    file::{available, hash, open_regular, read_verified, replace, sync_dir},
    ingest::{DeadIngest, Expected, Ingest, dead},
    layout::{LAYOUT_FILE, OciLayout},
};
use crate::oci::{ANNOTATION_REF_NAME, Descriptor, MEDIA_TYPE_OCI_INDEX};

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The blobs of all images, as an OCI image layout.
#[derive(Debug)]
pub struct ContentStore {
    root: PathBuf,
    index: Mutex<()>,
}

/// A blob that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl ContentStore {
    /// Opens the store at `root` (`<peel's root>/content`): [`at`](Self::at), then
    /// [`prepare`](Self::prepare).
    pub fn open(root: &Path) -> Result<Self, ContentError> {
        let store = Self::at(root);
        store.prepare()?;
        Ok(store)
    }

    /// The store at `root`, good for reading what is there; nothing is looked at.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), index: Mutex::new(()) }
    }

    /// Makes the store where there is none. What an earlier owner left half written is removed, but
    /// for what an ingest may go on with.
    pub fn prepare(&self) -> Result<(), ContentError> {
        let root = &self.root;
        let there = |path: &Path| path.try_exists().map_err(ContentError::io("look at", path));
        let marker = root.join(LAYOUT_FILE);
        let is_new = !there(&marker)?;
        if !is_new {
            // Before anything is touched
            OciLayout::check_version(root)?;
        }
        for algorithm in ALGORITHMS {
            let dir = root.join("blobs").join(algorithm.name());
            fs::create_dir_all(&dir).map_err(ContentError::io("create", &dir))?;
        }
        sync_dir(&root.join("blobs"))?;
        let ingest = root.join("ingest");
        match fs::create_dir(&ingest) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(ContentError::Io { action: "create", path: ingest, source: e });
            }
            _ => {}
        }
        self.sweep_ingests()?;
        if !there(&root.join("index.json"))? {
            self.write_index(&[])?;
        }
        if is_new {
            replace(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(())
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob is or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        blob_path(&self.root, digest)
    }

    /// Whether the blob is there; its bytes are not read.
    pub fn contains(&self, digest: &Digest) -> Result<bool, ContentError> {
        self.info(digest).map(|info| info.is_some())
    }

    /// The blob's size, where it is there.
    pub fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>, ContentError> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => {
                Ok(Some(BlobInfo { digest: *digest, size: found.len() }))
            }
            Ok(_) => Err(ContentError::NotAFile { path, found: "something else" }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ContentError::Io { action: "look at", path, source }),
        }
    }

    /// Opens a blob for reading. It was verified when it came in; its bytes are not read here.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, ContentError> {
        let path = self.path(digest);
        let opened = open_regular(&path);
        opened.map(|(file, _)| file).map_err(|error| missing(error, digest))
    }

    /// Reads a whole blob of at most `max` bytes and verifies it again.
    pub fn read_blob(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, ContentError> {
        read_verified(&self.path(digest), digest, max).map_err(|error| missing(error, digest))
    }

    /// Reads a blob to its end and verifies it again; returns its length in bytes.
    ///
    /// # Errors
    /// [`ContentError::Digest`] where its bytes are others, [`ContentError::Missing`].
    pub fn check(&self, digest: &Digest) -> Result<u64, ContentError> {
        let path = self.path(digest);
        let (file, len) = open_regular(&path).map_err(|error| missing(error, digest))?;
        let hasher = Hasher::new(digest.algorithm());
        let found = hash(&file, hasher).map_err(ContentError::io("read", &path))?;
        if found != *digest {
            let (expected, found) = ((*digest).into(), found.into());
            return Err(ContentError::Digest { path, expected, found });
        }
        Ok(len)
    }

    /// Whether a file is on the store's file system, so that it may be linked.
    pub fn can_link(&self, file: &File) -> bool {
        let device = |found: io::Result<Metadata>| found.ok().map(|found| found.dev());
        let own = device(fs::metadata(self.root.join("ingest")));
        own.is_some() && own == device(file.metadata())
    }

    /// Whether a file is the blob that is here.
    pub fn is_own(&self, digest: &Digest, file: &File) -> bool {
        let inode =
            |found: io::Result<Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
        let own = inode(fs::metadata(self.path(digest)));
        own.is_some() && own == inode(file.metadata())
    }

    /// Gives a blob that lies in another's file a name here: one file then, whose bytes the caller
    /// has verified and which nobody may write to. False where the file system refuses.
    ///
    /// # Errors
    /// Where it has been linked but that is not durable.
    pub fn link(&self, digest: &Digest, file: &File) -> Result<bool, ContentError> {
        use std::os::fd::AsRawFd as _;
        let path = self.path(digest);
        // That file, whatever its name means by now; a sweep removes what a crash leaves of it
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let place = self.root.join("ingest").join(format!("link-{}", digest.hex()));
        let link = || linkat(CWD, &from, CWD, &place, AtFlags::SYMLINK_FOLLOW);
        // It may have come without being written to the disk
        let linked = file.sync_all().and_then(|()| match link() {
            Err(Errno::EXIST) => fs::remove_file(&place).and_then(|()| Ok(link()?)),
            linked => Ok(linked?),
        });
        let linked = linked.and_then(|()| fs::rename(&place, &path));
        // It stays where both names were of one file already
        let _ = fs::remove_file(&place);
        if linked.is_err() {
            return Ok(false);
        }
        sync_dir(path.parent().unwrap_or(&self.root))?;
        Ok(true)
    }

    /// Begins to write a blob. `key` names what is written (a descriptor's digest, or a name); the
    /// same key is refused as [`ContentError::Busy`] while its ingest lives.
    pub fn begin(&self, key: &str, expected: Expected) -> Result<Ingest, ContentError> {
        Ingest::begin(&self.root, key, expected, false)
    }

    /// The same, but goes on with what an earlier ingest of the key has kept, or a process that was
    /// killed has left. Those bytes are to be [replayed](Ingest::replay) into the caller's hash.
    pub fn resume(&self, key: &str, expected: Expected) -> Result<Ingest, ContentError> {
        Ingest::begin(&self.root, key, expected, true)
    }

    /// Removes ingests that nobody is writing and that are too small or too old to go on with.
    pub fn sweep_ingests(&self) -> Result<(), ContentError> {
        self.dead_ingests()?.into_iter().try_for_each(DeadIngest::remove)
    }

    /// The ingests that [`ContentStore::sweep_ingests`] would remove.
    pub fn dead_ingests(&self) -> Result<Vec<DeadIngest>, ContentError> {
        dead(&self.root)
    }

    /// Removes a blob; false where there was none. Readers that have it open keep it.
    pub fn remove(&self, digest: &Digest) -> Result<bool, ContentError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => {
                sync_dir(path.parent().unwrap_or(&self.root))?;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(ContentError::Io { action: "remove", path, source }),
        }
    }

    /// Bytes that an ingest of this key, running or broken off, has written.
    pub fn partial(&self, key: &str) -> u64 {
        let data = super::ingest::dir_of(&self.root, key).join("data");
        fs::metadata(data).map_or(0, |found| found.len())
    }

    /// Bytes that may still be written; `None` where the file system does not say.
    pub fn available(&self) -> Option<u64> {
        available(&self.root)
    }

    /// All blobs, in no order; files whose names are no digests are passed over.
    pub fn blobs(
        &self,
    ) -> Result<impl Iterator<Item = Result<BlobInfo, ContentError>> + use<>, ContentError> {
        let mut dirs = Vec::new();
        for algorithm in ALGORITHMS {
            let dir = self.root.join("blobs").join(algorithm.name());
            let entries = fs::read_dir(&dir).map_err(ContentError::io("list", &dir))?;
            dirs.push((algorithm, dir, entries));
        }
        Ok(dirs.into_iter().flat_map(|(algorithm, dir, entries)| {
            entries.filter_map(move |entry| {
                let info = entry.and_then(|entry| blob_of(algorithm, &entry));
                info.map_err(ContentError::io("list", &dir)).transpose()
            })
        }))
    }

    /// Replaces `index.json` by one entry a name, at once and durably.
    ///
    /// Names stand in `org.opencontainers.image.ref.name`. Other tools select an entry by
    /// `oci:DIR:NAME`, so a name has to fit that annotation's grammar to be reachable for them.
    pub fn write_index(&self, images: &[(String, Descriptor)]) -> Result<(), ContentError> {
        let entries: Vec<_> = images.iter().map(|(name, image)| entry(name, image)).collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_OCI_INDEX,
            "manifests": entries,
        });
        let _order = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        replace(&self.root.join("index.json"), index.to_string().as_bytes())
    }
}

/// `<root>/blobs/<alg>/<hex>`: a parsed digest cannot leave the directory.
pub(super) fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// The error that says which blob is missing in place of the one that names a path.
pub(super) fn missing(error: ContentError, digest: &Digest) -> ContentError {
    match error {
        ContentError::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            ContentError::Missing { digest: (*digest).into(), path }
        }
        error => error,
    }
}

fn blob_of(algorithm: Algorithm, entry: &DirEntry) -> io::Result<Option<BlobInfo>> {
    let name = entry.file_name();
    let digest = name.to_str().and_then(|hex| format!("{}:{hex}", algorithm.name()).parse().ok());
    let Some(digest) = digest else {
        return Ok(None);
    };
    match entry.metadata() {
        Ok(found) => Ok(found.is_file().then_some(BlobInfo { digest, size: found.len() })),
        // Removed since the directory was read
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn entry(name: &str, image: &Descriptor) -> serde_json::Value {
    let mut annotations: BTreeMap<&str, &str> =
        image.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    annotations.insert(ANNOTATION_REF_NAME, name);
    let mut entry = json!({
        "mediaType": image.media_type,
        "digest": image.digest.to_string(),
        "size": image.size,
    });
    if let Some(platform) = &image.platform {
        entry["platform"] = json!({"architecture": platform.architecture(), "os": platform.os()});
        if let Some(variant) = platform.variant() {
            entry["platform"]["variant"] = variant.into();
        }
    }
    entry["annotations"] = json!(annotations);
    entry
}

#[cfg(test)]
mod tests;
