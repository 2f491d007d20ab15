//! The small files beside the database, each written so that a crash leaves the old or the new.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use peel_index::Digest;

use super::error::MetadataError;

/// How long a lock is waited for. Its holder may be gone already: a program that another thread
/// was just starting has a copy of every descriptor until it is executed, and sled's threads let go
/// of theirs a moment after the database is dropped.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How often it is looked at meanwhile.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(5);

pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> MetadataError {
    let path = path.to_owned();
    move |source| MetadataError::Io { action, path, source }
}

/// Makes a directory that only its owner can enter, and its parents.
pub(super) fn make_dir(dir: &Path) -> Result<(), MetadataError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), MetadataError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync", dir))
}

/// The bytes of a file of at most `max` bytes; `None` where there is none.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Option<Vec<u8>>, MetadataError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open", path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > max {
        let reason = io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {max} bytes"));
        return Err(io_error("read", path)(reason));
    }
    Ok(Some(bytes))
}

/// Replaces a file: temporary file, fsync, rename, fsync of the directory.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), MetadataError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(e) = written {
        // Best effort: the space may be what is missing
        let _ = fs::remove_file(&temporary);
        return Err(io_error("write", &temporary)(e));
    }
    fs::rename(&temporary, path).map_err(io_error("rename", &temporary))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// The lock that one process has on the store, for as long as it lives.
pub(super) fn lock(path: &Path) -> Result<File, MetadataError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(io_error("open", path))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                thread::sleep(LOCK_POLL);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(MetadataError::Locked { path: path.to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(io_error("lock", path)(e)),
        }
    }
}

/// One number with a checksum, as a line of text.
fn number_line(name: &str, number: u64) -> String {
    let text = format!("{name} {number:020}");
    let check = &Digest::sha256(text.as_bytes()).hex()[..8];
    format!("{text} {check}\n")
}

/// `None` for anything but what [`number_line`] writes.
fn parse_number(name: &str, line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    let number = text.strip_prefix(name)?.trim_start().split(' ').next()?.parse().ok()?;
    (number_line(name, number) == text).then_some(number)
}

/// Reads a number file. A damaged one counts as missing, loudly: each is one guard of several.
pub(super) fn read_number(path: &Path, name: &str) -> Result<Option<u64>, MetadataError> {
    let Some(bytes) = read_bounded(path, 4096)? else {
        return Ok(None);
    };
    let number = parse_number(name, &bytes);
    if number.is_none() {
        tracing::error!(path = %path.display(), "damaged number file, left out of account");
    }
    Ok(number)
}

/// Replaces a number file; on disk when this returns.
pub(super) fn replace_number(path: &Path, name: &str, number: u64) -> Result<(), MetadataError> {
    replace(path, number_line(name, number).as_bytes())
}

/// A number file that is overwritten in place and never synced: a death of the process leaves it
/// right, a power cut may leave an older number.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    path: PathBuf,
    name: &'static str,
}

impl Mark {
    pub(super) fn open(path: &Path, name: &'static str) -> Result<Self, MetadataError> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(io_error("open", path))?;
        Ok(Self { file, path: path.to_owned(), name })
    }

    pub(super) fn set(&self, number: u64) -> Result<(), MetadataError> {
        let line = number_line(self.name, number);
        self.file.write_all_at(line.as_bytes(), 0).map_err(io_error("write", &self.path))
    }
}

/// Space kept back for a full disk: without it the database could not even be opened to remove
/// something, since sled writes when it opens.
#[derive(Debug)]
pub(super) struct Spare(PathBuf);

impl Spare {
    /// Two of sled's segments.
    const BYTES: u64 = 1 << 20;

    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Lays the space in again, where it was used up. Best effort: it may still be missing.
    pub(super) fn fill(&self) {
        if self.0.metadata().is_ok_and(|m| m.len() == Self::BYTES) {
            return;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let filled = options.open(&self.0).and_then(|file| {
            let flags = rustix::fs::FallocateFlags::empty();
            Ok(rustix::fs::fallocate(&file, flags, 0, Self::BYTES)?)
        });
        if let Err(error) = filled {
            tracing::debug!(path = %self.0.display(), %error, "no space kept back");
            self.release();
        }
    }

    /// Gives the space to whoever needs it next.
    pub(super) fn release(&self) {
        // Missing is as good
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_number_is_found() {
        let line = number_line("slots", 4711);
        assert_eq!(parse_number("slots", line.as_bytes()), Some(4711));
        assert_eq!(parse_number("other", line.as_bytes()), None);
        for bit in 0..line.len() * 8 {
            let mut bytes = line.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_number("slots", &bytes), None, "bit {bit}");
        }
        for len in 0..line.len() {
            assert_eq!(parse_number("slots", &line.as_bytes()[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn replace_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("number");
        assert_eq!(read_number(&path, "n").expect("read"), None);
        replace_number(&path, "n", 1).expect("write");
        replace_number(&path, "n", u64::MAX).expect("write");
        assert_eq!(read_number(&path, "n").expect("read"), Some(u64::MAX));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
        assert!(read_bounded(&path, 5).is_err());
    }
}
