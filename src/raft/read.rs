//! Which index a read must see, without writing anything (thesis §6.4).
//!
//! The leader notes its commit index, makes sure by one round to a quorum that it still leads, and
//! the read may be answered when that index is applied. All reads that wait share a round. Rounds
//! are numbered: a follower echoes the number of the message it answers, so an answer to an earlier
//! round confirms nothing newer. Until an entry of its own term is committed a leader does not know
//! how far its predecessors had come, so reads wait for that, in a group of one too. A follower
//! or a learner asks its leader, once for all reads that came together.
//!
//! What waits is bounded by the group, not by the load: of each node at the most one question that
//! has its round and one that has none yet, since an answer to a later question answers the earlier
//! ones too.
//!
//! Every answer is also a fact that stays true: at the moment when it was asked for, nothing beyond
//! its index was committed anywhere. Reads that may be a little old go by the newest such fact
//! ([`Core::fresh_index`]) as long as it is young enough.

use std::collections::VecDeque;

use crate::raft::heal::HEALS;
use crate::raft::{Core, Message, Output, Role};

/// Questions to the leader that are under way at the most; what comes meanwhile shares the next one.
const MAX_ASKED: usize = 8;
/// Questions that wait for the leader at the most, should peers ask in no sound order.
const MAX_WAITING: usize = 256;

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
    /// When the latest round was begun, and what was committed then.
    begun: (u64, u64),
    /// As a leader: in the order they came.
    waiting: VecDeque<Waiting>,
    /// As a follower: `(context, when)` of what the leader was asked.
    asked: VecDeque<(u64, u64)>,
    /// The context of what is to be asked next.
    later: Option<u64>,
    /// `(when, index)`: at that time nothing beyond the index was committed anywhere.
    pub(super) fresh: Option<(u64, u64)>,
}

impl Reads {
    pub(super) fn new() -> Self {
        Self {
            round: 0,
            confirmed: 0,
            begun: (0, 0),
            waiting: VecDeque::with_capacity(16),
            asked: VecDeque::with_capacity(MAX_ASKED),
            later: None,
            fresh: None,
        }
    }

    /// Questions that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.asked.len() + usize::from(self.later.is_some())
    }

    /// Keeps the newest of what is known.
    fn learn(&mut self, when_us: u64, index: u64) {
        if self.fresh.is_none_or(|fresh| fresh.0 <= when_us) {
            self.fresh = Some((when_us, index));
        }
    }

    pub(super) fn round(&self) -> u64 {
        self.round
    }
}

impl Core {
    pub(super) fn on_read(&mut self, ctx: u64) {
        match self.leader {
            _ if self.role == Role::Leader => self.lead_read(None, ctx),
            Some(leader) if self.reads.asked.len() < MAX_ASKED => self.ask(leader, ctx),
            Some(_) => self.reads.later = Some(ctx),
            None => self.outputs.push_back(Output::ReadFailed { ctx }),
        }
    }

    fn ask(&mut self, leader: u64, ctx: u64) {
        self.reads.asked.push_back((ctx, self.now_us));
        let term = self.term;
        self.send(leader, Message::ReadIndex { term, ctx });
    }

    /// The index that a read must see which may miss what was committed within the last `age_us`;
    /// `None` when nothing so young is known. `now_us` is a look at the clock that was taken after
    /// the read had come.
    pub(crate) fn fresh_index(&self, now_us: u64, age_us: u64) -> Option<u64> {
        let (when_us, index) = self.reads.fresh?;
        (now_us <= when_us.saturating_add(age_us)).then_some(index)
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
        let Some(&(_, asked_us)) = self.reads.asked.iter().find(|asked| asked.0 == ctx) else {
            return;
        };
        if index.is_some() && (term != self.term || self.leader != Some(from)) {
            return;
        }
        while self.reads.asked.front().is_some_and(|asked| asked.0 <= ctx) {
            self.reads.asked.pop_front();
        }
        self.outputs.push_back(match index {
            Some(index) => {
                self.reads.learn(asked_us, index);
                Output::ReadReady { ctx, index }
            }
            None => Output::ReadFailed { ctx },
        });
        if let Some(ctx) = self.reads.later.take() {
            match self.leader {
                Some(leader) => self.ask(leader, ctx),
                None => self.outputs.push_back(Output::ReadFailed { ctx }),
            }
        }
    }

    fn lead_read(&mut self, from: Option<u64>, ctx: u64) {
        // An answer to the later one answers the earlier, too; but a node that heals waits for that very question's.
        let is_covered = |of: u64| of == ctx || of < ctx && ctx & HEALS == 0;
        let covered =
            |read: &&mut Waiting| read.from == from && read.round == 0 && is_covered(read.ctx);
        let is_full = self.reads.waiting.len() >= MAX_WAITING;
        match self.reads.waiting.iter_mut().find(covered) {
            Some(read) => read.ctx = ctx,
            None if is_full => return self.refuse_read(from, ctx),
            None => self.reads.waiting.push_back(Waiting {
                from,
                ctx,
                index: 0,
                round: 0,
            }),
        }
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
            self.reads.begun = (self.now_us, self.commit);
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
        let (begun_us, commit) = self.reads.begun;
        self.reads.learn(begun_us, commit);
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
        let asked = self.reads.asked.back().map(|asked| asked.0);
        self.reads.asked.clear();
        if let Some(ctx) = self.reads.later.take().or(asked) {
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
