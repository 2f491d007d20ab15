//! Threads that work off two queues: of reads, and of what may be done ahead of reads.
//!
//! A thread takes from the second queue only where the first is empty, and asks every now and then
//! whether it still is. At least one thread is left to reads, as work ahead may be held up by a disk.
//!
//! The first queue is bounded only so that its memory is: the kernel bounds what is under way to the
//! background requests agreed in INIT plus one read for each thread that waits for one. The second
//! is short, and the newest work takes the place of the oldest: nobody waits for it, and what nobody
//! took soon is worth nothing.
//!
//! Locking: one mutex around both queues, held to push or pop, never while a job runs.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Jobs that may wait; each holds about a hundred bytes. One more makes the FUSE thread wait.
const QUEUE_LIMIT: usize = 16 << 10;

/// Work ahead that may wait: of a few readers at once.
const AHEAD_LIMIT: usize = 8;

/// Buffer that a thread keeps while it has nothing to do, in bytes; a longer one goes back.
const IDLE_BUFFER: usize = 128 << 10;

/// What a thread of the pool has to do.
#[derive(Debug)]
pub(crate) enum Work<J, A> {
    /// Somebody waits for it.
    Job(J),
    /// Nobody does yet.
    Ahead(A),
}

/// A pool that runs each job with a buffer of its thread, which is empty at the start.
#[derive(Debug)]
pub(crate) struct Pool<J: Send + 'static, A: Send + 'static> {
    queues: Arc<Queues<J, A>>,
}

/// The queues, as the work sees them.
#[derive(Debug)]
pub(crate) struct Queues<J, A> {
    inner: Mutex<Inner<J, A>>,
    /// There is something to do, or the pool closed.
    work: Condvar,
    /// There is room in the queue of jobs.
    room: Condvar,
    /// There are more jobs than threads with nothing to do.
    waits: AtomicBool,
    /// Threads with something to do.
    at_work: AtomicUsize,
}

#[derive(Debug)]
struct Inner<J, A> {
    jobs: VecDeque<J>,
    ahead: VecDeque<A>,
    /// Threads that work ahead.
    at_ahead: usize,
    /// Most of them.
    ahead_threads: usize,
    /// Threads with nothing to do.
    idle: usize,
    closed: bool,
}

impl<J: Send + 'static, A: Send + PartialEq + 'static> Pool<J, A> {
    /// Starts `threads` threads (at least two) that run `work`; at most `ahead_threads` of them work
    /// ahead at a time.
    pub(crate) fn start(
        threads: usize,
        ahead_threads: usize,
        work: impl Fn(Work<J, A>, &mut Vec<u8>, &Queues<J, A>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let threads = threads.max(2);
        let inner = Inner {
            jobs: VecDeque::new(),
            ahead: VecDeque::new(),
            at_ahead: 0,
            ahead_threads: ahead_threads.min(threads - 1),
            idle: 0,
            closed: false,
        };
        let queues = Arc::new(Queues {
            inner: Mutex::new(inner),
            work: Condvar::new(),
            room: Condvar::new(),
            waits: AtomicBool::new(false),
            at_work: AtomicUsize::new(0),
        });
        let pool = Self { queues };
        let work = Arc::new(work);
        for number in 0..threads {
            let (queues, work) = (Arc::clone(&pool.queues), Arc::clone(&work));
            thread::Builder::new()
                .name(format!("read-{number}"))
                .spawn(move || run(&queues, &*work))?;
        }
        Ok(pool)
    }

    /// The queues, for work that is found elsewhere than on the pool's threads.
    pub(crate) fn queues(&self) -> &Queues<J, A> {
        &self.queues
    }

    /// Queues a job; waits where the queue is full.
    pub(crate) fn submit(&self, job: J) {
        let queues = &self.queues;
        let mut inner = queues.lock();
        while inner.jobs.len() >= QUEUE_LIMIT {
            inner = queues.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.jobs.push_back(job);
        queues.waits.store(inner.jobs.len() > inner.idle, Ordering::Relaxed);
        let idle = inner.idle;
        drop(inner);
        if idle > 0 {
            queues.work.notify_one();
        }
    }
}

impl<J: Send + 'static, A: Send + 'static> Drop for Pool<J, A> {
    /// Lets the threads end once the queue of jobs is empty. They are not waited for, as one may be
    /// held up by a read.
    fn drop(&mut self) {
        let mut inner = self.queues.lock();
        inner.closed = true;
        inner.ahead.clear();
        drop(inner);
        self.queues.work.notify_all();
    }
}

impl<J, A> Queues<J, A> {
    fn lock(&self) -> MutexGuard<'_, Inner<J, A>> {
        // No code of a job runs under the lock, so the queues are whole even after a panic
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a job waits for a thread: work ahead has to stop then.
    pub(crate) fn job_waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Threads with something to do.
    pub(crate) fn at_work(&self) -> usize {
        self.at_work.load(Ordering::Relaxed)
    }

    /// The next thing to do; `None` once the pool is closed and no job is left.
    fn next(&self, buffer: &mut Vec<u8>) -> Option<Work<J, A>> {
        let mut inner = self.lock();
        if inner.jobs.is_empty() && buffer.capacity() > IDLE_BUFFER {
            drop(inner);
            buffer.shrink_to(IDLE_BUFFER);
            inner = self.lock();
        }
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                self.waits.store(inner.jobs.len() > inner.idle, Ordering::Relaxed);
                let full = inner.jobs.len() + 1 >= QUEUE_LIMIT;
                drop(inner);
                if full {
                    self.room.notify_one();
                }
                return Some(Work::Job(job));
            }
            if inner.closed {
                return None;
            }
            if inner.at_ahead < inner.ahead_threads
                && let Some(ahead) = inner.ahead.pop_front()
            {
                inner.at_ahead += 1;
                return Some(Work::Ahead(ahead));
            }
            inner.idle += 1;
            inner = self.work.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.idle -= 1;
        }
    }
}

impl<J, A: PartialEq> Queues<J, A> {
    /// Queues work that nobody waits for, unless it is queued already.
    pub(crate) fn offer(&self, ahead: A) {
        let mut inner = self.lock();
        if inner.closed || inner.ahead.contains(&ahead) {
            return;
        }
        if inner.ahead.len() >= AHEAD_LIMIT {
            inner.ahead.pop_front();
        }
        inner.ahead.push_back(ahead);
        let wake = inner.idle > 0 && inner.at_ahead < inner.ahead_threads;
        drop(inner);
        if wake {
            self.work.notify_one();
        }
    }
}

/// Counts a thread that works ahead, also when that panics.
struct AtAhead<'a, J, A>(&'a Queues<J, A>);

impl<J, A> Drop for AtAhead<'_, J, A> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.at_ahead -= 1;
        let more = inner.idle > 0 && !inner.ahead.is_empty();
        drop(inner);
        if more {
            self.0.work.notify_one();
        }
    }
}

fn run<J, A>(queues: &Queues<J, A>, work: &impl Fn(Work<J, A>, &mut Vec<u8>, &Queues<J, A>)) {
    let mut buffer = Vec::new();
    while let Some(next) = {
        buffer.clear();
        queues.next(&mut buffer)
    } {
        queues.at_work.fetch_add(1, Ordering::Relaxed);
        let _counted = matches!(next, Work::Ahead(_)).then(|| AtAhead(queues));
        // A job that panics drops its reply, which answers EIO; the thread serves on
        if catch_unwind(AssertUnwindSafe(|| work(next, &mut buffer, queues))).is_err() {
            tracing::error!("panic while reading");
        }
        queues.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
