//! The leader's half: which follower gets which snapshot, and how far it is.
//!
//! What is on its way is in the window `had .. sent`; a file that is being sent stays readable when the store lets go of
//! its name.

use std::sync::Arc;

use storage::{Dir, SnapshotSource};

use storage::SnapshotId;

use crate::flow::rings::News;
use crate::flow::transfer::{Tools, progress};
use crate::status::Role;
use crate::status::TransferStatus;
use crate::wire::transfer::{Parcel, Refusal};

/// Chunks that one turn sends at the most.
const BURST: usize = 16;

/// The snapshots on their way to followers.
pub(super) struct Sending<D: Dir> {
    ways: Vec<Way<D>>,
    /// The term in which they were asked for: without that office there is nobody to send for.
    term: u64,
}

struct Way<D: Dir> {
    to: u64,
    id: SnapshotId,
    source: SnapshotSource<D>,
    /// The follower has said where to begin, and where that was.
    wanted: Option<u64>,
    sent: u64,
    had: u64,
    began_us: u64,
    /// When it last got further, and when it was last offered.
    moved_us: u64,
    offered_us: u64,
}

impl<D: Dir> Default for Sending<D> {
    fn default() -> Self {
        Self {
            ways: Vec::new(),
            term: 0,
        }
    }
}

impl<D: Dir> Sending<D> {
    /// The follower `to` needs a snapshot, says the leader of `term`.
    pub(super) fn begin(&mut self, tools: &mut Tools<D>, now_us: u64, to: u64, term: u64) {
        if term != self.term {
            self.ways.clear();
            self.term = term;
        }
        if let Some(way) = self.ways.iter_mut().find(|way| way.to == to) {
            way.offer(tools, now_us);
            return;
        }
        let snapshots = &tools.snapshots;
        let source = snapshots.newest().map(|id| (id, snapshots.source(id)));
        match source {
            Some((id, Ok(source))) => {
                let node = tools.shared.id.0;
                tracing::info!(node, to, "sends snapshot {id}");
                let mut way = Way {
                    to,
                    id,
                    source,
                    wanted: None,
                    sent: 0,
                    had: 0,
                    began_us: now_us,
                    moved_us: now_us,
                    offered_us: now_us,
                };
                way.offer(tools, now_us);
                self.ways.push(way);
            }
            other => {
                match other {
                    Some((id, Err(error))) => tools.doubt(id, &error),
                    // The log begins behind what the follower needs, and nothing stands for it.
                    _ => tools.shared.handoff.want(),
                }
                tools.tell(News::Failed { to });
            }
        }
    }

    /// The follower `from` has answered.
    pub(super) fn answered(&mut self, tools: &mut Tools<D>, now_us: u64, from: u64, said: Parcel) {
        let Some(at) = self.ways.iter().position(|way| way.to == from) else {
            return;
        };
        let way = &mut self.ways[at];
        match said {
            Parcel::Want { id, offset } if id == way.id && offset <= id.bytes => {
                way.wanted.get_or_insert(offset);
                way.note(now_us, offset);
                way.sent = offset;
                // What it had it may have lost, with its process.
                way.had = offset;
            }
            Parcel::Have { id, offset } if id == way.id && offset <= way.sent => {
                way.note(now_us, offset);
            }
            Parcel::Done { id } if id == way.id => {
                let way = self.ways.swap_remove(at);
                let index = way.id.index;
                tracing::info!(
                    node = tools.shared.id.0,
                    to = from,
                    "snapshot {id} is there"
                );
                tools.tell(News::Sent { to: from, index });
            }
            // It will be offered again; what the follower takes in now may make this one needless.
            Parcel::Busy { id } if id == way.id => way.moved_us = now_us,
            Parcel::Refused { id, why } if id == way.id => {
                self.ways.swap_remove(at);
                match why {
                    Refusal::Corrupt => tools.doubt(id, &"its follower found it corrupt"),
                    Refusal::Receiver => tracing::warn!(
                        node = tools.shared.id.0,
                        to = from,
                        "snapshot {id} refused: the follower could not store it, see its log"
                    ),
                }
                tools.tell(News::Failed { to: from });
            }
            _ => {}
        }
    }

    pub(super) fn turn(&mut self, tools: &mut Tools<D>, now_us: u64) -> usize {
        if self.ways.is_empty() {
            return 0;
        }
        if tools.shared.role() != Role::Leader || tools.shared.term() != self.term {
            self.ways.clear();
            return 1;
        }
        let mut work = 0;
        let mut at = 0;
        while at < self.ways.len() {
            if !tools.has_room() {
                break;
            }
            let way = &mut self.ways[at];
            let (to, idle_us) = (way.to, now_us.saturating_sub(way.moved_us));
            let gone = if idle_us >= tools.times.give_up_us {
                tracing::warn!(
                    node = tools.shared.id.0,
                    to,
                    "snapshot {} makes no progress",
                    way.id
                );
                true
            } else {
                if now_us >= way.repeat_at(tools) {
                    way.offer(tools, now_us);
                    work += 1;
                }
                match way.pump(tools, now_us) {
                    Ok(sent) => {
                        work += sent;
                        false
                    }
                    Err(error) => {
                        tools.doubt(way.id, &error);
                        true
                    }
                }
            };
            if gone {
                self.ways.swap_remove(at);
                tools.tell(News::Failed { to });
                work += 1;
            } else {
                at += 1;
            }
        }
        // The next turn begins with another one.
        if self.ways.len() > 1 {
            self.ways.rotate_left(1);
        }
        work
    }

    pub(super) fn has_work(&self, tools: &Tools<D>, now_us: u64) -> bool {
        now_us >= tools.pause_until_us && self.ways.iter().any(|way| way.can_send(tools))
    }

    pub(super) fn deadline_us(&self, tools: &Tools<D>) -> u64 {
        let due = |way: &Way<D>| {
            let next = way.repeat_at(tools);
            if way.can_send(tools) {
                next.min(tools.pause_until_us)
            } else {
                next
            }
        };
        self.ways.iter().map(due).min().unwrap_or(u64::MAX)
    }

    pub(super) fn show(&self, into: &mut Vec<TransferStatus>, now_us: u64) {
        into.clear();
        into.extend(self.ways.iter().map(|way| {
            let span = (way.wanted.unwrap_or(way.had), way.had);
            progress(way.to, way.id, span, now_us - way.began_us)
        }));
    }
}

impl<D: Dir> Way<D> {
    fn offer(&mut self, tools: &mut Tools<D>, now_us: u64) {
        self.offered_us = now_us;
        tools.say(self.to, Parcel::Offer { id: self.id });
    }

    fn note(&mut self, now_us: u64, had: u64) {
        if had > self.had {
            self.had = had;
            self.moved_us = now_us;
        }
    }

    fn repeat_at(&self, tools: &Tools<D>) -> u64 {
        self.moved_us.max(self.offered_us) + tools.times.repeat_us
    }

    fn can_send(&self, tools: &Tools<D>) -> bool {
        self.wanted.is_some() && self.sent < self.id.bytes && self.sent - self.had < tools.window
    }

    /// Sends as much as window, pace and ring allow.
    fn pump(&mut self, tools: &mut Tools<D>, now_us: u64) -> Result<usize, storage::StorageError> {
        let mut chunks = 0;
        while chunks < BURST
            && now_us >= tools.pause_until_us
            && self.can_send(tools)
            && tools.has_room()
        {
            let (id, offset) = (self.id, self.sent);
            let len = (id.bytes - offset).min(tools.chunk);
            let source = &mut self.source;
            let mut read = Ok(());
            let sent = tools.send.try_send(|slot| {
                slot.to = self.to;
                slot.parcel = Parcel::Chunk { id, offset };
                let bytes = free(&mut slot.bytes);
                bytes.resize(len as usize, 0);
                read = source.read_at(offset, bytes).map(drop);
                if read.is_err() {
                    // The slot goes out all the same: as something that says nothing.
                    slot.parcel = Parcel::Have { id, offset: 0 };
                }
            });
            assert!(sent.is_ok(), "the room was looked at before");
            read?;
            self.sent += len;
            let pause_us = tools.pace.spend(now_us, len);
            tools.pause_until_us = now_us + pause_us;
            chunks += 1;
        }
        Ok(chunks)
    }
}

/// The buffer to be filled: another one, where the connection has not written this one yet.
fn free(buffer: &mut Arc<Vec<u8>>) -> &mut Vec<u8> {
    if Arc::get_mut(buffer).is_none() {
        *buffer = Arc::default();
    }
    Arc::get_mut(buffer).expect("nobody else has it")
}
