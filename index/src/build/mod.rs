//! One streaming pass over a layer's blob that gives its index.
//!
//! ```text
//! blob ──▶ digest
//!     └──▶ StreamDecoder ──▶ tar ──▶ sha256 (diffID)
//!               │                └──▶ TarParser ──▶ tree of the layer ──▶ records
//!               └──▶ spans, windows, seekable copy
//! ```
//!
//! Memory: about 120 bytes an entry of the tar while it is read, about as much again while it is
//! encoded. Nothing locks: a builder belongs to one thread.

mod apply;
mod arena;
mod encode;
mod error;
#[cfg(test)]
mod tests;

pub use arena::MAX_ENTRIES;
pub use error::{BuildError, EntryProblem};

use apply::LayerTree;

use crate::{
    codec::{CodecError, Compression, StreamDecoder},
    digest::{Algorithm, Digest, Hasher},
    format::{LayerMeta, Sealed},
    layer::digest_record,
    nodeid::Slot,
    tar::{TarError, TarParser},
};

/// Goes up whenever the numbering of inodes or the spans of the same blob would come out
/// differently.
pub const BUILDER_VERSION: u32 = 1;

/// What parser and decoder are told when the tar is refused; the reason is kept apart.
const REFUSED: &str = "refused by the layer builder";

/// Push a layer's blob in, get its index out.
pub struct LayerBuilder {
    blob: Hasher,
    blob_len: u64,
    copy_len: u64,
    decoder: StreamDecoder,
    reader: TarReader,
}

/// What happens to the bytes of the tar.
struct TarReader {
    diff_id: Hasher,
    len: u64,
    parser: TarParser,
    tree: LayerTree,
    /// Why the tar was refused.
    failed: Option<BuildError>,
}

impl LayerBuilder {
    /// A builder that has seen nothing; the blob is going to be hashed with `blob_algorithm`.
    pub fn new(blob_algorithm: Algorithm) -> Self {
        Self {
            blob: Hasher::new(blob_algorithm),
            blob_len: 0,
            copy_len: 0,
            decoder: StreamDecoder::new(),
            reader: TarReader {
                diff_id: Hasher::new(Algorithm::Sha256),
                len: 0,
                parser: TarParser::new(),
                tree: LayerTree::new(),
                failed: None,
            },
        }
    }

    /// Takes the next bytes of the blob, in any split.
    ///
    /// # Errors
    /// When the blob cannot be decompressed, is no tar, or holds an entry that cannot be
    /// represented; the builder is of no use then.
    pub fn push(&mut self, blob: &[u8]) -> Result<(), BuildError> {
        self.blob.update(blob);
        self.blob_len += blob.len() as u64;
        let reader = &mut self.reader;
        let pushed = self.decoder.push(blob, &mut |tar| reader.push(tar));
        match self.reader.failed.take() {
            Some(error) => Err(error),
            None => Ok(pushed?),
        }
    }

    /// Takes what there is of the seekable copy: bytes to append to it. Most layers have none.
    pub fn take_copy(&mut self) -> Vec<u8> {
        let copy = self.decoder.take_copy();
        self.copy_len += copy.len() as u64;
        copy
    }

    /// Bytes of the uncompressed tar so far.
    pub fn tar_bytes(&self) -> u64 {
        self.reader.len
    }

    /// Ends the blob.
    ///
    /// # Errors
    /// As [`Self::push`], and when the stream or the tar is cut off.
    pub fn finish(self) -> Result<BuiltLayer, BuildError> {
        let Self { blob, blob_len, copy_len, decoder, mut reader } = self;
        let decoded = decoder.finish(&mut |tar| reader.push(tar));
        if let Some(error) = reader.failed.take() {
            return Err(error);
        }
        let decoded = decoded?;
        reader.parser.finish()?;
        let (blob, diff_id) = (blob.finish(), reader.diff_id.finish());
        let copy_len = copy_len + decoded.copy.len() as u64;
        let (blob_algorithm, raw_blob) = digest_record(&blob);
        let (diff_algorithm, raw_diff_id) = digest_record(&diff_id);
        let meta = LayerMeta {
            blob_len: blob_len.into(),
            tar_len: reader.len.into(),
            copy_len: copy_len.into(),
            lower_links: 0.into(),
            compression: decoded.compression.code(),
            blob_algorithm,
            diff_algorithm,
            reserved: 0,
            reserved_tail: 0.into(),
            blob: raw_blob,
            diff_id: raw_diff_id,
        };
        let sealed = encode::seal(reader.tree.arena, meta, &decoded.spans, decoded.windows)?;
        Ok(BuiltLayer {
            blob,
            blob_len,
            diff_id,
            tar_len: reader.len,
            compression: decoded.compression,
            copy_len,
            copy_rest: decoded.copy,
            sealed,
        })
    }
}

impl TarReader {
    fn push(&mut self, tar: &[u8]) -> Result<(), CodecError> {
        self.diff_id.update(tar);
        self.len += tar.len() as u64;
        let Self { parser, tree, failed, .. } = self;
        let parsed = parser.push(tar, &mut |entry| {
            tree.apply(&entry).map_err(|error| {
                *failed = Some(error);
                TarError::refused(&entry, REFUSED)
            })
        });
        parsed.map_err(|error| {
            failed.get_or_insert(BuildError::Tar(error));
            CodecError::sink(REFUSED)
        })
    }
}

/// The index of a layer, finished but for its slot.
pub struct BuiltLayer {
    /// Digest of the blob.
    pub blob: Digest,
    /// Length of the blob in bytes.
    pub blob_len: u64,
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the uncompressed tar in bytes.
    pub tar_len: u64,
    /// Compression of the blob.
    pub compression: Compression,
    /// Length of the whole seekable copy in bytes; 0 where the layer needs none.
    pub copy_len: u64,
    /// The end of the seekable copy: what [`LayerBuilder::take_copy`] has not given out.
    pub copy_rest: Vec<u8>,
    sealed: Sealed,
}

impl BuiltLayer {
    /// Digest of what inode numbers depend on, as [`crate::Layer::numbering`] will give it.
    pub fn numbering(&self) -> [u8; 32] {
        self.sealed.numbering()
    }

    /// The index file under a slot: the same layer gives the same bytes but for the header.
    pub fn encode(&self, slot: Slot) -> Vec<u8> {
        self.sealed.encode(slot)
    }
}

impl std::fmt::Debug for BuiltLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuiltLayer")
            .field("blob", &self.blob)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}
