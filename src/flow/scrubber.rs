//! The log and the snapshots are read again from the disk, slowly, to find what has gone bad before it is needed.
//!
//! A record that is bad was applied long ago, mostly: the state is sound, and a snapshot of it makes the record needless.
//! So the saver asks for one, and then lets the log go of all that is in it. A snapshot that is bad is set aside, and
//! another one taken. Until that is done a follower that is sent the bad record finds out by its checksum, and a start
//! finds out by itself and has it sent again.

use storage::scrub::Scrub;
use storage::{Dir, SnapshotId, Snapshots};

use crate::flow::clock::micros;
use crate::{Config, Index};

/// How often it goes on, while there is something to read.
const STEP_US: u64 = 250_000;

/// Something on the disk is not what was written there.
#[derive(Debug)]
pub(crate) struct Rot {
    /// Everything up to here is to be in a snapshot before the log needs it no more.
    pub(crate) upto: Index,
    pub(crate) what: String,
}

pub(crate) struct Scrubber<D: Dir> {
    log: Scrub<D>,
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

    /// Reads on, and says what is bad.
    pub(crate) fn step(&mut self, now_us: u64) -> Option<Rot> {
        if now_us < self.due_us {
            return None;
        }
        self.due_us = now_us + STEP_US;
        let Some(unread) = &mut self.unread else {
            let step = self.log.step(self.step_bytes);
            if step.finished {
                self.unread = Some(self.snapshots.list());
            }
            return step.bad.map(|wound| Rot {
                upto: wound.index.unwrap_or(step.upto),
                what: wound.to_string(),
            });
        };
        let Some(id) = unread.pop() else {
            self.unread = None;
            self.due_us = now_us.saturating_add(self.every_us);
            return None;
        };
        // A snapshot is read whole: what it costs is waited for afterwards.
        let pause_us = id.bytes / self.step_bytes * STEP_US;
        self.due_us = self.due_us.saturating_add(pause_us);
        let error = self.snapshots.verify(id).err()?;
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
