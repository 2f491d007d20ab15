//! The writing of one blob: bytes in, then commit or nothing.

use std::{
    fmt,
    fs::{self, File, Permissions},
    io::{self, Seek, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use peel_index::{Algorithm, Digest, Hasher};

use super::{
    error::ContentError,
    file::{available, hash, space_or_io, sync_dir, try_lock},
    store::{BlobInfo, blob_path},
};
use crate::oci::Descriptor;

/// What is read at once of what was kept.
const REPLAY_CHUNK: usize = 256 << 10;

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

/// A blob that is being written; gone without a trace unless it is committed, or kept to go on.
pub struct Ingest {
    root: PathBuf,
    /// `ingest/<…>`, which holds `data` and `ref`.
    dir: PathBuf,
    data: PathBuf,
    /// Locked for as long as the ingest lives: that is what makes the key busy.
    file: File,
    expected: Expected,
    written: u64,
    /// None where the caller hashes.
    hasher: Option<Hasher>,
    kept: bool,
}

/// Least bytes that are worth keeping: 1 MiB. Fewer cost less than the question for the rest.
pub const WORTH_KEEPING: u64 = 1 << 20;
/// How long what was kept is kept; containerd's leases last as long.
const KEEP_FOR: Duration = Duration::from_secs(24 * 3600);
/// How often a directory is entered that others are just removing.
const ENTRIES: usize = 16;

impl Ingest {
    /// Begins with nothing, or where `resume` is set with what an earlier one has kept.
    pub(super) fn begin(
        root: &Path,
        key: &str,
        expected: Expected,
        resume: bool,
    ) -> Result<Self, ContentError> {
        let dir = dir_of(root, key);
        let data = dir.join("data");
        let file = enter(&dir, key, expected.size)?;
        // From here on the directory is this ingest's, to be removed again on failure
        let algorithm = expected.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let mut ingest = Self {
            root: root.to_owned(),
            dir,
            data,
            file,
            expected,
            written: 0,
            hasher: Some(Hasher::new(algorithm)),
            kept: false,
        };
        ingest.prepare(key, resume)?;
        if let (Some(size), Some(available)) = (expected.size, available(root))
            && size.saturating_sub(ingest.written) > available
        {
            let (path, needed) = (root.to_owned(), Some(size - ingest.written));
            // What is there makes room for others
            return Err(ContentError::NoSpace { path, needed, available });
        }
        Ok(ingest)
    }

    fn prepare(&mut self, key: &str, resume: bool) -> Result<(), ContentError> {
        let size = self.expected.size;
        let failed = |data: &Path| {
            let data = data.to_owned();
            move |e| space_or_io(e, "create", &data, size)
        };
        let found = self.file.metadata().map_err(failed(&self.data))?.len();
        let fits = size.is_none_or(|size| found <= size);
        if resume && fits && found >= WORTH_KEEPING {
            self.written = found;
            self.hasher = None;
            self.file.seek(io::SeekFrom::End(0)).map_err(failed(&self.data))?;
            return Ok(());
        }
        self.file.set_len(0).map_err(failed(&self.data))?;
        fs::write(self.dir.join("ref"), key).map_err(failed(&self.data))
    }

    /// Gives what an earlier ingest has kept to `each`, in order: the caller hashes it, since it may
    /// have been damaged since.
    ///
    /// # Errors
    /// Those of `each`, and of reading.
    pub fn replay<E: From<ContentError>>(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut chunk = vec![0; REPLAY_CHUNK];
        let mut offset = 0;
        while offset < self.written {
            let left = usize::try_from(self.written - offset).unwrap_or(usize::MAX);
            let part = &mut chunk[..left.min(REPLAY_CHUNK)];
            self.file.read_exact_at(part, offset).map_err(ContentError::io("read", &self.data))?;
            offset += part.len() as u64;
            each(part)?;
        }
        Ok(())
    }

    /// Leaves what was written for an ingest of the same key that goes on where this one ends,
    /// where that is worth anything; for a day at most.
    pub fn keep(mut self) {
        self.kept = self.written >= WORTH_KEEPING;
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

/// Where the ingest of a key is: any text is a key, and no key leaves the directory.
pub(super) fn dir_of(root: &Path, key: &str) -> PathBuf {
    root.join("ingest").join(Digest::sha256(key.as_bytes()).hex())
}

/// Makes an ingest's directory where there is none, opens its data and locks it.
fn enter(dir: &Path, key: &str, size: Option<u64>) -> Result<File, ContentError> {
    let data = dir.join("data");
    let failed = |e| space_or_io(e, "create", dir, size);
    for _ in 0..ENTRIES {
        match fs::create_dir(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => {}
        }
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&data);
        let file = match open {
            Ok(file) => file,
            // Its owner has just removed it
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(e)),
        };
        if !try_lock(&file).map_err(failed)? {
            return Err(ContentError::Busy { key: key.to_owned() });
        }
        // Locked, but is it still the one that others find?
        let own = file.metadata().map_err(failed)?.ino();
        if fs::metadata(&data).is_ok_and(|found| found.ino() == own) {
            return Ok(file);
        }
    }
    Err(ContentError::Busy { key: key.to_owned() })
}

/// An ingest that nobody goes on with. Locked, so that nobody does for as long as this lives.
#[derive(Debug)]
pub struct DeadIngest {
    dir: PathBuf,
    bytes: u64,
    _lock: Option<File>,
}

impl DeadIngest {
    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that were written for it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Removes it.
    pub fn remove(self) -> Result<(), ContentError> {
        let dir = &self.dir;
        let removed = if dir.is_dir() { fs::remove_dir_all(dir) } else { fs::remove_file(dir) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ContentError::io("clean up", dir)(e))
            }
            _ => Ok(()),
        }
    }
}

/// Ingests that nobody is writing and that are not worth keeping, or no longer.
pub(super) fn dead(root: &Path) -> Result<Vec<DeadIngest>, ContentError> {
    let place = root.join("ingest");
    let failed = || ContentError::io("clean up", &place);
    let mut dead = Vec::new();
    for entry in fs::read_dir(&place).map_err(failed())? {
        let dir = entry.map_err(failed())?.path();
        let lock = match File::open(dir.join("data")) {
            Ok(file) if !try_lock(&file).map_err(failed())? => continue,
            Ok(file) => Some(file),
            Err(_) => None,
        };
        let found = lock.as_ref().and_then(|file| file.metadata().ok());
        let is_kept = found.as_ref().is_some_and(|found| {
            let age = found.modified().ok().and_then(|then| then.elapsed().ok());
            // A time ahead of the clock counts as now
            found.len() >= WORTH_KEEPING && age.is_none_or(|age| age < KEEP_FOR)
        });
        if !is_kept {
            let bytes = found.map_or(0, |found| found.len());
            dead.push(DeadIngest { dir, bytes, _lock: lock });
        }
    }
    Ok(dead)
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
        if self.kept {
            return;
        }
        // What cannot be removed now is removed when the store is opened next
        drop(fs::remove_dir_all(&self.dir));
    }
}
