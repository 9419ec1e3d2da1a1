//! The log of one group: append, flush, read back.
//!
//! ```text
//!    first              durable          written = last
//!      │◀──── on disk ─────▶│◀─ being flushed ─▶│
//!      ├──── segment ───┼──── segment ───┼── segment, in use ─ marker ──┤ spare │
//! ```
//!
//! Invariants: `first - 1 <= durable <= last`; every record up to `last` can be read at once; what is
//! at or below `durable` survives any stop; flushed are always the newest segments from the first
//! dirty one on, so nothing is durable before what precedes it. One write per batch (one more at each
//! segment border), one flush for all that was written since the last.
//!
//! An error of the medium is final: what a file holds after a failed write or flush is not known, and
//! a second flush may report success for data the kernel dropped with the first. From then on every
//! call gives the same error.

mod flush;
pub(crate) mod flush_stats;
pub(crate) mod handle;
pub(crate) mod loaded;
pub(crate) mod preallocate;
pub(crate) mod reader;
pub(crate) mod segment;
pub(crate) mod tail_marker;
mod truncate;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use crate::error::{Doing, StorageError};
use crate::files::identity::Identity;
use crate::files::known_peers::KnownPeers;
use crate::files::meta::{Meta, MetaState, Vote};
use crate::log::flush_stats::FlushStats;
use crate::log::loaded::{Loaded, Parts};
use crate::log::preallocate::{Preallocator, Segment};
use crate::log::reader::{Extent, Published, Reader};
use crate::log::segment::{RECORDS_AT, SegmentHeader, State, segment_name};
use crate::log::tail_marker::{MARKER_LEN, MarkerKind, TailMarker};
use crate::medium::{Dir, File, Flusher};
use crate::options::Options;
use crate::record;
use crate::snapshot::Snapshots;

/// Segments at the end of the log that stay in memory as they are: the one in use, and what peers that keep up still read.
const WARM_SEGMENTS: usize = 2;

/// Segments whose files are open: the one in use, and those before it that are not flushed yet.
pub(crate) const MOST_OPEN: usize = 8;

/// A log, open. One per directory; it is written by whoever holds it and read through
/// [`Log::reader`].
pub struct Log<D: Dir> {
    pub(crate) dir: D,
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) segments: VecDeque<Segment<D::File>>,
    /// Where the next record goes in the last segment.
    pub(crate) tail: u64,
    pub(crate) last: u64,
    pub(crate) last_term: u64,
    pub(crate) durable: u64,
    /// What the marker at the tail says was flushed.
    pub(crate) marked: u64,
    pub(crate) meta: Meta<D::File>,
    known_peers: KnownPeers<D>,
    snapshots: Snapshots<D>,
    pub(crate) published: Arc<Published>,
    pub(crate) group_flush: Option<GroupFlush>,
    /// A flush is over, and the next poll tells.
    pub(crate) done_unsaid: bool,
    /// A truncation made things durable beside the flushes; the next flush tells.
    pub(crate) news: bool,
    /// The first block of a segment, written with its first records.
    header_block: Box<[u8]>,
    /// Filled and emptied by each flush; keeps its room.
    pub(crate) to_flush: Vec<D::File>,
    pub(crate) flusher: D::Flusher,
    pub(crate) preallocator: Preallocator<D>,
    pub(crate) flushes: u64,
    pub(crate) stats: FlushStats,
    pub(crate) poison: Option<StorageError>,
    /// Last, so that the directory stays locked until everything else is gone.
    _lock: Arc<D::Lock>,
}

/// What [`Log::poll_flush`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushState {
    /// No flush runs.
    Idle,
    /// One runs.
    Running,
    /// The one that ran is over: look at [`Log::durable`]. Said once per flush.
    Done,
}

/// A flush under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupFlush {
    /// The last index it covers.
    covers: u64,
    /// It covers the meta file.
    meta: bool,
    since: Instant,
}

impl<D: Dir> Log<D> {
    pub(crate) fn assemble(parts: Parts<D>, loaded: Loaded<D::File>) -> Log<D> {
        let Parts {
            dir,
            identity,
            options,
            meta,
            known_peers,
            snapshots,
            flusher,
            preallocator,
            lock,
        } = parts;
        let list = loaded
            .segments
            .iter()
            .map(|segment| segment.view.clone())
            .collect();
        let published = Arc::new(Published::new(loaded.last, list));
        let mut log = Log {
            dir,
            identity,
            options,
            segments: loaded.segments,
            tail: loaded.tail,
            last: loaded.last,
            last_term: loaded.last_term,
            durable: loaded.last,
            marked: loaded.marked,
            meta,
            known_peers,
            snapshots,
            published,
            group_flush: None,
            done_unsaid: false,
            news: false,
            header_block: vec![0; RECORDS_AT as usize].into(),
            to_flush: Vec::with_capacity(16),
            flusher,
            preallocator,
            flushes: 0,
            stats: FlushStats::NONE,
            poison: None,
            _lock: lock,
        };
        // Recovery has read all of them.
        for at in 0..log.segments.len().saturating_sub(WARM_SEGMENTS) {
            log.cool(at);
        }
        log.publish_list();
        log
    }

    /// Appends a batch: `records` holds the encoded records `first..=last`, one behind the other, the
    /// first of them the successor of [`Log::last`]. They can be read at once; they are durable after
    /// the next flush. Checksums are not looked at here: who takes records from elsewhere verifies
    /// them first ([`crate::record::Records`]).
    ///
    /// # Errors
    /// The medium failed; see [`StorageError::Io`].
    ///
    /// # Panics
    /// When the records are not `first..=last`, do not follow the log, their terms fall, or one is
    /// longer than [`Options::max_record_bytes`].
    pub fn append(&mut self, records: &[u8], first: u64, last: u64) -> Result<(), StorageError> {
        self.check()?;
        assert!(
            first == self.last + 1,
            "appending record {first} to a log that ends at {}",
            self.last
        );
        let result = self.append_all(records);
        self.keep(result)?;
        assert!(
            last == self.last,
            "the batch ends with record {}, not {last}",
            self.last
        );
        Ok(())
    }

    fn append_all(&mut self, mut records: &[u8]) -> Result<(), StorageError> {
        let mut fresh = false;
        loop {
            let (segment, base) = self.active();
            let room = (segment.view.map.len() - self.tail as usize) - MARKER_LEN;
            let (mut taken, mut index, mut term) = (0, self.last + 1, self.last_term);
            while taken < records.len() {
                let record = match record::peek(&records[taken..]) {
                    Ok(record) => record,
                    Err(e) => panic!("the batch holds no record {index} at byte {taken}: {e}"),
                };
                let header = &record.header;
                assert!(
                    header.index == index,
                    "record {} in the place of {index}",
                    header.index
                );
                assert!(
                    header.term >= term,
                    "record {index} of term {} after {term}",
                    header.term
                );
                let most = self.options.max_record_bytes;
                let len = record.payload.len();
                assert!(
                    len <= most,
                    "record {index} has {len} bytes, at most {most} are allowed"
                );
                if taken + record.bytes.len() > room {
                    break;
                }
                segment
                    .view
                    .index
                    .note(index - base, self.tail + taken as u64);
                taken += record.bytes.len();
                (index, term) = (index + 1, header.term);
            }
            let full = taken < records.len();
            if taken > 0 || full {
                let kind = if full {
                    MarkerKind::Seal
                } else {
                    MarkerKind::Tail
                };
                self.write_tail(fresh, &records[..taken], index - 1, kind)?;
                (self.last, self.last_term) = (index - 1, term);
                self.tail += taken as u64;
                self.published.set_written(self.last);
            }
            if !full {
                return Ok(());
            }
            records = &records[taken..];
            self.roll()?;
            fresh = true;
        }
    }

    /// One write: the segment's first block when it is fresh, records, marker.
    pub(crate) fn write_tail(
        &mut self,
        fresh: bool,
        records: &[u8],
        end_index: u64,
        kind: MarkerKind,
    ) -> Result<(), StorageError> {
        let marker = self.marker(kind, end_index).encode();
        let (head, at) = if fresh {
            (&*self.header_block, 0)
        } else {
            (&[][..], self.tail)
        };
        let parts = &mut [
            IoSlice::new(head),
            IoSlice::new(records),
            IoSlice::new(&marker),
        ];
        let segment = self.segments.back_mut().expect("a log has a segment");
        segment.dirty = true;
        let file = segment.file.file();
        file.write_parts_at(at, parts)
            .doing_at("write", file.path(), at)?;
        self.marked = self.proven();
        Ok(())
    }

    /// Goes on in the next segment. Its header is written with its first records.
    fn roll(&mut self) -> Result<(), StorageError> {
        let base = self.last + 1;
        let segment = self.preallocator.take()?.into_segment(base, self.last_term);
        self.enter(segment);
        self.close_behind()?;
        if let Some(at) = self.segments.len().checked_sub(WARM_SEGMENTS + 1) {
            self.cool(at);
        }
        self.publish_list();
        Ok(())
    }

    /// Closes the files of the segments to which nothing is written any more. As many as are still to be flushed stay
    /// open, up to a limit: what is beyond that is flushed here and now, the oldest first.
    fn close_behind(&mut self) -> Result<(), StorageError> {
        let count = self.segments.len();
        let closed = self.segments.iter().rposition(|s| !s.file.is_open());
        for at in closed.map_or(0, |at| at + 1)..count - 1 {
            let segment = &mut self.segments[at];
            if segment.dirty {
                if count - at <= MOST_OPEN {
                    break;
                }
                if self.options.sync {
                    let file = segment.file.file();
                    file.sync().doing("flush", file.path())?;
                }
                segment.dirty = false;
            }
            let name = segment_name(segment.view.seq);
            segment.file.close(&self.dir, name);
        }
        Ok(())
    }

    /// What is written next begins this segment, with its header.
    pub(crate) fn enter(&mut self, segment: Segment<D::File>) {
        let header = SegmentHeader {
            state: State::InUse,
            cluster_id: self.identity.cluster_id,
            group_id: self.identity.group_id,
            seq: segment.view.seq,
            base: segment.view.base,
            prev_term: segment.view.prev_term,
            len: segment.view.map.len() as u64,
        };
        self.header_block[..crate::log::segment::SEGMENT_HEADER_LEN]
            .copy_from_slice(&header.encode());
        self.segments.push_back(segment);
        self.tail = RECORDS_AT;
    }

    /// What is no longer near the end is read seldom: it shall cost no memory. Readers that come find it as before.
    fn cool(&mut self, at: usize) {
        let segment = &mut self.segments[at];
        segment.view = Arc::new(segment.view.cold());
        self.preallocator.unload(segment.view.map.clone());
    }

    /// Keeps term and vote. They are durable after the next flush.
    ///
    /// # Errors
    /// The log failed before.
    pub fn save_vote(&mut self, vote: Vote) -> Result<(), StorageError> {
        self.check()?;
        self.meta.set(MetaState {
            vote,
            ..self.meta.state()
        });
        Ok(())
    }

    /// Lets go of whole segments whose records all are below `index` and durable; returns the new
    /// first index. The segment in use stays. Segments that nobody reads are used again.
    ///
    /// # Errors
    /// The log failed before. A failure here shows when the next segment is needed.
    pub fn purge_before(&mut self, index: u64) -> Result<u64, StorageError> {
        self.check()?;
        // The first record of the segment that becomes the front must be durable, for with it is the
        // header that says "in use". Otherwise a power failure could leave no segment at all.
        let bound = index.min(self.durable);
        let gone = self
            .segments
            .iter()
            .skip(1)
            .take_while(|s| s.view.base <= bound)
            .count();
        if gone > 0 {
            let mut gone: VecDeque<_> = self.segments.drain(..gone).collect();
            self.publish_list();
            while let Some(segment) = gone.pop_front() {
                if let Err(segment) = self.preallocator.retire(segment) {
                    // Too many wait already: this one and the rest stay, for the next purge.
                    gone.push_front(segment);
                    gone.append(&mut self.segments);
                    self.segments = gone;
                    self.publish_list();
                    break;
                }
            }
        }
        Ok(self.first())
    }

    /// Index of the first record in the log, or of the next one when it is empty.
    pub fn first(&self) -> u64 {
        self.segments[0].view.base
    }

    /// Index of the last record: written and readable, not necessarily durable.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Index of the last record that certainly is on disk. With `sync: false`: that was "flushed".
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Term and vote as last saved, durable or not.
    pub fn vote(&self) -> Vote {
        self.meta.state().vote
    }

    /// Term and vote as they certainly are on disk.
    pub fn durable_vote(&self) -> Vote {
        self.meta.durable_state().vote
    }

    /// A reader for another thread.
    pub fn reader(&self) -> Reader {
        Reader::new(self.published.clone())
    }

    /// Tells any thread how long the log is.
    pub fn extent(&self) -> Extent {
        Extent::new(self.published.clone())
    }

    /// Whose log it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The directories that the peers were known to have when the log was opened. One clone is to keep it from then on.
    pub fn known_peers(&self) -> KnownPeers<D> {
        self.known_peers.clone()
    }

    /// The snapshots beside the log. The directory stays locked while somebody has this.
    pub fn snapshots(&self) -> Snapshots<D> {
        self.snapshots.clone()
    }

    /// Flushes begun since the log was opened.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// How long they took.
    pub fn flush_stats(&self) -> &FlushStats {
        &self.stats
    }

    /// Which way flushes go: `io_uring`, `thread`, `memory`, or `none` with `sync: false`.
    pub fn flush_backend(&self) -> &'static str {
        self.flusher.way()
    }

    /// Readable when a flush is over, for epoll or poll; [`Log::poll_flush`] resets it. `None` where
    /// [`Options::on_complete`] is called instead. The descriptor lives as long as the log.
    pub fn completion_fd(&self) -> Option<RawFd> {
        self.flusher.completion_fd()
    }

    /// Why the next segment could not be prepared (a full disk, mostly), while the log still has room
    /// in the present one. It is tried once more when it is needed; only then it is an error.
    pub fn spare_trouble(&mut self) -> Option<&StorageError> {
        self.preallocator.trouble()
    }

    /// The error that stopped the log, if one did.
    pub fn failed(&self) -> Option<&StorageError> {
        self.poison.as_ref()
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    /// An error stays for good.
    pub(crate) fn keep<T>(&mut self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(e) = &result {
            self.poison = Some(e.clone());
        }
        result
    }

    fn active(&self) -> (&Segment<D::File>, u64) {
        let segment = self.segments.back().expect("a log has a segment");
        (segment, segment.view.base)
    }

    /// What a marker may say was flushed: with `sync: false` nothing ever was.
    pub(crate) fn proven(&self) -> u64 {
        if self.options.sync { self.durable } else { 0 }
    }

    pub(crate) fn marker(&self, kind: MarkerKind, end_index: u64) -> TailMarker {
        let (flushed_index, incarnation) = (self.proven(), self.identity.incarnation);
        TailMarker {
            kind,
            end_index,
            flushed_index,
            seq: self.active().0.view.seq,
            incarnation,
        }
    }

    pub(crate) fn publish_list(&self) {
        self.published
            .set_list(self.segments.iter().map(|s| s.view.clone()).collect());
    }
}

impl<D: Dir> std::fmt::Debug for Log<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.dir.path(""))
            .field("first", &self.first())
            .field("durable", &self.durable)
            .field("last", &self.last)
            .field("group_flush", &self.group_flush)
            .field("failed", &self.poison)
            .finish_non_exhaustive()
    }
}
