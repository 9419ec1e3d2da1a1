//! How much of the log is applied at a time, so that a slow state machine keeps nobody waiting but its own callers.
//!
//! While the state machine works its thread does nothing else: no read is answered, and where all stages share that thread
//! (`Threads::Shared`, a driven node) no heartbeat is sent and none is heard. How long a command takes is known only
//! afterwards, so a call covers little at first, and as much more as those before it were fast. What cannot be helped is a
//! single command that takes long: it has the thread until it is done.

/// A call that took less than half of this may cover more, one that took longer covers less. A turn ends when its calls
/// together took that long. It is well below the shortest election timeout.
const CALL_US: u64 = 2_000;
/// What the first call covers at the most.
const FIRST_BYTES: u64 = 4 << 10;
/// What any does (a longer entry goes alone).
const MOST_BYTES: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct ApplyBudget {
    bytes: u64,
    /// When the turn began, and the call that is under way.
    turn_us: u64,
    call_us: u64,
}

impl Default for ApplyBudget {
    fn default() -> Self {
        Self {
            bytes: FIRST_BYTES,
            turn_us: 0,
            call_us: 0,
        }
    }
}

impl ApplyBudget {
    /// A turn begins: other stages of this thread have had theirs.
    pub(crate) fn begin(&mut self, now_us: u64) {
        (self.turn_us, self.call_us) = (now_us, now_us);
    }

    /// What the next call of `StateMachine::apply` covers at the most.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `bytes` were applied by one call, which is over now. Returns whether the turn goes on.
    pub(crate) fn took(&mut self, bytes: u64, now_us: u64) -> bool {
        let us = now_us.saturating_sub(self.call_us);
        self.call_us = now_us;
        if us > CALL_US {
            self.bytes = (bytes.saturating_mul(CALL_US) / us).clamp(1, MOST_BYTES);
        } else if us < CALL_US / 2 && bytes >= self.bytes / 2 {
            self.bytes = (self.bytes * 2).min(MOST_BYTES);
        }
        now_us.saturating_sub(self.turn_us) < CALL_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One call of a turn of its own.
    fn took(budget: &mut ApplyBudget, bytes: u64, us: u64) -> bool {
        budget.begin(7);
        budget.took(bytes, 7_u64.saturating_add(us))
    }

    #[test]
    fn a_fast_machine_soon_gets_as_much_as_there_may_be() {
        let mut budget = ApplyBudget::default();
        for _ in 0..6 {
            let bytes = budget.bytes();
            assert!(took(&mut budget, bytes, 100));
        }
        assert_eq!(budget.bytes(), MOST_BYTES);
        // Small calls say nothing of large ones.
        let mut budget = ApplyBudget::default();
        assert!(took(&mut budget, 72, 1));
        assert_eq!(budget.bytes(), FIRST_BYTES);
    }

    #[test]
    fn a_slow_machine_gets_what_it_can_do_in_time_and_a_single_entry_at_the_least() {
        let mut budget = ApplyBudget::default();
        // 40 commands in 40 ms: two of them fit into a call.
        assert!(!took(&mut budget, 40 * 72, 40_000));
        assert_eq!(budget.bytes(), 2 * 72);
        assert!(!took(&mut budget, 72, u64::MAX));
        assert_eq!(budget.bytes(), 1);
        // And it may get better.
        for _ in 0..18 {
            let bytes = budget.bytes();
            took(&mut budget, bytes, 10);
        }
        assert_eq!(budget.bytes(), MOST_BYTES);
    }

    /// Calls of a single command that each take half of the time: thousands of them were one turn once, and the leader
    /// heard nobody for a second.
    #[test]
    fn a_turn_of_many_calls_ends_in_time_too() {
        let mut budget = ApplyBudget::default();
        for turn in 1..4 {
            let begin_us = turn * 1_000_000;
            budget.begin(begin_us);
            let calls = (1..).find(|call| !budget.took(72, begin_us + call * 1_100));
            assert_eq!(calls, Some(2), "turn {turn}");
        }
    }
}
