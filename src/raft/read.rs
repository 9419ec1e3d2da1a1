//! Which index a read must see, without writing anything (thesis §6.4).
//!
//! The leader notes its commit index, makes sure by one round to a quorum that it still leads, and
//! the read may be answered when that index is applied. All reads that wait share a round. Rounds
//! are numbered: a follower echoes the number of the message it answers, so an answer to an earlier
//! round confirms nothing newer. Until an entry of its own term is committed a leader does not know
//! how far its predecessors had come, so reads wait for that, in a group of one too. A follower
//! asks its leader.

use std::collections::VecDeque;

use crate::raft::{Core, Message, Output, Role};

/// Reads that wait at the most, of each kind. More are refused.
const MAX_WAITING: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Who asks: `None` for this node's own reads.
    from: Option<u64>,
    ctx: u64,
    /// The commit index when it came, and the round that confirms it; zeros until an own entry is
    /// committed.
    index: u64,
    round: u64,
}

#[derive(Debug)]
pub(crate) struct Reads {
    /// The latest round that was begun.
    round: u64,
    /// The latest that a quorum has answered.
    confirmed: u64,
    /// As a leader: in the order they came.
    waiting: VecDeque<Waiting>,
    /// As a follower: `(context, when)` of what the leader was asked.
    asked: VecDeque<(u64, u64)>,
}

impl Reads {
    pub(super) fn new() -> Self {
        Self {
            round: 0,
            confirmed: 0,
            waiting: VecDeque::with_capacity(MAX_WAITING),
            asked: VecDeque::with_capacity(MAX_WAITING),
        }
    }

    /// Reads that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.asked.len()
    }

    pub(super) fn round(&self) -> u64 {
        self.round
    }
}

impl Core {
    pub(super) fn on_read(&mut self, ctx: u64) {
        match self.leader {
            _ if self.role == Role::Leader => self.lead_read(None, ctx),
            Some(leader) if self.reads.asked.len() < MAX_WAITING => {
                self.reads.asked.push_back((ctx, self.now_us));
                self.send(
                    leader,
                    Message::ReadIndex {
                        term: self.term,
                        ctx,
                    },
                );
            }
            _ => self.outputs.push_back(Output::ReadFailed { ctx }),
        }
    }

    pub(super) fn on_read_index(&mut self, from: u64, term: u64, ctx: u64) {
        if self.role == Role::Leader && term == self.term {
            self.lead_read(Some(from), ctx);
        } else {
            self.send(
                from,
                Message::ReadIndexReply {
                    term: self.term,
                    ctx,
                    index: None,
                },
            );
        }
    }

    pub(super) fn on_read_index_reply(
        &mut self,
        from: u64,
        term: u64,
        ctx: u64,
        index: Option<u64>,
    ) {
        let was_asked = self.reads.asked.iter().any(|asked| asked.0 == ctx);
        if !was_asked || (index.is_some() && (term != self.term || self.leader != Some(from))) {
            return;
        }
        while self.reads.asked.front().is_some_and(|asked| asked.0 <= ctx) {
            self.reads.asked.pop_front();
        }
        self.outputs.push_back(match index {
            Some(index) => Output::ReadReady { ctx, index },
            None => Output::ReadFailed { ctx },
        });
    }

    fn lead_read(&mut self, from: Option<u64>, ctx: u64) {
        if self.reads.waiting.len() == MAX_WAITING {
            self.refuse_read(from, ctx);
            return;
        }
        self.reads.waiting.push_back(Waiting {
            from,
            ctx,
            index: 0,
            round: 0,
        });
        self.begin_round();
    }

    /// Gives the reads that have none the next round, unless one is on its way: then they share the
    /// one after it.
    fn begin_round(&mut self) {
        if !self.knows_commit() || self.reads.confirmed < self.reads.round {
            return;
        }
        let mut begun = false;
        for read in self.reads.waiting.iter_mut().filter(|read| read.round == 0) {
            (read.index, read.round) = (self.commit, self.reads.round + 1);
            begun = true;
        }
        if begun {
            self.reads.round += 1;
            self.heartbeat_all();
            self.confirm_reads();
        }
    }

    /// The first own entry is committed: what came before that may begin.
    pub(super) fn begin_early_reads(&mut self) {
        self.begin_round();
    }

    pub(super) fn confirm_reads(&mut self) {
        if self.reads.confirmed == self.reads.round {
            return;
        }
        let (own, round) = (self.id(), self.reads.round);
        let confirmed = self.membership.reached(|id| {
            if id == own {
                round
            } else {
                self.peers
                    .iter()
                    .find(|peer| peer.id == id)
                    .map_or(0, |peer| peer.round)
            }
        });
        if confirmed < round {
            return;
        }
        self.reads.confirmed = round;
        while let Some(&read) = self.reads.waiting.front()
            && read.round != 0
        {
            self.reads.waiting.pop_front();
            let Waiting {
                from, ctx, index, ..
            } = read;
            match from {
                None => self.outputs.push_back(Output::ReadReady { ctx, index }),
                Some(to) => {
                    self.send(
                        to,
                        Message::ReadIndexReply {
                            term: self.term,
                            ctx,
                            index: Some(index),
                        },
                    );
                }
            }
        }
        self.begin_round();
    }

    /// The office is over: nobody's reads are answered by it.
    pub(super) fn fail_led_reads(&mut self) {
        while let Some(Waiting { from, ctx, .. }) = self.reads.waiting.pop_front() {
            self.refuse_read(from, ctx);
        }
        self.reads.confirmed = self.reads.round;
    }

    fn refuse_read(&mut self, from: Option<u64>, ctx: u64) {
        match from {
            None => self.outputs.push_back(Output::ReadFailed { ctx }),
            Some(to) => self.send(
                to,
                Message::ReadIndexReply {
                    term: self.term,
                    ctx,
                    index: None,
                },
            ),
        }
    }

    /// The leader that was asked is gone.
    pub(super) fn fail_asked_reads(&mut self) {
        if let Some(&(ctx, _)) = self.reads.asked.back() {
            self.reads.asked.clear();
            self.outputs.push_back(Output::ReadFailed { ctx });
        }
    }

    /// A question or its answer may be lost without a connection being so.
    pub(super) fn expire_asked_reads(&mut self) {
        if self.now_us >= self.asked_reads_deadline() {
            self.fail_asked_reads();
        }
    }

    pub(super) fn asked_reads_deadline(&self) -> u64 {
        self.reads.asked.front().map_or(u64::MAX, |asked| {
            asked.1 + self.settings.election_timeout_us
        })
    }
}
