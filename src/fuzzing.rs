//! A way into messages and the pure core for the fuzz targets of `fuzz/targets`; not part of the interface.

use storage::scrub::record_repair::NotFetched;

use crate::raft::{Append, Core, Membership, Message, Outcome, Output, Restored, Settings, Sizes};
use crate::wire::transfer::Parcel;
use crate::wire::{self, Frame, Head};

/// A head that was understood, and what it is when it is written again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reread {
    /// The kind.
    pub kind: u8,
    /// The head.
    pub head: Vec<u8>,
    /// What was understood.
    pub text: String,
}

/// Reads a head and writes it again; `None` when it is not understood.
pub fn reread(kind: u8, head: &[u8]) -> Option<Reread> {
    let frame = wire::decode(kind, head).ok()?;
    let text = format!("{frame:?}");
    let (kind, head) = match frame {
        Frame::Message { message, attached } => {
            let mut head = Head::default();
            let kind = wire::encode(&message, &mut head);
            head.attach(attached);
            (kind, head.as_ref().to_vec())
        }
        Frame::Forward { term, origin } => (kind, wire::forward(term, origin).as_ref().to_vec()),
        Frame::Parcel(parcel) => {
            let (kind, head) = wire::transfer::encode(parcel);
            (kind, head.as_ref().to_vec())
        }
        Frame::Refused => (kind, wire::forward(0, 0).as_ref().to_vec()),
    };
    Some(Reread { kind, head, text })
}

/// Kind and head of a message of each kind.
pub fn message_heads() -> Vec<(u8, Vec<u8>)> {
    let (term, round) = (7, 4);
    let append = Append {
        term,
        prev_index: 3,
        prev_term: 2,
        last: 9,
        commit: 3,
        round,
        bytes: 0,
        runs: Default::default(),
    };
    let reply = |outcome| Message::AppendReply {
        term,
        round,
        outcome,
    };
    let vote = |pre| Message::Vote {
        term,
        pre,
        last_index: 3,
        last_term: 2,
    };
    let granted = true;
    let answer = |index| Message::ReadIndexReply {
        term,
        ctx: 1,
        index,
    };
    let conflict = Outcome::Conflict {
        prev: 3,
        hint_index: 2,
        hint_term: 1,
    };
    let messages = [
        vote(true),
        vote(false),
        Message::VoteReply {
            term,
            pre: false,
            granted,
        },
        Message::Append(append),
        reply(Outcome::Matched { index: 9 }),
        reply(conflict),
        Message::Heartbeat {
            term,
            commit: 5,
            round,
        },
        Message::HeartbeatReply { term, round },
        Message::ReadIndex { term, ctx: 1 },
        answer(Some(5)),
        answer(None),
        Message::LeaseAsk {
            term,
            number: 1,
            promise_us: 1000,
        },
        Message::LeasePromise { term, number: 1 },
    ];
    let heads = messages.iter().map(|message| {
        let mut head = Head::default();
        let kind = wire::encode(message, &mut head);
        (kind, head.as_ref().to_vec())
    });
    let forward = wire::forward(term, 1).as_ref().to_vec();
    let proposals = [wire::FORWARD, wire::REFUSED].map(|kind| (kind, forward.clone()));
    let (first, last, bytes) = (7, 9, 8192);
    let records = [
        Parcel::WantRecords { first, last, bytes },
        Parcel::GiveRecords { first, last },
        Parcel::NoRecords {
            first,
            why: NotFetched::Purged,
        },
    ];
    let records = records.map(|parcel| {
        let (kind, head) = wire::transfer::encode(parcel);
        (kind, head.as_ref().to_vec())
    });
    heads.chain(proposals).chain(records).collect()
}

/// What the core of a node wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Keep term and vote.
    SaveVote(u64, Option<u64>),
    /// Drop the entries behind this one.
    Truncate(u64),
    /// Append the entries from the first to the last.
    Append(u64, u64),
    /// Tell the node of a granted vote of this term.
    Grant(u64, u64),
    /// Ask for votes in this term.
    Stand(u64),
    /// Tell that everything up to this index is durable, in this term.
    Acknowledge(u64, u64),
    /// Everything up to this index is committed.
    Commit(u64),
}

/// The core of node 1 of three, whose peers and disk are played by somebody else.
#[derive(Debug)]
pub struct Lone {
    core: Core,
    now_us: u64,
}

struct Fixed;

impl Sizes for Fixed {
    fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64) {
        const BYTES: u64 = 72;
        let fits = (max_bytes / BYTES).max(1).min(last - first + 1);
        (first + fits - 1, fits * BYTES)
    }
}

impl Default for Lone {
    fn default() -> Self {
        Self::new()
    }
}

impl Lone {
    /// The last entry it starts with.
    pub const LAST: u64 = 6;
    /// The term it starts in.
    pub const TERM: u64 = 3;

    /// With six entries of the terms 1 and 3, and a small window.
    pub fn new() -> Self {
        let settings = Settings {
            id: 1,
            election_timeout_us: 1000,
            heartbeat_us: 100,
            seed: 1,
            max_append_bytes: 300,
            max_inflight_messages: 3,
            max_inflight_bytes: 900,
            disk_stall_us: 5000,
            founding_wait_us: 0,
            lease_us: Some(900),
        };
        let restored = Restored {
            term: Self::TERM,
            vote: None,
            base_index: 0,
            base_term: 0,
            term_runs: vec![(1, 1), (3, 4)],
            last_index: Self::LAST,
            committed: 0,
            heal: None,
            excluded: false,
            membership: Membership::of_voters(vec![1, 2, 3]),
        };
        Self {
            core: Core::new(settings, restored, 0),
            now_us: 0,
        }
    }

    /// Time passes.
    pub fn tick(&mut self, after_us: u64) {
        self.now_us += after_us;
        self.core.tick(self.now_us, &Fixed);
    }

    /// Time passes until something is due.
    pub fn tick_when_due(&mut self) {
        let after_us = self.core.next_deadline().saturating_sub(self.now_us);
        self.tick(after_us.min(1 << 20));
    }

    /// A message arrives; `runs` are the terms of an append's entries and their first indexes. False
    /// when the head is none of a message.
    pub fn receive(&mut self, from: u64, kind: u8, head: &[u8], runs: &[(u64, u64)]) -> bool {
        let Ok(Frame::Message { mut message, .. }) = wire::decode(kind, head) else {
            return false;
        };
        if let Message::Append(append) = &mut message {
            for &(term, first) in runs {
                append.runs.push(term, first);
            }
        }
        self.core.receive(self.now_us, from, &message, &Fixed);
        true
    }

    /// Writes are durable, by number.
    pub fn persisted(&mut self, upto: u64) {
        self.core.persisted(self.now_us, upto, &Fixed);
    }

    /// Proposes so many entries; what is to be appended, if it leads.
    pub fn propose(&mut self, count: u64) -> Option<Wants> {
        let proposed = self.core.propose(self.now_us, count, count * 72, &Fixed);
        proposed.map(|proposed| Wants::Append(proposed.first, proposed.last))
    }

    /// Asks for a read.
    pub fn read(&mut self, ctx: u64) {
        self.core.read(self.now_us, ctx);
    }

    /// A connection comes or goes.
    pub fn connection(&mut self, peer: u64, up: bool) {
        match up {
            true => self.core.peer_up(self.now_us, peer, &Fixed),
            false => self.core.peer_down(self.now_us, peer),
        }
    }

    /// What is to be done next; writes are numbered by their order.
    pub fn next_wish(&mut self) -> Option<Wants> {
        loop {
            return Some(match self.core.pop_output()? {
                Output::SaveVote { term, vote, .. } => Wants::SaveVote(term, vote),
                Output::Truncate { after, .. } => Wants::Truncate(after),
                Output::AppendReceived { first, last, .. } => Wants::Append(first, last),
                Output::AppendTermStart { index, .. } => Wants::Append(index, index),
                Output::Commit { index } => Wants::Commit(index),
                Output::Send { to, message } => match message {
                    Message::VoteReply {
                        term,
                        pre: false,
                        granted: true,
                    } => Wants::Grant(term, to),
                    Message::Vote {
                        term, pre: false, ..
                    } => Wants::Stand(term),
                    Message::AppendReply {
                        term,
                        outcome: Outcome::Matched { index },
                        ..
                    } => Wants::Acknowledge(term, index),
                    _ => continue,
                },
                _ => continue,
            });
        }
    }
}
