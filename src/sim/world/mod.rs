//! The loop: some stage of some node is polled, then another; when nobody has anything to do, time jumps.
//!
//! Nothing in here knows what a stage does. The order of polls is drawn from the seed; a node sleeps when all of its
//! stages have been polled in vain and none of them says that it has work, which is how the product's threads decide.
//! Time stands still while somebody has work, but for the little that polls may cost.

mod checks;
mod faults;
mod liveness;
pub(crate) mod restart;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::ProposeError;
use crate::request::token::Reply;
use crate::sim::clients::operation;
use crate::sim::clients::{Became, Clients, Want};
use crate::sim::counts::Counts;
use crate::sim::fault_schedule::Troubles;
use crate::sim::invariants::leadership::Office;
use crate::sim::invariants::logs::Registry;
use crate::sim::invariants::{Broken, Verdict, broken};
use crate::sim::machine::ledger::Ledger;
use crate::sim::network::Fabric;
use crate::sim::node::SimNode;
use crate::sim::node::act::{ACTS, Act, CLIENT, EVERYTHING};
use crate::sim::plan::Plan;
use crate::sim::rng::Rng;
use crate::sim::trace::{Listener, Trace};
use crate::status::Role;

/// Turns without work after which a node that says it has some is taken to spin.
const MOST_SPINS: u32 = 1_000;

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
    pub(crate) fn run(&mut self, until_us: u64, most: u64) -> Result<bool, Broken> {
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
    pub(crate) fn pick(&mut self) -> Option<(usize, u16)> {
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

    pub(crate) fn step(&mut self, at: usize, bit: u16) -> Verdict {
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
            node.spins = 0;
            node.hot |= match bit {
                _ if self.plan.thorough => EVERYTHING,
                CLIENT => CLIENT,
                _ => ACTS[bit.trailing_zeros() as usize].feeds(),
            };
        } else {
            node.hot &= !bit;
        }
        if node.ready() == 0 {
            self.rest(at)?;
        }
        Ok(())
    }

    /// One poll of a stage, and a look at what it has done. `None`: it was the node's last.
    pub(crate) fn poll(&mut self, at: usize, act: Act) -> Result<Option<usize>, Broken> {
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

    /// A flush has begun, or is over: its end is for the world to say.
    pub(crate) fn mind_flush(&mut self, at: usize) {
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

    /// The clients take what the node has answered.
    pub(crate) fn take_answers(&mut self, at: usize, limit: usize) -> Result<usize, Broken> {
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
            let read_elsewhere = outcome.is_ok() && !leads;
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
        if leads && count > 0 {
            self.duel(at)?;
        }
        Ok(taken.max(count))
    }

    /// All acts of the node were in vain: it sleeps, unless it says that it has work.
    pub(crate) fn rest(&mut self, at: usize) -> Verdict {
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
    pub(crate) fn jump(&mut self, until_us: u64) -> Verdict {
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
        self.clients.it_is(now_us);
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

    pub(crate) fn wake(&mut self, at: usize) -> Verdict {
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
            node.hot |= Act::Finish.bit();
        }
        if node.stalled.is_some_and(|(_, until)| until <= now_us) {
            node.stalled = None;
            node.hot = EVERYTHING;
        }
        if node.wake_us <= now_us {
            node.hot = EVERYTHING;
            // Until it rests again; what it says then is when it wakes next.
            node.wake_us = u64::MAX;
        }
        if self.fabric.state().has_news(at) {
            node.hot |= Act::Receive.bit();
        }
        Ok(())
    }

    pub(crate) fn on_client_time(&mut self) -> Verdict {
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

    /// `newer` leads, and has just committed or answered something. Should an older leader still believe in its office,
    /// more is written through the one and read from the other: what they say must fit together.
    pub(crate) fn duel(&mut self, newer: usize) -> Verdict {
        let (role, term) = self.nodes[newer].seen;
        let is_older =
            |node: &SimNode| node.runs() && node.seen.0 == Role::Leader && node.seen.1 < term;
        let older = self.nodes.iter().position(is_older);
        let Some(older) = older.filter(|_| role == Role::Leader && !self.calm) else {
            return Ok(());
        };
        if self.clients.open() > self.plan.most_open {
            return Ok(());
        }
        self.counts.add("mark: an older leader was read from");
        if self.nodes[newer].runs() {
            self.ask_for(newer, Want::Write)?;
        }
        self.ask_for(older, Want::Read)
    }

    pub(crate) fn ask(&mut self, at: usize) -> Verdict {
        self.ask_for(at, Want::Any)
    }

    fn ask_for(&mut self, at: usize, want: Want) -> Verdict {
        let node = &mut self.nodes[at];
        let life = node.life.as_ref().expect("it runs");
        node.hot |= Act::Consensus.bit() | Act::Apply.bit();
        let own_us = life.clock.now_us();
        let has_lease = life.stages.consensus.core().lease_index(own_us).is_some();
        let became = self.clients.ask(at, life, &self.plan, want);
        if has_lease && self.clients.has_just_asked_by_lease() {
            self.counts
                .add("mark: a lease ran when a read asked for it");
        }
        match became {
            Some(Became::Refused(why)) => {
                self.counts.add(why);
                if why == operation::name(&ProposeError::Busy) {
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
}
