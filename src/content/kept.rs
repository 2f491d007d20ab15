//! What a pull that is under way, or was broken off, wants to find again: a list of blobs beside the
//! ingests, which outlives the process for a day.

use std::{collections::HashSet, fs, io, path::Path, sync::PoisonError};

use peel_index::Digest;

use super::{
    error::ContentError,
    file::{read_bounded, replace},
    ingest::{KEEP_FOR, WORTH_KEEPING},
    store::ContentStore,
};

/// The list's name in its directory.
const LIST: &str = "blobs";
/// Longest list that is read: 4 MiB, as long as the manifest that it comes from may be.
const MAX_LIST: u64 = 4 << 20;

impl ContentStore {
    /// Keeps blobs from being taken for garbage, those that are not here yet included: for a day, or
    /// until [`ContentStore::unkeep`]. `key` names the pull.
    pub fn keep_blobs(&self, key: &str, blobs: &[Digest]) -> Result<(), ContentError> {
        let dir = self.kept_dir(key);
        let _order = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&dir).map_err(ContentError::io("create", &dir))?;
        let list: String = blobs.iter().map(|digest| format!("{digest}\n")).collect();
        replace(&dir.join("ref"), key.as_bytes())?;
        replace(&dir.join(LIST), list.as_bytes())
    }

    /// Ends [`ContentStore::keep_blobs`]; nothing happens where there was none.
    pub fn unkeep(&self, key: &str) -> Result<(), ContentError> {
        let dir = self.kept_dir(key);
        let _order = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(ContentError::Io { action: "remove", path: dir, source: e })
            }
            _ => Ok(()),
        }
    }

    /// The blobs that are kept, but for those so small that fetching them again costs no more.
    pub fn kept_blobs(&self) -> Result<HashSet<Digest>, ContentError> {
        let root = self.root().join("ingest");
        let entries = fs::read_dir(&root).map_err(ContentError::io("list", &root))?;
        let mut kept = HashSet::new();
        for entry in entries {
            kept.extend(self.kept_in(&entry.map_err(ContentError::io("list", &root))?.path())?);
        }
        Ok(kept)
    }

    /// What a directory below `ingest/` keeps.
    pub(super) fn kept_in(&self, dir: &Path) -> Result<HashSet<Digest>, ContentError> {
        let path = dir.join(LIST);
        let mut kept = HashSet::new();
        let modified = fs::metadata(&path).and_then(|found| found.modified());
        // A time ahead of the clock counts as now
        if !modified.is_ok_and(|then| then.elapsed().map_or(true, |age| age < KEEP_FOR)) {
            return Ok(kept);
        }
        // What is no digest, after a crash, keeps nothing
        for line in read_bounded(&path, MAX_LIST)?.split(|byte| *byte == b'\n') {
            let digest = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok());
            let Some(digest) = digest else { continue };
            if self.info(&digest)?.is_some_and(|blob| blob.size >= WORTH_KEEPING) {
                kept.insert(digest);
            }
        }
        Ok(kept)
    }

    fn kept_dir(&self, key: &str) -> std::path::PathBuf {
        let name = Digest::sha256(format!("pull {key}").as_bytes()).hex();
        self.root().join("ingest").join(name)
    }
}
