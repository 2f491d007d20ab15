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
//! encoded. Besides, a few MiB, and 90 KiB per GiB of tar, as long as copy and windows are taken.
//!
//! # Threads
//!
//! A builder does everything on the thread that calls it, until [`LayerBuilder::spread`] starts a
//! helper: exactly one, for a third thread would take the core of one of the two. The caller decodes,
//! which takes longest for real layers. Three stages do the rest, each in order:
//!
//! | stage | work | time |
//! | --- | --- | --- |
//! | digests | sha256 of blob and tar | 0.8 ns a byte of tar |
//! | reader | headers, tree | up to 1 us an entry |
//! | span table | digests of spans, windows, seekable copy | 0.1 ns a byte; with a copy 2 ns |
//!
//! The helper does what waits in the longest queue. When too much waits (a layer of tiny files, one
//! frame of zstd), the caller does part of it before it goes on (`stage.rs`). The decoder's buffers
//! are handed over as they are, and come back when digests and tree are done with them. Of the blob,
//! digests and spans share one copy.
//!
//! Each stage sees its bytes in order, so the index does not depend on the threads.

mod apply;
mod arena;
mod encode;
mod error;
mod reader;
#[cfg(test)]
mod tests;

pub use arena::MAX_ENTRIES;
pub use error::{BuildError, EntryProblem};

use std::{io, ops::Range};

use reader::ReaderStage;

use crate::{
    codec::{CodecError, Compression, StreamDecoder, TarSink},
    digest::{Algorithm, Digest},
    format::{LayerMeta, Sealed},
    layer::digest_record,
    nodeid::Slot,
    stage::Helper,
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
    helper: Option<Helper>,
}

impl LayerBuilder {
    /// A builder that has seen nothing; the blob is going to be hashed with `blob_algorithm`.
    pub fn new(blob_algorithm: Algorithm) -> Self {
        Self {
            blob_len: 0,
            copy_len: 0,
            decoder: StreamDecoder::new(),
            reader: ReaderStage::new(blob_algorithm),
            helper: None,
        }
    }

    /// Uses one more thread from here on, where one can be had. Worth it when a core is free: the
    /// index is the same, and takes about 4 MiB more memory to build.
    pub fn spread(&mut self) {
        if self.helper.is_none()
            && let Some(helper) = Helper::start()
        {
            self.decoder.share(&helper);
            self.reader.share(&helper);
            self.helper = Some(helper);
        }
    }

    /// Takes the next bytes of the blob, in any split.
    ///
    /// # Errors
    /// When the blob cannot be decompressed, is no tar, or holds an entry that cannot be
    /// represented; the builder is of no use then. Some errors come up in a later call, and in
    /// [`Self::finish`] at the latest.
    pub fn push(&mut self, blob: &[u8]) -> Result<(), BuildError> {
        self.blob_len += blob.len() as u64;
        let mut blob = blob;
        while let Some(shared) = self.reader.share_blob(blob) {
            blob = &blob[shared.len()..];
            let Self { decoder, reader, .. } = self;
            let mut sink = ReaderSink { reader, blob: &[], refused: None };
            let pushed = decoder.push_shared(&shared, &mut sink);
            let refused = sink.refused;
            self.decoded(pushed, refused)?;
        }
        let Self { decoder, reader, .. } = self;
        let mut unhashed = blob;
        if reader.takes_buffers() {
            reader.push_blob(std::mem::take(&mut unhashed));
        }
        let mut sink = ReaderSink { reader, blob: unhashed, refused: None };
        let pushed = decoder.push_to(blob, &mut sink);
        let (unhashed, refused) = (sink.blob, sink.refused);
        self.reader.push_blob(unhashed);
        self.decoded(pushed, refused)
    }

    /// Takes what there is of the seekable copy: bytes to append to it. Most layers have none.
    pub fn take_copy(&mut self) -> Vec<u8> {
        let copy = self.decoder.take_copy();
        self.copy_len += copy.len() as u64;
        copy
    }

    /// Takes what there is of the heap of windows, where it is much: bytes to append to a file that
    /// [`BuiltLayer::write_to`] reads again. Without that, 2 MiB per GiB of tar stay in memory. Most
    /// layers below 300 MB give none.
    pub fn take_windows(&mut self) -> Vec<u8> {
        self.decoder.take_windows()
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
        let mut sink = ReaderSink { reader, blob: &[], refused: None };
        let decoded = std::mem::take(decoder).finish_to(&mut sink);
        let refused = sink.refused;
        let mut decoded = self.decoded(decoded, refused)?;
        let Self { blob_len, copy_len, reader, helper, .. } = self;
        let tar_len = reader.tar_len();
        // Whoever got an error from the reader has one from the decoder as well
        let (digests, mut reader) = reader.into_inner()?.ok_or(CodecError::Spent)?;
        drop(helper);
        reader.parser.finish()?;
        let (blob, diff_id) = digests.finish();
        let copy_rest = std::mem::take(&mut decoded.copy);
        let copy_len = copy_len + copy_rest.len() as u64;
        let compression = decoded.compression;
        let (blob_algorithm, raw_blob) = digest_record(&blob);
        let (diff_algorithm, raw_diff_id) = digest_record(&diff_id);
        let meta = LayerMeta {
            blob_len: blob_len.into(),
            tar_len: tar_len.into(),
            copy_len: copy_len.into(),
            lower_links: 0.into(),
            compression: compression.code(),
            blob_algorithm,
            diff_algorithm,
            reserved: 0,
            reserved_tail: 0.into(),
            blob: raw_blob,
            diff_id: raw_diff_id,
        };
        let sealed = encode::seal(reader.tree.arena, meta, decoded)?;
        Ok(BuiltLayer {
            blob,
            blob_len,
            diff_id,
            tar_len,
            compression,
            copy_len,
            copy_rest,
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
struct ReaderSink<'a, 'b> {
    reader: &'a mut ReaderStage,
    /// Bytes of the blob that are to be hashed, beside those of the tar.
    blob: &'b [u8],
    /// Why the reader refused it.
    refused: Option<BuildError>,
}

impl ReaderSink<'_, '_> {
    fn passed(&mut self, result: Result<(), BuildError>) -> Result<(), CodecError> {
        result.map_err(|error| {
            self.refused = Some(error);
            CodecError::sink("refused by the layer builder")
        })
    }
}

impl TarSink for ReaderSink<'_, '_> {
    fn take(&mut self, tar: &[u8]) -> Result<(), CodecError> {
        let result = self.reader.push_tar(tar, &mut self.blob);
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

    /// The index file under a slot: the same layer gives the same bytes but for the header. To be
    /// used where [`LayerBuilder::take_windows`] was not.
    pub fn encode(&self, slot: Slot) -> Vec<u8> {
        self.sealed.encode(slot)
    }

    /// Writes what [`Self::encode`] gives. `windows` are the bytes that
    /// [`LayerBuilder::take_windows`] gave, one after the other.
    ///
    /// # Errors
    /// Of `out` and `windows`, and when these are too few.
    pub fn write_to(
        &self,
        slot: Slot,
        out: &mut impl io::Write,
        windows: impl io::Read,
    ) -> io::Result<()> {
        self.sealed.write_to(slot, out, windows)
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
