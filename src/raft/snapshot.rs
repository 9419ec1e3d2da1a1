//! Where the log ends at its front, and what takes its place there.
//!
//! A node lets go of the front of its log when a snapshot stands for it. A leader that no longer has what a follower
//! needs next asks for a snapshot to be sent, and sends no entries meanwhile; the bytes are others' business. A follower
//! that has received one takes it up here: as the news that its own entries are committed, when its log has the
//! snapshot's last one; else its log is replaced by the snapshot, whole.
//!
//! What holds: what is replaced was either committed, and is in the snapshot, or conflicts with what was. A snapshot of
//! what is committed here already changes nothing. Raft thesis §5.

use crate::raft::message::Outcome;
use crate::raft::progress::Mode;
use crate::raft::{Core, Message, Output, REACH, Role, Sizes};

impl Core {
    /// A snapshot stands for everything up to `to`, durably: the log may begin after it.
    pub(crate) fn compact(&mut self, now_us: u64, to: u64, sizes: &impl Sizes) {
        self.now_us = now_us;
        assert!(
            to <= self.commit,
            "a snapshot stands for entries to {to}, committed are those to {}",
            self.commit
        );
        if to > self.log.base_index() {
            self.log.compact(to);
            if self.role == Role::Leader {
                self.replicate_to_all(sizes);
            }
        }
    }

    /// The log has no more of what this peer needs: a snapshot is to be sent.
    pub(super) fn begin_snapshot(&mut self, at: usize) {
        let base = self.log.base_index();
        let now_us = self.now_us;
        let peer = &mut self.peers[at];
        peer.await_snapshot(base, now_us);
        let to = peer.id;
        self.outputs.push_back(Output::SendSnapshot { to });
    }

    /// A peer has the snapshot of everything up to `index`: whether it goes on from there, it says itself.
    pub(crate) fn snapshot_sent(&mut self, now_us: u64, to: u64, index: u64, sizes: &impl Sizes) {
        self.now_us = now_us;
        if let Some(at) = self.waits_for_snapshot(to)
            && index <= self.log.last()
        {
            self.peers[at].probe(index + 1);
            self.replicate(at, sizes);
        }
    }

    /// It could not be sent. Tried again after an election timeout, when the peer shows that it is there.
    pub(crate) fn snapshot_failed(&mut self, now_us: u64, to: u64) {
        self.now_us = now_us;
        if let Some(at) = self.waits_for_snapshot(to) {
            let peer = &mut self.peers[at];
            peer.mode = Mode::Probe { sent: true };
            peer.moved_us = now_us + self.settings.election_timeout_us;
        }
    }

    fn waits_for_snapshot(&self, to: u64) -> Option<usize> {
        let at = self.peers.iter().position(|peer| peer.id == to)?;
        let waits = matches!(self.peers[at].mode, Mode::Snapshot { .. });
        (self.role == Role::Leader && waits).then_some(at)
    }

    /// A snapshot of everything up to the entry `index` of `term` has been received, and is durable here.
    pub(crate) fn snapshot_received(&mut self, now_us: u64, index: u64, term: u64) {
        self.now_us = now_us;
        let takes_no_part = self.excluded || self.lost_vote.is_some();
        if self.role == Role::Leader || index >= REACH || term >= REACH || takes_no_part {
            return;
        }
        if index > self.commit {
            let committed_term = self.log.term(self.commit).unwrap_or(0);
            if term < committed_term {
                return; // Its last entry is of an earlier term than what is committed before it: no sound peer's.
            }
            if term > self.term {
                self.follow(term, None);
            }
            if self.log.term(index) == Some(term) {
                self.follow_commit(index);
            } else {
                let write = self.durable.issue(now_us);
                self.log.reset(index, term);
                self.commit = index;
                self.outputs
                    .push_back(Output::Install { write, index, term });
                self.look_whether_healed();
            }
        }
        if let Some(leader) = self.leader {
            let outcome = Outcome::Matched { index };
            let reply = Message::AppendReply {
                term: self.term,
                round: 0,
                outcome,
            };
            self.promise(self.durable.issued(), leader, reply);
        }
    }
}
