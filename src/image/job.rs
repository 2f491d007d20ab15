//! One layer on its way: from a source into the store, over a restart if need be.
//!
//! ```text
//! task ◀─ from which byte ── thread: what was kept, indexed again from the disk
//!      ── chunks ──────────▶         then what arrives
//! ```
//! Where a layer that came in pieces has a wrong digest, it is fetched once more as a whole: the
//! seams, or what lay on the disk, may be to blame.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::{
    Events, LayerProgress, PullEvent, Stage, Store, cancelled,
    ingest::{Feed, Piece},
    pull::{blocking, joined},
    source::{Blob, Source},
};
use crate::{
    failure::{Class, Failure},
    metadata::LayerRef,
    oci::LayerDescriptor,
};

/// Chunks that may wait for the indexing thread: with chunks of tens of KiB, a MiB or two.
const CHUNKS_AHEAD: usize = 32;

/// See the module.
pub(super) struct Job {
    pub(super) store: Arc<Store>,
    pub(super) source: Arc<Source>,
    pub(super) flight: Arc<tokio::sync::Mutex<()>>,
    pub(super) descriptor: LayerDescriptor,
    pub(super) layer: LayerRef,
    pub(super) number: usize,
    pub(super) events: Events,
    pub(super) call_off: CancellationToken,
}

impl Job {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let _alone = tokio::select! {
            biased;
            () = self.call_off.cancelled() => return Err(cancelled()),
            alone = self.flight.lock() => alone,
        };
        let (store, layer) = (Arc::clone(&self.store), self.layer.clone());
        if blocking(move || Ok(store.layer_is_usable(&layer))).await? {
            (self.events)(PullEvent::Layer(progress(self.number, &self.layer, Stage::Exists)));
            return Ok(());
        }
        let (store, layer) = (Arc::clone(&self.store), self.layer.clone());
        if self.store.has_blob(&layer) {
            let call_off = self.call_off.clone();
            blocking(move || store.index_local(&layer, &call_off)).await?;
            let done = LayerProgress {
                received: self.layer.size,
                ..progress(self.number, &self.layer, Stage::Done)
            };
            (self.events)(PullEvent::Layer(done));
            return Ok(());
        }
        let pieced = AtomicBool::new(false);
        match self.fetch(true, &pieced).await {
            Err(failure) if failure.class == Class::BadData && pieced.load(Ordering::Relaxed) => {
                tracing::warn!(error = %failure, "fetching a layer again, as a whole");
                self.fetch(false, &pieced).await
            }
            result => result,
        }
    }

    /// Fetches and indexes the layer; `pieced` is set where the bytes are not of one answer.
    async fn fetch(&self, resume: bool, pieced: &AtomicBool) -> Result<(), Failure> {
        let (store, layer) = (Arc::clone(&self.store), self.layer.clone());
        let (events, number) = (Arc::clone(&self.events), self.number);
        let call_off = self.call_off.clone();
        let index = move |input| {
            let tell = |stage, received, indexed| {
                let progress =
                    LayerProgress { received, indexed, ..progress(number, &layer, stage) };
                events(PullEvent::Layer(progress));
            };
            let mut last = (0, 0);
            let mut running = |received, indexed| {
                last = (received, indexed);
                tell(Stage::Running, received, indexed);
            };
            store.fetch(&layer, input, resume, &call_off, &mut running)?;
            tell(Stage::Done, last.0, last.1);
            Ok(())
        };
        let open = |from| async move {
            match from == self.layer.size {
                // Nothing is missing but the check
                true => Ok(Blob::Bytes(Bytes::new())),
                false => self.source.layer(&self.descriptor, from).await,
            }
        };
        feed(index, open, &self.call_off, pieced).await
    }
}

/// Runs `take` on a thread and feeds it what `open` opens at the byte that `take` asks for.
pub(super) async fn feed<F: Future<Output = Result<Blob, Failure>>>(
    take: impl FnOnce(Feed) -> Result<(), Failure> + Send + 'static,
    open: impl FnOnce(u64) -> F,
    call_off: &CancellationToken,
    pieced: &AtomicBool,
) -> Result<(), Failure> {
    let (sender, pieces) = mpsc::channel(CHUNKS_AHEAD);
    let (ready, begins) = oneshot::channel();
    let taking = spawn_blocking(move || take(Feed { ready, pieces }));
    let pour = async {
        // Without a word the thread has failed before it wanted anything
        let Ok(from) = begins.await else { return Ok(()) };
        pieced.fetch_or(from > 0, Ordering::Relaxed);
        let blob = tokio::select! {
            blob = open(from) => blob?,
            () = call_off.cancelled() => return Err(cancelled()),
        };
        let piece = match blob {
            Blob::Stream { stream, pieced: seams } => {
                let result = pump(stream, &sender, call_off).await;
                pieced.fetch_or(seams.load(Ordering::Relaxed), Ordering::Relaxed);
                return result;
            }
            Blob::File(part) => Piece::File(part, from),
            Blob::Bytes(bytes) => {
                let start = usize::try_from(from).unwrap_or(bytes.len()).min(bytes.len());
                Piece::Bytes(bytes.slice(start..))
            }
        };
        // The thread has gone: it says why
        drop(sender.send(Ok(piece)).await);
        Ok(())
    };
    if let Err(failure) = pour.await {
        // The thread passes it on, unless it has failed by itself
        drop(sender.send(Err(failure)).await);
    }
    drop(sender);
    joined(taking.await)
}

async fn pump(
    mut stream: BoxStream<'static, Result<Bytes, Failure>>,
    sender: &mpsc::Sender<Result<Piece, Failure>>,
    call_off: &CancellationToken,
) -> Result<(), Failure> {
    loop {
        let chunk = tokio::select! {
            chunk = stream.next() => chunk,
            () = call_off.cancelled() => Some(Err(cancelled())),
        };
        let Some(chunk) = chunk else { return Ok(()) };
        // As above
        if sender.send(Ok(Piece::Bytes(chunk?))).await.is_err() {
            return Ok(());
        }
    }
}

pub(super) fn progress(number: usize, layer: &LayerRef, stage: Stage) -> LayerProgress {
    LayerProgress {
        index: number,
        digest: layer.digest,
        stage,
        received: 0,
        size: layer.size,
        indexed: 0,
    }
}
