//! Hop 2 beside the disk: messages leave for the peers.
//!
//! An append names its entries by index; their bytes are taken from the mapped log at this moment, without a copy, as
//! soon as the append stage has written them (not flushed: the leader's flush runs meanwhile). Small messages have a
//! ring and a lane of their own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use net::{Lane, SendError};
use ringbuf::{Receiver, Take};
use storage::Reader;

use crate::error::ProposeError;
use crate::flow::network::body::{Body, Pool, pooled};
use crate::flow::network::link::Link;
use crate::flow::rings::{Bulk, SendBulk, SendSmall, SendTransfer};
use crate::flow::shared::Shared;
use crate::raft::{Append, Message};
use crate::request::token::Token;
use crate::wire;
use crate::wire::forward;

/// Messages of one kind that one turn sends at the most.
const TURN: usize = 256;

pub(super) struct Outbound {
    pub(super) reader: Reader,
    pub(super) small: Receiver<SendSmall>,
    pub(super) bulk: Receiver<SendBulk>,
    pub(super) transfer: Receiver<SendTransfer>,
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Arc<Pool>,
    /// What goes with every answer to a leader; refreshed when it changes.
    pub(super) piggyback: Arc<[u8]>,
}

impl Outbound {
    pub(super) fn small(&mut self, link: &mut impl Link) -> usize {
        if self.shared.piggyback_changed.swap(false, Ordering::AcqRel) {
            self.piggyback = self.shared.piggyback();
        }
        let piggyback = &self.piggyback;
        self.small.drain(TURN, |slot| {
            let mut head = wire::Head::default();
            let kind = wire::encode(&slot.message, &mut head);
            if slot.message.answers_leader() {
                head.attach(piggyback);
            }
            // Down: the core hears of it from the connection. Full: a peer that does not even take small messages;
            // they are lost, as any message may be.
            let _ = link.send(slot.to, Lane::Small, kind, head.as_ref(), None);
        })
    }

    pub(super) fn bulk(&mut self, link: &mut impl Link) -> usize {
        let Self {
            reader,
            bulk,
            shared,
            pool,
            ..
        } = self;
        bulk.drain_while(TURN, |slot| {
            match slot.what {
                Bulk::Append(Message::Append(append)) => {
                    if append.term != shared.term() {
                        return Take::Taken; // No longer ours to send: its entries may be gone.
                    }
                    if append.last > reader.written() {
                        return Take::Stop; // The append stage is about to write them.
                    }
                    send_append(link, reader, slot.to, append);
                }
                Bulk::Nothing => {}
                Bulk::Append(other) => unreachable!("{other} carries no entries"),
                Bulk::Forward { term } => {
                    let head = wire::forward(term, shared.origin);
                    let body = pooled(pool, &slot.bytes);
                    let sent = link.send(
                        slot.to,
                        Lane::Bulk,
                        wire::FORWARD,
                        head.as_ref(),
                        Some(Body::Pooled(body)),
                    );
                    if let Err(error) = sent {
                        refuse(shared, &slot.bytes, error);
                    }
                }
                Bulk::Refused { term } => {
                    let head = wire::forward(term, 0);
                    let body = pooled(pool, &slot.bytes);
                    // Lost: the proposals are answered when the next term's first entry is applied, or time out.
                    let _ = link.send(
                        slot.to,
                        Lane::Bulk,
                        wire::REFUSED,
                        head.as_ref(),
                        Some(Body::Pooled(body)),
                    );
                }
            }
            Take::Taken
        })
    }

    pub(super) fn transfer(&mut self, link: &mut impl Link) -> usize {
        self.transfer.drain(TURN, |slot| {
            let (kind, head) = wire::transfer::encode(slot.parcel);
            let (lane, body) = match slot.parcel.is_bulk() {
                true => (Lane::Bulk, Some(Body::Parcel(slot.bytes.clone()))),
                false => (Lane::Small, None),
            };
            // Down and Full: whatever is lost is offered or wanted again.
            let _ = link.send(slot.to, lane, kind, head.as_ref(), body);
        })
    }

    pub(super) fn bulk_ready(&mut self) -> bool {
        let Self {
            reader,
            bulk,
            shared,
            ..
        } = self;
        let mut ready = false;
        bulk.drain_while(1, |slot| {
            ready = match slot.what {
                Bulk::Append(Message::Append(append)) => {
                    append.term != shared.term() || append.last <= reader.written()
                }
                _ => true,
            };
            Take::Stop
        });
        ready
    }
}

/// One message, or several where the entries lie in more than one segment: each is a whole append of its own.
fn send_append(link: &mut impl Link, reader: &Reader, to: u64, mut append: Append) {
    let last = append.last;
    while append.prev_index < last {
        let Some(slice) = reader.slice(append.prev_index + 1, last, u64::MAX) else {
            // Compacted or truncated meanwhile: the core finds out by the answer that does not come.
            return;
        };
        append.last = slice.last();
        let next_prev = (slice.last() < last)
            .then(|| slice.records().last().map(|record| record.header.term))
            .flatten();
        let mut head = wire::Head::default();
        let kind = wire::encode(&Message::Append(append), &mut head);
        // Down and Full: as for small messages. The window keeps within what the lane takes.
        let _ = link.send(to, Lane::Bulk, kind, head.as_ref(), Some(Body::Log(slice)));
        append.prev_index = append.last;
        append.prev_term = next_prev.unwrap_or(append.prev_term);
    }
}

/// The proposals never left this node.
fn refuse(shared: &Shared, body: &[u8], error: SendError) {
    let error = match error {
        SendError::Down => ProposeError::NotLeader { leader: None },
        SendError::Full | SendError::TooLarge => ProposeError::Busy,
    };
    for (token, ..) in forward::commands(body) {
        shared.table.complete(Token(token), Err(error.clone()), &[]);
    }
}
