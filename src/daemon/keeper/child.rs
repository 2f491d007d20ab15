//! The worker as its keeper sees it: started, awaited, and how it ended.

use std::{
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Command, ExitStatus},
};

use peel_fuse::flight::Death;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

use super::Options;
use crate::daemon::{
    AGAIN,
    estate::{self, Estate, Heard, Word},
    notify,
};

/// A worker that runs.
pub(super) struct Worker {
    pid: Pid,
    process: OwnedFd,
    /// Where it is a child of this process.
    child: bool,
    line: Option<OwnedFd>,
    /// The last thing that it said.
    said: Option<Word>,
    /// Kills by the kernel for want of memory, when it was started.
    oom_kills: u64,
    /// Why the keeper killed it.
    pub(super) killed_for: Option<&'static str>,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exit {
    /// Not known of one that was no child.
    pub(super) status: Option<ExitStatus>,
    /// It said that it would end the daemon, or that another should take its place.
    pub(super) said: Option<Word>,
    pub(super) reason: String,
    pub(super) death: Death,
}

impl Exit {
    /// Whether somebody killed it, as far as can be told.
    pub(super) fn is_killed(&self) -> bool {
        self.death == Death::Other && self.status.is_some_and(|status| status.signal().is_some())
    }
}

impl Worker {
    /// Starts a worker and hands it the estate.
    pub(super) fn start(options: &Options, estate: &Estate) -> io::Result<Self> {
        let (ours, theirs) = estate::line()?;
        estate.send(&ours, None)?;
        let mut command = command(options, "worker")?;
        command.stdin(theirs);
        // A terminal's Ctrl-C is for the keeper to decide on
        command.process_group(0);
        let oom_kills = oom_kills();
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            pid,
            process,
            child: true,
            line: Some(ours),
            said: None,
            oom_kills,
            killed_for: None,
        })
    }

    /// One that runs already; with the line to it, where there is one.
    ///
    /// # Errors
    /// Where there is no such process.
    pub(super) fn adopt(pid: Pid, line: Option<OwnedFd>) -> io::Result<Self> {
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let own = rustix::process::getpid();
        let child = parent(pid) == Some(own);
        Ok(Self { pid, process, child, line, said: None, oom_kills: oom_kills(), killed_for: None })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable once it has ended.
    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(super) fn line(&self) -> Option<BorrowedFd<'_>> {
        self.line.as_ref().map(AsFd::as_fd)
    }

    /// Takes in what it has said; returns the last word, where there is a new one.
    pub(super) fn listen(&mut self) -> Option<Word> {
        let mut last = None;
        while let Some(line) = &self.line {
            match estate::hear(line, false) {
                Heard::Word(word) => last = Some(word),
                Heard::Unknown => {}
                Heard::Nothing => break,
                Heard::End => self.line = None,
            }
        }
        self.said = last.or(self.said);
        last
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended just now
        let _ = pidfd_send_signal(&self.process, signal);
    }

    /// Reaps it, once its descriptor is readable.
    pub(super) fn reap(mut self) -> Exit {
        self.listen();
        let waited = match self.child {
            true => waitpid(Some(self.pid), WaitOptions::empty()).ok().flatten(),
            false => None,
        };
        let status = waited.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        let oom = oom_kills() > self.oom_kills;
        let mut exit = exit(status, self.said, oom);
        if let Some(reason) = self.killed_for {
            exit.reason = format!("killed by the keeper: {reason}");
            exit.death = Death::Fault;
        }
        exit
    }
}

/// `peel daemon ROLE` with this daemon's directories, for what takes the estate from its standard
/// input.
pub(in crate::daemon) fn command(options: &Options, role: &str) -> io::Result<Command> {
    let paths = &options.paths;
    let mut command = Command::new(program()?);
    command.arg("--root").arg(paths.root()).arg("--state").arg(paths.state());
    if let Some(socket) = paths.custom_socket() {
        command.arg("--socket").arg(socket);
    }
    command.args(["--log-level", &options.log_level, "daemon", role]);
    command.args(["--span-cache", &options.span_cache.to_string()]);
    command.args(&options.further_args);
    if options.background {
        command.arg("--background");
    }
    if role == "worker" {
        for name in notify::VARIABLES {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// The program of this process: by its path, so that what has taken its place there is found; the
/// file that runs, where there is none any more.
pub(super) fn program() -> io::Result<PathBuf> {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let path = fs::read_link("/proc/self/exe")?.into_os_string().into_vec();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(&path);
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
    Ok(if path.is_file() { path } else { PathBuf::from("/proc/self/exe") })
}

fn parent(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(line.trim().parse().ok()?)
}

/// Processes killed for want of memory since the machine started.
fn oom_kills() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

/// What an end says: only signals that come of a fault, or of a want of memory, can be a request's
/// doing.
fn exit(status: Option<ExitStatus>, said: Option<Word>, oom: bool) -> Exit {
    let signal = status.and_then(|status| status.signal());
    let faults = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGABRT,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGSYS,
        libc::SIGTRAP,
        libc::SIGXCPU,
    ];
    let starved = signal == Some(libc::SIGKILL) && oom;
    let death = match signal {
        Some(signal) if faults.contains(&signal) || starved => Death::Fault,
        _ => Death::Other,
    };
    let reason = match (status, signal) {
        (None, _) => "it ended, and was no child of this keeper".to_owned(),
        (_, Some(_)) if starved => "killed by the kernel for want of memory".to_owned(),
        (Some(status), _) if status.code() == Some(AGAIN.into()) => {
            "it was asked to make room for another".to_owned()
        }
        (Some(status), _) => status.to_string(),
    };
    Exit { status, said, reason, death }
}

/// Checks that a program can be run and is peel, before it takes this one's place.
///
/// # Errors
/// What it said, or that it said nothing in time.
pub(super) fn check(program: &PathBuf) -> Result<String, String> {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
    let shown = program.display();
    let mut child = Command::new(program)
        .args(["version"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot run {shown}: {e}"))?;
    let started = std::time::Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < LIMIT => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{shown} version did not end within {} s", LIMIT.as_secs()));
            }
        }
    };
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let _ = io::Read::read_to_string(&mut stdout, &mut said);
    }
    match said.trim().strip_prefix("peel ") {
        Some(version) if status.success() => Ok(version.to_owned()),
        _ => Err(format!("{shown} is not peel: expected a version, found {said:?} ({status})")),
    }
}

/// Says something to a person who watches, and to nobody otherwise.
pub(super) fn remark(background: bool, text: &str) {
    if !background {
        // A standard error that is closed is nobody's
        let _ = writeln!(io::stderr(), "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_from_kills() {
        let of = |raw: i32, oom| exit(Some(ExitStatus::from_raw(raw)), None, oom).death;
        for signal in [libc::SIGSEGV, libc::SIGABRT, libc::SIGBUS] {
            assert_eq!(of(signal, false), Death::Fault, "{signal}");
        }
        for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT] {
            assert_eq!(of(signal, false), Death::Other, "{signal}");
        }
        assert_eq!(of(libc::SIGKILL, true), Death::Fault);
        assert_eq!(of(1 << 8, true), Death::Other, "an exit code is the worker's own word");
        assert_eq!(exit(None, None, true).death, Death::Other);
    }

    #[test]
    fn only_peel_takes_peels_place() {
        assert!(check(&"/bin/true".into()).is_err_and(|e| e.contains("is not peel")));
        assert!(check(&"/nonexistent".into()).is_err_and(|e| e.contains("cannot run")));
    }

    #[test]
    fn a_child_is_reaped_with_what_it_said() {
        let (ours, theirs) = estate::line().expect("socket pair");
        #[expect(clippy::zombie_processes, reason = "what reaps it is tested here")]
        let child = Command::new("sh").args(["-c", "exit 75"]).spawn().expect("sh");
        let mut worker = Worker::adopt(Pid::from_child(&child), Some(ours)).expect("it runs");
        assert_eq!(worker.listen(), None);
        Word::Again.say(&theirs);
        let exit = worker.reap();
        assert_eq!(exit.said, Some(Word::Again));
        assert_eq!(exit.status.and_then(|s| s.code()), Some(75));
        assert!(exit.reason.contains("make room"), "{exit:?}");
    }
}
