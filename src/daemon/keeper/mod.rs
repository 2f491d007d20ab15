//! The keeper: small, so that it has no reason to die.
//!
//! One thread, one loop over poll(2): signals, its own socket, the worker's end, what the worker
//! says, and a look now and then at whether that gets anywhere. It sends no request to the mount
//! and waits for nothing else.
//!
//! ```text
//! run      a daemon from nothing, or from what the service manager kept
//! resume   from the keeper before: its own older version (reload), or one that died
//! ```
//! See SURVIVAL.md for what happens when which process ends.

mod child;
mod control;
mod next;
mod signals;
mod start;
mod watch;

use std::{
    ffi::OsString,
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use peel_fuse::{flight::Death, session::inherited_device};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal},
};
use serde_json::{Value, json};

use self::{
    child::{Exit, Worker},
    control::{Ask, Asker},
    next::{BACK_OFF, Next, back_off, next},
    signals::Signals,
    watch::Watch,
};
use super::{
    estate::{Estate, Facts, Inherited, LastExit, Word},
    live::Live,
    notify::{self, Manager},
};
use crate::{
    failure::{Class, Failure, chain},
    metadata::now_ns,
    paths::Paths,
    registry::RegistryOptions,
};

/// A worker that lived this long did not die of its start, and has answered what it inherited.
const HEALTHY: Duration = Duration::from_secs(10);
/// What a worker may take to end for a reload: it gives calls under way a few seconds.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// A second Ctrl-C within this ends the daemon whatever is mounted.
const INSIST: Duration = Duration::from_secs(5);

/// How the keeper runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The daemon's directories.
    pub paths: Paths,
    /// What is logged.
    pub log_level: String,
    /// Bound of the worker's span cache in bytes.
    pub span_cache: u64,
    /// What is read when a layer comes into use is decoded ahead the next time.
    pub follow_starts: bool,
    /// How long the worker looks out for requests before it sleeps.
    pub busy_poll: Duration,
    /// Started by a command, not by a person or a service manager.
    pub background: bool,
    /// A worker that gets nowhere for so long is killed; zero: never.
    pub patience: Duration,
    /// How registries are reached.
    pub network: RegistryOptions,
    /// Most bytes of blobs, indexes and trees.
    pub max_size: Option<u64>,
    /// Where the containerd keeps things that has this daemon as its snapshotter.
    pub containerd_root: PathBuf,
    /// Where statistics are served over HTTP.
    pub metrics: Option<SocketAddr>,
    /// All of these, as arguments of the daemon's processes.
    pub further_args: Vec<OsString>,
}

impl Options {
    /// A command that takes the estate from its standard input: the next keeper.
    pub(super) fn keeper_command(&self) -> io::Result<Command> {
        child::command(self, "keeper")
    }
}

/// Runs until the daemon is stopped.
///
/// # Errors
/// Where another daemon runs on the state directory, or FUSE cannot be had.
pub fn run(options: &Options) -> Result<ExitCode, Failure> {
    let manager = (!options.background).then(Manager::find).flatten();
    let kept = manager.as_ref().map(|_| notify::kept()).unwrap_or_default();
    if kept.contains_key("fuse") {
        start::log(options)?;
        let failed = |e: &dyn std::error::Error| {
            let what = "cannot go on with what the service manager kept";
            Failure::new(Class::Other, format!("{what}: {}", chain(e)))
        };
        let (estate, facts) = Estate::from_fds(kept).map_err(|e| failed(&e))?;
        inherited_device(estate.fuse.as_raw_fd()).map_err(|e| failed(&e))?;
        tracing::warn!("the daemon had ended; going on with what the service manager kept");
        let facts = Facts { keepers: facts.keepers + 1, managed: true, ..facts };
        return Keeper::new(options, estate, facts, manager)?.resume(None);
    }
    let (estate, facts) = start::fresh(options, manager.is_some())?;
    if let Some(manager) = &manager
        && let Err(error) = manager.store(&estate)
    {
        tracing::warn!(%error, "the service manager cannot keep descriptors");
    }
    let mut keeper = Keeper::new(options, estate, facts, manager)?;
    tracing::info!(
        pid = std::process::id(),
        root = %options.paths.root().display(),
        socket = %options.paths.socket().display(),
        "keeper started"
    );
    match keeper.start_worker() {
        Ok(()) => keeper.keep(),
        Err(error) => {
            keeper.leave();
            Err(Failure::io(&error, format!("cannot start the worker: {error}")))
        }
    }
}

/// Goes on as the keeper of an estate that waits on standard input.
///
/// # Errors
/// Where there is none.
pub fn resume(options: &Options) -> Result<ExitCode, Failure> {
    start::log(options)?;
    let Inherited { estate, facts, line } = Estate::inherit()
        .map_err(|e| Failure::io(&e, format!("cannot go on as the keeper: {e}")))?;
    let manager = facts.managed.then(Manager::find).flatten();
    let options = &Options { patience: Duration::from_secs(facts.patience_s), ..options.clone() };
    Keeper::new(options, estate, facts, manager)?.resume(Some(line))
}

struct Keeper {
    options: Options,
    estate: Estate,
    facts: Facts,
    manager: Option<Manager>,
    signals: Signals,
    worker: Option<Worker>,
    started: Instant,
    /// The worker has said that it answers.
    was_ready: bool,
    /// When to start the next worker, while there is none.
    next_start: Instant,
    watch: Watch,
    looked: Instant,
    /// The worker was told to end for a reload, and has until then.
    drain_until: Option<Instant>,
    stopping: bool,
    /// The mount stays, for the service manager holds it.
    keep_mount: bool,
    interrupted: Option<Instant>,
    reload_error: Option<String>,
}

impl Keeper {
    fn new(
        options: &Options,
        estate: Estate,
        facts: Facts,
        manager: Option<Manager>,
    ) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::io(&e, format!("cannot handle signals: {e}"));
        estate.control.set_nonblocking(true).map_err(failed)?;
        let now = Instant::now();
        Ok(Self {
            options: options.clone(),
            estate,
            facts,
            manager,
            signals: Signals::new().map_err(failed)?,
            worker: None,
            started: now,
            was_ready: false,
            next_start: now,
            watch: Watch::new(options.patience),
            looked: now,
            drain_until: None,
            stopping: false,
            keep_mount: false,
            interrupted: None,
            reload_error: None,
        })
    }

    /// Goes on with the worker that runs, where one does.
    fn resume(mut self, line: Option<OwnedFd>) -> Result<ExitCode, Failure> {
        let kept = line.is_none();
        let before = worker_at(line.as_ref()).or(self.facts.worker.and_then(Pid::from_raw));
        self.worker = before.and_then(|pid| {
            // Without a line the number alone says nothing: another process may have it by now
            let ours = !kept || is_worker(pid);
            ours.then(|| Worker::adopt(pid, line).ok()).flatten()
        });
        if self.facts.reloading || (kept && self.worker.is_some()) {
            self.drain();
        } else if !kept {
            self.facts.keepers += 1;
            tracing::warn!(pid = std::process::id(), "the keeper had died; this one goes on");
        }
        if self.worker.is_none() {
            self.bury(Death::Other);
            self.facts.restarts += 1;
        }
        self.write_facts();
        self.keep()
    }

    /// Until the daemon ends.
    fn keep(mut self) -> Result<ExitCode, Failure> {
        loop {
            if self.worker.is_none() && !self.stopping && Instant::now() >= self.next_start {
                self.start_worker_again();
            }
            self.wait();
            if let Some((ask, asker)) = control::next(&self.estate.control) {
                self.asked(ask, asker);
            }
            if Signals::came(&self.signals.terminate) {
                self.terminate(false);
            }
            if Signals::came(&self.signals.interrupt) {
                let again = self.interrupted.is_some_and(|at| at.elapsed() < INSIST);
                self.interrupted = Some(Instant::now());
                self.terminate(again);
            }
            if self.worker.as_mut().and_then(Worker::listen) == Some(Word::Ready) {
                self.ready();
            }
            let ended = self.worker.take_if(|worker| is_readable(worker.process()));
            if let Some(code) = ended.and_then(|worker| self.ended(worker.reap())) {
                self.leave();
                return code;
            }
            if self.stopping && self.worker.is_none() {
                self.leave();
                return Ok(ExitCode::SUCCESS);
            }
            self.look();
        }
    }

    /// Waits until something happens, or something is due.
    fn wait(&self) {
        let now = Instant::now();
        let due = match &self.worker {
            None => Some(self.next_start),
            Some(_) => self.watch.tick().map(|tick| self.looked + tick),
        };
        let due = due.into_iter().chain(self.drain_until).min();
        let limit = due.map(|due| due.saturating_duration_since(now));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut polled = vec![
            PollFd::new(&self.estate.control, PollFlags::IN),
            PollFd::new(&self.signals.terminate, PollFlags::IN),
            PollFd::new(&self.signals.interrupt, PollFlags::IN),
        ];
        let process = self.worker.as_ref().map(Worker::process);
        let line = self.worker.as_ref().and_then(Worker::line);
        polled.extend(process.iter().chain(&line).map(|fd| PollFd::new(fd, PollFlags::IN)));
        // An interrupted wait is as good as one that ended
        let _ = poll(&mut polled, limit.as_ref());
    }

    fn start_worker(&mut self) -> io::Result<()> {
        let worker = Worker::start(&self.options, &self.estate)?;
        self.started = Instant::now();
        self.was_ready = false;
        self.watch.reset();
        self.looked = self.started;
        self.facts.worker = Some(worker.pid().as_raw_nonzero().get());
        self.worker = Some(worker);
        self.write_facts();
        Ok(())
    }

    /// The same where mounts depend on it: a lack of memory or processes may pass.
    fn start_worker_again(&mut self) {
        if let Err(error) = self.start_worker() {
            self.facts.quick_deaths += 1;
            let pause = back_off(self.facts.quick_deaths).max(BACK_OFF);
            tracing::error!(%error, ?pause, "cannot start a worker");
            self.facts.last_exit = Some(LastExit {
                reason: format!("could not be started: {error}"),
                at_ns: now_ns(),
            });
            self.next_start = Instant::now() + pause;
        }
    }

    fn ready(&mut self) {
        self.was_ready = true;
        if let Some(manager) = &self.manager {
            manager.tell(&format!("READY=1\nSTATUS=serving, {} restarts\n", self.facts.restarts));
        }
    }

    /// What to do about a worker's end; an exit code where that is the daemon's.
    fn ended(&mut self, exit: Exit) -> Option<Result<ExitCode, Failure>> {
        self.bury(exit.death);
        let first = self.facts.restarts == 0;
        self.facts.worker = None;
        self.facts.last_exit = Some(LastExit { reason: exit.reason.clone(), at_ns: now_ns() });
        let asked = self.drain_until.take().is_some();
        if asked {
            self.facts.reloading = false;
            self.facts.reloads += 1;
            self.estate.flights.forgive();
        }
        let next = if self.stopping { Next::End(ExitCode::SUCCESS) } else { next(&exit, first) };
        match next {
            Next::End(code) => {
                self.write_facts();
                return Some(Ok(code));
            }
            Next::Again => self.next_start = Instant::now(),
            Next::BackOff => {
                let lived = self.started.elapsed();
                let quick = self.facts.quick_deaths;
                self.facts.quick_deaths = match lived < HEALTHY {
                    // No fault of its own, and it had got as far as to answer
                    true if exit.is_killed() && self.was_ready => quick.max(1),
                    true => quick + 1,
                    false => 1,
                };
                let pause = back_off(self.facts.quick_deaths);
                self.next_start = Instant::now() + pause;
                let (reason, restarts) = (&exit.reason, self.facts.restarts + 1);
                tracing::warn!(%reason, restarts, ?pause, "the worker died; starting another");
                if let (Some(manager), false) = (&self.manager, pause.is_zero()) {
                    let pause = pause.as_secs_f32();
                    manager.tell(&format!("STATUS=worker died ({reason}), again in {pause} s\n"));
                }
            }
        }
        self.facts.restarts += 1;
        self.write_facts();
        None
    }

    /// Reads what was under way when a worker ended.
    fn bury(&self, death: Death) {
        for culprit in self.estate.flights.bury(death) {
            tracing::error!(
                "two workers in a row died of one request, which is answered EIO from now on: \
                 {culprit}"
            );
        }
    }

    /// A look at whether the worker gets anywhere.
    fn look(&mut self) {
        let now = Instant::now();
        let Some(worker) = &mut self.worker else { return };
        if self.drain_until.is_some_and(|until| now >= until) {
            self.drain_until = Some(now + DRAIN_LIMIT);
            worker.killed_for = Some("it did not end for a reload");
            worker.signal(Signal::KILL);
        }
        if self.watch.tick().is_none_or(|tick| now - self.looked < tick) {
            return;
        }
        if self.looked < self.started + HEALTHY && now >= self.started + HEALTHY {
            self.estate.flights.absolve();
        }
        self.looked = now;
        let sample = self.estate.flights.sample();
        let running = sample.running.clone();
        let pending = watch::is_pending(self.estate.fuse.as_fd());
        let idle = !pending && running.is_empty();
        // The state of every thread is only of interest where something is asked
        let could_run = idle || watch::could_run(worker.pid());
        if self.watch.look(sample, pending, could_run, now) && worker.killed_for.is_none() {
            let patience = self.options.patience;
            tracing::error!(
                pid = worker.pid().as_raw_nonzero(),
                ?patience,
                pending,
                ?running,
                "the worker gets nowhere: killing it"
            );
            worker.killed_for = Some("it got nowhere");
            worker.signal(Signal::KILL);
        }
    }

    /// A request to end that takes no mount from under anybody, unless somebody insists.
    fn terminate(&mut self, insist: bool) {
        let mounts = Live::scan().on(&self.options.paths).len();
        let managed = self.manager.is_some();
        if mounts > 0 && !managed && !insist {
            tracing::warn!(
                mounts,
                "asked to end by a signal, but there are mounts; the daemon stays (peel daemon \
                 stop ends it)"
            );
            child::remark(
                self.options.background,
                &format!(
                    "{mounts} mounts depend on this daemon, which stays: unmount them, or press \
                     Ctrl-C again within {} s",
                    INSIST.as_secs()
                ),
            );
            return;
        }
        self.keep_mount = mounts > 0 && managed && !insist;
        self.stopping = true;
        if let Some(manager) = &self.manager {
            manager.tell("STOPPING=1\n");
        }
        if let Some(worker) = &self.worker {
            worker.signal(Signal::TERM);
        }
    }

    fn drain(&mut self) {
        self.drain_until = Some(Instant::now() + DRAIN_LIMIT);
        match &self.worker {
            Some(worker) => worker.signal(Signal::TERM),
            None => {
                self.drain_until = None;
                self.facts.reloading = false;
                self.facts.reloads += 1;
            }
        }
    }

    fn asked(&mut self, ask: Ask, asker: Asker) {
        match ask {
            Ask::Status => asker.answer(&self.status()),
            Ask::Reload => match self.prepare_reload() {
                Ok((program, version)) => {
                    asker.answer(&json!({ "version": version, "reloads": self.facts.reloads }));
                    self.reload(program);
                }
                Err(error) => asker.answer(&json!({ "error": error })),
            },
            Ask::End => {
                self.stopping = true;
                if let Some(worker) = &mut self.worker {
                    worker.killed_for = Some("the daemon was ended by force");
                    worker.signal(Signal::KILL);
                }
                asker.answer(&json!({ "ending": true }));
            }
            Ask::Unknown => asker.answer(&json!({ "error": "no such request" })),
        }
    }

    fn prepare_reload(&self) -> Result<(Command, String), String> {
        if self.stopping || self.drain_until.is_some() {
            return Err("the daemon is ending, or being reloaded already".to_owned());
        }
        let program = child::program().map_err(|e| format!("cannot find the program: {e}"))?;
        let version = child::check(&program)?;
        let command = self.options.keeper_command();
        Ok((command.map_err(|e| format!("cannot find the program: {e}"))?, version))
    }

    /// Becomes the program of that name: the process, its descriptors and its children stay.
    fn reload(&mut self, mut command: Command) {
        tracing::info!("reloading");
        self.facts.reloading = true;
        self.write_facts();
        let error = self.hand_on().map_or_else(
            |error| error,
            |stdin| {
                command.stdin(stdin);
                command.exec()
            },
        );
        tracing::error!(%error, "cannot reload; going on as before");
        self.reload_error = Some(error.to_string());
        self.facts.reloading = false;
        self.write_facts();
    }

    /// A socket with the estate in it.
    fn hand_on(&self) -> io::Result<OwnedFd> {
        let (near, far) = super::estate::line()?;
        // Without a worker there is no line to hand on; the reader finds this socket in its place,
        // and nobody at its other end
        let line = self.worker.as_ref().and_then(Worker::line);
        self.estate.send(&near, line)?;
        Ok(far)
    }

    fn status(&self) -> Value {
        let state = match (&self.worker, self.stopping, self.drain_until) {
            (_, true, _) => "stopping",
            (_, _, Some(_)) => "reloading",
            (None, ..) => "backing off",
            (Some(_), ..) if !self.was_ready => "starting",
            (Some(_), ..) => "running",
        };
        let facts = &self.facts;
        let pause = self.next_start.saturating_duration_since(Instant::now());
        json!({
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "worker": self.worker.as_ref().map(|worker| worker.pid().as_raw_nonzero().get()),
            "state": state,
            "restarts": facts.restarts,
            "reloads": facts.reloads,
            "reload_error": self.reload_error,
            "keepers": facts.keepers,
            "quick_deaths": facts.quick_deaths,
            "next_start_ms": self.worker.is_none().then_some(pause.as_millis() as u64),
            "last_exit": facts.last_exit,
            "cleaned": facts.cleaned,
            "managed": facts.managed,
            "barred": self.estate.flights.barred().iter().map(ToString::to_string)
                .collect::<Vec<_>>(),
        })
    }

    fn write_facts(&self) {
        if let Err(error) = self.estate.write(&self.facts) {
            tracing::error!(%error, "cannot write down how the daemon is");
        }
    }

    /// The end of the daemon.
    fn leave(&self) {
        if self.keep_mount {
            tracing::info!("keeper ends; the service manager keeps the mount");
            return;
        }
        start::unmount(&self.options.paths);
        if let Some(manager) = &self.manager {
            manager.forget(&self.estate);
        }
        tracing::info!("keeper ends");
        for socket in [self.options.paths.socket(), self.options.paths.keeper_socket()] {
            // They are made anew at the next start whether or not they are here
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// The worker at the other end of a line that it made itself, as it does when its keeper died.
fn worker_at(line: Option<&OwnedFd>) -> Option<Pid> {
    let peer = rustix::net::sockopt::socket_peercred(line?).ok()?.pid;
    (peer != rustix::process::getpid()).then_some(peer)
}

/// Whether the process is a worker of ours, as far as its arguments say.
fn is_worker(pid: Pid) -> bool {
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    let line = std::fs::read(path).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| pair == [&b"daemon"[..], b"worker"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_is_taken_for_one() {
        assert!(!is_worker(rustix::process::getpid()));
    }
}
