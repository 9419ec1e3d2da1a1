//! The follower's half: one snapshot at a time is taken in.

use storage::{Dir, Incoming, StorageError};

use storage::SnapshotId;

use crate::flow::rings::News;
use crate::flow::transfer::{Tools, progress};
use crate::status::TransferStatus;
use crate::wire::transfer::{Parcel, Refusal};
use std::sync::atomic::Ordering;

/// The sender hears of what is written so many times in a window, at the least.
const SAYINGS: u64 = 4;

/// The snapshot that is being received, and the one that was.
pub(super) struct Receiving<D: Dir> {
    way: Option<Way<D>>,
    /// It is here, and its sender hears of that when it has been taken up.
    arrived: Option<(u64, SnapshotId)>,
}

struct Way<D: Dir> {
    from: u64,
    id: SnapshotId,
    incoming: Incoming<D>,
    began_at: u64,
    began_us: u64,
    moved_us: u64,
    /// How far the sender has heard that it is written, and whether there is more to say.
    said: u64,
    unsaid: bool,
    /// The gap that the sender was told of last.
    gap: Option<u64>,
}

impl<D: Dir> Default for Receiving<D> {
    fn default() -> Self {
        Self {
            way: None,
            arrived: None,
        }
    }
}

impl<D: Dir> Receiving<D> {
    pub(super) fn offered(&mut self, tools: &mut Tools<D>, now_us: u64, from: u64, id: SnapshotId) {
        let committed = tools.shared.marks.committed.load(Ordering::Acquire);
        if id.index <= committed {
            // It has caught up meanwhile, or was only thought to be behind.
            tools.say(from, Parcel::Done { id });
            return;
        }
        let is_here = tools.snapshots.list().contains(&id);
        if is_here {
            self.arrive(tools, from, id);
            return;
        }
        if let Some(way) = &mut self.way {
            if way.id == id {
                way.from = from;
                way.gap = None;
                let offset = way.incoming.offset();
                tools.say(from, Parcel::Want { id, offset });
                return;
            }
            if now_us < way.moved_us + tools.times.repeat_us * 4 {
                tools.say(from, Parcel::Busy { id });
                return;
            }
        }
        self.way = None;
        match tools.snapshots.receive(id) {
            Ok(incoming) => {
                let offset = incoming.offset();
                let node = tools.shared.id.0;
                tracing::info!(node, from, offset, "takes in snapshot {id}");
                self.way = Some(Way {
                    from,
                    id,
                    incoming,
                    began_at: offset,
                    began_us: now_us,
                    moved_us: now_us,
                    said: offset,
                    unsaid: false,
                    gap: None,
                });
                tools.say(from, Parcel::Want { id, offset });
            }
            Err(error) => {
                tools.shared.snapshots().failed(id.index, &error);
                let why = Refusal::of(&error);
                tools.say(from, Parcel::Refused { id, why });
            }
        }
    }

    pub(super) fn chunk(
        &mut self,
        tools: &mut Tools<D>,
        now_us: u64,
        from: u64,
        id: SnapshotId,
        offset: u64,
        bytes: &[u8],
    ) {
        let Some(way) = self
            .way
            .as_mut()
            .filter(|way| way.id == id && way.from == from)
        else {
            return;
        };
        let here = way.incoming.offset();
        if offset > here {
            // One was lost. Those behind it that are on their way already say nothing new.
            if way.gap != Some(here) {
                way.gap = Some(here);
                tools.say(from, Parcel::Want { id, offset: here });
            }
            return;
        }
        let Some(new) = bytes
            .get((here - offset) as usize..)
            .filter(|new| !new.is_empty())
        else {
            way.unsaid = true; // All of it is here already.
            return;
        };
        match way.incoming.write(here, new) {
            Ok(()) => {
                way.moved_us = now_us;
                way.unsaid = true;
                // The sender goes on while this turn takes in what has come so far.
                if way.incoming.offset().saturating_sub(way.said) >= tools.window / SAYINGS {
                    way.say_have(tools);
                }
            }
            Err(error) => self.give_up(tools, &error),
        }
    }

    fn give_up(&mut self, tools: &mut Tools<D>, error: &StorageError) {
        if let Some(way) = self.way.take() {
            let node = tools.shared.id.0;
            tracing::warn!(
                node,
                from = way.from,
                "snapshot {} is not taken in: {error}",
                way.id
            );
            tools.shared.snapshots().failed(way.id.index, error);
            let (id, why) = (way.id, Refusal::of(error));
            tools.say(way.from, Parcel::Refused { id, why });
        }
    }

    /// Says what was written, and finishes what is whole.
    pub(super) fn turn(&mut self, tools: &mut Tools<D>) -> usize {
        let mut work = 0;
        if !tools.has_room() {
            return 0;
        }
        if let Some(way) = &mut self.way {
            let (from, id, offset) = (way.from, way.id, way.incoming.offset());
            if way.unsaid {
                way.say_have(tools);
                work += 1;
            }
            if offset == id.bytes {
                let way = self.way.take().expect("it is there");
                match way.incoming.finish() {
                    Ok(_) => {}
                    Err(error) => {
                        tools.shared.snapshots().failed(id.index, &error);
                        let why = Refusal::of(&error);
                        tools.say(from, Parcel::Refused { id, why });
                        return work + 1;
                    }
                }
                tracing::info!(node = tools.shared.id.0, from, "snapshot {id} is here");
                self.arrive(tools, from, id);
                work += 1;
            }
        }
        if let Some((from, id)) = self.arrived.filter(|(_, id)| is_taken_up(tools, *id)) {
            self.arrived = None;
            tools.say(from, Parcel::Done { id });
            work += 1;
        }
        work
    }

    fn arrive(&mut self, tools: &mut Tools<D>, from: u64, id: SnapshotId) {
        match tools.snapshots.open(id) {
            Ok(reader) => {
                self.arrived = Some((from, id));
                tools.tell(News::Received {
                    index: id.index,
                    term: id.term,
                    time_us: reader.meta().time_us,
                });
            }
            Err(error) => {
                tools.shared.snapshots().failed(id.index, &error);
                let why = Refusal::of(&error);
                tools.say(from, Parcel::Refused { id, why });
            }
        }
    }

    pub(super) fn has_work(&self, tools: &Tools<D>) -> bool {
        self.way
            .as_ref()
            .is_some_and(|way| way.unsaid || way.incoming.offset() == way.id.bytes)
            || self.arrived.is_some_and(|(_, id)| is_taken_up(tools, id))
    }

    pub(super) fn status(&self, now_us: u64) -> Option<TransferStatus> {
        self.way.as_ref().map(|way| {
            let span = (way.began_at, way.incoming.offset());
            progress(way.from, way.id, span, now_us - way.began_us)
        })
    }
}

impl<D: Dir> Way<D> {
    /// Tells the sender how much is written.
    fn say_have(&mut self, tools: &mut Tools<D>) {
        let (id, offset) = (self.id, self.incoming.offset());
        self.gap = self.gap.filter(|gap| *gap >= offset);
        tools.say(self.from, Parcel::Have { id, offset });
        self.said = offset;
        self.unsaid = false;
    }
}

/// Whether the consensus stage has heard of it.
fn is_taken_up<D: Dir>(tools: &Tools<D>, id: SnapshotId) -> bool {
    tools.shared.marks.last.load(Ordering::Acquire) >= id.index
}
