//! The database: one sled tree with key prefixes. The only file that names sled.
//!
//! A write is one batch, then `flush`, then `fdatasync` of the data file: on Linux sled's flush is
//! `sync_file_range`, which neither writes the file's length nor empties the drive's cache.

use std::{
    any::Any,
    collections::BTreeMap,
    fs::File,
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use super::{
    error::{MetadataError, show},
    files,
    transaction::View,
};

/// Bytes of pages that sled keeps in memory. Its default of 1 GiB is past peel's whole budget; the
/// records of 1,000 images take about 4 MB.
const CACHE_BYTES: u64 = 16 << 20;

/// Changes by key; `None` removes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Keys and values in order of key.
pub(super) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why a database did not open.
pub(super) enum OpenFailure {
    /// Its files do not hold what sled wrote.
    Damaged(String),
    /// Opening writes, and there is no space.
    NoSpace(MetadataError),
    /// Anything else; the files may be fine.
    Error(MetadataError),
}

impl From<MetadataError> for OpenFailure {
    fn from(error: MetadataError) -> Self {
        Self::Error(error)
    }
}

pub(super) struct Store {
    db: sled::Db,
    file: File,
    dir: PathBuf,
}

impl Store {
    /// Opens or creates the database and reads all of it, so that damage is found now.
    pub(super) fn open(dir: &Path) -> Result<(Self, Pairs), OpenFailure> {
        let start = Instant::now();
        let db = loop {
            let config =
                sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            match catch(|| config.open()) {
                Ok(Ok(db)) => break db,
                Ok(Err(e)) if is_locked(&e) => {
                    if start.elapsed() > files::LOCK_PATIENCE {
                        return Err(MetadataError::Locked { path: dir.to_owned() }.into());
                    }
                    thread::sleep(files::LOCK_POLL);
                }
                Ok(Err(e)) => return Err(classify(e, "open", dir)),
                Err(text) => return Err(OpenFailure::Damaged(text)),
            }
        };
        let path = dir.join("db");
        let file = File::open(&path).map_err(files::io_error("open", &path))?;
        let store = Self { db, file, dir: dir.to_owned() };
        let pairs = match catch(|| collect(store.db.iter())) {
            Ok(Ok(pairs)) => pairs,
            Ok(Err(e)) => return Err(classify(e, "read", dir)),
            Err(text) => return Err(OpenFailure::Damaged(text)),
        };
        files::sync_dir(dir)?;
        Ok((store, pairs))
    }

    /// All changes or none; on disk when this returns.
    pub(super) fn write(&self, changes: Changes) -> Result<(), MetadataError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let all = || "-".to_owned();
        self.db.apply_batch(batch).map_err(|e| self.error("write", all(), e))?;
        self.db.flush().map_err(|e| self.error("flush", all(), e))?;
        self.file.sync_data().map_err(|e| self.error("sync", all(), e))
    }

    fn error<E>(&self, action: &'static str, key: String, source: E) -> MetadataError
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        MetadataError::Store { action, key, path: self.dir.clone(), source: Box::new(source) }
    }
}

impl View for Store {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetadataError> {
        let value = self.db.get(key).map_err(|e| self.error("read", show(key), e))?;
        Ok(value.map(|v| v.to_vec()))
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, MetadataError> {
        collect(self.db.scan_prefix(prefix)).map_err(|e| self.error("list", show(prefix), e))
    }

    fn place(&self) -> &Path {
        &self.dir
    }
}

fn collect(iter: sled::Iter) -> Result<Pairs, sled::Error> {
    iter.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
}

/// sled meets some kinds of damage with an assertion.
fn catch<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(call)).map_err(|payload| panic_text(&*payload))
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    format!("the database's code panicked: {}", text.unwrap_or("no message"))
}

/// sled wraps the lock's EWOULDBLOCK into an error of its own kind, so only its text is left.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(e) if e.to_string().starts_with("could not acquire lock"))
}

fn classify(error: sled::Error, action: &'static str, dir: &Path) -> OpenFailure {
    let damaged = match &error {
        sled::Error::Corruption { .. } | sled::Error::ReportableBug(_) => true,
        // The configuration never changes, so a foreign one is a damaged one
        sled::Error::Unsupported(_) | sled::Error::CollectionNotFound(_) => true,
        // What sled says about a file that is cut short or does not parse
        sled::Error::Io(e) => matches!(
            e.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
        ),
    };
    if damaged {
        return OpenFailure::Damaged(error.to_string());
    }
    let full = matches!(&error, sled::Error::Io(e) if e.kind() == io::ErrorKind::StorageFull);
    let error = MetadataError::Store {
        action,
        key: "-".to_owned(),
        path: dir.to_owned(),
        source: Box::new(error),
    };
    if full { OpenFailure::NoSpace(error) } else { OpenFailure::Error(error) }
}
