//! When nothing goes wrong any more, everything must come to its end within a time that can be named.

use std::sync::atomic::Ordering;

use crate::sim::invariants::{Verdict, broken};
use crate::sim::node::REJOINS;
use crate::sim::node::act::EVERYTHING;
use crate::sim::world::World;
use crate::sim::world::restart::WIPED;
use crate::status::Role;

impl World<'_> {
    /// A leader is there, requests end, new ones go through, and all nodes have applied the same. `most`: steps.
    pub(crate) fn must_live(&mut self, most: u64) -> Verdict {
        self.clients.retire();
        self.put_right()?;
        let config = &self.plan.config;
        let election_us = config.election_timeout.as_micros() as u64;
        let proposal_us = config.proposal_timeout.as_micros() as u64;
        let stall_us = self.plan.weather.stall_us;
        // Clocks may run slow; connections are given up and made again; a log may have to be caught up with.
        let bound_us = 2 * (stall_us + 30 * election_us + 2 * proposal_us) + 1_000_000;
        let from_us = self.now_us;
        let most = most.saturating_add(20_000_000);
        let mut last: Option<u64> = None;
        loop {
            if !self.run(self.now_us + election_us / 4, most)? {
                return broken("liveness", "no end after 20 million polls");
            }
            if last.is_some_and(|op| self.is_through(op)) && self.is_settled() {
                break;
            }
            if self.now_us > from_us + bound_us {
                return broken(
                    "liveness",
                    self.what_is_missing(self.now_us - from_us, last),
                );
            }
            let leader = self.leader();
            if let Some(leader) = leader
                && self.clients.open() == 0
                && self.clients.unresolved() > 0
            {
                self.try_again(leader);
                continue;
            }
            if let Some(leader) = leader
                .filter(|_| self.clients.open() == 0 && last.is_none_or(|op| !self.is_through(op)))
            {
                let life = self.nodes[leader].life.as_ref().expect("it leads");
                let (op, refused) = self.clients.ask_plainly(leader, life);
                self.nodes[leader].hot = EVERYTHING;
                if refused.is_none() {
                    last = Some(op);
                }
            }
        }
        self.counts
            .add_many("simulated us to settle", self.now_us - from_us);
        Ok(())
    }

    /// On any node but one that was wiped, and is refused for that: each try there would wait as long as it may, and where a
    /// window is short there are many to come, one after the other.
    fn try_again(&mut self, leader: usize) {
        let count = self.nodes.len();
        let first = self.clients.pick_node(count);
        let takes_part = |at: &usize| {
            let node = &self.nodes[*at];
            node.runs() && (node.damaged != Some(WIPED) || *at == leader)
        };
        let at = (first..first + count)
            .map(|at| at % count)
            .find(takes_part)
            .expect("the leader does");
        let node = &mut self.nodes[at];
        let life = node.life.as_ref().expect("it runs");
        self.clients.try_again(at, life);
        node.hot = EVERYTHING;
    }

    fn is_through(&self, op: u64) -> bool {
        !self.clients.is_open(op) && self.ledger.book().place_of(op).is_some()
    }

    /// Nodes that must take part: their disks are their own and sound. Others may, if they can.
    fn sound(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len())
            .filter(|&at| !self.nodes[at].retired && self.nodes[at].damaged.is_none())
    }

    /// Who leads, by the word of all that can know.
    fn leader(&self) -> Option<usize> {
        let leader = (0..self.nodes.len())
            .filter(|&at| self.nodes[at].life.is_some() && self.nodes[at].seen.0 == Role::Leader)
            .max_by_key(|&at| self.nodes[at].seen.1)?;
        let follows = |at: usize| {
            self.nodes[at].life.as_ref().is_some_and(|life| {
                life.shared
                    .leader()
                    .is_some_and(|of| of.0 as usize == leader + 1)
            })
        };
        self.sound().all(follows).then_some(leader)
    }

    /// Nobody waits, who was wiped and rejoins is sound again, and all have applied the same.
    fn is_settled(&self) -> bool {
        // Behind the last entry of the ledger there may be queries that went through the log.
        let committed = self.office.committed();
        self.clients.open() + self.clients.unresolved() == 0
            && self.leader().is_some()
            && committed >= self.ledger.book().last()
            && !self.is_any(|how| how == REJOINS)
            && self.sound().all(|at| {
                self.nodes[at].life.as_ref().is_some_and(|life| {
                    life.shared.marks.applied.load(Ordering::Relaxed) == committed
                })
            })
    }

    fn what_is_missing(&self, after_us: u64, last: Option<u64>) -> String {
        let nodes: Vec<String> = (0..self.nodes.len())
            .map(|at| {
                let node = &self.nodes[at];
                match &node.life {
                    None => format!("n{} down (retired: {})", at + 1, node.retired),
                    Some(life) => format!("n{} {}", at + 1, life.node.status()),
                }
            })
            .collect();
        format!(
            "after {after_us} us without trouble: {} operations are open, {} commands unresolved, the last one asked is {last:?}; {}",
            self.clients.open(),
            self.clients.unresolved(),
            nodes.join("; ")
        )
    }
}
