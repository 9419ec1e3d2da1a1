//! What a follower does with its leader's entries.
//!
//! What holds: only what differs is truncated, and never what is committed. An answer vouches for
//! the end of the message it answers, not for whatever else is in the log, and leaves when all of
//! it is durable. The commit index follows the leader's only as far as this very message has shown
//! the logs to be the same.

use crate::raft::message::{Append, Outcome};
use crate::raft::{Core, Message, Output, REACH, Role};

impl Core {
    /// A leader of this term speaks: follows it. False for one of an earlier term, or who cannot
    /// be.
    pub(super) fn hear_leader(&mut self, from: u64, term: u64) -> bool {
        if term < self.term || (term == self.term && self.role == Role::Leader) {
            return false;
        }
        if term == self.term && self.leader.is_some_and(|leader| leader != from) {
            return false; // Two leaders of a term: no sound peer says so.
        }
        if term > self.term
            || self.leader != Some(from)
            || self.role != Role::Follower && self.role != Role::Learner
        {
            self.follow(term, Some(from));
        }
        self.heard_leader_us = Some(self.now_us);
        self.reset_election_timer();
        true
    }

    pub(super) fn on_append(&mut self, from: u64, append: &Append) {
        if !self.hear_leader(from, append.term) {
            if append.term < self.term {
                // It does not know yet that its office is over.
                self.promise(
                    self.durable.vote(),
                    from,
                    Message::HeartbeatReply {
                        term: self.term,
                        round: 0,
                    },
                );
            }
            return;
        }
        if !sound(append) {
            return;
        }
        let &Append {
            prev_index,
            prev_term,
            last,
            ..
        } = append;
        // What is committed here is the same in every leader's log, so only what lies beyond needs
        // comparing.
        let agree = prev_index <= self.commit || self.log.term(prev_index) == Some(prev_term);
        if !agree {
            let hint_index = self.log.last_with_term_at_most(prev_index, prev_term);
            let hint_term = self.log.term(hint_index).unwrap_or(0);
            let outcome = Outcome::Conflict {
                prev: prev_index,
                hint_index,
                hint_term,
            };
            let reply = Message::AppendReply {
                term: self.term,
                round: append.round,
                outcome,
            };
            self.promise(self.durable.vote(), from, reply);
            return;
        }
        let first = prev_index.max(self.commit) + 1;
        let runs = append.runs.as_slice();
        if let Some(differs) = (first <= last)
            .then(|| self.log.first_difference(first, last, runs))
            .flatten()
        {
            let at = runs.partition_point(|run| run.1 <= differs) - 1;
            if runs[at].0 < self.log.term(differs - 1).unwrap_or(0) {
                return; // Its term is below that of what is committed before it: no sound peer's.
            }
            if differs <= self.log.last() {
                let write = self.durable.issue(self.now_us);
                self.log.truncate(differs - 1);
                self.outputs.push_back(Output::Truncate {
                    write,
                    after: differs - 1,
                });
            }
            let write = self.durable.issue(self.now_us);
            self.outputs.push_back(Output::AppendReceived {
                write,
                first: differs,
                last,
            });
            for (at, &(term, run_first)) in runs.iter().enumerate() {
                let run_end = runs.get(at + 1).map_or(last, |next| next.1 - 1);
                let from = run_first.max(differs);
                if from <= run_end {
                    self.log.append(term, run_end - from + 1);
                }
            }
        }
        self.follow_commit(append.commit.min(last));
        let outcome = Outcome::Matched { index: last };
        let reply = Message::AppendReply {
            term: self.term,
            round: append.round,
            outcome,
        };
        self.promise(self.durable.issued(), from, reply);
    }

    pub(super) fn on_heartbeat(&mut self, from: u64, term: u64, commit: u64, round: u64) {
        if self.hear_leader(from, term) {
            // Not over what this node has acknowledged to this leader, so it is in the log and the
            // same.
            self.follow_commit(commit.min(self.log.last()));
        } else if term >= self.term {
            return;
        }
        self.promise(
            self.durable.vote(),
            from,
            Message::HeartbeatReply {
                term: self.term,
                round,
            },
        );
    }

    pub(super) fn follow_commit(&mut self, index: u64) {
        if index > self.commit {
            self.commit = index;
            self.outputs.push_back(Output::Commit { index });
            self.look_whether_healed();
        }
    }
}

/// Whether the entries' terms are told, from the first on, rising, and none above the leader's, and
/// no index is out of reach.
fn sound(append: &Append) -> bool {
    let runs = append.runs.as_slice();
    if append.last <= append.prev_index {
        return append.last == append.prev_index && append.last < REACH;
    }
    append.last < REACH
        && runs
            .first()
            .is_some_and(|run| run.1 == append.prev_index + 1 && run.0 >= append.prev_term)
        && runs
            .last()
            .is_some_and(|run| run.0 <= append.term && run.1 <= append.last)
        && runs
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1)
}
