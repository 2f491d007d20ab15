//! Files: opened with care, read with a bound, replaced at once.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use peel_index::{Digest, Hasher};

use super::error::ContentError;

/// How much is hashed at a time, in bytes: enough to make the system call's cost vanish.
const CHUNK: usize = 128 << 10;

/// Opens a regular file for reading and says how long it is.
///
/// Symbolic links are followed, since build tools make layouts of them; what is read is checked
/// against a digest. A fifo or a device is refused without waiting for it.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), ContentError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(ContentError::io("open", path))?;
    let metadata = file.metadata().map_err(ContentError::io("look at", path))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let found = match kind {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_fifo() => "a fifo",
            _ => "a device",
        };
        return Err(ContentError::NotAFile { path: path.to_owned(), found });
    }
    Ok((file, metadata.len()))
}

/// Reads a whole file of at most `max` bytes.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, ContentError> {
    let (file, len) = open_regular(path)?;
    let too_large = |found| ContentError::TooLarge { path: path.to_owned(), limit: max, found };
    if len > max {
        return Err(too_large(len));
    }
    // It may grow meanwhile
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    file.take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(ContentError::io("read", path))?;
    let found = bytes.len() as u64;
    if found > max {
        return Err(too_large(found));
    }
    Ok(bytes)
}

/// Reads a whole file of at most `max` bytes and checks its digest.
pub(super) fn read_verified(
    path: &Path,
    digest: &Digest,
    max: u64,
) -> Result<Vec<u8>, ContentError> {
    let bytes = read_bounded(path, max)?;
    verify(path, digest, &bytes)?;
    Ok(bytes)
}

/// Checks the digest of what was read from `path`.
pub(super) fn verify(path: &Path, digest: &Digest, bytes: &[u8]) -> Result<(), ContentError> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    if found != *digest {
        return Err(ContentError::Digest {
            path: path.to_owned(),
            expected: (*digest).into(),
            found: found.into(),
        });
    }
    Ok(())
}

/// The digest of everything in `file`, from where it stands.
pub(super) fn hash(mut file: impl Read, mut hasher: Hasher) -> io::Result<Digest> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Writes `bytes` beside `path` and puts them in its place: a reader sees the old or the new.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ContentError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let fresh = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().map_err(|e| {
        // What is left is overwritten by the next one, so its removal may fail
        drop(std::fs::remove_file(&fresh));
        space_or_io(e, "write", path, Some(bytes.len() as u64))
    })?;
    sync_dir(dir)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ContentError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(ContentError::io("sync", dir))
}

/// Locks a file for this descriptor; false where another one has it.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The error of a write: a full disk with the figures, else the plain one.
pub(super) fn space_or_io(
    source: io::Error,
    action: &'static str,
    path: &Path,
    needed: Option<u64>,
) -> ContentError {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    if !matches!(source.kind(), StorageFull | QuotaExceeded) {
        return ContentError::Io { action, path: path.to_owned(), source };
    }
    let dir = path.parent().unwrap_or(path);
    let available = available(dir).unwrap_or(0);
    ContentError::NoSpace { path: dir.to_owned(), needed, available }
}

/// Bytes that may still be written where `dir` is; `None` where the file system does not say.
pub(super) fn available(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}
