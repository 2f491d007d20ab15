//! The memory file: its layout, and the mapping of it.
//!
//! ```text
//! header     64 B: magic with version, entries that need a closer look
//! slots      SLOTS × 64 B: what a thread works on, how much it has answered
//! suspects   SUSPECTS × 64 B
//! barred     BARRED × 64 B
//! ```
//! Every field is an atomic 64-bit number in the byte order of the machine. Keeper and worker are
//! the same program or neighbouring versions of it on one machine: the magic number tells.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};

use super::{Call, Culprit};
use crate::metrics::Kind;

/// Threads that can be recorded. A worker has two for requests and at most sixteen for reads.
pub(super) const SLOTS: usize = 64;
/// As many suspects as slots.
pub(super) const SUSPECTS: usize = SLOTS;
/// Culprits that are remembered; the oldest makes room.
pub(super) const BARRED: usize = 64;
/// Length of a kind that is barred at every place.
pub(super) const EVERYWHERE: u32 = u32::MAX;

/// "peelfly" and the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"peelfly\x01");

#[repr(C, align(64))]
struct Header {
    magic: AtomicU64,
    /// Suspects and barred entries: 0 lets requests take the short way.
    alerts: AtomicU64,
    /// Culprits so far: says which entry is the oldest.
    convicted: AtomicU64,
}

/// The id comes last and goes first: an entry with one is whole.
#[repr(C, align(64))]
pub(super) struct Slot {
    unique: AtomicU64,
    ino: AtomicU64,
    /// Kind in the upper half, length in the lower.
    what: AtomicU64,
    at: AtomicU64,
    /// Answered so far: reads.
    reads: AtomicU64,
    /// Answered so far: everything else.
    others: AtomicU64,
}

#[repr(C, align(64))]
pub(super) struct Suspect {
    unique: AtomicU64,
    ino: AtomicU64,
    what: AtomicU64,
    at: AtomicU64,
    deaths: AtomicU64,
}

#[repr(C, align(64))]
pub(super) struct Barred {
    ino: AtomicU64,
    what: AtomicU64,
    at: AtomicU64,
}

#[repr(C)]
struct Shared {
    header: Header,
    slots: [Slot; SLOTS],
    suspects: [Suspect; SUSPECTS],
    barred: [Barred; BARRED],
}

const LEN: usize = size_of::<Shared>();

fn pack(kind: Kind, len: u32) -> u64 {
    (kind as u64) << 32 | u64::from(len)
}

/// A neighbouring version may number kinds otherwise. No harm comes of that: a reload makes an end
/// of whatever is suspected or barred.
fn unpack(what: u64) -> Option<(Kind, u32)> {
    Some((*Kind::ALL.get((what >> 32) as usize)?, what as u32))
}

impl Slot {
    pub(super) fn is_free(&self) -> bool {
        self.unique.load(Relaxed) == 0
    }

    pub(super) fn fill(&self, call: &Call) {
        self.ino.store(call.ino, Relaxed);
        self.what.store(pack(call.kind, call.len), Relaxed);
        self.at.store(call.at, Relaxed);
        self.unique.store(call.unique & !super::RESENT, Release);
    }

    pub(super) fn clear(&self, read: bool) {
        let answered = if read { &self.reads } else { &self.others };
        // One writer, its thread: no read-modify-write is needed
        answered.store(answered.load(Relaxed).wrapping_add(1), Relaxed);
        self.unique.store(0, Release);
    }

    /// Forgets what was under way, for a worker that is gone.
    pub(super) fn wipe(&self) {
        self.unique.store(0, Release);
    }

    pub(super) fn call(&self) -> Option<Call> {
        let unique = self.unique.load(Acquire);
        let (kind, len) = unpack(self.what.load(Relaxed)).filter(|_| unique != 0)?;
        let (ino, at) = (self.ino.load(Relaxed), self.at.load(Relaxed));
        Some(Call { unique, kind, ino, at, len })
    }

    /// Answered so far: reads, and everything else.
    pub(super) fn answered(&self) -> (u64, u64) {
        (self.reads.load(Relaxed), self.others.load(Relaxed))
    }
}

impl Suspect {
    pub(super) fn set(&self, call: &Call, deaths: u64) {
        self.ino.store(call.ino, Relaxed);
        self.what.store(pack(call.kind, call.len), Relaxed);
        self.at.store(call.at, Relaxed);
        self.deaths.store(deaths, Relaxed);
        self.unique.store(call.unique, Release);
    }

    pub(super) fn clear(&self) {
        self.unique.store(0, Release);
    }

    pub(super) fn is_taken(&self) -> bool {
        self.unique() != 0
    }

    pub(super) fn unique(&self) -> u64 {
        self.unique.load(Acquire)
    }

    pub(super) fn ino(&self) -> u64 {
        self.ino.load(Relaxed)
    }

    /// The request, and the deaths in a row that it was present at.
    pub(super) fn entry(&self) -> Option<(Call, u64)> {
        let unique = self.unique();
        let (kind, len) = unpack(self.what.load(Relaxed)).filter(|_| unique != 0)?;
        let (ino, at) = (self.ino.load(Relaxed), self.at.load(Relaxed));
        Some((Call { unique, kind, ino, at, len }, self.deaths.load(Relaxed)))
    }
}

impl Barred {
    fn is_taken(&self) -> bool {
        self.ino.load(Relaxed) != 0
    }

    pub(super) fn clear(&self) {
        self.ino.store(0, Release);
    }

    fn set(&self, culprit: &Culprit) {
        self.what.store(pack(culprit.kind, culprit.len), Relaxed);
        self.at.store(culprit.at, Relaxed);
        self.ino.store(culprit.ino, Release);
    }

    pub(super) fn culprit(&self) -> Culprit {
        let what = unpack(self.what.load(Relaxed));
        let (kind, len) = what.unwrap_or((Kind::Read, EVERYWHERE));
        Culprit { kind, ino: self.ino.load(Relaxed), at: self.at.load(Relaxed), len }
    }

    /// Whether a request is what two workers died of, or touches the range of it.
    pub(super) fn covers(&self, call: &Call) -> bool {
        if self.ino.load(Acquire) != call.ino || call.ino == 0 {
            return false;
        }
        let Culprit { kind, at, len, .. } = self.culprit();
        let touches = match (kind, len) {
            (_, EVERYWHERE) => true,
            (Kind::Read, _) => {
                at < call.at.saturating_add(call.len.into())
                    && call.at < at.saturating_add(len.into())
            }
            _ => at == call.at,
        };
        kind == call.kind && touches
    }
}

/// The mapped file.
pub(super) struct Table {
    pub(super) file: OwnedFd,
    shared: NonNull<Shared>,
}

// SAFETY: the mapping belongs to the table alone, lives as long as it, and holds nothing but atomic
// numbers, which any thread may use.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    pub(super) fn create() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("peel-flights", flags)?;
        rustix::fs::ftruncate(&file, LEN as u64)?;
        // Nobody can take pages away from under the map, which would be a fatal signal
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let table = Self::map(file)?;
        table.shared().header.magic.store(MAGIC, Release);
        Ok(table)
    }

    pub(super) fn open(file: OwnedFd) -> io::Result<Self> {
        let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let len = rustix::fs::fstat(&file)?.st_size;
        if len != LEN as i64 {
            return Err(bad(format!("table of requests: expected {LEN} bytes, found {len}")));
        }
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(bad("table of requests: not sealed".to_owned()));
        }
        let table = Self::map(file)?;
        match table.shared().header.magic.load(Acquire) {
            MAGIC => Ok(table),
            found => Err(bad(format!("table of requests: expected {MAGIC:#x}, found {found:#x}"))),
        }
    }

    fn map(file: OwnedFd) -> io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice, of a file that has this length
        // and, being sealed, keeps it.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), LEN, rights, MapFlags::SHARED, file.as_fd(), 0)
        }?;
        let shared = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file, shared })
    }

    fn shared(&self) -> &Shared {
        // SAFETY: the mapping is as long as a `Shared`, begins at a page and lives as long as
        // `self`; every bit pattern is a valid `Shared`, and other processes change it only
        // through atomics as well.
        unsafe { self.shared.as_ref() }
    }

    pub(super) fn alert(&self) -> bool {
        self.shared().header.alerts.load(Relaxed) != 0
    }

    /// Counts anew what needs a closer look.
    pub(super) fn count_alerts(&self) {
        let suspects = self.suspects().iter().filter(|s| s.is_taken()).count();
        let barred = self.barred().iter().filter(|b| b.is_taken()).count();
        self.shared().header.alerts.store((suspects + barred) as u64, Release);
    }

    pub(super) fn slots(&self) -> &[Slot; SLOTS] {
        &self.shared().slots
    }

    pub(super) fn suspects(&self) -> &[Suspect; SUSPECTS] {
        &self.shared().suspects
    }

    pub(super) fn barred(&self) -> &[Barred; BARRED] {
        &self.shared().barred
    }

    /// Culprits that are remembered.
    pub(super) fn culprits(&self) -> Vec<Culprit> {
        self.barred().iter().filter(|b| b.is_taken()).map(Barred::culprit).collect()
    }

    pub(super) fn bar(&self, culprit: &Culprit) {
        let convicted = &self.shared().header.convicted;
        let number = convicted.load(Relaxed);
        convicted.store(number.wrapping_add(1), Relaxed);
        self.barred()[number as usize % BARRED].set(culprit);
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nothing borrowed from `self` is left.
        let unmapped = unsafe { rustix::mm::munmap(self.shared.as_ptr().cast(), LEN) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
