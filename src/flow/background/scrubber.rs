//! The log and the snapshots are read again from the disk, slowly, to find what has gone bad before it is needed.
//!
//! A record that is bad was applied long ago, mostly, and what is applied is the same on all nodes: so a peer is asked for
//! its bytes, and they are put back in their place (`storage::mend`); the pass goes on with the same record. A bad header of
//! a segment is written anew from memory. When no peer has the record, or the disk does not take it, a snapshot of the state
//! makes it needless: the background asks for one, and then lets the log go of all that is in it. Where the state machine takes
//! none, the next pass asks the peers again, and a start finds out by itself and has it sent.
//!
//! A snapshot that is bad is set aside, and another one taken.

use std::path::PathBuf;

use storage::scrub::Scrub;
use storage::scrub::record_repair::{RecordRepair, RepairError, RepairedRecords};
use storage::{Dir, SnapshotId, Snapshots};

use crate::clock::micros;
use crate::config::Config;
use crate::flow::background::repair_request::Ask;
use crate::flow::shared::Shared;
use crate::types::Index;

/// How often it goes on, while there is something to read.
const STEP_US: u64 = 250_000;

/// Something on the disk is not what was written there.
#[derive(Debug)]
pub(crate) struct Rot {
    /// Everything up to here is to be in a snapshot before the log needs it no more.
    pub(crate) upto: Index,
    pub(crate) what: String,
}

/// What a step has to tell.
#[derive(Debug)]
pub(crate) enum News {
    /// A place is bad, and the peers are asked.
    Found(String),
    /// It is as it was, by what is said here.
    Mended(String),
    /// A segment of the log has lost its name.
    Missing(PathBuf),
    /// It stays bad.
    Rot(Rot),
}

/// Answers that one place may take; each but the last was of use.
const MOST_ASKS: u32 = 200;

/// A bad place, and a peer is asked for what belongs there.
struct Mending<D: Dir> {
    hand: RecordRepair<D>,
    rot: Rot,
    not_of: Vec<u64>,
    asks: u32,
}

pub(crate) struct Scrubber<D: Dir> {
    log: Scrub<D>,
    mending: Option<Mending<D>>,
    /// What was mended last, in this pass: found bad once more it is left.
    mended: Option<(String, Index)>,
    alone: bool,
    snapshots: Snapshots<D>,
    /// Of this pass: those that are still to be read.
    unread: Option<Vec<SnapshotId>>,
    every_us: u64,
    step_bytes: u64,
    due_us: u64,
}

impl<D: Dir> Scrubber<D> {
    pub(crate) fn new(
        log: Scrub<D>,
        snapshots: Snapshots<D>,
        config: &Config,
        now_us: u64,
    ) -> Self {
        let every_us = match micros(config.scrub_every) {
            0 => u64::MAX,
            every => every,
        };
        Self {
            log,
            mending: None,
            mended: None,
            alone: config.members.len() < 2,
            snapshots,
            unread: None,
            every_us,
            step_bytes: (config.scrub_bytes_per_second / (1_000_000 / STEP_US)).max(1),
            due_us: now_us.saturating_add(every_us),
        }
    }

    pub(crate) fn due_us(&self) -> u64 {
        self.due_us
    }

    /// Whether it waits for what a peer says.
    pub(crate) fn is_mending(&self) -> bool {
        self.mending.is_some()
    }

    /// Reads on, or goes on mending, and says what there is to say.
    pub(crate) fn step(&mut self, now_us: u64, shared: &Shared) -> Option<News> {
        if let Some(mending) = self.mending.take() {
            return self.go_on(now_us, shared, mending);
        }
        if now_us < self.due_us {
            return None;
        }
        self.due_us = now_us + STEP_US;
        if self.unread.is_some() {
            let rot = self.read_snapshot(now_us)?;
            shared.repairs().found += 1;
            return Some(News::Rot(rot));
        }
        let step = self.log.step(self.step_bytes);
        if let Some(path) = step.missing {
            return Some(News::Missing(path));
        }
        if step.finished {
            self.unread = Some(self.snapshots.list());
            self.mended = None;
        }
        let wound = step.bad?;
        let rot = Rot {
            upto: wound.index.unwrap_or(step.upto),
            what: wound.to_string(),
        };
        shared.repairs().found += 1;
        let Some(hand) = self.log.mend(shared.marks.certain()) else {
            return Some(News::Rot(rot));
        };
        let place = (hand.file(), hand.index());
        if self.mended.as_ref() == Some(&place) {
            return Some(News::Rot(rot)); // The disk does not keep it.
        }
        let mut mending = Mending {
            hand,
            rot,
            not_of: Vec::new(),
            asks: 0,
        };
        if mending.hand.wants().is_none() {
            return match mending.hand.take(&[]) {
                Ok(_) => Some(self.end(mending, "its header was written anew")),
                Err(error) => self.leave(mending, &error),
            };
        }
        if self.alone {
            return Some(News::Rot(mending.rot));
        }
        let found = mending.rot.what.clone();
        self.ask(now_us, shared, mending);
        Some(News::Found(found))
    }

    fn ask(&mut self, now_us: u64, shared: &Shared, mut mending: Mending<D>) {
        let want = mending.hand.wants().expect("records are wanted");
        mending.asks += 1;
        shared.repair_request.ask(Ask {
            want,
            not_of: mending.not_of.clone(),
        });
        self.mending = Some(mending);
        // The transfer stage answers in any case, and wakes this one.
        self.due_us = now_us.saturating_add(STEP_US);
    }

    fn go_on(&mut self, now_us: u64, shared: &Shared, mut mending: Mending<D>) -> Option<News> {
        let Some(answer) = shared.repair_request.take_answer() else {
            self.due_us = now_us.saturating_add(STEP_US);
            self.mending = Some(mending);
            return None;
        };
        self.due_us = now_us;
        let (from, records) = match answer {
            Ok(given) => given,
            Err(why) => return self.leave(mending, &why),
        };
        match mending.hand.take(&records) {
            Ok(RepairedRecords::Done(count)) => {
                let how = format!("{count} records were put back, as node {from} has them");
                return Some(self.end(mending, &how));
            }
            Err(RepairError::Wrong(why)) => {
                tracing::warn!(node = shared.id.0, from, "no use as a record: {why}");
                mending.not_of.push(from);
            }
            Ok(RepairedRecords::More) if mending.asks < MOST_ASKS => {}
            Ok(RepairedRecords::More) => return self.leave(mending, &"too much is bad"),
            Err(error) => return self.leave(mending, &error),
        }
        self.ask(now_us, shared, mending);
        None
    }

    fn end(&mut self, mending: Mending<D>, how: &str) -> News {
        let (file, index) = (mending.hand.file(), mending.hand.index());
        self.log.again(index);
        self.mended = Some((file, index));
        News::Mended(format!("{}; {how}", mending.rot.what))
    }

    /// It is not mended, for this reason.
    fn leave(&self, mending: Mending<D>, why: &dyn std::fmt::Display) -> Option<News> {
        let Rot { upto, what } = mending.rot;
        let what = format!("{what}; it could not be put back: {why}");
        Some(News::Rot(Rot { upto, what }))
    }

    fn read_snapshot(&mut self, now_us: u64) -> Option<Rot> {
        let Some(id) = self.unread.as_mut().and_then(Vec::pop) else {
            self.unread = None;
            self.due_us = now_us.saturating_add(self.every_us);
            return None;
        };
        // A snapshot is read whole: what it costs is waited for afterwards.
        let pause_us = id.bytes / self.step_bytes * STEP_US;
        self.due_us = self.due_us.saturating_add(pause_us);
        let error = self.snapshots.verify(id).err()?;
        if error.is_exhausted() {
            // It could not be looked at: that says nothing about it.
            self.unread.get_or_insert_default().push(id);
            return None;
        }
        if !self.snapshots.list().contains(&id) {
            return None; // It was let go of meanwhile.
        }
        let set_aside = self.snapshots.reject(id);
        let and = set_aside.err().map(|error| format!("; {error}"));
        Some(Rot {
            upto: id.index,
            what: format!("{error}{}", and.unwrap_or_default()),
        })
    }
}
