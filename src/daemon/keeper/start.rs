//! A daemon from nothing: directories, locks, sockets, the mount; and what one that died left.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::{
            fs::{DirBuilderExt as _, OpenOptionsExt as _},
            net::UnixListener,
        },
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use peel_fuse::session::{self, LowerMount, LowerState, READAHEAD_KIB};
use rustix::{
    fs::{FlockOperation, Mode},
    mount::UnmountFlags,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::Options;
use crate::{
    daemon::{
        estate::{Estate, Facts},
        live::Live,
    },
    failure::{Class, Failure, chain},
    mountinfo,
    paths::Paths,
    telemetry,
};

/// What a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);

/// What a mount found on our mount point may take to show that somebody serves it.
const STALE_LIMIT: Duration = Duration::from_secs(2);

/// Makes all that a daemon consists of.
pub(super) fn fresh(options: &Options, managed: bool) -> Result<(Estate, Facts), Failure> {
    let paths = &options.paths;
    if options.background {
        detach(paths);
    }
    limits();
    make_dir(paths.state())?;
    make_dir(paths.root())?;
    let lock = lock(&paths.keeper_lock())?;
    let owner = own(paths.root())?;
    log(options)?;

    let sockets = [listen(&paths.socket())?, listen(&paths.keeper_socket())?];
    let cleaned = clean_up(paths)?;
    make_dir(&paths.lower())?;
    let mounted = session::mount(&paths.lower()).map_err(|e| no_fuse(&e))?;
    if let Err(e) = session::raise_readahead(mounted.target(), READAHEAD_KIB) {
        tracing::warn!(error = chain(&e), "sequential reads will be slower");
    }
    let facts = Facts {
        handshake: mounted.handshake().to_string(),
        background: options.background,
        managed,
        cleaned,
        patience_s: options.patience.as_secs(),
        ..Facts::default()
    };
    let made = mounted
        .device()
        .try_clone_to_owned()
        .and_then(|fuse| Estate::new(fuse, sockets, [lock.into(), owner.into()], &facts));
    let estate = made.map_err(|e| {
        unmount(paths);
        Failure::io(&e, format!("cannot start: {e}"))
    })?;
    Ok((estate, facts))
}

/// Opens the log.
pub(super) fn log(options: &Options) -> Result<(), Failure> {
    let log = telemetry::open_log(&options.paths.log())
        .map_err(|e| Failure::io(&e, format!("cannot open the log: {e}")))?;
    telemetry::init(log, &options.log_level, !options.background)
        .map_err(|e| Failure::new(Class::Usage, format!("cannot log: {e}")))
}

/// Takes the mount out of sight; what still uses it keeps it until the last descriptor is gone.
pub(super) fn unmount(paths: &Paths) {
    let lower = paths.lower();
    let detached = LowerMount::find(&lower).and_then(|mount| mount.map_or(Ok(()), |m| m.detach()));
    if let Err(e) = detached {
        tracing::warn!(path = %lower.display(), error = %e, "cannot unmount");
    }
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

fn no_fuse(error: &dyn std::error::Error) -> Failure {
    Failure::new(Class::Unavailable, chain(error))
        .hint("FUSE needs root and /dev/fuse; on most systems: modprobe fuse")
}

/// Unmounts what a daemon left that died as a whole: its lower mount, and the views and overlays on
/// it, which answer nothing but ENOTCONN. Uppers and bundles are kept. Returns how many there were.
fn clean_up(paths: &Paths) -> Result<u64, Failure> {
    let lower = paths.lower();
    let found = LowerMount::find(&lower).map_err(|e| no_fuse(&e))?;
    let state = found.map(|mount| mount.state(STALE_LIMIT));
    if state.is_some_and(|state| state != LowerState::Stale) {
        tracing::warn!(lower = %lower.display(), "somebody else holds a mount here; left alone");
        return Ok(0);
    }
    let live = Live::scan();
    let mut cleaned = 0;
    // Nobody else can serve what stands on our mount point: both locks are ours
    let own = mountinfo::namespace().unwrap_or_default();
    let mut elsewhere = 0;
    for (namespace, target) in live.on(paths) {
        if namespace != own {
            elsewhere += 1;
            continue;
        }
        // Lazily: who has it open gets ENOTCONN either way
        match rustix::mount::unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => cleaned += 1,
            Err(e) => tracing::warn!(target = %target.display(), error = %e, "cannot unmount"),
        }
    }
    if state.is_some() {
        cleaned += u64::from(session::clear_stale(&lower, STALE_LIMIT).map_err(|e| no_fuse(&e))?);
    }
    if cleaned + elsewhere > 0 {
        tracing::warn!(
            cleaned,
            elsewhere,
            "a daemon had died, keeper and worker: unmounted what it had left; what stands in \
             other mount namespaces fails until its processes end; what was written is kept, and \
             is there again when it is mounted under the same name"
        );
    }
    Ok(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_keeper_a_state_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("keeper.lock");
        let first = lock(&path).expect("free");
        assert_eq!(lock(&path).expect_err("taken").class, Class::Conflict);
        let passed_on = first.try_clone().expect("dup");
        drop(first);
        assert_eq!(lock(&path).expect_err("held by the copy").class, Class::Conflict);
        let looked_at = thread::spawn({
            let path = path.clone();
            move || lock(&path)
        });
        thread::sleep(LOCK_PATIENCE / 10);
        drop(passed_on);
        looked_at.join().expect("thread").expect("free again, in time");
        let root = own(dir.path()).expect("free");
        assert_eq!(own(dir.path()).expect_err("taken").class, Class::Conflict);
        drop(root);
    }
}
