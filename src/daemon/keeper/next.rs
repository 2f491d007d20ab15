//! What follows a worker's end, and when.

use std::{process::ExitCode, time::Duration};

use peel_fuse::flight::Death;

use super::child::Exit;
use crate::daemon::{AGAIN, estate::Word, fatal_class};

/// Pause before the second quick restart; doubles up to [`BACK_OFF_MAX`]. The first has none.
pub(super) const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// What follows a worker's end.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// The daemon ends.
    End(ExitCode),
    /// At once: nothing was wrong.
    Again,
    /// After a pause.
    BackOff,
}

/// What a worker's end means; `first` where none was before it.
pub(super) fn next(exit: &Exit, first: bool) -> Next {
    let code = exit.status.and_then(|status| status.code());
    match (code, exit.said) {
        (Some(0), _) | (None, Some(Word::Stop)) if exit.death == Death::Other => {
            Next::End(ExitCode::SUCCESS)
        }
        (Some(code), _) if code == i32::from(AGAIN) => Next::Again,
        // One that was no child; a signal would have come before the word
        (None, Some(Word::Again)) if exit.status.is_none() => Next::Again,
        // Later ones have mounts to serve, and what stands in their way may pass
        (Some(code), _) if first && let Some(class) = fatal_class(code) => Next::End(class.into()),
        _ => Next::BackOff,
    }
}

/// The pause after that many deaths soon after a start, in a row.
pub(super) fn back_off(quick_deaths: u32) -> Duration {
    match quick_deaths.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => BACK_OFF.saturating_mul(1 << doublings.min(10)).min(BACK_OFF_MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;
    use crate::failure::Class;

    #[test]
    fn quick_deaths_slow_restarts_down() {
        let pauses: Vec<_> = (1..=12).map(back_off).collect();
        assert_eq!(pauses[..3], [Duration::ZERO, BACK_OFF, BACK_OFF * 2]);
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&BACK_OFF_MAX));
    }

    #[test]
    fn what_follows_a_worker() {
        let exit = |status: Option<i32>, said| Exit {
            status: status.map(ExitStatus::from_raw),
            said,
            reason: String::new(),
            death: Death::Other,
        };
        let exited = |code: u8| exit(Some(i32::from(code) << 8), None);
        let end = Next::End(ExitCode::SUCCESS);
        assert_eq!(next(&exited(0), false), end);
        assert_eq!(next(&exited(AGAIN), true), Next::Again);
        assert_eq!(next(&exited(1), true), Next::BackOff);
        let fatal = Next::End(Class::Unavailable.into());
        assert_eq!(next(&exited(crate::daemon::FATAL + 6), true), fatal, "the first cannot start");
        assert_eq!(next(&exited(crate::daemon::FATAL + 6), false), Next::BackOff);
        assert_eq!(next(&exit(Some(9), None), true), Next::BackOff);
        // Killed after it had said that it would end the daemon: mounts are gone, it was done
        assert_eq!(next(&exit(Some(9), Some(Word::Stop)), true), end);
        // Of one that was no child, only its word is known
        assert_eq!(next(&exit(None, Some(Word::Stop)), false), end);
        assert_eq!(next(&exit(None, Some(Word::Again)), false), Next::Again);
        assert_eq!(next(&exit(None, None), false), Next::BackOff);
    }
}
