use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::Duration,
};

use super::*;

const SOON: Duration = Duration::from_secs(20);
const NOT_YET: Duration = Duration::from_millis(200);

/// A pool of jobs alone.
fn jobs<J: Send + 'static>(
    threads: usize,
    work: impl Fn(J, &mut Vec<u8>) + Send + Sync + 'static,
) -> Pool<J, u32> {
    Pool::start(threads, 1, move |next, buffer, _: &Queues<J, u32>| match next {
        Work::Job(job) => work(job, buffer),
        Work::Ahead(number) => panic!("nobody offered {number}"),
    })
    .expect("threads")
}

/// A gate that each who passes needs a message for; once the sender is gone it is open.
fn pass(gate: &Mutex<Receiver<()>>) {
    let _ = gate.lock().expect("gate").recv();
}

#[test]
fn every_job_runs_once() {
    let (sender, results) = mpsc::channel();
    let pool = jobs(4, move |n: u32, _| sender.send(n).expect("receiver lives"));
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
    let pool = jobs(2, move |slow: bool, _| {
        if slow {
            pass(&gate);
        }
        sender.send(slow).expect("receiver lives");
    });
    pool.submit(true);
    pool.submit(false);
    assert_eq!(results.recv_timeout(SOON), Ok(false));
    release.send(()).expect("gate is open");
    assert_eq!(results.recv_timeout(SOON), Ok(true));
}

#[test]
fn threads_survive_panics_and_buffers_come_empty() {
    let (sender, results) = mpsc::channel();
    let pool = jobs(2, move |n: u32, buffer| {
        assert!(buffer.is_empty() && buffer.capacity() <= 2 << 20);
        buffer.resize(1 << 20, 1);
        assert_ne!(n, 0, "this panic is part of the test");
        sender.send(n).expect("receiver lives");
    });
    [0, 0, 0, 1, 0, 2].into_iter().for_each(|n| pool.submit(n));
    let mut got = [(); 2].map(|()| results.recv_timeout(SOON).expect("a result"));
    got.sort_unstable();
    assert_eq!(got, [1, 2]);
}

#[test]
fn a_full_queue_makes_the_submitter_wait() {
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let pool = Arc::new(jobs(2, move |(), _| pass(&gate)));
    let (done, finished) = mpsc::channel();
    let submitter = Arc::clone(&pool);
    // Two jobs are taken at once and wait at the gate
    thread::spawn(move || {
        (0..QUEUE_LIMIT + 3).for_each(|_| submitter.submit(()));
        done.send(()).expect("receiver lives");
    });
    assert_eq!(finished.recv_timeout(NOT_YET), Err(RecvTimeoutError::Timeout));
    drop(release);
    assert_eq!(finished.recv_timeout(SOON), Ok(()));
}

#[test]
fn closing_finishes_what_is_queued() {
    let (sender, results) = mpsc::channel();
    let pool = jobs(2, move |n: u32, _| sender.send(n).expect("receiver lives"));
    (0..10).for_each(|n| pool.submit(n));
    drop(pool);
    let mut got: Vec<_> = results.iter().collect();
    got.sort_unstable();
    assert!(got.into_iter().eq(0..10), "then the sender is gone with its threads");
}

/// What ran, in order; jobs wait at a gate, and work ahead goes on until a job waits.
#[derive(Debug, PartialEq)]
enum Ran {
    Job(u32),
    AheadBegan(u32),
    AheadGaveWay(u32),
}

fn both(threads: usize, ahead: usize) -> (Pool<u32, u32>, Receiver<Ran>, mpsc::Sender<()>) {
    let (sender, ran) = mpsc::channel();
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let work = move |next: Work<u32, u32>, _: &mut Vec<u8>, queues: &Queues<u32, u32>| match next {
        Work::Job(n) => {
            sender.send(Ran::Job(n)).expect("receiver lives");
            pass(&gate);
        }
        Work::Ahead(n) => {
            sender.send(Ran::AheadBegan(n)).expect("receiver lives");
            while !queues.job_waits() {
                thread::sleep(Duration::from_millis(1));
            }
            sender.send(Ran::AheadGaveWay(n)).expect("receiver lives");
        }
    };
    (Pool::start(threads, ahead, work).expect("threads"), ran, release)
}

#[test]
fn jobs_go_before_work_ahead_which_gives_way_to_them() {
    let (pool, ran, release) = both(2, 2);
    pool.submit(1);
    pool.submit(2);
    let mut first = [(); 2].map(|()| ran.recv_timeout(SOON));
    first.sort_by_key(|ran| matches!(ran, Ok(Ran::Job(2))));
    assert_eq!(first, [Ok(Ran::Job(1)), Ok(Ran::Job(2))]);
    // Both threads are taken: work ahead waits, and a later job passes it
    pool.queues().offer(7);
    pool.submit(3);
    assert_eq!(ran.recv_timeout(NOT_YET), Err(RecvTimeoutError::Timeout));
    release.send(()).expect("gate");
    assert_eq!(ran.recv_timeout(SOON), Ok(Ran::Job(3)));
    release.send(()).expect("gate");
    assert_eq!(ran.recv_timeout(SOON), Ok(Ran::AheadBegan(7)));
    // The other thread is at a job still, so the next one needs this thread
    pool.submit(4);
    assert_eq!(ran.recv_timeout(SOON), Ok(Ran::AheadGaveWay(7)));
    assert_eq!(ran.recv_timeout(SOON), Ok(Ran::Job(4)));
    drop(release);
}

#[test]
fn a_thread_is_left_to_jobs_and_old_work_ahead_is_dropped() {
    let (pool, ran, release) = both(2, 9);
    pool.queues().offer(0);
    assert_eq!(ran.recv_timeout(SOON), Ok(Ran::AheadBegan(0)));
    let many = AHEAD_LIMIT as u32 + 3;
    for n in (1..=many).chain([many, many]) {
        pool.queues().offer(n);
    }
    assert_eq!(ran.recv_timeout(NOT_YET), Err(RecvTimeoutError::Timeout), "one at a time");
    pool.submit(0);
    assert_eq!(ran.recv_timeout(SOON), Ok(Ran::Job(0)));
    // One thread is always at a job, and so the next job needs the other one
    let mut began = Vec::new();
    while began.len() < AHEAD_LIMIT {
        pool.submit(1);
        assert!(matches!(ran.recv_timeout(SOON), Ok(Ran::AheadGaveWay(_))));
        assert_eq!(ran.recv_timeout(SOON), Ok(Ran::Job(1)));
        release.send(()).expect("the job before");
        let Ok(Ran::AheadBegan(n)) = ran.recv_timeout(SOON) else { panic!("work ahead") };
        began.push(n);
    }
    assert!(began.into_iter().eq(4..=many), "the newest, each once");
}

#[test]
fn work_ahead_that_panics_is_not_counted_on() {
    let (sender, ran) = mpsc::channel();
    let work = move |next: Work<(), u32>, _: &mut Vec<u8>, _: &Queues<(), u32>| {
        let Work::Ahead(n) = next else { return };
        assert_ne!(n, 0, "this panic is part of the test");
        sender.send(n).expect("receiver lives");
    };
    let pool = Pool::start(3, 1, work).expect("threads");
    pool.queues().offer(0);
    pool.queues().offer(1);
    assert_eq!(ran.recv_timeout(SOON), Ok(1));
}
