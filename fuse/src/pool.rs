//! Threads that work off a queue of reads.
//!
//! The queue is bounded only so that its memory is: the kernel bounds what is under way to the
//! background requests agreed in INIT plus one read for each thread that waits for one.
//!
//! Locking: one mutex around the queue, held to push or pop, never while a job runs.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Jobs that may wait; each holds about a hundred bytes. One more makes the FUSE thread wait.
const QUEUE_LIMIT: usize = 16 << 10;

/// Buffer that a thread keeps while it has nothing to do, in bytes; a longer one goes back.
const IDLE_BUFFER: usize = 128 << 10;

/// A pool that runs each job with a buffer of its thread, which is empty at the start.
#[derive(Debug)]
pub(crate) struct Pool<J: Send + 'static> {
    shared: Arc<Shared<J>>,
}

#[derive(Debug)]
struct Shared<J> {
    queue: Mutex<Queue<J>>,
    /// There is a job, or the pool closed.
    job: Condvar,
    /// There is room in the queue.
    room: Condvar,
}

#[derive(Debug)]
struct Queue<J> {
    jobs: VecDeque<J>,
    closed: bool,
}

impl<J: Send + 'static> Pool<J> {
    /// Starts `threads` threads (at least one) that run `work`.
    pub(crate) fn start(
        threads: usize,
        work: impl Fn(J, &mut Vec<u8>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { jobs: VecDeque::new(), closed: false }),
            job: Condvar::new(),
            room: Condvar::new(),
        });
        let pool = Self { shared };
        let work = Arc::new(work);
        for number in 0..threads.max(1) {
            let (shared, work) = (Arc::clone(&pool.shared), Arc::clone(&work));
            thread::Builder::new()
                .name(format!("read-{number}"))
                .spawn(move || run(&shared, &*work))?;
        }
        Ok(pool)
    }

    /// Queues a job; waits where the queue is full.
    pub(crate) fn submit(&self, job: J) {
        let mut queue = self.shared.lock();
        while queue.jobs.len() >= QUEUE_LIMIT {
            queue = self.shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.shared.job.notify_one();
    }
}

impl<J: Send + 'static> Drop for Pool<J> {
    /// Lets the threads end once the queue is empty. They are not waited for, as one may be held
    /// up by a read.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.job.notify_all();
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        // No code of a job runs under the lock, so the queue is whole even after a panic
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` once the pool is closed and empty.
    fn next(&self, buffer: &mut Vec<u8>) -> Option<J> {
        let mut queue = self.lock();
        if queue.jobs.is_empty() && buffer.capacity() > IDLE_BUFFER {
            drop(queue);
            buffer.shrink_to(IDLE_BUFFER);
            queue = self.lock();
        }
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                self.room.notify_one();
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.job.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn run<J>(shared: &Shared<J>, work: &impl Fn(J, &mut Vec<u8>)) {
    let mut buffer = Vec::new();
    while let Some(job) = {
        buffer.clear();
        shared.next(&mut buffer)
    } {
        // A job that panics drops its reply, which answers EIO; the thread serves on
        if catch_unwind(AssertUnwindSafe(|| work(job, &mut buffer))).is_err() {
            tracing::error!("panic while reading");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{self, RecvTimeoutError},
        time::Duration,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn every_job_runs_once() {
        let (sender, results) = mpsc::channel();
        let work = move |n: u32, _: &mut Vec<u8>| sender.send(n).expect("receiver lives");
        let pool = Pool::start(4, work).expect("threads");
        (0..1000).for_each(|n| pool.submit(n));
        let mut got: Vec<_> =
            (0..1000).map(|_| results.recv_timeout(SOON).expect("a result")).collect();
        got.sort_unstable();
        assert!(got.into_iter().eq(0..1000));
    }

    #[test]
    fn a_slow_job_holds_up_no_other() {
        let (sender, results) = mpsc::channel();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let work = move |slow: bool, _: &mut Vec<u8>| {
            if slow {
                gate.lock().expect("gate").recv().expect("released");
            }
            sender.send(slow).expect("receiver lives");
        };
        let pool = Pool::start(2, work).expect("threads");
        pool.submit(true);
        pool.submit(false);
        assert_eq!(results.recv_timeout(SOON), Ok(false));
        release.send(()).expect("gate is open");
        assert_eq!(results.recv_timeout(SOON), Ok(true));
    }

    #[test]
    fn threads_survive_panics_and_buffers_come_empty() {
        let (sender, results) = mpsc::channel();
        let work = move |n: u32, buffer: &mut Vec<u8>| {
            assert!(buffer.is_empty() && buffer.capacity() <= 2 << 20);
            buffer.resize(1 << 20, 1);
            assert_ne!(n, 0, "this panic is part of the test");
            sender.send(n).expect("receiver lives");
        };
        let pool = Pool::start(1, work).expect("threads");
        [0, 1, 0, 2].into_iter().for_each(|n| pool.submit(n));
        assert_eq!(results.recv_timeout(SOON), Ok(1));
        assert_eq!(results.recv_timeout(SOON), Ok(2));
    }

    #[test]
    fn a_full_queue_makes_the_submitter_wait() {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let work = move |(), _: &mut Vec<u8>| {
            // An error says that the gate stays open
            let _ = gate.lock().expect("gate").recv();
        };
        let pool = Arc::new(Pool::start(1, work).expect("threads"));
        let (done, finished) = mpsc::channel();
        let submitter = Arc::clone(&pool);
        // One job is taken at once and waits at the gate
        thread::spawn(move || {
            (0..QUEUE_LIMIT + 2).for_each(|_| submitter.submit(()));
            done.send(()).expect("receiver lives");
        });
        let early = finished.recv_timeout(Duration::from_millis(300));
        assert_eq!(early, Err(RecvTimeoutError::Timeout));
        drop(release);
        assert_eq!(finished.recv_timeout(SOON), Ok(()));
    }

    #[test]
    fn closing_finishes_what_is_queued() {
        let (sender, results) = mpsc::channel();
        let work = move |n: u32, _: &mut Vec<u8>| sender.send(n).expect("receiver lives");
        let pool = Pool::start(1, work).expect("threads");
        (0..10).for_each(|n| pool.submit(n));
        drop(pool);
        assert!(results.iter().eq(0..10), "then the sender is gone with its thread");
    }
}
