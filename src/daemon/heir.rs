//! The worker's hold on its keeper: notices when that dies, and starts another.
//!
//! The worker serves on meanwhile. Where a service manager watches the keeper, nothing is started:
//! the manager ends what is left of the service and starts it again with what it has kept.
//!
//! Locking: one mutex over the line, held for a look-up only.

use std::{
    io,
    os::fd::OwnedFd,
    process::Child,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    estate::{self, Estate, Facts, Heard, Word},
    keeper,
};

/// Pause after a keeper that could not be started or died; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The keeper as its worker knows it.
pub(super) struct Keeper {
    pid: AtomicU32,
    line: Mutex<Arc<OwnedFd>>,
}

impl Keeper {
    /// The keeper at the other end of `line`, watched from now on.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(super) fn watch(
        options: keeper::Options,
        estate: Estate,
        facts: &Facts,
        line: OwnedFd,
    ) -> io::Result<Arc<Self>> {
        let peer = rustix::net::sockopt::socket_peercred(&line)?;
        let keeper = Arc::new(Self {
            pid: AtomicU32::new(peer.pid.as_raw_nonzero().get().unsigned_abs()),
            line: Mutex::new(Arc::new(line)),
        });
        let (watched, managed) = (Arc::clone(&keeper), facts.managed);
        let watch = move || watched.replace_when_gone(&options, &estate, managed);
        thread::Builder::new().name("keeper".to_owned()).spawn(watch)?;
        Ok(keeper)
    }

    /// Process id of the keeper.
    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub(super) fn tell(&self, word: Word) {
        word.say(&*self.line());
    }

    fn line(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.line.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace_when_gone(&self, options: &keeper::Options, estate: &Estate, managed: bool) {
        let mut pause = PAUSE;
        let mut child: Option<Child> = None;
        loop {
            let line = self.line();
            while estate::hear(&*line, true) != Heard::End {}
            if managed {
                tracing::error!("the keeper died; the service manager starts the daemon again");
                return;
            }
            if let Some(mut child) = child.take() {
                // The one before this was started here, and so is reaped here
                let status = child.wait();
                tracing::error!(?status, "a keeper that was started in place of one died");
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
            tracing::warn!("the keeper died; starting another");
            match start(options, estate) {
                Ok((started, line)) => {
                    self.pid.store(started.id(), Ordering::Relaxed);
                    *self.line.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(line);
                    child = Some(started);
                    // It cannot know that its worker was ready long ago
                    self.tell(Word::Ready);
                }
                Err(error) => {
                    tracing::error!(%error, "cannot start a keeper");
                    thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }
}

fn start(options: &keeper::Options, estate: &Estate) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = estate::line()?;
    estate.send(&ours, None)?;
    let child = options.keeper_command()?.stdin(theirs).spawn()?;
    Ok((child, ours))
}
