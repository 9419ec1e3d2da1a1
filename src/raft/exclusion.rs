//! A node whose directory may be the wrong one.
//!
//! A node that starts with an empty directory cannot know whether its cluster is just being founded, or whether the volume with
//! its log is not mounted. Its peers can: each keeps the incarnation of every directory that it has met, and refuses another
//! one (`net/src/hello.rs`). Two rules make use of that.
//!
//! **Exclusion.** A node that any peer has refused for its incarnation has promised things in another directory that this one
//! knows nothing of. It takes no part from then on: it steps down, neither campaigns nor votes, follows nobody and acknowledges
//! nothing, and what waits for its disk before it is said is never said. The refusal is durable before the core hears of it, and
//! only the operator ends it.
//!
//! **Founding.** A node that has never taken part in anything - no term, no entry - first waits for the refusal that may come: it
//! neither campaigns nor votes before it has been connected with every peer for a quarter of an election timeout - a refusal
//! comes at once -, or `founding_wait_us` is over. A leader of some term is followed at once. What is left: a majority of empty
//! directories that cannot reach any of the others for so long elects a leader, and acknowledges. They find out when the first
//! of the others is reached.

use crate::raft::{Core, Role};

impl Core {
    /// A peer knows this node with another directory.
    pub(crate) fn exclude(&mut self, now_us: u64) {
        self.now_us = now_us;
        if self.excluded {
            return;
        }
        if self.role == Role::Leader || self.leader.is_some() || self.role != self.idle_role() {
            self.follow(self.term, None);
        }
        self.fail_asked_reads();
        self.sit_out();
    }

    /// From here on nothing is due and nothing is known of a leader.
    pub(super) fn sit_out(&mut self) {
        self.excluded = true;
        self.reads.fresh = None;
        self.election_due_us = u64::MAX;
        self.heartbeat_due_us = u64::MAX;
    }

    /// Whether a peer's refusal may still come before this node has done anything.
    pub(super) fn awaits_peers(&self) -> bool {
        let long_us = self.settings.election_timeout_us / 4;
        let met = |since_us: &u64| self.now_us.saturating_sub(long_us) >= *since_us;
        self.term == 0
            && self.log.last() == 0
            && self.now_us < self.founding_until_us
            && !self.unmet.iter().all(|(_, since_us)| met(since_us))
    }

    /// A peer is connected since `since_us`, or is not.
    pub(super) fn meet(&mut self, peer: u64, since_us: u64) {
        if let Some(unmet) = self.unmet.iter_mut().find(|(id, _)| *id == peer) {
            unmet.1 = since_us;
        }
    }
}
