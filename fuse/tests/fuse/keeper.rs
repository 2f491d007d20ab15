//! A mounted image with a worker in a process of its own, and everything it takes to get rid of
//! both however a test ends.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use peel_fuse::{
    Filesystem, Handshake, Mounted, ServeOptions, adopt,
    flight::{Culprit, Death, Flights},
    mount,
    session::{LowerMount, inherited_device},
};

use crate::{image::MemorySource, kill::Crashing};

/// Tells the test binary that it is to be a worker: descriptors of the connection and of the table
/// of requests, handshake, the inode that it dies of (0: none) and directory.
const WORKER: &str = "PEEL_FUSE_TEST_WORKER";

/// Tests that mount run one after the other: no child of one may inherit the connection of
/// another.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether this machine can mount. Where it cannot, the test is skipped, loudly, unless
/// `PEEL_REQUIRE_FUSE=1` makes that a failure.
pub(crate) fn can_mount(test: &str) -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        "no /dev/fuse"
    } else {
        return true;
    };
    skip(test, reason);
    false
}

/// Says that a test is skipped, or fails it.
pub(crate) fn skip(test: &str, reason: &str) {
    let required = std::env::var_os("PEEL_REQUIRE_FUSE").is_some_and(|v| v == "1");
    assert!(!required, "{test} cannot run: {reason}");
    let line = format!("\nSKIPPED {test}: {reason} (PEEL_REQUIRE_FUSE=1 makes this an error)\n");
    // Past the capture of the test harness; where even that fails, nobody is listening
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The keeper's part, with at most one worker process.
pub(crate) struct Keeper {
    mounted: Option<Mounted>,
    worker: Option<Child>,
    flights: Flights,
    deadly: u64,
    target: PathBuf,
    dir: tempfile::TempDir,
    _watchdog: Watchdog,
    _alone: MutexGuard<'static, ()>,
}

impl Keeper {
    /// Mounts, without a worker. All of the test has to be done within `limit`.
    pub(crate) fn mount(source: &MemorySource, limit: Duration) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["lower", "data"] {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        save(source, &dir.path().join("data"));
        let mounted = mount(&dir.path().join("lower")).expect("mounted");
        let target = mounted.target().to_owned();
        let watchdog = Watchdog::start(limit, &target);
        Self {
            mounted: Some(mounted),
            worker: None,
            flights: Flights::create().expect("memory file"),
            deadly: 0,
            target,
            dir,
            _watchdog: watchdog,
            _alone: alone,
        }
    }

    /// Mounts and starts a worker.
    pub(crate) fn serve(source: &MemorySource, limit: Duration) -> Self {
        let mut keeper = Self::mount(source, limit);
        keeper.start_worker();
        keeper
    }

    /// Where the trees are.
    pub(crate) fn lower(&self) -> &Path {
        &self.target
    }

    /// A tree's root.
    pub(crate) fn tree(&self, number: u32) -> PathBuf {
        self.target.join(number.to_string())
    }

    /// Room for other files of the test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("the keeper lives")
    }

    pub(crate) fn start_worker(&mut self) {
        assert!(self.worker.is_none(), "one worker at a time");
        // Not close-on-exec; closed here once the child has it
        let passed = rustix::io::dup(self.mounted().device()).expect("dup");
        let flights = rustix::io::dup(&self.flights).expect("dup");
        let data = self.dir.path().join("data");
        let order = format!(
            "{} {} {} {} {}",
            passed.as_raw_fd(),
            flights.as_raw_fd(),
            self.mounted().handshake(),
            self.deadly,
            data.to_str().expect("a temporary directory is UTF-8"),
        );
        let child = Command::new(std::env::current_exe().expect("the test binary"))
            .args(["--exact", "keeper::worker_process", "--nocapture"])
            .env(WORKER, order)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.worker = Some(child.expect("the test binary starts"));
    }

    /// `kill -9`, and waits until the worker is gone.
    pub(crate) fn kill_worker(&mut self) {
        let mut worker = self.worker.take().expect("a worker");
        let early = worker.try_wait().expect("a child of ours");
        assert_eq!(early, None, "the worker ended by itself");
        worker.kill().expect("a child of ours");
        worker.wait().expect("a child of ours");
    }

    /// Ends worker, connection and mount, and makes new ones of the same image.
    pub(crate) fn mount_again(&mut self) {
        if self.worker.is_some() {
            self.kill_worker();
        }
        self.let_go();
        abort(&self.target);
        self.mounted = Some(mount(&self.target).expect("mounted"));
        self.start_worker();
    }

    /// Workers started from now on abort when this inode is read.
    pub(crate) fn make_deadly(&mut self, ino: u64) {
        self.deadly = ino;
    }

    /// Starts another worker where the last one has died by itself; tells whether that was so, and
    /// what is barred for it.
    pub(crate) fn tend(&mut self) -> Option<Vec<Culprit>> {
        let worker = self.worker.as_mut().expect("a worker");
        worker.try_wait().expect("a child of ours")?;
        self.worker = None;
        let culprits = self.flights.bury(Death::Fault);
        self.start_worker();
        Some(culprits)
    }

    /// Lets go of the connection, as a keeper that dies does; the mount stays.
    pub(crate) fn let_go(&mut self) {
        self.mounted = None;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        abort(&self.target);
        if let Some(mut worker) = self.worker.take() {
            // It ends by itself with its connection, but not before its last read
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

/// Ends the connection and unmounts, whoever still waits for an answer.
fn abort(target: &Path) {
    while let Ok(Some(mount)) = LowerMount::find(target) {
        if mount.abort().is_err() {
            break;
        }
    }
}

/// Ends what takes too long, so that a hang is a failure.
struct Watchdog(#[expect(dead_code, reason = "dropping it is the signal")] mpsc::Sender<()>);

impl Watchdog {
    fn start(limit: Duration, target: &Path) -> Self {
        let (sender, receiver) = mpsc::channel::<()>();
        let target = target.to_owned();
        std::thread::spawn(move || {
            let timeout =
                |limit| receiver.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if timeout(limit) {
                eprintln!("no end after {} s: aborting the connection", limit.as_secs());
                abort(&target);
                if timeout(Duration::from_secs(20)) {
                    eprintln!("still no end: aborting the test");
                    std::process::abort();
                }
            }
        });
        Self(sender)
    }
}

/// Writes a source to a directory, for another process to [`load`].
fn save(source: &MemorySource, dir: &Path) {
    for (slot, stored) in &source.layers {
        let parts = [("index", &stored.index), ("blob", &stored.blob), ("copy", &stored.copy)];
        for (part, bytes) in parts {
            fs::write(dir.join(format!("layer-{slot}.{part}")), bytes).expect("written");
        }
    }
    for (slot, (_, bytes)) in &source.trees {
        fs::write(dir.join(format!("tree-{slot}.index")), bytes).expect("written");
    }
}

/// Reads what [`save`] wrote.
fn load(dir: &Path) -> MemorySource {
    let mut source = MemorySource::default();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let read = |path: &Path| fs::read(path).expect("readable");
        if name.starts_with("layer-") && name.ends_with(".index") {
            let [blob, copy] = ["blob", "copy"].map(|part| read(&path.with_extension(part)));
            source.insert_layer(read(&path), blob, copy);
        } else if name.starts_with("tree-") {
            source.insert_tree(read(&path));
        }
    }
    source
}

/// A worker's process is this test binary with this one test, told by the environment to serve.
/// In any other process it is an empty test.
#[test]
fn worker_process() {
    let Ok(order) = std::env::var(WORKER) else {
        return;
    };
    let mut words = order.splitn(5, ' ');
    let mut word = || words.next().expect("five words");
    let number: RawFd = word().parse().expect("a descriptor");
    let flights = format!("/proc/self/fd/{}", word());
    let flights = File::options().read(true).write(true).open(flights).expect("the table");
    let handshake: Handshake = word().parse().expect("a handshake");
    let deadly = word().parse().expect("an inode");
    let source = Arc::new(Crashing { source: load(Path::new(word())), deadly });
    let device = inherited_device(number).expect("the device");
    let flights = Some(Arc::new(Flights::open(flights.into()).expect("the table")));
    let options = ServeOptions { flights, ..ServeOptions::default() };
    let server = adopt(device, &handshake, Filesystem::new(source), &options).expect("adopted");
    server.run().expect("served");
}
