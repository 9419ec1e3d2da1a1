//! Log time: the stamp that a leader gives to an entry.
//!
//! State machines measure by log time - sessions expire by it - so a wall clock that is wrong for a moment must neither
//! stop log time nor make it leap. Invariants, while a process runs and has a reference:
//!
//! - a stamp is never less than the one before it, in the whole log;
//! - between two stamps log time advances by one half to three halves of what the monotonic clock advances.
//!
//! Within these bounds log time follows the leader's wall clock. When the two differ, log time approaches the wall clock at
//! half or at one and a half times the speed of time, and the node logs a warning.
//!
//! The reference is the newest stamp that is known, and the moment at which it was learned. A process that has learned no
//! stamp since its start has none: its first stamp is its wall clock, if that is not behind the log. So after the whole
//! cluster was down, the first leader's wall clock counts.

use std::time::Duration;

use crate::types::NodeId;

/// A difference between log time and the wall clock that is logged.
const WARN_ABOVE: Duration = Duration::from_secs(60);
/// How long one reference serves. Longer steps lose nothing to rounding.
const REFERENCE_US: u64 = 1_000_000;

#[derive(Debug)]
pub(crate) struct LogClock {
    node: NodeId,
    /// The newest stamp.
    last_us: u64,
    /// A stamp, and the monotonic time at which it was the newest.
    reference: Option<Reference>,
    /// The last warning has not been taken back.
    warned: bool,
}

#[derive(Clone, Copy, Debug)]
struct Reference {
    stamp_us: u64,
    at_us: u64,
}

impl LogClock {
    /// Log time was `last_us` when this node stopped, or 0.
    pub(crate) fn new(node: NodeId, last_us: u64) -> Self {
        Self {
            node,
            last_us,
            reference: None,
            warned: false,
        }
    }

    /// Another leader's stamp has come at `now_us`, in an entry or a snapshot.
    pub(crate) fn observe(&mut self, now_us: u64, stamp_us: u64) {
        if stamp_us >= self.last_us {
            self.last_us = stamp_us;
            self.refer(now_us);
        }
    }

    /// The stamp of an entry that is appended at `now_us` on the monotonic clock, `wall_us` on the wall clock.
    pub(crate) fn stamp(&mut self, now_us: u64, wall_us: u64) -> u64 {
        match self.reference {
            None => {
                self.last_us = self.last_us.max(wall_us);
                self.refer(now_us);
            }
            Some(Reference { stamp_us, at_us }) => {
                let elapsed = now_us.saturating_sub(at_us);
                let (least, most) = (elapsed / 2, elapsed.saturating_add(elapsed / 2));
                let (least, most) = (
                    stamp_us.saturating_add(least),
                    stamp_us.saturating_add(most),
                );
                self.last_us = self.last_us.max(wall_us.clamp(least, most));
                if elapsed >= REFERENCE_US {
                    self.refer(now_us);
                }
            }
        }
        self.compare(wall_us);
        self.last_us
    }

    fn refer(&mut self, now_us: u64) {
        self.reference = Some(Reference {
            stamp_us: self.last_us,
            at_us: now_us,
        });
    }

    /// Says once that log time and the wall clock differ, and once that they agree again.
    fn compare(&mut self, wall_us: u64) {
        let difference = Duration::from_micros(self.last_us.abs_diff(wall_us));
        let differs = difference > WARN_ABOVE;
        if differs == self.warned || (self.warned && difference > WARN_ABOVE / 2) {
            return;
        }
        self.warned = differs;
        let (node, log_us) = (self.node.0, self.last_us);
        if differs {
            let side = if log_us > wall_us {
                "ahead of"
            } else {
                "behind"
            };
            tracing::warn!(
                node,
                log_us,
                wall_us,
                "log time is {difference:?} {side} this leader's wall clock and approaches it slowly: this clock, or that of \
                 an earlier leader, is or was wrong; check time synchronization"
            );
        } else {
            tracing::info!(node, "log time and this leader's wall clock agree again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const TEN_YEARS: u64 = 10 * 365 * 86_400 * SECOND;
    /// Some moment of the wall clock, at which the monotonic clock shows 0.
    const EPOCH: u64 = 1_700_000_000 * SECOND;

    fn clock(last_us: u64) -> LogClock {
        LogClock::new(NodeId(1), last_us)
    }

    #[test]
    fn a_right_clock_is_followed_to_the_microsecond() {
        let mut log = clock(EPOCH - 3_600 * SECOND);
        let mut now = 0;
        while now < 10 * SECOND {
            assert_eq!(log.stamp(now, EPOCH + now), EPOCH + now);
            now += 37;
        }
        assert!(!log.warned);
    }

    #[test]
    fn log_time_goes_on_after_a_clock_that_was_ahead_once() {
        // The log was stamped by a clock ten years ahead; this leader's clock is right.
        let mut log = clock(EPOCH + TEN_YEARS);
        let first = log.stamp(0, EPOCH);
        assert_eq!(first, EPOCH + TEN_YEARS, "it does not go back");
        assert!(log.warned);
        // However often entries are stamped: nothing is lost to rounding.
        for step in [1, 3, 1_000, 700_001] {
            let began = log.stamp(0, EPOCH);
            let (mut log, mut now) = (clock(began), 0);
            log.stamp(0, EPOCH);
            while now < 4 * SECOND {
                now += step;
                log.stamp(now, EPOCH + now);
            }
            let advanced = log.last_us - began;
            assert!(
                (now / 2 - 10..=now / 2 + 10).contains(&advanced),
                "in {now} it advanced by {advanced}, with a step of {step}"
            );
        }
    }

    #[test]
    fn a_clock_that_leaps_does_not_take_log_time_along() {
        for leap in [90 * SECOND, TEN_YEARS] {
            let mut log = clock(0);
            log.stamp(0, EPOCH);
            log.stamp(SECOND, EPOCH + SECOND + leap);
            let now = 5 * SECOND;
            let stamp = log.stamp(now, EPOCH + now + leap);
            assert!(stamp <= EPOCH + now + now / 2, "{}", stamp - EPOCH);
            assert!(log.warned);
            // It leaps back: log time is a little ahead then, and waits for it.
            let later = 12 * SECOND;
            assert_eq!(log.stamp(later, EPOCH + later), EPOCH + later);
            assert!(!log.warned);
        }
    }

    #[test]
    fn a_new_leader_with_a_wrong_clock_goes_on_from_the_stamps_of_the_last_one() {
        let mut log = clock(0);
        log.observe(SECOND, EPOCH + SECOND);
        let stamp = log.stamp(3 * SECOND, EPOCH + 3 * SECOND + TEN_YEARS);
        assert_eq!(stamp, EPOCH + 4 * SECOND);
        // A stamp from before it changes nothing.
        log.observe(3 * SECOND, EPOCH);
        assert_eq!(log.stamp(3 * SECOND, EPOCH), stamp);
    }

    #[test]
    fn log_time_and_a_clock_that_is_a_minute_behind_or_ahead_meet_within_two() {
        for ahead in [true, false] {
            let mut log = clock(0);
            let wall = |now: u64| {
                if now == 0 {
                    EPOCH
                } else if ahead {
                    EPOCH + now + 60 * SECOND
                } else {
                    EPOCH + now - 60 * SECOND.min(now)
                }
            };
            let mut last = log.stamp(0, wall(0));
            let mut now = 0;
            while now < 125 * SECOND {
                now += SECOND / 10;
                let stamp = log.stamp(now, wall(now));
                assert!(stamp >= last, "from {last} back to {stamp}");
                last = stamp;
            }
            assert_eq!(last, wall(now), "ahead: {ahead}");
        }
    }

    #[test]
    fn a_clock_at_the_end_of_time_wraps_nothing() {
        let mut log = clock(u64::MAX - 1);
        assert_eq!(log.stamp(0, u64::MAX), u64::MAX);
        assert_eq!(log.stamp(u64::MAX, 0), u64::MAX);
    }
}
