//! The clients: they ask without waiting for answers, by every way that a node has, and remember what they saw.
//!
//! Each answer is held against the ledger as it comes, and the whole history is checked for linearizability in the end:
//! what reads by round, by lease and through the log have seen. A read that may be a little old must have what had been
//! answered so long before it was asked, by the true time.
//! Calls and returns are numbered events: no two are at the same moment.

use std::time::Duration;

use crate::sim::clock::TRUE_RATE;
use crate::sim::invariants::{Verdict, broken};
use crate::sim::ledger::{Book, Ledger};
use crate::sim::life::Life;
use crate::sim::linear::{self, Kind, Op};
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::{Consistency, Index, ProposeError, Reply};

/// What an operation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Increment,
    /// By a round.
    Read,
    LeaseRead,
    LogRead,
    /// What was there so many microseconds ago, but for so many entries.
    OldRead(u64, u64),
    StaleRead,
    /// Only that this index is applied.
    Wait(Index),
}

/// What kind of operation is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Any,
    Read,
    Write,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    ask: Ask,
    node: u8,
    /// The event of its call; it is over when this is 0.
    call: u64,
    /// The least value that is right.
    floor: u64,
}

pub(crate) struct Clients {
    rng: Rng,
    ledger: Ledger,
    /// By number.
    ops: Vec<Asked>,
    open: usize,
    events: u64,
    history: Vec<Op>,
    now_us: u64,
    /// `(when, value)`: what a client had been told by then, rising.
    told: Vec<(u64, u64)>,
    slowest_ppm: u64,
    next_us: u64,
    left: u64,
    command: Vec<u8>,
}

/// What became of an operation, for the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    Done,
    Refused(&'static str),
    Unknown,
}

impl Clients {
    pub(crate) fn new(rng: Rng, ledger: Ledger, plan: &Plan) -> Self {
        Self {
            rng,
            ledger,
            ops: Vec::with_capacity(plan.ops as usize + 64),
            open: 0,
            events: 0,
            now_us: 0,
            told: vec![(0, 0)],
            slowest_ppm: TRUE_RATE - plan.skew_ppm,
            history: Vec::with_capacity(plan.ops as usize + 64),
            next_us: 0,
            left: plan.ops,
            command: Vec::new(),
        }
    }

    /// When the next operation begins.
    pub(crate) fn next_us(&self) -> u64 {
        if self.left > 0 {
            self.next_us
        } else {
            u64::MAX
        }
    }

    /// Operations that have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.ops.len() as u64
    }

    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// How many operations begin now, and when the next do.
    pub(crate) fn due(&mut self, now_us: u64, plan: &Plan) -> u64 {
        self.next_us = now_us + self.rng.around(plan.op_every_us);
        let count = if self.rng.chance(plan.burst_ppm) {
            self.rng.between(2, plan.burst)
        } else {
            1
        };
        let room = (plan.most_open + plan.burst as usize).saturating_sub(self.open) as u64;
        let count = count.min(self.left).min(room);
        self.left -= count;
        count
    }

    /// Nothing more begins by itself.
    pub(crate) fn retire(&mut self) {
        self.left = 0;
    }

    pub(crate) fn pick_node(&mut self, nodes: usize) -> usize {
        self.rng.below(nodes as u64) as usize
    }

    /// Asks `life` for something. Returns what became of it, when that is known at once.
    pub(crate) fn ask(
        &mut self,
        at: usize,
        life: &Life,
        plan: &Plan,
        want: Want,
    ) -> Option<Became> {
        let reads = match want {
            Want::Any => self.rng.chance(plan.reads_ppm),
            Want::Read => true,
            Want::Write => false,
        };
        let ask = if reads {
            self.kind_of_read(plan)
        } else {
            Ask::Increment
        };
        self.begin(at, life, ask, plan.command_bytes)
    }

    fn kind_of_read(&mut self, plan: &Plan) -> Ask {
        let election_us = plan.config.election_timeout.as_micros() as u64;
        match self.rng.below(100) {
            0..35 => Ask::Read,
            35..65 => Ask::LeaseRead,
            65..75 => Ask::LogRead,
            75..87 => {
                let ages = [0, 100, election_us / 10, 2 * election_us];
                Ask::OldRead(self.rng.pick(&ages), self.rng.pick(&[0, 0, 1, 5]))
            }
            87..95 => Ask::StaleRead,
            _ => Ask::Wait(self.ledger.book().last() + self.rng.below(3)),
        }
    }

    /// The true time.
    pub(crate) fn it_is(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    /// Whether the last operation that began was a lease read.
    pub(crate) fn has_just_asked_by_lease(&self) -> bool {
        self.ops.last().is_some_and(|op| op.ask == Ask::LeaseRead)
    }

    /// The least value for a read that begins now.
    fn floor_of(&self, ask: Ask) -> u64 {
        let Ask::OldRead(age_us, entries) = ask else {
            return 0;
        };
        // By the slowest of clocks, which show whole microseconds.
        let true_us = age_us * TRUE_RATE / self.slowest_ppm + 4;
        let upto = self.now_us.saturating_sub(true_us);
        let told = self.told.partition_point(|told| told.0 < upto);
        let value = told.checked_sub(1).map_or(0, |last| self.told[last].1);
        value.saturating_sub(entries)
    }

    /// A client was told this value, of now or before.
    fn tell(&mut self, value: u64) {
        let last = self.told.last().map_or(0, |told| told.1);
        if value > last {
            self.told.push((self.now_us, value));
        }
    }

    /// An increment by the plainest way, for which it counts that it gets through.
    pub(crate) fn ask_plainly(&mut self, at: usize, life: &Life) -> (u64, Option<Became>) {
        let became = self.begin(at, life, Ask::Increment, 8);
        (self.ops.len() as u64 - 1, became)
    }

    fn begin(&mut self, at: usize, life: &Life, ask: Ask, longest: u64) -> Option<Became> {
        let op = self.ledger.book().begin();
        assert_eq!(op as usize, self.ops.len(), "the ledger counts the same");
        self.events += 1;
        self.ops.push(Asked {
            ask,
            node: at as u8,
            call: self.events,
            floor: self.floor_of(ask),
        });
        self.open += 1;
        let asked = match ask {
            Ask::Increment => self.propose(op, life, longest),
            Ask::Wait(index) => life.node.wait_applied_to(life.outbox.id(), op, index),
            _ => self.read(op, life, ask),
        };
        asked.err().map(|error| self.refused(op, &error))
    }

    fn propose(&mut self, op: u64, life: &Life, longest: u64) -> Result<(), ProposeError> {
        let len = match self.rng.below(8) {
            0 => self.rng.between(8, longest.max(8)),
            _ => self.rng.between(8, longest.clamp(8, 64)),
        };
        self.command.clear();
        self.command.extend_from_slice(&op.to_le_bytes());
        self.command.resize(len as usize, op as u8);
        match self.rng.below(8) {
            0 => {
                let answers = life.answers.clone();
                let pending = life.node.propose(&self.command)?;
                pending.then(move |outcome| answers.push((op, outcome)));
                Ok(())
            }
            1 => {
                let answers = life.answers.clone();
                let pending = life.node.propose_as_leader(&self.command)?;
                pending.then(move |outcome| answers.push((op, outcome)));
                Ok(())
            }
            _ => life.node.propose_to(life.outbox.id(), op, &self.command),
        }
    }

    fn read(&mut self, op: u64, life: &Life, ask: Ask) -> Result<(), ProposeError> {
        let how = match ask {
            Ask::StaleRead => Consistency::Stale,
            Ask::LeaseRead => Consistency::Lease,
            Ask::LogRead => {
                self.ledger.book().expect_log_read();
                Consistency::Log
            }
            Ask::OldRead(age_us, entries) => Consistency::AtMost {
                age: Duration::from_micros(age_us),
                entries,
            },
            _ => Consistency::Linearizable,
        };
        if self.rng.chance(100_000) {
            let answers = life.answers.clone();
            let pending = life.node.read(&[], how)?;
            pending.then(move |outcome| answers.push((op, outcome)));
            Ok(())
        } else {
            life.node.read_to(life.outbox.id(), op, &[], how)
        }
    }

    fn refused(&mut self, op: u64, error: &ProposeError) -> Became {
        let asked = &mut self.ops[op as usize];
        let call = std::mem::take(&mut asked.call);
        self.open -= 1;
        if !error.definitely_not_applied() {
            if asked.ask == Ask::Increment {
                self.history.push(Op {
                    call,
                    ret: u64::MAX,
                    what: Kind::Increment(None),
                });
            }
            return Became::Unknown;
        }
        if asked.ask == Ask::Increment {
            self.ledger.book().refuse(op, name(error));
        }
        Became::Refused(name(error))
    }

    /// An answer has come.
    pub(crate) fn answered(
        &mut self,
        op: u64,
        outcome: Result<Reply, ProposeError>,
    ) -> Result<Became, crate::sim::invariants::Broken> {
        let asked = self.ops[op as usize];
        if asked.call == 0 {
            broken(
                "one answer each",
                format!("operation {op} is answered again: {outcome:?}"),
            )?;
        }
        let reply = match outcome {
            Ok(reply) => reply,
            Err(error) => return Ok(self.refused(op, &error)),
        };
        self.ops[op as usize].call = 0;
        self.open -= 1;
        let value = value_of(&reply);
        believable(op, asked, &reply, value, &self.ledger.book())?;
        self.events += 1;
        let what = match asked.ask {
            Ask::Increment => Kind::Increment(value),
            Ask::Read | Ask::LeaseRead | Ask::LogRead => Kind::Read(value.unwrap_or(0)),
            Ask::OldRead(..) | Ask::StaleRead | Ask::Wait(_) => return Ok(Became::Done),
        };
        self.tell(value.unwrap_or(0));
        self.history.push(Op {
            call: asked.call,
            ret: self.events,
            what,
        });
        Ok(Became::Done)
    }

    /// The process that was asked is gone: nobody will answer.
    pub(crate) fn abandoned(&mut self, node: usize) {
        for op in 0..self.ops.len() {
            if self.ops[op].call > 0 && usize::from(self.ops[op].node) == node {
                self.refused(op as u64, &ProposeError::Unknown);
            }
        }
    }

    /// Operations of a node that nobody has answered.
    pub(crate) fn open_on(&self, node: usize) -> Option<u64> {
        self.ops
            .iter()
            .position(|op| op.call > 0 && usize::from(op.node) == node)
            .map(|op| op as u64)
    }

    pub(crate) fn is_open(&self, op: u64) -> bool {
        self.ops[op as usize].call > 0
    }

    /// Whether there is an order that explains everything that was seen.
    pub(crate) fn linearizable(&self) -> Verdict {
        let mut history = self.history.clone();
        for op in self.ops.iter().filter(|op| op.call > 0) {
            if op.ask == Ask::Increment {
                history.push(Op {
                    call: op.call,
                    ret: u64::MAX,
                    what: Kind::Increment(None),
                });
            }
        }
        linear::check(&history).or_else(|why| broken("linearizability", why))
    }
}

fn value_of(reply: &Reply) -> Option<u64> {
    reply
        .bytes
        .as_slice()
        .try_into()
        .ok()
        .map(u64::from_le_bytes)
}

/// The reply is what the ledger says it must be.
fn believable(op: u64, asked: Asked, reply: &Reply, value: Option<u64>, book: &Book) -> Verdict {
    if let Ask::Wait(index) = asked.ask {
        if index <= reply.index {
            return Ok(());
        }
        return broken(
            "waits are kept",
            format!(
                "operation {op} waits for {index} and is answered at {}",
                reply.index
            ),
        );
    }
    if value.is_some_and(|value| value < asked.floor) {
        return broken(
            "old reads are young enough",
            format!(
                "operation {op} ({:?}) is answered {value:?}, {} is the least",
                asked.ask, asked.floor
            ),
        );
    }
    let right = value == Some(book.value_at(reply.index))
        && (asked.ask != Ask::Increment || book.place_of(op) == Some(reply.index));
    if right {
        return Ok(());
    }
    broken(
        "answers are true",
        format!(
            "operation {op} ({:?}) is answered {value:?} at index {}; the ledger says {:?} there, and the operation at {:?}",
            asked.ask,
            reply.index,
            book.value_at(reply.index),
            book.place_of(op)
        ),
    )
}

pub(crate) fn name(error: &ProposeError) -> &'static str {
    match error {
        ProposeError::NotLeader { .. } => "answer: not the leader",
        ProposeError::Busy => "answer: busy",
        ProposeError::TooLarge { .. } => "answer: too large",
        ProposeError::Replaced => "answer: replaced",
        ProposeError::Unknown => "answer: unknown",
        ProposeError::Unconfirmed => "answer: not confirmed",
        ProposeError::Stopped => "answer: stopped",
        ProposeError::SnapshotRunning | ProposeError::NoSnapshot => "answer: no snapshot",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::invariants::Broken;

    #[test]
    fn a_read_that_is_too_old_and_a_wait_that_is_cut_short_are_found() {
        let reply = Reply {
            index: 0,
            bytes: 0_u64.to_le_bytes().to_vec(),
        };
        let check = |ask, floor| {
            let asked = Asked {
                ask,
                node: 0,
                call: 1,
                floor,
            };
            believable(1, asked, &reply, value_of(&reply), &Book::default())
                .err()
                .map(|Broken { check, .. }| check)
        };
        assert_eq!(check(Ask::OldRead(5, 0), 0), None);
        let found = check(Ask::OldRead(5, 0), 1);
        assert_eq!(found, Some("old reads are young enough"));
        assert_eq!(check(Ask::Wait(0), 0), None);
        assert_eq!(check(Ask::Wait(1), 0), Some("waits are kept"));
    }

    #[test]
    fn what_clients_had_been_told_so_long_ago_is_the_least_that_an_old_read_sees() {
        let mut rng = Rng::new(1);
        let mut plan = Plan::draw(&mut rng);
        plan.skew_ppm = 200_000;
        let mut clients = Clients::new(rng.fork(), Ledger::default(), &plan);
        for (now_us, value) in [(1_000, 1), (2_000, 5), (2_500, 4), (3_000, 6)] {
            clients.it_is(now_us);
            clients.tell(value);
        }
        clients.it_is(4_000);
        let floor = |age_us, entries| clients.floor_of(Ask::OldRead(age_us, entries));
        assert_eq!(floor(0, 0), 6);
        assert_eq!(floor(0, 2), 4);
        assert_eq!(
            floor(780, 0),
            6,
            "979 us by a clock that is slow by a fifth"
        );
        assert_eq!(
            floor(800, 0),
            5,
            "1000 us, and what was told at that very moment"
        );
        assert_eq!(floor(2_500, 0), 0);
        assert_eq!(clients.floor_of(Ask::StaleRead), 0);
    }
}
