//! How fast snapshots and scrubs may go.

use std::time::Duration;

use crate::clock::Clock;

/// How fast a snapshot is written or sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// 0: as fast as it goes.
    pub(crate) bytes_per_second: u64,
    /// Bytes that may go at once now; below zero: they have gone already.
    credit: i64,
    at_us: u64,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            credit: 0,
            at_us: 0,
        }
    }

    /// Notes that `bytes` go now. Returns for how many microseconds nothing more should.
    pub(crate) fn spend(&mut self, now_us: u64, bytes: u64) -> u64 {
        if self.bytes_per_second == 0 {
            return 0;
        }
        let rate = self.bytes_per_second as i128;
        let earned = now_us.saturating_sub(self.at_us) as i128 * rate / 1_000_000;
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        // Not more than a fiftieth of a second may be saved up.
        let most = (self.bytes_per_second / 50).max(1) as i64;
        self.credit = (self.credit.saturating_add(earned)).min(most) - bytes as i64;
        self.at_us = now_us;
        if self.credit >= 0 {
            0
        } else {
            (-i128::from(self.credit) * 1_000_000 / rate) as u64
        }
    }

    /// The same, on a thread that can wait.
    pub(super) fn wait(&mut self, clock: &Clock, bytes: u64) {
        let pause_us = self.spend(clock.now_us(), bytes);
        if pause_us > 0 && clock.is_real() {
            std::thread::sleep(Duration::from_micros(pause_us));
        }
    }
}
