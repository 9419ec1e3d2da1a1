//! How long flushes took.

use std::time::Duration;

/// Flushes since the log was opened. The buckets double: bucket `i` counts flushes of less than
/// `2^i` µs and not less than half of it; the last one takes all longer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushStats {
    /// Flushes that ended.
    pub count: u64,
    /// Time from the start of the last one until its end was seen.
    pub last: Duration,
    /// The longest.
    pub max: Duration,
    /// All together.
    pub sum: Duration,
    /// Counts by duration.
    pub buckets: [u64; 24],
}

impl FlushStats {
    pub(crate) const NONE: FlushStats = FlushStats {
        count: 0,
        last: Duration::ZERO,
        max: Duration::ZERO,
        sum: Duration::ZERO,
        buckets: [0; 24],
    };

    pub(crate) fn note(&mut self, took: Duration) {
        self.count += 1;
        self.last = took;
        self.max = self.max.max(took);
        self.sum += took;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.buckets[bucket.min(self.buckets.len() - 1)] += 1;
    }

    /// A duration which `share` (0.0 to 1.0) of the flushes did not exceed, rounded up to a power of
    /// two µs; zero before the first flush.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_micros(1 << bucket).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut stats = FlushStats::NONE;
        assert_eq!(stats.quantile(0.5), Duration::ZERO);
        for micros in [0, 80, 90, 100, 5000] {
            stats.note(Duration::from_micros(micros));
        }
        assert_eq!(stats.quantile(0.5), Duration::from_micros(128));
        assert_eq!(stats.quantile(1.0), Duration::from_micros(5000));
        assert_eq!((stats.count, stats.last), (5, Duration::from_micros(5000)));
        stats.note(Duration::from_secs(3600));
        assert_eq!(stats.buckets[23], 1);
    }
}
