//! Raising a mount's read-ahead.
//!
//! INIT grants at most what the kernel set up beforehand, 128 KiB; only sysfs raises it.

use std::{io, path::Path};

use super::mountinfo;

/// Read-ahead of peel's mount, in KiB.
///
/// It is also what the kernel reads around a page fault, and programs touch their libraries through
/// maps, at places that jump: each waits for what it does not want. A reader in order does not need
/// it longer, as the worker decodes ahead by itself. Medians of 3 with caches dropped, times on ext4
/// beside them; the second is a gzip layer's biggest file, the third all files of an image:
///
/// | KiB | Python importing numpy, times an overlay on ext4 | 256 MiB in order | 8,700 files |
/// | --: | --: | --: | --: |
/// | 128 (the kernel's) | 1.32 | 2.15 s (1.58) | 1.85 s |
/// | 256 | | 1.68 s | 1.68 s |
/// | 1024 | 1.38 | 1.82 s | 1.94 s |
pub const READAHEAD_KIB: u32 = 256;

/// Why read-ahead stays as it was. Reads are slower then, nothing else.
#[derive(Debug, thiserror::Error)]
pub enum ReadaheadError {
    /// Nothing is mounted there.
    #[error("nothing is mounted on {target}")]
    NotMounted {
        /// The directory.
        target: String,
    },
    /// mountinfo cannot be read, or sysfs cannot be written (it often is read-only in containers).
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Sets the read-ahead of what is mounted on `target` (absolute, without symlinks) to `kib` KiB.
/// Sends no request to the file system.
pub fn raise_readahead(target: &Path, kib: u32) -> Result<(), ReadaheadError> {
    let mounts = mountinfo::mounts_on(target)
        .map_err(|source| ReadaheadError::Io { path: "/proc/self/mountinfo".to_owned(), source })?;
    let Some(mount) = mounts.last() else {
        return Err(ReadaheadError::NotMounted { target: target.display().to_string() });
    };
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", mount.major, mount.minor);
    std::fs::write(&path, kib.to_string()).map_err(|source| ReadaheadError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_no_mount() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let result = raise_readahead(dir.path(), READAHEAD_KIB);
        assert!(matches!(result, Err(ReadaheadError::NotMounted { .. })), "{result:?}");
    }
}
