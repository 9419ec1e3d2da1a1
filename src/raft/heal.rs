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

use crate::raft::{Core, Message, Output, Restored};

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
    /// Other voters that have not told their term.
    unheard: Vec<u64>,
    highest: u64,
    ask_us: u64,
}

impl LostVote {
    pub(super) fn of(restored: &Restored, id: u64, now_us: u64) -> Option<Self> {
        let is_lost = restored.heal.is_some_and(|heal| heal.vote_lost);
        let others = |peer: &u64| *peer != id && restored.membership.is_voter(*peer);
        is_lost.then(|| Self {
            unheard: restored.membership.everyone().filter(others).collect(),
            highest: 0,
            ask_us: now_us,
        })
    }

    pub(super) fn ask_us(&self) -> u64 {
        self.ask_us
    }
}

/// The term that a message's sender is in, where it tells.
fn term_of_sender(message: &Message) -> Option<u64> {
    Some(match *message {
        // It names the term that it would stand in.
        Message::Vote {
            pre: true, term, ..
        } => term.saturating_sub(1),
        // A grant names the term that was asked about; its sender's is lower, and is told another time.
        Message::VoteReply {
            pre: true,
            granted: true,
            ..
        } => return None,
        _ => message.term(),
    })
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

    /// Asks those for their term that have not told it.
    pub(super) fn ask_for_terms(&mut self) {
        let (now_us, term) = (self.now_us, self.term);
        let Some(lost) = &mut self.lost_vote else {
            return;
        };
        if now_us < lost.ask_us {
            return;
        }
        lost.ask_us = now_us + self.settings.election_timeout_us / 2;
        for at in 0..lost.unheard.len() {
            let to = self.lost_vote.as_ref().expect("as above").unheard[at];
            // Whoever does not lead answers this at once, and whoever leads in the end.
            self.send(to, Message::ReadIndex { term, ctx: 0 });
        }
    }

    /// A voter has told its term.
    pub(super) fn hear_term(&mut self, from: u64, message: &Message) {
        let (Some(lost), Some(term)) = (&mut self.lost_vote, term_of_sender(message)) else {
            return;
        };
        lost.unheard.retain(|peer| *peer != from);
        lost.highest = lost.highest.max(term);
        if !lost.unheard.is_empty() {
            return;
        }
        let settled = lost.highest.max(self.term);
        self.lost_vote = None;
        let heal = self.heal.as_mut().expect("a vote is lost with something");
        heal.term = heal.term.max(settled);
        self.vote = None; // What is left of it is not the last word.
        self.save_vote(settled, Some(self.id()));
        self.announce_role();
        self.reset_election_timer();
        self.look_whether_healed();
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
