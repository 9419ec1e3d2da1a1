//! What a leader does: replicates, counts, shows itself, and steps down when it cannot lead.
//!
//! What holds: an entry is committed when a quorum holds it durably and it is of the leader's own
//! term (thesis §3.6.2, figure 3.7); entries before it are committed with it. The leader's own disk
//! is one voter among the others (§10.2.1): appends leave before its own flush. A commit index that
//! moved is told at once.

use crate::raft::message::{Append, Outcome};
use crate::raft::progress::Mode;
use crate::raft::{Core, Message, Output, Role, Sizes};

/// Appends that one input may set free for a peer. The next answer sets free as many again, so a
/// window fills all the same; but what carries them to the network needs room for so many only.
const BURST: usize = 8;

impl Core {
    pub(super) fn become_leader(&mut self, sizes: &impl Sizes) {
        self.role = Role::Leader;
        self.leader = Some(self.id());
        self.own_matched = 0;
        let next = self.log.last() + 1;
        for peer in &mut self.peers {
            peer.reset(next, self.now_us);
        }
        self.uncommitted.clear();
        self.uncommitted_bytes = 0;
        self.term_start = next;
        self.announce_role();
        let write = self.append_own(1, 0);
        self.outputs.push_back(Output::AppendTermStart {
            write,
            index: next,
            term: self.term,
        });
        self.election_due_us = self.now_us + self.settings.election_timeout_us;
        self.heartbeat_due_us = self.now_us + self.settings.heartbeat_us;
        self.replicate_to_all(sizes);
        self.ask_for_promises();
    }

    /// What an office leaves behind for nobody.
    pub(super) fn step_down(&mut self) {
        self.heartbeat_due_us = u64::MAX;
        self.uncommitted.clear();
        self.uncommitted_bytes = 0;
        self.fail_led_reads();
        self.end_lease();
    }

    pub(super) fn append_own(&mut self, count: u64, bytes: u64) -> u64 {
        let write = self.durable.issue(self.now_us);
        self.log.append(self.term, count);
        self.durable.note_own(write, self.term, self.log.last());
        self.uncommitted.push_back((self.log.last(), bytes));
        self.uncommitted_bytes += bytes;
        write
    }

    pub(super) fn tick_leader(&mut self, sizes: &impl Sizes) {
        if self.durable.stalled_us(self.now_us) >= self.settings.disk_stall_us {
            self.follow(self.term, None);
            return;
        }
        if self.now_us >= self.election_due_us {
            self.election_due_us = self.now_us + self.settings.election_timeout_us;
            if !self.has_quorum() {
                self.follow(self.term, None);
                return;
            }
        }
        if self.now_us >= self.heartbeat_due_us {
            self.heartbeat_due_us = self.now_us + self.settings.heartbeat_us;
            for at in 0..self.peers.len() {
                let lost_after = self.settings.election_timeout_us;
                let now_us = self.now_us;
                let peer = &mut self.peers[at];
                if !peer.window.is_empty() && now_us >= peer.moved_us + lost_after {
                    // No answer for so long.
                    peer.lose_in_flight();
                    peer.moved_us = now_us;
                }
                self.heartbeat(at);
                self.replicate(at, sizes);
            }
            self.ask_for_promises();
        }
    }

    /// Whether a quorum has been heard within the last election timeout.
    fn has_quorum(&self) -> bool {
        let since = self
            .now_us
            .saturating_sub(self.settings.election_timeout_us);
        let heard = self.membership.reached(|id| {
            u64::from(
                id == self.id()
                    || self
                        .peers
                        .iter()
                        .any(|peer| peer.id == id && peer.heard_us >= since),
            )
        });
        heard > 0
    }

    pub(super) fn heartbeat(&mut self, at: usize) {
        let (term, round) = (self.term, self.reads.round());
        let peer = &mut self.peers[at];
        if !peer.up {
            return;
        }
        let (to, commit) = (peer.id, self.commit.min(peer.matched));
        peer.told_commit = peer.told_commit.max(commit);
        self.send(
            to,
            Message::Heartbeat {
                term,
                commit,
                round,
            },
        );
    }

    pub(super) fn heartbeat_all(&mut self) {
        for at in 0..self.peers.len() {
            self.heartbeat(at);
        }
    }

    pub(super) fn replicate_to_all(&mut self, sizes: &impl Sizes) {
        for at in 0..self.peers.len() {
            self.replicate(at, sizes);
            let peer = &self.peers[at];
            if peer.told_commit < self.commit.min(peer.matched) {
                self.heartbeat(at);
            }
        }
    }

    /// Sends a peer what it lacks, as far as its window goes.
    pub(super) fn replicate(&mut self, at: usize, sizes: &impl Sizes) {
        for _ in 0..BURST {
            let peer = &self.peers[at];
            let last = self.log.last();
            let idle = peer.next > last;
            let send = peer.up
                && match peer.mode {
                    Mode::Probe { sent } => !sent,
                    Mode::Replicate => !idle && peer.window.room() > 0,
                    Mode::Snapshot { .. } => false,
                };
            if !send {
                return;
            }
            if peer.next <= self.log.base_index() {
                self.begin_snapshot(at);
                return;
            }
            let prev_index = peer.next - 1;
            let prev_term = self
                .log
                .term(prev_index)
                .expect("the entry before the next is in the log");
            let mut append = Append {
                term: self.term,
                prev_index,
                prev_term,
                last: prev_index,
                commit: self.commit,
                round: self.reads.round(),
                bytes: 0,
                runs: Default::default(),
            };
            if !idle {
                let room = peer.window.room().min(self.settings.max_append_bytes);
                let (_, cut) = self.log.runs_from(peer.next, last);
                let (fits, bytes) = sizes.fit(peer.next, cut, room);
                if bytes > peer.window.room() && !peer.window.is_empty() {
                    return; // A long entry, which goes when the window is empty.
                }
                (append.runs, append.last) = self.log.runs_from(peer.next, fits);
                append.bytes = bytes;
            }
            let now_us = self.now_us;
            let peer = &mut self.peers[at];
            peer.sent(append.last, append.bytes, now_us);
            peer.told_commit = peer.told_commit.max(append.commit.min(append.last));
            let to = peer.id;
            self.send(to, Message::Append(append));
        }
    }

    /// A follower of this office has answered: its place among the peers. `None` when the answer is
    /// not for this office.
    fn heard(&mut self, from: u64, term: u64, round: u64) -> Option<usize> {
        if term > self.term {
            self.follow(term, None);
            return None;
        }
        if term < self.term || self.role != Role::Leader {
            return None;
        }
        let at = self.peers.iter().position(|peer| peer.id == from)?;
        let (now_us, sent_round) = (self.now_us, self.reads.round());
        let peer = &mut self.peers[at];
        peer.heard_us = now_us;
        peer.round = peer.round.max(round.min(sent_round));
        Some(at)
    }

    pub(super) fn on_heartbeat_reply(
        &mut self,
        from: u64,
        term: u64,
        round: u64,
        sizes: &impl Sizes,
    ) {
        let Some(at) = self.heard(from, term, round) else {
            return;
        };
        let (now_us, lost_after) = (self.now_us, self.settings.heartbeat_us);
        let peer = &mut self.peers[at];
        if let Mode::Probe { sent } = &mut peer.mode
            && now_us >= peer.moved_us + lost_after
        {
            // The probe or its answer may have been lost; this answer shows that one would get
            // through now.
            *sent = false;
        }
        self.confirm_reads();
        self.replicate(at, sizes);
    }

    pub(super) fn on_append_reply(
        &mut self,
        from: u64,
        term: u64,
        round: u64,
        outcome: Outcome,
        sizes: &impl Sizes,
    ) {
        let Some(at) = self.heard(from, term, round) else {
            return;
        };
        let now_us = self.now_us;
        match outcome {
            // No sound peer has more than there is.
            Outcome::Matched { index } if index > self.log.last() => return,
            Outcome::Matched { index } => {
                self.peers[at].matched(index, now_us);
                if self.advance_commit() {
                    self.replicate_to_all(sizes);
                } else {
                    self.replicate(at, sizes);
                    let peer = &self.peers[at];
                    if peer.told_commit < self.commit.min(peer.matched) {
                        self.heartbeat(at);
                    }
                }
            }
            Outcome::Conflict {
                prev,
                hint_index,
                hint_term,
            } => {
                if self.peers[at].believes_conflict_at(prev) {
                    let upto = hint_index.min(prev.saturating_sub(1));
                    let agree = if upto < self.log.base_index() {
                        upto // What it needs is in the log no more: there is nothing to probe with.
                    } else {
                        self.log.last_with_term_at_most(upto, hint_term)
                    };
                    // Of what it had acknowledged its disk may have lost something since.
                    let peer = &mut self.peers[at];
                    peer.matched = peer.matched.min(agree);
                    peer.probe(agree + 1);
                    self.replicate(at, sizes);
                }
            }
        }
        self.confirm_reads();
    }

    /// Moves the commit index as far as a quorum of durable positions allows; true when it moved.
    pub(super) fn advance_commit(&mut self) -> bool {
        let own = (self.id(), self.own_matched);
        let reached = self.membership.reached(|id| {
            if id == own.0 {
                own.1
            } else {
                self.peers
                    .iter()
                    .find(|peer| peer.id == id)
                    .map_or(0, |peer| peer.matched)
            }
        });
        if reached <= self.commit || self.log.term(reached) != Some(self.term) {
            return false;
        }
        self.commit = reached;
        while let Some(&(last, bytes)) = self.uncommitted.front()
            && last <= reached
        {
            self.uncommitted_bytes -= bytes;
            self.uncommitted.pop_front();
        }
        self.outputs.push_back(Output::Commit { index: reached });
        self.begin_early_reads();
        true
    }

    /// Whether an entry of the own term is committed: only then the commit index is up to date
    /// (thesis §6.4).
    pub(super) fn knows_commit(&self) -> bool {
        self.commit >= self.term_start
    }
}
