//! What a node says rests on its disk: a vote, an acknowledgement, a term that was taken up.
//!
//! Looked at as the message leaves. It may have waited in a ring meanwhile, so the disk may be further by then: in a
//! later term, which makes whatever was said in an earlier one void.

use storage::Vote;

use crate::raft::{Message, Outcome};
use crate::sim::invariants::{Verdict, broken};

/// What a node's disk holds for certain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnDisk {
    pub(crate) vote: Vote,
    pub(crate) last: u64,
    /// Of the last durable entry: a term that is in the log needs no record of its own.
    pub(crate) last_term: u64,
}

pub(crate) fn look(by: u64, to: u64, message: &Message, disk: OnDisk) -> Verdict {
    let (on_disk, term) = (disk.vote.term.max(disk.last_term), message.term());
    if let Message::Vote { pre: true, .. }
    | Message::VoteReply {
        pre: true,
        granted: true,
        ..
    } = message
    {
        return Ok(()); // They name a term that nobody has taken up, and promise nothing.
    }
    let premature = |what: String| {
        broken(
            "promises rest on the disk",
            format!("node {by} says to {to} {message}, and {what}"),
        )
    };
    if on_disk < term {
        premature(format!("the term on its disk is {on_disk}"))?;
    }
    if disk.vote.term > term {
        return Ok(());
    }
    match *message {
        Message::Vote { pre: false, .. } if disk.vote.voted_for != Some(by) => {
            premature(format!("its vote on disk is {:?}", disk.vote))
        }
        Message::VoteReply {
            pre: false,
            granted: true,
            ..
        } if disk.vote.voted_for != Some(to) => {
            premature(format!("its vote on disk is {:?}", disk.vote))
        }
        Message::AppendReply {
            outcome: Outcome::Matched { index },
            ..
        } if disk.last < index => premature(format!("its log is durable to {}", disk.last)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(term: u64, voted_for: Option<u64>, last: u64) -> OnDisk {
        OnDisk {
            vote: Vote { term, voted_for },
            last,
            last_term: 1,
        }
    }

    #[test]
    fn what_is_not_on_disk_may_not_be_said() {
        let granted = Message::VoteReply {
            term: 3,
            pre: false,
            granted: true,
        };
        look(1, 2, &granted, disk(3, Some(2), 0)).expect("on disk");
        look(1, 2, &granted, disk(4, None, 0)).expect("of a term that is over");
        look(1, 2, &granted, disk(3, None, 0)).expect_err("no vote on disk");
        look(1, 2, &granted, disk(3, Some(3), 0)).expect_err("a vote for somebody else");
        look(1, 2, &granted, disk(2, Some(2), 0)).expect_err("an earlier term");
        let matched = Message::AppendReply {
            term: 3,
            round: 0,
            outcome: Outcome::Matched { index: 5 },
        };
        look(1, 2, &matched, disk(3, None, 5)).expect("on disk");
        look(1, 2, &matched, disk(3, None, 4)).expect_err("written only");
    }
}
