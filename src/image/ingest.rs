//! One layer: bytes in, blob and index in place. Blocking; runs on a thread of the pool.

use std::{
    fs::File,
    io::Read as _,
    time::{Duration, Instant},
};

use bytes::Bytes;
use peel_index::{BuiltLayer, Digest, LayerBuilder};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Store, cancelled, cores::Share};
use crate::{
    content::{ContentError, Expected, Ingest},
    failure::{Class, Failure, chain},
    layers::CopyFile,
    metadata::LayerRef,
    oci::Descriptor,
};

const SOURCE_BROKEN: &str = "pull again; if it persists, the source is broken";
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Compressed bytes after which helpers pay: a thread costs 50 us, a MiB takes 5 ms.
const SPREAD_AFTER: u64 = 1 << 20;
/// What is read from a file at once.
const CHUNK: usize = 256 << 10;

/// Where the compressed bytes of a layer come from.
pub(super) enum Input {
    /// Chunks that a task receives; the channel's end is the stream's end.
    Stream(mpsc::Receiver<Result<Bytes, Failure>>),
    /// A file that is here.
    File(File),
}

impl Input {
    fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        match self {
            Self::Stream(chunks) => chunks.blocking_recv(),
            Self::File(file) => {
                let mut chunk = vec![0; CHUNK];
                match file.read(&mut chunk) {
                    Ok(0) => None,
                    Ok(len) => {
                        chunk.truncate(len);
                        Some(Ok(chunk.into()))
                    }
                    Err(e) => Some(Err(Failure::io(&e, format!("cannot read a blob: {e}")))),
                }
            }
        }
    }
}

impl Store {
    /// Whether the blob is here, has an index, and is known to have this diffID.
    pub(super) fn layer_is_usable(&self, layer: &LayerRef) -> bool {
        if !self.has_blob(layer) {
            return false;
        }
        match self.layers.layer_by_diff_id(&layer.diff_id) {
            // A manifest may claim anything: only what was once verified counts
            Ok(Some(index)) => index.blob() == layer.digest || self.was_verified(layer),
            Ok(None) => false,
            Err(error) => {
                tracing::error!(layer = %layer.diff_id, error = chain(&error), "damaged index");
                false
            }
        }
    }

    /// Whether the blob is here, whole as far as its size tells.
    pub(super) fn has_blob(&self, layer: &LayerRef) -> bool {
        let found = self.content.info(&layer.digest).ok().flatten();
        found.is_some_and(|found| found.size == layer.size)
    }

    fn was_verified(&self, layer: &LayerRef) -> bool {
        let same = |l: &LayerRef| l.digest == layer.digest && l.diff_id == layer.diff_id;
        self.metadata.images().is_ok_and(|all| all.iter().any(|i| i.layers.iter().any(same)))
    }

    /// Indexes a layer whose blob is here.
    pub(super) fn index_local(
        &self,
        layer: &LayerRef,
        call_off: &CancellationToken,
    ) -> Result<(), Failure> {
        let blob = self.content.open_blob(&layer.digest)?;
        self.index(layer, Input::File(blob), None, call_off, &mut |_, _| {})
    }

    /// Stores and indexes a layer in one pass. `tell` gets the bytes received and indexed so far.
    pub(super) fn fetch(
        &self,
        layer: &LayerRef,
        input: Input,
        call_off: &CancellationToken,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Failure> {
        let expected = Expected { digest: Some(layer.digest), size: Some(layer.size) };
        let ingest = self.content.begin(&layer.digest.to_string(), expected)?;
        // The builder hashes the same bytes
        self.index(layer, input, Some(ingest.hashed_by_caller()), call_off, tell)
    }

    /// Stores a document that is in memory.
    pub(super) fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Failure> {
        if self.content.contains(digest)? {
            return Ok(());
        }
        let expected = Expected { digest: Some(*digest), size: Some(bytes.len() as u64) };
        let mut ingest = self.content.begin(&digest.to_string(), expected)?;
        ingest.write(bytes)?;
        ingest.commit()?;
        Ok(())
    }

    fn index(
        &self,
        layer: &LayerRef,
        mut input: Input,
        mut ingest: Option<Ingest>,
        call_off: &CancellationToken,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Failure> {
        let mut pass = Pass::new(layer, self.layers.new_copy()?, self.cores.enter());
        let mut told = Instant::now();
        while let Some(chunk) = input.next() {
            let chunk = chunk?;
            // A stream ends when it is called off; a file would be read to its end
            if call_off.is_cancelled() {
                return Err(cancelled());
            }
            pass.push(&chunk)?;
            if let Some(ingest) = &mut ingest {
                ingest.write(&chunk)?;
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tell(pass.received, pass.indexed());
            }
        }
        let (built, copy) = match pass.finish() {
            Ok(finished) => finished,
            Err(failure) => {
                // A wrong digest explains a malformed stream; the blob itself is of no use
                return match ingest.map(Ingest::commit) {
                    Some(Err(error @ ContentError::Digest { .. })) => Err(error.into()),
                    _ => Err(failure),
                };
            }
        };
        if let Some(ingest) = ingest {
            ingest.commit_verified(built.blob)?;
        }
        // An index of another blob of the same content serves as well
        if !matches!(self.layers.layer_by_diff_id(&layer.diff_id), Ok(Some(_))) {
            self.layers.install_layer(&built, copy, self.slots.next()?)?;
        }
        tell(built.blob_len, built.tar_len);
        Ok(())
    }

    pub(super) fn write_index(&self) -> Result<(), Failure> {
        let mut entries = Vec::new();
        for image in self.metadata.images()? {
            // The platform's manifest, as the rest of an index it came from is not here
            if let Some(found) = self.content.info(&image.manifest)? {
                let descriptor = Descriptor {
                    platform: image.platform.parse().ok(),
                    ..Descriptor::new(image.manifest_type, image.manifest, found.size)
                };
                entries.push((image.name, descriptor));
            }
        }
        Ok(self.content.write_index(&entries)?)
    }
}

/// The pass over one blob.
struct Pass<'a> {
    layer: &'a LayerRef,
    received: u64,
    copy: CopyFile,
    builder: Result<LayerBuilder, Failure>,
    share: Share<'a>,
}

impl<'a> Pass<'a> {
    fn new(layer: &'a LayerRef, copy: CopyFile, share: Share<'a>) -> Self {
        let builder = Ok(LayerBuilder::new(layer.digest.algorithm()));
        Self { layer, received: 0, copy, builder, share }
    }

    fn indexed(&self) -> u64 {
        self.builder.as_ref().map_or(0, LayerBuilder::tar_bytes)
    }

    fn push(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.received += chunk.len() as u64;
        if self.received > self.layer.size {
            return Err(self.wrong_size("more"));
        }
        // After a malformed stream the rest is still received: a wrong digest says more
        if let Ok(builder) = &mut self.builder {
            if self.received > SPREAD_AFTER && self.share.grow() {
                builder.spread();
            }
            match builder.push(chunk) {
                Ok(()) => {
                    let copied = builder.take_copy();
                    if !copied.is_empty() {
                        self.copy.append(&copied)?;
                    }
                }
                Err(error) => self.builder = Err(malformed(self.layer, &error)),
            }
        }
        Ok(())
    }

    fn wrong_size(&self, found: impl std::fmt::Display) -> Failure {
        let message = format!(
            "layer {} has another size than its manifest says: expected {} bytes, found {found}",
            self.layer.digest, self.layer.size
        );
        Failure::new(Class::BadData, message).hint(SOURCE_BROKEN)
    }

    fn finish(self) -> Result<(BuiltLayer, CopyFile), Failure> {
        let layer = self.layer;
        if self.received != layer.size {
            return Err(self.wrong_size(self.received));
        }
        let built = self.builder?.finish().map_err(|error| malformed(layer, &error))?;
        if built.blob != layer.digest {
            let message =
                format!("wrong digest of a layer: expected {}, found {}", layer.digest, built.blob);
            return Err(Failure::new(Class::BadData, message).hint(SOURCE_BROKEN));
        }
        if built.diff_id != layer.diff_id {
            let message = format!(
                "layer {} unpacks to another diffID than the image's config says: expected {}, \
                 found {}",
                layer.digest, layer.diff_id, built.diff_id
            );
            return Err(
                Failure::new(Class::BadData, message).hint("the image is broken; rebuild it")
            );
        }
        let mut copy = self.copy;
        copy.append(&built.copy_rest)?;
        Ok((built, copy))
    }
}

fn malformed(layer: &LayerRef, error: &dyn std::error::Error) -> Failure {
    let message = format!("layer {} cannot be indexed: {}", layer.digest, chain(error));
    Failure::new(Class::BadData, message).hint("the layer is malformed; rebuild the image")
}
