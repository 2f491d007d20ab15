//! What happens to the bytes of blob and tar besides decoding: both digests, and the tree.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{BuildError, apply::LayerTree};
use crate::{
    digest::{Algorithm, Hasher},
    stage::{Stage, Work},
    tar::{TarError, TarParser},
};

/// Bytes that are handed to the reader's thread at once.
const BUFFER: usize = 128 << 10;

/// Full buffers that may wait for it: enough to sleep through a hiccup of the other side.
const QUEUE: usize = 8;

/// What the parser is told when an entry is refused; the reason is kept apart.
const REFUSED: &str = "refused by the layer builder";

/// State of the digests and of the tree.
pub(super) struct Reader {
    pub(super) blob: Hasher,
    pub(super) diff_id: Hasher,
    pub(super) parser: TarParser,
    pub(super) tree: LayerTree,
    spare: SyncSender<Vec<u8>>,
}

/// Bytes, in order for each of the two.
pub(super) enum Job {
    Blob(Vec<u8>),
    Tar(Vec<u8>),
}

impl Work for Reader {
    type Job = Job;
    type Error = BuildError;

    fn run(&mut self, job: Job) -> Result<(), BuildError> {
        let bytes = match job {
            Job::Blob(bytes) => {
                self.blob.update(&bytes);
                bytes
            }
            Job::Tar(bytes) => {
                self.tar(&bytes)?;
                bytes
            }
        };
        // When nobody wants it back, or there are enough, it goes
        let _ = self.spare.try_send(bytes);
        Ok(())
    }
}

impl Reader {
    fn tar(&mut self, tar: &[u8]) -> Result<(), BuildError> {
        self.diff_id.update(tar);
        let Self { parser, tree, .. } = self;
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

/// The reader, or the way to its thread.
pub(super) struct ReaderStage {
    stage: Stage<Reader>,
    spare: Receiver<Vec<u8>>,
    /// Bytes that fill up before they go to the thread.
    blob: Vec<u8>,
    tar: Vec<u8>,
    tar_len: u64,
}

impl ReaderStage {
    pub(super) fn new(blob_algorithm: Algorithm) -> Self {
        let (returned, spare) = sync_channel(QUEUE);
        let reader = Reader {
            blob: Hasher::new(blob_algorithm),
            diff_id: Hasher::new(Algorithm::Sha256),
            parser: TarParser::new(),
            tree: LayerTree::new(),
            spare: returned,
        };
        let (blob, tar) = (Vec::new(), Vec::new());
        Self { stage: Stage::Here(reader), spare, blob, tar, tar_len: 0 }
    }

    /// Gives the reader a thread of its own from here on.
    pub(super) fn spread(&mut self) {
        let stage = std::mem::replace(&mut self.stage, Stage::Failed);
        self.stage = stage.spread("peel-tar", QUEUE);
    }

    /// Bytes of tar so far.
    pub(super) fn tar_len(&self) -> u64 {
        self.tar_len
    }

    pub(super) fn push_blob(&mut self, blob: &[u8]) -> Result<(), BuildError> {
        if let Some(reader) = self.stage.here() {
            reader.blob.update(blob);
            return Ok(());
        }
        fill(&mut self.stage, &self.spare, &mut self.blob, blob, Job::Blob)
    }

    pub(super) fn push_tar(&mut self, tar: &[u8]) -> Result<(), BuildError> {
        self.tar_len += tar.len() as u64;
        if let Some(reader) = self.stage.here() {
            let result = reader.tar(tar);
            if result.is_err() {
                self.stage = Stage::Failed;
            }
            return result;
        }
        fill(&mut self.stage, &self.spare, &mut self.tar, tar, Job::Tar)
    }

    /// Waits until all bytes have been seen.
    ///
    /// # Errors
    /// Where the tar was refused; an error is given out once.
    pub(super) fn settle(&mut self) -> Result<(), BuildError> {
        let (blob, tar) = (std::mem::take(&mut self.blob), std::mem::take(&mut self.tar));
        for (bytes, job) in [(blob, Job::Blob as fn(_) -> _), (tar, Job::Tar)] {
            if !bytes.is_empty() {
                self.stage.send(job(bytes))?;
            }
        }
        self.stage.settle()
    }

    /// The reader after all bytes; `None` where the tar was refused before.
    pub(super) fn into_inner(mut self) -> Result<Option<Reader>, BuildError> {
        self.settle()?;
        self.stage.into_inner()
    }
}

/// Copies bytes to a buffer, and sends it off whenever it is full.
fn fill(
    stage: &mut Stage<Reader>,
    spare: &Receiver<Vec<u8>>,
    buffer: &mut Vec<u8>,
    mut bytes: &[u8],
    job: fn(Vec<u8>) -> Job,
) -> Result<(), BuildError> {
    while !bytes.is_empty() {
        if buffer.capacity() == 0 {
            *buffer = spare.try_recv().unwrap_or_else(|_| Vec::with_capacity(BUFFER));
            buffer.clear();
        }
        let (piece, rest) = bytes.split_at(bytes.len().min(BUFFER - buffer.len()));
        buffer.extend_from_slice(piece);
        bytes = rest;
        if buffer.len() == BUFFER {
            stage.send(job(std::mem::take(buffer)))?;
        }
    }
    Ok(())
}
