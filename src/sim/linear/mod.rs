//! Whether what clients saw is linearizable: one order of all operations, each at a moment between its call and its
//! return, that explains every answer.
//!
//! - [`counter`]: increments that return the new value, and reads. Complete, in O(n log n).
//! - [`register`]: reads, writes and compare-and-set, by search. Complete as well, but the search may be long: it has
//!   a budget of steps, and says when it gave up.
//!
//! An operation whose outcome is unknown (a timeout, a broken connection) may take effect at any moment after its
//! call, or never: its return is `u64::MAX`. An operation that was refused is left out. Linearizability is local: a
//! history of many keys is linearizable if that of each key is.
//!
//! ```
//! use ringraft::sim::linear::{Kind, Op, register};
//!
//! // Two increments, one after the other: the second cannot have come first.
//! let inc = |call, ret, value| Op { call, ret, what: Kind::Increment(Some(value)) };
//! assert!(ringraft::sim::linear::check(&[inc(1, 2, 1), inc(3, 4, 2)]).is_ok());
//! assert!(ringraft::sim::linear::check(&[inc(1, 2, 2), inc(3, 4, 1)]).is_err());
//!
//! // A write whose outcome nobody knows may be read late, but then it stays.
//! let op = |call, ret, what| register::Op { call, ret, what };
//! let lost = op(1, u64::MAX, register::Kind::Write(7));
//! let read = |call, ret, value| op(call, ret, register::Kind::Read(value));
//! let verdict = register::check(&[lost, read(2, 3, None), read(4, 5, Some(7))], 1_000);
//! assert!(verdict.is_linearizable());
//! let verdict = register::check(&[lost, read(2, 3, Some(7)), read(4, 5, None)], 1_000);
//! assert!(matches!(verdict, register::Verdict::Violation { .. }));
//! ```

pub mod counter;
pub mod register;

pub use counter::{Kind, Op, check};

/// Chance for the tests here, which need no more than this of it.
#[cfg(test)]
mod dice {
    /// splitmix64.
    pub(super) struct Dice(pub(super) u64);

    impl Dice {
        pub(super) fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }

        pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
            low + self.below(high - low + 1)
        }

        /// The numbers `1 ..= count` in some order.
        pub(super) fn shuffled(&mut self, count: u64) -> Vec<u64> {
            let mut numbers: Vec<u64> = (1..=count).collect();
            for at in (1..numbers.len()).rev() {
                numbers.swap(at, self.below(at as u64 + 1) as usize);
            }
            numbers
        }
    }
}
