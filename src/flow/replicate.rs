//! Hop 2 beside the disk: messages leave for the peers.
//!
//! An append names its entries by index; their bytes are taken from the mapped log at this moment, without a copy, as
//! soon as the append stage has written them (not flushed: the leader's flush runs meanwhile). Small messages have a
//! ring and a lane of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use net::{Lane, SendError};
use ringbuf::{Receiver, Take};
use storage::{Reader, Slice};

use crate::flow::forward;
use crate::flow::link::Link;
use crate::flow::receive::Inbound;
use crate::flow::rings::{Bulk, SendBulk, SendSmall, SendTransfer};
use crate::flow::shared::Shared;
use crate::pending::Token;
use crate::raft::{Append, Message};
use crate::wire;
use crate::{Fault, ProposeError};

/// Messages of one kind that one turn sends at the most.
const TURN: usize = 256;
/// Buffers for forwarded proposals that are kept for the next ones.
const POOLED: usize = 64;
/// Bytes of these, at the most.
pub(crate) const POOLED_BYTES: usize = 16 << 20;

/// The part of a frame that is not copied into its head.
pub(crate) enum Body {
    /// Records where they lie in the log.
    Log(Slice),
    /// Forwarded proposals, or the tokens of refused ones.
    Pooled(Pooled),
    /// A part of a snapshot, or records; who made it takes the buffer again when it is sent.
    Parcel(Arc<Vec<u8>>),
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Log(slice) => slice.as_ref(),
            Self::Pooled(pooled) => &pooled.bytes,
            Self::Parcel(bytes) => bytes,
        }
    }
}

/// Buffers for forwarded proposals.
struct Pool {
    kept: ArrayQueue<Vec<u8>>,
    /// Bytes that those hold.
    held: AtomicUsize,
}

impl Pool {
    fn new() -> Self {
        Self {
            kept: ArrayQueue::new(POOLED),
            held: AtomicUsize::new(0),
        }
    }

    fn take(&self) -> Vec<u8> {
        let buffer = self.kept.pop().unwrap_or_default();
        self.held.fetch_sub(buffer.capacity(), Ordering::Relaxed);
        buffer
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if self.held.fetch_add(capacity, Ordering::Relaxed) + capacity > POOLED_BYTES
            || self.kept.push(buffer).is_err()
        {
            self.held.fetch_sub(capacity, Ordering::Relaxed);
        }
    }

    /// Gives them all back to the system.
    fn trim(&self) {
        for _ in 0..POOLED {
            drop(self.take());
        }
    }
}

/// A buffer that returns to its pool.
pub(crate) struct Pooled {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

/// The network stage: this file has the half that sends, `receive.rs` the other.
pub(crate) struct Network<L: Link> {
    link: L,
    outbound: Outbound,
    inbound: Inbound,
}

struct Outbound {
    reader: Reader,
    small: Receiver<SendSmall>,
    bulk: Receiver<SendBulk>,
    transfer: Receiver<SendTransfer>,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    /// What goes with every answer to a leader; refreshed when it changes.
    piggyback: Arc<[u8]>,
}

impl<L: Link> Network<L> {
    pub(crate) fn new(
        link: L,
        reader: Reader,
        small: Receiver<SendSmall>,
        bulk: Receiver<SendBulk>,
        transfer: Receiver<SendTransfer>,
        inbound: Inbound,
        shared: Arc<Shared>,
    ) -> Self {
        let pool = Arc::new(Pool::new());
        let outbound = Outbound {
            reader,
            small,
            bulk,
            transfer,
            shared,
            pool,
            piggyback: Arc::from([]),
        };
        Self {
            link,
            outbound,
            inbound,
        }
    }

    /// Sends what waits in the rings.
    pub(crate) fn send(&mut self) -> usize {
        let Self { link, outbound, .. } = self;
        let sent = outbound.small(link) + outbound.bulk(link) + outbound.transfer(link);
        if sent > 0 {
            link.flush();
        }
        sent
    }

    /// Takes what the sockets have, sleeping for it for `timeout` at the most.
    pub(crate) fn receive(&mut self, timeout: Option<Duration>) -> Result<usize, Fault> {
        let Self {
            link,
            inbound,
            outbound,
        } = self;
        inbound.begin();
        let heard = link
            .poll(timeout, &mut |event| inbound.on(event))
            .map_err(|error| Fault::Network(format!("waiting for sockets: {error}").into()))?;
        inbound.check()?;
        if inbound.trim() {
            // The buffers that forwarded proposals had are not needed either.
            outbound.pool.trim();
        }
        Ok(heard)
    }

    pub(crate) fn has_work(&mut self) -> bool {
        !self.outbound.small.is_empty()
            || self.outbound.bulk_ready()
            || !self.outbound.transfer.is_empty()
            || self.inbound.can_resume()
    }
}

impl Outbound {
    fn small(&mut self, link: &mut impl Link) -> usize {
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

    fn bulk(&mut self, link: &mut impl Link) -> usize {
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

    fn transfer(&mut self, link: &mut impl Link) -> usize {
        self.transfer.drain(TURN, |slot| {
            let (kind, head) = wire::parcel(slot.parcel);
            let (lane, body) = match slot.parcel.is_bulk() {
                true => (Lane::Bulk, Some(Body::Parcel(slot.bytes.clone()))),
                false => (Lane::Small, None),
            };
            // Down and Full: whatever is lost is offered or wanted again.
            let _ = link.send(slot.to, lane, kind, head.as_ref(), body);
        })
    }

    fn bulk_ready(&mut self) -> bool {
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

fn pooled(pool: &Arc<Pool>, bytes: &[u8]) -> Pooled {
    let mut buffer = pool.take();
    buffer.clear();
    buffer.extend_from_slice(bytes);
    Pooled {
        bytes: buffer,
        pool: pool.clone(),
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
