//! What the worker is doing right now, in memory that outlives it.
//!
//! A request that kills its worker is sent again to the next one, and would kill that too, for
//! ever. So every request is written down before it is worked on and struck out after, in a small
//! memory file that the keeper holds and every worker maps. After a death the keeper reads what was
//! under way:
//!
//! ```text
//! worker   begin(call) ──▶ slot of this thread ──▶ work ──▶ slot is free
//!             │  barred: EIO at once        ▲
//!             └─ suspect: waits until it is alone
//! keeper   worker died of a fault: slots ──▶ suspects, each with the deaths it was present at
//!          present at two in a row ──▶ barred: its operation on that inode and range
//! ```
//! Suspects are worked on one at a time, so that a second death has one culprit, and what only
//! happened to be under way beside it is served. What is barred stays so until the daemon is
//! reloaded or started anew: the kernel turns a failed read-ahead into reads of single pages, and
//! each would cost two more deaths.
//!
//! Only deaths that a request can cause count: see [`Death`].
//!
//! Cost: a handful of stores to a cache line that no other thread writes, some ten nanoseconds.
//!
//! Locking: none across processes: a slot has one writer, its thread, and the keeper changes the
//! table only while no worker lives. `alone` makes suspects take turns within a worker.

mod judge;
mod table;

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

pub use self::judge::{Death, Sample};
use self::table::{Slot, Suspect, Table};
use crate::metrics::Kind;

/// Bit that the kernel sets in the id of a request that it sends again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;

/// What a suspect waits for its turn: longer than any read that is well, and short enough that one
/// that hangs does not hold up those behind it.
const TURN_LIMIT: Duration = Duration::from_secs(5);

/// A request that is about to be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The kernel's id of it; never 0.
    pub unique: u64,
    /// What is asked for.
    pub kind: Kind,
    /// The inode number.
    pub ino: u64,
    /// First byte of a read, place in a listing; a hash of the name for what is asked by name.
    pub at: u64,
    /// Bytes of a read, else 0.
    pub len: u32,
}

impl Call {
    /// The same at a place, or by a name.
    #[must_use]
    pub fn at(self, at: u64) -> Self {
        Self { at, ..self }
    }
}

/// What two workers in a row died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// What is refused from now on.
    pub kind: Kind,
    /// Of this inode.
    pub ino: u64,
    /// First byte of a read, else as in [`Call::at`].
    pub at: u64,
    /// Bytes of a read, else 0; `u32::MAX` where the operation is refused whatever the place.
    pub len: u32,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, ino, at, len } = self;
        write!(f, "{} of inode {ino:#x}", kind.name())?;
        match (kind, len) {
            (_, &table::EVERYWHERE) => f.write_str(", at any place"),
            (Kind::Read, len) => write!(f, ", {len} bytes at {at}"),
            (Kind::Readdir | Kind::Readdirplus, _) => write!(f, ", from entry {at}"),
            (Kind::Lookup | Kind::Getxattr, _) => write!(f, ", name hash {at:#x}"),
            _ => Ok(()),
        }
    }
}

/// Hash of a name, for [`Call::at`]: FNV-1a, 64 bits.
pub fn name_hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The table, mapped into this process.
pub struct Flights {
    table: Table,
    /// Tells tables apart, as threads remember the slot that they have in one.
    id: usize,
    threads: AtomicUsize,
    /// A suspect is being worked on.
    alone: Mutex<bool>,
    turn: Condvar,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("fd", &self.table.file).finish_non_exhaustive()
    }
}

impl Flights {
    /// A new table, without entries.
    ///
    /// # Errors
    /// Where there is no memory file, or it cannot be mapped.
    pub fn create() -> io::Result<Self> {
        Table::create().map(Self::new)
    }

    /// The table of a keeper, from its descriptor.
    ///
    /// # Errors
    /// `InvalidData` where it is none of this version.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        Table::open(file).map(Self::new)
    }

    fn new(table: Table) -> Self {
        static TABLES: AtomicUsize = AtomicUsize::new(1);
        Self {
            table,
            id: TABLES.fetch_add(1, Ordering::Relaxed),
            threads: AtomicUsize::new(0),
            alone: Mutex::new(false),
            turn: Condvar::new(),
        }
    }

    /// Writes a request down, and says whether it is to be worked on.
    ///
    /// A suspect waits here for its turn.
    ///
    /// # Errors
    /// What it was refused for: two workers died of it.
    pub fn begin(&self, call: &Call) -> Result<Flight<'_>, Culprit> {
        let mut flight =
            Flight { flights: self, slot: None, read: false, suspect: None, alone: false };
        if self.table.alert() {
            self.look_closely(call, &mut flight)?;
        }
        let Some(slot) = self.own_slot() else { return Ok(flight) };
        if slot.is_free() {
            slot.fill(call);
            flight.slot = Some(slot);
            flight.read = call.kind == Kind::Read;
        }
        Ok(flight)
    }

    /// The same for a first try, which may not answer: it counts for no progress of reads. Only to be
    /// used while the table [is calm](Self::is_calm), as it would acquit a suspect.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub fn begin_first(&self, call: &Call) -> Result<Flight<'_>, Culprit> {
        let mut flight = self.begin(call)?;
        flight.read = false;
        Ok(flight)
    }

    /// Whether nothing is suspected or barred.
    pub fn is_calm(&self) -> bool {
        !self.table.alert()
    }

    /// The way of every request while something is barred or suspected.
    fn look_closely<'a>(&'a self, call: &Call, flight: &mut Flight<'a>) -> Result<(), Culprit> {
        if let Some(barred) = self.table.barred().iter().find(|barred| barred.covers(call)) {
            return Err(barred.culprit());
        }
        let unique = call.unique & !RESENT;
        let suspects = self.table.suspects();
        let resent = call.unique & RESENT != 0;
        flight.suspect = suspects.iter().find(|s| resent && s.unique() == unique);
        if flight.suspect.is_some() || suspects.iter().any(|s| s.is_taken() && s.ino() == call.ino)
        {
            // Others ask for the same inode: without a turn of their own they would be to blame for
            // a death beside a suspect, or it for theirs
            flight.alone = self.take_turn();
        }
        Ok(())
    }

    /// Waits until no suspect is worked on, for [`TURN_LIMIT`] at most.
    fn take_turn(&self) -> bool {
        let busy = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.turn.wait_timeout_while(busy, TURN_LIMIT, |busy| *busy);
        let (mut busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut *busy, true)
    }

    fn own_slot(&self) -> Option<&Slot> {
        thread_local! {
            static OWN: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
        }
        let (mut table, mut number) = OWN.get();
        if table != self.id {
            (table, number) = (self.id, self.threads.fetch_add(1, Ordering::Relaxed));
            OWN.set((table, number));
        }
        // A thread beyond the last slot works unrecorded
        self.table.slots().get(number)
    }
}

impl AsFd for Flights {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.file.as_fd()
    }
}

/// A request that is being worked on; struck out when dropped.
pub struct Flight<'a> {
    flights: &'a Flights,
    slot: Option<&'a Slot>,
    read: bool,
    suspect: Option<&'a Suspect>,
    alone: bool,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.clear(self.read);
        }
        if let Some(suspect) = self.suspect {
            suspect.clear();
            self.flights.table.count_alerts();
        }
        if self.alone {
            *self.flights.alone.lock().unwrap_or_else(PoisonError::into_inner) = false;
            self.flights.turn.notify_one();
        }
    }
}
