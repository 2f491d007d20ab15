//! What the kernel asks, how fast it is answered, and what goes wrong.
//!
//! Counting costs some 60 ns a request, two readings of the clock included, beside the 7 us that
//! the request takes. A request is counted when it comes, and its latency when it has been
//! answered: who has an answer finds the request counted, and what is under way is the difference.
//!
//! Only requests that reach this crate are counted. fuser itself turns down what it does not know
//! (INTERRUPT, STATX, SYNCFS), and the kernel asks for each of those but once a connection.
//!
//! Locking: none. Every thread adds to one of a few shards, which are summed up when somebody
//! asks. Sums are therefore of slightly different moments, but nothing is lost.

mod histogram;

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use self::histogram::Histogram;
pub use self::histogram::{Distribution, RELATIVE_ERROR};

/// Requests by what they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Finding a name in a directory.
    Lookup,
    /// The kernel drops an inode; has no answer. Many come in one message, each counts.
    Forget,
    /// Attributes.
    Getattr,
    /// Target of a symbolic link.
    Readlink,
    /// Opening a file; refused once a connection, so that no more come.
    Open,
    /// Content of a file.
    Read,
    /// Opening a directory; refused once a connection.
    Opendir,
    /// Entries of a directory.
    Readdir,
    /// Entries of a directory with their attributes.
    Readdirplus,
    /// Statistics of the file system.
    Statfs,
    /// One extended attribute.
    Getxattr,
    /// Names of extended attributes.
    Listxattr,
    /// Whatever the kernel can do by itself and is told to (access, flush, ioctl, lseek, poll,
    /// syncing).
    Declined,
    /// Whatever would change something.
    Change,
}

impl Kind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 14] = [
        Self::Lookup,
        Self::Forget,
        Self::Getattr,
        Self::Readlink,
        Self::Open,
        Self::Read,
        Self::Opendir,
        Self::Readdir,
        Self::Readdirplus,
        Self::Statfs,
        Self::Getxattr,
        Self::Listxattr,
        Self::Declined,
        Self::Change,
    ];

    /// Its name in logs and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Forget => "forget",
            Self::Getattr => "getattr",
            Self::Readlink => "readlink",
            Self::Open => "open",
            Self::Read => "read",
            Self::Opendir => "opendir",
            Self::Readdir => "readdir",
            Self::Readdirplus => "readdirplus",
            Self::Statfs => "statfs",
            Self::Getxattr => "getxattr",
            Self::Listxattr => "listxattr",
            Self::Declined => "declined",
            Self::Change => "change",
        }
    }
}

/// What deserves an operator's attention: each of these is a line in the log as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Bytes of a layer are not what was indexed.
    Damaged,
    /// Bytes of a layer could not be read.
    Unreadable,
    /// A layer that a tree names is gone.
    Missing,
    /// Trees and indexes contradict each other.
    Inconsistent,
    /// What two workers died of was asked for again, and refused.
    Barred,
    /// A bug.
    Panic,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Damaged,
        Self::Unreadable,
        Self::Missing,
        Self::Inconsistent,
        Self::Barred,
        Self::Panic,
    ];

    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Unreadable => "unreadable",
            Self::Missing => "missing",
            Self::Inconsistent => "inconsistent",
            Self::Barred => "barred",
            Self::Panic => "panic",
        }
    }
}

/// Shards of the counters: as many threads can count without touching the same cache line.
const SHARDS: usize = 8;

/// Set in the id of a request that an earlier worker had taken and not answered
/// (`FUSE_UNIQUE_RESEND` of fuse.h).
const RESENT: u64 = 1 << 63;

/// Counters of a connection since this worker adopted it.
#[derive(Debug)]
pub struct Metrics {
    shards: Box<[Shard]>,
}

/// The counters of the threads that share this shard; on cache lines of its own, prefetched pairs
/// included.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    kinds: [PerKind; Kind::ALL.len()],
    faults: [AtomicU64; Fault::ALL.len()],
    queue: Histogram,
    negative_lookups: AtomicU64,
    resent: AtomicU64,
    read_bytes: AtomicU64,
    looks_found: AtomicU64,
    looks_missed: AtomicU64,
    looked_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct PerKind {
    requests: AtomicU64,
    errors: AtomicU64,
    latency: Histogram,
}

/// When a request came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived(Instant);

impl Default for Metrics {
    fn default() -> Self {
        Self { shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect() }
    }
}

impl Metrics {
    /// A request came, with this id.
    pub(crate) fn arrived(&self, kind: Kind, unique: u64) -> Arrived {
        let shard = self.shard();
        shard.kinds[kind as usize].requests.fetch_add(1, Relaxed);
        if unique & RESENT != 0 {
            shard.resent.fetch_add(1, Relaxed);
        }
        Arrived(Instant::now())
    }

    /// It has been answered, or needed no answer.
    pub(crate) fn answered(&self, kind: Kind, arrived: Arrived) {
        self.shard().kinds[kind as usize].latency.add(nanoseconds(arrived.0));
    }

    /// A read left the queue: a thread begins with it.
    pub(crate) fn read_taken(&self, arrived: Arrived) {
        self.shard().queue.add(nanoseconds(arrived.0));
    }

    /// The answer is an error that callers should not see every day.
    pub(crate) fn failed(&self, kind: Kind) {
        self.shard().kinds[kind as usize].errors.fetch_add(1, Relaxed);
    }

    /// The error is worth a line in the log.
    pub(crate) fn fault(&self, fault: Fault) {
        self.shard().faults[fault as usize].fetch_add(1, Relaxed);
    }

    /// A lookup found no such name.
    pub(crate) fn negative_lookup(&self) {
        self.shard().negative_lookups.fetch_add(1, Relaxed);
    }

    /// So many bytes of content go to the kernel.
    pub(crate) fn read_bytes(&self, bytes: usize) {
        self.shard().read_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// The thread for requests looked out for the next one for so long, and found it or did not.
    pub(crate) fn looked_out(&self, found: bool, took: Duration) {
        let shard = self.shard();
        let count = if found { &shard.looks_found } else { &shard.looks_missed };
        count.fetch_add(1, Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        shard.looked_ns.fetch_add(ns, Relaxed);
    }

    fn shard(&self) -> &Shard {
        &self.shards[thread_number() % SHARDS]
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> Snapshot {
        let sum = |of: fn(&Shard) -> &AtomicU64| -> u64 {
            self.shards.iter().map(|shard| of(shard).load(Relaxed)).sum()
        };
        let kinds = Kind::ALL.map(|kind| {
            let shards = self.shards.iter().map(|shard| &shard.kinds[kind as usize]);
            // Latencies first: a request that comes meanwhile counts as under way
            let latency = Histogram::sum(shards.clone().map(|per_kind| &per_kind.latency));
            KindSnapshot {
                kind,
                latency,
                requests: shards.clone().map(|per_kind| per_kind.requests.load(Relaxed)).sum(),
                errors: shards.map(|per_kind| per_kind.errors.load(Relaxed)).sum(),
            }
        });
        Snapshot {
            read_queue: Histogram::sum(self.shards.iter().map(|shard| &shard.queue)),
            kinds: kinds.into(),
            faults: Fault::ALL.map(|fault| {
                let shards = self.shards.iter().map(|shard| &shard.faults[fault as usize]);
                (fault, shards.map(|count| count.load(Relaxed)).sum())
            }),
            negative_lookups: sum(|shard| &shard.negative_lookups),
            resent: sum(|shard| &shard.resent),
            read_bytes: sum(|shard| &shard.read_bytes),
            busy_poll: BusyPollSnapshot {
                found: sum(|shard| &shard.looks_found),
                missed: sum(|shard| &shard.looks_missed),
                took: Duration::from_nanos(sum(|shard| &shard.looked_ns)),
            },
        }
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A small number of the calling thread's own.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Relaxed));
    }
    OWN.get()
}

/// Counters at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// By kind of request, in the order of [`Kind::ALL`].
    pub kinds: Vec<KindSnapshot>,
    /// Nanoseconds that reads waited for a thread.
    pub read_queue: Distribution,
    /// Faults by cause.
    pub faults: [(Fault, u64); Fault::ALL.len()],
    /// Lookups of names that do not exist; they count as lookups too.
    pub negative_lookups: u64,
    /// Requests that an earlier worker had taken and not answered.
    pub resent: u64,
    /// Bytes of content given to the kernel.
    pub read_bytes: u64,
    /// Looking out for requests.
    pub busy_poll: BusyPollSnapshot,
}

/// Counters of looking out for the next request before sleeping.
#[derive(Clone, Copy, Debug)]
pub struct BusyPollSnapshot {
    /// Times that it was found.
    pub found: u64,
    /// Times that it was not.
    pub missed: u64,
    /// What that took, of one core.
    pub took: Duration,
}

/// Counters of one kind of request.
#[derive(Clone, Debug)]
pub struct KindSnapshot {
    /// Which kind.
    pub kind: Kind,
    /// Requests that came.
    pub requests: u64,
    /// Of these, answered with an error; those that callers see every day (no such entry, no such
    /// attribute, not provided) left out.
    pub errors: u64,
    /// Nanoseconds from the request's arrival in the worker to its answer; none where there is no
    /// answer.
    pub latency: Distribution,
}

impl Snapshot {
    /// Requests that came and are not answered yet.
    pub fn under_way(&self) -> u64 {
        let answered = self.kinds.iter().filter(|k| k.kind != Kind::Forget);
        answered.map(|k| k.requests.saturating_sub(k.latency.count())).sum()
    }

    /// Reads that wait for a thread.
    pub fn queued_reads(&self) -> u64 {
        let reads = self.kinds.iter().find(|k| k.kind == Kind::Read).map_or(0, |k| k.requests);
        reads.saturating_sub(self.read_queue.count())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    fn of(snapshot: &Snapshot, kind: Kind) -> &KindSnapshot {
        snapshot.kinds.iter().find(|k| k.kind == kind).expect("every kind is there")
    }

    #[test]
    fn names_and_places() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{}", kind.name());
        }
        for (place, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, place, "{}", fault.name());
        }
    }

    #[test]
    fn a_read_from_its_arrival_to_its_answer() {
        let metrics = Metrics::default();
        let arrived = metrics.arrived(Kind::Read, 7);
        let snapshot = metrics.snapshot();
        assert_eq!(of(&snapshot, Kind::Read).requests, 1);
        assert_eq!((snapshot.under_way(), snapshot.queued_reads()), (1, 1));
        metrics.read_taken(arrived);
        let snapshot = metrics.snapshot();
        assert_eq!((snapshot.under_way(), snapshot.queued_reads()), (1, 0));
        metrics.read_bytes(4096);
        metrics.answered(Kind::Read, arrived);
        let snapshot = metrics.snapshot();
        assert_eq!((snapshot.under_way(), snapshot.read_bytes), (0, 4096));
        assert_eq!(of(&snapshot, Kind::Read).latency.count(), 1);
        assert_eq!(of(&snapshot, Kind::Lookup).requests, 0);
    }

    #[test]
    fn requests_that_come_again_are_told_apart() {
        let metrics = Metrics::default();
        metrics.arrived(Kind::Lookup, 2);
        metrics.arrived(Kind::Lookup, RESENT | 4);
        let snapshot = metrics.snapshot();
        assert_eq!((snapshot.resent, of(&snapshot, Kind::Lookup).requests), (1, 2));
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let metrics = Arc::new(Metrics::default());
        thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    for n in 0..1000 {
                        let arrived = metrics.arrived(Kind::Getattr, n);
                        metrics.failed(Kind::Getattr);
                        metrics.fault(Fault::Damaged);
                        metrics.negative_lookup();
                        metrics.answered(Kind::Getattr, arrived);
                    }
                });
            }
        });
        let all = 2 * SHARDS as u64 * 1000;
        let snapshot = metrics.snapshot();
        let getattr = of(&snapshot, Kind::Getattr);
        assert_eq!((getattr.requests, getattr.errors, getattr.latency.count()), (all, all, all));
        assert_eq!(snapshot.faults[0], (Fault::Damaged, all));
        assert_eq!(snapshot.negative_lookups, all);
    }
}
