//! What happens to the bytes of blob and tar besides decoding: both digests, and the tree.
//!
//! Two stages, since either can be the longer one: digests take half a nanosecond a byte, the tree up
//! to a microsecond an entry. Where a helper has part in them they get the buffers that the decoder
//! wrote to; the last to let go of one gives it back.

use std::{
    collections::VecDeque,
    convert::Infallible,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{BuildError, apply::LayerTree};
use crate::{
    digest::{Algorithm, Digest, Hasher},
    stage::{Helper, Stage, Work},
    tar::{TarError, TarParser},
};

/// Bytes that are handed over at once where they have to be copied.
const BUFFER: usize = if cfg!(fuzzing) { 3000 } else { 128 << 10 };

/// Bytes of a blob that are copied once for all who keep them: fewer would waste the buffer.
const WORTH: usize = BUFFER / 2;

/// Most buffers of a kind that are kept to be used again.
const SPARE: usize = 16;

/// What the parser is told when an entry is refused; the reason is kept apart.
const REFUSED: &str = "refused by the layer builder";

/// State of the two digests. Bytes of blob and tar are hashed together as far as there are both.
pub(super) struct Digests {
    blob: Hasher,
    diff_id: Hasher,
    /// Bytes of the blob that wait for bytes of tar, and where the first buffer goes on.
    waiting: VecDeque<Bytes>,
    from: usize,
}

/// Most buffers of the blob that wait.
const WAITING: usize = 4;

/// Bytes, in order for each of the two.
pub(super) enum Hash {
    Blob(Bytes),
    Tar(Bytes),
}

impl Work for Digests {
    type Job = Hash;
    type Error = Infallible;

    fn run(&mut self, job: Hash) -> Result<(), Infallible> {
        match job {
            Hash::Blob(blob) => {
                self.waiting.push_back(blob);
                while self.waiting.len() > WAITING {
                    self.together(&[]);
                }
            }
            Hash::Tar(tar) => self.together(&tar),
        }
        Ok(())
    }

    fn weight(job: &Hash) -> usize {
        let (Hash::Blob(bytes) | Hash::Tar(bytes)) = job;
        bytes.len()
    }
}

impl Digests {
    fn new(blob_algorithm: Algorithm) -> Self {
        Self {
            blob: Hasher::new(blob_algorithm),
            diff_id: Hasher::new(Algorithm::Sha256),
            waiting: VecDeque::new(),
            from: 0,
        }
    }

    /// Hashes bytes of tar, and of the blob what waits: as much, or the rest of a buffer.
    fn together(&mut self, tar: &[u8]) {
        let mut tar = tar;
        while let Some(first) = self.waiting.front() {
            let rest = &first[self.from..];
            let len = if tar.is_empty() { rest.len() } else { rest.len().min(tar.len()) };
            let (now, later) = tar.split_at(len.min(tar.len()));
            self.blob.update_with(&rest[..len], &mut self.diff_id, now);
            self.from += len;
            if len == rest.len() {
                self.waiting.pop_front();
                self.from = 0;
            }
            tar = later;
            if tar.is_empty() {
                return;
            }
        }
        self.diff_id.update(tar);
    }

    /// Digests of blob and tar.
    pub(super) fn finish(mut self) -> (Digest, Digest) {
        while !self.waiting.is_empty() {
            self.together(&[]);
        }
        (self.blob.finish(), self.diff_id.finish())
    }
}

/// State of the tree.
pub(super) struct Reader {
    pub(super) parser: TarParser,
    pub(super) tree: LayerTree,
}

impl Work for Reader {
    type Job = Bytes;
    type Error = BuildError;

    fn run(&mut self, tar: Bytes) -> Result<(), BuildError> {
        self.tar(&tar)
    }

    fn weight(tar: &Bytes) -> usize {
        tar.len()
    }
}

impl Reader {
    fn tar(&mut self, tar: &[u8]) -> Result<(), BuildError> {
        let Self { parser, tree } = self;
        let mut failed = None;
        let parsed = parser.push(tar, &mut |entry| {
            tree.apply(&entry).map_err(|error| {
                failed = Some(error);
                TarError::refused(&entry, REFUSED)
            })
        });
        parsed.map_err(|error| failed.unwrap_or(BuildError::Tar(error)))
    }
}

/// A part of a buffer that goes back when nobody needs it any more.
struct Lent {
    buffer: Vec<u8>,
    part: Range<usize>,
    spare: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.part.clone()]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.spare.lock();
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// Buffers to be used again. The one that came back last is the first to go: few are in use, and
/// those are in a cache.
#[derive(Clone, Default)]
struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // No change to it can panic halfway
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Vec<u8>> {
        self.lock().pop()
    }

    fn share(&self, buffer: Vec<u8>, part: Range<usize>) -> Bytes {
        Bytes::from_owner(Lent { buffer, part, spare: self.clone() })
    }
}

/// The two stages, or the way to them.
pub(super) struct ReaderStage {
    digests: Stage<Digests>,
    reader: Stage<Reader>,
    /// Buffers for `blob` and `tar`, and those that the decoder writes to.
    small: Spare,
    whole: Spare,
    /// Bytes that fill up before they are handed over.
    blob: Vec<u8>,
    tar: Vec<u8>,
    tar_len: u64,
}

impl ReaderStage {
    pub(super) fn new(blob_algorithm: Algorithm) -> Self {
        let digests = Digests::new(blob_algorithm);
        let reader = Reader { parser: TarParser::new(), tree: LayerTree::new() };
        Self {
            digests: Stage::Here(digests),
            reader: Stage::Here(reader),
            small: Spare::default(),
            whole: Spare::default(),
            blob: Vec::new(),
            tar: Vec::new(),
            tar_len: 0,
        }
    }

    /// Shares both stages with a helper from here on.
    pub(super) fn share(&mut self, helper: &Helper) {
        self.digests.share(helper);
        self.reader.share(helper);
    }

    /// Bytes of tar so far.
    pub(super) fn tar_len(&self) -> u64 {
        self.tar_len
    }

    pub(super) fn push_blob(&mut self, blob: &[u8]) {
        if let Some(digests) = self.digests.here() {
            digests.blob.update(blob);
            return;
        }
        let mut rest = blob;
        while fill(&mut self.blob, &self.small, &mut rest) {
            self.send_blob();
        }
    }

    /// Takes bytes of tar; where it does not have to copy, also as many from the front of `blob`,
    /// which [`Self::push_blob`] takes otherwise.
    pub(super) fn push_tar(&mut self, tar: &[u8], blob: &mut &[u8]) -> Result<(), BuildError> {
        self.tar_len += tar.len() as u64;
        match (self.digests.here(), self.reader.here()) {
            (Some(digests), Some(reader)) => {
                let (now, later) = blob.split_at(blob.len().min(tar.len()));
                digests.blob.update_with(now, &mut digests.diff_id, tar);
                *blob = later;
                let result = reader.tar(tar);
                if result.is_err() {
                    self.reader = Stage::Failed;
                }
                result
            }
            _ => {
                let mut rest = tar;
                while fill(&mut self.tar, &self.small, &mut rest) {
                    self.send_tar()?;
                }
                Ok(())
            }
        }
    }

    /// Whether [`Self::push_tar`] has to copy.
    pub(super) fn takes_buffers(&self) -> bool {
        !(self.digests.is_here() && self.reader.is_here())
    }

    /// A buffer of `len` bytes, in exchange for one that [`Self::give_tar`] is going to get.
    pub(super) fn exchange(&mut self, len: usize) -> Vec<u8> {
        self.whole.next().filter(|buffer| buffer.len() == len).unwrap_or_else(|| vec![0; len])
    }

    /// As [`Self::push_tar`], of a part of a buffer.
    pub(super) fn give_tar(
        &mut self,
        buffer: Vec<u8>,
        tar: Range<usize>,
    ) -> Result<(), BuildError> {
        self.send_tar()?;
        self.tar_len += tar.len() as u64;
        self.share_tar(self.whole.share(buffer, tar))
    }

    fn share_tar(&mut self, tar: Bytes) -> Result<(), BuildError> {
        let Ok(()) = self.digests.send(Hash::Tar(tar.clone()));
        self.reader.send(tar)
    }

    /// Sends off what has filled up.
    fn send_tar(&mut self) -> Result<(), BuildError> {
        let tar = std::mem::take(&mut self.tar);
        if tar.is_empty() {
            return Ok(());
        }
        let len = tar.len();
        self.share_tar(self.small.share(tar, 0..len))
    }

    /// As [`Self::push_blob`], where that would copy; gives the copy, of the first [`BUFFER`] bytes
    /// at most. `None` where `blob` is too short to be worth it.
    pub(super) fn share_blob(&mut self, blob: &[u8]) -> Option<Bytes> {
        if self.digests.is_here() || blob.len() < WORTH {
            return None;
        }
        self.send_blob();
        let (mut copy, mut rest) = (Vec::new(), &blob[..blob.len().min(BUFFER)]);
        let len = rest.len();
        fill(&mut copy, &self.small, &mut rest);
        let copy = self.small.share(copy, 0..len);
        let Ok(()) = self.digests.send(Hash::Blob(copy.clone()));
        Some(copy)
    }

    fn send_blob(&mut self) {
        let blob = std::mem::take(&mut self.blob);
        if blob.is_empty() {
            return;
        }
        let len = blob.len();
        let Ok(()) = self.digests.send(Hash::Blob(self.small.share(blob, 0..len)));
    }

    /// Waits until all bytes have been seen.
    ///
    /// # Errors
    /// Where the tar was refused; an error is given out once.
    pub(super) fn settle(&mut self) -> Result<(), BuildError> {
        self.send_tar()?;
        self.send_blob();
        let Ok(()) = self.digests.settle();
        self.reader.settle()
    }

    /// Both states after all bytes; `None` where the tar was refused before.
    pub(super) fn into_inner(mut self) -> Result<Option<(Digests, Reader)>, BuildError> {
        self.settle()?;
        let Ok(digests) = self.digests.into_inner();
        Ok(digests.zip(self.reader.into_inner()?))
    }
}

/// Moves bytes from the front of `rest` to `buffer`; whether that is full then.
fn fill(buffer: &mut Vec<u8>, spare: &Spare, rest: &mut &[u8]) -> bool {
    if buffer.capacity() == 0 {
        *buffer = spare.next().unwrap_or_else(|| Vec::with_capacity(BUFFER));
        buffer.clear();
    }
    let (piece, after) = rest.split_at(rest.len().min(BUFFER - buffer.len()));
    buffer.extend_from_slice(piece);
    *rest = after;
    buffer.len() == BUFFER
}
