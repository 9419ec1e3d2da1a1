//! What the clients saw, to be explained by one order in the end.
//!
//! Calls and returns are numbered events: no two are at the same moment. What has no known outcome stays open until the end of
//! the history. Reads that may be old are no part of it.

use crate::sim::counts::Counts;
use crate::sim::invariants::{Verdict, broken};
use crate::sim::linear::{self, Kind, Op, register};
use crate::sim::model::{Deed, Seen};

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
