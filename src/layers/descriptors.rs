//! Descriptors of blobs and seekable copies: only so many are open at a time.
//!
//! An index is mapped, and a map needs no descriptor; but a host may have thousands of layers in
//! use, each with a blob, and a process has as many descriptors as its limit says. So blobs are
//! opened when they are read, and the one that was not read for longest is closed.
//!
//! Locking: one mutex over the table, never held while a file is opened or read.

use std::{
    fs::File,
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use peel_index::Slot;
use rustix::{
    io::Errno,
    process::{Resource, getrlimit},
};

use super::blob::{BlobSource, LocalBlob};

/// Most that are open: as many layers as hundreds of containers read at the same time.
const MOST: usize = 1024;
/// Where the process may have few descriptors, this part of them; the rest is for clients, pulls
/// and what is read just now.
const PART: usize = 4;
const LEAST: usize = 4;

/// Names a file: the layer's slot, and whether it is the seekable copy.
pub(super) type FileKey = (Slot, bool);

/// The files that are open.
pub(super) struct Descriptors {
    open: Mutex<LruCache<FileKey, Arc<LocalBlob>>>,
}

impl Descriptors {
    /// As many as suit this process's limit.
    pub(super) fn new() -> Self {
        let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| n as usize);
        Self::at_most((limit / PART).clamp(LEAST, MOST))
    }

    fn at_most(most: usize) -> Self {
        let most = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        Self { open: Mutex::new(LruCache::new(most)) }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<FileKey, Arc<LocalBlob>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Closes those of a layer, once nobody reads them.
    pub(super) fn forget(&self, slot: Slot) {
        for copy in [false, true] {
            let closed = self.lock().pop(&(slot, copy));
            drop(closed);
        }
    }

    fn file(&self, key: FileKey, path: &Path) -> io::Result<Arc<LocalBlob>> {
        if let Some(file) = self.lock().get(&key) {
            return Ok(Arc::clone(file));
        }
        let file = match File::open(path) {
            Err(e) if too_many(&e) => {
                // Clients or pulls took what was left. What is open here can be opened again
                self.lock().clear();
                File::open(path)
            }
            opened => opened,
        };
        let file = Arc::new(LocalBlob::new(file?));
        // Two may have opened it: the later one stays. What falls out is closed outside the lock
        let closed = self.lock().push(key, Arc::clone(&file));
        drop(closed);
        Ok(file)
    }
}

fn too_many(error: &io::Error) -> bool {
    let limits = [Errno::MFILE, Errno::NFILE];
    limits.iter().any(|limit| error.raw_os_error() == Some(limit.raw_os_error()))
}

/// A blob that is opened when it is read.
pub(super) struct ByPath {
    descriptors: Arc<Descriptors>,
    key: FileKey,
    path: PathBuf,
}

impl ByPath {
    /// The blob at `path`, which has to be there.
    ///
    /// # Errors
    /// Where it is not.
    pub(super) fn new(
        descriptors: &Arc<Descriptors>,
        key: FileKey,
        path: PathBuf,
    ) -> io::Result<Self> {
        std::fs::metadata(&path)?;
        Ok(Self { descriptors: Arc::clone(descriptors), key, path })
    }
}

impl BlobSource for ByPath {
    fn read_range(&self, offset: u64, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.descriptors.file(self.key, &self.path)?.read_range(offset, len, bytes)
    }

    fn will_need(&self, offset: u64, len: u64) {
        // Whoever reads meets the same error and tells of it
        if let Ok(file) = self.descriptors.file(self.key, &self.path) {
            file.will_need(offset, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    fn blobs(dir: &Path, descriptors: &Arc<Descriptors>, count: u32) -> Vec<ByPath> {
        let blob = |n: u32| {
            let path = dir.join(n.to_string());
            fs::write(&path, n.to_le_bytes()).expect("write");
            let key = (Slot::new(n + 1).expect("slot"), n % 2 == 1);
            ByPath::new(descriptors, key, path).expect("is there")
        };
        (0..count).map(blob).collect()
    }

    fn check(blob: &ByPath, n: usize) {
        let mut bytes = Vec::new();
        blob.will_need(0, 4);
        blob.read_range(0, 4, &mut bytes).expect("read");
        assert_eq!(bytes, (n as u32).to_le_bytes());
    }

    #[test]
    fn the_least_recently_read_is_closed() {
        let dir = tempfile::tempdir().expect("directory");
        let descriptors = Arc::new(Descriptors::at_most(3));
        let blobs = blobs(dir.path(), &descriptors, 5);
        assert_eq!(descriptors.count(), 0, "nothing was read");
        blobs.iter().enumerate().for_each(|(n, blob)| check(blob, n));
        assert_eq!(descriptors.count(), 3);
        // The last three are open: they are read though they are gone by now
        fs::remove_dir_all(dir.path()).expect("remove");
        (2..5).for_each(|n| check(&blobs[n], n));
        let gone = blobs[0].read_range(0, 4, &mut Vec::new()).expect_err("was closed");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        descriptors.forget(blobs[2].key.0);
        assert_eq!(descriptors.count(), 2);
        fs::create_dir(dir.path()).expect("for its own removal");
    }

    #[test]
    fn many_readers_of_many_files() {
        let dir = tempfile::tempdir().expect("directory");
        let descriptors = Arc::new(Descriptors::at_most(4));
        let blobs = blobs(dir.path(), &descriptors, 40);
        thread::scope(|scope| {
            for start in 0..8 {
                let blobs = &blobs;
                let order = (0..400).map(move |n| (n * 7 + start) % 40);
                scope.spawn(move || order.for_each(|n| check(&blobs[n], n)));
            }
        });
        assert_eq!(descriptors.count(), 4);
    }

    #[test]
    fn what_is_not_there_is_told_at_once() {
        let descriptors = Arc::new(Descriptors::new());
        let key = (Slot::new(1).expect("slot"), false);
        let missing = ByPath::new(&descriptors, key, "/nonexistent/blob".into());
        assert_eq!(missing.err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
        let full = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
        assert!(too_many(&full) && !too_many(&io::ErrorKind::NotFound.into()));
    }
}
