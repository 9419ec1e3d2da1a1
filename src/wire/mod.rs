//! Messages as bytes: the only place that knows both. `docs/wire_format.md` draws each.

pub(crate) mod forward;
pub(crate) mod transfer;

use std::fmt;

use crate::config::Member;
use crate::raft::{Append, Message, Outcome};
use crate::wire::transfer::Parcel;

const VOTE: u8 = 1;
const VOTE_REPLY: u8 = 2;
const APPEND: u8 = 3;
const APPEND_REPLY: u8 = 4;
const HEARTBEAT: u8 = 5;
const HEARTBEAT_REPLY: u8 = 6;
const READ_INDEX: u8 = 7;
const READ_INDEX_REPLY: u8 = 8;
/// Proposals of a follower's clients.
pub(crate) const FORWARD: u8 = 9;
/// Those of them that were not appended.
pub(crate) const REFUSED: u8 = 10;
const LEASE_ASK: u8 = 20;
const LEASE_PROMISE: u8 = 21;

/// What is said about snapshots, and their parts.
pub(crate) const SNAPSHOT: u8 = 11;
/// What is said about records that a node has lost, and the records.
pub(crate) const RECORDS: u8 = 12;

/// The longest that an embedder may attach to a follower's answers.
pub(crate) const MAX_ATTACHED: usize = 64;

/// The head of a frame: little-endian integers, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    len: usize,
    bytes: [u8; 128],
}

impl Default for Head {
    fn default() -> Self {
        Self {
            len: 0,
            bytes: [0; 128],
        }
    }
}

impl AsRef<[u8]> for Head {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Head {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn u64s<const N: usize>(&mut self, values: [u64; N]) {
        for value in values {
            self.put(&value.to_le_bytes());
        }
    }

    /// Adds what the embedder has attached, after everything else.
    pub(crate) fn attach(&mut self, bytes: &[u8]) {
        self.put(&bytes[..bytes.len().min(MAX_ATTACHED)]);
    }
}

/// Writes a message's head; returns its kind.
pub(crate) fn encode(message: &Message, head: &mut Head) -> u8 {
    match *message {
        Message::Vote {
            term,
            pre,
            last_index,
            last_term,
        } => {
            head.u64s([term, last_index, last_term, u64::from(pre)]);
            VOTE
        }
        Message::VoteReply { term, pre, granted } => {
            head.u64s([term, u64::from(pre) | u64::from(granted) << 1]);
            VOTE_REPLY
        }
        Message::Append(Append {
            term,
            prev_index,
            prev_term,
            last,
            commit,
            round,
            ..
        }) => {
            head.u64s([term, prev_index, prev_term, last, commit, round]);
            APPEND
        }
        Message::AppendReply {
            term,
            round,
            outcome,
        } => {
            let (kind, a, b, c) = match outcome {
                Outcome::Matched { index } => (0, index, 0, 0),
                Outcome::Conflict {
                    prev,
                    hint_index,
                    hint_term,
                } => (1, prev, hint_index, hint_term),
            };
            head.u64s([term, round, kind, a, b, c]);
            APPEND_REPLY
        }
        Message::Heartbeat {
            term,
            commit,
            round,
        } => {
            head.u64s([term, commit, round]);
            HEARTBEAT
        }
        Message::HeartbeatReply { term, round } => {
            head.u64s([term, round]);
            HEARTBEAT_REPLY
        }
        Message::ReadIndex { term, ctx } => {
            head.u64s([term, ctx]);
            READ_INDEX
        }
        Message::ReadIndexReply { term, ctx, index } => {
            head.u64s([term, ctx, u64::from(index.is_some()), index.unwrap_or(0)]);
            READ_INDEX_REPLY
        }
        Message::LeaseAsk {
            term,
            number,
            promise_us,
        } => {
            head.u64s([term, number, promise_us]);
            LEASE_ASK
        }
        Message::LeasePromise { term, number } => {
            head.u64s([term, number]);
            LEASE_PROMISE
        }
    }
}

/// The head of forwarded or refused proposals.
pub(crate) fn forward(term: u64, origin: u64) -> Head {
    let mut head = Head::default();
    head.u64s([term, origin]);
    head
}

/// The membership as it stands in a snapshot: `(id, role, length of the address)` and the address, for each.
pub(crate) fn members(members: &[Member]) -> Vec<u8> {
    const VOTER: u8 = 0;
    let mut out = Vec::new();
    for member in members {
        let len = u16::try_from(member.addr.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&member.id.0.to_le_bytes());
        out.push(VOTER);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&member.addr.as_bytes()[..usize::from(len)]);
    }
    out
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    Message {
        message: Message,
        attached: &'a [u8],
    },
    Forward {
        term: u64,
        origin: u64,
    },
    Refused,
    Parcel(Parcel),
}

/// Why a head is none that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadError {
    Kind(u8),
    Length { kind: u8, len: usize },
    Value { kind: u8 },
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "kind {kind} is not known to this version"),
            Self::Length { kind, len } => write!(f, "a head of {len} bytes is none of kind {kind}"),
            Self::Value { kind } => write!(f, "a head of kind {kind} holds a value that cannot be"),
        }
    }
}

/// Reads a frame's kind and head.
pub(crate) fn decode(kind: u8, head: &[u8]) -> Result<Frame<'_>, HeadError> {
    let message = match kind {
        VOTE => {
            let [term, last_index, last_term, pre] = exactly(kind, head)?;
            Message::Vote {
                term,
                pre: flag(kind, pre)?,
                last_index,
                last_term,
            }
        }
        VOTE_REPLY => {
            let [term, flags] = exactly(kind, head)?;
            if flags > 3 {
                return Err(HeadError::Value { kind });
            }
            Message::VoteReply {
                term,
                pre: flags & 1 != 0,
                granted: flags & 2 != 0,
            }
        }
        APPEND => {
            let [term, prev_index, prev_term, last, commit, round] = exactly(kind, head)?;
            // The largest index that can be leaves room for the one after it.
            if last < prev_index || last == u64::MAX {
                return Err(HeadError::Value { kind });
            }
            let runs = Default::default();
            Message::Append(Append {
                term,
                prev_index,
                prev_term,
                last,
                commit,
                round,
                bytes: 0,
                runs,
            })
        }
        APPEND_REPLY => {
            let ([term, round, outcome, a, b, c], attached) = at_least(kind, head)?;
            let outcome = match outcome {
                0 => Outcome::Matched { index: a },
                1 => Outcome::Conflict {
                    prev: a,
                    hint_index: b,
                    hint_term: c,
                },
                _ => return Err(HeadError::Value { kind }),
            };
            return Ok(Frame::Message {
                message: Message::AppendReply {
                    term,
                    round,
                    outcome,
                },
                attached,
            });
        }
        HEARTBEAT => {
            let [term, commit, round] = exactly(kind, head)?;
            Message::Heartbeat {
                term,
                commit,
                round,
            }
        }
        HEARTBEAT_REPLY => {
            let ([term, round], attached) = at_least(kind, head)?;
            return Ok(Frame::Message {
                message: Message::HeartbeatReply { term, round },
                attached,
            });
        }
        READ_INDEX => {
            let [term, ctx] = exactly(kind, head)?;
            Message::ReadIndex { term, ctx }
        }
        READ_INDEX_REPLY => {
            let [term, ctx, known, index] = exactly(kind, head)?;
            Message::ReadIndexReply {
                term,
                ctx,
                index: flag(kind, known)?.then_some(index),
            }
        }
        LEASE_ASK => {
            let [term, number, promise_us] = exactly(kind, head)?;
            // No sum of it and a clock overflows.
            if promise_us > 1 << 62 {
                return Err(HeadError::Value { kind });
            }
            Message::LeaseAsk {
                term,
                number,
                promise_us,
            }
        }
        LEASE_PROMISE => {
            let [term, number] = exactly(kind, head)?;
            Message::LeasePromise { term, number }
        }
        FORWARD => {
            let [term, origin] = exactly(kind, head)?;
            return Ok(Frame::Forward { term, origin });
        }
        REFUSED => {
            let [_, _] = exactly(kind, head)?;
            return Ok(Frame::Refused);
        }
        SNAPSHOT => return transfer::decode_parcel(head).map(Frame::Parcel),
        RECORDS => return transfer::decode_records(head).map(Frame::Parcel),
        other => return Err(HeadError::Kind(other)),
    };
    Ok(Frame::Message {
        message,
        attached: &[],
    })
}

fn flag(kind: u8, value: u64) -> Result<bool, HeadError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(HeadError::Value { kind }),
    }
}

pub(super) fn exactly<const N: usize>(kind: u8, head: &[u8]) -> Result<[u64; N], HeadError> {
    match at_least(kind, head)? {
        (values, []) => Ok(values),
        _ => Err(HeadError::Length {
            kind,
            len: head.len(),
        }),
    }
}

pub(super) fn at_least<const N: usize>(
    kind: u8,
    head: &[u8],
) -> Result<([u64; N], &[u8]), HeadError> {
    let mut values = [0; N];
    let wrong = HeadError::Length {
        kind,
        len: head.len(),
    };
    let (ours, attached) = head.split_at_checked(8 * N).ok_or(wrong)?;
    if attached.len() > MAX_ATTACHED {
        return Err(wrong);
    }
    for (value, bytes) in values.iter_mut().zip(ours.chunks_exact(8)) {
        *value = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    Ok((values, attached))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_message() -> Vec<Message> {
        let append = Append {
            term: 7,
            prev_index: 3,
            prev_term: 2,
            last: 9,
            commit: 3,
            round: 4,
            bytes: 0,
            runs: Default::default(),
        };
        vec![
            Message::Vote {
                term: 7,
                pre: true,
                last_index: 3,
                last_term: 2,
            },
            Message::VoteReply {
                term: 7,
                pre: false,
                granted: true,
            },
            Message::Append(append),
            Message::AppendReply {
                term: 7,
                round: 4,
                outcome: Outcome::Matched { index: 9 },
            },
            Message::AppendReply {
                term: 7,
                round: 0,
                outcome: Outcome::Conflict {
                    prev: 3,
                    hint_index: 2,
                    hint_term: 1,
                },
            },
            Message::Heartbeat {
                term: 7,
                commit: 5,
                round: 4,
            },
            Message::HeartbeatReply { term: 7, round: 4 },
            Message::ReadIndex { term: 7, ctx: 1 },
            Message::ReadIndexReply {
                term: 7,
                ctx: 1,
                index: Some(5),
            },
            Message::ReadIndexReply {
                term: 7,
                ctx: 1,
                index: None,
            },
            Message::LeaseAsk {
                term: 7,
                number: 3,
                promise_us: 1_000_000,
            },
            Message::LeasePromise { term: 7, number: 3 },
        ]
    }

    #[test]
    fn a_message_comes_back_as_it_went() {
        for message in every_message() {
            let mut head = Head::default();
            let kind = encode(&message, &mut head);
            assert_eq!(
                decode(kind, head.as_ref()),
                Ok(Frame::Message {
                    message,
                    attached: &[]
                })
            );
        }
        assert_eq!(
            decode(FORWARD, forward(7, 5).as_ref()),
            Ok(Frame::Forward { term: 7, origin: 5 })
        );
    }

    #[test]
    fn a_request_for_records_that_cannot_be_is_refused() {
        let none = |values| {
            let mut head = Head::default();
            head.u64s::<4>(values);
            let found = decode(RECORDS, head.as_ref());
            assert_eq!(found, Err(HeadError::Value { kind: RECORDS }), "{values:?}");
        };
        none([0, 0, 5, 1]);
        none([0, 6, 5, 1]);
        none([0, 6, u64::MAX, 1]);
        none([1, 5, 7, 1]);
        none([2, 5, 0, 3]);
        none([2, 5, 1, 0]);
        none([3, 5, 7, 0]);
    }

    #[test]
    fn what_is_attached_to_an_answer_comes_with_it() {
        let message = Message::HeartbeatReply { term: 7, round: 4 };
        let mut head = Head::default();
        let kind = encode(&message, &mut head);
        head.attach(&[9; MAX_ATTACHED + 1]);
        let attached = &[9; MAX_ATTACHED][..];
        assert_eq!(
            decode(kind, head.as_ref()),
            Ok(Frame::Message { message, attached })
        );
    }

    #[test]
    fn a_head_of_another_length_or_kind_is_an_error_and_no_panic() {
        for message in every_message() {
            let mut head = Head::default();
            let kind = encode(&message, &mut head);
            for len in 0..head.as_ref().len() {
                assert_eq!(
                    decode(kind, &head.as_ref()[..len]),
                    Err(HeadError::Length { kind, len }),
                    "{message}"
                );
            }
        }
        assert_eq!(decode(99, &[]), Err(HeadError::Kind(99)));
    }
}
