//! After each poll: a look at everything that it may have broken.
//!
//! Which look is due depends on the act, so that a poll is cheap to check: a write is followed in the log's model, a
//! decision is held against all logs at that very moment, a message against the sender's disk as it leaves.

use std::sync::atomic::Ordering;

use storage::Dir;

use crate::sim::invariants::leadership::Copy;
use crate::sim::invariants::{Verdict, bounds, broken, promises};
use crate::sim::node::act::Act;
use crate::sim::node::{DAMAGED, REJOINS, ROTTEN, SimNode};
use crate::sim::world::{World, tell};
use crate::status::Role;

impl World<'_> {
    /// Everything that a poll may have broken.
    pub(crate) fn look(
        &mut self,
        at: usize,
        act: Act,
        work: usize,
        before: (bool, u64),
    ) -> Verdict {
        let number = at as u64 + 1;
        match act {
            Act::Finish | Act::Flush => self.mind_flush(at),
            Act::Write if work > 0 => {
                self.follow_log(at)?;
                self.look_whether_healed(at);
            }
            Act::Save if work > 0 => self.look_whether_mended(at),
            Act::Consensus if work > 0 => self.look_at_office(at, before)?,
            Act::Send if work > 0 => self.look_at_promises(at)?,
            Act::Receive if work > 0 => self.hear_news(),
            Act::Apply | Act::Reply if work > 0 => self.look_at_ledger()?,
            _ => {}
        }
        let node = &mut self.nodes[at];
        let life = node.life.as_mut().expect("it runs");
        let own_us = life.clock.now_us();
        life.bells.look(
            number,
            (act, work),
            own_us,
            &mut life.stages,
            &mut life.aside,
        )?;
        if work == 0 {
            return Ok(());
        }
        bounds::positions(number, life, act)?;
        bounds::memory(number, life, &node.config)
    }

    pub(crate) fn follow_log(&mut self, at: usize) -> Verdict {
        let node = &mut self.nodes[at];
        let life = node.life.as_ref().expect("it runs");
        let base = life.stages.append.log().first() - 1;
        let followed = node.model.follow(
            &life.reader,
            base,
            &|index| self.office.term(index),
            &mut self.registry,
        )?;
        if life.stages.append.flushing() {
            self.counts.add("mark: written while a flush was in flight");
        }
        if followed.replaced {
            self.counts.add("mark: a snapshot took the place of a log");
            tell!(self, "n{} has a snapshot up to {base}", at + 1);
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

    /// A record that had gone bad under the node is what it was.
    fn look_whether_mended(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(life) = &node.life else {
            return;
        };
        let repairs = life.shared.repairs().clone();
        if repairs.mended > node.mended {
            self.counts.add("mark: a record was put back");
            tell!(self, "n{}: {}", at + 1, repairs.last.unwrap_or_default());
            if node.damaged == Some(ROTTEN) {
                node.damaged = None;
            }
        }
        node.mended = repairs.mended;
    }

    /// The node has forgotten, durably, that something was missing.
    fn look_whether_healed(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let may_heal = [Some(DAMAGED), Some(REJOINS)].contains(&node.damaged);
        if !may_heal || node.had.is_none() {
            return;
        }
        let names = node.disk.list("").unwrap_or_default();
        if !names.iter().any(|name| name == "heal") {
            if node.damaged == Some(REJOINS) {
                node.config.rejoin_with_nothing = false;
                self.counts.add("mark: a wiped node has everything again");
            }
            node.damaged = None;
            node.had = None;
            self.counts.add("mark: a node is healed");
            tell!(self, "n{} is healed", at + 1);
        }
    }

    pub(crate) fn look_at_office(
        &mut self,
        at: usize,
        (flushing, term_before): (bool, u64),
    ) -> Verdict {
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
            self.look_at_leases(at, term)?;
            if self.nodes.iter().enumerate().any(|(other, node)| {
                other != at && node.seen.0 == Role::Leader && node.life.is_some()
            }) {
                self.counts
                    .add("mark: two leaders of different terms at once");
            }
            // It may hear so late of its election that another leads a later term, and has committed more.
            self.nodes[at].owes = Some((term, start, self.office.committed_before(term)));
        }
        self.look_at_completeness(at)?;
        if role == Role::Leader {
            self.look_at_peers(at);
        }
        if !moved {
            return Ok(());
        }
        tell!(self, "n{} commits {committed}", at + 1);
        let term = match before {
            _ if role == Role::Leader => term,
            // It committed as a leader and lost that office, both in this poll.
            (Role::Leader, led) if committed > self.office.committed() => led,
            _ => return self.office.follows(at, committed),
        };
        let logs: Vec<Copy<'_>> = self.nodes.iter().map(SimNode::copy).collect();
        let fresh = self.office.commits(at, term, committed, &logs)?;
        self.clients.commits(committed);
        if fresh.earlier_terms {
            self.counts
                .add("mark: entries of an earlier term committed through a new one");
        }
        if fresh.before_own_flush {
            self.counts
                .add("mark: committed before the leader's own flush");
        }
        self.duel(at)
    }

    /// Nobody is elected while a lease of an older leader runs, by that leader's own clock.
    fn look_at_leases(&mut self, at: usize, term: u64) -> Verdict {
        for (other, node) in self.nodes.iter().enumerate() {
            let Some(life) = &node.life else { continue };
            let own_us = life.clock.now_us();
            let lease = life.stages.consensus.core().lease_index(own_us);
            let held = life.shared.term();
            // Who hears late of its election may find a newer leader in office.
            if lease.is_none() || held >= term {
                continue;
            }
            broken(
                "a lease ends before another leads",
                format!(
                    "node {} leads term {term}, and the lease of node {} of term {held} runs",
                    at + 1,
                    other + 1
                ),
            )?;
        }
        Ok(())
    }

    /// A new leader's log is looked at when all that it had before its office has been written.
    pub(crate) fn look_at_completeness(&mut self, at: usize) -> Verdict {
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

    pub(crate) fn note_role(&mut self, before: (Role, u64), now: (Role, u64)) {
        if before.0 == Role::Leader && now.0 != Role::Leader && before.1 == now.1 {
            self.counts
                .add("mark: a leader stepped down within its term");
        }
        if before.0 == Role::Candidate && now.0 == Role::Follower && before.1 == now.1 {
            self.counts
                .add("mark: a candidate gave way within its term");
        }
    }

    pub(crate) fn look_at_peers(&mut self, at: usize) {
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

    pub(crate) fn look_at_promises(&mut self, at: usize) -> Verdict {
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

    pub(crate) fn hear_news(&mut self) {
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
}
