//! What the clients saw, to be explained by one order in the end.
//!
//! Calls and returns are numbered events: no two are at the same moment. What has no known outcome stays open until the end of
//! the history. Reads that may be old are no part of it.

use crate::sim::counts::Counts;
use crate::sim::invariants::{Verdict, broken};
use crate::sim::linear::{self, Kind, Op, register};
use crate::sim::machine::model::{Deed, Seen};

/// Steps of a register's search; an honest history needs hardly more than it has operations.
const BUDGET: u64 = 400_000;

#[derive(Debug)]
pub(crate) struct History {
    events: u64,
    counter: Vec<Op>,
    registers: Vec<Vec<register::Op>>,
}

impl History {
    /// Of a counter, or of so many registers.
    pub(crate) fn new(registers: u8) -> Self {
        Self {
            events: 0,
            counter: Vec::new(),
            registers: vec![Vec::new(); usize::from(registers)],
        }
    }

    /// The number of what happens now.
    pub(crate) fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// A deed that was called at `call` has this answer now.
    pub(crate) fn did(&mut self, call: u64, deed: Deed, seen: Seen) {
        let ret = self.event();
        self.push(call, ret, deed, Some(seen));
    }

    /// Nobody knows what became of a deed.
    pub(crate) fn lost(&mut self, call: u64, deed: Deed) {
        self.push(call, u64::MAX, deed, None);
    }

    /// A read that was called at `call` has found this now.
    pub(crate) fn found(&mut self, call: u64, register: u8, seen: Seen) {
        let ret = self.event();
        match seen {
            Seen::Count(value) => {
                let what = Kind::Read(value);
                self.counter.push(Op { call, ret, what });
            }
            Seen::Value(value) => {
                let what = register::Kind::Read(value);
                self.registers[usize::from(register)].push(register::Op { call, ret, what });
            }
            Seen::Written(_) => unreachable!("no read finds that something was written"),
        }
    }

    fn push(&mut self, call: u64, ret: u64, deed: Deed, seen: Option<Seen>) {
        let (register, what) = match deed {
            Deed::Increment => {
                let value = match seen {
                    Some(Seen::Count(value)) => Some(value),
                    _ => None,
                };
                let what = Kind::Increment(value);
                self.counter.push(Op { call, ret, what });
                return;
            }
            Deed::Write { register, new } => (register, register::Kind::Write(new)),
            Deed::CompareAndSet {
                register,
                expected,
                new,
            } => {
                let what = register::Kind::CompareAndSet {
                    expected,
                    new,
                    done: seen == Some(Seen::Written(true)),
                };
                (register, what)
            }
        };
        self.registers[usize::from(register)].push(register::Op { call, ret, what });
    }

    /// Whether there is an order that explains everything that was seen.
    pub(crate) fn check(&self, counts: &mut Counts) -> Verdict {
        if self.registers.is_empty() {
            counts.add("history: counter");
            return linear::check(&self.counter).or_else(|why| broken("linearizability", why));
        }
        for (number, history) in self.registers.iter().enumerate() {
            counts.add("history: register");
            counts.add_many("history: operations on registers", history.len() as u64);
            for op in history {
                if let register::Kind::CompareAndSet { done, .. } = op.what {
                    counts.add(match (op.ret, done) {
                        (u64::MAX, _) => "history: compare-and-set, unknown",
                        (_, true) => "history: compare-and-set, won",
                        (_, false) => "history: compare-and-set, lost",
                    });
                }
            }
            match register::check(history, BUDGET) {
                register::Verdict::Linearizable => {}
                // All that was answered has been held against the ledger, whose order is one that explains it.
                register::Verdict::GaveUp { .. } => {
                    counts.add("history: no verdict within the budget")
                }
                register::Verdict::Violation { explained, stuck } => {
                    broken(
                        "linearizability",
                        format!(
                            "register {number}: after {explained} operations, none of these can come next: {stuck:?}"
                        ),
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Deed = Deed::Write {
        register: 1,
        new: 7,
    };
    const SET: Deed = Deed::CompareAndSet {
        register: 1,
        expected: Some(7),
        new: 8,
    };

    fn check_of(history: &History) -> (Option<&'static str>, Counts) {
        let mut counts = Counts::default();
        let found = history.check(&mut counts).err();
        (found.map(|broken| broken.check), counts)
    }

    #[test]
    fn each_register_has_an_order_of_its_own_and_one_without_is_found() {
        let mut history = History::new(2);
        let (write, set) = (history.event(), history.event());
        history.did(write, WRITE, Seen::Written(true));
        history.did(set, SET, Seen::Written(true));
        let read = history.event();
        history.found(read, 0, Seen::Value(None));
        let (found, counts) = check_of(&history);
        assert_eq!(found, None);
        assert_eq!(counts.of("history: register"), 2);
        assert_eq!(counts.of("history: compare-and-set, won"), 1);
        let read = history.event();
        history.found(read, 1, Seen::Value(Some(7)));
        assert_eq!(check_of(&history).0, Some("linearizability"), "8 was there");
    }

    #[test]
    fn what_has_no_outcome_may_be_seen_at_any_time_later_and_never_before() {
        let mut history = History::new(2);
        let read = history.event();
        history.found(read, 1, Seen::Value(None));
        let (write, set) = (history.event(), history.event());
        history.lost(write, WRITE);
        history.lost(set, SET);
        for seen in [None, Some(7), Some(8)] {
            let read = history.event();
            history.found(read, 1, Seen::Value(seen));
        }
        let (found, counts) = check_of(&history);
        assert_eq!(found, None);
        assert_eq!(counts.of("history: compare-and-set, unknown"), 1);
        let mut early = History::new(2);
        let read = early.event();
        early.found(read, 1, Seen::Value(Some(7)));
        let write = early.event();
        early.lost(write, WRITE);
        assert_eq!(check_of(&early).0, Some("linearizability"));
    }
}
