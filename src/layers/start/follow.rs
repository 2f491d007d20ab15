//! Layers that follow the courses of their starts, and keep them.

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use peel_fuse::{Ahead, Sink, Spare};
use peel_index::{Digest, Slot};

use super::{
    super::{
        Layers, LayersError, OpenLayer,
        cache::{AheadEnd, AheadExtent},
        file_name,
        read::MARGIN,
        start_path, temporary,
    },
    Ended, Next,
    course::{Course, FILE_LIMIT},
};

/// Spans decoded on the course of a start, and not asked for yet, take at most one part in so many of
/// the span cache; so much is for nothing where the course was wrong.
const START_SHARE: u64 = 3;

/// Which layers are starting.
#[derive(Debug)]
pub(in crate::layers) struct Following {
    on: AtomicBool,
    /// Layers whose start is not kept yet.
    starting: Mutex<Vec<Slot>>,
    begun: AtomicU64,
    /// Trees that somebody looked something up in.
    visited: Mutex<HashSet<Slot>>,
    /// The one that was looked at last; 0: none.
    visited_last: AtomicU32,
}

impl Default for Following {
    fn default() -> Self {
        Self {
            on: AtomicBool::new(true),
            starting: Mutex::default(),
            begun: AtomicU64::new(0),
            visited: Mutex::default(),
            visited_last: AtomicU32::new(0),
        }
    }
}

impl Following {
    /// Starts so far.
    pub(in crate::layers) fn count(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether this is the first look at a tree.
    pub(in crate::layers) fn visited(&self, tree: Slot) -> bool {
        // Look-ups come by the thousand, nearly all in the tree of the one before
        if self.visited_last.swap(tree.number(), Ordering::Relaxed) == tree.number() {
            return false;
        }
        let first = self.visited.lock().unwrap_or_else(PoisonError::into_inner).insert(tree);
        first && self.on.load(Ordering::Relaxed)
    }

    fn began(&self, slot: Slot) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.starting.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

impl Layers {
    /// Whether to note what is read when a layer comes into use, and to decode that ahead the next
    /// time; at first it is done.
    pub fn follow_starts(&self, on: bool) {
        self.following.on.store(on, Ordering::Relaxed);
    }

    /// Takes note of a read of the first `reach` bytes of a span. Gives what is worth doing ahead
    /// once that read is served: the first one of a start should find the disk idle.
    pub(in crate::layers) fn note_start(
        &self,
        layer: &OpenLayer,
        span: u32,
        reach: usize,
        sink: &mut dyn Sink,
    ) -> Option<Ahead> {
        if !self.following.on.load(Ordering::Relaxed) {
            return None;
        }
        let slot = layer.index.slot();
        let reach = u32::try_from(reach).unwrap_or(u32::MAX);
        let note = layer.starts.note(span, reach, Instant::now());
        let wish = note.follow.then_some(Ahead::Start { layer: slot });
        if note.began {
            self.following.began(slot);
            return wish;
        }
        if let Some(wish) = wish {
            sink.ahead(wish);
        }
        None
    }

    /// Begins to follow the last starts of a tree's layers: names were looked up in it, and reads
    /// come some ten milliseconds later. What makes a container ready for its program looks for the
    /// directories that it mounts things on, and the program is looked for before it is read.
    pub(in crate::layers) fn expect_starts(&self, tree: Slot, spare: &dyn Spare) {
        // Whoever reads for good meets the same error and tells of it
        let Ok(tree) = self.open_tree(tree) else { return };
        for layer in tree.layers().filter(|layer| self.start_file(&layer.diff_id).exists()) {
            spare.offer(Ahead::Start { layer: layer.slot });
        }
    }

    /// Decodes the next span on the course of a layer's last start.
    pub(in crate::layers) fn follow_start(&self, layer: &OpenLayer, spare: &dyn Spare) {
        let next = layer.starts.next(|| self.course(layer));
        let Some(Next { step, tell, more }) = next else { return };
        let wish = Ahead::Start { layer: layer.index.slot() };
        for step in tell {
            if let Some(span) = layer.index.span(step.span)
                && let Ok(source) = layer.source(&span)
            {
                source.will_need(span.offset, span.len.into());
            }
        }
        if more {
            // Another thread may have nothing to do either
            spare.offer(wish);
        }
        let Some(origin) = layer.origin(step.span) else { return };
        let upto = usize::try_from(u64::from(step.reach) + MARGIN).unwrap_or(usize::MAX);
        let extent = AheadExtent { upto, share: START_SHARE, start: true };
        let key = (layer.index.slot(), origin.number);
        match self.cache.ahead(key, extent, &origin, &|| spare.go_on()) {
            AheadEnd::Done => {}
            AheadEnd::Stopped => {
                layer.starts.put_back(step, false);
                spare.offer(wish);
            }
            AheadEnd::Full => layer.starts.put_back(step, true),
        }
    }

    /// Keeps the courses of starts that have ended; all of them, where the process is about to end.
    /// Blocks, and holds up no reader.
    pub fn keep_starts(&self, all: bool) {
        let starting = {
            let mut starting =
                self.following.starting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *starting)
        };
        let now = Instant::now();
        for slot in starting {
            // One that was removed in the meantime has nothing to keep
            let Some(layer) = self.tables().open_layers.get(&slot).cloned() else { continue };
            match layer.starts.ended(now, all, || self.course(&layer)) {
                Ended::Not => {}
                Ended::UnderWay => {
                    self.following
                        .starting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(slot);
                }
                Ended::Changed(course) => {
                    if let Err(error) = self.keep(&layer.index.diff_id(), &layer, &course) {
                        tracing::debug!(%slot, %error, "cannot keep what a start read");
                    }
                }
            }
        }
    }

    fn start_file(&self, diff_id: &Digest) -> PathBuf {
        start_path(&self.layers_dir.join(file_name(diff_id)))
    }

    fn course(&self, layer: &OpenLayer) -> Course {
        let mut bytes = Vec::new();
        let read = fs::File::open(self.start_file(&layer.index.diff_id()))
            .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => Course::decode(&bytes, &layer.index.blob()).unwrap_or_default(),
            // It is the first start, or one without help
            Err(_) => Course::default(),
        }
    }

    fn keep(
        &self,
        diff_id: &Digest,
        layer: &OpenLayer,
        course: &Course,
    ) -> Result<(), LayersError> {
        let path = self.start_file(diff_id);
        let mut file = temporary(&self.layers_dir)?;
        file.write_all(&course.encode(&layer.index.blob()))
            .map_err(LayersError::io("write", &path))?;
        // Not synced: its checksum tells what a power cut left of it
        file.persist(&path).map_err(|e| LayersError::io("rename to", &path)(e.error))?;
        // Removed while it was written: a file without an index is nobody's
        if !self.tables().layers.contains_key(diff_id) {
            super::super::remove(&path)?;
        }
        Ok(())
    }
}
