//! One layer: bytes in, blob and index in place. Blocking; runs on a thread of the pool.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    time::{Duration, Instant},
};

use bytes::Bytes;
use peel_index::{BuiltLayer, Digest, LayerBuilder};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Store, cancelled, cores::Share};
use crate::{
    content::{ContentError, Expected, Ingest, Part},
    failure::{Class, Failure, chain},
    layers::CopyFile,
    metadata::LayerRef,
    oci::{Descriptor, DocumentKind, LayerKind, MAX_MANIFEST_SIZE, references},
};

const SOURCE_BROKEN: &str = "pull again; if it persists, the source is broken";
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Compressed bytes after which helpers pay: a thread costs 50 us, a MiB takes 5 ms.
const SPREAD_AFTER: u64 = 1 << 20;
/// What is read from a file at once.
const CHUNK: usize = 256 << 10;

/// What a blob is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// What it is to unpack to, where that is known.
    pub(super) diff_id: Option<Digest>,
}

impl From<&LayerRef> for Wanted {
    fn from(layer: &LayerRef) -> Self {
        Self { digest: layer.digest, size: layer.size, diff_id: Some(layer.diff_id) }
    }
}

/// A blob that has been read to its end, and is what it is to be.
pub(super) struct Indexed {
    pub(super) built: BuiltLayer,
    pub(super) copy: CopyFile,
}

/// Compressed bytes of a layer.
pub(super) enum Piece {
    /// The next ones.
    Bytes(Bytes),
    /// All that follow, in a part of a file, from one of its bytes on.
    File(Part, u64),
}

/// Where the compressed bytes of a layer come from: a task that is told which byte is the first.
pub(super) struct Feed {
    pub(super) ready: oneshot::Sender<u64>,
    /// The channel's end is the stream's end.
    pub(super) pieces: mpsc::Receiver<Result<Piece, Failure>>,
}

/// The same, once it has begun.
pub(super) enum Input {
    Pieces(mpsc::Receiver<Result<Piece, Failure>>),
    File(io::Take<File>),
}

/// A part of a file from one of its bytes on. Parts of one file share its position, so that each
/// gets a description of its own.
fn at(part: Part, from: u64) -> io::Result<io::Take<File>> {
    use std::os::fd::AsRawFd as _;
    let Part { file, offset, len } = part;
    let mut own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    own.seek(SeekFrom::Start(offset.saturating_add(from)))?;
    Ok(own.take(len.saturating_sub(from)))
}

impl Input {
    /// All of a file, from its first byte on; of those who read it in this way, one at a time.
    pub(super) fn whole(file: &File) -> io::Result<Self> {
        let mut file = file.try_clone()?;
        file.rewind()?;
        Ok(Self::File(file.take(u64::MAX)))
    }

    pub(super) fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        let failed = |e: &io::Error| Failure::io(e, format!("cannot read a blob: {e}"));
        if let Self::Pieces(pieces) = self {
            match pieces.blocking_recv()? {
                Ok(Piece::Bytes(bytes)) => return Some(Ok(bytes)),
                Ok(Piece::File(part, from)) => match at(part, from) {
                    Ok(file) => *self = Self::File(file),
                    Err(e) => return Some(Err(failed(&e))),
                },
                Err(failure) => return Some(Err(failure)),
            }
        }
        let Self::File(file) = self else { return None };
        let mut chunk = vec![0; CHUNK];
        match file.read(&mut chunk) {
            Ok(0) => None,
            Ok(len) => {
                chunk.truncate(len);
                Some(Ok(chunk.into()))
            }
            Err(e) => Some(Err(failed(&e))),
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
            Ok(Some(_)) if !self.layers.layer_is_current(&layer.diff_id) => false,
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
        let tell: Tell<'_> = &mut |_, _| {};
        let mut pass = Pass::new(self, layer.into(), call_off, tell)?;
        pass.read(&mut Input::File(blob.take(u64::MAX)), None)?;
        self.install(pass, None, false)
    }

    /// Indexes a layer whose blob is here, whatever index it has.
    pub(super) fn index_again(&self, layer: &LayerRef) -> Result<(), Failure> {
        let blob = self.content.open_blob(&layer.digest)?;
        let (never, tell): (_, Tell<'_>) = (CancellationToken::new(), &mut |_, _| {});
        let mut pass = Pass::new(self, layer.into(), &never, tell)?;
        pass.read(&mut Input::File(blob.take(u64::MAX)), None)?;
        self.install(pass, None, true)
    }

    /// Stores and indexes a layer in one pass, after what an earlier one has kept where `resume` is
    /// set. `tell` gets the bytes received and indexed so far.
    pub(super) fn fetch(
        &self,
        layer: &LayerRef,
        feed: Feed,
        resume: bool,
        call_off: &CancellationToken,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Failure> {
        let expected = Expected { digest: Some(layer.digest), size: Some(layer.size) };
        let key = layer.digest.to_string();
        let ingest = match resume {
            true => self.content.resume(&key, expected)?,
            false => self.content.begin(&key, expected)?,
        };
        // The builder hashes the same bytes
        let mut ingest = ingest.hashed_by_caller();
        let mut pass = Pass::new(self, layer.into(), call_off, tell)?;
        if ingest.written() > 0 {
            tracing::info!(layer = %layer.digest, from = ingest.written(), "going on with a layer");
            ingest.replay(|chunk| pass.take(chunk))?;
        }
        let Feed { ready, pieces } = feed;
        // Whoever has called it off is gone
        let _ = ready.send(ingest.written());
        match pass.read(&mut Input::Pieces(pieces), Some(&mut ingest)) {
            // The other end is gone, as when the daemon is stopped: a whole answer has its length
            Ok(()) if pass.received < layer.size => {
                ingest.keep();
                Err(pass.wrong_size(pass.received))
            }
            Ok(()) => self.install(pass, Some(ingest), false),
            Err(Stop::Broken(failure)) => {
                ingest.keep();
                Err(failure)
            }
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    /// Stores a blob that is no layer, as it comes.
    pub(super) fn fetch_plain(
        &self,
        descriptor: &Descriptor,
        feed: Feed,
        call_off: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut ingest = self.content.begin(&descriptor.digest.to_string(), descriptor.into())?;
        let Feed { ready, pieces } = feed;
        // As above
        let _ = ready.send(0);
        let mut input = Input::Pieces(pieces);
        while let Some(chunk) = input.next() {
            ingest.write(&chunk?)?;
            if call_off.is_cancelled() {
                return Err(cancelled());
            }
        }
        ingest.commit()?;
        Ok(())
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

    /// Puts blob and index in their places, the index over another one only where `again`.
    fn install(&self, pass: Pass<'_>, ingest: Option<Ingest>, again: bool) -> Result<(), Failure> {
        let (indexed, tell) = match pass.finish() {
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
            ingest.commit_verified(indexed.built.blob)?;
        }
        let lengths = (indexed.built.blob_len, indexed.built.tar_len);
        self.install_index(indexed, again)?;
        tell(lengths.0, lengths.1);
        Ok(())
    }

    /// Puts an index in its place, over another one only where `again`.
    pub(super) fn install_index(&self, indexed: Indexed, again: bool) -> Result<(), Failure> {
        let Indexed { built, copy } = indexed;
        // An index of another blob of the same content serves as well
        let has_index = matches!(self.layers.layer_by_diff_id(&built.diff_id), Ok(Some(_)));
        if again || !has_index || !self.layers.layer_is_current(&built.diff_id) {
            self.layers.install_layer(&built, copy, self.slots.next()?)?;
        }
        Ok(())
    }

    pub(super) fn write_index(&self) -> Result<(), Failure> {
        let mut entries = Vec::new();
        for image in self.metadata.images()? {
            let target = image.target.descriptor();
            // An index whose rest is not here is of no use to others, but its platform's manifest is
            if self.content.contains(&target.digest)? && self.whole(&target)?.is_some() {
                entries.push((image.name, target));
            } else if let Some(found) = self.content.info(&image.manifest)? {
                let descriptor = Descriptor {
                    platform: image.platform.parse().ok(),
                    ..Descriptor::new(image.manifest_type, image.manifest, found.size)
                };
                entries.push((image.name, descriptor));
            }
        }
        Ok(self.content.write_index(&entries)?)
    }

    /// Everything that a manifest or an index names and is made of, children first and itself last;
    /// `None` where some of it is not here.
    pub(super) fn whole(&self, target: &Descriptor) -> Result<Option<Vec<Descriptor>>, Failure> {
        let mut order = Vec::new();
        // What is still to be entered, or, when it is entered, to be left
        let mut pending = vec![(target.clone(), false)];
        let mut entered = HashSet::new();
        while let Some((descriptor, is_done)) = pending.pop() {
            if is_done {
                order.push(descriptor);
                continue;
            }
            if !entered.insert(descriptor.digest) {
                continue;
            }
            if !self.content.contains(&descriptor.digest)? {
                let foreign = LayerKind::from_media_type(&descriptor.media_type);
                if foreign.is_some_and(|kind| kind.foreign) {
                    continue;
                }
                return Ok(None);
            }
            use DocumentKind::{Index, Manifest};
            let kind = DocumentKind::from_media_type(&descriptor.media_type);
            let mut children = Vec::new();
            if matches!(kind, Some(Index | Manifest)) {
                let bytes = self.content.read_blob(&descriptor.digest, MAX_MANIFEST_SIZE)?;
                children = references(descriptor.digest, &bytes)?;
            }
            pending.push((descriptor, true));
            pending.extend(children.into_iter().rev().map(|child| (child, false)));
        }
        Ok(Some(order))
    }
}

/// Why a pass stopped.
pub(super) enum Stop {
    /// The bytes stopped coming: those that came are good as far as anybody knows.
    Broken(Failure),
    /// Anything else.
    Failed(Failure),
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Broken(failure) | Stop::Failed(failure) => failure,
        }
    }
}

pub(super) type Tell<'a> = &'a mut dyn FnMut(u64, u64);

/// The pass over one blob.
pub(super) struct Pass<'a> {
    wanted: Wanted,
    received: u64,
    copy: CopyFile,
    builder: Result<LayerBuilder, Failure>,
    share: Share<'a>,
    call_off: &'a CancellationToken,
    tell: Tell<'a>,
    told: Instant,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        store: &'a Store,
        wanted: Wanted,
        call_off: &'a CancellationToken,
        tell: Tell<'a>,
    ) -> Result<Self, Failure> {
        let builder = Ok(LayerBuilder::new(wanted.digest.algorithm()));
        let (copy, share) = (store.layers.new_copy()?, store.cores.enter());
        let told = Instant::now();
        Ok(Self { wanted, received: 0, copy, builder, share, call_off, tell, told })
    }

    fn indexed(&self) -> u64 {
        self.builder.as_ref().map_or(0, LayerBuilder::tar_bytes)
    }

    /// Takes everything there is, and writes it down where it has to be.
    pub(super) fn read(
        &mut self,
        input: &mut Input,
        mut ingest: Option<&mut Ingest>,
    ) -> Result<(), Stop> {
        while let Some(chunk) = input.next() {
            let chunk = chunk.map_err(|failure| match failure.class {
                Class::BadData => Stop::Failed(failure),
                _ => Stop::Broken(failure),
            })?;
            self.take(&chunk).map_err(|failure| match self.call_off.is_cancelled() {
                true => Stop::Broken(failure),
                false => Stop::Failed(failure),
            })?;
            if let Some(ingest) = &mut ingest {
                ingest.write(&chunk).map_err(|error| Stop::Failed(error.into()))?;
            }
        }
        Ok(())
    }

    /// Takes one chunk and tells now and then.
    fn take(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        // A stream ends when it is called off; a file would be read to its end
        if self.call_off.is_cancelled() {
            return Err(cancelled());
        }
        self.push(chunk)?;
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            let indexed = self.indexed();
            (self.tell)(self.received, indexed);
        }
        Ok(())
    }

    fn push(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.received += chunk.len() as u64;
        if self.received > self.wanted.size {
            return Err(self.wrong_size("more"));
        }
        // After a malformed stream the rest is still received: a wrong digest says more
        if let Ok(builder) = &mut self.builder {
            if self.received > SPREAD_AFTER && self.share.grow() {
                builder.spread();
            }
            match builder.push(chunk) {
                Ok(()) => {
                    self.copy.append_windows(&builder.take_windows())?;
                    let copied = builder.take_copy();
                    if !copied.is_empty() {
                        self.copy.append(&copied)?;
                    }
                }
                Err(error) => self.builder = Err(malformed(self.wanted, &error)),
            }
        }
        Ok(())
    }

    fn wrong_size(&self, found: impl std::fmt::Display) -> Failure {
        let message = format!(
            "layer {} has another size than its manifest says: expected {} bytes, found {found}",
            self.wanted.digest, self.wanted.size
        );
        Failure::new(Class::BadData, message).hint(SOURCE_BROKEN)
    }

    pub(super) fn finish(self) -> Result<(Indexed, Tell<'a>), Failure> {
        let wanted = self.wanted;
        if self.received != wanted.size {
            return Err(self.wrong_size(self.received));
        }
        let built = self.builder?.finish().map_err(|error| malformed(wanted, &error))?;
        if built.blob != wanted.digest {
            let (expected, found) = (wanted.digest, built.blob);
            let message = format!("wrong digest of a layer: expected {expected}, found {found}");
            return Err(Failure::new(Class::BadData, message).hint(SOURCE_BROKEN));
        }
        if let Some(expected) = wanted.diff_id.filter(|expected| *expected != built.diff_id) {
            let message = format!(
                "layer {} unpacks to another diffID than the image's config says: expected \
                 {expected}, found {}",
                wanted.digest, built.diff_id
            );
            return Err(
                Failure::new(Class::BadData, message).hint("the image is broken; rebuild it")
            );
        }
        let mut copy = self.copy;
        copy.append(&built.copy_rest)?;
        Ok((Indexed { built, copy }, self.tell))
    }
}

fn malformed(wanted: Wanted, error: &dyn std::error::Error) -> Failure {
    let message = format!("layer {} cannot be indexed: {}", wanted.digest, chain(error));
    Failure::new(Class::BadData, message).hint("the layer is malformed; rebuild the image")
}
