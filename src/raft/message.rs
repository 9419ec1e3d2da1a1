//! What nodes say to each other: indexes and terms, never a payload's bytes.

use std::fmt;

/// The most terms that the entries of one append may have; the sender cuts there.
pub(crate) const MAX_RUNS: usize = 8;

/// The terms of an append's entries: `(term, first index)`, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    len: usize,
    runs: [(u64, u64); MAX_RUNS],
}

impl Runs {
    /// False when there is no room.
    pub(crate) fn push(&mut self, term: u64, first: u64) -> bool {
        let Some(place) = self.runs.get_mut(self.len) else {
            return false;
        };
        *place = (term, first);
        self.len += 1;
        true
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn as_slice(&self) -> &[(u64, u64)] {
        &self.runs[..self.len]
    }
}

/// Entries for a follower: those after `prev_index`, up to and with `last` (equal when there are
/// none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Append {
    pub(crate) term: u64,
    pub(crate) prev_index: u64,
    pub(crate) prev_term: u64,
    pub(crate) last: u64,
    pub(crate) commit: u64,
    /// The leader's latest round of reads when it sent this; the answer echoes it.
    pub(crate) round: u64,
    /// The entries' bytes, for the sender's window. Not on the wire: whoever has the bytes knows.
    pub(crate) bytes: u64,
    /// The entries' terms. Not on the wire: the records carry them.
    pub(crate) runs: Runs,
}

/// What a follower says to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything up to `index` is as the leader's, and durable.
    Matched { index: u64 },
    /// The entry at `prev` is not as the leader's. The last one here that can be has an index of at
    /// most `hint_index`, where this node's term is `hint_term`.
    Conflict {
        prev: u64,
        hint_index: u64,
        hint_term: u64,
    },
}

/// A message; each names the sender's term (a pre-vote: the term it would stand in).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Vote {
        term: u64,
        pre: bool,
        last_index: u64,
        last_term: u64,
    },
    VoteReply {
        term: u64,
        pre: bool,
        granted: bool,
    },
    Append(Append),
    AppendReply {
        term: u64,
        round: u64,
        outcome: Outcome,
    },
    /// `commit` is never over what this follower has acknowledged.
    Heartbeat {
        term: u64,
        commit: u64,
        round: u64,
    },
    HeartbeatReply {
        term: u64,
        round: u64,
    },
    /// A follower asks for the index that a read must see.
    ReadIndex {
        term: u64,
        ctx: u64,
    },
    /// `None`: not a leader (any more).
    ReadIndexReply {
        term: u64,
        ctx: u64,
        index: Option<u64>,
    },
    /// A leader asks a voter to elect nobody for so long.
    LeaseAsk {
        term: u64,
        number: u64,
        promise_us: u64,
    },
    /// It will not, from when it was asked.
    LeasePromise {
        term: u64,
        number: u64,
    },
}

impl Message {
    pub(crate) fn term(&self) -> u64 {
        match *self {
            Self::Append(Append { term, .. })
            | Self::Vote { term, .. }
            | Self::VoteReply { term, .. }
            | Self::AppendReply { term, .. }
            | Self::Heartbeat { term, .. }
            | Self::HeartbeatReply { term, .. }
            | Self::ReadIndex { term, .. }
            | Self::ReadIndexReply { term, .. }
            | Self::LeaseAsk { term, .. }
            | Self::LeasePromise { term, .. } => term,
        }
    }

    /// Whether it goes on the bulk lane.
    pub(crate) fn carries_entries(&self) -> bool {
        matches!(self, Self::Append(append) if append.last > append.prev_index)
    }

    /// Whether it is a follower's answer, to which the embedder's few bytes are attached.
    pub(crate) fn answers_leader(&self) -> bool {
        matches!(self, Self::AppendReply { .. } | Self::HeartbeatReply { .. })
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vote {
                term,
                pre,
                last_index,
                last_term,
            } => {
                let pre = if *pre { "PreVote" } else { "Vote" };
                write!(f, "{pre} term={term} log={last_term}/{last_index}")
            }
            Self::VoteReply { term, pre, granted } => {
                let pre = if *pre { "PreVoteReply" } else { "VoteReply" };
                write!(
                    f,
                    "{pre} term={term} {}",
                    if *granted { "granted" } else { "refused" }
                )
            }
            Self::Append(a) => {
                write!(
                    f,
                    "Append term={} prev={}/{} ",
                    a.term, a.prev_term, a.prev_index
                )?;
                if a.last > a.prev_index {
                    write!(f, "entries={}..={} ", a.prev_index + 1, a.last)?;
                }
                write!(f, "commit={}", a.commit)?;
                if a.round > 0 {
                    write!(f, " round={}", a.round)
                } else {
                    Ok(())
                }
            }
            Self::AppendReply {
                term,
                round,
                outcome,
            } => {
                write!(f, "AppendReply term={term} ")?;
                match outcome {
                    Outcome::Matched { index } => write!(f, "matched={index}")?,
                    Outcome::Conflict {
                        prev,
                        hint_index,
                        hint_term,
                    } => {
                        write!(f, "conflict at {prev}, try {hint_term}/{hint_index}")?;
                    }
                }
                if *round > 0 {
                    write!(f, " round={round}")
                } else {
                    Ok(())
                }
            }
            Self::Heartbeat {
                term,
                commit,
                round,
            } => {
                write!(f, "Heartbeat term={term} commit={commit}")?;
                if *round > 0 {
                    write!(f, " round={round}")
                } else {
                    Ok(())
                }
            }
            Self::HeartbeatReply { term, round } => {
                write!(f, "HeartbeatReply term={term}")?;
                if *round > 0 {
                    write!(f, " round={round}")
                } else {
                    Ok(())
                }
            }
            Self::ReadIndex { term, ctx } => write!(f, "ReadIndex term={term} ctx={ctx}"),
            Self::ReadIndexReply {
                term,
                ctx,
                index: Some(index),
            } => {
                write!(f, "ReadIndexReply term={term} ctx={ctx} index={index}")
            }
            Self::ReadIndexReply {
                term,
                ctx,
                index: None,
            } => {
                write!(f, "ReadIndexReply term={term} ctx={ctx} refused")
            }
            Self::LeaseAsk {
                term,
                number,
                promise_us,
            } => {
                write!(
                    f,
                    "LeaseAsk term={term} number={number} for {promise_us} us"
                )
            }
            Self::LeasePromise { term, number } => {
                write!(f, "LeasePromise term={term} number={number}")
            }
        }
    }
}
