//! A limit on the bytes a second, shared by all transfers.
//!
//! Locking: one mutex over an instant, never held across an await.

use std::{
    num::NonZeroU64,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How far the transfers may run ahead of the limit: what a quiet line saves up.
const BURST: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Bytes a second; none is no limit.
    rate: Option<NonZeroU64>,
    /// When everything taken so far is paid for.
    paid: Mutex<Instant>,
}

impl Limiter {
    pub(super) fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, paid: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more fit the limit.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let due = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            *paid = (*paid).max(earliest) + cost;
            *paid
        };
        tokio::time::sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rate_is_kept_whoever_takes() {
        let limiter = Limiter::new(NonZeroU64::new(1_000_000));
        let begun = Instant::now();
        // 400 kB at 1 MB/s, less the burst
        let take = async || {
            for _ in 0..20 {
                limiter.take(10_000).await;
            }
        };
        tokio::join!(take(), take());
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(290), "{took:?}");
        let free = Limiter::new(None);
        let begun = Instant::now();
        free.take(usize::MAX).await;
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}
