//! A snapshot's way to a follower that has fallen behind the log: the file's own bytes, in a window.
//!
//! ```text
//!  leader                         follower
//!    │  Offer {id}                   │
//!    ├──────────────────────────────▶│  has it, or more:        Done
//!    │  Want {id, offset}            │  takes another one in:   Busy
//!    │◀──────────────────────────────┤  a part of it is here:   Want from there on
//!    │  Chunk, Chunk, Chunk ..       │
//!    ├──────────────────────────────▶│  each is verified and written
//!    │  Have {id, offset}            │
//!    │◀──────────────────────────────┤  one was lost:           Want from there on
//!    │  Done {id}                    │  the file is whole, flushed, and has its name
//!    │◀──────────────────────────────┤
//! ```
//!
//! The id names the bytes, not the sender: after a lost connection, a restart or a change of leaders a follower goes on
//! where it was, if the one who sends now has the same snapshot. A transfer that makes progress is not given up for a
//! newer snapshot; one that makes none is, however long the whole may take.
//!
//! A follower that refuses a snapshot says why. When its bytes are not what their checksums say, or when the leader cannot read
//! its own file, the leader's background reads the snapshot again; one that is bad or missing is set aside and a new one is taken.
//!
//! Chunks go on the bulk lane, so a heartbeat never stands behind more than one of them, and nothing here ever holds a
//! connection back: what there is no room for is lost, and asked for again.

mod receiving;
mod records;
mod sending;

use std::fmt;
use std::sync::Arc;

use ringbuf::{Receiver, Sender, Take};
use storage::scrub::record_repair::RecordSource;
use storage::{Dir, SnapshotId, Snapshots};

use self::receiving::Receiving;
use self::records::Records;
use self::sending::Sending;
use crate::clock::micros;
use crate::config::Config;
use crate::flow::background::pace::Pace;
use crate::flow::rings::{InTransfer, News, SendTransfer, ToConsensus, Wanted};
use crate::flow::shared::Shared;
use crate::status::TransferStatus;
use crate::wire::transfer::Parcel;

/// Bytes of a snapshot's file that go in one frame, at the most.
pub(crate) const CHUNK_BYTES: usize = 128 << 10;
/// Frames that a window takes, at the least.
const MIN_CHUNKS: usize = 4;
/// Parcels that one turn takes at the most.
const TURN: usize = 64;

pub(crate) struct Inputs {
    pub(crate) wanted: Receiver<Wanted>,
    pub(crate) parcels: Receiver<InTransfer>,
}

/// What the stage needs to act; apart from its inputs, so that a slot can be read while it acts.
pub(crate) struct Tools<D: Dir> {
    pub(crate) snapshots: Snapshots<D>,
    pub(crate) shared: Arc<Shared>,
    send: Sender<SendTransfer>,
    news: Sender<ToConsensus>,
    times: Times,
    window: u64,
    chunk: u64,
    pace: Pace,
    /// Nothing more is sent before this, for the pace's sake.
    pause_until_us: u64,
}

#[derive(Clone, Copy)]
struct Times {
    /// Without progress for so long, an offer is repeated, and a transfer may be given up for another one.
    repeat_us: u64,
    /// And after so long, it is given up.
    give_up_us: u64,
    /// Who has not given records in this time is not waited for.
    records_us: u64,
}

pub(crate) struct Transfer<D: Dir> {
    inputs: Inputs,
    tools: Tools<D>,
    sending: Sending<D>,
    receiving: Receiving<D>,
    records: Records<D>,
}

impl<D: Dir> Transfer<D> {
    pub(crate) fn new(
        snapshots: Snapshots<D>,
        record_source: RecordSource<D>,
        shared: Arc<Shared>,
        inputs: Inputs,
        send: Sender<SendTransfer>,
        news: Sender<ToConsensus>,
        config: &Config,
    ) -> Self {
        let times = Times {
            repeat_us: micros(config.election_timeout) / 2,
            give_up_us: micros(config.election_timeout * 10),
            records_us: micros(config.election_timeout * 2),
        };
        let tools = Tools {
            snapshots,
            shared,
            send,
            news,
            times,
            window: config.snapshot_window_bytes as u64,
            chunk: CHUNK_BYTES.min(config.snapshot_window_bytes / MIN_CHUNKS) as u64,
            pace: Pace::new(config.snapshot_bytes_per_second),
            pause_until_us: 0,
        };
        Self {
            inputs,
            tools,
            sending: Sending::default(),
            receiving: Receiving::default(),
            records: Records::new(record_source),
        }
    }

    /// One turn. Returns how much was done.
    pub(crate) fn poll(&mut self, now_us: u64) -> usize {
        let Self {
            inputs,
            tools,
            sending,
            receiving,
            records,
        } = self;
        let mut work = inputs.wanted.drain_while(TURN, |wanted| {
            if !tools.has_room() {
                return Take::Stop;
            }
            sending.begin(tools, now_us, wanted.to, wanted.term);
            Take::Taken
        });
        work += inputs.parcels.drain_while(TURN, |slot| {
            if !tools.has_room() {
                return Take::Stop;
            }
            match slot.parcel {
                Parcel::Offer { id } => receiving.offered(tools, now_us, slot.from, id),
                Parcel::Chunk { id, offset } => {
                    receiving.chunk(tools, now_us, slot.from, id, offset, &slot.bytes);
                }
                Parcel::WantRecords { first, last, bytes } => {
                    records.wanted(tools, slot.from, (first, last, bytes));
                }
                said @ (Parcel::GiveRecords { .. } | Parcel::NoRecords { .. }) => {
                    records.answered(tools, now_us, slot.from, said, &slot.bytes);
                }
                answer => sending.answered(tools, now_us, slot.from, answer),
            }
            Take::Taken
        });
        work += records.turn(tools, now_us);
        work += receiving.turn(tools);
        work += sending.turn(tools, now_us);
        if work > 0 {
            let mut view = tools.shared.snapshots();
            sending.show(&mut view.sending, now_us);
            view.receiving = receiving.status(now_us);
        }
        work
    }

    pub(crate) fn has_work(&mut self) -> bool {
        let now_us = self.tools.shared.clock.now_us();
        self.tools.has_room()
            && (!self.inputs.wanted.is_empty()
                || !self.inputs.parcels.is_empty()
                || self.records.has_work(&self.tools)
                || self.receiving.has_work(&self.tools)
                || self.sending.has_work(&self.tools, now_us))
    }

    pub(crate) fn deadline_us(&self) -> u64 {
        let records_us = self.records.deadline_us();
        self.sending.deadline_us(&self.tools).min(records_us)
    }
}

impl<D: Dir> Tools<D> {
    /// Whether an input may be taken: whatever it makes to say finds room.
    fn has_room(&mut self) -> bool {
        self.send.has_room(4) && self.news.has_room(4)
    }

    /// This node's snapshot may be bad: the background reads it again.
    fn doubt(&self, id: SnapshotId, why: &dyn fmt::Display) {
        let node = self.shared.id.0;
        tracing::warn!(node, "snapshot {id} is in doubt: {why}; it is read again");
        self.shared.snapshots().failed(id.index, why);
        self.shared.handoff.doubt(id);
    }

    /// Without room - whoever calls looks for it, where it matters - the parcel is lost, as any may be.
    fn say(&mut self, to: u64, parcel: Parcel) {
        let _ = self.send.try_send(|slot| {
            slot.to = to;
            slot.parcel = parcel;
        });
    }

    fn tell(&mut self, news: News) {
        let told = self.news.try_send(|slot| slot.0 = news);
        assert!(told.is_ok(), "the room was looked at before");
    }
}

fn progress(peer: u64, id: SnapshotId, (from, at): (u64, u64), took_us: u64) -> TransferStatus {
    let moved = u128::from(at.saturating_sub(from)) * 1_000_000;
    TransferStatus {
        peer: crate::NodeId(peer as u32),
        index: id.index,
        bytes: at,
        of_bytes: id.bytes,
        bytes_per_second: (moved / u128::from(took_us.max(1))) as u64,
    }
}
