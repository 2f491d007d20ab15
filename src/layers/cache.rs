//! The span cache: recently decoded spans, bounded in bytes, each decoded once however many ask.
//!
//! Locking: one mutex over the table, never held while a span is decoded. Who misses first decodes
//! (the leader); others wait on the leader's flight. A leader that fails hands its error to those
//! who wait; one that panics or is dropped leaves the flight abandoned, and a waiter takes over.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use lru::LruCache;
use peel_index::Slot;

/// Names a span: the layer's slot and the span's number in its index.
pub(super) type SpanKey = (Slot, u32);

/// Why a span could not be decoded; shared by all who wait for it.
pub(super) type SpanError = Arc<dyn std::error::Error + Send + Sync>;

/// Counters of the cache since the start, and what it holds now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// Bound of `bytes`.
    pub capacity: u64,
    /// Bytes held now: decoded, compressed of spans that are suspended, decoders, spare buffers.
    pub bytes: u64,
    /// Spans held now.
    pub spans: u64,
    /// Requests for a span answered from what was decoded.
    pub hits: u64,
    /// Requests that began a span.
    pub misses: u64,
    /// Requests that went on with a span that was decoded in part.
    pub continued: u64,
    /// Requests that waited for another's decode.
    pub waits: u64,
    /// Decodes that failed.
    pub failures: u64,
    /// Spans decoded ahead of any request, wholly or in part.
    pub ahead_started: u64,
    /// Of these, spans that were then asked for.
    pub ahead_used: u64,
    /// Of these, spans dropped before anybody asked.
    pub ahead_wasted: u64,
    /// Compressed bytes read and verified.
    pub compressed_bytes: u64,
    /// Bytes decoded.
    pub inflated_bytes: u64,
    /// Bytes of spans given to readers.
    pub served_bytes: u64,
    /// Spans dropped to make room.
    pub evictions: u64,
}

/// See the module.
pub struct SpanCache {
    capacity: u64,
    table: Mutex<Table>,
}

struct Table {
    spans: LruCache<SpanKey, Arc<Vec<u8>>>,
    flights: HashMap<SpanKey, Arc<Flight>>,
    stats: CacheStats,
}

#[derive(Default)]
struct Flight {
    state: Mutex<FlightState>,
    landed: Condvar,
}

#[derive(Default)]
enum FlightState {
    #[default]
    Decoding,
    Landed(Result<Arc<Vec<u8>>, SpanError>),
    Abandoned,
}

/// Ends the flight whatever happens to the leader.
struct Leader<'a> {
    cache: &'a SpanCache,
    key: SpanKey,
    flight: Arc<Flight>,
    outcome: FlightState,
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, FlightState::Abandoned);
        let mut table = self.cache.lock();
        if let FlightState::Landed(Ok(span)) = &outcome {
            table.insert(self.key, Arc::clone(span), self.cache.capacity);
        }
        table.flights.remove(&self.key);
        drop(table);
        *self.flight.state.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
        self.flight.landed.notify_all();
    }
}

impl Table {
    fn insert(&mut self, key: SpanKey, span: Arc<Vec<u8>>, capacity: u64) {
        self.stats.bytes += span.len() as u64;
        if let Some(old) = self.spans.put(key, span) {
            self.stats.bytes -= old.len() as u64;
        }
        while self.stats.bytes > capacity {
            let Some((_, evicted)) = self.spans.pop_lru() else { break };
            self.stats.bytes -= evicted.len() as u64;
            self.stats.evictions += 1;
        }
    }
}

impl SpanCache {
    /// A cache of at most `capacity` bytes of decoded spans.
    pub fn new(capacity: u64) -> Self {
        let table = Table {
            spans: LruCache::unbounded(),
            flights: HashMap::new(),
            stats: CacheStats::default(),
        };
        Self { capacity, table: Mutex::new(table) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        // Every change of the table is complete before anything in it can panic
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        let table = self.lock();
        CacheStats { capacity: self.capacity, spans: table.spans.len() as u64, ..table.stats }
    }

    /// The span from memory, or from `decode`, which runs once for all who ask at the same time.
    ///
    /// # Errors
    /// What `decode` gave, to all who waited for it; nothing failed is remembered.
    pub fn load(
        &self,
        key: SpanKey,
        decode: impl FnOnce() -> Result<Vec<u8>, SpanError>,
    ) -> Result<Arc<Vec<u8>>, SpanError> {
        loop {
            let (flight, leads) = {
                let mut table = self.lock();
                if let Some(span) = table.spans.get(&key).map(Arc::clone) {
                    table.stats.hits += 1;
                    return Ok(span);
                }
                match table.flights.get(&key).map(Arc::clone) {
                    Some(flight) => {
                        table.stats.hits += 1;
                        (flight, false)
                    }
                    None => {
                        table.stats.misses += 1;
                        let flight = Arc::<Flight>::default();
                        table.flights.insert(key, Arc::clone(&flight));
                        (flight, true)
                    }
                }
            };
            if leads {
                let mut leader =
                    Leader { cache: self, key, flight, outcome: FlightState::Abandoned };
                let result = decode().map(Arc::new);
                leader.outcome = FlightState::Landed(result.clone());
                return result;
            }
            let mut state = flight.state.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                match &*state {
                    FlightState::Landed(result) => return result.clone(),
                    FlightState::Abandoned => break,
                    FlightState::Decoding => {
                        state = flight.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        }
    }

    /// Forgets every span of a layer.
    pub fn forget(&self, slot: Slot) {
        let mut table = self.lock();
        let keys: Vec<_> = table.spans.iter().map(|(k, _)| *k).filter(|k| k.0 == slot).collect();
        for key in keys {
            if let Some(span) = table.spans.pop(&key) {
                table.stats.bytes -= span.len() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;

    fn key(n: u32) -> SpanKey {
        (Slot::new(1).expect("slot"), n)
    }

    #[test]
    fn stays_within_its_bound_and_drops_the_oldest() {
        let cache = SpanCache::new(100);
        for n in 0..10 {
            cache.load(key(n), || Ok(vec![0; 30])).expect("load");
            assert!(cache.stats().bytes <= 100);
        }
        let mut decoded = false;
        cache.load(key(9), || Err("decoded again".to_owned().into_boxed_error())).expect("cached");
        let again = cache.load(key(0), || {
            decoded = true;
            Ok(vec![1])
        });
        assert_eq!(*again.expect("load"), [1]);
        assert!(decoded);
    }

    trait IntoBoxed {
        fn into_boxed_error(self) -> SpanError;
    }
    impl IntoBoxed for String {
        fn into_boxed_error(self) -> SpanError {
            Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(self))
        }
    }

    #[test]
    fn one_decode_for_all_who_ask() {
        let cache = SpanCache::new(1 << 20);
        let decodes = AtomicUsize::new(0);
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let span = cache.load(key(1), || {
                        decodes.fetch_add(1, Ordering::SeqCst);
                        thread::sleep(std::time::Duration::from_millis(50));
                        Ok(vec![7; 10])
                    });
                    assert_eq!(*span.expect("load"), [7; 10]);
                });
            }
        });
        assert_eq!(decodes.load(Ordering::SeqCst), 1);
        assert_eq!(cache.stats().hits, 7);
    }

    #[test]
    fn a_failure_is_not_remembered_and_a_panic_wakes_the_waiters() {
        let cache = SpanCache::new(1 << 20);
        assert!(cache.load(key(1), || Err("no".to_owned().into_boxed_error())).is_err());
        assert!(cache.load(key(1), || Ok(vec![1])).is_ok());
        let started = Barrier::new(2);
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                cache.load(key(2), || {
                    started.wait();
                    thread::sleep(std::time::Duration::from_millis(50));
                    panic!("decode died");
                })
            });
            started.wait();
            let span = cache.load(key(2), || Ok(vec![2])).expect("the waiter takes over");
            assert_eq!(*span, [2]);
            assert!(leader.join().is_err());
        });
    }

    #[test]
    fn forgets_a_layer() {
        let cache = SpanCache::new(1 << 20);
        cache.load(key(1), || Ok(vec![1; 5])).expect("load");
        cache.forget(key(1).0);
        assert_eq!(cache.stats().bytes, 0);
    }
}
