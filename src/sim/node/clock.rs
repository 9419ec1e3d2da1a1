//! What time a simulated node believes it is.
//!
//! The world has one true time; each node sees it through a clock of its own, whose monotonic side runs too fast or
//! too slow, and whose wall clock may be set to anything at any moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Parts per million of a clock that is right.
pub(crate) const TRUE_RATE: u64 = 1_000_000;

/// The epoch of the wall clock at the true time 0, in microseconds since 1970: some day in 2020.
const WALL_EPOCH_US: i64 = 1_600_000_000_000_000;

/// A node's clocks. Clones are the same clocks.
#[derive(Clone, Debug)]
pub(crate) struct NodeClock(Arc<Hands>);

#[derive(Debug)]
struct Hands {
    /// The true time, in microseconds, as it was told last.
    true_us: AtomicU64,
    /// The true time at which this life of the node began: its own time 0.
    start_us: u64,
    /// Own microseconds per million true ones.
    rate_ppm: u64,
    /// How far the wall clock is off.
    wall_offset_us: AtomicI64,
}

impl NodeClock {
    pub(crate) fn new(true_us: u64, rate_ppm: u64, wall_offset_us: i64) -> Self {
        Self(Arc::new(Hands {
            true_us: AtomicU64::new(true_us),
            start_us: true_us,
            rate_ppm,
            wall_offset_us: AtomicI64::new(wall_offset_us),
        }))
    }

    /// The true time is this now.
    pub(crate) fn set(&self, true_us: u64) {
        self.0.true_us.store(true_us, Ordering::Relaxed);
    }

    /// Sets the wall clock; the monotonic one does not notice.
    pub(crate) fn jump(&self, wall_offset_us: i64) {
        self.0
            .wall_offset_us
            .store(wall_offset_us, Ordering::Relaxed);
    }

    pub(crate) fn now_us(&self) -> u64 {
        let hands = &*self.0;
        let since = hands.true_us.load(Ordering::Relaxed) - hands.start_us;
        since * hands.rate_ppm / TRUE_RATE
    }

    pub(crate) fn unix_us(&self) -> u64 {
        let hands = &*self.0;
        let true_us = hands.true_us.load(Ordering::Relaxed) as i64;
        let wall = WALL_EPOCH_US + true_us + hands.wall_offset_us.load(Ordering::Relaxed);
        wall.max(0) as u64
    }

    /// The true time at which the node's own clock will show `own_us`.
    pub(crate) fn true_time_of(&self, own_us: u64) -> u64 {
        let hands = &*self.0;
        let since = u128::from(own_us) * u128::from(TRUE_RATE);
        let since = since.div_ceil(u128::from(hands.rate_ppm));
        hands
            .start_us
            .saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_clock_reaches_its_deadline_at_the_true_time_it_names() {
        for rate in [700_000, 999_999, 1_000_000, 1_300_001] {
            let clock = NodeClock::new(500, rate, 0);
            for own in [0, 1, 7, 1_000_003] {
                let at = clock.true_time_of(own);
                clock.set(at);
                assert!(clock.now_us() >= own, "rate {rate}: too early for {own}");
                clock.set(at.saturating_sub(2).max(500));
                assert!(own == 0 || clock.now_us() <= own);
            }
        }
    }

    #[test]
    fn the_wall_clock_jumps_and_the_monotonic_one_does_not() {
        let clock = NodeClock::new(0, TRUE_RATE, 0);
        clock.set(10);
        let before = clock.unix_us();
        clock.jump(-5_000_000);
        assert_eq!(clock.unix_us(), before - 5_000_000);
        assert_eq!(clock.now_us(), 10);
    }
}
