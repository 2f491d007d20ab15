//! The keeper: small, so that it has no reason to die.
//!
//! Three threads: the main one starts, awaits and restarts the worker; one passes signals on; one
//! answers on the keeper's socket, which works while no worker does. They share `State` under a
//! mutex that is never held over a system call that waits.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
            net::UnixListener,
        },
    },
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use peel_fuse::session::{self, Mounted, READAHEAD_KIB};
use rustix::{
    fs::{FlockOperation, Mode},
    io::{FdFlags, fcntl_setfd},
    process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit},
};
use serde_json::json;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::fatal_class;
use crate::{
    failure::{Class, Failure, chain},
    mountinfo,
    paths::Paths,
    telemetry,
};

/// A worker that lived this long did not die of its start.
const HEALTHY: Duration = Duration::from_secs(10);
/// Pause before the second quick restart; doubles up to [`BACK_OFF_MAX`]. The first has none.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// What a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);

/// What a mount found on our mount point may take to show that somebody serves it.
const STALE_LIMIT: Duration = Duration::from_secs(2);

/// How the keeper runs.
pub struct Options {
    /// The daemon's directories.
    pub paths: Paths,
    /// What is logged.
    pub log_level: String,
    /// Bound of the worker's span cache in bytes.
    pub span_cache: u64,
    /// Started by a command, not by a person or a service manager.
    pub background: bool,
}

#[derive(Default)]
struct State {
    worker: Option<Pid>,
    stopping: bool,
    restarts: u64,
    backing_off: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs until the daemon is stopped.
///
/// # Errors
/// Where another daemon runs on the state directory, or FUSE cannot be had.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let paths = &options.paths;
    if options.background {
        detach(paths);
    }
    limits();
    make_dir(paths.state())?;
    make_dir(paths.root())?;
    let _lock = lock(&paths.keeper_lock())?;
    let _owner = own(paths.root())?;
    let log = telemetry::open_log(&paths.log())
        .map_err(|e| Failure::io(&e, format!("cannot open the log: {e}")))?;
    telemetry::init(log, &options.log_level, !options.background)
        .map_err(|e| Failure::new(Class::Usage, format!("cannot log: {e}")))?;

    let listener = listen(&paths.socket())?;
    let keeper_listener = listen(&paths.keeper_socket())?;
    let lower = Lower::mount(&paths.lower())?;
    let shared = Arc::new(Shared::default());
    pass_signals_on(&shared)?;
    answer(keeper_listener, &shared);
    tracing::info!(
        pid = std::process::id(),
        root = %paths.root().display(),
        socket = %paths.socket().display(),
        "keeper started"
    );

    let code = keep(options, &lower, &listener, &shared);
    tracing::info!("keeper ends");
    for socket in [paths.socket(), paths.keeper_socket()] {
        // They are made anew at the next start whether or not they are here
        let _ = fs::remove_file(socket);
    }
    code
}

/// Leaves the caller's session, and its mount namespace where mounts of pid 1's reach the caller.
fn detach(paths: &Paths) {
    close_inherited();
    if let Err(e) = rustix::process::setsid() {
        eprintln!("staying in the caller's session: {e}");
    }
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let first = fs::read_link("/proc/1/ns/mnt").ok();
    if first.is_none() || own == first || !receives_mounts(paths.state()) {
        return;
    }
    if let Ok(namespace) = File::open("/proc/1/ns/mnt") {
        let kind = Some(rustix::thread::LinkNameSpaceType::Mount);
        if let Err(e) = rustix::thread::move_into_link_name_space(namespace.as_fd(), kind) {
            eprintln!("staying in the caller's mount namespace: {e}");
        }
    }
}

/// Whether a mount made by pid 1's namespace on `path` shows up in this one.
fn receives_mounts(path: &Path) -> bool {
    let mounts = mountinfo::own().unwrap_or_default();
    let below = mounts.iter().filter(|m| path.starts_with(&m.target));
    below.max_by_key(|m| m.target.as_os_str().len()).is_some_and(|m| {
        m.propagation.iter().any(|p| p.starts_with("shared:") || p.starts_with("master:"))
    })
}

/// What a command happened to have open would stay open for as long as the daemon runs.
fn close_inherited() {
    // SAFETY: called before this process has opened any descriptor, so nobody owns one from 3 on.
    #[expect(unsafe_code, reason = "close_range has no safe wrapper")]
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0)
    };
}

/// What a caller's shell has set must not decide what a daemon does.
fn limits() {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Each layer in use holds a descriptor or two, and select(2), the reason for a low limit, is
    // used nowhere
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        eprintln!("cannot raise the limit on open files: {e}");
    }
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| {
        Failure::io(&e, format!("cannot create the directory {}: {e}", dir.display()))
            .hint("run as root, or name directories of your own with --root and --state")
    })
}

fn lock(path: &Path) -> Result<File, Failure> {
    let open = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path);
    let file = open.map_err(|e| Failure::io(&e, format!("cannot open {}: {e}", path.display())))?;
    try_lock(file).ok_or_else(|| {
        let message = format!("a daemon runs already: {} is locked", path.display());
        Failure::new(Class::Conflict, message)
            .hint("end it with: peel daemon stop; or give this one another --state")
    })
}

/// Locks the root directory itself: another daemon on another state directory would sweep what this
/// one is writing.
fn own(root: &Path) -> Result<File, Failure> {
    let dir = File::open(root)
        .map_err(|e| Failure::io(&e, format!("cannot open {}: {e}", root.display())))?;
    try_lock(dir).ok_or_else(|| {
        let message = format!("another daemon owns the root directory {}", root.display());
        Failure::new(Class::Conflict, message)
            .hint("use that one's --state, or give this one another --root")
    })
}

/// Tries for [`LOCK_PATIENCE`]: the holder may be about to end, or a command that only looks.
fn try_lock(file: File) -> Option<File> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Some(file)
}

fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let bind = || {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|e| Failure::io(&e, format!("cannot listen on {}: {e}", path.display())))
}

/// The one FUSE mount; unmounted when it goes.
struct Lower(Mounted);

impl Lower {
    fn mount(path: &Path) -> Result<Self, Failure> {
        let told = |e: &dyn std::error::Error| {
            Failure::new(Class::Unavailable, chain(e))
                .hint("FUSE needs root and /dev/fuse; on most systems: modprobe fuse")
        };
        let stale = session::clear_stale(path, STALE_LIMIT).map_err(|e| told(&e))?;
        if stale > 0 {
            tracing::warn!(stale, "unmounted what a keeper that died had left");
        }
        make_dir(path)?;
        let mounted = session::mount(path).map_err(|e| told(&e))?;
        if let Err(e) = session::raise_readahead(mounted.target(), READAHEAD_KIB) {
            tracing::warn!(error = chain(&e), "sequential reads will be slower");
        }
        Ok(Self(mounted))
    }
}

impl Drop for Lower {
    fn drop(&mut self) {
        if let Err(e) = self.0.unmount() {
            tracing::warn!(path = %self.0.target().display(), error = %e, "cannot unmount");
        }
    }
}

fn keep(
    options: &Options,
    lower: &Lower,
    listener: &UnixListener,
    shared: &Shared,
) -> Result<ExitCode, Failure> {
    let failed = |e: io::Error| Failure::io(&e, format!("cannot start the worker: {e}"));
    let mut quick_deaths = 0;
    loop {
        let restarts = shared.with(|state| state.restarts);
        let started = Instant::now();
        let mut child = match spawn(options, lower, listener, restarts) {
            Ok(child) => child,
            // Mounts depend on this process: a lack of memory or processes may pass
            Err(error) if restarts > 0 => {
                tracing::error!(%error, "cannot start a worker");
                quick_deaths += 1;
                if back_off_ended_by_stop(shared, back_off(quick_deaths).max(BACK_OFF)) {
                    return Ok(ExitCode::SUCCESS);
                }
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        let stopping = shared.with(|state| {
            state.worker = pid_of(&child);
            state.backing_off = false;
            state.stopping
        });
        if stopping {
            end(shared);
        }
        // Reaped before the next one starts: two never serve, or own the metadata, at once
        let status = child.wait().map_err(failed)?;
        let stopping = shared.with(|state| {
            state.worker = None;
            state.stopping
        });
        match next(status, stopping, restarts) {
            Next::End(code) => return Ok(code),
            Next::Restart => {}
        }
        quick_deaths = if started.elapsed() < HEALTHY { quick_deaths + 1 } else { 1 };
        let pause = back_off(quick_deaths);
        tracing::warn!(%status, restarts = restarts + 1, ?pause, "the worker died; starting another");
        if back_off_ended_by_stop(shared, pause) {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

enum Next {
    End(ExitCode),
    Restart,
}

fn next(status: ExitStatus, stopping: bool, restarts: u64) -> Next {
    match status.code() {
        Some(0) => Next::End(ExitCode::SUCCESS),
        // Later ones have mounts to serve, and what stands in their way may pass
        Some(code)
            if restarts == 0
                && let Some(class) = fatal_class(code) =>
        {
            Next::End(class.into())
        }
        _ if stopping => Next::End(ExitCode::SUCCESS),
        _ => Next::Restart,
    }
}

fn back_off(quick_deaths: u32) -> Duration {
    match quick_deaths.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => BACK_OFF.saturating_mul(1 << doublings.min(10)).min(BACK_OFF_MAX),
    }
}

fn back_off_ended_by_stop(shared: &Shared, pause: Duration) -> bool {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.restarts += 1;
    state.backing_off = true;
    let wait = shared.changed.wait_timeout_while(state, pause, |state| !state.stopping);
    wait.map(|(state, _)| state.stopping).unwrap_or_default()
}

fn spawn(
    options: &Options,
    lower: &Lower,
    listener: &UnixListener,
    restarts: u64,
) -> io::Result<Child> {
    // What is to be inherited loses close-on-exec for good: the keeper starts nothing but workers
    let inherit = |fd: BorrowedFd<'_>| -> io::Result<String> {
        fcntl_setfd(fd, FdFlags::empty())?;
        Ok(fd.as_raw_fd().to_string())
    };
    let paths = &options.paths;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--root").arg(paths.root()).arg("--state").arg(paths.state());
    if let Some(socket) = paths.custom_socket() {
        command.arg("--socket").arg(socket);
    }
    command.args(["--log-level", &options.log_level, "daemon", "worker"]);
    command.args(["--fuse-fd", &inherit(lower.0.device())?]);
    command.args(["--listen-fd", &inherit(listener.as_fd())?]);
    command.args(["--handshake", &lower.0.handshake().to_string()]);
    command.args(["--restarts", &restarts.to_string()]);
    command.args(["--span-cache", &options.span_cache.to_string()]);
    if !options.background {
        command.arg("--log-stderr");
    }
    command.spawn()
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id().try_into().ok()?)
}

fn end(shared: &Shared) {
    let worker = shared.with(|state| {
        state.stopping = true;
        state.worker
    });
    shared.changed.notify_all();
    if let Some(pid) = worker {
        // It may have ended just now
        let _ = kill_process(pid, Signal::TERM);
    }
}

fn pass_signals_on(shared: &Arc<Shared>) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| Failure::io(&e, format!("cannot handle signals: {e}")))?;
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for signal in &mut signals {
            if signal != SIGHUP {
                end(&shared);
            }
        }
    });
    Ok(())
}

fn answer(listener: UnixListener, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let document = shared.with(|state| {
                json!({
                    "pid": std::process::id(),
                    "worker": state.worker.map(|pid| pid.as_raw_nonzero().get()),
                    "restarts": state.restarts,
                    "state": match state {
                        State { stopping: true, .. } => "stopping",
                        State { backing_off: true, .. } => "backing off",
                        _ => "running",
                    },
                })
            });
            // Who asked may have gone away
            let _ = stream.and_then(|mut stream| writeln!(stream, "{document}"));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn quick_deaths_slow_restarts_down() {
        let pauses: Vec<_> = (1..=12).map(back_off).collect();
        assert_eq!(pauses[..3], [Duration::ZERO, BACK_OFF, BACK_OFF * 2]);
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&BACK_OFF_MAX));
    }

    #[test]
    fn what_follows_a_worker() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        let ends =
            |status, stopping, restarts| matches!(next(status, stopping, restarts), Next::End(_));
        assert!(ends(exited(0), false, 3));
        assert!(!ends(exited(1), false, 0));
        assert!(ends(exited(70), false, 0), "the first cannot start");
        assert!(!ends(exited(70), false, 1));
        let killed = ExitStatus::from_raw(9);
        assert!(!ends(killed, false, 0));
        assert!(ends(killed, true, 0));
    }

    #[test]
    fn one_keeper_a_state_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("keeper.lock");
        let first = lock(&path).expect("free");
        assert_eq!(lock(&path).expect_err("taken").class, Class::Conflict);
        let looked_at = thread::spawn({
            let path = path.clone();
            move || lock(&path)
        });
        thread::sleep(LOCK_PATIENCE / 10);
        drop(first);
        looked_at.join().expect("thread").expect("free again, in time");
        let root = own(dir.path()).expect("free");
        assert_eq!(own(dir.path()).expect_err("taken").class, Class::Conflict);
        drop(root);
    }
}
