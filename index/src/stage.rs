//! Work that is done where it comes up, or on a thread of its own.
//!
//! Jobs are done one after the other in the order in which they were given, so where they are done
//! changes nothing but the time. What waits for the thread is bounded: who gives a job waits while
//! the queue is full. No locks but the channel's; state has one owner at any time.

use std::{
    panic,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

/// State that takes jobs.
pub(crate) trait Work: Send + 'static {
    /// What is to be done.
    type Job: Send + 'static;
    /// Why it could not be; nothing is done after that.
    type Error: Send + 'static;

    fn run(&mut self, job: Self::Job) -> Result<(), Self::Error>;
}

/// Owner of a [`Work`], or of the thread that has it.
pub(crate) enum Stage<W: Work> {
    Here(W),
    There(Worker<W>),
    /// A job failed and the error was given out; further jobs vanish.
    Failed,
}

pub(crate) struct Worker<W: Work> {
    jobs: SyncSender<W::Job>,
    thread: JoinHandle<(W, Result<(), W::Error>)>,
}

impl<W: Work> Stage<W> {
    /// The state, as long as no thread has it.
    pub(crate) fn here(&mut self) -> Option<&mut W> {
        match self {
            Self::Here(work) => Some(work),
            Self::There(_) | Self::Failed => None,
        }
    }

    /// Whether this thread has the state, or nobody.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(self, Self::There(_))
    }

    /// Gives the state to a thread, with room for `queue` jobs that wait for it. Where no thread
    /// can be had all stays as it is.
    pub(crate) fn spread(self, name: &str, queue: usize) -> Self {
        let Self::Here(work) = self else { return self };
        let (jobs, received) = sync_channel(queue);
        // Not moved into the closure, which is lost when there is no thread
        let (hand_over, handed_over) = sync_channel::<W>(1);
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut work = handed_over.recv().expect("sent right after the thread began");
            let result = received.into_iter().try_for_each(|job| work.run(job));
            (work, result)
        });
        match spawned {
            Ok(thread) => {
                // There is room for one
                let _ = hand_over.send(work);
                Self::There(Worker { jobs, thread })
            }
            Err(_) => Self::Here(work),
        }
    }

    /// Does a job, or sees to it that it is done.
    ///
    /// # Errors
    /// That of this job or of an earlier one.
    pub(crate) fn send(&mut self, job: W::Job) -> Result<(), W::Error> {
        match self {
            Self::Here(work) => work.run(job),
            Self::There(worker) => match worker.jobs.send(job) {
                Ok(()) => Ok(()),
                Err(_) => self.settle(),
            },
            Self::Failed => Ok(()),
        }
    }

    /// Waits until all jobs are done and takes the state back; a thread that has it ends.
    ///
    /// # Errors
    /// That of the job that failed.
    pub(crate) fn settle(&mut self) -> Result<(), W::Error> {
        match std::mem::replace(self, Self::Failed) {
            Self::There(Worker { jobs, thread }) => {
                drop(jobs);
                let (work, result) = thread.join().unwrap_or_else(|p| panic::resume_unwind(p));
                result?;
                *self = Self::Here(work);
            }
            settled => *self = settled,
        }
        Ok(())
    }

    /// As [`Self::settle`]; `None` where a job failed before.
    pub(crate) fn into_inner(mut self) -> Result<Option<W>, W::Error> {
        self.settle()?;
        match self {
            Self::Here(work) => Ok(Some(work)),
            Self::There(_) | Self::Failed => Ok(None),
        }
    }
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
            self.0.push(job);
            Ok(())
        }
    }

    fn stage(spread: bool) -> Stage<Sum> {
        let stage = Stage::Here(Sum(Vec::new()));
        if spread { stage.spread("test", 1) } else { stage }
    }

    #[test]
    fn jobs_are_done_in_order_wherever() {
        for spread in [false, true] {
            let mut stage = stage(spread);
            assert_eq!(stage.here().is_some(), !spread);
            (0..10).for_each(|job| stage.send(job).expect("done"));
            stage.settle().expect("done");
            stage.send(10).expect("done");
            let sum = stage.into_inner().expect("done").expect("never failed");
            assert_eq!(sum.0, (0..=10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_comes_out_once_and_ends_the_work() {
        for spread in [false, true] {
            let mut stage = stage(spread);
            let sent = (10..20).try_for_each(|job| stage.send(job));
            let settled = stage.settle();
            let errors: Vec<String> = [sent, settled].into_iter().filter_map(Result::err).collect();
            assert_eq!(errors, ["13 after 3"], "spread {spread}");
        }
    }
}
