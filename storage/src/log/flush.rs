//! One flush for all that was written since the last.
//!
//! ```text
//!  append  append  append          append  append
//!    └───────┴───────┴ start_flush ─ ─ ─ ─ ─ ─ ─ Done ┐
//!                           the next one covers ───┴──┴ start_flush ─ ─ …
//! ```
//!
//! Invariants: at most one flush runs; it covers what was written when it began, and says so exactly
//! once; `durable` moves only when one is over.

use std::time::Instant;

use crate::error::{Doing, StorageError};
use crate::log::tail_marker::MarkerKind;
use crate::log::{FlushState, GroupFlush, Log};
use crate::medium::{Dir, File, Flusher};

impl<D: Dir> Log<D> {
    /// Begins to make durable all that was appended, truncated and saved so far. `false`: nothing to
    /// do, or the end of a flush is still to be told ([`Log::poll_flush`]); what has arrived since that
    /// one began is for the next.
    ///
    /// # Errors
    /// The medium failed.
    pub fn start_flush(&mut self) -> Result<bool, StorageError> {
        self.check()?;
        if self.group_flush.is_some() || self.done_unsaid || !self.is_dirty() {
            // While the end of a flush is untold it must not be taken for the end of a later one, which
            // covers more.
            return Ok(false);
        }
        self.news = false;
        if self.meta.is_dirty() || self.is_tail_dirty() {
            let result = self.take_off();
            self.keep(result)?;
        } else {
            // All there is to tell of is durable already.
            self.done_unsaid = true;
        }
        Ok(true)
    }

    fn take_off(&mut self) -> Result<(), StorageError> {
        let meta = self.meta.is_dirty() || self.meta.is_single();
        if meta {
            self.meta.write()?;
            self.to_flush.push(self.meta.file.clone());
        }
        // Dirty are always the newest ones. Oldest first, as the ring may take them in turns.
        let clean = self
            .segments
            .iter()
            .rposition(|s| !s.dirty)
            .map_or(0, |at| at + 1);
        for segment in self.segments.iter_mut().skip(clean) {
            segment.dirty = false;
            self.to_flush.push(segment.file.file().clone());
        }
        self.flushes += 1;
        self.group_flush = Some(GroupFlush {
            covers: self.last,
            meta,
            since: Instant::now(),
        });
        self.flusher
            .start(&mut self.to_flush)
            .map_err(|e| StorageError::io("start a flush in", &self.dir.path(""), e))
    }

    /// Looks whether the flush is over, without waiting.
    ///
    /// # Errors
    /// The flush failed, or the log failed before.
    pub fn poll_flush(&mut self) -> Result<FlushState, StorageError> {
        self.look_at_flush(false)
    }

    /// Waits until the flush is over; `Idle` when none runs.
    ///
    /// # Errors
    /// As [`Log::poll_flush`].
    pub fn wait_flush(&mut self) -> Result<FlushState, StorageError> {
        self.look_at_flush(true)
    }

    fn look_at_flush(&mut self, wait: bool) -> Result<FlushState, StorageError> {
        self.check()?;
        if std::mem::take(&mut self.done_unsaid) {
            return Ok(FlushState::Done);
        }
        let result = self.land(wait);
        self.keep(result)
    }

    /// Takes the outcome of the flush that runs.
    pub(crate) fn land(&mut self, wait: bool) -> Result<FlushState, StorageError> {
        let Some(group_flush) = self.group_flush else {
            return Ok(FlushState::Idle);
        };
        match self.flusher.poll(wait) {
            None => Ok(FlushState::Running),
            Some(Ok(())) => {
                self.group_flush = None;
                self.stats.note(group_flush.since.elapsed());
                self.durable = self.durable.max(group_flush.covers);
                if group_flush.meta {
                    self.meta.flushed();
                }
                Ok(FlushState::Done)
            }
            Some(Err(failed)) => Err(StorageError::io("flush", &failed.path, failed.source)),
        }
    }

    /// Makes all that was written durable, and waits for it.
    pub(crate) fn flush_all(&mut self) -> Result<(), StorageError> {
        if self.land(true)? == FlushState::Done {
            self.done_unsaid = true;
        }
        if self.meta.is_dirty() || self.is_tail_dirty() {
            self.take_off()?;
            self.land(true)?;
        }
        // Whoever counts writes by the flushes that cover them shall hear of these.
        self.news = true;
        Ok(())
    }

    /// Whether a flush is due: something was appended, truncated or saved that no flush covers.
    pub fn is_dirty(&self) -> bool {
        // What a group_flush covers of the meta file stays dirty until it lands.
        let meta_flies = self.group_flush.is_some_and(|group_flush| group_flush.meta);
        let meta = self.meta.is_unwritten() || (self.meta.is_dirty() && !meta_flies);
        self.news || meta || self.is_tail_dirty()
    }

    fn is_tail_dirty(&self) -> bool {
        self.segments.back().is_some_and(|segment| segment.dirty)
    }

    /// For a quiet moment: writes down, in the marker at the end of the log, that all of it is durable,
    /// so that later damage is told from a torn write; and term and vote into their second place.
    /// Waits for the disk once for each. Does nothing while something waits to be flushed, or when all
    /// that is there already.
    ///
    /// # Errors
    /// The medium failed.
    pub fn settle(&mut self) -> Result<(), StorageError> {
        self.check()?;
        if self.group_flush.is_some() || self.is_dirty() {
            return Ok(());
        }
        if self.marked < self.proven() {
            let result = self.write_settled_mark();
            self.keep(result)?;
        }
        if self.meta.is_single() && self.options.sync {
            let result = self.write_meta();
            self.keep(result)?;
        }
        Ok(())
    }

    fn write_settled_mark(&mut self) -> Result<(), StorageError> {
        self.write_tail(false, &[], self.last, MarkerKind::Tail)?;
        let segment = self.segments.back_mut().expect("a log has a segment");
        segment.dirty = false;
        segment
            .file
            .file()
            .sync()
            .doing("flush", segment.file.path())
    }

    /// Flushes, settles and lets go of the directory. Merely dropping the log loses only that which
    /// was not flushed.
    ///
    /// # Errors
    /// The medium failed, now or before.
    pub fn close(mut self) -> Result<(), StorageError> {
        self.wait_flush()?;
        while self.start_flush()? {
            self.wait_flush()?;
        }
        self.settle()
    }
}
