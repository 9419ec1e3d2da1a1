//! A peer: where it is, what waits for it, when to dial it again.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::conns::Key;
use crate::event::Stats;
use crate::names::Place;
use crate::outbox::Outbox;

/// Warnings about one peer, or about strangers, come no closer than this.
const WARN_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Peer<B> {
    pub(crate) id: u64,
    pub(crate) place: Place,
    /// Its connection, up or on the way to it.
    pub(crate) conn: Option<Key>,
    /// The connection is up: frames may be queued.
    pub(crate) up: bool,
    /// Without a connection: when to dial. `None` while its name is looked up for that.
    pub(crate) dial_at: Option<Instant>,
    pub(crate) backoff: Backoff,
    pub(crate) out: Outbox<B>,
    pub(crate) stats: Stats,
    /// Warnings about it.
    pub(crate) quiet: LogLimiter,
    /// Words that it is connected: it may come up and be lost again all the time.
    pub(crate) quiet_ups: LogLimiter,
}

impl<B: AsRef<[u8]>> Peer<B> {
    pub(crate) fn new(id: u64, place: Place, dial_at: Instant, config: &Config) -> Self {
        Self {
            id,
            place,
            conn: None,
            up: false,
            dial_at: Some(dial_at),
            backoff: Backoff::default(),
            out: Outbox::new(
                config.small_queue_bytes,
                config.bulk_queue_bytes,
                config.bulk_queue_frames,
            ),
            stats: Stats::default(),
            quiet: LogLimiter::default(),
            quiet_ups: LogLimiter::default(),
        }
    }
}

/// How often a dial has failed in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause before the next dial: doubles each time, and is between half and all of that at
    /// random.
    pub(crate) fn next(&mut self, config: &Config, random: &mut Random) -> Duration {
        let doubled = config
            .backoff_min
            .saturating_mul(1 << self.failures.min(20));
        self.failures += 1;
        let pause = doubled.min(config.backoff_max);
        let half = pause / 2;
        half + half.mul_f64(random.fraction())
    }

    /// The longest pause from now on: what is wrong will not be right in a moment.
    pub(crate) fn raise(&mut self) {
        self.failures = self.failures.max(20);
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Lets a warning through now and then, and counts the others.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    last: Option<Instant>,
    suppressed: u64,
    #[cfg(test)]
    pub(crate) passed: u64,
}

impl LogLimiter {
    /// `Some(n)`: warn now; `n` were not shown since the last.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + WARN_EVERY) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        #[cfg(test)]
        {
            self.passed += 1;
        }
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Numbers that differ from seed to seed (SplitMix64, Steele et al. 2014); jitter needs no more.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// In `0 .. 1`.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_vary() {
        let config = Config::new(1, 1, 1);
        let (mut backoff, mut random) = (Backoff::default(), Random(7));
        for doubled in [10, 20, 40, 80, 160, 320, 500, 500, 500] {
            let (pause, whole) = (
                backoff.next(&config, &mut random),
                Duration::from_millis(doubled),
            );
            assert!(
                whole / 2 <= pause && pause < whole,
                "{pause:?} of {whole:?}"
            );
        }
        let pauses: Vec<_> = (0..10)
            .map(|_| backoff.next(&config, &mut random))
            .collect();
        assert!(
            pauses.windows(2).all(|pair| pair[0] != pair[1]),
            "{pauses:?}"
        );
        backoff.reset();
        assert!(backoff.next(&config, &mut random) < config.backoff_min);
        backoff.raise();
        for _ in 0..100 {
            assert!(
                backoff.next(&config, &mut random) >= config.backoff_max / 2,
                "never overflows"
            );
        }
    }

    #[test]
    fn warnings_come_now_and_then_with_the_number_of_the_others() {
        let (mut quiet, start) = (LogLimiter::default(), Instant::now());
        assert_eq!(quiet.pass(start), Some(0));
        assert_eq!(quiet.pass(start), None);
        assert_eq!(quiet.pass(start + WARN_EVERY / 2), None);
        assert_eq!(quiet.pass(start + WARN_EVERY), Some(2));
    }
}
