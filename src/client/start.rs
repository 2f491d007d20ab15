//! Starting the daemon.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::DirBuilderExt as _, net::UnixStream as StdUnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    fs::FlockOperation,
    process::{Pid, Signal, kill_process},
};

use super::{Client, POLL, StartOptions, ask_status, connect};
use crate::{
    api::StatusResponse,
    failure::{Class, Failure},
    paths::Paths,
    telemetry,
};

/// A start takes milliseconds; a root with thousands of indexes on a slow disk takes longer.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);

/// Times that a daemon is started which then finds that another was just about to end.
const ATTEMPTS: u32 = 3;

/// Whether a keeper holds its lock. Looking takes the lock for a moment: keepers ask twice for it.
pub fn keeper_runs(paths: &Paths) -> bool {
    let Ok(lock) = File::open(paths.keeper_lock()) else { return false };
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
}

/// What the keeper says of itself, as JSON; `None` where none answers.
pub fn keeper_status(paths: &Paths) -> Option<serde_json::Value> {
    ask_keeper(paths, "status", Duration::from_secs(2))
}

/// Asks the keeper for something, by one word; `None` where it does not answer in time.
pub fn ask_keeper(paths: &Paths, word: &str, limit: Duration) -> Option<serde_json::Value> {
    let mut socket = StdUnixStream::connect(paths.keeper_socket()).ok()?;
    socket.set_read_timeout(Some(limit)).ok()?;
    // In one piece: the keeper answers the first it gets, and closes
    socket.write_all(format!("{word}\n").as_bytes()).ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

pub(super) async fn start(
    paths: &Paths,
    options: &StartOptions,
) -> Result<(Client, StatusResponse), Failure> {
    make_state(paths.state())?;
    let log_path = paths.log();
    let failed = |e: &std::io::Error| {
        Failure::io(e, format!("cannot open the log {}: {e}", log_path.display()))
    };
    let log = telemetry::open_log(&log_path).map_err(|e| failed(&e))?;
    let before = log.metadata().map_err(|e| failed(&e))?.len();
    let again = || log.try_clone().map_err(|e| failed(&e));
    let mut child = spawn(paths, options, again()?)?;
    let mut attempts = 1;

    let deadline = tokio::time::Instant::now() + START_LIMIT;
    loop {
        if let Some(mut client) = connect(paths).await?
            && let Some(status) = ask_status(&mut client, paths).await?
        {
            if status.keeper_pid != child.id() && matches!(child.try_wait(), Ok(None)) {
                // It may wait for the lock still, and would outlive a stop that comes now
                let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            }
            return Ok((client, status));
        }
        let ended = child.try_wait().ok().flatten();
        // Another command may have started one at the same moment; then that one serves us
        if let Some(status) = ended
            && !keeper_runs(paths)
        {
            let conflict = status.code() == Some(Class::Conflict.exit_code().into());
            if !conflict || attempts == ATTEMPTS {
                return Err(told_by(&log_path, before));
            }
            attempts += 1;
            child = spawn(paths, options, again()?)?;
        }
        if tokio::time::Instant::now() > deadline {
            let message = format!("the daemon did not answer within {} s", START_LIMIT.as_secs());
            return Err(Failure::new(Class::Unavailable, message)
                .hint(format!("its log may say why: {}", log_path.display())));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The state directory is for its owner alone: whoever can write to the sockets owns the images.
fn make_state(state: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|e| {
        Failure::io(&e, format!("cannot create the state directory {}: {e}", state.display()))
            .hint("run as root, or name directories of your own with --root and --state")
    })
}

fn spawn(paths: &Paths, options: &StartOptions, log: File) -> Result<Child, Failure> {
    let failed = |e: std::io::Error| Failure::io(&e, format!("cannot start the daemon: {e}"));
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("--root").arg(paths.root()).arg("--state").arg(paths.state());
    if let Some(socket) = paths.custom_socket() {
        command.arg("--socket").arg(socket);
    }
    command.args(["--log-level", &options.log_level, "daemon", "--background"]);
    // Of the service that runs this command, which is not the daemon's
    for name in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log);
    command.spawn().map_err(failed)
}

/// What a daemon that ended at once wrote: its last `error:` and `hint:` lines.
fn told_by(log: &Path, before: u64) -> Failure {
    let mut text = String::new();
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(before))?;
        file.read_to_string(&mut text)
    });
    let last = |prefix: &str| {
        text.lines().rev().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned)
    };
    let message = match read {
        Ok(_) => last("error: ").unwrap_or_else(|| "it gave no reason".to_owned()),
        Err(e) => format!("its log cannot be read: {e}"),
    };
    let failure = Failure::new(Class::Unavailable, format!("the daemon did not start: {message}"));
    match last("hint: ") {
        Some(hint) => failure.hint(hint),
        None => failure.hint(format!("see its log: {}", log.display())),
    }
}
