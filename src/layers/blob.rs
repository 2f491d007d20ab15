//! Where compressed bytes come from.

use std::{fs::File, io, num::NonZeroU64, os::unix::fs::FileExt as _};

use rustix::fs::{Advice, fadvise};

/// Random access to the compressed bytes of one blob.
///
/// The seam for what is not on this disk: a local file now, ranges of the blob in its registry
/// later.
pub trait BlobSource: Send + Sync {
    /// Replaces the content of `bytes` by exactly the bytes `[offset, offset + len)`.
    ///
    /// # Errors
    /// Where the bytes cannot be had; `UnexpectedEof` where the blob ends before them.
    fn read_range(&self, offset: u64, len: usize, bytes: &mut Vec<u8>) -> io::Result<()>;

    /// Says that the bytes `[offset, offset + len)` will be read soon. Never blocks for long.
    fn will_need(&self, offset: u64, len: u64);
}

/// What the kernel reads at a time of a file that is read at random, on most disks, in bytes.
const PIECE: usize = 128 << 10;

/// A blob, or a seekable copy, as a local file.
pub struct LocalBlob(File);

impl LocalBlob {
    /// Reads from a file.
    pub fn new(file: File) -> Self {
        // Whole spans are read, from anywhere: what the kernel would guess to come next is as
        // often as not of no use. A file system without advice only reads more.
        let _ = fadvise(&file, 0, None, Advice::Random);
        Self(file)
    }
}

impl BlobSource for LocalBlob {
    // Not from a map: a file cut short under a map kills the process that looks there
    fn read_range(&self, offset: u64, len: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        // What a buffer that is used again holds is not cleared, only overwritten
        bytes.resize(len, 0);
        // All of it is under way at once then: a read alone asks the disk for one piece after the
        // other, and waits for each
        if len > PIECE {
            self.will_need(offset, len as u64);
        }
        self.0.read_exact_at(bytes, offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        // Without it the bytes are read when they are needed
        let _ = fadvise(&self.0, offset, NonZeroU64::new(len), Advice::WillNeed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn ranges_of_a_file() {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(b"0123456789").expect("write");
        let blob = LocalBlob::new(file);
        let mut bytes = b"what was here before".to_vec();
        let mut read = |offset, len| {
            blob.will_need(offset, len as u64);
            blob.read_range(offset, len, &mut bytes).map(|()| bytes.clone())
        };
        assert_eq!(read(3, 4).expect("inside"), b"3456");
        assert_eq!(read(10, 0).expect("empty"), b"");
        assert_eq!(read(0, 10).expect("all"), b"0123456789");
        let error = read(8, 4).expect_err("past the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
