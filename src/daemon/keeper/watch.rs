//! Whether the worker gets anywhere.
//!
//! No request is sent to find out: one that hangs would hang the keeper as well. What the worker
//! works on and has answered stands in the table of requests, and whether requests wait in the
//! kernel is told by poll(2) on the FUSE descriptor.
//!
//! The worker is stuck where, over [`Watch::patience`] of time in which it could have run,
//! * reads are under way and none was answered, or
//! * other requests are under way, or wait in the kernel, and none was answered.
//!
//! Time does not count while it is stopped (SIGSTOP, a debugger) or while one of its threads waits
//! for a disk (state D): another worker would fare no better.

use std::{
    fs,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use peel_fuse::flight::Sample;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Pid,
};

/// How often the worker is looked at, at most.
const TICK_MAX: Duration = Duration::from_secs(1);

pub(super) struct Watch {
    /// Zero: never.
    patience: Duration,
    last: Option<(Instant, Sample)>,
    stuck_for: Duration,
}

impl Watch {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, last: None, stuck_for: Duration::ZERO }
    }

    /// Time from one look to the next; `None` where none is taken.
    pub(super) fn tick(&self) -> Option<Duration> {
        (!self.patience.is_zero()).then(|| (self.patience / 8).min(TICK_MAX))
    }

    /// Another worker.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.patience);
    }

    /// Takes a look; true once the worker has been stuck for too long.
    pub(super) fn look(
        &mut self,
        sample: Sample,
        pending: bool,
        could_run: bool,
        now: Instant,
    ) -> bool {
        let Some(tick) = self.tick() else { return false };
        let stuck = self.last.as_ref().filter(|(_, last)| sample.is_stuck_since(last, pending));
        match stuck {
            // However late this look is: the machine may have slept, or the keeper been stopped
            Some((at, _)) if could_run => self.stuck_for += (now - *at).min(tick * 2),
            Some(_) => {}
            None => self.stuck_for = Duration::ZERO,
        }
        self.last = Some((now, sample));
        self.stuck_for >= self.patience
    }
}

/// Whether requests wait in the kernel.
pub(super) fn is_pending(fuse: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&fuse, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        && polled[0].revents().contains(PollFlags::IN)
}

/// Whether the process could get on by itself: it is not stopped, and no thread waits for a disk.
pub(super) fn could_run(process: Pid) -> bool {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let Ok(tasks) = fs::read_dir(tasks) else { return false };
    let mut states = tasks.flatten().filter_map(|task| {
        let stat = fs::read(task.path().join("stat")).ok()?;
        state(&stat)
    });
    !states.any(|state| matches!(state, b'T' | b't' | b'D'))
}

/// The state in a line of `stat`: what follows the name, which may hold anything but ends with the
/// last parenthesis; source: proc_pid_stat(5).
fn state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

#[cfg(test)]
mod tests {
    use peel_fuse::{flight::Call, metrics::Kind};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(8);

    fn reading(reads: u64) -> Sample {
        let call = Call { unique: 2, kind: Kind::Read, ino: 7, at: 0, len: 4096 };
        Sample { reads, others: 5, running: vec![call] }
    }

    /// Looks once a second; returns after how many it has had enough.
    fn patience(of: impl Fn(u64) -> (Sample, bool, bool)) -> Option<u64> {
        let mut watch = Watch::new(PATIENCE);
        let start = Instant::now();
        (0..60).find(|n| {
            let (sample, pending, could_run) = of(*n);
            watch.look(sample, pending, could_run, start + Duration::from_secs(*n))
        })
    }

    #[test]
    fn a_worker_that_answers_nothing_is_stuck() {
        assert_eq!(patience(|_| (reading(3), false, true)), Some(8));
        assert_eq!(patience(|_| (Sample::default(), true, true)), Some(8));
    }

    #[test]
    fn one_that_answers_is_not() {
        assert_eq!(patience(|n| (reading(n / 6), true, true)), None);
        assert_eq!(patience(|_| (Sample::default(), false, true)), None, "nobody asks");
    }

    #[test]
    fn time_in_which_it_cannot_run_does_not_count() {
        assert_eq!(patience(|_| (reading(3), true, false)), None);
        // Stopped for ten seconds in the middle
        let stopped = 4..14;
        assert_eq!(patience(|n| (reading(3), true, !stopped.contains(&n))), Some(18));
    }

    #[test]
    fn a_keeper_that_slept_does_not_blame_the_worker() {
        let mut watch = Watch::new(PATIENCE);
        let start = Instant::now();
        assert!(!watch.look(reading(3), true, true, start));
        assert!(!watch.look(reading(3), true, true, start + Duration::from_secs(3600)));
    }

    #[test]
    fn no_patience_is_endless_patience() {
        let mut watch = Watch::new(Duration::ZERO);
        assert_eq!(watch.tick(), None);
        assert!(!watch.look(reading(3), true, true, Instant::now()));
    }

    #[test]
    fn states_of_processes() {
        assert_eq!(state(b"7 (a ) S b) T 1 7"), Some(b'T'));
        assert_eq!(state(b"7 (x)"), None);
        assert!(could_run(rustix::process::getpid()) || cfg!(miri));
    }
}
