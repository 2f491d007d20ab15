//! The table of spans: what is held, what is being decoded, and how much memory that takes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use lru::LruCache;
use peel_index::Slot;

use super::{CacheStats, Decoder, Room, SpanError, SpanKey};

/// Spare buffers for compressed bytes that are kept: as many as decodes begin at about the same
/// time on a small machine.
const SPARES: usize = 4;

/// A span that is decoded in part or wholly, while nobody decodes it.
pub(super) struct Held<D> {
    /// Shared with those who read from it.
    pub(super) span: Arc<D>,
    /// Somebody waits for the readers to go, to decode on; new readers wait for that one.
    pub(super) succession: bool,
    /// Requests that waited for what is there now and have not woken up to read it. Nobody decodes
    /// on before they have: they would find it taken again, step after step.
    owed: usize,
    /// A request came for it; the others were decoded ahead.
    pub(super) claimed: bool,
    /// The table's clock when a request came for it last.
    touched: u64,
}

impl<D: Decoder> Held<D> {
    fn first(&self, need: usize) -> Option<Arc<D>> {
        let there = need <= self.span.decoded().len() && !self.succession;
        there.then(|| Arc::clone(&self.span))
    }
}

/// How a decode ended, for those who waited for it.
pub(super) enum Ending {
    /// This much can be read.
    Landed(usize),
    /// With an error, which is theirs as well.
    Failed(SpanError),
    /// With a panic: somebody else has to do it.
    Dropped,
}

/// A decode under way, as those see it who wait for it.
#[derive(Default)]
pub(super) struct Flight {
    /// The least that somebody waits for, in bytes from the span's start; 0 while nobody does.
    nearest: AtomicUsize,
    /// What each of them waits for. Used under the table's lock.
    needs: Mutex<Vec<usize>>,
    /// Set under the table's lock.
    ending: OnceLock<Ending>,
}

impl Flight {
    fn needs(&self) -> MutexGuard<'_, Vec<usize>> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, need: usize) {
        self.needs().push(need);
        let nearest = self.nearest.load(Ordering::Relaxed);
        if nearest == 0 || need < nearest {
            self.nearest.store(need, Ordering::Relaxed);
        }
    }

    /// How it ended, once it has.
    pub(super) fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Whether somebody waits who need not.
    pub(super) fn keeps_waiting(&self, reached: usize) -> bool {
        (1..=reached).contains(&self.nearest.load(Ordering::Relaxed))
    }
}

/// A span taken out to be decoded on.
pub(super) struct Begun<D> {
    pub(super) decoder: D,
    /// As in [`Held`].
    pub(super) claimed: bool,
}

/// What somebody who needs a span has to do.
pub(super) enum Ask<D> {
    /// Read.
    Have(Arc<D>),
    /// Wait for a decode to end; [`Table::collect`] gives what it was waited for.
    Await(Arc<Flight>),
    /// Wait until something changes, and ask again.
    Wait,
    /// Decode: from the start, or on.
    Lead(Arc<Flight>, Option<Begun<D>>),
}

/// A decode that is done with for now.
pub(super) struct Landing<'a, D> {
    pub(super) key: SpanKey,
    pub(super) flight: &'a Flight,
    pub(super) span: Arc<D>,
    /// What it was charged for.
    pub(super) charged: u64,
    /// As in [`Held`].
    pub(super) claimed: bool,
    /// The buffer of compressed bytes that are used up.
    pub(super) spent: Option<Vec<u8>>,
}

/// See the module. Every change is complete before anything in it can panic.
pub(super) struct Table<D> {
    pub(super) capacity: u64,
    held: LruCache<SpanKey, Held<D>>,
    flights: HashMap<SpanKey, Arc<Flight>>,
    /// Bytes of all that is held, of decodes under way, and of spare buffers.
    pub(super) bytes: u64,
    /// Decodes that have their memory.
    pub(super) active: usize,
    /// Threads that wait for a change.
    pub(super) waiting: usize,
    /// Bytes that requests brought in so far.
    clock: u64,
    /// Bytes of spans decoded ahead that nobody came for yet.
    unclaimed: u64,
    spare: Vec<Vec<u8>>,
    pub(super) stats: CacheStats,
}

impl<D: Decoder> Table<D> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            held: LruCache::unbounded(),
            flights: HashMap::new(),
            bytes: 0,
            active: 0,
            waiting: 0,
            clock: 0,
            unclaimed: 0,
            spare: Vec::new(),
            stats: CacheStats::default(),
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        let Self { capacity, bytes, .. } = *self;
        CacheStats { capacity, bytes, spans: self.held.len() as u64, ..self.stats }
    }

    /// A request for the first `need` bytes of a span.
    pub(super) fn ask(&mut self, key: SpanKey, need: usize) -> Ask<D> {
        if let Some(flight) = self.flights.get(&key) {
            flight.wants(need);
            return Ask::Await(Arc::clone(flight));
        }
        let Some(held) = self.claim(key) else {
            return Ask::Lead(self.take_off(key), None);
        };
        if let Some(span) = held.first(need) {
            return Ask::Have(span);
        }
        match self.take(key) {
            Some(span) => Ask::Lead(self.take_off(key), Some(span)),
            None => {
                if let Some(held) = self.held.peek_mut(&key) {
                    held.succession = true;
                }
                Ask::Wait
            }
        }
    }

    /// The first `need` bytes of a span, where that many are there.
    pub(super) fn have(&mut self, key: SpanKey, need: usize) -> Option<Arc<D>> {
        let span = self.claim(key)?.first(need)?;
        self.stats.hits += 1;
        Some(span)
    }

    /// What a request waited for whose decode has landed; `None` where it is gone again.
    pub(super) fn collect(&mut self, key: SpanKey, need: usize) -> Option<Arc<D>> {
        self.claim(key)?;
        let held = self.held.get_mut(&key)?;
        let there = need <= held.span.decoded().len();
        held.owed -= usize::from(there && held.owed > 0);
        there.then(|| Arc::clone(&held.span))
    }

    /// Notes that a request came for a span that is held.
    fn claim(&mut self, key: SpanKey) -> Option<&Held<D>> {
        let held = self.held.get_mut(&key)?;
        held.touched = self.clock;
        if !std::mem::replace(&mut held.claimed, true) {
            self.stats.ahead_used += 1;
            self.unclaimed -= held.span.memory() as u64;
        }
        Some(held)
    }

    /// What decoding the first `upto` bytes of a span ahead has to do; `None`: nothing.
    pub(super) fn ask_ahead(&mut self, key: SpanKey, upto: usize) -> Option<Ask<D>> {
        if self.flights.contains_key(&key) {
            return None;
        }
        let Some(held) = self.held.peek(&key) else {
            return Some(Ask::Lead(self.take_off(key), None));
        };
        if is_complete(&*held.span) || held.span.decoded().len() >= upto || held.succession {
            return None;
        }
        Some(match self.take(key) {
            Some(span) => Ask::Lead(self.take_off(key), Some(span)),
            None => Ask::Wait,
        })
    }

    /// Whether there is something to decode in a span, and nobody at it.
    pub(super) fn lacks(&self, key: SpanKey) -> bool {
        let complete = |held: &Held<D>| is_complete(&*held.span);
        !self.flights.contains_key(&key) && !self.held.peek(&key).is_some_and(complete)
    }

    fn take_off(&mut self, key: SpanKey) -> Arc<Flight> {
        let flight = Arc::<Flight>::default();
        self.flights.insert(key, Arc::clone(&flight));
        flight
    }

    /// Takes a span out to decode on, if nobody reads from it. It stays charged for.
    fn take(&mut self, key: SpanKey) -> Option<Begun<D>> {
        // Only this table hands out more references, so one stays one
        let free = |held: &&Held<D>| Arc::strong_count(&held.span) == 1 && held.owed == 0;
        self.held.peek(&key).filter(free)?;
        let held = self.held.pop(&key)?;
        let decoder = Arc::into_inner(held.span)?;
        if !held.claimed {
            self.unclaimed -= decoder.memory() as u64;
        }
        self.active += 1;
        Some(Begun { decoder, claimed: held.claimed })
    }

    /// The end of a decode that leaves something.
    pub(super) fn land(&mut self, landing: Landing<'_, D>) {
        let Landing { key, flight, span, charged, claimed, spent } = landing;
        let (memory, reached) = (span.memory() as u64, span.decoded().len());
        let owed = flight.needs().iter().filter(|need| **need <= reached).count();
        self.end(key, flight, Some(charged), Ending::Landed(reached));
        self.bytes += memory;
        if !claimed {
            self.unclaimed += memory;
        }
        let touched = self.clock;
        self.held.put(key, Held { span, succession: false, owed, claimed, touched });
        if let Some(buffer) = spent
            && self.spare.len() < SPARES
        {
            self.bytes += buffer.capacity() as u64;
            self.spare.push(buffer);
        }
    }

    /// The end of a decode that was charged for so much, or had no memory yet.
    pub(super) fn end(
        &mut self,
        key: SpanKey,
        flight: &Flight,
        charged: Option<u64>,
        ending: Ending,
    ) {
        self.flights.remove(&key);
        // It ends once
        let _ = flight.ending.set(ending);
        if let Some(charged) = charged {
            self.bytes -= charged;
            self.active -= 1;
        }
    }

    /// Charges a decode that is about to begin for `cost` bytes and gives it buffers, if there is
    /// room or room can be made. A request is never refused while nothing else takes memory.
    /// Decoding ahead takes at most one part in `share` of the cache for spans that nobody came for.
    pub(super) fn admit(&mut self, cost: Cost, room: &mut Room, share: Option<u64>) -> bool {
        let ahead = share.is_some();
        if share.is_some_and(|share| self.unclaimed + cost.total() > self.capacity / share) {
            return false;
        }
        if room.compressed.capacity() == 0
            && let Some(buffer) = self.spare.pop()
        {
            self.bytes -= buffer.capacity() as u64;
            room.compressed = buffer;
        }
        while self.bytes + cost.total() > self.capacity {
            if let Some(buffer) = self.spare.pop() {
                self.bytes -= buffer.capacity() as u64;
                room.garbage.push(buffer);
            } else if !self.evict(ahead, cost, room) {
                break;
            }
        }
        let fits = self.bytes + cost.total() <= self.capacity;
        // What is left is of decodes under way and of spans that somebody reads: all of it goes
        if !fits && (ahead || self.bytes > 0) {
            return false;
        }
        self.bytes += cost.total();
        self.active += 1;
        if !ahead {
            self.clock += cost.total();
        }
        true
    }

    /// Drops the span used longest ago; gives whether there was one. Its buffers go to `room` where
    /// they fit. Decoding ahead drops only what has not been used while half the cache was brought
    /// in anew.
    fn evict(&mut self, ahead: bool, cost: Cost, room: &mut Room) -> bool {
        let Some((_, oldest)) = self.held.peek_lru() else { return false };
        if ahead && self.clock - oldest.touched < self.capacity / 2 {
            return false;
        }
        let Some((_, held)) = self.held.pop_lru() else { return false };
        self.drop_held(held, Some((cost, room)));
        self.stats.evictions += 1;
        true
    }

    /// Drops spare buffers, then spans, until what is held is within the bound.
    pub(super) fn trim(&mut self) {
        while self.bytes > self.capacity {
            if let Some(buffer) = self.spare.pop() {
                self.bytes -= buffer.capacity() as u64;
            } else if let Some((_, held)) = self.held.pop_lru() {
                self.drop_held(held, None);
                self.stats.evictions += 1;
            } else {
                break;
            }
        }
    }

    fn drop_held(&mut self, held: Held<D>, reuse: Option<(Cost, &mut Room)>) {
        let memory = held.span.memory() as u64;
        if !held.claimed {
            self.unclaimed -= memory;
            self.stats.ahead_wasted += 1;
        }
        // Otherwise whoever reads from it last gives the memory back
        if let Some(span) = Arc::into_inner(held.span) {
            self.bytes -= memory;
            if let Some((cost, room)) = reuse {
                room.reuse(span, cost);
            }
        }
    }

    /// A reader is done with a span, and was the last to hold these bytes where they are given.
    pub(super) fn unpin(&mut self, memory: Option<u64>) {
        self.bytes -= memory.unwrap_or_default();
    }

    /// What has to be nothing when nobody is at anything.
    #[cfg(test)]
    pub(super) fn in_use(&self) -> HashMap<&'static str, u64> {
        HashMap::from([
            ("active", self.active as u64),
            ("waiting", self.waiting as u64),
            ("flights", self.flights.len() as u64),
            ("unclaimed", self.unclaimed),
        ])
    }

    /// Forgets every span of a layer.
    pub(super) fn forget(&mut self, slot: Slot) {
        let keys: Vec<_> = self.held.iter().map(|(k, _)| *k).filter(|k| k.0 == slot).collect();
        for key in keys {
            if let Some(held) = self.held.pop(&key) {
                self.drop_held(held, None);
            }
        }
    }
}

/// What a decode takes, in bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::layers) struct Cost {
    /// Compressed bytes.
    pub(in crate::layers) compressed: usize,
    /// Decoded bytes.
    pub(in crate::layers) tar: usize,
    /// The decoder itself.
    pub(in crate::layers) decoder: usize,
}

impl Cost {
    pub(super) fn total(self) -> u64 {
        self.compressed as u64 + self.tar as u64 + self.decoder as u64
    }
}

pub(super) fn is_complete(span: &impl Decoder) -> bool {
    span.decoded().len() == span.tar_len()
}
