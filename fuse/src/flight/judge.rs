//! The keeper's side: what a death says about the requests that were under way, and whether a
//! worker gets anywhere.

use super::{Call, Culprit, Flights, table::EVERYWHERE};
use crate::metrics::Kind;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By a fault of its own (a signal such as SIGSEGV or SIGABRT), by the kernel's want of memory,
    /// or by the keeper because it got nowhere: some request may have caused it.
    Fault,
    /// By its own will, or by somebody else's: no request is to blame.
    Other,
}

/// Deaths in a row after which a request is barred, where it is the only one that was present at
/// all of them.
const DEATHS: u64 = 2;
/// Deaths in a row after which it is barred even beside others: they could not be told apart.
const DEATHS_BESIDE: u64 = 4;

/// How far the worker has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Reads answered so far.
    pub reads: u64,
    /// Everything else answered so far.
    pub others: u64,
    /// What is being worked on.
    pub running: Vec<Call>,
}

impl Flights {
    /// Judges what was under way when a worker ended, and makes room for the next one. Returns what
    /// is barred from now on, and was not before.
    ///
    /// No worker may live meanwhile.
    pub fn bury(&self, death: Death) -> Vec<Culprit> {
        let present: Vec<Call> = self.table.slots().iter().filter_map(|slot| slot.call()).collect();
        self.table.slots().iter().for_each(|slot| slot.wipe());
        let mut culprits = Vec::new();
        if death == Death::Fault {
            let mut suspects: Vec<(Call, u64)> =
                self.table.suspects().iter().filter_map(|suspect| suspect.entry()).collect();
            for call in &present {
                match suspects.iter_mut().find(|(suspect, _)| suspect.unique == call.unique) {
                    Some((_, deaths)) => *deaths += 1,
                    None => suspects.push((*call, 1)),
                }
            }
            let again = suspects.iter().filter(|(call, deaths)| {
                *deaths >= DEATHS && present.iter().any(|p| p.unique == call.unique)
            });
            let again: Vec<_> = again.copied().collect();
            for (call, _) in
                again.iter().filter(|(_, deaths)| again.len() == 1 || *deaths >= DEATHS_BESIDE)
            {
                culprits.push(self.convict(call));
                suspects.retain(|(suspect, _)| suspect.unique != call.unique);
            }
            self.table.suspects().iter().for_each(|suspect| suspect.clear());
            for (entry, (call, deaths)) in self.table.suspects().iter().zip(&suspects) {
                entry.set(call, *deaths);
            }
        }
        self.table.count_alerts();
        culprits
    }

    fn convict(&self, call: &Call) -> Culprit {
        let Call { kind, ino, at, len, .. } = *call;
        let known = self.table.culprits();
        // The second place of one file: it is the file, and each further place would cost two
        // deaths as well. Names are no places: one directory holds all trees
        let everywhere = kind == Kind::Read && known.iter().any(|c| (c.kind, c.ino) == (kind, ino));
        let (at, len) = if everywhere { (0, EVERYWHERE) } else { (at, len) };
        let culprit = Culprit { kind, ino, at, len };
        self.table.bar(&culprit);
        culprit
    }

    /// Forgets suspects: a worker that has been well for a while has answered them, or they never
    /// came again.
    pub fn absolve(&self) {
        self.table.suspects().iter().for_each(|suspect| suspect.clear());
        self.table.count_alerts();
    }

    /// Forgets culprits and suspects: the next worker may be of a version that copes with them.
    pub fn forgive(&self) {
        self.table.barred().iter().for_each(|barred| barred.clear());
        self.absolve();
    }

    /// What is barred.
    pub fn barred(&self) -> Vec<Culprit> {
        self.table.culprits()
    }

    /// How far the worker has come.
    pub fn sample(&self) -> Sample {
        let mut sample = Sample::default();
        for slot in self.table.slots() {
            let (reads, others) = slot.answered();
            sample.reads = sample.reads.wrapping_add(reads);
            sample.others = sample.others.wrapping_add(others);
            sample.running.extend(slot.call());
        }
        sample
    }
}

impl Sample {
    /// Whether, from an earlier sample to this one, reads were under way and none was answered, or
    /// other requests were, or waited in the kernel (`pending`), and none was answered.
    pub fn is_stuck_since(&self, earlier: &Self, pending: bool) -> bool {
        let runs = |sample: &Self, read| {
            sample.running.iter().any(|call| (call.kind == Kind::Read) == read)
        };
        let none_read = self.reads == earlier.reads;
        let none_other = self.others == earlier.others;
        let reads = runs(self, true) && runs(earlier, true) && none_read;
        let others = runs(self, false) && runs(earlier, false) && none_other;
        reads || others || (pending && none_read && none_other)
    }
}
