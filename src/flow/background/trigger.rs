//! When a snapshot is to be taken.

use crate::clock::micros;
use crate::config::Config;
use crate::types::Index;

/// What has happened since the last one.
#[derive(Debug)]
pub(crate) struct SnapshotTrigger {
    every_bytes: u64,
    every_entries: u64,
    every_us: u64,
    bytes: u64,
    /// Everything up to here is in a snapshot, or is being written into one.
    last: Index,
    due_us: u64,
    /// The state machine takes none.
    never: bool,
}

impl SnapshotTrigger {
    /// `last` is what the newest snapshot stands for; `chance` spreads the first one by time over the nodes.
    pub(crate) fn new(config: &Config, last: Index, now_us: u64, chance: u64) -> Self {
        let every_us = micros(config.snapshot_every);
        Self {
            every_bytes: config.snapshot_every_bytes,
            every_entries: config.snapshot_every_entries,
            every_us,
            bytes: 0,
            last,
            due_us: now_us + chance.checked_rem(every_us).unwrap_or(0),
            never: false,
        }
    }

    pub(crate) fn applied(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// The state was captured, or replaced by a snapshot, at `index`.
    pub(crate) fn past(&mut self, index: Index, now_us: u64) {
        self.last = index;
        self.bytes = 0;
        self.due_us = now_us.saturating_add(self.every_us);
    }

    /// The state machine has none to give: nobody asks it again by himself.
    pub(crate) fn give_up(&mut self) {
        self.never = true;
    }

    /// Whether anything was applied since.
    pub(crate) fn is_news(&self, applied: Index) -> bool {
        applied > self.last
    }

    pub(crate) fn is_due(&self, applied: Index, now_us: u64) -> bool {
        if self.never || !self.is_news(applied) {
            return false;
        }
        let by_bytes = self.every_bytes > 0 && self.bytes >= self.every_bytes;
        let by_entries = self.every_entries > 0 && applied - self.last >= self.every_entries;
        let by_time = self.every_us > 0 && now_us >= self.due_us;
        by_bytes || by_entries || by_time
    }

    /// When time alone makes one due.
    pub(crate) fn deadline_us(&self, applied: Index) -> u64 {
        if self.every_us > 0 && !self.never && self.is_news(applied) {
            self.due_us
        } else {
            u64::MAX
        }
    }
}
