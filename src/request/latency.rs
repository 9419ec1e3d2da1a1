//! Where the time of a request goes.
//!
//! One command at a time is followed, on the node that was asked for it and leads: it is stamped as it passes a hop, and
//! when its caller has the answer, the times between stamps go into histograms. For all others a hop is one comparison,
//! and that once per poll. Own flush and first acknowledgement run side by side; whichever comes second does not hold
//! the commit up (with three nodes), so each is counted from the write on.
//!
//! ```text
//!  proposed ─ queue ─▶ sequenced ─ write ─▶ written ┬─ flush ─▶ own disk     ┬─▶ committed ─ apply ─▶ applied ─ answer ─▶
//!                          │                        └─ peers ─▶ first answer ┘       │
//!                          └────────────────────────────── commit ───────────────────┘
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::Clock;
use crate::status::HopStatus;

/// Where a command has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    Proposed,
    Sequenced,
    Written,
    Flushed,
    Acknowledged,
    Committed,
    Applied,
}

const STAMPS: usize = 7;

/// The times that are told: a name, and between which stamps (`None`: the answer).
const HOPS: [(&str, Stamp, Option<Stamp>); 8] = [
    ("queue", Stamp::Proposed, Some(Stamp::Sequenced)),
    ("write", Stamp::Sequenced, Some(Stamp::Written)),
    ("flush", Stamp::Written, Some(Stamp::Flushed)),
    ("peers", Stamp::Written, Some(Stamp::Acknowledged)),
    ("commit", Stamp::Sequenced, Some(Stamp::Committed)),
    ("apply", Stamp::Committed, Some(Stamp::Applied)),
    ("answer", Stamp::Applied, None),
    ("total", Stamp::Proposed, None),
];

/// What is told is at least so old, and at most twice that.
const WINDOW_US: u64 = 10_000_000;
/// A command that was followed for so long is given up: it was refused, or nobody takes its answer.
const GIVE_UP_US: u64 = 2_000_000;
/// Longer times count as this one.
const LONGEST_US: u64 = 60_000_000;

#[derive(Debug)]
pub(crate) struct Hops {
    clock: Clock,
    /// The index of the command that is followed; 0: none is.
    index: AtomicU64,
    token: AtomicU64,
    stamps: [AtomicU64; STAMPS],
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    since_us: u64,
    now: [Histogram<u64>; HOPS.len()],
    before: [Histogram<u64>; HOPS.len()],
}

impl Hops {
    pub(crate) fn new(clock: Clock) -> Self {
        let empty = || {
            std::array::from_fn(|_| {
                Histogram::new_with_bounds(1, LONGEST_US, 2).expect("sound bounds")
            })
        };
        Self {
            clock,
            index: AtomicU64::new(0),
            token: AtomicU64::new(0),
            stamps: std::array::from_fn(|_| AtomicU64::new(0)),
            times: Mutex::new(Times {
                since_us: 0,
                now: empty(),
                before: empty(),
            }),
        }
    }

    fn stamp(&self, stamp: Stamp) -> &AtomicU64 {
        &self.stamps[stamp as usize]
    }

    /// Whether the next command is to be followed.
    pub(crate) fn is_free(&self, now_us: u64) -> bool {
        self.index.load(Ordering::Acquire) == 0
            || now_us >= self.stamp(Stamp::Sequenced).load(Ordering::Relaxed) + GIVE_UP_US
    }

    /// Follows a command from here on. Called by the consensus stage alone.
    pub(crate) fn begin(&self, token: u64, index: u64, proposed_us: u64, now_us: u64) {
        self.index.store(0, Ordering::Relaxed);
        for stamp in &self.stamps {
            stamp.store(0, Ordering::Relaxed);
        }
        self.stamp(Stamp::Proposed)
            .store(proposed_us.max(1), Ordering::Relaxed);
        self.stamp(Stamp::Sequenced)
            .store(now_us.max(1), Ordering::Relaxed);
        self.token.store(token, Ordering::Relaxed);
        self.index.store(index, Ordering::Release);
    }

    /// Everything up to `upto` has come to `stamp`.
    #[inline]
    pub(crate) fn pass(&self, stamp: Stamp, upto: u64) {
        self.pass_at(stamp, upto, || self.clock.now_us());
    }

    #[inline]
    fn pass_at(&self, stamp: Stamp, upto: u64, now_us: impl FnOnce() -> u64) {
        let index = self.index.load(Ordering::Acquire);
        if index != 0 && index <= upto && self.stamp(stamp).load(Ordering::Relaxed) == 0 {
            self.stamp(stamp).store(now_us().max(1), Ordering::Relaxed);
        }
    }

    /// The caller has the answer to the request with this token.
    #[inline]
    pub(crate) fn answered(&self, token: u64) {
        if self.token.load(Ordering::Relaxed) == token && self.index.load(Ordering::Acquire) != 0 {
            self.end(self.clock.now_us());
        }
    }

    #[cold]
    fn end(&self, now_us: u64) {
        let at = |stamp: Stamp| self.stamp(stamp).load(Ordering::Relaxed);
        // Whoever looks at the times does not hold up an answer.
        if let Ok(mut times) = self.times.try_lock() {
            times.turn(now_us);
            for ((_, from, to), histogram) in HOPS.iter().zip(&mut times.now) {
                let (from, to) = (at(*from), to.map_or(now_us, at));
                // A hop that has not been passed yet: a flush that came after its quorum, an answer that was taken
                // before the apply stage said that it had applied it.
                if from != 0 && to != 0 {
                    histogram.saturating_record(to.saturating_sub(from).clamp(1, LONGEST_US));
                }
            }
        }
        self.index.store(0, Ordering::Release);
    }

    /// The times of the last seconds.
    pub(crate) fn status(&self) -> Vec<HopStatus> {
        self.status_at(self.clock.now_us())
    }

    fn status_at(&self, now_us: u64) -> Vec<HopStatus> {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.turn(now_us);
        let Times { now, before, .. } = &*times;
        let both = HOPS.iter().zip(now).zip(before);
        both.map(|(((name, ..), now), before)| {
            let mut all = now.clone();
            let added = all.add(before);
            assert!(added.is_ok(), "the histograms have the same bounds");
            let at = |quantile| Duration::from_micros(all.value_at_quantile(quantile));
            HopStatus {
                name,
                count: all.len(),
                p50: at(0.5),
                p99: at(0.99),
                max: Duration::from_micros(all.max()),
            }
        })
        .collect()
    }
}

impl Times {
    /// Forgets what is too old.
    fn turn(&mut self, now_us: u64) {
        let age_us = now_us.saturating_sub(self.since_us);
        if age_us < WINDOW_US {
            return;
        }
        std::mem::swap(&mut self.now, &mut self.before);
        for histogram in &mut self.now {
            histogram.reset();
        }
        if age_us >= 2 * WINDOW_US {
            for histogram in &mut self.before {
                histogram.reset();
            }
        }
        self.since_us = now_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p50_us(hops: &Hops, now_us: u64) -> Vec<(&'static str, u64, u128)> {
        let status = hops.status_at(now_us);
        let told = status.iter().filter(|hop| hop.count > 0);
        told.map(|hop| (hop.name, hop.count, hop.p50.as_micros()))
            .collect()
    }

    #[test]
    fn a_command_is_followed_from_the_call_to_the_answer() {
        let hops = Hops::new(Clock::system());
        assert!(hops.is_free(0));
        hops.begin(7, 40, 100, 110);
        assert!(!hops.is_free(200));
        for (stamp, upto, at) in [
            (Stamp::Written, 39, 111), // Not yet.
            (Stamp::Written, 41, 115),
            (Stamp::Written, 50, 119), // It had been.
            (Stamp::Acknowledged, 41, 145),
            (Stamp::Committed, 41, 146),
            (Stamp::Applied, 41, 150),
        ] {
            hops.pass_at(stamp, upto, || at);
        }
        hops.answered(8);
        assert!(!hops.is_free(200), "that was another one");
        hops.end(160);
        assert!(hops.is_free(160));
        // Its own flush was not waited for.
        let expected = [
            ("queue", 1, 10),
            ("write", 1, 5),
            ("peers", 1, 30),
            ("commit", 1, 36),
            ("apply", 1, 4),
            ("answer", 1, 10),
            ("total", 1, 60),
        ];
        assert_eq!(p50_us(&hops, 161), expected);
        hops.answered(7);
        assert_eq!(p50_us(&hops, 171), expected, "it counts once");
    }

    #[test]
    fn old_times_are_forgotten_and_lost_commands_given_up() {
        let hops = Hops::new(Clock::system());
        let follow = |at: u64| {
            hops.begin(at, 1, at, at);
            hops.end(at + 50);
        };
        follow(1000);
        let total = |now_us| hops.status_at(now_us).pop().map_or(0, |hop| hop.count);
        assert_eq!(total(2000), 1);
        follow(WINDOW_US + 2000);
        assert_eq!(total(WINDOW_US + 3000), 2);
        assert_eq!(total(2 * WINDOW_US + 4000), 1);
        assert_eq!(total(5 * WINDOW_US), 0);

        hops.begin(1, 9, 0, 1);
        assert!(!hops.is_free(GIVE_UP_US));
        assert!(hops.is_free(GIVE_UP_US + 1));
    }
}
