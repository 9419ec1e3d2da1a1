//! Reads without a round: for as long as a quorum has promised to elect nobody else (thesis §6.4.1).
//!
//! With its heartbeats a leader asks the voters for a promise: to vote for nobody and not to stand
//! for one election timeout from the moment they were asked. Its lease runs from the moment when it
//! *sent* what a quorum has promised since, for an election timeout less what the clocks may have
//! drifted apart meanwhile. Clocks whose rates are off by at most `d` measure the same time to within
//! `(1 + d) / (1 - d)`, so the lease is the election timeout times `(1 - d) / (1 + d)`: when the
//! first promise ends, the lease has ended before.
//!
//! What holds:
//! - A promise is about votes, those of a node for itself too, whatever becomes of the connection to
//!   the leader (stickiness ends with the connection, a promise does not).
//! - A node that starts may have promised something in its last life: it is bound for an election
//!   timeout from its start. It promises nothing longer than that, nor when leases are off with it,
//!   so nodes that are configured differently get along without a lease and not with a wrong one.
//! - Send times are taken before the message leaves, promises count from a look at the clock after
//!   it has come ([`Core::look_at_clock`]): a thread that stood still in between only shortens the
//!   lease or lengthens the promise.
//! - Whoever loses or gives up the office has no lease. Check-quorum, without which a lease is no good,
//!   cannot be switched off. Whatever will change the membership or hand over the office has to end
//!   the lease first.
//!
//! Why the answer is linearizable. Let the clock be looked at, at a moment `m` after the read has
//! come, and show that the lease runs. Then nobody else was elected before `m` (a quorum that would
//! have, has a member in common with the one that is bound), so everything that was acknowledged
//! anywhere before `m` was committed by this leader or its predecessors, and its commit index at `m`
//! covers that, given that an entry of its own term is committed. The read is answered from a state
//! that has this index applied: it sees every write that was acknowledged before it came, and nothing
//! that is not committed. That stays true however late the answer is given, so a pause after `m` is
//! harmless, and the deadline need not be looked at again where the answer is made. A pause *before*
//! `m` is what must be seen: hence the look at the clock comes after the read was taken from its
//! ring, never before, and the clock is one that goes on while the machine is suspended.

use std::collections::VecDeque;

use crate::raft::{Core, Message, Role};

/// Questions for promises that are remembered with their time; older ones count no more.
const MAX_ASKED: usize = 64;

#[derive(Debug)]
pub(crate) struct Lease {
    /// As a leader: `(number, when it was sent)`. Numbers rise over the whole life of the process.
    asked: VecDeque<(u64, u64)>,
    number: u64,
    /// As a leader: the latest question that each peer has said yes to.
    promised: Vec<(u64, u64)>,
    /// As a leader: when the lease ends.
    until_us: u64,
    /// Until then this node votes for nobody, and does not stand.
    bound_us: u64,
    /// The latest look at the clock.
    looked_us: u64,
}

impl Lease {
    /// `bound_us`: until when a promise of the last life may run.
    pub(super) fn new(bound_us: u64) -> Self {
        Self {
            asked: VecDeque::with_capacity(MAX_ASKED),
            number: 0,
            promised: Vec::with_capacity(16),
            until_us: 0,
            bound_us,
            looked_us: 0,
        }
    }
}

/// What is left of a timeout when the clock that measures it may be slow, and the others' fast, by
/// `drift_ppm`.
pub(crate) fn certain_us(timeout_us: u64, drift_ppm: u32) -> u64 {
    let (timeout, drift) = (u128::from(timeout_us), u128::from(drift_ppm));
    let certain = timeout * 1_000_000_u128.saturating_sub(drift) / (1_000_000 + drift);
    // Both clocks are read in whole microseconds.
    u64::try_from(certain).unwrap_or(0).saturating_sub(2)
}

impl Core {
    /// What the clock shows, now that a message is at hand: a promise is counted from here. The time
    /// of the turn may be from before the message was sent.
    pub(crate) fn look_at_clock(&mut self, now_us: u64) {
        self.lease.looked_us = now_us;
    }

    /// The index that a read must see, if the lease answers for it. `now_us` is a look at the clock
    /// that was taken after the read had come.
    pub(crate) fn lease_index(&self, now_us: u64) -> Option<u64> {
        let runs = self.role == Role::Leader && now_us < self.lease.until_us && self.knows_commit();
        runs.then_some(self.commit)
    }

    /// Asks everybody who votes for a promise; due with every heartbeat.
    pub(super) fn ask_for_promises(&mut self) {
        if self.settings.lease_us.is_none() {
            return;
        }
        if self.lease.asked.len() == MAX_ASKED {
            self.lease.asked.pop_front();
        }
        self.lease.number += 1;
        let (term, number) = (self.term, self.lease.number);
        let promise_us = self.settings.election_timeout_us;
        self.lease.asked.push_back((number, self.now_us));
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            if peer.up && self.membership.is_voter(peer.id) {
                let to = peer.id;
                self.send(
                    to,
                    Message::LeaseAsk {
                        term,
                        number,
                        promise_us,
                    },
                );
            }
        }
        self.count_promises(); // In a group of one that is all.
    }

    pub(super) fn on_lease_ask(&mut self, from: u64, term: u64, number: u64, promise_us: u64) {
        if !self.hear_leader(from, term)
            || self.settings.lease_us.is_none()
            || promise_us > self.settings.election_timeout_us
        {
            return;
        }
        let now_us = self.now_us.max(self.lease.looked_us);
        self.lease.bound_us = self.lease.bound_us.max(now_us + promise_us);
        let term = self.term;
        self.promise(
            self.durable.vote(),
            from,
            Message::LeasePromise { term, number },
        );
    }

    pub(super) fn on_lease_promise(&mut self, from: u64, term: u64, number: u64) {
        if term != self.term || self.role != Role::Leader || number > self.lease.number {
            return;
        }
        let promised = &mut self.lease.promised;
        match promised.iter_mut().find(|peer| peer.0 == from) {
            Some(peer) => peer.1 = peer.1.max(number),
            None => promised.push((from, number)),
        }
        self.count_promises();
    }

    fn count_promises(&mut self) {
        let Some(lease_us) = self.settings.lease_us else {
            return;
        };
        let (own, number) = (self.id(), self.lease.number);
        let promised = &self.lease.promised;
        let reached = self.membership.reached(|id| {
            if id == own {
                number
            } else {
                let peer = promised.iter().find(|peer| peer.0 == id);
                peer.map_or(0, |peer| peer.1)
            }
        });
        let asked = self.lease.asked.iter().find(|asked| asked.0 == reached);
        if let Some(&(_, sent_us)) = asked {
            self.lease.until_us = self.lease.until_us.max(sent_us + lease_us);
        }
    }

    /// The office is over.
    pub(super) fn end_lease(&mut self) {
        self.lease.asked.clear();
        self.lease.promised.clear();
        self.lease.until_us = 0;
    }

    /// When this node is free to vote and to stand, if it is not by now.
    pub(super) fn bound_until(&self) -> Option<u64> {
        Some(self.lease.bound_us).filter(|&until| self.now_us < until)
    }
}

#[cfg(test)]
mod tests {
    use super::certain_us;

    #[test]
    fn a_lease_ends_before_the_first_promise_on_clocks_within_the_bound() {
        for drift in [0_u32, 1, 500, 10_000, 200_000, 499_999] {
            let lease = certain_us(1_000_000, drift);
            // The leader's clock is as slow as may be, the follower's as fast.
            let leader_takes = lease as f64 / (1.0 - f64::from(drift) / 1e6);
            let promise_takes = 1e6 / (1.0 + f64::from(drift) / 1e6);
            assert!(leader_takes < promise_takes, "{drift} ppm");
            assert!(
                leader_takes > promise_takes - 10.0,
                "{drift} ppm: no more is given up than must be"
            );
        }
        assert_eq!(certain_us(1, 0), 0, "what is too short is nothing");
    }
}
