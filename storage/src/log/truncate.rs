//! Cutting records off the end, so that no crash brings them back.
//!
//! The danger: 13 and 14 of term 3 are cut off, 13 of term 2 is written over the place of the old
//! 13, and the power fails before the rest of the old page is overwritten. If both 13s have the same
//! length, the old 14 of term 3 stands exactly where recovery looks for the successor of the new 13.
//!
//! Hence the steps, each durable before the next:
//! 1. a flush that runs is waited for, and what it reports is lowered to the new end: bytes that were
//!    flushed and then cut off are not "durable up to there" for what takes their place;
//! 2. the intent `truncate_after` goes into the meta file; from here on recovery finishes the job;
//! 3. later segments are removed, back to front: a hole never appears;
//! 4. in the segment where the log now ends, a marker is written and all old bytes behind become zero;
//! 5. the intent is cleared, before any new record can be reported durable.
//!
//! `tests/truncate.rs` cuts the power before each single operation of this.

use crate::error::{Doing, StorageError};
use crate::files::heal;
use crate::files::meta::MetaState;
use crate::log::FlushState;
use crate::log::Log;
use crate::log::segment::segment_name;
use crate::log::tail_marker::{MARKER_LEN, MarkerKind};
use crate::medium::{Dir, File};
use crate::record::{HEADER_LEN, u64_at};

/// Zeros are written in pieces of this size.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl<D: Dir> Log<D> {
    /// Drops all records after `last_kept`, durably: it waits for the disk several times. What is kept
    /// is durable afterwards. Readers see the new end at once; whoever holds a slice of dropped
    /// records may see other bytes in it.
    ///
    /// Only for records that were never committed.
    ///
    /// # Errors
    /// The medium failed.
    ///
    /// # Panics
    /// When `last_kept` is below what was purged.
    pub fn truncate_after(&mut self, last_kept: u64) -> Result<(), StorageError> {
        self.check()?;
        let first = self.first();
        assert!(
            last_kept + 1 >= first,
            "truncating after {last_kept}, the log starts at {first}"
        );
        if last_kept >= self.last {
            return Ok(());
        }
        let result = self.truncate(last_kept);
        self.keep(result)
    }

    fn truncate(&mut self, last_kept: u64) -> Result<(), StorageError> {
        if self.land(true)? == FlushState::Done {
            self.done_unsaid = true;
        }
        // Nobody finds the dropped records any more, and none of them is durable for the caller.
        self.published.set_written(last_kept);
        self.durable = self.durable.min(last_kept);
        let mut old_tail = self.tail;
        self.last = last_kept;

        self.save_meta(Some(last_kept))?;

        while self.segments.len() > 1
            && self
                .segments
                .back()
                .is_some_and(|s| s.view.base > last_kept)
        {
            let segment = self.segments.pop_back().expect("more than one");
            self.publish_list();
            let name = segment_name(segment.view.seq);
            self.dir
                .remove(&name)
                .doing("remove", &self.dir.path(&name))?;
            if self.options.sync {
                self.dir
                    .sync_dir("log")
                    .doing("flush the directory", &self.dir.path("log"))?;
            }
            old_tail = self.offset_of(segment.view.base);
        }

        let segment = self.segments.back_mut().expect("a log has a segment");
        // It may have been closed: the log goes on in it again.
        segment.file.open()?;
        self.tail = self.offset_of(last_kept + 1);
        let view = &self.segments.back().expect("a log has a segment").view;
        self.last_term = match last_kept.checked_sub(view.base) {
            None => view.prev_term,
            Some(_) => {
                let at = self.offset_of(last_kept) as usize;
                u64_at(view.map.slice(at..at + HEADER_LEN), 16)
            }
        };
        view.index.cut(self.tail);
        self.write_tail(false, &[], last_kept, MarkerKind::Tail)?;
        let (file, end) = (
            self.segments.back().expect("as above").file.file(),
            old_tail + MARKER_LEN as u64,
        );
        let mut at = self.tail + MARKER_LEN as u64;
        while at < end {
            let len = ZEROS.len().min((end - at) as usize);
            file.write_at(at, &ZEROS[..len])
                .doing_at("write", file.path(), at)?;
            at += len as u64;
        }
        for segment in self.segments.iter_mut().filter(|segment| segment.dirty) {
            if self.options.sync {
                let path = segment.file.path();
                segment.file.file().sync().doing("flush", path)?;
            }
            segment.dirty = false;
        }
        self.durable = last_kept;

        self.save_meta(None)?;
        // Whoever counts writes by the flushes that cover them shall hear of this one, and of a vote
        // that was saved before it.
        self.news = true;
        Ok(())
    }

    /// Where record `index` begins in the last segment, or would.
    fn offset_of(&self, index: u64) -> u64 {
        let view = &self.segments.back().expect("a log has a segment").view;
        match view.seek(index, u64::MAX) {
            Some((found, offset)) if found == index => offset,
            other => panic!("record {index} of segment {} is lost: {other:?}", view.seq),
        }
    }

    /// Writes the meta file with this intent, and waits until it is durable.
    fn save_meta(&mut self, truncate_after: Option<u64>) -> Result<(), StorageError> {
        self.meta.set(MetaState {
            truncate_after,
            ..self.meta.state()
        });
        self.write_meta()
    }

    /// Writes the meta file as it shall be, and waits until that is durable.
    pub(crate) fn write_meta(&mut self) -> Result<(), StorageError> {
        self.meta.write()?;
        if self.options.sync {
            let file = &self.meta.file;
            file.sync().doing("flush", file.path())?;
        }
        self.meta.flushed();
        Ok(())
    }

    /// The log is whole again, and the vote is settled ([`DataLoss`](crate::DataLoss)): forgets, durably, that something was missing.
    ///
    /// What makes it whole may still be on its way to the disk: it waits until that is there.
    ///
    /// # Errors
    /// The medium failed. Then the next start may find the directory healing still, which is safe.
    pub fn healed(&mut self) -> Result<(), StorageError> {
        self.check()?;
        let result = self
            .flush_all()
            .and_then(|()| heal::forget(&self.dir, self.options.sync));
        self.keep(result)
    }
}
