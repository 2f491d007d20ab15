//! Whether to try again, and when: stateless, so that a table can test it.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, SystemTime},
};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::{RegistryError, RegistryOptions};

/// Longest wait between two tries. Registries that ask for more are taken at their word, and the
/// request fails now rather than leave a user without an answer.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What was tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tried {
    /// How often, without progress.
    pub(super) times: u32,
    /// Whether the other side has answered before: then it may come back.
    pub(super) begun: bool,
}

/// How long to wait before the next try, the last one having ended with `error`; `None` gives up.
/// `jitter` is in 0..1 and keeps many clients from coming back at once.
pub(super) fn wait(
    error: &RegistryError,
    tried: Tried,
    options: &RegistryOptions,
    jitter: f64,
) -> Option<Duration> {
    let asked_for = match error {
        RegistryError::Interrupted { .. }
        | RegistryError::Timeout { .. }
        | RegistryError::Ended { .. } => None,
        // A wrong port or name is told at once
        RegistryError::Unreachable { refused, .. } if !*refused || tried.begun => None,
        RegistryError::RateLimited { retry_after, .. } => *retry_after,
        RegistryError::Status { status: 408 | 500 | 502 | 503 | 504, retry_after, .. } => {
            *retry_after
        }
        RegistryError::Mirrored { last, .. } => return wait(last, tried, options, jitter),
        _ => return None,
    };
    if tried.times >= options.attempts {
        return None;
    }
    let doubled = options.backoff.saturating_mul(1 << tried.times.saturating_sub(1).min(16));
    let own = doubled.min(MAX_WAIT).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    let wait = own.max(asked_for.unwrap_or_default());
    (wait <= MAX_WAIT).then_some(wait)
}

/// What a Retry-After header asks for, in seconds or as a date; one that has passed is no wait.
///
/// Source: RFC 9110, section 10.2.3.
pub(super) fn after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// A random number in 0..1, good enough to spread clients.
pub(super) fn jitter() -> f64 {
    // The standard library's hash maps are seeded at random
    let random = RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use peel_index::Digest;

    fn status(status: u16, retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Status { url: String::new(), status, retry_after, detail: String::new() }
    }

    fn limited(retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::RateLimited { host: String::new(), retry_after, detail: String::new() }
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        let options = RegistryOptions { attempts: 4, ..RegistryOptions::default() };
        let not_found = RegistryError::NotFound {
            repository: String::new(),
            missing: super::super::Missing::Manifest,
            name: String::new(),
        };
        let refused =
            RegistryError::Unauthorised { repository: String::new(), detail: String::new() };
        let digest = Digest::sha256(b"");
        let damaged = RegistryError::Digest {
            what: String::new(),
            expected: digest.into(),
            found: digest.into(),
        };
        let short = RegistryError::Length { what: String::new(), expected: 2, found: 1 };
        let ended = || RegistryError::Ended { what: String::new(), expected: 2, found: 1 };
        let mirrored = |last| RegistryError::Mirrored { last: Box::new(last), others: Vec::new() };
        // error, tries so far, milliseconds at jitter 0 and 1
        let table = [
            (status(500, None), 1, Some((250, 500))),
            (status(502, None), 2, Some((500, 1_000))),
            (status(503, None), 3, Some((1_000, 2_000))),
            (status(503, Some(7)), 1, Some((7_000, 7_000))),
            (status(504, None), 4, None),
            (status(408, None), 1, Some((250, 500))),
            (limited(None), 1, Some((250, 500))),
            (limited(Some(0)), 1, Some((250, 500))),
            (limited(Some(60)), 1, Some((60_000, 60_000))),
            (limited(Some(61)), 1, None),
            (limited(Some(u64::MAX)), 1, None),
            (status(501, None), 1, None),
            (status(400, None), 1, None),
            (status(206, None), 1, None),
            (not_found, 1, None),
            (refused, 1, None),
            (damaged, 1, None),
            (short, 1, None),
            (ended(), 1, Some((250, 500))),
            (ended(), 4, None),
            (mirrored(status(503, Some(7))), 1, Some((7_000, 7_000))),
            (mirrored(status(404, None)), 1, None),
        ];
        for (error, tried, expected) in table {
            let times = Tried { times: tried, begun: false };
            let found = [0.0, 1.0].map(|jitter| wait(&error, times, &options, jitter));
            let expected = match expected {
                Some((least, most)) => [least, most].map(|ms| Some(Duration::from_millis(ms))),
                None => [None, None],
            };
            assert_eq!(found, expected, "{error} after {tried}");
        }
        let patient = RegistryOptions { attempts: u32::MAX, ..options };
        let often = Tried { times: u32::MAX - 1, begun: true };
        assert_eq!(wait(&limited(None), often, &patient, 1.0), Some(MAX_WAIT));
    }

    #[test]
    fn retry_after_is_read() {
        let table = [("7", Some(7)), (" 0 ", Some(0)), ("-1", None), ("soon", None)];
        for (text, expected) in table {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(after(&headers), expected.map(Duration::from_secs), "{text}");
        }
        assert_eq!(after(&HeaderMap::new()), None);
        let date = |when| {
            let text = httpdate::fmt_http_date(when);
            after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())])).unwrap()
        };
        let found = date(SystemTime::now() + Duration::from_secs(30));
        assert!((28..=30).contains(&found.as_secs()), "{found:?}");
        assert_eq!(date(SystemTime::UNIX_EPOCH), Duration::ZERO);
    }

    #[test]
    fn jitter_is_spread_over_its_range() {
        let numbers: Vec<f64> = (0..200).map(|_| jitter()).collect();
        assert!(numbers.iter().all(|n| (0.0..1.0).contains(n)));
        assert!(numbers.iter().any(|n| *n < 0.25) && numbers.iter().any(|n| *n > 0.75));
    }
}
