//! The span cache: spans decoded as far as somebody needed, bounded in bytes, each decoded by one
//! at a time however many ask.
//!
//! # States of a span
//!
//! | from | on | to |
//! | --- | --- | --- |
//! | empty | a request, or decoding ahead: who comes first *leads* | decoding |
//! | decoding | the leader has what it came for, or what somebody else waits for | partial |
//! | decoding | all is decoded | complete |
//! | decoding | an error: all who wait get it, and nothing of it is remembered | failed = empty |
//! | decoding | a panic of the leader: one of those who wait leads from the start | empty |
//! | partial | a request for more, once nobody reads from it | decoding |
//! | partial, complete | a request for what is there | the same |
//! | partial, complete | others need the room | empty |
//!
//! A waiter waits for *its* bytes and not for the end: the leader looks every [`STEP`] whether it
//! has passed them. Decoding ahead is a leader that nobody waits for at first.
//!
//! # Memory
//!
//! Everything counts: decoded bytes, compressed ones and decoders of what is partial, decodes under
//! way, spare buffers. A decode is charged before it begins. Where there is no room and everything
//! left is in use, it waits until another ends or a reader is done; only a decode that is alone goes
//! past the bound, so that a bound of less than a span works too. What decoding ahead may take is in
//! [`Table::admit`](table::Table::admit).
//!
//! # Locking
//!
//! One mutex over the table, and one condition for every change of it. Neither is held while bytes
//! are read, verified or decoded. A [`Pin`] keeps a span readable without the lock; nobody asks for
//! another span while holding one, so waiting for pins to go always ends.

mod stats;
mod table;
#[cfg(test)]
mod tests;

use std::{
    ops::Deref,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use peel_index::Slot;

pub use self::stats::CacheStats;
pub(super) use self::table::Cost;
use self::table::{Ask, Ending, Flight, Landing, Table};

/// Names a span: the layer's slot and the span's number in its index.
pub(super) type SpanKey = (Slot, u32);

/// Why a span could not be decoded; shared by all who wait for it.
pub(super) type SpanError = Arc<dyn std::error::Error + Send + Sync>;

/// Bytes decoded between two looks at who waits: some 50 us, the most that somebody waits for bytes
/// which are there already.
const STEP: usize = 64 << 10;

/// How long decoding ahead waits for the readers of what it could go on with.
const AHEAD_PATIENCE: Duration = Duration::from_millis(1);

/// How far decoding ahead goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct AheadExtent {
    /// Bytes from the span's start.
    pub(super) upto: usize,
    /// Spans that nobody came for take at most one part in so many of the cache.
    pub(super) share: u64,
    /// It is known from the last start.
    pub(super) start: bool,
}

/// How decoding ahead ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AheadEnd {
    /// The bytes are there, or they are somebody else's business.
    Done,
    /// It was told not to go on.
    Stopped,
    /// There is no room for it.
    Full,
}

/// What decodes a span: [`peel_index::SpanReader`], and a made-up one in tests.
pub(super) trait Decoder: Send + Sync + 'static {
    /// The bytes decoded so far, from the span's start.
    fn decoded(&self) -> &[u8];
    /// Length of the whole span.
    fn tar_len(&self) -> usize;
    /// Bytes of memory held; the same as long as it is not advanced.
    fn memory(&self) -> usize;
    /// The buffer of compressed bytes, once they are used up.
    fn spent(&mut self) -> Option<Vec<u8>>;
    /// The buffers of decoded and of compressed bytes.
    fn into_buffers(self) -> (Vec<u8>, Vec<u8>);
}

/// Where a span comes from.
pub(super) trait Origin {
    /// What decodes it.
    type Decoder: Decoder;
    /// What decoding it takes.
    fn cost(&self) -> Cost;
    /// Reads and verifies the compressed bytes; decodes nothing.
    fn open(&self, room: Room) -> Result<Self::Decoder, SpanError>;
    /// Decodes on until the first `upto` bytes are there.
    fn advance(&self, decoder: &mut Self::Decoder, upto: usize) -> Result<(), SpanError>;
}

/// Buffers to use again, so that their pages need not be had from the kernel and cleared anew. Both
/// may be empty; what they hold is of no meaning.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// For the compressed bytes.
    pub(super) compressed: Vec<u8>,
    /// For the decoded bytes.
    pub(super) tar: Vec<u8>,
    /// Freed once the lock is.
    garbage: Vec<Vec<u8>>,
}

impl Room {
    fn reuse(&mut self, span: impl Decoder, cost: Cost) {
        let (tar, compressed) = span.into_buffers();
        for buffer in [tar, compressed] {
            // One that is much too large would take more than it is charged for
            let fits = |place: &Vec<u8>, least: usize| {
                place.capacity() == 0 && (least..=least + least / 4).contains(&buffer.capacity())
            };
            if fits(&self.tar, cost.tar) {
                self.tar = buffer;
            } else if fits(&self.compressed, cost.compressed) {
                self.compressed = buffer;
            } else {
                self.garbage.push(buffer);
            }
        }
    }
}

/// See the module.
pub(super) struct SpanCache<D: Decoder> {
    table: Mutex<Table<D>>,
    changed: Condvar,
    served: AtomicU64,
}

/// The first bytes of a span, readable for as long as this lives.
pub(super) struct Pin<'a, D: Decoder> {
    cache: &'a SpanCache<D>,
    /// Always there but while it is dropped.
    span: Option<Arc<D>>,
}

impl<D: Decoder> Deref for Pin<'_, D> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.span.as_deref().map(Decoder::decoded).unwrap_or_default()
    }
}

impl<D: Decoder> Drop for Pin<'_, D> {
    fn drop(&mut self) {
        // The last one frees the memory, outside of the lock
        let last = self.span.take().and_then(Arc::into_inner);
        let mut table = self.cache.lock();
        table.unpin(last.as_ref().map(|span| span.memory() as u64));
        self.cache.tell(table);
    }
}

/// Ends a decode whatever happens to who leads it.
struct Leader<'a, D: Decoder> {
    cache: &'a SpanCache<D>,
    key: SpanKey,
    flight: Arc<Flight>,
    /// What it is charged for; `None` while it waits for memory.
    charged: Option<u64>,
    decoder: Option<D>,
    /// Decoded before.
    start: usize,
    error: Option<SpanError>,
    landed: bool,
}

impl<'a, D: Decoder> Leader<'a, D> {
    fn new(cache: &'a SpanCache<D>, key: SpanKey, flight: Arc<Flight>, decoder: Option<D>) -> Self {
        let charged = decoder.as_ref().map(|decoder| decoder.memory() as u64);
        let start = decoder.as_ref().map_or(0, |decoder| decoder.decoded().len());
        Self { cache, key, flight, charged, decoder, start, error: None, landed: false }
    }

    /// Decodes until `upto` bytes are there, somebody else has what he waits for, or `go_on` says
    /// no.
    fn decode<O: Origin<Decoder = D>>(
        &mut self,
        origin: &O,
        room: Room,
        upto: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), SpanError> {
        let result = self.steps(origin, room, upto, go_on);
        result.inspect_err(|error| self.error = Some(Arc::clone(error)))
    }

    fn steps<O: Origin<Decoder = D>>(
        &mut self,
        origin: &O,
        room: Room,
        upto: usize,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), SpanError> {
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(origin.open(room)?),
        };
        let upto = upto.min(decoder.tar_len());
        loop {
            let reached = decoder.decoded().len();
            if reached >= upto || self.flight.keeps_waiting(reached) || !go_on() {
                return Ok(());
            }
            origin.advance(decoder, upto.min(reached + STEP))?;
        }
    }

    /// Publishes what is decoded; gives it where it has `need` bytes.
    fn land(mut self, claimed: bool, need: usize) -> Option<Pin<'a, D>> {
        let (mut decoder, charged) = (self.decoder.take()?, self.charged?);
        let reached = decoder.decoded().len();
        let spent = decoder.spent();
        let span = Arc::new(decoder);
        let mut table = self.cache.lock();
        self.landed = true;
        table.stats.inflated_bytes += (reached - self.start) as u64;
        table.land(Landing {
            key: self.key,
            flight: &self.flight,
            span: Arc::clone(&span),
            charged,
            claimed,
            spent,
        });
        table.trim();
        let pin =
            (reached >= need).then(|| Pin { cache: self.cache, span: Some(Arc::clone(&span)) });
        let last = Arc::into_inner(span);
        table.unpin(last.as_ref().map(|span| span.memory() as u64));
        self.cache.tell(table);
        pin
    }
}

impl<D: Decoder> Drop for Leader<'_, D> {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let mut table = self.cache.lock();
        table.stats.failures += u64::from(self.charged.is_some());
        let ending = self.error.take().map_or(Ending::Dropped, Ending::Failed);
        table.end(self.key, &self.flight, self.charged, ending);
        self.cache.tell(table);
    }
}

impl<D: Decoder> SpanCache<D> {
    /// A cache of at most `capacity` bytes.
    pub(super) fn new(capacity: u64) -> Self {
        let table = Mutex::new(Table::new(capacity));
        Self { table, changed: Condvar::new(), served: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Table<D>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut table: MutexGuard<'a, Table<D>>) -> MutexGuard<'a, Table<D>> {
        table.waiting += 1;
        let mut table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        table.waiting -= 1;
        table
    }

    /// Lets go of the table, and wakes who waits for a change of it.
    fn tell(&self, table: MutexGuard<'_, Table<D>>) {
        let awaited = table.waiting > 0;
        drop(table);
        if awaited {
            self.changed.notify_all();
        }
    }

    /// Counters.
    pub(super) fn stats(&self) -> CacheStats {
        let served_bytes = self.served.load(Ordering::Relaxed);
        CacheStats { served_bytes, ..self.lock().stats() }
    }

    /// Counts bytes given to a reader.
    pub(super) fn count_served(&self, bytes: usize) {
        self.served.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The first `need` bytes of a span, or more: from memory, decoded by another, or decoded here,
    /// as far as `aim` then.
    ///
    /// # Errors
    /// What `origin` gave, to all who waited for it.
    pub(super) fn pin<O: Origin<Decoder = D>>(
        &self,
        key: SpanKey,
        need: usize,
        aim: usize,
        origin: &O,
    ) -> Result<Pin<'_, D>, SpanError> {
        let mut table = self.lock();
        let mut waited = false;
        loop {
            match table.ask(key, need) {
                Ask::Have(span) => {
                    if !waited {
                        table.stats.hits += 1;
                    }
                    return Ok(Pin { cache: self, span: Some(span) });
                }
                Ask::Await(flight) => {
                    table.stats.waits += u64::from(!std::mem::replace(&mut waited, true));
                    let ending = loop {
                        table = self.wait(table);
                        if let Some(ending) = flight.ending() {
                            break ending;
                        }
                    };
                    match ending {
                        Ending::Failed(error) => return Err(Arc::clone(error)),
                        Ending::Landed(reached) if need <= *reached => {
                            if let Some(span) = table.collect(key, need) {
                                return Ok(Pin { cache: self, span: Some(span) });
                            }
                        }
                        Ending::Landed(_) | Ending::Dropped => {}
                    }
                }
                Ask::Wait => {
                    table.stats.waits += u64::from(!std::mem::replace(&mut waited, true));
                    table = self.wait(table);
                }
                Ask::Lead(flight, begun) => {
                    match begun {
                        Some(_) => table.stats.continued += 1,
                        None => table.stats.misses += 1,
                    }
                    let begun = begun.map(|begun| begun.decoder);
                    let mut leader = Leader::new(self, key, flight, begun);
                    let mut room = Room::default();
                    if leader.charged.is_none() {
                        let cost = origin.cost();
                        while !table.admit(cost, &mut room, None) {
                            table = self.wait(table);
                        }
                        table.stats.compressed_bytes += cost.compressed as u64;
                        leader.charged = Some(cost.total());
                    }
                    drop(table);
                    room.garbage.clear();
                    leader.decode(origin, room, aim.max(need), &|| true)?;
                    if let Some(pin) = leader.land(true, need) {
                        return Ok(pin);
                    }
                    waited = true;
                    table = self.lock();
                }
            }
        }
    }

    /// As [`Self::pin`] where the bytes are there.
    pub(super) fn pin_ready(&self, key: SpanKey, need: usize) -> Option<Pin<'_, D>> {
        let span = self.lock().have(key, need)?;
        Some(Pin { cache: self, span: Some(span) })
    }

    /// Whether there is something to decode in a span, and nobody at it.
    pub(super) fn lacks(&self, key: SpanKey) -> bool {
        self.lock().lacks(key)
    }

    /// Decodes the first bytes of a span before they are asked for, while `go_on` says so and there
    /// is room. Errors are for whoever asks for the span.
    pub(super) fn ahead<O: Origin<Decoder = D>>(
        &self,
        key: SpanKey,
        extent: AheadExtent,
        origin: &O,
        go_on: &dyn Fn() -> bool,
    ) -> AheadEnd {
        let AheadExtent { upto, share, .. } = extent;
        while go_on() {
            let mut table = self.lock();
            match table.ask_ahead(key, upto) {
                None | Some(Ask::Have(_) | Ask::Await(_)) => return AheadEnd::Done,
                Some(Ask::Wait) => {
                    table.waiting += 1;
                    let wait = self.changed.wait_timeout(table, AHEAD_PATIENCE);
                    let (mut table, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
                    table.waiting -= 1;
                    if timeout.timed_out() {
                        return AheadEnd::Done;
                    }
                }
                Some(Ask::Lead(flight, begun)) => {
                    let claimed = begun.as_ref().is_some_and(|begun| begun.claimed);
                    let begun = begun.map(|begun| begun.decoder);
                    let mut leader = Leader::new(self, key, flight, begun);
                    let mut room = Room::default();
                    if leader.charged.is_none() {
                        let cost = origin.cost();
                        if !table.admit(cost, &mut room, Some(share)) {
                            drop(table);
                            return AheadEnd::Full;
                        }
                        table.stats.ahead_started += 1;
                        table.stats.start_spans += u64::from(extent.start);
                        table.stats.compressed_bytes += cost.compressed as u64;
                        leader.charged = Some(cost.total());
                    }
                    drop(table);
                    room.garbage.clear();
                    if leader.decode(origin, room, upto, go_on).is_err() {
                        return AheadEnd::Done;
                    }
                    drop(leader.land(claimed, 0));
                }
            }
        }
        AheadEnd::Stopped
    }

    /// Forgets every span of a layer.
    pub(super) fn forget(&self, slot: Slot) {
        self.lock().forget(slot);
    }
}
