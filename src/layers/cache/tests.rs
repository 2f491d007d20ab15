//! The cache over made-up spans, whose decoders count, fail, panic and wait as they are told to.

use std::{
    collections::HashMap,
    sync::{
        Barrier, Mutex,
        atomic::{AtomicU64, AtomicUsize},
        mpsc,
    },
    thread,
    time::Duration,
};

use proptest::prelude::*;

use super::*;

const WHOLE: AheadExtent = AheadExtent { upto: usize::MAX, share: 4, start: false };
const SPAN: usize = 4 * STEP + 1000;
const COMPRESSED: usize = 30_000;
const COST: u64 = (SPAN + COMPRESSED) as u64;

fn key(n: u32) -> SpanKey {
    (Slot::new(1 + n / 100).expect("slot"), n)
}

fn byte(n: u32, at: usize) -> u8 {
    (at as u64 * 31 + u64::from(n) * 7 + (at as u64 >> 9)) as u8
}

struct Fake {
    n: u32,
    tar: Vec<u8>,
    filled: usize,
    compressed: Vec<u8>,
}

impl Decoder for Fake {
    fn decoded(&self) -> &[u8] {
        &self.tar[..self.filled]
    }

    fn tar_len(&self) -> usize {
        SPAN
    }

    fn memory(&self) -> usize {
        self.tar.capacity() + self.compressed.capacity()
    }

    fn spent(&mut self) -> Option<Vec<u8>> {
        (self.filled == SPAN).then(|| std::mem::take(&mut self.compressed))
    }

    fn into_buffers(self) -> (Vec<u8>, Vec<u8>) {
        (self.tar, self.compressed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Open,
    /// An error once this much is decoded.
    Error(usize),
    Panic(usize),
}

/// Called before each step of a decode with the span's number and the bytes that it has.
type Watch<'a> = dyn Fn(u32, usize) + Sync + 'a;

struct FakeOrigin<'a> {
    n: u32,
    fault: Fault,
    opens: &'a AtomicUsize,
    watch: &'a Watch<'a>,
}

impl Origin for FakeOrigin<'_> {
    type Decoder = Fake;

    fn cost(&self) -> Cost {
        Cost { compressed: COMPRESSED, tar: SPAN, decoder: 0 }
    }

    fn open(&self, room: Room) -> Result<Fake, SpanError> {
        self.opens.fetch_add(1, Ordering::SeqCst);
        if self.fault == Fault::Open {
            return Err(error("cannot open"));
        }
        let Room { mut compressed, mut tar, .. } = room;
        compressed.resize(COMPRESSED, 0);
        if tar.capacity() < SPAN {
            tar = Vec::with_capacity(SPAN);
        }
        tar.resize(SPAN, 0);
        Ok(Fake { n: self.n, tar, filled: 0, compressed })
    }

    fn advance(&self, decoder: &mut Fake, upto: usize) -> Result<(), SpanError> {
        assert_eq!(decoder.n, self.n, "decoders do not get mixed up");
        (self.watch)(self.n, decoder.filled);
        match self.fault {
            Fault::Error(at) if upto > at => return Err(error("cannot decode")),
            Fault::Panic(at) if upto > at => panic!("this panic is part of the test"),
            _ => {}
        }
        for at in decoder.filled..upto {
            decoder.tar[at] = byte(self.n, at);
        }
        decoder.filled = upto;
        Ok(())
    }
}

fn error(text: &str) -> SpanError {
    Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(text))
}

/// A cache with a way to read from it.
struct Bench<'a> {
    cache: SpanCache<Fake>,
    opens: AtomicUsize,
    watch: &'a Watch<'a>,
}

impl<'a> Bench<'a> {
    fn new(capacity: u64, watch: &'a Watch<'a>) -> Self {
        Self { cache: SpanCache::new(capacity), opens: AtomicUsize::new(0), watch }
    }

    fn origin(&self, n: u32, fault: Fault) -> FakeOrigin<'_> {
        FakeOrigin { n, fault, opens: &self.opens, watch: self.watch }
    }

    fn pin(&self, n: u32, need: usize, fault: Fault) -> Result<Pin<'_, Fake>, SpanError> {
        self.cache.pin(key(n), need, need, &self.origin(n, fault))
    }

    /// Reads the first `need` bytes and checks them.
    fn read(&self, n: u32, need: usize) {
        let pin = self.pin(n, need, Fault::None).expect("no fault");
        check(n, &pin, need);
    }

    fn ahead(&self, n: u32) {
        self.cache.ahead(key(n), WHOLE, &self.origin(n, Fault::None), &|| true);
    }

    fn opens(&self) -> usize {
        self.opens.load(Ordering::SeqCst)
    }
}

fn check(n: u32, bytes: &[u8], need: usize) {
    assert!(bytes.len() >= need);
    for at in [0, need / 2, need.saturating_sub(1)] {
        assert!(need == 0 || bytes[at] == byte(n, at), "span {n} at {at}");
    }
}

#[test]
fn decodes_as_far_as_is_needed_and_goes_on_later() {
    let bench = Bench::new(1 << 30, &|_, _| {});
    bench.read(1, 1000);
    assert_eq!(bench.cache.stats().inflated_bytes, 1000);
    bench.read(1, 500);
    bench.read(1, 2 * STEP);
    bench.read(1, SPAN);
    bench.read(1, SPAN);
    let CacheStats { hits, misses, continued, waits, inflated_bytes, compressed_bytes, .. } =
        bench.cache.stats();
    assert_eq!((hits, misses, continued, waits), (2, 1, 2, 0));
    assert_eq!((inflated_bytes, compressed_bytes), (SPAN as u64, COMPRESSED as u64));
    assert_eq!(bench.opens(), 1);
    assert!(bench.cache.pin_ready(key(1), SPAN).is_some());
    assert!(bench.cache.pin_ready(key(2), 0).is_none());
}

#[test]
fn stays_within_its_bound_and_drops_what_was_used_longest_ago() {
    let capacity = 4 * COST;
    let bench = Bench::new(capacity, &|_, _| {});
    for n in 0..20 {
        bench.read(n, if n % 2 == 0 { SPAN } else { 100 });
        bench.read(0, 50);
        assert!(bench.cache.stats().bytes <= capacity);
    }
    let stats = bench.cache.stats();
    assert_eq!((bench.opens() as u64, stats.misses), (20, 20), "0 was used all the time");
    assert_eq!(stats.evictions, 20 - stats.spans);
    bench.read(1, 10);
    assert_eq!(bench.opens(), 21);
    for n in 0..30 {
        bench.cache.forget(key(n).0);
    }
    let CacheStats { spans, bytes, .. } = bench.cache.stats();
    assert_eq!(spans, 0);
    assert!(bytes <= 4 * COMPRESSED as u64, "spare buffers alone: {bytes}");
}

#[test]
fn a_bound_of_less_than_a_span_serves_all_the_same() {
    let bench = Bench::new(0, &|_, _| {});
    for n in 0..3 {
        // A whole one leaves a spare buffer, which has no room either
        for need in [1000, SPAN] {
            bench.read(n, need);
            assert_eq!(bench.cache.stats().bytes, 0);
        }
    }
}

#[test]
fn one_decode_for_all_who_ask() {
    let slow = |_, _| thread::sleep(Duration::from_millis(5));
    let bench = Bench::new(1 << 30, &slow);
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        for n in 0..8 {
            let (bench, barrier) = (&bench, &barrier);
            scope.spawn(move || {
                barrier.wait();
                bench.read(1, SPAN / 8 * (n + 1));
            });
        }
    });
    let stats = bench.cache.stats();
    assert_eq!((bench.opens(), stats.misses), (1, 1));
    assert_eq!(stats.inflated_bytes, (SPAN / 8 * 8) as u64, "nothing twice, nothing too much");
    assert!(stats.waits >= 1, "{stats:?}");
}

#[test]
fn who_waits_for_little_does_not_wait_for_the_end() {
    let (step, steps) = mpsc::channel::<()>();
    let steps = Mutex::new(steps);
    // Once the sender is gone, decoding runs freely
    let gate = move |_, _| {
        let _ = steps.lock().expect("gate").recv();
    };
    let bench = Bench::new(1 << 30, &gate);
    thread::scope(|scope| {
        let leader = scope.spawn(|| bench.read(1, SPAN));
        while bench.opens() == 0 {
            thread::yield_now();
        }
        let waiter = scope.spawn(|| bench.read(1, 1000));
        while bench.cache.stats().waits == 0 {
            thread::yield_now();
        }
        step.send(()).expect("one step");
        waiter.join().expect("served after the first step");
        assert!(!leader.is_finished());
        drop(step);
    });
    assert_eq!(bench.opens(), 1);
    assert_eq!(bench.cache.stats().inflated_bytes, SPAN as u64);
}

#[test]
fn readers_hold_up_who_decodes_on_but_not_for_ever() {
    let bench = Bench::new(1 << 30, &|_, _| {});
    let pin = bench.pin(1, 1000, Fault::None).expect("no fault");
    thread::scope(|scope| {
        let successor = scope.spawn(|| bench.read(1, SPAN));
        while bench.cache.stats().waits == 0 {
            thread::yield_now();
        }
        let late = scope.spawn(|| bench.read(1, 10));
        thread::sleep(Duration::from_millis(20));
        assert!(!successor.is_finished());
        check(1, &pin, 1000);
        drop(pin);
        successor.join().expect("goes on");
        late.join().expect("and the others after it");
    });
}

#[test]
fn an_error_reaches_all_who_wait_and_is_not_remembered() {
    let waiting = AtomicUsize::new(0);
    let hold = |_, _| {
        while waiting.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    };
    let bench = Bench::new(1 << 30, &hold);
    thread::scope(|scope| {
        let fail = |need| bench.pin(1, need, Fault::Error(10)).map(|pin| pin.len());
        let leader = scope.spawn(move || fail(SPAN));
        while bench.opens() == 0 {
            thread::yield_now();
        }
        let waiter = scope.spawn(move || fail(5000));
        while bench.cache.stats().waits == 0 {
            thread::yield_now();
        }
        waiting.store(1, Ordering::SeqCst);
        for reader in [leader, waiter] {
            let error = reader.join().expect("no panic").expect_err("an error");
            assert_eq!(error.to_string(), "cannot decode");
        }
    });
    let stats = bench.cache.stats();
    assert_eq!((stats.failures, stats.bytes, stats.spans), (1, 0, 0));
    assert!(bench.pin(1, 5, Fault::Open).is_err());
    bench.read(1, SPAN);
    // A span that was fine so far can still break
    bench.read(2, 10);
    assert!(bench.pin(2, SPAN, Fault::Error(STEP)).is_err());
    bench.read(2, SPAN);
}

#[test]
fn a_panic_wakes_those_who_wait_and_one_of_them_takes_over() {
    let begun = AtomicUsize::new(0);
    let hold = |_, _| {
        if begun.fetch_add(1, Ordering::SeqCst) == 0 {
            thread::sleep(Duration::from_millis(100));
        }
    };
    let bench = Bench::new(1 << 30, &hold);
    thread::scope(|scope| {
        let leader = scope.spawn(|| drop(bench.pin(1, SPAN, Fault::Panic(0))));
        while begun.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let waiters: Vec<_> = (1..4)
            .map(|n| {
                scope.spawn({
                    let bench = &bench;
                    move || bench.read(1, n * STEP)
                })
            })
            .collect();
        assert!(leader.join().is_err());
        waiters.into_iter().for_each(|waiter| waiter.join().expect("it takes over"));
    });
    assert_eq!((bench.opens(), bench.cache.stats().failures), (2, 1));
}

#[test]
fn decodes_wait_for_memory_instead_of_taking_more() {
    let capacity = 3 * COST;
    let most = AtomicU64::new(0);
    let cache = std::sync::OnceLock::<Bench<'_>>::new();
    let watch = |_, _| {
        let bytes = cache.get().map_or(0, |bench| bench.cache.stats().bytes);
        most.fetch_max(bytes, Ordering::SeqCst);
        thread::sleep(Duration::from_micros(100));
    };
    let bench = cache.get_or_init(|| Bench::new(capacity, &watch));
    thread::scope(|scope| {
        for reader in 0..8 {
            scope.spawn(move || (0..20).for_each(|n| bench.read(reader * 1000 + n, SPAN)));
        }
    });
    assert_eq!(bench.opens(), 160);
    let most = most.load(Ordering::SeqCst);
    assert!((COST..=capacity).contains(&most), "{most} of {capacity}");
    assert!(bench.cache.stats().bytes <= capacity);
}

#[test]
fn decoding_ahead_is_used_or_counted_as_wasted() {
    let bench = Bench::new(40 * COST, &|_, _| {});
    assert!(bench.cache.lacks(key(1)));
    bench.ahead(1);
    bench.ahead(1);
    assert!(!bench.cache.lacks(key(1)));
    bench.read(1, SPAN);
    bench.ahead(2);
    let stats = bench.cache.stats();
    assert_eq!((bench.opens(), stats.misses, stats.hits), (2, 0, 1));
    assert_eq!((stats.ahead_started, stats.ahead_used, stats.ahead_wasted), (2, 1, 0));
    bench.cache.forget(key(1).0);
    assert_eq!(bench.cache.stats().ahead_wasted, 1);
}

#[test]
fn decoding_ahead_stops_when_told_and_goes_on() {
    let bench = Bench::new(1 << 30, &|_, _| {});
    let steps = AtomicUsize::new(0);
    let twice = || steps.fetch_add(1, Ordering::SeqCst) < 3;
    bench.cache.ahead(key(1), WHOLE, &bench.origin(1, Fault::None), &twice);
    let stats = bench.cache.stats();
    assert_eq!((stats.inflated_bytes, stats.spans), (2 * STEP as u64, 1));
    assert!(bench.cache.lacks(key(1)), "there is more to decode");
    bench.ahead(1);
    assert!(bench.cache.pin_ready(key(1), SPAN).is_some());
    assert_eq!((bench.opens(), bench.cache.stats().ahead_used), (1, 1));
}

#[test]
fn decoding_ahead_goes_as_far_as_it_is_told_and_says_how_it_ended() {
    let bench = Bench::new(16 * COST, &|_, _| {});
    let part = AheadExtent { upto: STEP + 1, share: 8, start: true };
    let ahead =
        |n, extent| bench.cache.ahead(key(n), extent, &bench.origin(n, Fault::None), &|| true);
    assert_eq!([1, 1, 2].map(|n| ahead(n, part)), [AheadEnd::Done; 3]);
    assert_eq!(bench.cache.stats().inflated_bytes, 2 * (STEP as u64 + 1));
    assert_eq!(ahead(3, part), AheadEnd::Full, "two of sixteen are not asked for");
    bench.read(1, 10);
    assert_eq!(ahead(3, part), AheadEnd::Done);
    let stopped = bench.cache.ahead(key(3), WHOLE, &bench.origin(3, Fault::None), &|| false);
    assert_eq!((stopped, bench.opens()), (AheadEnd::Stopped, 3));
}

#[test]
fn decoding_ahead_takes_nothing_that_is_in_use() {
    let bench = Bench::new(8 * COST, &|_, _| {});
    (0..8).for_each(|n| bench.read(n, 100));
    for _ in 0..2 {
        for n in 0..8 {
            assert!(bench.cache.pin_ready(key(n), 100).is_some());
        }
        bench.ahead(50);
        assert_eq!(bench.opens(), 8, "no room");
    }
    // What nobody has come back to while half the cache was brought in anew
    (8..13).for_each(|n| bench.read(n, 100));
    bench.ahead(50);
    assert!(bench.cache.pin_ready(key(50), SPAN).is_some());
    // Nor more than its share, a quarter
    let bench = Bench::new(40 * COST, &|_, _| {});
    (0..40).for_each(|n| bench.ahead(n));
    assert!((9..=12).contains(&bench.opens()), "{}", bench.opens());
}

#[test]
fn a_reader_waits_for_its_bytes_of_what_is_decoded_ahead() {
    let (step, steps) = mpsc::channel::<()>();
    let steps = Mutex::new(steps);
    let gate = move |_, _| {
        let _ = steps.lock().expect("gate").recv();
    };
    let bench = Bench::new(1 << 30, &gate);
    thread::scope(|scope| {
        scope.spawn(|| bench.ahead(1));
        while bench.opens() == 0 {
            thread::yield_now();
        }
        let reader = scope.spawn(|| bench.read(1, 1000));
        while bench.cache.stats().waits == 0 {
            thread::yield_now();
        }
        step.send(()).expect("one step");
        reader.join().expect("served after the first step");
        drop(step);
    });
    let stats = bench.cache.stats();
    assert_eq!((bench.opens(), stats.misses, stats.ahead_used), (1, 0, 1));
}

#[derive(Clone, Debug)]
enum Op {
    Read { span: u32, need: usize },
    Fail { span: u32, need: usize, fault: Fault },
    Ahead { span: u32, steps: usize },
    Ready { span: u32, need: usize },
    Forget,
}

fn op() -> impl Strategy<Value = Op> {
    let span = 0..6_u32;
    let need = prop_oneof![0..2000_usize, 0..=SPAN, Just(SPAN)];
    let fault = prop_oneof![
        Just(Fault::Open),
        (0..SPAN).prop_map(Fault::Error),
        (0..SPAN).prop_map(Fault::Panic)
    ];
    prop_oneof![
        8 => (span.clone(), need.clone()).prop_map(|(span, need)| Op::Read { span, need }),
        2 => (span.clone(), need.clone(), fault)
            .prop_map(|(span, need, fault)| Op::Fail { span, need, fault }),
        3 => (span.clone(), 0..8_usize).prop_map(|(span, steps)| Op::Ahead { span, steps }),
        2 => (span, need).prop_map(|(span, need)| Op::Ready { span, need }),
        1 => Just(Op::Forget),
    ]
}

impl Bench<'_> {
    fn run(&self, op: &Op) {
        match *op {
            Op::Read { span, need } => match self.pin(span, need, Fault::None) {
                Ok(pin) => check(span, &pin, need),
                // Another one's, who led
                Err(error) => assert!(error.to_string().starts_with("cannot")),
            },
            Op::Fail { span, need, fault } => {
                let pin = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    self.pin(span, need, fault)
                }));
                if let Ok(Ok(pin)) = pin {
                    check(span, &pin, need);
                }
            }
            Op::Ahead { span, steps } => {
                let left = AtomicUsize::new(steps + 1);
                let go_on = || left.fetch_sub(1, Ordering::SeqCst) > 1;
                self.cache.ahead(key(span), WHOLE, &self.origin(span, Fault::None), &go_on);
            }
            Op::Ready { span, need } => {
                if let Some(pin) = self.cache.pin_ready(key(span), need) {
                    check(span, &pin, need);
                }
            }
            Op::Forget => self.cache.forget(key(0).0),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is asked in whatever order by however many: right bytes, an end, and no memory
    /// that is not accounted for.
    #[test]
    fn any_interleaving_gives_right_bytes(
        threads in prop::collection::vec(prop::collection::vec(op(), 1..30), 1..6),
        capacity in 0..6 * COST,
    ) {
        let bench = Bench::new(capacity, &|_, _| thread::yield_now());
        thread::scope(|scope| {
            for ops in &threads {
                scope.spawn(|| ops.iter().for_each(|op| bench.run(op)));
            }
        });
        let stats = bench.cache.stats();
        prop_assert!(stats.bytes <= capacity, "{stats:?}");
        prop_assert!(stats.ahead_used + stats.ahead_wasted <= stats.ahead_started, "{stats:?}");
        bench.cache.forget(key(0).0);
        let left = bench.cache.stats();
        prop_assert_eq!(left.spans, 0);
        prop_assert!(left.bytes <= 4 * (COMPRESSED as u64), "spare buffers alone: {:?}", left);
        let table = bench.cache.lock();
        prop_assert_eq!(table.in_use(), HashMap::from([("active", 0), ("waiting", 0), ("flights", 0), ("unclaimed", 0)]));
    }
}
