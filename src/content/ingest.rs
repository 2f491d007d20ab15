//! The writing of one blob: bytes in, then commit or nothing.

use std::{
    fmt,
    fs::{self, File, Permissions},
    io::{self, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use peel_index::{Algorithm, Digest, Hasher};

use super::{
    error::ContentError,
    file::{available, hash, space_or_io, sync_dir},
    store::{BlobInfo, blob_path},
};
use crate::oci::Descriptor;

/// What a blob is known to be before it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its digest.
    pub digest: Option<Digest>,
    /// Its size in bytes.
    pub size: Option<u64>,
}

impl From<&Descriptor> for Expected {
    fn from(descriptor: &Descriptor) -> Self {
        Self { digest: Some(descriptor.digest), size: Some(descriptor.size) }
    }
}

/// A blob that is being written; gone without a trace unless it is committed.
pub struct Ingest {
    root: PathBuf,
    /// `ingest/<…>`, which holds `data` and `ref`.
    dir: PathBuf,
    data: PathBuf,
    file: File,
    expected: Expected,
    written: u64,
    /// None where the caller hashes.
    hasher: Option<Hasher>,
}

impl Ingest {
    pub(super) fn begin(root: &Path, key: &str, expected: Expected) -> Result<Self, ContentError> {
        // Any text is a key, and no key leaves the directory
        let dir = root.join("ingest").join(Digest::sha256(key.as_bytes()).hex());
        if let (Some(needed), Some(available)) = (expected.size, available(root))
            && needed > available
        {
            let path = root.to_owned();
            return Err(ContentError::NoSpace { path, needed: Some(needed), available });
        }
        fs::create_dir(&dir).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => ContentError::Busy { key: key.to_owned() },
            _ => space_or_io(e, "create", &dir, expected.size),
        })?;
        // From here on the directory is this ingest's, to be removed again on failure
        let data = dir.join("data");
        let open = || {
            fs::write(dir.join("ref"), key)?;
            File::options().read(true).write(true).create_new(true).open(&data)
        };
        let file = open().map_err(|e| {
            drop(fs::remove_dir_all(&dir));
            space_or_io(e, "create", &data, expected.size)
        })?;
        let algorithm = expected.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let hasher = Some(Hasher::new(algorithm));
        Ok(Self { root: root.to_owned(), dir, data, file, expected, written: 0, hasher })
    }

    /// Leaves the hashing to the caller, who sees the same bytes and has to end with
    /// [`Ingest::commit_verified`]; [`Ingest::commit`] would read the file again.
    #[must_use]
    pub fn hashed_by_caller(mut self) -> Self {
        if self.written == 0 {
            self.hasher = None;
        }
        self
    }

    /// Appends bytes; fails as soon as there are more than expected.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        let total = self.written.saturating_add(bytes.len() as u64);
        if let Some(expected) = self.expected.size.filter(|size| total > *size) {
            return Err(ContentError::Size { path: self.data.clone(), expected, found: total });
        }
        self.file.write_all(bytes).map_err(|e| {
            let needed = self.expected.size.map(|size| size.saturating_sub(self.written));
            space_or_io(e, "write", &self.data, needed)
        })?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.written = total;
        Ok(())
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Checks size and digest and puts the blob in its place, durably.
    pub fn commit(mut self) -> Result<BlobInfo, ContentError> {
        let found = match self.hasher.take() {
            Some(hasher) => hasher.finish(),
            None => {
                let algorithm = self.expected.digest.map_or(Algorithm::Sha256, |d| d.algorithm());
                self.file
                    .rewind()
                    .and_then(|()| hash(&self.file, Hasher::new(algorithm)))
                    .map_err(ContentError::io("read", &self.data))?
            }
        };
        self.finish(found)
    }

    /// As [`Ingest::commit`], where the caller has hashed the same bytes and found `digest`.
    pub fn commit_verified(mut self, digest: Digest) -> Result<BlobInfo, ContentError> {
        if let Some(hasher) = self.hasher.take() {
            let found = hasher.finish();
            if found.algorithm() == digest.algorithm() && found != digest {
                return Err(self.wrong_digest(digest, found));
            }
        }
        self.finish(digest)
    }

    /// Drops what was written. The same happens to an ingest that goes out of scope.
    pub fn abort(self) {}

    fn finish(self, found: Digest) -> Result<BlobInfo, ContentError> {
        if let Some(expected) = self.expected.size.filter(|size| *size != self.written) {
            let (path, found) = (self.data.clone(), self.written);
            return Err(ContentError::Size { path, expected, found });
        }
        if let Some(expected) = self.expected.digest.filter(|digest| *digest != found) {
            return Err(self.wrong_digest(expected, found));
        }
        let target = blob_path(&self.root, &found);
        let make_durable = || {
            self.file.set_permissions(Permissions::from_mode(0o444))?;
            self.file.sync_all()
        };
        make_durable().map_err(|e| space_or_io(e, "sync", &self.data, None))?;
        // Over an older one as well: that is how a damaged blob is repaired
        fs::rename(&self.data, &target).map_err(|e| space_or_io(e, "create", &target, None))?;
        sync_dir(target.parent().unwrap_or(&self.root))?;
        Ok(BlobInfo { digest: found, size: self.written })
    }

    fn wrong_digest(&self, expected: Digest, found: Digest) -> ContentError {
        ContentError::Digest {
            path: self.data.clone(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest")
            .field("data", &self.data)
            .field("expected", &self.expected)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the store is opened next
        drop(fs::remove_dir_all(&self.dir));
    }
}
