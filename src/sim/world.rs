//! The loop: some stage of some node is polled, then another; when nobody has anything to do, time jumps.
//!
//! Nothing in here knows what a stage does. The order of polls is drawn from the seed; a node sleeps when all of its
//! stages have been polled in vain and none of them says that it has work, which is how the product's threads decide.
//! Time stands still while somebody has work, but for the little that polls may cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sim::client::{Became, Clients};
use crate::sim::clock::{NodeClock, TRUE_RATE};
use crate::sim::counts::Counts;
use crate::sim::fabric::Fabric;
use crate::sim::invariants::logs::{Kept, Model, Registry};
use crate::sim::invariants::office::{Copy, Office};
use crate::sim::invariants::{Verdict, bounds, broken, promises};
use crate::sim::ledger::{Counter, Ledger};
use crate::sim::life::{ACTS, Act, Armed, CLIENT, EVERYTHING, Life, SimNode, Start};
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::sim::trace::{Listener, Trace};
use crate::sim::troubles::Troubles;
use crate::{Fault, NodeId, ProposeError, Reply, Role};

use storage::memory::Loss;
use storage::{Memory, StorageError};

/// Turns without work after which a node that says it has some is taken to spin.
const MOST_SPINS: u32 = 1_000;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It dies; what it wrote is in the page cache.
    Killed,
    /// Its machine loses power.
    PowerCut(Loss),
}

pub(crate) struct World<'a> {
    pub(crate) plan: Plan,
    pub(crate) now_us: u64,
    pub(crate) steps: u64,
    pub(crate) nodes: Vec<SimNode>,
    pub(crate) fabric: Fabric,
    pub(crate) ledger: Ledger,
    pub(crate) clients: Clients,
    pub(crate) troubles: Troubles,
    pub(crate) office: Office,
    pub(crate) registry: Registry,
    pub(crate) counts: Counts,
    pub(crate) trace: Trace<'a>,
    /// Nothing goes wrong any more.
    pub(crate) calm: bool,
    /// Made anew in each life; set, it makes the state machine of the node panic.
    pub(crate) panics: Vec<Arc<AtomicBool>>,
    order: Rng,
    pub(crate) chance: Rng,
}

/// Writes a line of the trace, where somebody reads it.
macro_rules! tell {
    ($world:expr, $($what:tt)*) => {
        if $world.trace.listens() {
            let now_us = $world.now_us;
            $world.trace.line(now_us, format_args!($($what)*));
        }
    };
}
pub(crate) use tell;

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, listener: Option<Listener<'a>>) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng.fork());
        let ledger = Ledger::default();
        let fabric = Fabric::new(plan.nodes, plan.weather.clone(), rng.fork());
        let mut chance = rng.fork();
        let nodes: Vec<SimNode> = (0..plan.nodes)
            .map(|at| SimNode::new(at, &plan, &mut chance))
            .collect();
        let clients = Clients::new(rng.fork(), ledger.clone(), &plan);
        let troubles = Troubles::new(rng.fork(), &plan);
        Self {
            panics: vec![Arc::default(); plan.nodes],
            now_us: 0,
            steps: 0,
            nodes,
            fabric,
            ledger,
            clients,
            troubles,
            office: Office::default(),
            registry: Registry::default(),
            counts: Counts::default(),
            trace: Trace::new(listener),
            calm: false,
            order: rng.fork(),
            chance,
            plan,
        }
    }

    /// Runs until `until_us`, or for `most` steps; false when the steps are over.
    pub(crate) fn run(&mut self, until_us: u64, most: u64) -> Result<bool, super::Broken> {
        while self.steps < most {
            if self.troubles.strikes_now() {
                self.strike()?;
            }
            match self.pick() {
                Some((at, bit)) => self.step(at, bit)?,
                None if self.now_us >= until_us => return Ok(true),
                None => self.jump(until_us)?,
            }
        }
        Ok(false)
    }

    /// A node that has work, and one of its acts.
    fn pick(&mut self) -> Option<(usize, u16)> {
        let count = self.nodes.len();
        let first = self.order.below(count as u64) as usize;
        for turn in 0..count {
            let at = (first + turn) % count;
            let ready = self.nodes[at].ready();
            if ready != 0 {
                let skip = self.order.below(u64::from(ready.count_ones()));
                let mut left = ready;
                for _ in 0..skip {
                    left &= left - 1;
                }
                return Some((at, left & left.wrapping_neg()));
            }
        }
        None
    }

    fn step(&mut self, at: usize, bit: u16) -> Verdict {
        self.steps += 1;
        if !self.calm && self.order.chance(self.plan.cost_ppm) {
            let cost = self.order.between(1, 30);
            self.pass(self.now_us + cost)?;
            if self.nodes[at].ready() & bit == 0 {
                return Ok(());
            }
        }
        if !self.calm && self.order.chance(self.plan.stall_ppm) && bit != CLIENT {
            let longest = self.plan.config.election_timeout.as_micros() as u64 / 2;
            let until = self.now_us + self.order.below(longest);
            self.nodes[at].stalled = Some((bit, until));
            self.nodes[at].wake_us = self.nodes[at].wake_us.min(until);
            self.counts.add("fault: stage without a processor");
            return Ok(());
        }
        let work = if bit == CLIENT {
            self.take_answers(at, 1 + (self.steps % 64) as usize)?
        } else {
            let act = ACTS[bit.trailing_zeros() as usize];
            match self.poll(at, act)? {
                Some(work) => work,
                None => return Ok(()), // The node is gone.
            }
        };
        self.trace.note(
            self.now_us << 20
                ^ (work as u64) << 12
                ^ u64::from(bit.trailing_zeros()) << 4
                ^ at as u64,
        );
        let node = &mut self.nodes[at];
        if work > 0 {
            node.hot = EVERYTHING;
            node.spins = 0;
        } else {
            node.hot &= !bit;
        }
        if node.ready() == 0 {
            self.rest(at)?;
        }
        Ok(())
    }

    /// One poll of a stage, and a look at what it has done. `None`: it was the node's last.
    fn poll(&mut self, at: usize, act: Act) -> Result<Option<usize>, super::Broken> {
        let life = self.nodes[at].life.as_mut().expect("it runs");
        let before = (life.stages.append.flushing(), life.shared.term());
        let polled = life.poll(act);
        match polled {
            Ok(work) => {
                if self.trace.listens() && work > 0 {
                    tell!(self, "n{} {act:?} {work}", at + 1);
                }
                self.look(at, act, work, before)?;
                Ok(Some(work))
            }
            Err(fault) => {
                self.stopped(at, fault)?;
                Ok(None)
            }
        }
    }

    /// Everything that a poll may have broken.
    fn look(&mut self, at: usize, act: Act, work: usize, before: (bool, u64)) -> Verdict {
        let number = at as u64 + 1;
        match act {
            Act::Finish | Act::Flush => self.mind_flush(at),
            Act::Write if work > 0 => self.follow_log(at)?,
            Act::Consensus if work > 0 => self.look_at_office(at, before)?,
            Act::Send if work > 0 => self.look_at_promises(at)?,
            Act::Receive if work > 0 => self.hear_news(),
            Act::Apply | Act::Reply if work > 0 => self.look_at_ledger()?,
            _ => {}
        }
        if work == 0 {
            return Ok(());
        }
        let node = &mut self.nodes[at];
        let life = node.life.as_mut().expect("it runs");
        bounds::positions(number, life, act)?;
        bounds::memory(number, life, &node.config)
    }

    /// A flush has begun, or is over: its end is for the world to say.
    fn mind_flush(&mut self, at: usize) {
        let now_us = self.now_us;
        let node = &mut self.nodes[at];
        let life = node.life.as_mut().expect("it runs");
        match (life.stages.append.flushing(), life.flush_done_us) {
            (true, None) => {
                let mut takes = self.chance.around(self.plan.flush_us);
                if now_us < node.slow_until_us {
                    let election_us = self.plan.config.election_timeout.as_micros() as u64;
                    takes += self.chance.around(2 * election_us);
                }
                if self.calm {
                    takes = takes.min(self.plan.config.election_timeout.as_micros() as u64 / 50);
                }
                life.flush_done_us = Some(now_us + takes);
            }
            (false, Some(_)) => {
                life.flush_done_us = None;
                node.disk.hold_flushes(true);
            }
            _ => {}
        }
    }

    fn follow_log(&mut self, at: usize) -> Verdict {
        let node = &mut self.nodes[at];
        let life = node.life.as_ref().expect("it runs");
        let followed = node.model.follow(&life.reader, &mut self.registry)?;
        if life.stages.append.flushing() {
            self.counts.add("mark: written while a flush was in flight");
        }
        if let Some(cut) = followed.cut {
            self.counts.add("mark: conflicting entries were truncated");
            if life.stages.append.flushing() {
                self.counts
                    .add("mark: truncated while a flush was in flight");
            }
            tell!(self, "n{} cuts its log from {} on", at + 1, cut.0);
            self.office.cuts(at, cut)?;
        }
        let last = self.nodes[at].model.last();
        tell!(self, "n{} has written up to {last}", at + 1);
        self.look_at_completeness(at)
    }

    fn look_at_office(&mut self, at: usize, (flushing, term_before): (bool, u64)) -> Verdict {
        let life = self.nodes[at].life.as_mut().expect("it runs");
        let (role, term) = (life.shared.role(), life.shared.term());
        let committed = life.shared.marks.committed.load(Ordering::Relaxed);
        let moved = committed > life.committed;
        let start = life.stages.consensus.core().term_start();
        if life.stages.consensus.is_held_back() {
            self.counts.add("mark: input held back by a full ring");
        }
        let before = std::mem::replace(&mut self.nodes[at].seen, (role, term));
        if before != (role, term) {
            tell!(self, "n{} is {role} of term {term}", at + 1);
            self.note_role(before, (role, term));
            if term > term_before && flushing {
                self.counts
                    .add("mark: a term was fenced while a flush was in flight");
            }
        }
        if role == Role::Leader && self.office.leads(at, term)? {
            self.counts.add("leaders elected");
            if self.nodes.iter().enumerate().any(|(other, node)| {
                other != at && node.seen.0 == Role::Leader && node.life.is_some()
            }) {
                self.counts
                    .add("mark: two leaders of different terms at once");
            }
            self.nodes[at].owes = Some((term, start, self.office.committed()));
        }
        self.look_at_completeness(at)?;
        if role == Role::Leader {
            self.look_at_peers(at);
        }
        if !moved {
            return Ok(());
        }
        tell!(self, "n{} commits {committed}", at + 1);
        if role != Role::Leader {
            return self.office.follows(at, committed);
        }
        let logs: Vec<Copy<'_>> = self.nodes.iter().map(SimNode::copy).collect();
        let fresh = self.office.commits(at, term, committed, &logs)?;
        if fresh.earlier_terms {
            self.counts
                .add("mark: entries of an earlier term committed through a new one");
        }
        if fresh.before_own_flush {
            self.counts
                .add("mark: committed before the leader's own flush");
        }
        Ok(())
    }

    /// A new leader's log is looked at when all that it had before its office has been written.
    fn look_at_completeness(&mut self, at: usize) -> Verdict {
        let node = &mut self.nodes[at];
        match node.owes {
            Some(_) if node.seen.0 != Role::Leader => node.owes = None,
            Some((term, start, committed)) if node.model.last() + 1 >= start => {
                node.owes = None;
                let log = &node.model;
                return self.office.complete(at, (term, start), committed, log);
            }
            _ => {}
        }
        Ok(())
    }

    fn note_role(&mut self, before: (Role, u64), now: (Role, u64)) {
        if before.0 == Role::Leader && now.0 != Role::Leader && before.1 == now.1 {
            self.counts
                .add("mark: a leader stepped down within its term");
        }
        if before.0 == Role::Candidate && now.0 == Role::Follower && before.1 == now.1 {
            self.counts
                .add("mark: a candidate gave way within its term");
        }
    }

    fn look_at_peers(&mut self, at: usize) {
        let config = &self.plan.config;
        let most = (config.max_inflight_bytes
            - config.max_append_bytes.min(config.max_inflight_bytes / 2)) as u64;
        let life = self.nodes[at].life.as_ref().expect("it runs");
        let core = life.stages.consensus.core();
        if core.peers().any(|peer| peer.3 >= most) {
            self.counts.add("mark: a peer's window was full");
        }
        if core.uncommitted_bytes() >= config.max_uncommitted_bytes as u64 {
            self.counts
                .add("mark: the limit of uncommitted bytes was reached");
        }
    }

    fn look_at_promises(&mut self, at: usize) -> Verdict {
        let mut state = self.fabric.state();
        if state.said.is_empty() {
            return Ok(());
        }
        let mut said = std::mem::take(&mut state.said);
        drop(state);
        let node = &self.nodes[at];
        let life = node.life.as_ref().expect("it runs");
        let kept = life.kept();
        let disk = promises::OnDisk {
            vote: kept.vote,
            last: kept.durable,
            last_term: node.model.term(kept.durable).unwrap_or(0),
        };
        for said in &said {
            tell!(
                self,
                "n{} says to n{}: {}",
                at + 1,
                said.to + 1,
                said.message
            );
            promises::look(said.by as u64 + 1, said.to as u64 + 1, &said.message, disk)?;
        }
        said.clear();
        self.fabric.state().said = said; // Its room is used again.
        Ok(())
    }

    fn hear_news(&mut self) {
        let mut state = self.fabric.state();
        if state.news.is_empty() {
            return;
        }
        let mut news = std::mem::take(&mut state.news);
        drop(state);
        for (node, peer, number, up) in news.drain(..) {
            // The poll did not fail, so it is on its disk that it has met this peer.
            self.nodes[node].met |= u64::from(up) << peer;
            let what = if up { "up" } else { "down" };
            tell!(
                self,
                "n{} hears: connection {number} with n{} is {what}",
                node + 1,
                peer + 1
            );
        }
        self.fabric.state().news = news; // Its room is used again.
    }

    pub(crate) fn look_at_ledger(&mut self) -> Verdict {
        match self.ledger.book().violation.take() {
            None => Ok(()),
            Some(what) => broken("state machines agree", what),
        }
    }

    /// The clients take what the node has answered.
    pub(crate) fn take_answers(&mut self, at: usize, limit: usize) -> Result<usize, super::Broken> {
        let Some(life) = &mut self.nodes[at].life else {
            return Ok(0);
        };
        let mut answers = life.answers.take();
        let taken = life.outbox.drain(limit, |tag, outcome, bytes| {
            let outcome = outcome.map(|index| Reply {
                index,
                bytes: bytes.to_vec(),
            });
            answers.push((tag, outcome));
        });
        let leads = self.nodes[at].seen.0 == Role::Leader;
        let count = answers.len();
        for (op, outcome) in answers {
            tell!(self, "n{} answers operation {op}: {outcome:?}", at + 1);
            let read_elsewhere = matches!(outcome, Ok(_)) && !leads;
            match self.clients.answered(op, outcome)? {
                Became::Done if read_elsewhere => self.counts.add("answer: from a follower"),
                Became::Done => self.counts.add("answer: from a leader"),
                Became::Refused(why) => self.counts.add(why),
                Became::Unknown => self.counts.add("answer: unknown"),
            }
        }
        if count > 0 {
            self.look_at_ledger()?;
        }
        Ok(taken.max(count))
    }

    /// All acts of the node were in vain: it sleeps, unless it says that it has work.
    fn rest(&mut self, at: usize) -> Verdict {
        let now_us = self.now_us;
        let node = &mut self.nodes[at];
        let Some(life) = &mut node.life else {
            return Ok(());
        };
        if let Some((_, until)) = node.stalled {
            let deadline = life.deadline_us();
            node.wake_us = if deadline > now_us {
                deadline.min(until)
            } else {
                until
            };
            return Ok(());
        }
        let has_work = life.has_work();
        if has_work {
            node.hot = EVERYTHING;
            node.spins += 1;
            if node.spins > MOST_SPINS {
                broken(
                    "no spinning",
                    format!("node {} says that it has work, and does none", at + 1),
                )?;
            }
        }
        self.mind_flush(at);
        if has_work {
            return Ok(());
        }
        let node = &mut self.nodes[at];
        let life = node.life.as_mut().expect("it runs");
        node.wake_us = life.deadline_us().max(now_us + 1);
        if let Some(until) = node.drains_until_us {
            let gone = life.is_drained() || life.clock.now_us() >= until;
            node.wake_us = node.wake_us.min(life.clock.true_time_of(until));
            if gone {
                self.left(at)?;
            }
        }
        Ok(())
    }

    /// Nobody has anything to do: the next thing that happens by itself.
    fn jump(&mut self, until_us: u64) -> Verdict {
        let mut next = self.fabric.state().next_us();
        for node in &self.nodes {
            next = next.min(match (&node.life, node.paused_until_us) {
                (Some(_), Some(until)) => until,
                (Some(life), None) => node.wake_us.min(life.flush_done_us.unwrap_or(u64::MAX)),
                (None, _) if node.retired => u64::MAX,
                (None, _) => node.start_us,
            });
        }
        next = next
            .min(self.clients.next_us())
            .min(self.troubles.next_us());
        self.pass(next.min(until_us).max(self.now_us + 1))
    }

    /// It is `now_us`: whatever is due happens.
    pub(crate) fn pass(&mut self, now_us: u64) -> Verdict {
        self.now_us = now_us;
        self.fabric.state().tick(now_us);
        for at in 0..self.nodes.len() {
            self.wake(at)?;
        }
        if self.troubles.next_us() <= now_us {
            self.on_trouble_time()?;
        }
        if self.clients.next_us() <= now_us {
            self.on_client_time()?;
        }
        Ok(())
    }

    fn wake(&mut self, at: usize) -> Verdict {
        let now_us = self.now_us;
        let node = &mut self.nodes[at];
        let Some(life) = &mut node.life else {
            if !node.retired && node.start_us <= now_us {
                self.start(at)?;
            }
            return Ok(());
        };
        life.clock.set(now_us);
        if let Some(until) = node.paused_until_us {
            if until > now_us {
                return Ok(());
            }
            node.paused_until_us = None;
            node.hot = EVERYTHING;
            self.fabric.state().set_deaf(at, false);
        }
        if life.flush_done_us.is_some_and(|done| done <= now_us) {
            node.disk.hold_flushes(false);
            life.flush_done_us = Some(u64::MAX);
            node.hot = EVERYTHING;
        }
        if node.stalled.is_some_and(|(_, until)| until <= now_us) {
            node.stalled = None;
            node.hot = EVERYTHING;
        }
        if node.wake_us <= now_us || self.fabric.state().has_news(at) {
            node.hot = EVERYTHING;
        }
        Ok(())
    }

    fn on_client_time(&mut self) -> Verdict {
        let count = self.clients.due(self.now_us, &self.plan);
        let at = self.clients.pick_node(self.nodes.len());
        if !self.nodes[at].runs() {
            return Ok(());
        }
        for _ in 0..count {
            self.ask(at)?;
        }
        Ok(())
    }

    fn ask(&mut self, at: usize) -> Verdict {
        let node = &mut self.nodes[at];
        let life = node.life.as_ref().expect("it runs");
        node.hot = EVERYTHING;
        match self.clients.ask(at, life, &self.plan) {
            Some(Became::Refused(why)) => {
                self.counts.add(why);
                if why == super::client::name(&ProposeError::Busy) {
                    self.counts.add("mark: refused at once, busy");
                }
            }
            Some(_) => unreachable!("nothing else is known at once"),
            None => {}
        }
        tell!(
            self,
            "n{} is asked for operation {}",
            at + 1,
            self.clients.begun() - 1
        );
        Ok(())
    }

    /// Begins a life of a node, on whatever its disk holds.
    fn start(&mut self, at: usize) -> Verdict {
        let now_us = self.now_us;
        let node = &mut self.nodes[at];
        if !self.calm
            && self
                .plan
                .troubles
                .contains(&super::plan::Trouble::PowerCutInside)
            && self.chance.chance(200_000)
        {
            let step = node.disk.steps() + self.chance.below(24);
            node.disk.fail_at(step, storage::memory::Fault::PowerOff);
            node.armed.power = true;
        }
        node.disk.hold_flushes(true);
        self.panics[at] = Arc::default();
        let machine = Counter::new(at as u64 + 1, self.panics[at].clone(), self.ledger.clone());
        let begun = Life::begin(Start {
            at,
            config: &node.config,
            rings: self.plan.rings,
            disk: &node.disk,
            fabric: &self.fabric,
            machine: Box::new(machine),
            clock: NodeClock::new(now_us, node.rate_ppm, node.wall_offset_us),
            nonce: self.chance.next(),
        });
        let (life, recovered) = match begun {
            Ok(begun) => begun,
            Err(error) => return self.refused_to_start(at, &error),
        };
        for decision in &recovered.decisions {
            if let Some(mark) = super::marks::of_recovery(&decision.found) {
                self.counts.add(mark);
            }
        }
        let before = node.model.clone();
        let kept = node.kept.take().unwrap_or(Kept {
            durable: 0,
            vote: recovered.vote,
        });
        let found = Model::recovered(&life.reader, recovered.vote, &before, kept, &self.registry);
        let model = match (found, node.damaged) {
            (Ok(model), _) => model,
            // What rotted looks like the torn end of a write that nobody was told of, or the directory is new.
            (Err(lost), Some(how)) if lost.check.starts_with("durable") || how == WIPED => {
                self.counts.add("damage: a node went on with less");
                if how != WIPED {
                    tell!(self, "n{} is retired: {}", at + 1, lost.facts);
                    node.retired = true;
                    node.kept = Some(kept);
                    return Ok(());
                }
                Model::default()
            }
            (Err(lost), _) => return Err(lost),
        };
        if model
            .term(model.last())
            .is_some_and(|term| term > recovered.vote.term)
        {
            self.counts
                .add("mark: the log was ahead of the term on disk");
        }
        node.model = model;
        node.life = Some(life);
        node.lives += 1;
        node.hot = EVERYTHING;
        node.wake_us = now_us;
        node.stalled = None;
        node.spins = 0;
        node.drains_until_us = None;
        node.seen = (Role::Follower, 0);
        self.fabric.state().born(at, recovered.identity.incarnation);
        self.counts.add("lives");
        let (last, term) = (recovered.last_index, recovered.vote.term);
        tell!(self, "n{} starts: entries to {last}, term {term}", at + 1);
        self.trace.note(last ^ term << 32);
        Ok(())
    }

    fn refused_to_start(&mut self, at: usize, error: &StorageError) -> Verdict {
        tell!(self, "n{} does not start: {error}", at + 1);
        let now_us = self.now_us;
        let node = &mut self.nodes[at];
        node.start_us = now_us + self.chance.around(self.plan.trouble_us);
        if node.armed.power {
            let seed = self.chance.next();
            node.disk = node.disk.power_cut(Loss::Random(seed));
            node.armed = Armed {
                full: node.no_room,
                ..Armed::default()
            };
            self.counts.add("mark: the power failed in recovery");
            return Ok(());
        }
        if node.damaged.is_some() {
            node.retired = true;
            self.counts.add("damage: a node refused to start");
            return Ok(());
        }
        if node.armed.full || node.armed.error {
            self.counts.add("mark: a node could not start for its disk");
            return Ok(());
        }
        broken(
            "a node starts",
            format!("node {} does not: {error}", at + 1),
        )
    }

    /// A stage has ended the node.
    fn stopped(&mut self, at: usize, fault: Fault) -> Verdict {
        tell!(self, "n{} stops: {fault}", at + 1);
        // Some of what it was about to write may have reached the disk.
        self.follow_log(at)?;
        let node = &mut self.nodes[at];
        let armed = node.armed;
        let expected = match &fault {
            Fault::Storage(_) => armed.error || armed.power || armed.full || node.damaged.is_some(),
            Fault::StateMachine(_) => armed.panic,
            Fault::Network(_) => false,
        };
        if !expected {
            broken(
                "no fault without a cause",
                format!("node {} stops: {fault}", at + 1),
            )?;
        }
        if armed.power {
            // Nobody is there any more to tell anybody.
            let seed = self.chance.next();
            return self.end(at, End::PowerCut(Loss::Random(seed)));
        }
        self.counts.add("mark: a node stopped with a fault");
        node.life.as_mut().expect("it ran").fail(fault);
        self.drain_answers(at)?;
        // The bytes of a failed write are in the page cache, clean: nobody would flush them again. The machine is
        // restarted, as an operator does whose disk fails.
        let end = if armed.error {
            End::PowerCut(Loss::Random(self.chance.next()))
        } else {
            End::Killed
        };
        self.end(at, end)
    }

    fn drain_answers(&mut self, at: usize) -> Verdict {
        while self.take_answers(at, usize::MAX)? > 0 {}
        if let Some(op) = self.clients.open_on(at) {
            broken(
                "every request is answered",
                format!(
                    "operation {op} has no answer, and node {} has ended in order",
                    at + 1
                ),
            )?;
        }
        Ok(())
    }

    /// It has left in order.
    fn left(&mut self, at: usize) -> Verdict {
        let life = self.nodes[at].life.as_mut().expect("it runs");
        if let Err(fault) = life.close() {
            return self.stopped(at, fault);
        }
        self.follow_log(at)?;
        self.drain_answers(at)?;
        self.counts.add("mark: a node left in order");
        self.end(at, End::Killed)
    }

    /// The process is gone.
    pub(crate) fn end(&mut self, at: usize, how: End) -> Verdict {
        let again_us = self.now_us + self.chance.around(self.plan.trouble_us);
        let node = &mut self.nodes[at];
        let Some(life) = node.life.take() else {
            return Ok(());
        };
        node.kept = Some(life.kept());
        if life.flush_done_us.is_some() {
            self.counts.add("mark: ended while a flush was in flight");
        }
        for gauge in life.shared.gauges() {
            self.counts
                .add_many(super::marks::of_full_ring(gauge.name()), gauge.full_count());
        }
        drop(life);
        if let End::PowerCut(loss) = how {
            node.disk = node.disk.power_cut(loss);
        }
        node.armed = Armed {
            full: node.no_room,
            error: node.armed.error && how == End::Killed,
            power: node.armed.power && how == End::Killed,
            panic: false,
        };
        node.start_us = again_us;
        node.paused_until_us = None;
        node.stalled = None;
        node.hot = 0;
        node.seen = (Role::Follower, 0);
        node.owes = None;
        self.fabric.state().news.clear();
        self.clients.abandoned(at);
        let silently = matches!(how, End::PowerCut(_)) && self.chance.chance(500_000);
        self.fabric.state().died(at, silently);
        tell!(self, "n{} is gone: {how:?}", at + 1);
        self.look_at_ledger()
    }
}

/// How a node is damaged whose directory is empty.
pub(crate) const WIPED: &str = "wiped";

impl SimNode {
    fn new(at: usize, plan: &Plan, chance: &mut Rng) -> Self {
        let mut config = plan.config.clone();
        config.id = NodeId(at as u32 + 1);
        Self {
            config,
            disk: Memory::new(chance.next()),
            life: None,
            lives: 0,
            model: Model::default(),
            kept: None,
            rate_ppm: TRUE_RATE - plan.skew_ppm + chance.below(2 * plan.skew_ppm + 1),
            wall_offset_us: chance.below(2_000_000) as i64 - 1_000_000,
            paused_until_us: None,
            start_us: chance.below(100_000),
            slow_until_us: 0,
            armed: Armed::default(),
            no_room: false,
            damaged: None,
            retired: false,
            drains_until_us: None,
            hot: 0,
            wake_us: 0,
            stalled: None,
            spins: 0,
            seen: (Role::Follower, 0),
            owes: None,
            met: 0,
            wiped: None,
        }
    }
}
