//! Hop 2: batches reach the disk.
//!
//! Everything that waits in the entry ring is written, then one flush is started that covers it. What comes while
//! that flush runs is written too (and may be sent to peers from the mapped log at once) and joins the next flush:
//! group commit without a timer. A failed write or flush is final: the node stops promising.
//!
//! Invariant: `durable_write` moves to `n` only after every write up to `n` was covered by a finished flush.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ringbuf::{Receiver, Take, Waker};
use storage::{Dir, FlushState, Log, StorageError, Vote};

use crate::error::Fault;
use crate::flow::rings::{Entry, Write};
use crate::flow::shared::{Shared, Stop};
use crate::flow::watermarks::advance;
use crate::request::latency::Stamp;

/// A pause after the last write, after which the log is settled: its tail mark says that all of it is durable.
const SETTLE_AFTER_US: u64 = 50_000;

pub(crate) struct Append<D: Dir> {
    log: Log<D>,
    entries: Receiver<Entry>,
    shared: Arc<Shared>,
    consensus: Waker,
    network: Waker,
    apply: Waker,
    /// The last write handed to the log, and the one that the flush under way covers.
    written: u64,
    covered: Option<u64>,
    last_work_us: u64,
    settled: bool,
}

impl<D: Dir> Append<D> {
    pub(crate) fn new(
        log: Log<D>,
        entries: Receiver<Entry>,
        shared: Arc<Shared>,
        consensus: Waker,
        network: Waker,
        apply: Waker,
    ) -> Self {
        advance(&shared.marks.last, log.last());
        advance(&shared.marks.durable, log.durable());
        advance(&shared.marks.first, log.first());
        Self {
            log,
            entries,
            shared,
            consensus,
            network,
            apply,
            written: 0,
            covered: None,
            last_work_us: 0,
            settled: true,
        }
    }

    /// Sees what has become of the flush that runs. `Err`, here and below, ends the node.
    pub(crate) fn finish(&mut self, now_us: u64) -> Result<usize, Fault> {
        let work = self.finish_flush().map_err(fault)?;
        self.note(work, now_us);
        Ok(work)
    }

    /// Writes what waits in the ring.
    pub(crate) fn write(&mut self, now_us: u64) -> Result<usize, Fault> {
        let work = self.write_entries().map_err(fault)?;
        self.note(work, now_us);
        Ok(work)
    }

    /// Begins a flush of what was written, unless one runs: then it joins the next.
    pub(crate) fn flush(&mut self, now_us: u64) -> Result<usize, Fault> {
        let work = self.begin_flush(now_us).map_err(fault)?;
        self.note(work, now_us);
        Ok(work)
    }

    fn note(&mut self, work: usize, now_us: u64) {
        if work > 0 {
            self.last_work_us = now_us;
            self.settled = false;
        }
    }

    fn begin_flush(&mut self, now_us: u64) -> Result<usize, StorageError> {
        if self.covered.is_some() {
            return Ok(0);
        }
        if self.log.start_flush()? {
            self.covered = Some(self.written);
            // A backend that needs no waiting (no flush, memory) is done by now.
            return Ok(1 + self.finish_flush()?);
        }
        if !self.settled && now_us >= self.settle_at() {
            self.settled = true;
            self.log.settle()?;
        }
        Ok(0)
    }

    fn write_entries(&mut self) -> Result<usize, StorageError> {
        let log = &mut self.log;
        let before = log.last();
        let written = &mut self.written;
        let mut failed = None;
        let taken = self.entries.drain_while(64, |entry| {
            let done = match entry.write {
                Write::Append { first, last } => log.append(&entry.bytes, first, last),
                Write::Truncate { after } => log.truncate_after(after),
                Write::Vote { term, vote } => log.save_vote(Vote {
                    term,
                    voted_for: vote,
                }),
                Write::Install { index, term } => log.reset_to(index, term),
                // What makes it whole stands before this in the ring: durable first.
                Write::Healed => log.healed(),
                Write::Purge { before } => log.purge_before(before).map(drop),
                Write::Nothing => Ok(()),
            };
            match done {
                Ok(()) if matches!(entry.write, Write::Purge { .. } | Write::Nothing) => {
                    Take::Taken
                }
                Ok(()) => {
                    assert!(*written < entry.seq, "write {} after {written}", entry.seq);
                    *written = entry.seq;
                    Take::Taken
                }
                Err(error) => {
                    failed = Some(error);
                    Take::Stop
                }
            }
        });
        if taken > 0 {
            let last = self.log.last();
            self.shared.hops.pass(Stamp::Written, last);
            advance(&self.shared.marks.first, self.log.first());
            self.network.wake(); // Appends that waited for these entries can be sent.
            // A follower may hear of a commit before the entries are written here. Either this sees that commit, or the
            // apply stage, which is woken after it, sees the entries: both fence in between.
            fence(Ordering::SeqCst);
            if self.shared.marks.committed.load(Ordering::Acquire) > before {
                self.apply.wake();
            }
        }
        failed.map_or(Ok(taken), Err)
    }

    fn finish_flush(&mut self) -> Result<usize, StorageError> {
        let Some(covered) = self.covered else {
            return Ok(0);
        };
        if self.log.poll_flush()? == FlushState::Running {
            return Ok(0);
        }
        self.covered = None;
        let marks = &self.shared.marks;
        let before = marks.durable.load(Ordering::Relaxed);
        let durable = self.log.durable();
        advance(&marks.durable, durable);
        self.shared.hops.pass(Stamp::Flushed, durable);
        advance(&marks.flushes, marks.flushes.load(Ordering::Relaxed) + 1);
        let entries = durable.saturating_sub(before);
        advance(
            &marks.flushed_entries,
            marks.flushed_entries.load(Ordering::Relaxed) + entries,
        );
        if covered > marks.durable_write.load(Ordering::Relaxed) {
            advance(&marks.durable_write, covered);
            self.consensus.wake();
        }
        Ok(1)
    }

    /// When the tail mark should be settled, if nothing else comes.
    fn settle_at(&self) -> u64 {
        self.last_work_us + SETTLE_AFTER_US
    }

    /// The next moment at which this stage has something to do by itself.
    pub(crate) fn deadline_us(&self) -> u64 {
        if self.settled || self.covered.is_some() {
            u64::MAX
        } else {
            self.settle_at()
        }
    }

    /// The log, for whoever checks from outside what it holds.
    #[cfg(feature = "sim")]
    pub(crate) fn log(&self) -> &Log<D> {
        &self.log
    }

    /// Whether entries wait to be written.
    #[cfg(feature = "sim")]
    pub(crate) fn has_entries(&mut self) -> bool {
        !self.entries.is_empty()
    }

    pub(crate) fn flushing(&self) -> bool {
        self.covered.is_some()
    }

    pub(crate) fn has_work(&mut self) -> bool {
        // A flush may have ended since the last look, and whoever announced that found this thread awake. An error is kept
        // by the log and comes again at the next turn.
        !self.entries.is_empty() || !matches!(self.finish_flush(), Ok(0))
    }

    /// Writes and flushes what is left, and leaves a settled log behind.
    pub(crate) fn close(&mut self) -> Result<(), Fault> {
        self.drain_all().map_err(fault)
    }

    /// The end of the stage's own thread.
    pub(crate) fn close_or_fail(&mut self) {
        if self.shared.stop() == Stop::Drain
            && let Err(fault) = self.close()
        {
            self.shared.fail(fault);
        }
    }

    fn drain_all(&mut self) -> Result<(), StorageError> {
        loop {
            if self.covered.is_some() {
                self.log.wait_flush()?;
                self.finish_flush()?;
            }
            let taken = self.write_entries()?;
            if self.log.start_flush()? {
                self.covered = Some(self.written);
            } else if taken == 0 {
                return self.log.settle();
            }
        }
    }
}

fn fault(error: StorageError) -> Fault {
    Fault::Storage(error.to_string().into())
}
