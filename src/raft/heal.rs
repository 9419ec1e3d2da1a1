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

use crate::raft::{Core, Output};

/// What a node has to get back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heal {
    /// The last entry it may have acknowledged; `u64::MAX` when nobody knows.
    pub(crate) upto: u64,
    /// The last term in which it may have acknowledged anything or voted.
    pub(crate) term: u64,
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

    /// The commit index has moved.
    pub(super) fn look_whether_healed(&mut self) {
        let Some(heal) = self.heal else {
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
