//! Looking out for the next request for a moment before sleeping until there is one.
//!
//! Who uses a file tree for the first time asks for one thing after the other: a look-up, an
//! attribute, a page, some thousands of each, some 100 us apart. Between two of them the worker
//! sleeps, and so does the core it ran on. Waking both costs the caller 20 us where a core is a
//! virtual one (an interrupt to another of them leaves the guest), and as much again passes until
//! the worker runs; the answer itself takes 3. So the thread for requests looks again and again
//! whether there is one, as network cards are polled by who waits for packets
//! (`net.core.busy_poll`), for at most as long as [`ServeOptions::busy_poll`] says. Measured at a
//! first start of Node on two cores, 8,300 requests: 2.12 s without, 1.86 s with 50 us, 1.74 s with
//! 100 us, 1.67 s with 200 us, 1.70 s with 400 us (medians of 3).
//!
//! It takes processor time that nobody else wants, and no more than it is good for:
//! - not while the pool's threads can use the cores, and never on a single one;
//! - not where it was in vain more often than not: [`Odds`];
//! - not where something else ran meanwhile, which shows as time that is missing.
//!
//! It works because one thread takes all requests: another one that sleeps in read(2) would be
//! woken for each, at the same price.
//!
//! [`ServeOptions::busy_poll`]: crate::session::ServeOptions::busy_poll

use std::{
    os::fd::OwnedFd,
    sync::{
        OnceLock,
        atomic::{AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Threads that want a core while requests come one after the other: who asks, and who answers.
const BOTH_SIDES: usize = 2;

/// A look takes half a microsecond. One that takes as long as this was interrupted for another
/// thread.
const INTERRUPTED: Duration = Duration::from_micros(50);

/// Hints to the core between two looks: some 100 ns.
const PAUSES: u32 = 4;

/// How looking out ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is a request.
    Found,
    /// There is none yet.
    Missed,
    /// The cores have something better to do.
    Busy,
}

/// Whether looking out was worth it lately.
///
/// A branch predictor's counter: up where the next request came soon, down where it did not, looked
/// for or not. So a stream of requests that come too rarely costs nothing but a few looks, and one
/// that turns into a fast one is noticed by the times at which its requests come.
#[derive(Debug, Default)]
struct Odds(AtomicI32);

impl Odds {
    /// As many in vain, or in time, settle it.
    const MOST: i32 = 8;

    fn are_good(&self) -> bool {
        self.0.load(Relaxed) >= 0
    }

    fn note(&self, soon: bool) {
        let change = if soon { 1 } else { -1 };
        // Only the thread for requests changes it
        self.0.store((self.0.load(Relaxed) + change).clamp(-Self::MOST, Self::MOST), Relaxed);
    }

    fn give_up(&self) {
        self.0.store(-Self::MOST, Relaxed);
    }
}

/// Looks out for requests.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// The connection, once it is adopted.
    device: OnceLock<OwnedFd>,
    longest: Duration,
    cores: usize,
    odds: Odds,
    begun: Instant,
    /// When the last request had been answered without looking out for the next, in nanoseconds
    /// after `begun`; 0: it was looked for.
    answered: AtomicU64,
}

impl BusyPoll {
    /// Looks out for at most `longest` at a time, on a machine with so many cores.
    pub(crate) fn new(longest: Duration, cores: usize) -> Self {
        Self {
            device: OnceLock::new(),
            longest,
            cores,
            odds: Odds::default(),
            begun: Instant::now(),
            answered: AtomicU64::new(0),
        }
    }

    /// Looks at this connection from now on.
    pub(crate) fn watch(&self, device: OwnedFd) {
        // There is one a session
        let _ = self.device.set(device);
    }

    /// Looks out for the next request, now that one is answered, where that is worth it; `at_work`
    /// gives the threads of the pool that have something to do. Gives how it ended and what it
    /// took.
    pub(crate) fn look_out(&self, at_work: impl Fn() -> usize) -> Option<(Outcome, Duration)> {
        let device = self.device.get().filter(|_| !self.longest.is_zero())?;
        let start = Instant::now();
        let now = u64::try_from((start - self.begun).as_nanos()).unwrap_or(u64::MAX);
        let answered = self.answered.swap(0, Relaxed);
        if answered != 0 {
            self.odds.note(u128::from(now - answered) < self.longest.as_nanos());
        }
        let is_busy = || at_work() + BOTH_SIDES > self.cores;
        if !self.odds.are_good() || is_busy() {
            self.answered.store(now, Relaxed);
            return None;
        }
        let mut last = start;
        let outcome = loop {
            if is_pending(device) {
                self.odds.note(true);
                break Outcome::Found;
            }
            let now = Instant::now();
            if now - last > INTERRUPTED {
                self.odds.give_up();
                break Outcome::Busy;
            }
            if is_busy() {
                break Outcome::Busy;
            }
            if now - start > self.longest {
                self.odds.note(false);
                break Outcome::Missed;
            }
            last = now;
            for _ in 0..PAUSES {
                std::hint::spin_loop();
            }
        };
        Some((outcome, start.elapsed()))
    }
}

/// Whether reading from the device gives something at once. An error counts as well: the read is
/// what tells of it.
fn is_pending(device: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&now)) != Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVER: Duration = Duration::from_secs(3600);

    fn watching(longest: Duration, cores: usize) -> (BusyPoll, OwnedFd) {
        let (read, write) = rustix::pipe::pipe().expect("pipe");
        let polling = BusyPoll::new(longest, cores);
        polling.watch(read);
        (polling, write)
    }

    #[test]
    fn what_is_there_is_found() {
        let (polling, write) = watching(EVER, 2);
        assert_eq!(rustix::io::write(&write, b"a request"), Ok(9));
        assert!(matches!(polling.look_out(|| 0), Some((Outcome::Found, _))));
        drop(write);
        assert!(matches!(polling.look_out(|| 0), Some((Outcome::Found, _))), "the end, too");
    }

    #[test]
    fn it_ends_when_the_pool_has_work() {
        let (polling, _write) = watching(EVER, 3);
        let looks = AtomicU64::new(0);
        // An interruption ends it as well
        let ended = polling.look_out(|| if looks.fetch_add(1, Relaxed) < 10 { 1 } else { 2 });
        assert!(matches!(ended, Some((Outcome::Busy, _))), "{ended:?}");
        let (polling, _write) = watching(EVER, 3);
        assert_eq!(polling.look_out(|| 2), None);
    }

    #[test]
    fn never_on_one_core_and_never_without_a_device() {
        let (polling, write) = watching(EVER, 1);
        assert_eq!(rustix::io::write(&write, b"a request"), Ok(9));
        assert_eq!(polling.look_out(|| 0), None);
        let (polling, _write) = watching(Duration::ZERO, 8);
        assert_eq!(polling.look_out(|| 0), None);
        assert_eq!(BusyPoll::new(EVER, 8).look_out(|| 0), None);
    }

    #[test]
    fn in_vain_too_often_it_is_left() {
        let (polling, write) = watching(Duration::from_nanos(1), 2);
        let ended = polling.look_out(|| 0).map(|(outcome, _)| outcome);
        assert!(matches!(ended, Some(Outcome::Missed | Outcome::Busy)), "{ended:?}");
        assert_eq!(rustix::io::write(&write, b"a request"), Ok(9));
        for _ in 0..100 {
            assert_eq!(polling.look_out(|| 0), None, "what comes after a nanosecond is late");
        }
    }

    #[test]
    fn requests_that_come_soon_bring_it_back() {
        let (polling, write) = watching(EVER, 2);
        assert_eq!(rustix::io::write(&write, b"a request"), Ok(9));
        polling.odds.give_up();
        let answered = (0..100).find(|_| polling.look_out(|| 0).is_some());
        assert_eq!(answered, Some(Odds::MOST as usize));
    }

    #[test]
    fn odds_are_bounded() {
        let odds = Odds::default();
        assert!(odds.are_good(), "nothing speaks against it yet");
        for _ in 0..1000 {
            odds.note(true);
        }
        for _ in 0..Odds::MOST {
            odds.note(false);
        }
        assert!(odds.are_good());
        odds.note(false);
        assert!(!odds.are_good());
        odds.give_up();
        for _ in 0..Odds::MOST {
            assert!(!odds.are_good());
            odds.note(true);
        }
        assert!(odds.are_good());
    }
}
