//! Where compressed bytes come from.

use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Random access to the compressed bytes of one blob.
///
/// The seam for what is not on this disk: a local file now, ranges of the blob in its registry
/// later.
pub trait BlobSource: Send + Sync {
    /// Exactly the bytes `[offset, offset + len)`.
    ///
    /// # Errors
    /// Where the bytes cannot be had; `UnexpectedEof` where the blob ends before them.
    fn read_range(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
}

/// A blob, or a seekable copy, as a local file.
pub struct LocalBlob(pub File);

impl BlobSource for LocalBlob {
    fn read_range(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
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
        let blob = LocalBlob(file);
        assert_eq!(blob.read_range(3, 4).expect("inside"), b"3456");
        assert_eq!(blob.read_range(10, 0).expect("empty"), b"");
        let error = blob.read_range(8, 4).expect_err("past the end");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
