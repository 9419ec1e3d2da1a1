//! A node that has lost records which it had acknowledged.
//!
//! Its disk gave back less than it once held for certain, and says so. What is missing may have been committed because
//! this node held it. So until the node certainly holds it again it does not stand, and measures who does by the log that
//! it may have had and not by the one that is left. It follows, and its acknowledgements of what it gets anew are as good
//! as anybody's.
//!
//! It is healed when what it knows to be committed, and has, reaches as far as its log ever did (`upto`); or holds an
//! entry of a later term than any in which it acknowledged something (`term`): whoever was elected to that term had
//! every entry that was committed before, and was elected without this node's voice.
//!
//! Worse is a lost vote: the node may have voted, and acknowledged, in terms that it knows nothing of. Until that is settled
//! it takes no part at all, for its yes to an old leader could undo what it promised to a newer one:
//!
//! 1. It asks every other voter - not only a majority - for its term, again and again.
//! 2. Whoever had its vote or its acknowledgement in some term was in that term, and has not gone back since. So the highest
//!    of the answers is no lower than any term that it promised anything in.
//! 3. It takes up that term, and votes for itself in it: in that term and in all earlier ones it votes for nobody else.
//!
//! A voter that is healing itself is no candidate, and has nothing to tell: that it asks is its answer. But those that do
//! tell must have a member in every quorum: then whoever was *elected* in a term is among them or was elected by one of
//! them, and whoever only stands is heard himself. Otherwise everybody waits, for more is lost than can be known.
//!
//! The one in term 0 has never taken part in anything: of a group that has lost something he is a member with an empty
//! directory, whom the others refuse. A node that has forgotten whose directories it knew is not to let him in again.
//!
//! **Worst is to have lost everything**, directory and all, and it is not different. `upto` is not known then, the vote is
//! lost, the log is empty. One by one, what the old directory may have promised to whom:
//!
//! - *Votes.* Steps 1 to 3.
//! - *Acknowledgements.* They were of terms up to the settled one, since who got them was in that term. The node measures
//!   candidates by (that term, `u64::MAX`), which is no less than what it measured them by when it had its log. So the
//!   argument for leader completeness (thesis §3.6.3) goes through with its vote as it did before: whoever has it has an
//!   entry of a later term, and thereby everything that was committed before that term.
//! - *Acknowledgements that are not counted yet.* A leader may have one of them in `matched` and reach a quorum with it later,
//!   when its own disk is ready. As long as the node measures as above that is no harm; but see below.
//! - *Leases.* A node that starts is bound for an election timeout from its start (`lease.rs`), whatever its directory
//!   holds: a promise of its last life has ended before.
//! - *Rounds of reads.* An answer to a round says that its sender had not voted for a later term before. Its later votes
//!   come after that read was asked for, with the new directory as with the old. And it answers no round of an earlier term
//!   than the settled one.
//! - *What was sent to or by the old process* ends with its connections.
//!
//! With an `upto` that is not known, or that was never committed, it would wait for the next election, and be of no help in
//! that one. So when its vote is settled a node that heals asks its leader how far it must get: the leader first forgets what
//! this node had acknowledged ([`Core::on_heal_ask`]), then answers as it answers a read. What was committed with the help of
//! what is lost is within that index: in earlier terms since the leader has it and an entry of its own term is committed, in
//! its term since it was counted before; and nothing beyond will be. An answer names the question, which no other life of this
//! node has asked: one that was on its way to an earlier life says nothing about what is lost since.

use crate::raft::quorum::Tally;
use crate::raft::rng::Rng;
use crate::raft::{Core, Message, Output, Restored, Role};

/// Questions of those that heal have this bit, those about reads have not.
pub(super) const HEALS: u64 = 1 << 63;

/// What a node has to get back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heal {
    /// The last entry it may have acknowledged; `u64::MAX` when nobody knows.
    pub(crate) upto: u64,
    /// The last term in which it may have acknowledged anything or voted.
    pub(crate) term: u64,
    /// It may have voted, for anybody, in terms that nothing here tells of.
    pub(crate) vote_lost: bool,
}

/// What is known of the terms that a lost vote may be of.
#[derive(Debug)]
pub(super) struct LostVote {
    /// The other voters, and what is known of each.
    others: Vec<(u64, Heard)>,
    highest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// It heals, too.
    Asks,
    ItsTerm,
}

impl LostVote {
    pub(super) fn of(restored: &Restored, id: u64) -> Option<Self> {
        let is_lost = restored.heal.is_some_and(|heal| heal.vote_lost);
        let others = |peer: &u64| *peer != id && restored.membership.is_voter(*peer);
        is_lost.then(|| Self {
            others: restored
                .membership
                .everyone()
                .filter(others)
                .map(|peer| (peer, Heard::Nothing))
                .collect(),
            highest: 0,
        })
    }
}

/// How a node that heals asks.
#[derive(Debug)]
pub(super) struct Asking {
    /// No other life of this node asks with this number.
    ctx: u64,
    due_us: u64,
    /// The leader has told how far what is lost was committed.
    knows_how_far: bool,
}

impl Asking {
    pub(super) fn new(seed: u64, now_us: u64) -> Self {
        Self {
            ctx: HEALS | Rng::new(!seed).next(),
            due_us: now_us,
            knows_how_far: false,
        }
    }
}

impl Core {
    /// Whether it gets back what it lost: then it may not stand.
    pub(super) fn is_healing(&self) -> bool {
        self.heal.is_some()
    }

    /// The last term and index that a log must reach to be elected with this node's vote.
    pub(super) fn measure(&self) -> (u64, u64) {
        let own = (self.log.last_term(), self.log.last());
        let had = self.heal.map_or(own, |heal| (heal.term, heal.upto));
        own.max(had)
    }

    /// Who is to be asked, if anybody: those that have not told their term, then the leader.
    fn has_to_ask(&self) -> bool {
        self.lost_vote.is_some() || self.asks_how_far() && self.leader.is_some()
    }

    fn asks_how_far(&self) -> bool {
        self.lost_vote.is_none() && self.is_healing() && !self.asking.knows_how_far
    }

    /// When it asks next.
    pub(super) fn heal_deadline(&self) -> u64 {
        if self.has_to_ask() {
            self.asking.due_us
        } else {
            u64::MAX
        }
    }

    /// Asks for what it has to know before it can be healed.
    pub(super) fn ask_to_heal(&mut self) {
        if self.now_us < self.heal_deadline() {
            return;
        }
        self.asking.due_us = self.now_us + self.settings.election_timeout_us / 2;
        let (term, ctx) = (self.term, self.asking.ctx);
        let Some(others) = self.lost_vote.as_ref().map(|lost| lost.others.len()) else {
            let leader = self.leader.expect("otherwise nobody is asked");
            self.send(leader, Message::ReadIndex { term, ctx });
            return;
        };
        for at in 0..others {
            let (to, heard) = self.lost_vote.as_ref().expect("as above").others[at];
            if heard != Heard::ItsTerm {
                // Whoever does not lead answers this at once, and whoever leads in the end.
                self.send(to, Message::ReadIndex { term, ctx });
            }
        }
    }

    /// A voter has told its term, or that it asks for those of others.
    pub(super) fn hear_term(&mut self, from: u64, message: &Message) {
        let Some(lost) = &mut self.lost_vote else {
            return;
        };
        let (term, told) = match *message {
            // Other messages may have left before their sender knew that this node has lost its vote. And whoever is in no term
            // yet has lost everything too, without saying so: others of the group have been in some.
            Message::ReadIndexReply { term, ctx, .. } if ctx == self.asking.ctx && term > 0 => {
                (term, Heard::ItsTerm)
            }
            Message::ReadIndex { ctx, .. } if ctx & HEALS != 0 => (0, Heard::Asks),
            _ => return,
        };
        let Some((_, heard)) = lost.others.iter_mut().find(|(peer, _)| *peer == from) else {
            return;
        };
        if *heard != Heard::ItsTerm {
            *heard = told;
        }
        lost.highest = lost.highest.max(term);
        let others = &lost.others;
        if others.iter().any(|(_, heard)| *heard == Heard::Nothing) {
            return;
        }
        let has_told = |id| others.contains(&(id, Heard::ItsTerm));
        if self.membership.tally(|id| Some(!has_told(id))) == Tally::Won {
            return; // They could have elected somebody among themselves.
        }
        let settled = lost.highest.max(self.term);
        self.lost_vote = None;
        let heal = self.heal.as_mut().expect("a vote is lost with something");
        heal.term = heal.term.max(settled);
        self.vote = None; // What is left of it is not the last word.
        self.save_vote(settled, Some(self.id()));
        self.announce_role();
        self.reset_election_timer();
        self.asking.due_us = self.now_us;
        self.look_whether_healed();
    }

    /// As a leader: this peer heals, and will ask how far what it has lost was committed. What it had acknowledged before,
    /// it may have lost.
    pub(super) fn on_heal_ask(&mut self, from: u64) {
        if self.role == Role::Leader
            && let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == from)
        {
            peer.forget_acknowledged();
        }
    }

    /// The leader of `term` knows that what was committed with what this node has lost is within `index`.
    pub(super) fn hear_upto(&mut self, term: u64, ctx: u64, index: Option<u64>) {
        if !self.asks_how_far() || ctx != self.asking.ctx || term != self.term {
            return;
        }
        if let (Some(heal), Some(index)) = (&mut self.heal, index) {
            heal.upto = heal.upto.min(index);
            self.asking.knows_how_far = true;
            self.look_whether_healed();
        }
    }

    /// The commit index has moved.
    pub(super) fn look_whether_healed(&mut self) {
        let Some(heal) = self.heal.filter(|_| self.lost_vote.is_none()) else {
            return;
        };
        if self.commit >= heal.upto
            || self
                .log
                .term(self.commit)
                .is_some_and(|term| term > heal.term)
        {
            self.heal = None;
            let write = self.durable.issue(self.now_us);
            self.outputs.push_back(Output::Healed { write });
        }
    }
}
