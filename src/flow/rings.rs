//! The rings between the stages: what a slot of each carries, who writes it, who reads it, what happens when it is full.
//!
//! | ring | writer → reader | when full |
//! |---|---|---|
//! | propose | any thread → consensus | the caller gets `Busy`, nothing is appended |
//! | read | any thread → consensus | as above; it has a slot for each request that can be under way |
//! | entry | consensus → append | consensus takes no proposals and no appends; heartbeats and votes go on |
//! | send small, send bulk | consensus → network | consensus takes no more input until there is room |
//! | inbound small, inbound bulk | network → consensus | the connection is not read further: TCP pushes back |
//! | apply | consensus → apply | reads are `Busy`; commit indexes are not here but in an atomic |
//! | replied | apply, consensus → reply | callers are woken by the writer itself |
//! | send transfer | transfer → network | the transfer waits; no entry ever does |
//! | inbound transfer | network → transfer | the frame is lost, and asked for again |
//! | news | transfer → consensus | the transfer waits |
//!
//! Backward edges are cumulative facts and thus atomics, in [`Marks`]: a newer one replaces an older, so none can fill.

use std::sync::{Arc, Mutex};

use ringbuf::ManySender;

use crate::raft::Message;
use crate::wire::transfer::Parcel;

/// What is asked of the consensus stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Append the command; on a follower send it to the leader.
    Command,
    /// Append the command if this node leads.
    LeaderCommand,
    /// As `Command`, for a query that is to go through the log.
    Query,
}

/// What a read must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum See {
    /// Everything that was acknowledged before it came: by a round.
    Now,
    /// The same: by the lease, if there is one.
    Lease,
    /// What was committed `age_us` ago, but for the last `entries` of that.
    AtMost { age_us: u64, entries: u64 },
    /// Whatever is applied.
    Any,
    /// It only waits until this index is applied.
    Applied { index: u64 },
}

/// A slot of the read ring; the query is with the slot of the token. It has a ring to itself so that no read waits behind
/// proposals that may not be taken now.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) see: See,
    pub(crate) token: u64,
}

/// The rings that any thread writes to.
#[derive(Clone, Debug)]
pub(crate) struct Ingress {
    pub(crate) propose: ManySender<Proposal>,
    pub(crate) read: ManySender<Asked>,
}

/// A slot of the propose ring.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) ask: Ask,
    pub(crate) token: u64,
    /// The command, when it is not longer than `Config::inline_bytes`: the buffer is as large from the start.
    pub(crate) inline: Vec<u8>,
    /// The command is longer than that, and in `spilled`.
    pub(crate) is_long: bool,
    /// The lock is never waited for: the writer has the slot before the reader sees it.
    pub(crate) spilled: Mutex<Option<Vec<u8>>>,
}

impl Proposal {
    pub(crate) fn slot(inline_bytes: usize) -> Self {
        Self {
            ask: Ask::Command,
            token: 0,
            inline: Vec::with_capacity(inline_bytes),
            is_long: false,
            spilled: Mutex::new(None),
        }
    }
}

/// What the disk stage is to do. The order on disk is the order in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Append `Entry::bytes`, the records `first ..= last`.
    Append { first: u64, last: u64 },
    /// Forget everything after `after`.
    Truncate { after: u64 },
    /// Remember the term and the vote in it.
    Vote { term: u64, vote: Option<u64> },
    /// The snapshot (index, term) takes the place of the whole log.
    Install { index: u64, term: u64 },
    /// What the directory had lost is here again.
    Healed,
    /// Let go of what is before `before`: it promises nothing, and has no number.
    Purge { before: u64 },
    /// Nothing: the slot's buffer was made smaller. It has no number either.
    Nothing,
}

/// A slot of the entry ring: a whole batch.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The core's number of this write; [`Marks::durable_write`] will pass it when it is on disk.
    pub(crate) seq: u64,
    pub(crate) write: Write,
    pub(crate) bytes: Vec<u8>,
}

impl Entry {
    pub(crate) fn slot(batch_bytes: usize) -> Self {
        Self {
            seq: 0,
            write: Write::Truncate { after: 0 },
            bytes: Vec::with_capacity(batch_bytes),
        }
    }
}

/// A slot of the ring for what must never wait behind entries: votes, acknowledgements, heartbeats.
#[derive(Debug)]
pub(crate) struct SendSmall {
    pub(crate) to: u64,
    pub(crate) message: Message,
}

/// What goes on the bulk lane.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bulk {
    /// An append; its entries are read from the log when it is sent.
    Append(Message),
    /// Proposals of this node for the leader of `term`, in `SendBulk::bytes`.
    Forward { term: u64 },
    /// Tokens of forwarded proposals that were not appended, in `SendBulk::bytes`.
    Refused { term: u64 },
    /// The slot's buffer was made smaller.
    Nothing,
}

/// A slot of the ring for entries and forwarded proposals.
#[derive(Debug)]
pub(crate) struct SendBulk {
    pub(crate) to: u64,
    pub(crate) what: Bulk,
    pub(crate) bytes: Vec<u8>,
}

/// A slot of the ring for snapshots on their way out, and for what is said about them.
#[derive(Debug)]
pub(crate) struct SendTransfer {
    pub(crate) to: u64,
    pub(crate) parcel: Parcel,
    /// What goes beside the parcel, if it is bulk. The buffer is that of an earlier one, unless that is on its way still.
    pub(crate) bytes: Arc<Vec<u8>>,
}

/// A slot of the ring for the same on its way in.
#[derive(Debug)]
pub(crate) struct InTransfer {
    pub(crate) from: u64,
    pub(crate) parcel: Parcel,
    pub(crate) bytes: Vec<u8>,
}

/// What the consensus stage asks of the transfer stage: a snapshot for `to`, from the leader of `term`.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) to: u64,
    pub(crate) term: u64,
}

/// What the transfer stage has to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum News {
    /// A snapshot is here, durably.
    Received { index: u64, term: u64, time_us: u64 },
    /// A peer has the snapshot it was sent.
    Sent { to: u64, index: u64 },
    /// It could not be sent.
    Failed { to: u64 },
}

/// The slot itself.
#[derive(Debug)]
pub(crate) struct ToConsensus(pub(crate) News);

/// What arrives on the small lane, and what becomes of connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Small {
    Message(Message),
    Up,
    Down,
    /// A peer has refused this node's directory.
    Excluded,
}

/// A slot of the inbound ring for small messages.
#[derive(Debug)]
pub(crate) struct InSmall {
    pub(crate) from: u64,
    pub(crate) what: Small,
    /// What a follower attached to its answer; empty for most.
    pub(crate) piggyback: Vec<u8>,
}

/// A slot of the inbound ring for messages with a payload, whose checksums have been verified.
#[derive(Debug)]
pub(crate) struct InBulk {
    pub(crate) from: u64,
    pub(crate) what: InBulkKind,
    pub(crate) body: Vec<u8>,
}

/// What a payload is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum InBulkKind {
    /// Entries, verified record by record.
    Append(Message),
    /// Proposals from the node and process `origin`, for the leader of `term`.
    Forward { term: u64, origin: u64 },
    /// Tokens of this node's proposals that a leader did not append.
    Refused,
    /// The slot's buffer was made smaller.
    Nothing,
}

/// A slot of the ring to the apply stage: what happens at an index.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AtIndex {
    /// Answer the read once `index` is applied.
    Read { index: u64, token: u64 },
    /// Say that `index` is applied.
    Applied { index: u64, token: u64 },
    /// This node leads in `term`, whose first entry is `index`.
    LeaderStart { index: u64, term: u64 },
    /// It no longer does.
    LeaderStop { term: u64 },
}

/// The slot itself: interior, since a reader only gets a shared reference and copies it out.
#[derive(Debug)]
pub(crate) struct ToApply(pub(crate) AtIndex);
