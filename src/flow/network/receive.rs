//! Hop 6: what peers say reaches the consensus stage.
//!
//! Messages are decoded here and entries verified, record by record; what does not hold together is dropped with a
//! warning, and the sender finds out by the answer that does not come. When a ring is full the frame stays where it is
//! and its connection is not read: TCP holds the peer back. Small messages and entries have a ring each.
//!
//! A peer counts only while it has the directory that it was first met with, and only once that is on disk here. One that
//! says that it has lost that directory is known by its new one from then on.

use std::sync::Arc;

use net::{Event, Handled, Refusal};
use ringbuf::Sender;
use storage::{Dir, Exclusion, KnownPeers, StorageError, record};

use crate::error::Fault;
use crate::flow::rings::{InBulk, InBulkKind, InSmall, InTransfer, Small};
use crate::flow::shared::Shared;
use crate::flow::trim::Trim;
use crate::raft::{Append, MAX_RUNS, Message};
use crate::wire;
use crate::wire::forward;

/// Slots of the small ring that frames leave free, for the news of connections, which are told only once.
const RESERVE: usize = 64;

pub(crate) struct Inbound {
    small: Sender<InSmall>,
    bulk: Sender<InBulk>,
    transfer: Sender<InTransfer>,
    shared: Arc<Shared>,
    max_entry_bytes: usize,
    records: Box<dyn PeerRecords>,
    /// Peers that are connected with another directory than they are known with: nothing of theirs is heard.
    strangers: Vec<u64>,
    /// The last refusal of each peer, in either direction, since a frame came from it.
    refusals: Vec<(u64, bool, Refusal)>,
    /// A peer has refused this node's directory, and the consensus stage has not been told yet.
    exclusion_untold: bool,
    /// Why no peer can be met any more.
    failed: Option<Fault>,
    /// A frame was put on hold since the last turn.
    held: bool,
    /// Of the bulk ring.
    trim: Trim,
}

/// What is kept on disk about the directories of peers, and of what they say about this one.
pub(crate) trait PeerRecords: Send {
    /// Whether a peer has the directory that it is known with, or says that this one takes the place of that.
    fn meet(&mut self, peer: u64, incarnation: u64, replaces: bool) -> Result<bool, StorageError>;
    /// A peer has refused this node's directory.
    fn exclude(&mut self, exclusion: &Exclusion) -> Result<(), StorageError>;
}

impl<D: Dir> PeerRecords for KnownPeers<D> {
    fn meet(&mut self, peer: u64, incarnation: u64, replaces: bool) -> Result<bool, StorageError> {
        match replaces {
            true => self.replace(peer, incarnation).map(|()| true),
            false => KnownPeers::meet(self, peer, incarnation),
        }
    }

    fn exclude(&mut self, exclusion: &Exclusion) -> Result<(), StorageError> {
        KnownPeers::exclude(self, exclusion)
    }
}

impl Inbound {
    pub(crate) fn new(
        small: Sender<InSmall>,
        bulk: Sender<InBulk>,
        transfer: Sender<InTransfer>,
        shared: Arc<Shared>,
        max_entry_bytes: usize,
        records: Box<dyn PeerRecords>,
    ) -> Self {
        let trim = Trim::new(bulk.gauge().capacity());
        Self {
            small,
            bulk,
            transfer,
            shared,
            max_entry_bytes,
            records,
            strangers: Vec::new(),
            refusals: Vec::new(),
            exclusion_untold: false,
            failed: None,
            held: false,
            trim,
        }
    }

    /// Whether there is room now for what was put on hold.
    pub(crate) fn can_resume(&mut self) -> bool {
        self.held && self.small.room() > RESERVE && self.bulk.room() > 0
    }

    /// A new look at the sockets: what is on hold is offered again in it.
    pub(crate) fn begin(&mut self) {
        self.held = false;
        if self.exclusion_untold {
            self.tell_exclusion();
        }
    }

    /// Makes the buffers of the bulk ring smaller when nothing long has come for a while; says so when it begins.
    pub(crate) fn trim(&mut self) -> bool {
        if self.trim.is_idle() {
            return false;
        }
        let was_quiet = self.trim.is_quiet();
        let count = self.trim.tick(self.shared.clock.now_us());
        for _ in 0..count {
            // A slot stays free for what comes.
            if !self.bulk.has_room(2) {
                break;
            }
            let trim = &mut self.trim;
            let sent = self.bulk.try_send(|slot| {
                slot.what = InBulkKind::Nothing;
                slot.body.clear();
                trim.sends(&mut slot.body);
            });
            assert!(sent.is_ok(), "the room was looked at before");
        }
        !was_quiet && count > 0
    }

    /// What has gone wrong for good.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn on(&mut self, event: Event<'_>) -> Handled {
        let handled = match event {
            Event::Up {
                peer,
                incarnation,
                replaces,
            } => {
                tracing::debug!(
                    node = self.shared.id.0,
                    peer,
                    incarnation = format_args!("{incarnation:#x}"),
                    "peer is up"
                );
                if !self.met(peer, incarnation, replaces) {
                    return Handled::Taken;
                }
                self.small(peer, Small::Up, &[])
            }
            Event::Down { peer, .. } | Event::Frame { peer, .. }
                if self.strangers.contains(&peer) =>
            {
                return Handled::Taken;
            }
            Event::Down { peer, reason } => {
                tracing::debug!(node = self.shared.id.0, peer, "peer is down: {reason}");
                self.small(peer, Small::Down, &[])
            }
            Event::Refused {
                peer,
                by_peer,
                refusal,
            } => {
                self.refused(peer, by_peer, refusal);
                return Handled::Taken;
            }
            Event::Frame { .. } if self.small.room() <= RESERVE => Handled::Hold,
            Event::Frame {
                peer,
                kind,
                head,
                body,
                ..
            } => self.frame(peer, kind, head, body),
        };
        self.held |= handled == Handled::Hold;
        handled
    }

    /// This node and the peer do not talk to each other. That is logged once, however often it is tried again, and shown by
    /// the status until a frame comes from the peer.
    fn refused(&mut self, peer: u64, by_peer: bool, refusal: Refusal) {
        if by_peer && let Refusal::Incarnation { ours, theirs } = refusal {
            self.exclude(Exclusion {
                by: peer,
                known: ours,
                incarnation: theirs,
            });
        }
        let latest = (peer, by_peer, refusal);
        match self.refusals.iter_mut().find(|known| known.0 == peer) {
            Some(known) if *known == latest => return,
            Some(known) => *known = latest,
            None => self.refusals.push(latest),
        }
        self.shared.note_refusal(peer, by_peer, &refusal);
        let who = if by_peer {
            "peer refuses this node"
        } else {
            "peer refused"
        };
        tracing::warn!(node = self.shared.id.0, peer, "{who}: {refusal}");
    }

    /// First on disk, then in force: see `raft/exclusion.rs`.
    fn exclude(&mut self, exclusion: Exclusion) {
        if self.failed.is_some() || self.shared.exclusion().is_some() {
            return;
        }
        if let Err(error) = self.records.exclude(&exclusion) {
            self.failed = Some(Fault::Storage(error.to_string().into()));
            return;
        }
        self.shared.set_exclusion(exclusion);
        self.exclusion_untold = true;
        self.tell_exclusion();
    }

    fn tell_exclusion(&mut self) {
        let told = self.small(u64::from(self.shared.id.0), Small::Excluded, &[]);
        self.exclusion_untold = told == Handled::Hold;
    }

    /// Whether the peer that has connected is the one that it was.
    fn met(&mut self, peer: u64, incarnation: u64, replaces: bool) -> bool {
        self.strangers.retain(|stranger| *stranger != peer);
        if replaces {
            tracing::warn!(
                node = self.shared.id.0,
                peer,
                incarnation,
                "the peer has lost its directory for good, and goes on with this one; the old one is refused from now on"
            );
        }
        let met = self
            .records
            .meet(peer, incarnation, replaces)
            .unwrap_or_else(|error| {
                self.failed = Some(Fault::Storage(error.to_string().into()));
                false
            });
        if !met {
            tracing::warn!(
                node = self.shared.id.0,
                peer,
                incarnation,
                "not heard: this is not the directory it was met with, or what was met cannot be kept"
            );
            self.strangers.push(peer);
        }
        met
    }

    fn frame(&mut self, peer: u64, kind: u8, head: &[u8], body: &[u8]) -> Handled {
        if !self.refusals.is_empty() {
            // A refusal follows the hello: who says more than that does not refuse.
            self.refusals.retain(|refusal| refusal.0 != peer);
            self.shared.forget_refusal(peer);
        }
        match wire::decode(kind, head) {
            Ok(wire::Frame::Message {
                message: Message::Append(mut append),
                ..
            }) if append.last > append.prev_index => {
                if self.bulk.room() == 0 {
                    return Handled::Hold; // Before the records are verified, so that it is done once.
                }
                match verify(&mut append, body) {
                    Ok(()) => self.bulk(peer, InBulkKind::Append(Message::Append(append)), body),
                    Err(why) => self.reject(peer, &why),
                }
            }
            Ok(wire::Frame::Message { message, attached }) => {
                self.small(peer, Small::Message(message), attached)
            }
            Ok(wire::Frame::Forward { term, origin }) => {
                if origin >> 32 != peer {
                    return self.reject(
                        peer,
                        &format!("forwards proposals of node {}", origin >> 32),
                    );
                }
                if !forward::well_formed(body, self.max_entry_bytes) {
                    return self.reject(
                        peer,
                        &"forwards proposals that are cut short or over the limit",
                    );
                }
                self.bulk(peer, InBulkKind::Forward { term, origin }, body)
            }
            Ok(wire::Frame::Refused) => self.bulk(peer, InBulkKind::Refused, body),
            Ok(wire::Frame::Parcel(parcel)) => {
                // Never put on hold: a heartbeat may stand behind it. What there is no room for is asked for again.
                let _ = self.transfer.try_send(|slot| {
                    slot.from = peer;
                    slot.parcel = parcel;
                    slot.bytes.clear();
                    slot.bytes.extend_from_slice(body);
                });
                Handled::Taken
            }
            Err(error) => self.reject(peer, &error),
        }
    }

    fn reject(&self, peer: u64, why: &dyn std::fmt::Display) -> Handled {
        tracing::warn!(node = self.shared.id.0, peer, "dropped a frame: {why}");
        Handled::Taken
    }

    fn small(&mut self, from: u64, what: Small, piggyback: &[u8]) -> Handled {
        let sent = self.small.try_send(|slot| {
            slot.from = from;
            slot.what = what;
            slot.piggyback.clear();
            slot.piggyback.extend_from_slice(piggyback);
        });
        if sent.is_ok() {
            Handled::Taken
        } else {
            Handled::Hold
        }
    }

    fn bulk(&mut self, from: u64, what: InBulkKind, body: &[u8]) -> Handled {
        let trim = &mut self.trim;
        let sent = self.bulk.try_send(|slot| {
            slot.from = from;
            slot.what = what;
            slot.body.clear();
            slot.body.extend_from_slice(body);
            trim.sends(&mut slot.body);
        });
        if sent.is_ok() {
            Handled::Taken
        } else {
            Handled::Hold
        }
    }
}

/// Checks that the body holds the entries that the message names, whole and undamaged, and notes their terms.
fn verify(append: &mut Append, body: &[u8]) -> Result<(), String> {
    let mut index = append.prev_index;
    let mut term = append.prev_term;
    append.runs.clear();
    for record in record::Records::new(body) {
        let header = record
            .map_err(|error| format!("entry {} after index {index}: {error}", index + 1))?
            .header;
        index += 1;
        if header.index != index {
            return Err(format!(
                "entry {} stands where {index} should",
                header.index
            ));
        }
        if header.term < term || header.term > append.term {
            return Err(format!(
                "entry {index} has term {}, after term {term}, from a leader of term {}",
                header.term, append.term
            ));
        }
        if header.term != term || append.runs.is_empty() {
            term = header.term;
            if !append.runs.push(term, index) {
                return Err(format!(
                    "entries of more than {MAX_RUNS} terms in one message"
                ));
            }
        }
    }
    append.bytes = body.len() as u64;
    if index == append.last {
        Ok(())
    } else {
        Err(format!("entries to {index}, announced to {}", append.last))
    }
}
