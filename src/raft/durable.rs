//! What has been promised, and waits for the disk before it is said.
//!
//! Everything that promises - a candidacy, a vote, an acknowledgement, a term that was taken up -
//! rests on a write. The core numbers its writes; the disk says "everything up to number n is
//! durable"; what rests on `n` or less may go.
//!
//! Why numbers, and not indexes (etcd's `newStorageAppendRespMsg`, openraft's `IOId`, and LESSONS
//! of others):
//!
//! 1. A follower appends entry 5 of term 1 (write 7) and the write is under way.
//! 2. A leader of term 2 has it truncated (write 8) and replaced by its own entry 5 (write 9).
//! 3. The disk finishes write 7: "index 5 is durable". The entry of term 2 is not.
//! 4. If that were taken for the new entry 5, the node would acknowledge what a power cut still
//!    takes away.
//!
//! With numbers step 3 says "7", and what was promised on 9 waits. What was promised on 7 to the
//! old leader is dropped, since its term is over: see `testdata/async_append_aba.txt`.

use std::collections::VecDeque;

use crate::raft::Message;

/// Answers that wait at the most. More are lost, as any message may be: a peer that asks without
/// end while the disk stands still costs no memory.
const MAX_HELD: usize = 1024;

/// What leaves when a write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "almost all are messages, and a box would be an allocation for each"
)]
pub(crate) enum Promise {
    Say {
        to: u64,
        message: Message,
    },
    /// Stand for election: count the own vote and ask for the others.
    Stand,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    rests_on: u64,
    term: u64,
    promise: Promise,
}

/// Numbers the writes, and holds what rests on them.
#[derive(Debug)]
pub(crate) struct Durable {
    /// The number of the last write that was asked for, and of the last that is durable.
    issued: u64,
    done: u64,
    /// The last write of term and vote.
    vote: u64,
    held: VecDeque<Held>,
    /// `(write, term, last index)` of own entries, as a leader.
    own: VecDeque<(u64, u64, u64)>,
    /// Since when the disk has owed us something without finishing anything.
    waits_since_us: u64,
}

impl Durable {
    pub(crate) fn new() -> Self {
        Self {
            issued: 0,
            done: 0,
            vote: 0,
            held: VecDeque::with_capacity(MAX_HELD + 1),
            own: VecDeque::with_capacity(1024),
            waits_since_us: 0,
        }
    }

    /// A number for the next write.
    pub(crate) fn issue(&mut self, now_us: u64) -> u64 {
        if self.issued == self.done {
            self.waits_since_us = now_us;
        }
        self.issued += 1;
        self.issued
    }

    pub(crate) fn issue_vote(&mut self, now_us: u64) -> u64 {
        self.vote = self.issue(now_us);
        self.vote
    }

    /// Write `write` holds own entries up to `last`, appended as the leader of `term`.
    pub(crate) fn note_own(&mut self, write: u64, term: u64, last: u64) {
        self.own.push_back((write, term, last));
    }

    /// The write on which the term and vote in force rest.
    pub(crate) fn vote(&self) -> u64 {
        self.vote
    }

    /// The write on which everything in the log rests.
    pub(crate) fn issued(&self) -> u64 {
        self.issued
    }

    pub(crate) fn is_done(&self, write: u64) -> bool {
        write <= self.done
    }

    pub(crate) fn hold(&mut self, rests_on: u64, term: u64, promise: Promise) {
        // A candidacy is not lost: it is one a term, and what the core itself waits for.
        if self.held.len() < MAX_HELD || promise == Promise::Stand {
            self.held.push_back(Held {
                rests_on,
                term,
                promise,
            });
        }
    }

    /// Answers that wait.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// The disk has finished everything up to `upto`. Returns the last own entry of `term` that
    /// this makes durable.
    pub(crate) fn finish(&mut self, upto: u64, term: u64, now_us: u64) -> Option<u64> {
        assert!(
            upto <= self.issued,
            "write {upto} is durable, but only {} were asked for",
            self.issued
        );
        if upto <= self.done {
            return None;
        }
        self.done = upto;
        self.waits_since_us = now_us;
        let mut own = None;
        while let Some(&(write, of_term, last)) = self.own.front()
            && write <= upto
        {
            self.own.pop_front();
            if of_term == term {
                own = Some(last);
            }
        }
        own
    }

    /// The next promise that may be kept, in the order they were given; those of earlier terms are
    /// dropped.
    pub(crate) fn next_kept(&mut self, term: u64) -> Option<Promise> {
        while let Some(&held) = self.held.front()
            && held.rests_on <= self.done
        {
            self.held.pop_front();
            if held.term == term {
                return Some(held.promise);
            }
        }
        None
    }

    /// How long the disk has owed us something without finishing anything; 0 when it owes nothing.
    pub(crate) fn stalled_us(&self, now_us: u64) -> u64 {
        if self.issued == self.done {
            0
        } else {
            now_us.saturating_sub(self.waits_since_us)
        }
    }
}
