//! Work that is done where it comes up, or shared with a helper: a second thread.
//!
//! ```text
//! caller ──send──▶ queue of stage A ◀─┐
//!        ──send──▶ queue of stage B ◀─┼─ helper: a job of the fullest queue that nobody is at
//!        ──send──▶ queue of stage C ◀─┘  caller: the same, where too much waits, and in the end
//! ```
//! Jobs of a stage are done one after the other in the order in which they were given, by one of the
//! two at a time; so where they are done changes nothing but the time. What waits is bounded in
//! bytes. The caller has no time to lose with waiting: where there is no room, it helps. Nor with
//! waking the helper, 5 us each time: that looks for jobs by itself every [`NAP`], and sleeps only
//! after [`NAPS`] in vain; then it is not woken for less than [`ENOUGH`].
//!
//! Locks: one over each queue, one over the sums ([`Line`]); never one within the other, and none
//! while a job is done.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

/// Bytes that may wait for the helper, and one job more. Much less and the caller helps too often,
/// much more and nothing of it is in a cache any longer.
const MOST: usize = 2 << 20;

/// Bytes that have to wait before a helper is woken.
const ENOUGH: usize = 256 << 10;

/// How long a helper without jobs waits before it looks for some: as long as it takes to decode 100
/// KiB or so.
const NAP: Duration = Duration::from_micros(100);

/// How often it does, before it waits to be woken.
const NAPS: u32 = 20;

/// State that takes jobs.
pub(crate) trait Work: Send + 'static {
    /// What is to be done.
    type Job: Send + 'static;
    /// Why it could not be; nothing is done after that.
    type Error: Send + 'static;

    fn run(&mut self, job: Self::Job) -> Result<(), Self::Error>;

    /// Bytes of memory that a job holds.
    fn weight(job: &Self::Job) -> usize;
}

/// Owner of a [`Work`], or of one half of it.
pub(crate) enum Stage<W: Work> {
    Here(W),
    Shared(Arc<Station<W>>),
    /// A job failed and the error was given out; further jobs vanish.
    Failed,
}

impl<W: Work> Stage<W> {
    /// The state, as long as it is not shared.
    pub(crate) fn here(&mut self) -> Option<&mut W> {
        match self {
            Self::Here(work) => Some(work),
            Self::Shared(_) | Self::Failed => None,
        }
    }

    /// Whether nobody else has the state.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(self, Self::Shared(_))
    }

    /// Shares the state with a helper from here on.
    pub(crate) fn share(&mut self, helper: &Helper) {
        if let Self::Here(work) = std::mem::replace(self, Self::Failed) {
            let queue = Queue { work: Some(work), jobs: VecDeque::new(), fate: None };
            let crew = Arc::clone(&helper.crew);
            let station = Arc::new(Station { queue: Mutex::new(queue), crew });
            lock(&helper.crew.stations).push(Arc::clone(&station) as _);
            *self = Self::Shared(station);
        }
    }

    /// Does a job, or sees to it that it is done.
    ///
    /// # Errors
    /// That of this job or of an earlier one.
    pub(crate) fn send(&mut self, job: W::Job) -> Result<(), W::Error> {
        match self {
            Self::Here(work) => work.run(job),
            Self::Shared(station) => match station.send(job) {
                Ok(()) => Ok(()),
                Err(Lost) => self.settle(),
            },
            Self::Failed => Ok(()),
        }
    }

    /// Waits until all jobs are done, and takes the state back.
    ///
    /// # Errors
    /// That of the job that failed.
    pub(crate) fn settle(&mut self) -> Result<(), W::Error> {
        match std::mem::replace(self, Self::Failed) {
            Self::Shared(station) => *self = Self::Here(station.settle()?),
            settled => *self = settled,
        }
        Ok(())
    }

    /// As [`Self::settle`]; `None` where a job failed before.
    pub(crate) fn into_inner(mut self) -> Result<Option<W>, W::Error> {
        self.settle()?;
        match self {
            Self::Here(work) => Ok(Some(work)),
            Self::Shared(_) | Self::Failed => Ok(None),
        }
    }
}

/// A thread that takes part in the work of all stages that are shared with it. It ends when this is
/// dropped; what is not done by then is not done at all.
pub(crate) struct Helper {
    crew: Arc<Crew>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    /// Starts the thread; `None` where none can be had.
    pub(crate) fn start() -> Option<Self> {
        let crew = Arc::new(Crew::default());
        let own = Arc::clone(&crew);
        let thread = thread::Builder::new().name("peel-helper".to_owned());
        let thread = thread.spawn(move || own.serve()).ok()?;
        Some(Self { crew, thread: Some(thread) })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        lock(&self.crew.line).is_over = true;
        self.crew.given.notify_one();
        if let Some(thread) = self.thread.take() {
            // Panics of jobs are caught, and come out where their stage is settled
            let _ = thread.join();
        }
        lock(&self.crew.stations).clear();
    }
}

/// What both threads share.
#[derive(Default)]
struct Crew {
    stations: Mutex<Vec<Arc<dyn Help>>>,
    line: Mutex<Line>,
    /// For the helper: there are jobs enough, or it is over.
    given: Condvar,
    /// For the caller: a job is done.
    done: Condvar,
}

/// Sums over all stages.
#[derive(Default)]
struct Line {
    /// Bytes of the jobs that wait or are being done.
    weight: usize,
    /// Jobs done so far.
    done: u64,
    helper_sleeps: bool,
    caller_waits: bool,
    is_over: bool,
}

impl Crew {
    fn serve(&self) {
        let mut naps = 0;
        loop {
            let seen = lock(&self.line).done;
            while self.help() {
                naps = 0;
            }
            let mut line = lock(&self.line);
            // The caller may just have let go of a stage that has more
            if line.done != seen && line.weight > 0 && !line.is_over {
                continue;
            }
            if naps < NAPS && !line.is_over {
                drop(line);
                naps += 1;
                thread::sleep(NAP);
                continue;
            }
            naps = 0;
            line.helper_sleeps = true;
            while line.helper_sleeps && !line.is_over {
                line = wait(&self.given, line);
            }
            if line.is_over {
                return;
            }
        }
    }

    /// Does a job of the stage that has most of them, of those that nobody is at.
    fn help(&self) -> bool {
        if lock(&self.line).is_over {
            return false;
        }
        let fullest = lock(&self.stations).iter().max_by_key(|station| station.backlog()).cloned();
        fullest.is_some_and(|station| station.help())
    }

    fn add(&self, weight: usize) {
        lock(&self.line).weight += weight;
    }

    /// Wakes the helper where it sleeps and enough waits.
    fn wake(&self) {
        let mut line = lock(&self.line);
        if line.helper_sleeps && line.weight >= ENOUGH {
            line.helper_sleeps = false;
            drop(line);
            self.given.notify_one();
        }
    }

    fn finish(&self, weight: usize) {
        let mut line = lock(&self.line);
        line.weight -= weight;
        line.done += 1;
        if std::mem::take(&mut line.caller_waits) {
            drop(line);
            self.done.notify_one();
        }
    }

    /// Whether there is room for a job; otherwise, how many are done.
    fn has_room(&self, weight: usize) -> Result<(), u64> {
        let line = lock(&self.line);
        if line.weight == 0 || line.weight + weight <= MOST { Ok(()) } else { Err(line.done) }
    }

    /// Waits until more than `seen` jobs are done.
    fn wait_past(&self, seen: u64) {
        let mut line = lock(&self.line);
        while line.done == seen {
            line.caller_waits = true;
            line = wait(&self.done, line);
        }
    }
}

/// What can be done for a stage without knowing what it does.
trait Help: Send + Sync {
    /// How many jobs wait that this thread could do.
    fn backlog(&self) -> usize;

    /// Does a job, if there is one and nobody is at another.
    fn help(&self) -> bool;
}

/// A stage that two threads share.
pub(crate) struct Station<W: Work> {
    queue: Mutex<Queue<W>>,
    crew: Arc<Crew>,
}

struct Queue<W: Work> {
    /// `None` while a job is done, and after one failed.
    work: Option<W>,
    jobs: VecDeque<W::Job>,
    /// How it ended, where it did before its time.
    fate: Option<Fate<W::Error>>,
}

enum Fate<E> {
    Failed(E),
    Panicked(Box<dyn Any + Send>),
}

/// A job failed; [`Station::settle`] tells why.
struct Lost;

impl<W: Work> Station<W> {
    fn send(&self, job: W::Job) -> Result<(), Lost> {
        let weight = W::weight(&job);
        while let Err(seen) = self.crew.has_room(weight) {
            if !self.crew.help() {
                self.crew.wait_past(seen);
            }
        }
        // Before anybody can do the job, and take its weight off again
        self.crew.add(weight);
        let mut queue = lock(&self.queue);
        if queue.fate.is_some() {
            drop(queue);
            self.crew.finish(weight);
            return Err(Lost);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.crew.wake();
        Ok(())
    }

    fn settle(&self) -> Result<W, W::Error> {
        loop {
            let seen = lock(&self.crew.line).done;
            let mut queue = lock(&self.queue);
            match queue.fate.take() {
                Some(Fate::Failed(error)) => return Err(error),
                Some(Fate::Panicked(payload)) => panic::resume_unwind(payload),
                None => {}
            }
            if queue.jobs.is_empty()
                && let Some(work) = queue.work.take()
            {
                return Ok(work);
            }
            drop(queue);
            if !self.help() && !self.crew.help() {
                self.crew.wait_past(seen);
            }
        }
    }
}

impl<W: Work> Help for Station<W> {
    fn backlog(&self) -> usize {
        let queue = lock(&self.queue);
        if queue.work.is_some() { queue.jobs.len() } else { 0 }
    }

    fn help(&self) -> bool {
        let mut queue = lock(&self.queue);
        if queue.work.is_none() {
            return false;
        }
        let Some(job) = queue.jobs.pop_front() else { return false };
        let Some(mut work) = queue.work.take() else { return false };
        drop(queue);
        let mut weight = W::weight(&job);
        // After a panic the state is not looked at any more
        let result = panic::catch_unwind(AssertUnwindSafe(|| work.run(job)));
        let mut queue = lock(&self.queue);
        match result {
            Ok(Ok(())) => queue.work = Some(work),
            bad => {
                weight += queue.jobs.drain(..).map(|job| W::weight(&job)).sum::<usize>();
                queue.fate = match bad {
                    Ok(Err(error)) => Some(Fate::Failed(error)),
                    Err(payload) => Some(Fate::Panicked(payload)),
                    Ok(Ok(())) => None,
                };
            }
        }
        drop(queue);
        self.crew.finish(weight);
        true
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No change to what the locks guard can panic halfway
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum(Vec<u32>);

    impl Work for Sum {
        type Job = u32;
        type Error = String;

        fn run(&mut self, job: u32) -> Result<(), String> {
            if job == 13 {
                return Err(format!("13 after {}", self.0.len()));
            }
            assert_ne!(job, 1313, "a bad job");
            self.0.push(job);
            Ok(())
        }

        fn weight(job: &u32) -> usize {
            // Some fill the line by themselves
            if job.is_multiple_of(7) { MOST + 1 } else { MOST / 5 }
        }
    }

    fn stage(helper: Option<&Helper>) -> Stage<Sum> {
        let mut stage = Stage::Here(Sum(Vec::new()));
        if let Some(helper) = helper {
            stage.share(helper);
        }
        stage
    }

    #[test]
    fn jobs_are_done_in_order_wherever() {
        for helper in [None, Helper::start()] {
            let mut stages = [(); 3].map(|()| stage(helper.as_ref()));
            for job in (0..10_000).filter(|job| !matches!(job, 13 | 1313)) {
                stages[job as usize % 3].send(job).expect("done");
            }
            for (number, mut stage) in (0..).zip(stages) {
                assert_eq!(stage.here().is_some(), helper.is_none());
                stage.settle().expect("done");
                stage.send(10_000 + number).expect("done");
                let sum = stage.into_inner().expect("done").expect("never failed").0;
                assert!(
                    sum.is_sorted()
                        && sum
                            .iter()
                            .all(|job| (job + 2) % 3 == (number + 2) % 3 || *job >= 10_000)
                );
                assert_eq!(sum.last(), Some(&(10_000 + number)));
                assert!(sum.len() > 3300);
            }
        }
    }

    #[test]
    fn an_error_comes_out_once_and_ends_the_work() {
        for helper in [None, Helper::start()] {
            let mut stage = stage(helper.as_ref());
            let sent = (10..20).try_for_each(|job| stage.send(job));
            let settled = stage.settle();
            let errors: Vec<String> = [sent, settled].into_iter().filter_map(Result::err).collect();
            assert_eq!(errors, ["13 after 3"]);
            stage.send(20).expect("vanishes, or is done");
            let left = stage.into_inner().expect("no second error");
            assert_eq!(left.is_none(), helper.is_some(), "whoever works here saw the error");
        }
    }

    #[test]
    fn a_panic_comes_out_at_the_caller() {
        let helper = Helper::start();
        let mut stage = stage(helper.as_ref());
        let caught = panic::catch_unwind(AssertUnwindSafe(|| {
            (1300..1400).try_for_each(|job| stage.send(job)).and_then(|()| stage.settle())
        }));
        let payload = caught.expect_err("a panic");
        let text = payload.downcast_ref::<String>().expect("a message");
        assert!(text.contains("a bad job"), "{text}");
    }

    #[test]
    fn a_helper_can_go_while_jobs_wait() {
        for _ in 0..100 {
            let helper = Helper::start();
            let mut stage = stage(helper.as_ref());
            (20..40).for_each(|job| stage.send(job).expect("sent"));
            drop(helper);
        }
    }
}
