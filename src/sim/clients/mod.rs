//! The clients: they ask without waiting for answers, by every way that a node has, and remember what they saw.
//!
//! Each answer is held against the ledger as it comes, and the whole history is checked for linearizability in the end: what
//! was done, and what reads by round, by lease and through the log have seen. All of these stand in the log at or behind what
//! was committed when they were asked, which is looked at as well: that is more than what clients knew of, and by the rules of
//! Raft it cannot be less. A read that may be a little old must have what had been committed so long before it was asked, by
//! the true time; a stale one what its node had applied.

mod draw;
pub(crate) mod history;
pub(crate) mod operation;
pub(crate) mod sessions;

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::ProposeError;
use crate::node::Consistency;
use crate::request::token::Reply;
use crate::session::{Answer, Request};
use crate::sim::clients::history::History;
use crate::sim::clients::operation::{
    Ask, Way, believable_deed, late_enough, name, name_of_read, untrue,
};
use crate::sim::clients::sessions::{Next, Retries};
use crate::sim::counts::Counts;
use crate::sim::invariants::{Broken, Verdict, broken};
use crate::sim::machine::ledger::Ledger;
use crate::sim::machine::model::{self, Deed, Seen};
use crate::sim::machine::recorder::digest;
use crate::sim::node::Life;
use crate::sim::node::clock::TRUE_RATE;
use crate::sim::plan::{Load, Plan};
use crate::sim::rng::Rng;
use crate::types::Index;

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
    /// How far the log was committed, or is at least to be seen.
    floor: Index,
}

pub(crate) struct Clients {
    rng: Rng,
    ledger: Ledger,
    load: Load,
    /// By number.
    ops: Vec<Asked>,
    open: usize,
    history: History,
    /// What was last seen in each register.
    known: Vec<Option<i64>>,
    retries: Option<Retries>,
    now_us: u64,
    /// `(when, index)`: so much was committed by then; rising.
    commits: Vec<(u64, Index)>,
    slowest_ppm: u64,
    next_us: u64,
    left: u64,
    command: Vec<u8>,
    pub(crate) counts: Counts,
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
        let load = plan.load.clone();
        Self {
            rng,
            ledger,
            ops: Vec::with_capacity(plan.ops as usize + 64),
            open: 0,
            history: History::new(load.registers),
            known: vec![None; usize::from(load.registers)],
            retries: load.sessions.clone().map(Retries::new),
            now_us: 0,
            commits: vec![(0, 0)],
            slowest_ppm: TRUE_RATE - plan.skew_ppm,
            next_us: 0,
            left: plan.ops,
            command: Vec::new(),
            counts: Counts::default(),
            load,
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
            self.kind_of_write(plan)
        };
        self.begin(at, life, ask, plan.command_bytes)
    }

    /// The true time.
    pub(crate) fn it_is(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    /// Whether the last operation that began was a lease read.
    pub(crate) fn has_just_asked_by_lease(&self) -> bool {
        let ask = self.ops.last().map(|op| op.ask);
        matches!(ask, Some(Ask::Read(Way::Lease, _)))
    }

    /// What is committed, whether a client knows of it or not.
    fn committed(&self) -> Index {
        self.commits.last().map_or(0, |commit| commit.1)
    }

    /// What is asked for now on a node that has applied so much has to see at least this.
    fn floor_of(&self, ask: Ask, applied: Index) -> Index {
        let (age_us, entries) = match ask {
            Ask::Read(Way::Old(age_us, entries), _) => (age_us, entries),
            Ask::Read(Way::Stale, _) => return applied,
            Ask::Wait(index) => return index,
            Ask::Do(_) | Ask::Read(..) | Ask::Session(_) => return self.committed(),
        };
        // By the slowest of clocks, which show whole microseconds.
        let true_us = age_us * TRUE_RATE / self.slowest_ppm + 4;
        let upto = self.now_us.saturating_sub(true_us);
        let before = self.commits.partition_point(|commit| commit.0 < upto);
        let index = before.checked_sub(1).map_or(0, |last| self.commits[last].1);
        index.saturating_sub(entries)
    }

    /// Some leader has committed this.
    pub(crate) fn commits(&mut self, index: Index) {
        if index > self.committed() {
            self.commits.push((self.now_us, index));
        }
    }

    /// A command by the plainest way, for which it counts that it gets through.
    pub(crate) fn ask_plainly(&mut self, at: usize, life: &Life) -> (u64, Option<Became>) {
        let deed = self.draw_deed();
        let became = self.begin(at, life, Ask::Do(deed), 8);
        (self.ops.len() as u64 - 1, became)
    }

    /// Commands of sessions whose outcome nobody knows yet.
    pub(crate) fn unresolved(&self) -> usize {
        self.retries.as_ref().map_or(0, Retries::unresolved)
    }

    /// Tries those again that nobody is asked for now.
    pub(crate) fn try_again(&mut self, at: usize, life: &Life) {
        let waiting = self.retries.as_ref().map(Retries::waiting);
        for next in waiting.unwrap_or_default() {
            self.begin(at, life, Ask::Session(next), 8);
        }
    }

    fn begin(&mut self, at: usize, life: &Life, ask: Ask, longest: u64) -> Option<Became> {
        let op = self.ledger.book().begin();
        assert_eq!(op as usize, self.ops.len(), "the ledger counts the same");
        let applied = life.shared.marks.applied.load(Ordering::Relaxed);
        self.ops.push(Asked {
            ask,
            node: at as u8,
            call: self.history.event(),
            floor: self.floor_of(ask, applied),
        });
        self.open += 1;
        let asked = match ask {
            Ask::Do(deed) => self.do_it(op, life, deed, longest),
            Ask::Wait(index) => life.node.wait_applied_to(life.outbox.id(), op, index),
            Ask::Read(way, register) => self.read(op, life, way, register),
            Ask::Session(next) => {
                let retries = self.retries.as_mut().expect("there are sessions");
                self.command.clear();
                if retries.send(next, op, &mut self.command, &mut self.counts) {
                    self.ledger.book().expect_managing();
                }
                self.propose(op, life)
            }
        };
        asked.err().map(|error| self.refused(op, &error))
    }

    fn do_it(
        &mut self,
        op: u64,
        life: &Life,
        deed: Deed,
        longest: u64,
    ) -> Result<(), ProposeError> {
        let len = self.draw_length(longest);
        self.command.clear();
        if self.retries.is_some() {
            Request::Plain.encode(&mut self.command);
        }
        deed.encode(op, len, &mut self.command);
        self.propose(op, life)
    }

    fn propose(&mut self, op: u64, life: &Life) -> Result<(), ProposeError> {
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

    fn read(&mut self, op: u64, life: &Life, way: Way, register: u8) -> Result<(), ProposeError> {
        let how = match way {
            Way::Stale => Consistency::Stale,
            Way::Lease => Consistency::Lease,
            Way::Log => {
                self.ledger.book().expect_log_read();
                Consistency::Log
            }
            Way::Old(age_us, entries) => Consistency::AtMost {
                age: Duration::from_micros(age_us),
                entries,
            },
            Way::Round => Consistency::Linearizable,
        };
        self.command.clear();
        if self.retries.is_some() {
            Request::Plain.encode(&mut self.command);
        }
        if self.load.registers > 0 {
            self.command.push(register);
        }
        let query = &self.command;
        if self.rng.chance(100_000) {
            let answers = life.answers.clone();
            let pending = life.node.read(query, how)?;
            pending.then(move |outcome| answers.push((op, outcome)));
            Ok(())
        } else {
            life.node.read_to(life.outbox.id(), op, query, how)
        }
    }

    fn refused(&mut self, op: u64, error: &ProposeError) -> Became {
        let asked = &mut self.ops[op as usize];
        let (call, ask) = (std::mem::take(&mut asked.call), asked.ask);
        self.open -= 1;
        let certain = error.definitely_not_applied();
        if certain && !matches!(ask, Ask::Read(..) | Ask::Wait(_)) {
            self.ledger.book().refuse(op, name(error));
        }
        match ask {
            Ask::Do(deed) if !certain => self.history.lost(call, deed),
            Ask::Session(next) => {
                let retries = self.retries.as_mut().expect("there are sessions");
                let never = matches!(error, ProposeError::TooLarge { .. });
                retries.refused(next, certain, never);
            }
            _ => {}
        }
        if certain {
            Became::Refused(name(error))
        } else {
            Became::Unknown
        }
    }

    /// An answer has come.
    pub(crate) fn answered(
        &mut self,
        op: u64,
        outcome: Result<Reply, ProposeError>,
    ) -> Result<Became, Broken> {
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
        late_enough(op, asked.ask, asked.floor, reply.index)?;
        let plain = match self.retries {
            Some(_) if !matches!(asked.ask, Ask::Wait(_) | Ask::Session(_)) => {
                match Answer::decode(&reply.bytes) {
                    Answer::Applied(answer) => answer,
                    _ => &[],
                }
            }
            _ => &reply.bytes,
        };
        match asked.ask {
            Ask::Wait(_) => return Ok(Became::Done),
            Ask::Do(deed) => {
                let seen = deed.seen(plain);
                let place = believable_deed(op, (op, deed), seen, &reply, &self.ledger.book())?;
                if place != reply.index {
                    untrue(op, asked.ask, seen, &reply, &self.ledger.book())?;
                }
                self.learn(asked.call, deed, seen);
            }
            Ask::Read(way, register) => {
                let seen = self.found(op, asked.ask, plain, register, &reply)?;
                self.counts.add(name_of_read(way));
                if let Way::Old(..) | Way::Stale = way {
                    return Ok(Became::Done);
                }
                self.history.found(asked.call, register, seen);
                if let Seen::Value(value) = seen {
                    self.known[usize::from(register)] = value;
                }
            }
            Ask::Session(next) => self.session_answered(op, next, &reply)?,
        }
        Ok(Became::Done)
    }

    fn found(
        &self,
        op: u64,
        ask: Ask,
        answer: &[u8],
        register: u8,
        reply: &Reply,
    ) -> Result<Seen, Broken> {
        let book = self.ledger.book();
        let (seen, right) = match self.load.registers {
            0 => {
                let right = Seen::Count(book.value_at(reply.index));
                (Deed::Increment.seen(answer), right)
            }
            _ => {
                let right = Seen::Value(book.register_at(register, reply.index));
                (model::found(answer), right)
            }
        };
        if seen != Some(right) {
            untrue(op, ask, seen, reply, &book)?;
        }
        Ok(right)
    }

    /// What was done is known now.
    fn learn(&mut self, call: u64, deed: Deed, seen: Option<Seen>) {
        let Some(seen) = seen else { return };
        self.history.did(call, deed, seen);
        if let (
            Deed::Write { register, new } | Deed::CompareAndSet { register, new, .. },
            Seen::Written(true),
        ) = (deed, seen)
        {
            self.known[usize::from(register)] = Some(new);
        }
    }

    fn session_answered(&mut self, op: u64, next: Next, reply: &Reply) -> Verdict {
        let retries = self.retries.as_mut().expect("there are sessions");
        let book = self.ledger.book();
        let known = retries.answered(op, next, reply, &book, &mut self.counts)?;
        let Some((first, call, deed, seen)) = known else {
            return Ok(());
        };
        let place = believable_deed(op, (first, deed), seen, reply, &book)?;
        if book.entry(place).map(|entry| entry.answer) != Some(digest(&reply.bytes)) {
            untrue(op, Ask::Session(next), seen, reply, &book)?;
        }
        drop(book);
        if let Some(call) = call {
            self.learn(call, deed, seen);
        }
        Ok(())
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

    /// Whether there is an order that explains everything that was seen, and nothing was done that should not have been.
    pub(crate) fn look_back(&mut self, counts: &mut Counts) -> Verdict {
        for op in &self.ops {
            if let (Ask::Do(deed), 1..) = (op.ask, op.call) {
                self.history.lost(op.call, deed);
            }
        }
        if let Some(retries) = &self.retries {
            for (call, deed) in retries.look_back(&self.ledger.book(), counts)? {
                self.history.lost(call, deed);
            }
        }
        counts.add_many(
            "mark: a first answer was known from a snapshot only",
            self.ledger.book().repeated_from_snapshots,
        );
        self.history.check(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_so_long_ago_is_the_least_that_an_old_read_sees() {
        let mut rng = Rng::new(1);
        let mut plan = Plan::draw(&mut rng);
        plan.skew_ppm = 200_000;
        let mut clients = Clients::new(rng.fork(), Ledger::default(), &plan);
        for (now_us, index) in [(1_000, 1), (2_000, 5), (2_500, 4), (3_000, 6)] {
            clients.it_is(now_us);
            clients.commits(index);
        }
        clients.it_is(4_000);
        let floor = |age_us, entries| clients.floor_of(Ask::Read(Way::Old(age_us, entries), 0), 3);
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
            "1000 us, and what was committed at that very moment"
        );
        assert_eq!(floor(2_500, 0), 0);
        assert_eq!(clients.floor_of(Ask::Read(Way::Stale, 0), 3), 3);
        assert_eq!(clients.floor_of(Ask::Read(Way::Lease, 0), 3), 6);
    }
}
