//! Counts of durations in buckets whose width grows with the duration.
//!
//! ```text
//! 0 ..256 ns | 8 buckets from 256 to 512 ns | 8 from 512 ns to 1 us | … | 8 up to 34 s and beyond
//! ```

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets from one power of two to the next, as a power of two.
const STEPS_LOG2: u32 = 3;
const STEPS: usize = 1 << STEPS_LOG2;
/// Everything below 2 to this is one bucket: 256 ns, less than any answer takes.
const FIRST_LOG2: u32 = 8;
/// Everything from 2 to this on is in the last bucket: 34 s, longer than any caller waits.
const END_LOG2: u32 = 35;
const BUCKETS: usize = 1 + (END_LOG2 - FIRST_LOG2) as usize * STEPS;

/// By how much of itself a quantile can be overstated: the width of a bucket over its start.
pub const RELATIVE_ERROR: f64 = 1.0 / STEPS as f64;

/// Counters of durations in nanoseconds.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

fn bucket_of(value: u64) -> usize {
    let log2 = value.checked_ilog2().unwrap_or(0);
    if log2 < FIRST_LOG2 {
        return 0;
    }
    let step = (value >> (log2 - STEPS_LOG2)) as usize - STEPS;
    (1 + (log2 - FIRST_LOG2) as usize * STEPS + step).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(1) else { return (1 << FIRST_LOG2) - 1 };
    let (power, step) = (above / STEPS, above % STEPS);
    (((STEPS + step + 1) as u64) << (power as u32 + FIRST_LOG2 - STEPS_LOG2)) - 1
}

impl Histogram {
    pub(super) fn add(&self, value: u64) {
        self.buckets[bucket_of(value)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
        // Hardly ever true, and a load is cheaper than a write
        if value > self.max.load(Relaxed) {
            self.max.fetch_max(value, Relaxed);
        }
    }

    pub(super) fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Distribution {
        let (mut counts, mut sum, mut max) = ([0_u64; BUCKETS], 0_u64, 0);
        for histogram in all {
            for (count, bucket) in counts.iter_mut().zip(&histogram.buckets) {
                *count += bucket.load(Relaxed);
            }
            sum = sum.wrapping_add(histogram.sum.load(Relaxed));
            max = max.max(histogram.max.load(Relaxed));
        }
        let filled = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        let buckets = filled.map(|(bucket, count)| (upper_bound(bucket), count)).collect();
        Distribution { buckets, sum, max }
    }
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Buckets that are not empty, in order: the largest value that belongs there, and how many
    /// values do. The last bucket takes what is larger too.
    pub buckets: Vec<(u64, u64)>,
    /// Sum of all values.
    pub sum: u64,
    /// The largest value.
    pub max: u64,
}

impl Distribution {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The value that this share of all values (0 to 1) does not exceed; overstated by at most
    /// [`RELATIVE_ERROR`]. `None` where there are no values.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let rank = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let mut found = self.buckets.iter().filter(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.next().map(|(upper, _)| (*upper).min(self.max))
    }

    /// What came since `earlier`, a state of the same histogram. The largest value is then known
    /// as well as any other: to the width of its bucket.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |upper: u64| {
            let found = earlier.buckets.iter().find(|(other, _)| *other == upper);
            found.map_or(0, |(_, count)| *count)
        };
        let buckets =
            self.buckets.iter().map(|(upper, n)| (*upper, n.saturating_sub(before(*upper))));
        let buckets: Vec<_> = buckets.filter(|(_, count)| *count > 0).collect();
        let max = buckets.last().map_or(0, |(upper, _)| (*upper).min(self.max));
        Self { buckets, sum: self.sum.saturating_sub(earlier.sum), max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_its_bucket() {
        let mut last = 0;
        for log2 in 0..64 {
            for value in
                [1_u64 << log2, (1 << log2) + (1 << log2) / 3, (2_u64 << log2).wrapping_sub(1)]
            {
                let bucket = bucket_of(value);
                assert!(bucket >= last, "{value}");
                last = bucket;
                if bucket < BUCKETS - 1 {
                    let upper = upper_bound(bucket);
                    assert!(value <= upper, "{value} in {bucket}");
                    let over = (upper - value) as f64 / value as f64;
                    assert!(bucket == 0 || over <= RELATIVE_ERROR, "{value} in {bucket}");
                }
            }
        }
        assert_eq!((bucket_of(0), bucket_of(255), bucket_of(256)), (0, 0, 1));
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for bucket in 1..BUCKETS {
            assert_eq!(bucket_of(upper_bound(bucket)), bucket);
            assert_eq!(bucket_of(upper_bound(bucket - 1) + 1), bucket);
        }
    }

    fn of(values: impl IntoIterator<Item = u64>) -> Distribution {
        let histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.add(value));
        Histogram::sum([&histogram].into_iter())
    }

    #[test]
    fn quantiles() {
        let all = of((1..=1000).map(|n| n * 1000));
        assert_eq!((all.count(), all.sum, all.max), (1000, 500_500_000, 1_000_000));
        for (share, exact) in [(0.5, 500_000), (0.9, 900_000), (0.99, 990_000)] {
            let found = all.quantile(share).expect("values");
            let over = found as f64 / f64::from(exact) - 1.0;
            assert!((0.0..=RELATIVE_ERROR).contains(&over), "{share}: {found}");
        }
        assert_eq!(all.quantile(1.0), Some(1_000_000));
        assert_eq!(of([700]).quantile(0.5), Some(700), "never more than the largest");
        assert_eq!(Distribution::default().quantile(0.5), None);
    }

    #[test]
    fn what_came_since() {
        let histogram = Histogram::default();
        let now = || Histogram::sum([&histogram].into_iter());
        histogram.add(5_000_000);
        let before = now();
        for _ in 0..100 {
            histogram.add(2000);
        }
        let since = now().since(&before);
        assert_eq!((since.count(), since.sum), (100, 200_000));
        assert!((2000..=2250).contains(&since.max), "{since:?}");
        assert_eq!(now().since(&now()), Distribution::default());
    }
}
