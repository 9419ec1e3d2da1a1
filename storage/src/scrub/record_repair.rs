//! Putting a record that has gone bad back in its place, with the bytes that a peer has of it; and giving such bytes.
//!
//! What is applied was committed, and a committed record is the same on every node that has it, to the last byte (log
//! matching, Raft paper §5.3; and nodes keep the leader's encoding verbatim). So the bytes of any peer will do, and they
//! carry their own proof: checksum and index. A record that is not applied may still be another one here than there, and is
//! never touched.
//!
//! ```text
//!   … sound ──┼ ✗ bad ── ✗ bad ──┼ sound: where a record of the index behind it, or the segment's seal, is found …
//!             └─ written from here to there: in one write, with what is sound on both sides as it is
//! ```
//!
//! Invariants: only bytes of the bad run are written, and only with what belongs there, so a stop in between leaves it bad
//! or good; the run ends where the file is sound, so a record of another length is never written; what is called mended was
//! flushed and read back from the disk. The segment's view is held all the while, so the file is not used again for
//! something else. A purge lets it be a spare meanwhile: its header is written under the segment's lease only.

use std::sync::Arc;

use crate::error::{Doing, StorageError};
use crate::files::identity::Identity;
use crate::log::Log;
use crate::log::reader::Reader;
use crate::log::segment::{SegmentHeader, State, View, segment_name};
use crate::log::tail_marker::{MARKER_LEN, MarkerKind, TailMarker};
use crate::medium::PAGE;
use crate::medium::{Dir, File};
use crate::record;
use crate::recovery::segment_reader::{SegmentReader, patch};

/// Bytes of a run that may be bad, at the most. A longer one is better had from a snapshot, or with a start.
const MOST_BYTES: usize = 4 << 20;

/// What is asked for behind the first answer.
const MORE_BYTES: u64 = 64 << 10;

/// Where something is bad.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) view: Arc<View>,
    /// Of the record; `None`: it is the segment's header.
    pub(crate) offset: Option<u64>,
    pub(crate) index: u64,
    /// The last index of the segment, when the log goes on in the next.
    pub(crate) closed_by: Option<u64>,
}

/// One bad place on its way to be mended.
#[derive(Debug)]
pub struct RecordRepair<D: Dir> {
    place: Place,
    file: D::File,
    reader: Reader,
    /// The last index that may be written.
    last: u64,
    /// It is applied what stands behind the segment: no truncation comes near its end.
    end_is_fixed: bool,
    identity: Identity,
    sync: bool,
    /// Records from `place.index` on, verified.
    got: Vec<u8>,
    /// The index behind them.
    next: u64,
}

/// Records that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The first of them.
    pub first: u64,
    /// None behind this one is of use.
    pub last: u64,
    /// About how many bytes; one record at least, however long.
    pub bytes: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairedRecords {
    /// So many records are in their places, durably, and were read back; none: it was the header of a segment.
    Done(u64),
    /// What follows is bad too: [`RecordRepair::wants`] says what is needed beside.
    More,
}

/// Why it was not mended.
#[derive(Debug)]
pub enum RepairError {
    /// These bytes are not what was asked for; somebody else may have the right ones.
    Wrong(String),
    /// They are sound, and do not fit where they belong, or too many are bad.
    Unfit(String),
    /// It is no longer a part of the log: nothing is to be mended.
    Reclaim,
    /// The disk does not take them.
    Storage(StorageError),
}

impl std::fmt::Display for RepairError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RepairError::Wrong(why) | RepairError::Unfit(why) => f.write_str(why),
            RepairError::Reclaim => f.write_str("the log does not hold it any more"),
            RepairError::Storage(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RepairError {}

impl From<StorageError> for RepairError {
    fn from(error: StorageError) -> Self {
        RepairError::Storage(error)
    }
}

impl<D: Dir> RecordRepair<D> {
    pub(crate) fn new(
        place: Place,
        file: D::File,
        reader: Reader,
        applied: u64,
        identity: Identity,
        sync: bool,
    ) -> Option<RecordRepair<D>> {
        let closed_by = place.closed_by.unwrap_or(u64::MAX);
        let can_be = match place.offset {
            Some(_) => place.index <= applied,
            None => place.closed_by.is_some(),
        };
        can_be.then(|| RecordRepair {
            last: applied.min(closed_by),
            end_is_fixed: applied > closed_by,
            next: place.index,
            got: Vec::new(),
            place,
            file,
            reader,
            identity,
            sync,
        })
    }

    /// The file, relative to the directory.
    pub fn file(&self) -> String {
        segment_name(self.place.view.seq)
    }

    /// The first record that is bad; of a bad header the first one that was to be read behind it.
    pub fn index(&self) -> u64 {
        self.place.index
    }

    /// The records that are needed next; `None` when nothing is, as with a header: [`RecordRepair::take`] with no bytes does it.
    pub fn wants(&self) -> Option<Fetch> {
        self.place.offset.map(|offset| Fetch {
            first: self.next,
            last: self.last,
            // What cannot be read is a page, and the records in it; the last one may end behind it.
            bytes: match self.got.is_empty() {
                true => (offset + 1).next_multiple_of(PAGE) - offset + PAGE,
                false => MORE_BYTES,
            },
        })
    }

    /// Takes records from [`Fetch::first`] on, as a peer has sent them, and mends when they are enough. Waits for the disk.
    ///
    /// # Errors
    /// [`RepairError`]; the file is as it was, unless the disk has failed in the middle.
    pub fn take(&mut self, records: &[u8]) -> Result<RepairedRecords, RepairError> {
        let Some(offset) = self.place.offset else {
            return self.mend_header().map(|()| RepairedRecords::Done(0));
        };
        self.verify(records)?;
        self.got.extend_from_slice(records);
        let Some((count, len, seal)) = self.run(offset)? else {
            return match self.got.len() > MOST_BYTES || self.next > self.last {
                true => Err(RepairError::Unfit(format!(
                    "records {}..{} do not fit between what is sound in {}",
                    self.place.index,
                    self.next,
                    self.file()
                ))),
                false => Ok(RepairedRecords::More),
            };
        };
        if !self.is_in_log() {
            return Err(RepairError::Reclaim);
        }
        self.got.truncate(len);
        let bytes = &self.got;
        match seal {
            None => {
                self.file
                    .write_at(offset, bytes)
                    .doing_at("write", self.file.path(), offset)?
            }
            // Nobody else writes behind the records of this segment.
            Some(seal) => {
                let whole = [bytes, &seal.encode()[..]].concat();
                patch(&self.file, offset, &whole)?;
            }
        }
        self.read_back(offset, bytes)?;
        Ok(RepairedRecords::Done(count))
    }

    fn verify(&self, records: &[u8]) -> Result<(), RepairError> {
        let wrong = |why| Err(RepairError::Wrong(why));
        let mut next = self.next;
        for found in record::Records::new(records) {
            match found {
                Ok(record) if record.header.index != next => {
                    return wrong(format!("record {} came for {next}", record.header.index));
                }
                Ok(_) if next > self.last => return wrong(format!("nobody asked for {next}")),
                Ok(_) => next += 1,
                Err(error) => return wrong(format!("record {next} came damaged: {error}")),
            }
        }
        match next == self.next {
            true => wrong(format!("no record came for {next}")),
            false => Ok(()),
        }
    }

    /// How many of the records that are here have to be written, how long they are, and the seal behind them if that is
    /// bad too. `None`: what follows them is not sound either.
    fn run(
        &mut self,
        offset: u64,
    ) -> Result<Option<(u64, usize, Option<TailMarker>)>, RepairError> {
        let (view, incarnation) = (&self.place.view, self.identity.incarnation);
        let mut source = SegmentReader::new(self.file.clone(), view.map.len() as u64);
        let (mut index, mut len, mut count) = (self.place.index, 0, 0);
        let mut found = None;
        for record in record::walk(&self.got) {
            (len, count) = (len + record.bytes.len(), count + 1);
            let (end, term) = (offset + len as u64, record.header.term);
            let marker = source.marker(end, view.seq, incarnation)?;
            let marker = marker.filter(|marker| marker.end_index == index);
            if self.place.closed_by == Some(index) {
                let is_sealed = marker.is_some_and(|marker| marker.kind == MarkerKind::Seal);
                let has_room = end + MARKER_LEN as u64 <= source.len();
                if is_sealed {
                    found = Some((count, len, None));
                } else if has_room && self.end_is_fixed {
                    let seal = TailMarker {
                        kind: MarkerKind::Seal,
                        end_index: index,
                        // It says nothing about flushes: what is behind it does.
                        flushed_index: 0,
                        seq: view.seq,
                        incarnation,
                    };
                    found = Some((count, len, Some(seal)));
                }
            } else if let Ok((behind, _)) = source.record(end)? {
                let goes_on = behind.header.index == index + 1 && behind.header.term >= term;
                found = goes_on.then_some((count, len, None));
            } else if marker.is_some() {
                // The log ends here, for the moment.
                found = Some((count, len, None));
            }
            index += 1;
            if found.is_some() {
                break;
            }
        }
        self.next = self.place.index + record::walk(&self.got).count() as u64;
        Ok(found)
    }

    fn mend_header(&self) -> Result<(), RepairError> {
        let view = &self.place.view;
        let header = SegmentHeader {
            state: State::InUse,
            cluster_id: self.identity.cluster_id,
            group_id: self.identity.group_id,
            seq: view.seq,
            base: view.base,
            prev_term: view.prev_term,
            len: view.map.len() as u64,
        };
        let bytes = header.encode();
        let mended = view.lease.while_in_use(|| {
            if !self.is_in_log() {
                return Err(RepairError::Reclaim);
            }
            patch(&self.file, 0, &bytes)?;
            self.read_back(0, &bytes)
        });
        mended.unwrap_or(Err(RepairError::Reclaim))
    }

    fn is_in_log(&self) -> bool {
        let listed = self.reader.segment_of(self.place.index);
        listed.is_some_and(|(listed, _)| listed.seq == self.place.view.seq)
    }

    /// Flushes what was written, and looks at what the disk has.
    fn read_back(&self, offset: u64, bytes: &[u8]) -> Result<(), RepairError> {
        let (file, path) = (&self.file, self.file.path());
        if self.sync {
            file.sync().doing("flush", path)?;
        }
        self.place.view.map.unload();
        file.drop_cache();
        let mut found = vec![0; bytes.len()];
        file.read_at(offset, &mut found)
            .doing_at("read", path, offset)?;
        match found.iter().zip(bytes).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => {
                let detail = "it was written anew, and the disk gives back something else";
                Err(StorageError::corrupt(path, offset + at as u64, detail).into())
            }
        }
    }
}

/// Gives records to a peer that has lost them.
#[derive(Debug)]
pub struct RecordSource<D: Dir> {
    dir: D,
    reader: Reader,
}

/// Why no record is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFetched {
    /// The log does not go back so far.
    Purged,
    /// It is not here yet, or not committed.
    Ahead,
    /// It is bad here too, or cannot be read.
    Bad,
}

impl<D: Dir> Log<D> {
    /// Something that gives records of this log to a peer that has lost them.
    pub fn record_source(&self) -> RecordSource<D> {
        RecordSource {
            dir: self.dir.clone(),
            reader: self.reader(),
        }
    }
}

impl<D: Dir> RecordSource<D> {
    /// Adds the records from `first` to at most `last` to `out`: as many as fit into `max_bytes` and lie in one segment, but
    /// at least one. Each was read from the file and verified. Returns the last one.
    ///
    /// # Errors
    /// Why there is none. What else the system refuses counts as a record that is bad here.
    pub fn give(
        &self,
        first: u64,
        last: u64,
        max_bytes: u64,
        out: &mut Vec<u8>,
    ) -> Result<u64, NotFetched> {
        let last = last.min(self.reader.written());
        if first > last {
            return Err(NotFetched::Ahead);
        }
        // The view is held as long as the file is read.
        let (view, behind) = self.reader.segment_of(first).ok_or(NotFetched::Purged)?;
        let last = behind.map_or(last, |behind| last.min(behind.base - 1));
        let file = self.dir.open(&segment_name(view.seq));
        let file = file.map_err(|_| NotFetched::Bad)?;
        let mut source = SegmentReader::new(file, view.map.len() as u64);
        let (mut index, mut offset) = view.floor(first, u64::MAX);
        let begin = out.len();
        while index <= last {
            match source.record(offset) {
                Ok(Ok((record, len))) if record.header.index == index => {
                    let given = (out.len() - begin) as u64;
                    if index > first && given + len as u64 > max_bytes {
                        break;
                    }
                    if index >= first {
                        out.extend_from_slice(record.bytes);
                    }
                    (index, offset) = (index + 1, offset + len as u64);
                }
                _ => break,
            }
        }
        match index > first {
            true => Ok(index - 1),
            false => Err(NotFetched::Bad),
        }
    }
}
