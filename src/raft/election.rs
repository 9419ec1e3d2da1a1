//! How a leader comes into office.
//!
//! A node that hears no leader asks first whether it could win (pre-vote, thesis §9.6): no term is
//! raised for that, so a node that was cut off does not depose anybody when it comes back. Only
//! then it takes up a new term, writes down its vote for itself, and when that is durable asks the
//! others.
//!
//! What holds: a node votes once a term, whatever it becomes in between, since the vote is kept
//! with the term and never cleared within it. A node that hears its leader ignores who stands
//! (stickiness, §4.2.3), and raises no term for it; so does one that has promised its leader a lease
//! (`lease.rs`), and that one does not stand either. The timer is set anew by a granted vote or a
//! leader's message and by nothing else.

use crate::raft::durable::Promise;
use crate::raft::quorum::Tally;
use crate::raft::{Core, Message, Output, Role, Sizes};

impl Core {
    /// One to two election timeouts from now.
    pub(super) fn reset_election_timer(&mut self) {
        let timeout = self.settings.election_timeout_us;
        self.election_due_us = self.now_us + timeout + self.rng.below(timeout);
    }

    pub(super) fn idle_role(&self) -> Role {
        if self.membership.is_voter(self.id()) {
            Role::Follower
        } else {
            Role::Learner
        }
    }

    /// Follows whoever leads `term`, which is not lower than its own.
    pub(super) fn follow(&mut self, term: u64, leader: Option<u64>) {
        assert!(self.term <= term, "from term {} back to {term}", self.term);
        let before = (self.role, self.term, self.leader);
        let was_leader = self.role == Role::Leader;
        if term > self.term {
            self.save_vote(term, None);
        }
        self.role = self.idle_role();
        self.leader = leader;
        if was_leader {
            self.step_down();
            self.reset_election_timer();
        }
        if before != (self.role, self.term, self.leader) {
            if before.2.is_some() && before.2 != self.leader {
                self.fail_asked_reads();
            }
            self.announce_role();
        }
    }

    pub(super) fn save_vote(&mut self, term: u64, vote: Option<u64>) {
        assert!(
            term > self.term || self.vote.is_none() || self.vote == vote,
            "a second vote in term {term}: for {vote:?} after {:?}",
            self.vote
        );
        self.term = term;
        self.vote = vote;
        let write = self.durable.issue_vote(self.now_us);
        self.outputs
            .push_back(Output::SaveVote { write, term, vote });
    }

    /// The connection to the leader broke: a leader whose process ended is not waited for. Should
    /// it live, nothing is lost: those that still hear it ignore who stands, and no term is raised
    /// by asking.
    pub(super) fn miss_leader(&mut self) {
        self.fail_asked_reads();
        self.heard_leader_us = None;
        let quarter = self.settings.election_timeout_us / 4;
        self.election_due_us = self
            .election_due_us
            .min(self.now_us + quarter + self.rng.below(quarter));
    }

    /// The timer has run out: asks whether it could win.
    pub(super) fn campaign(&mut self, sizes: &impl Sizes) {
        self.reset_election_timer();
        let stalled = self.durable.stalled_us(self.now_us) >= self.settings.disk_stall_us;
        let lacks_committed = self.log.last() < self.known_committed;
        let waits = self.is_healing() || self.awaits_peers() || lacks_committed;
        if self.idle_role() == Role::Learner || stalled || waits {
            return;
        }
        if let Some(until_us) = self.bound_until() {
            // To stand is to vote for oneself.
            let spread = self.rng.below(self.settings.election_timeout_us / 4);
            self.election_due_us = self.election_due_us.min(until_us + spread);
            return;
        }
        self.leader = None;
        self.role = Role::PreCandidate;
        self.fail_asked_reads();
        self.announce_role();
        self.votes.clear();
        self.count_vote(self.id(), true);
        if !self.decide(sizes) {
            self.ask_for_votes(true);
        }
    }

    /// A quorum would vote for it: takes up a new term. It stands when its own vote is durable.
    fn take_up_term(&mut self) {
        self.role = Role::Candidate;
        self.votes.clear();
        self.save_vote(self.term + 1, Some(self.id()));
        self.announce_role();
        self.durable
            .hold(self.durable.vote(), self.term, Promise::Stand);
    }

    /// The own vote is durable.
    pub(super) fn stand(&mut self, sizes: &impl Sizes) {
        if self.role != Role::Candidate {
            return; // It follows somebody of the same term by now.
        }
        self.count_vote(self.id(), true);
        if !self.decide(sizes) {
            self.ask_for_votes(false);
        }
    }

    fn ask_for_votes(&mut self, pre: bool) {
        let term = self.term + u64::from(pre);
        let message = Message::Vote {
            term,
            pre,
            last_index: self.log.last(),
            last_term: self.log.last_term(),
        };
        for at in 0..self.peers.len() {
            let id = self.peers[at].id;
            if self.membership.is_voter(id) {
                self.send(id, message);
            }
        }
    }

    fn count_vote(&mut self, from: u64, granted: bool) {
        if !self.votes.iter().any(|vote| vote.0 == from) {
            self.votes.push((from, granted));
        }
    }

    /// Acts on the votes so far; true when they decided something.
    fn decide(&mut self, sizes: &impl Sizes) -> bool {
        let votes = &self.votes;
        let tally = self
            .membership
            .tally(|id| votes.iter().find(|vote| vote.0 == id).map(|vote| vote.1));
        match (tally, self.role) {
            (Tally::Won, Role::PreCandidate) => self.take_up_term(),
            (Tally::Won, Role::Candidate) => self.become_leader(sizes),
            (Tally::Lost, _) => self.follow(self.term, None),
            _ => return false,
        }
        true
    }

    fn hears_its_leader(&self) -> bool {
        self.role == Role::Leader
            || self.leader.is_some()
                && self
                    .heard_leader_us
                    .is_some_and(|at| self.now_us < at + self.settings.election_timeout_us)
    }

    /// `theirs` is the candidate's last term and index.
    pub(super) fn on_vote(&mut self, from: u64, term: u64, pre: bool, theirs: (u64, u64)) {
        if term > self.term && (self.hears_its_leader() || self.bound_until().is_some()) {
            return;
        }
        if self.awaits_peers() {
            return;
        }
        // Whoever has not what is known to be committed can be elected only where a disk has lost what it had acknowledged.
        let up_to_date = theirs >= self.measure() && theirs.1 >= self.known_committed;
        if pre {
            let granted = term > self.term && up_to_date;
            // A grant names the term asked about; a refusal the own one, for a candidate that is
            // behind.
            let term = if granted { term } else { self.term };
            self.promise(
                self.durable.vote(),
                from,
                Message::VoteReply { term, pre, granted },
            );
            return;
        }
        let newer = term > self.term;
        let free = newer || (term == self.term && (self.vote.is_none() || self.vote == Some(from)));
        let granted = free && up_to_date;
        if newer {
            // A leader is not here: it hears itself, and has ignored who stands.
            assert!(
                self.role != Role::Leader,
                "the leader of term {} votes in term {term}",
                self.term
            );
            self.save_vote(term, granted.then_some(from));
            self.role = self.idle_role();
            self.leader = None;
            self.fail_asked_reads();
            self.announce_role();
        } else if granted && self.vote.is_none() {
            self.save_vote(term, Some(from));
        }
        if granted {
            self.reset_election_timer();
        }
        self.promise(
            self.durable.vote(),
            from,
            Message::VoteReply {
                term: self.term,
                pre,
                granted,
            },
        );
    }

    pub(super) fn on_vote_reply(
        &mut self,
        from: u64,
        term: u64,
        pre: bool,
        granted: bool,
        sizes: &impl Sizes,
    ) {
        let asked = match self.role {
            Role::PreCandidate => pre && (!granted && term <= self.term || term == self.term + 1),
            Role::Candidate => !pre && term == self.term,
            _ => false,
        };
        if !granted && term > self.term {
            self.follow(term, None);
        } else if asked {
            self.count_vote(from, granted);
            self.decide(sizes);
        }
    }
}
