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
//! encoded.
//!
//! # Threads
//!
//! A builder does everything on the thread that calls it, until [`LayerBuilder::spread`] gives
//! parts of the work to threads of their own, over bounded queues of buffers that come back:
//!
//! | thread | work |
//! | --- | --- |
//! | the caller's | decoding, where spans end |
//! | `peel-digests` | digests of blob and tar |
//! | `peel-tar` | headers, tree |
//! | `peel-spans` | digests of spans, windows, seekable copy |
//!
//! Decoding takes longest for real layers, the tree for a layer of tiny files. The decoder's buffers
//! are handed over as they are, and go back when digests and tree are done with them.
//!
//! Each part sees its bytes in order, so the index does not depend on the threads.

mod apply;
mod arena;
mod encode;
mod error;
mod reader;
#[cfg(test)]
mod tests;

pub use arena::MAX_ENTRIES;
pub use error::{BuildError, EntryProblem};

use std::{borrow::Cow, ops::Range};

use reader::ReaderStage;

use crate::{
    codec::{CodecError, Compression, StreamDecoder, TarSink},
    digest::{Algorithm, Digest},
    format::{LayerMeta, Sealed},
    layer::digest_record,
    nodeid::Slot,
};

/// Goes up whenever the numbering of inodes or the spans of the same blob would come out
/// differently.
pub const BUILDER_VERSION: u32 = 2;

/// Push a layer's blob in, get its index out.
pub struct LayerBuilder {
    blob_len: u64,
    copy_len: u64,
    decoder: StreamDecoder,
    reader: ReaderStage,
}

impl LayerBuilder {
    /// A builder that has seen nothing; the blob is going to be hashed with `blob_algorithm`.
    pub fn new(blob_algorithm: Algorithm) -> Self {
        Self {
            blob_len: 0,
            copy_len: 0,
            decoder: StreamDecoder::new(),
            reader: ReaderStage::new(blob_algorithm),
        }
    }

    /// Uses three more threads from here on, where they can be had: one for the digests, one for the
    /// tree, one for windows and the seekable copy. Worth it when a core is free: the index is the
    /// same, and takes about 6 MiB more memory to build.
    pub fn spread(&mut self) {
        self.decoder.spread();
        self.reader.spread();
    }

    /// Takes the next bytes of the blob, in any split.
    ///
    /// # Errors
    /// When the blob cannot be decompressed, is no tar, or holds an entry that cannot be
    /// represented; the builder is of no use then. Some errors come up in a later call, and in
    /// [`Self::finish`] at the latest.
    pub fn push(&mut self, blob: &[u8]) -> Result<(), BuildError> {
        self.blob_len += blob.len() as u64;
        self.reader.push_blob(blob);
        let Self { decoder, reader, .. } = self;
        let mut sink = ReaderSink { reader, refused: None };
        let pushed = decoder.push_to(blob, &mut sink);
        let refused = sink.refused;
        self.decoded(pushed, refused)
    }

    /// Takes what there is of the seekable copy: bytes to append to it. Most layers have none.
    pub fn take_copy(&mut self) -> Vec<u8> {
        let copy = self.decoder.take_copy();
        self.copy_len += copy.len() as u64;
        copy
    }

    /// Bytes of the uncompressed tar so far.
    pub fn tar_bytes(&self) -> u64 {
        self.reader.tar_len()
    }

    /// Ends the blob.
    ///
    /// # Errors
    /// As [`Self::push`], and when the stream or the tar is cut off.
    pub fn finish(mut self) -> Result<BuiltLayer, BuildError> {
        let Self { decoder, reader, .. } = &mut self;
        let mut sink = ReaderSink { reader, refused: None };
        let decoded = std::mem::take(decoder).finish_to(&mut sink);
        let refused = sink.refused;
        let decoded = self.decoded(decoded, refused)?;
        let Self { blob_len, copy_len, reader, .. } = self;
        let tar_len = reader.tar_len();
        // Whoever got an error from the reader has one from the decoder as well
        let (digests, mut reader) = reader.into_inner()?.ok_or(CodecError::Spent)?;
        reader.parser.finish()?;
        let (blob, diff_id) = (digests.blob.finish(), digests.diff_id.finish());
        let copy_len = copy_len + decoded.copy.len() as u64;
        let (blob_algorithm, raw_blob) = digest_record(&blob);
        let (diff_algorithm, raw_diff_id) = digest_record(&diff_id);
        let meta = LayerMeta {
            blob_len: blob_len.into(),
            tar_len: tar_len.into(),
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
            tar_len,
            compression: decoded.compression,
            copy_len,
            copy_rest: decoded.copy,
            sealed,
        })
    }

    /// An error in the tar comes before one of the decoder, which is further on in the blob.
    fn decoded<T>(
        &mut self,
        result: Result<T, CodecError>,
        refused: Option<BuildError>,
    ) -> Result<T, BuildError> {
        match (result, refused) {
            (_, Some(error)) => Err(error),
            (Ok(decoded), None) => Ok(decoded),
            (Err(error), None) => {
                self.reader.settle()?;
                Err(error.into())
            }
        }
    }
}

/// The way of the tar to the reader.
struct ReaderSink<'a> {
    reader: &'a mut ReaderStage,
    /// Why the reader refused it.
    refused: Option<BuildError>,
}

impl ReaderSink<'_> {
    fn passed(&mut self, result: Result<(), BuildError>) -> Result<(), CodecError> {
        result.map_err(|error| {
            self.refused = Some(error);
            CodecError::sink("refused by the layer builder")
        })
    }
}

impl TarSink for ReaderSink<'_> {
    fn take(&mut self, tar: &[u8]) -> Result<(), CodecError> {
        let result = self.reader.push_tar(tar);
        self.passed(result)
    }

    fn takes_buffers(&self) -> bool {
        self.reader.takes_buffers()
    }

    fn exchange(&mut self, len: usize) -> Option<Vec<u8>> {
        self.reader.takes_buffers().then(|| self.reader.exchange(len))
    }

    fn give(&mut self, buffer: Vec<u8>, tar: Range<usize>) -> Result<(), CodecError> {
        let result = self.reader.give_tar(buffer, tar);
        self.passed(result)
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

    /// What [`Self::encode`] gives, in pieces to be written one after the other: spares a copy.
    pub fn parts(&self, slot: Slot) -> impl Iterator<Item = Cow<'_, [u8]>> {
        self.sealed.parts(slot)
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
