//! Hop 1: everything that is decided, is decided here, in one order.
//!
//! The stage feeds the pure core with what arrives - answers of peers, the disk's progress, proposals, the clock - and
//! carries out what the core says, by putting it on the rings. It takes an input only while every ring that the
//! outcome may need has room, so nothing decided is ever lost between two stages; the clock alone is always heard, and
//! what it asks of the disk is held here should the ring be full. That is what keeps heartbeats alive under load.
//!
//! Order of a turn: the clock, small messages, reads, the disk, entries from the leader, then proposals, each with a bound.
//! Small messages and reads still have room on the entry ring when entries and proposals have none: a slow disk holds up
//! no read.

pub(crate) mod entry_sizes;
mod reads;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use ringbuf::{Receiver, Sender, Take, Waker};
use storage::record::{self, Header};

use crate::config::Config;
use crate::entry::{KIND_COMMAND, KIND_QUERY, KIND_TERM_START};
use crate::error::ProposeError;
use crate::flow::consensus::entry_sizes::Sizes;
use crate::flow::log_clock::LogClock;
use crate::flow::rings::{
    Ask, Asked, AtIndex, Bulk, Entry, InBulk, InBulkKind, InSmall, News, Proposal, See, SendBulk,
    SendSmall, Small, ToApply, ToConsensus, Wanted, Write,
};
use crate::flow::shared::Shared;
use crate::flow::trim::{self, Trim};
use crate::flow::watermarks::advance;
use crate::raft::{self, Core, Message, Outcome, Output};
use crate::request::latency::Stamp;
use crate::request::token::Token;
use crate::status::{PeerStatus, Role};
use crate::types::NodeId;
use crate::wire::forward;

/// Inputs of one kind that one turn takes at the most.
const TURN: usize = 256;
/// Free slots of each outbound ring without which no input is taken: one input makes at most a few messages a peer.
const ROOM: usize = 64;
const ENTRY_ROOM: usize = 4;
/// The same for inputs that bring entries.
const BULK_ENTRY_ROOM: usize = 8;
/// How often the leader's view of its peers is copied for the status.
const PEERS_EVERY_US: u64 = 100_000;

/// What the stage reads.
pub(crate) struct Inputs {
    pub(crate) small: Receiver<InSmall>,
    pub(crate) bulk: Receiver<InBulk>,
    pub(crate) propose: Receiver<Proposal>,
    pub(crate) news: Receiver<ToConsensus>,
    pub(crate) read: Receiver<Asked>,
}

/// What it writes.
pub(crate) struct Rings {
    pub(crate) entry: Sender<Entry>,
    pub(crate) send_small: Sender<SendSmall>,
    pub(crate) send_bulk: Sender<SendBulk>,
    pub(crate) at_index: Sender<ToApply>,
    pub(crate) wanted: Sender<Wanted>,
}

pub(crate) struct Consensus {
    inputs: Inputs,
    engine: Engine,
}

/// The core with everything it needs to act; apart from the inputs, so that a slot can be read while it acts.
struct Engine {
    core: Core,
    sizes: Sizes,
    rings: Rings,
    shared: Arc<Shared>,
    apply: Waker,
    transfer: Waker,
    limits: Limits,
    /// Writes that the clock asked for while the entry ring was full.
    held: VecDeque<(u64, Write)>,
    /// The batch being encoded; changes places with the buffer of a ring slot.
    batch: Vec<u8>,
    /// Proposals being gathered for the leader; likewise.
    forwards: Vec<u8>,
    refused: Vec<u8>,
    /// Of the rings that have buffers.
    trim_entry: Trim,
    trim_bulk: Trim,
    /// The reads that wait for their index; those of one turn share a context.
    reads: VecDeque<Unconfirmed>,
    /// Reads whose answer depends on the time; empty between two turns.
    timed: Vec<(See, u64)>,
    /// Rises from a number of this process's own, so that an answer to an earlier life's question confirms nothing here.
    next_read: u64,
    log_clock: LogClock,
    durable_write: u64,
    /// What is committed, and how much of it the log holds for certain: see `show_commit`.
    committed: u64,
    cut: Option<Cut>,
    /// How far the log was last let go of.
    compacted: u64,
    peers_due_us: u64,
    leading: Option<u64>,
    /// Role, term and leader as they were last told to the log.
    shown: (Role, u64, Option<u64>),
}

/// A truncation, or a replacement of the log, that was asked for: until it is known to be done, the log may still hold
/// what it takes away.
#[derive(Clone, Copy)]
struct Cut {
    write: u64,
    after: u64,
}

struct Limits {
    batch_bytes: usize,
    uncommitted_bytes: u64,
    max_reads: usize,
    forward: bool,
}

/// See [`Consensus::waiting`].
#[cfg(feature = "sim")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) held_writes: usize,
    pub(crate) reads: usize,
    pub(crate) uncommitted_bytes: u64,
}

impl Consensus {
    #[allow(clippy::too_many_arguments)] // Called once, where the graph is built.
    pub(crate) fn new(
        core: Core,
        sizes: Sizes,
        inputs: Inputs,
        rings: Rings,
        shared: Arc<Shared>,
        apply: Waker,
        transfer: Waker,
        config: &Config,
        last_time_us: u64,
        first_read: u64,
    ) -> Self {
        let limits = Limits {
            batch_bytes: config.max_batch_bytes,
            uncommitted_bytes: config.max_uncommitted_bytes as u64,
            max_reads: config.max_pending,
            forward: config.forward,
        };
        let trim_entry = Trim::new(rings.entry.gauge().capacity());
        let trim_bulk = Trim::new(rings.send_bulk.gauge().capacity());
        let mut engine = Engine {
            core,
            sizes,
            rings,
            shared,
            apply,
            transfer,
            held: VecDeque::with_capacity(16),
            batch: Vec::with_capacity(limits.batch_bytes),
            forwards: Vec::with_capacity(limits.batch_bytes),
            refused: Vec::with_capacity(4 << 10),
            trim_entry,
            trim_bulk,
            reads: VecDeque::with_capacity(limits.max_reads),
            timed: Vec::with_capacity(limits.max_reads.min(8 * TURN)),
            next_read: first_read,
            log_clock: LogClock::new(config.id, last_time_us),
            durable_write: 0,
            committed: 0,
            cut: None,
            compacted: 0,
            peers_due_us: 0,
            leading: None,
            shown: (Role::Follower, 0, None),
            limits,
        };
        engine.show();
        engine.committed = engine.core.commit();
        engine.show_commit();
        Self { inputs, engine }
    }

    /// One turn. Returns how many inputs it took.
    pub(crate) fn poll(&mut self, now_us: u64) -> usize {
        let Self { inputs, engine } = self;
        engine.notify_leadership_changes();
        let mut work = engine.clock(now_us);
        if !engine.has_room() {
            return work;
        }
        work += inputs
            .small
            .drain_while(TURN, |slot| engine.small(now_us, slot));
        work += engine.reads(now_us, &mut inputs.read);
        work += engine.disk(now_us);
        work += inputs
            .news
            .drain_while(TURN, |news| engine.news(now_us, news.0));
        work += engine.compact(now_us);
        work += inputs
            .bulk
            .drain_while(TURN, |slot| engine.bulk(now_us, slot));
        work += engine.proposals(now_us, &mut inputs.propose);
        work += engine.trim(now_us);
        engine.show_peers(now_us);
        work
    }

    pub(crate) fn deadline_us(&self) -> u64 {
        self.engine.core.next_deadline()
    }

    pub(crate) fn has_work(&mut self) -> bool {
        let Self { inputs, engine } = self;
        engine.has_room()
            && (!inputs.small.is_empty()
                || !inputs.read.is_empty()
                || engine.takes_next(&mut inputs.bulk)
                || engine.disk_moved()
                || !inputs.news.is_empty()
                || engine.can_compact()
                || (!inputs.propose.is_empty()
                    && engine.takes_proposals()
                    && engine.has_bulk_room()))
    }

    /// What waits in here, for whoever checks that it is bounded.
    #[cfg(feature = "sim")]
    pub(crate) fn waiting(&self) -> Waiting {
        Waiting {
            held_writes: self.engine.held.len(),
            reads: self.engine.reads.len(),
            uncommitted_bytes: self.engine.core.uncommitted_bytes(),
        }
    }

    /// Whether a full ring keeps it from taking input.
    #[cfg(feature = "sim")]
    pub(crate) fn is_held_back(&mut self) -> bool {
        !self.engine.has_room()
    }

    /// The core, for whoever looks at it from outside.
    #[cfg(feature = "sim")]
    pub(crate) fn core(&self) -> &Core {
        &self.engine.core
    }

    /// Refuses what is left: nothing of it was appended.
    pub(crate) fn close(&mut self) {
        let table = &self.engine.shared.table;
        self.inputs.propose.drain(usize::MAX, |slot| {
            table.complete(Token(slot.token), Err(ProposeError::Stopped), &[]);
        });
        self.inputs.read.drain(usize::MAX, |slot| {
            table.complete(Token(slot.token), Err(ProposeError::Stopped), &[]);
        });
        for read in self.engine.reads.drain(..) {
            table.complete(Token(read.token), Err(ProposeError::Stopped), &[]);
        }
    }
}

impl Engine {
    fn has_room(&mut self) -> bool {
        self.held.is_empty()
            && self.rings.entry.has_room(ENTRY_ROOM)
            && self.rings.send_small.has_room(ROOM)
            && self.rings.send_bulk.has_room(ROOM)
    }

    /// Whether an input that brings entries may be taken.
    fn has_bulk_room(&mut self) -> bool {
        self.has_room() && self.rings.entry.has_room(BULK_ENTRY_ROOM)
    }

    /// Makes the buffers of the rings smaller when nothing long was sent for a while: their slots are sent without contents,
    /// as far as there is room that nobody needs.
    fn trim(&mut self, now_us: u64) -> usize {
        let entries = self.trim_entry.tick(now_us);
        let bulk = self.trim_bulk.tick(now_us);
        if entries + bulk == 0 {
            return 0;
        }
        for buffer in [&mut self.batch, &mut self.forwards, &mut self.refused] {
            buffer.clear();
            trim::shrink(buffer);
        }
        let mut sent = 0;
        for _ in 0..entries {
            if !self.rings.entry.has_room(BULK_ENTRY_ROOM + 1) {
                break;
            }
            let trim = &mut self.trim_entry;
            let empty = self.rings.entry.try_send(|slot| {
                slot.write = Write::Nothing;
                slot.bytes.clear();
                trim.sends(&mut slot.bytes);
            });
            assert!(empty.is_ok(), "the room was looked at before");
            sent += 1;
        }
        for _ in 0..bulk {
            if !self.rings.send_bulk.has_room(ROOM + 1) {
                break;
            }
            let trim = &mut self.trim_bulk;
            let empty = self.rings.send_bulk.try_send(|slot| {
                slot.what = Bulk::Nothing;
                slot.bytes.clear();
                trim.sends(&mut slot.bytes);
            });
            assert!(empty.is_ok(), "the room was looked at before");
            sent += 1;
        }
        sent
    }

    fn clock(&mut self, now_us: u64) -> usize {
        while let Some(&(seq, write)) = self.held.front() {
            if self.rings.entry.room() == 0 {
                break;
            }
            self.held.pop_front();
            self.write(seq, write);
        }
        if now_us < self.core.next_deadline() {
            return 0;
        }
        self.core.tick(now_us, &self.sizes);
        self.act(now_us, None);
        1
    }

    fn small(&mut self, now_us: u64, slot: &InSmall) -> Take {
        if !self.has_room() {
            return Take::Stop;
        }
        match slot.what {
            Small::Message(message) => {
                if let Message::LeaseAsk { .. } = message {
                    self.core.look_at_clock(self.shared.clock.now_us());
                }
                self.core.receive(now_us, slot.from, &message, &self.sizes);
                if let Message::AppendReply {
                    outcome: Outcome::Matched { index },
                    ..
                } = message
                {
                    self.shared.hops.pass(Stamp::Acknowledged, index);
                }
                if !slot.piggyback.is_empty() {
                    self.note_piggyback(slot.from, &slot.piggyback);
                }
            }
            Small::Up => self.core.peer_up(now_us, slot.from, &self.sizes),
            Small::Down => self.core.peer_down(now_us, slot.from),
            Small::Excluded => self.core.exclude(now_us),
        }
        self.act(now_us, None);
        Take::Taken
    }

    fn disk_moved(&self) -> bool {
        self.shared.marks.durable_write.load(Ordering::Acquire) > self.durable_write
    }

    fn disk(&mut self, now_us: u64) -> usize {
        let durable = self.shared.marks.durable_write.load(Ordering::Acquire);
        if !self.has_room() {
            return 0;
        }
        if durable == self.durable_write {
            return 0;
        }
        self.durable_write = durable;
        self.core.persisted(now_us, durable, &self.sizes);
        self.act(now_us, None);
        if self.cut.is_some() {
            self.show_commit();
        }
        1
    }

    fn bulk(&mut self, now_us: u64, slot: &InBulk) -> Take {
        if !self.has_bulk_room() {
            return Take::Stop;
        }
        match slot.what {
            InBulkKind::Append(message) => {
                self.core.receive(now_us, slot.from, &message, &self.sizes);
                self.act(now_us, Some(&slot.body));
            }
            InBulkKind::Forward { term, origin } => {
                if self.core.is_leader() && self.core.term() == term {
                    if !self.takes_proposals() {
                        return Take::Stop;
                    }
                    self.append_forwarded(now_us, origin, &slot.body);
                } else {
                    self.refuse_forwarded(slot.from, term, &slot.body);
                }
            }
            InBulkKind::Nothing => {}
            InBulkKind::Refused => {
                for token in forward::tokens(&slot.body) {
                    self.refuse(Token(token));
                }
            }
        }
        Take::Taken
    }

    /// Whether there is something on the bulk ring that can be taken now: forwarded proposals may have to wait.
    fn takes_next(&mut self, bulk: &mut Receiver<InBulk>) -> bool {
        let mut takes = false;
        if !self.has_bulk_room() {
            return false;
        }
        bulk.drain_while(1, |slot| {
            takes = match slot.what {
                InBulkKind::Forward { term, .. } if self.core.term() == term => {
                    self.takes_proposals()
                }
                _ => true,
            };
            Take::Stop
        });
        takes
    }

    /// Whether a proposal may be taken now: on the leader while not too much is uncommitted.
    fn takes_proposals(&self) -> bool {
        !self.core.is_leader() || self.core.uncommitted_bytes() < self.limits.uncommitted_bytes
    }

    /// Takes proposals, as many as go into one batch, and appends them, sends them to the leader, or refuses.
    fn proposals(&mut self, now_us: u64, propose: &mut Receiver<Proposal>) -> usize {
        if !self.has_bulk_room() || !self.takes_proposals() || propose.is_empty() {
            return 0;
        }
        // Those of a node that leaves, too: it takes nothing new (`Node`), and finishes what is in the ring.
        let leads = self.core.is_leader();
        let term = self.core.term();
        let forward_to = self.core.leader().filter(|_| self.limits.forward && !leads);
        let first = self.core.last_index() + 1;
        let time_us = self.stamp(now_us);
        let mut count = 0;
        self.batch.clear();
        self.forwards.clear();
        let taken = propose.drain_while(8 * TURN, |slot| {
            let mut spilled = None;
            if slot.is_long
                && let Ok(mut place) = slot.spilled.try_lock()
            {
                spilled = place.take();
            }
            let command = spilled.as_deref().unwrap_or(&slot.inline);
            let gathered = self.batch.len() + self.forwards.len();
            if gathered > 0
                && gathered + record::encoded_len(command.len()) > self.limits.batch_bytes
            {
                // It opens the next batch: put it back.
                if let Ok(mut place) = slot.spilled.try_lock() {
                    *place = spilled;
                }
                return Take::Stop;
            }
            let token = Token(slot.token);
            match slot.ask {
                Ask::Command | Ask::LeaderCommand | Ask::Query if leads => {
                    self.shared.table.sent(token, term);
                    let header = Header {
                        index: first + count,
                        term,
                        time_us,
                        origin: self.shared.origin,
                        token: slot.token,
                        kind: kind_of(slot.ask == Ask::Query),
                    };
                    if count == 0 && self.shared.hops.is_free(now_us) {
                        let proposed_us = self.shared.table.since_us(token);
                        let hops = &self.shared.hops;
                        hops.begin(slot.token, header.index, proposed_us, now_us);
                    }
                    record::encode_into(&mut self.batch, &header, command);
                    self.sizes
                        .push(header.index, record::encoded_len(command.len()) as u64);
                    count += 1;
                }
                Ask::Command | Ask::Query if forward_to.is_some() => {
                    self.shared.table.sent(token, term);
                    let is_query = slot.ask == Ask::Query;
                    forward::push(&mut self.forwards, slot.token, is_query, command);
                }
                Ask::Command | Ask::LeaderCommand | Ask::Query => self.refuse(token),
            }
            if let Some(buffer) = spilled {
                self.shared.spill.give_back(buffer);
            }
            Take::Taken
        });
        if count > 0 {
            self.append(now_us, count);
        }
        if let Some(leader) = forward_to.filter(|_| !self.forwards.is_empty()) {
            let (forwards, trim) = (&mut self.forwards, &mut self.trim_bulk);
            let sent = self.rings.send_bulk.try_send(|slot| {
                slot.to = leader;
                slot.what = Bulk::Forward { term };
                std::mem::swap(&mut slot.bytes, forwards);
                trim.sends(&mut slot.bytes);
            });
            assert!(sent.is_ok(), "the room was looked at before");
        }
        taken
    }

    /// The batch in `self.batch` has been encoded for the next indexes: decides on it and hands it to the disk.
    fn append(&mut self, now_us: u64, count: u64) {
        let first = self.core.last_index() + 1;
        let proposed = self
            .core
            .propose(now_us, count, self.batch.len() as u64, &self.sizes)
            .expect("this node leads, and no input came in between");
        assert_eq!(
            proposed.first, first,
            "the batch was encoded for this place"
        );
        self.write_batch(proposed.write, proposed.first, proposed.last);
        self.act(now_us, None);
    }

    fn append_forwarded(&mut self, now_us: u64, origin: u64, body: &[u8]) {
        let first = self.core.last_index() + 1;
        let (term, time_us) = (self.core.term(), self.stamp(now_us));
        self.batch.clear();
        let mut count = 0;
        for (token, is_query, command) in forward::commands(body) {
            let header = Header {
                index: first + count,
                term,
                time_us,
                origin,
                token,
                kind: kind_of(is_query),
            };
            record::encode_into(&mut self.batch, &header, command);
            self.sizes
                .push(header.index, record::encoded_len(command.len()) as u64);
            count += 1;
        }
        if count > 0 {
            self.append(now_us, count);
        }
    }

    fn refuse_forwarded(&mut self, to: u64, term: u64, body: &[u8]) {
        self.refused.clear();
        for (token, ..) in forward::commands(body) {
            self.refused.extend_from_slice(&token.to_le_bytes());
        }
        let (refused, trim) = (&mut self.refused, &mut self.trim_bulk);
        let sent = self.rings.send_bulk.try_send(|slot| {
            slot.to = to;
            slot.what = Bulk::Refused { term };
            std::mem::swap(&mut slot.bytes, refused);
            trim.sends(&mut slot.bytes);
        });
        assert!(sent.is_ok(), "the room was looked at before");
    }

    fn refuse(&self, token: Token) {
        let leader = self.core.leader().map(|leader| NodeId(leader as u32));
        self.shared
            .table
            .complete(token, Err(ProposeError::NotLeader { leader }), &[]);
    }

    /// The leader's stamp for entries that are appended now.
    fn stamp(&mut self, now_us: u64) -> u64 {
        let wall_us = self.shared.clock.unix_us();
        self.log_clock.stamp(now_us, wall_us)
    }

    /// Carries out what the core has said. `received` are the records of the append that it was about.
    fn act(&mut self, now_us: u64, received: Option<&[u8]>) {
        while let Some(output) = self.core.pop_output() {
            match output {
                Output::SaveVote { write, term, vote } => {
                    self.write(write, Write::Vote { term, vote })
                }
                Output::Truncate { write, after } => {
                    self.sizes.truncate(after);
                    // Another may still be under way: the one that reaches further back counts.
                    let least = self.cut.map_or(after, |cut| cut.after.min(after));
                    self.cut = Some(Cut {
                        write,
                        after: least,
                    });
                    self.write(write, Write::Truncate { after });
                }
                Output::Install { write, index, term } => self.install(write, index, term),
                Output::Healed { write } => {
                    tracing::info!(node = self.shared.id.0, "what was lost is here again");
                    self.shared.healing.store(false, Ordering::Release);
                    self.shared.replaces.store(false, Ordering::Release);
                    self.write(write, Write::Healed);
                }
                Output::SendSnapshot { to } => {
                    let term = self.core.term();
                    let asked = self.rings.wanted.try_send(|slot| {
                        (slot.to, slot.term) = (to, term);
                    });
                    if asked.is_err() {
                        self.core.snapshot_failed(now_us, to);
                    }
                }
                Output::AppendReceived { write, first, last } => {
                    let records = received.expect("an append was received");
                    self.append_received(now_us, write, first, last, records);
                }
                Output::AppendTermStart { write, index, term } => {
                    let header = Header {
                        index,
                        term,
                        time_us: self.stamp(now_us),
                        origin: self.shared.origin,
                        token: 0,
                        kind: KIND_TERM_START,
                    };
                    self.batch.clear();
                    record::encode_into(&mut self.batch, &header, &[]);
                    self.sizes.push(index, self.batch.len() as u64);
                    self.write_batch(write, index, index);
                }
                Output::Send { to, message } => self.send(to, message),
                Output::Commit { index } => {
                    self.committed = index;
                    self.show_commit();
                }
                Output::ReadReady { ctx, index } => self.reads_ready(ctx, index),
                Output::ReadFailed { ctx } => self.reads_failed(ctx),
                Output::Role { .. } => self.show(),
            }
        }
        advance(&self.shared.marks.last, self.core.last_index());
    }

    /// Lets the apply stage have what is committed. It takes the entries from the log, where those of before a truncation
    /// stand until the append stage has come to it: so nothing behind one is shown until it is certainly done.
    fn show_commit(&mut self) {
        self.cut = self.cut.filter(|cut| cut.write > self.durable_write);
        let upto = self
            .cut
            .map_or(self.committed, |cut| cut.after.min(self.committed));
        let mark = &self.shared.marks.committed;
        if upto > mark.load(Ordering::Relaxed) {
            advance(mark, upto);
            self.shared.hops.pass(Stamp::Committed, upto);
            self.apply.wake();
        }
    }

    /// The log, and the state, become those of a snapshot. What was committed before stands in the log no more, or is of
    /// another leader's there: the apply stage sees that a snapshot comes before it sees any commit of it, and whatever is
    /// committed behind it only when the log is certainly replaced.
    fn install(&mut self, write: u64, index: u64, term: u64) {
        self.sizes.reset(index);
        self.write(write, Write::Install { index, term });
        self.cut = Some(Cut {
            write,
            after: index,
        });
        self.committed = index;
        advance(&self.shared.marks.restore, index);
        self.show_commit();
    }

    /// What the transfer stage has to tell.
    fn news(&mut self, now_us: u64, news: News) -> Take {
        if !self.has_room() {
            return Take::Stop;
        }
        match news {
            News::Received {
                index,
                term,
                time_us,
            } => {
                self.log_clock.observe(now_us, time_us);
                self.core.snapshot_received(now_us, index, term);
            }
            News::Sent { to, index } => {
                self.core.snapshot_sent(now_us, to, index, &self.sizes);
            }
            News::Failed { to } => self.core.snapshot_failed(now_us, to),
        }
        self.act(now_us, None);
        if let News::Received { .. } = news {
            self.transfer.wake();
        }
        Take::Taken
    }

    fn can_compact(&self) -> bool {
        self.shared.marks.compact.load(Ordering::Acquire) > self.compacted
    }

    /// Lets go of what the snapshots stand for.
    fn compact(&mut self, now_us: u64) -> usize {
        if !self.can_compact() || !self.has_room() {
            return 0;
        }
        self.compacted = self.shared.marks.compact.load(Ordering::Acquire);
        self.core.compact(now_us, self.compacted, &self.sizes);
        self.act(now_us, None);
        let before = self.compacted + 1;
        let trim = &mut self.trim_entry;
        let sent = self.rings.entry.try_send(|slot| {
            slot.write = Write::Purge { before };
            slot.bytes.clear();
            trim.sends(&mut slot.bytes);
        });
        assert!(sent.is_ok(), "the room was looked at before");
        1
    }

    /// The records of a leader, from `first` on: what came before is here already.
    fn append_received(&mut self, now_us: u64, seq: u64, first: u64, last: u64, records: &[u8]) {
        let mut skipped = 0;
        for record in record::walk(records) {
            let header = record.header;
            let bytes = record::encoded_len(record.payload.len());
            if header.index < first {
                skipped += bytes;
                continue;
            }
            self.log_clock.observe(now_us, header.time_us);
            self.sizes.push(header.index, bytes as u64);
        }
        assert_eq!(
            self.sizes.last(),
            last,
            "the message carried the entries it named"
        );
        let trim = &mut self.trim_entry;
        let sent = self.rings.entry.try_send(|slot| {
            slot.seq = seq;
            slot.write = Write::Append { first, last };
            slot.bytes.clear();
            slot.bytes.extend_from_slice(&records[skipped..]);
            trim.sends(&mut slot.bytes);
        });
        assert!(sent.is_ok(), "the room was looked at before");
    }

    fn write_batch(&mut self, seq: u64, first: u64, last: u64) {
        let (batch, trim) = (&mut self.batch, &mut self.trim_entry);
        let sent = self.rings.entry.try_send(|slot| {
            slot.seq = seq;
            slot.write = Write::Append { first, last };
            std::mem::swap(&mut slot.bytes, batch);
            trim.sends(&mut slot.bytes);
        });
        assert!(sent.is_ok(), "the room was looked at before");
    }

    fn write(&mut self, seq: u64, write: Write) {
        let trim = &mut self.trim_entry;
        let held = !self.held.is_empty()
            || self
                .rings
                .entry
                .try_send(|slot| {
                    slot.seq = seq;
                    slot.write = write;
                    slot.bytes.clear();
                    trim.sends(&mut slot.bytes);
                })
                .is_err();
        if held {
            self.held.push_back((seq, write));
        }
    }

    fn send(&mut self, to: u64, message: raft::Message) {
        // Without room - the clock does not look for it - the message is lost, as any message may be.
        let trim = &mut self.trim_bulk;
        let _ = if message.carries_entries() {
            self.rings.send_bulk.try_send(|slot| {
                slot.to = to;
                slot.what = Bulk::Append(message);
                slot.bytes.clear();
                trim.sends(&mut slot.bytes);
            })
        } else {
            self.rings.send_small.try_send(|slot| {
                slot.to = to;
                slot.message = message;
            })
        };
    }

    /// Shows role, term and leader to the handles, and tells the state machine of leadership.
    fn show(&mut self) {
        let role = match self.core.role() {
            raft::Role::Leader => Role::Leader,
            raft::Role::Follower => Role::Follower,
            raft::Role::PreCandidate | raft::Role::Candidate => Role::Candidate,
            raft::Role::Learner => Role::Learner,
        };
        let term = self.core.term();
        let leader = self.core.leader();
        if (role, term, leader) != self.shown {
            self.shown = (role, term, leader);
            let node = self.shared.id.0;
            match (role, leader) {
                (Role::Leader, _) => tracing::info!(node, term, "leads"),
                (_, Some(leader)) => tracing::info!(node, term, leader, "follows"),
                // A node that is alone asks again and again.
                (Role::Candidate, None) => tracing::debug!(node, term, "stands for election"),
                (_, None) => tracing::info!(node, term, "knows no leader"),
            }
        }
        self.shared.set_face(term, role, leader);
        self.notify_leadership_changes();
    }

    /// Tells the state machine of offices begun and ended. When reads that wait for their index leave no room for that in
    /// the ring, it is told at a later turn; of an office that is over by then it never hears.
    fn notify_leadership_changes(&mut self) {
        let leads = self.core.is_leader().then(|| self.core.term());
        if self.leading == leads {
            return;
        }
        let ring = &mut self.rings.at_index;
        if let Some(term) = self.leading {
            let told = ring.try_send(|slot| slot.0 = AtIndex::LeaderStop { term });
            if told.is_err() {
                return;
            }
            self.leading = None;
        }
        if let Some(term) = leads {
            let index = self.core.term_start();
            let told = ring.try_send(|slot| slot.0 = AtIndex::LeaderStart { index, term });
            self.leading = told.is_ok().then_some(term);
        }
    }

    /// Copies the leader's view of its peers for the status, now and then: off the entries' way.
    fn show_peers(&mut self, now_us: u64) {
        if !self.core.is_leader() || now_us < self.peers_due_us {
            return;
        }
        self.peers_due_us = now_us + PEERS_EVERY_US;
        let mut peers = self
            .shared
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (id, matched, next, inflight_bytes, active) in self.core.peers() {
            if let Some(peer) = peers
                .iter_mut()
                .find(|peer: &&mut PeerStatus| u64::from(peer.id.0) == id)
            {
                (peer.matched, peer.next) = (matched, next);
                (peer.inflight_bytes, peer.active) = (inflight_bytes, active);
            }
        }
    }

    fn note_piggyback(&self, from: u64, bytes: &[u8]) {
        let mut peers = self
            .shared
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.iter_mut().find(|peer| u64::from(peer.id.0) == from) {
            peer.piggyback.clear();
            peer.piggyback.extend_from_slice(bytes);
        }
    }
}

fn kind_of(is_query: bool) -> u8 {
    if is_query { KIND_QUERY } else { KIND_COMMAND }
}

#[derive(Clone, Copy)]
struct Unconfirmed {
    context: u64,
    token: u64,
    /// So many of the last entries it may miss.
    entries: u64,
}
