//! Reading the log again in small steps, to find what has gone bad on the disk before somebody needs it.
//!
//! Records are read from the file and not from the map: a sector that the disk does not give back is an answer then, and no
//! signal. Before a closed segment is read, the system is asked to forget what it keeps of it in memory, so that it is
//! the disk that is read. Memory is bounded by a buffer, whatever a damaged length says.
//!
//! The danger is a false alarm, for the log goes on meanwhile. A segment that is purged keeps its bytes while it is held
//! here (`View::is_read`): only its header changes. One that was replaced or removed is no longer in the list. Truncated
//! records are written over, and every truncation raises a count before it does so. Hence what does not match is bad only
//! if, afterwards, the list still has the segment, the record is still published and no truncation began since before it was read.

pub mod record_repair;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::damage::Damage;
use crate::error::StorageError;
use crate::files::identity::Identity;
use crate::log::Log;
use crate::log::reader::Reader;
use crate::log::segment::{SEGMENT_HEADER_LEN, SegmentHeader, State, View, segment_name};
use crate::medium::descriptor::is_exhausted;
use crate::medium::is_medium_error;
use crate::medium::{Dir, File};
use crate::record::{self, HEADER_LEN, RecordError};
use crate::recovery::segment_reader::SegmentReader;
use crate::scrub::record_repair::{Place, RecordRepair};

/// Bytes read at once, at most.
const BUFFER: usize = 256 << 10;

/// Goes through a log again and again. For a thread of its own; it takes nothing that the log waits for.
#[derive(Debug)]
pub struct Scrub<D: Dir> {
    dir: D,
    reader: Reader,
    /// The next record to look at; 0 before a pass.
    next: u64,
    open: Option<Open<D::File>>,
    buffer: Vec<u8>,
    /// What the last step found bad.
    found: Option<Place>,
    identity: Identity,
    sync: bool,
}

/// The segment that is being read. Holding its view keeps the file from being used again.
#[derive(Debug)]
struct Open<F> {
    view: Arc<View>,
    file: F,
    /// Truncations, when the records before this index were read, and where they end.
    seen: Option<(u64, u64, u64)>,
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// In this pass the log was looked at up to here.
    pub upto: u64,
    /// Bytes read in this step.
    pub bytes: u64,
    /// A place that is bad. What follows in the same segment is not looked at in this pass, unless it is mended
    /// ([`Scrub::mend`]) and read again ([`Scrub::again`]).
    ///
    /// The node must not vouch for the record before that. A start with [`crate::Options::heal`] heals it too: it cuts the
    /// log off there and has the rest sent again.
    pub bad: Option<Damage>,
    /// A segment of the log has lost its name: its records are lost with the process.
    pub missing: Option<PathBuf>,
    /// The pass is over; the next step begins another one at the front.
    pub finished: bool,
}

impl<D: Dir> Log<D> {
    /// Something that reads this log again to find what has gone bad.
    pub fn scrub(&self) -> Scrub<D> {
        Scrub {
            dir: self.dir.clone(),
            reader: self.reader(),
            next: 0,
            open: None,
            buffer: Vec::new(),
            found: None,
            identity: self.identity,
            sync: self.options.sync,
        }
    }
}

/// Why a record is not what it should be.
enum Wrong {
    /// The file's bytes.
    Bytes { offset: u64, detail: String },
    /// The header of the segment is bad.
    Header { offset: u64, detail: String },
    /// The segment's file has no name any more.
    Missing,
    /// It is not where it was: the log has changed.
    Moved,
    /// It cannot be looked at for the moment: there is no descriptor for it.
    Later,
}

impl<D: Dir> Scrub<D> {
    /// Reads on, about `max_bytes` far, and at least one record.
    pub fn step(&mut self, max_bytes: u64) -> Progress {
        let mut progress = Progress::default();
        self.found = None;
        let Some(first) = self.reader.first() else {
            return progress;
        };
        self.next = self.next.max(first);
        while progress.bytes < max_bytes.max(1) {
            // In this order: what is published now and not truncated until it was read is there.
            let truncations = self.reader.truncations();
            let written = self.reader.written();
            if self.next > written {
                progress.finished = true;
                break;
            }
            let Some((view, behind)) = self.reader.segment_of(self.next) else {
                break; // It was purged, or the log replaced: the next step begins at the new front.
            };
            let limit = behind
                .as_ref()
                .map_or(written, |behind| written.min(behind.base - 1));
            if self.next > limit {
                break;
            }
            let most = max_bytes.saturating_sub(progress.bytes);
            let found = self.enter(&view, behind.is_some());
            match found.and_then(|()| self.read(limit, most, truncations)) {
                Ok((next, bytes)) => {
                    self.next = next;
                    progress.bytes += bytes;
                }
                Err(Wrong::Moved | Wrong::Later) => break,
                Err(Wrong::Missing) => {
                    if self.is_bad(&view, truncations) {
                        progress.missing = Some(self.dir.path(&segment_name(view.seq)));
                    }
                    break;
                }
                Err(wrong @ (Wrong::Bytes { .. } | Wrong::Header { .. })) => {
                    let is_header = matches!(wrong, Wrong::Header { .. });
                    let (Wrong::Bytes { offset, detail } | Wrong::Header { offset, detail }) =
                        wrong
                    else {
                        unreachable!("one of the two")
                    };
                    if self.is_bad(&view, truncations) {
                        self.found = Some(Place {
                            view: view.clone(),
                            offset: (!is_header).then_some(offset),
                            index: self.next,
                            closed_by: behind.map(|behind| behind.base - 1),
                        });
                        progress.bad = Some(Damage {
                            file: segment_name(view.seq),
                            offset,
                            index: Some(self.next),
                            detail,
                        });
                        self.next = limit + 1;
                    }
                    self.open = None;
                    break;
                }
            }
        }
        progress.upto = self.next - 1;
        if progress.finished {
            self.next = 0;
            self.open = None;
        }
        progress
    }

    /// Whether what did not match was to be relied on.
    fn is_bad(&self, view: &Arc<View>, truncations: u64) -> bool {
        let listed = self.reader.segment_of(self.next);
        let listed = listed.is_some_and(|(listed, _)| listed.seq == view.seq);
        let published = self.reader.written() >= self.next;
        listed && published && self.reader.truncations() == truncations
    }

    /// Opens the segment's file, unless it is open.
    fn enter(&mut self, view: &Arc<View>, closed: bool) -> Result<(), Wrong> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.view.seq == view.seq)
        {
            return Ok(());
        }
        let at = |offset| {
            move |error: io::Error| Wrong::Header {
                offset,
                detail: format!("it cannot be read: {error}"),
            }
        };
        let name = segment_name(view.seq);
        let file = match self.dir.open(&name) {
            Err(error) if is_exhausted(&error) => return Err(Wrong::Later),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Wrong::Missing),
            opened => opened.map_err(at(0))?,
        };
        if closed {
            view.map.unload();
            file.drop_cache();
        }
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        file.read_at(0, &mut bytes).map_err(at(0))?;
        let len = file.length().map_err(at(0))?;
        let header = SegmentHeader::decode(&bytes, file.path(), len);
        match header {
            Ok(header)
                if (header.state, header.seq, header.base)
                    == (State::InUse, view.seq, view.base) => {}
            Ok(header) => {
                let detail = format!(
                    "the header is not that of a segment that begins with record {}: {header:?}",
                    view.base
                );
                return Err(Wrong::Header { offset: 0, detail });
            }
            Err(StorageError::Corrupt { offset, detail, .. }) => {
                return Err(Wrong::Header { offset, detail });
            }
            Err(error) => {
                let detail = error.to_string();
                return Err(Wrong::Header { offset: 12, detail });
            }
        }
        self.open = Some(Open {
            view: view.clone(),
            file,
            seen: None,
        });
        Ok(())
    }

    /// Verifies records from `next` to at most `limit`, as many as one buffer holds, and says where it stopped and how
    /// many bytes that took.
    fn read(&mut self, limit: u64, max_bytes: u64, truncations: u64) -> Result<(u64, u64), Wrong> {
        let start = self.seek(truncations)?;
        let read = self.read_from(start, limit, max_bytes);
        if let (Some(open), Ok((next, bytes))) = (&mut self.open, &read) {
            open.seen = Some((truncations, *next, start + bytes));
        }
        read
    }

    /// Where the next record begins. That is known from the one before, or follows from the lengths of some of those
    /// before it, which are read from the file too.
    fn seek(&mut self, truncations: u64) -> Result<u64, Wrong> {
        let Some(Open { view, file, seen }) = &self.open else {
            return Err(Wrong::Moved);
        };
        let next = self.next;
        if let Some((_, _, end)) = seen.filter(|seen| (seen.0, seen.1) == (truncations, next)) {
            return Ok(end);
        }
        let (mut index, mut offset) = view.floor(next, u64::MAX);
        let len = view.map.len() as u64;
        while index < next {
            let mut head = [0; 16];
            let read = match offset + HEADER_LEN as u64 <= len {
                true => file.read_at(offset, &mut head),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
            let detail = match read {
                Ok(()) if record::u64_at(&head, 8) == index => {
                    offset += record::encoded_len(record::u32_at(&head, 4) as usize) as u64;
                    index += 1;
                    continue;
                }
                Ok(()) => format!("record {} is in its place", record::u64_at(&head, 8)),
                Err(error) => format!("it cannot be read: {error}"),
            };
            self.next = index;
            return Err(Wrong::Bytes { offset, detail });
        }
        Ok(offset)
    }

    /// The same, from `start` on.
    fn read_from(&mut self, start: u64, limit: u64, max_bytes: u64) -> Result<(u64, u64), Wrong> {
        let Some(Open { view, file, .. }) = &self.open else {
            return Err(Wrong::Moved);
        };
        let len = view.map.len() as u64;
        let want = (max_bytes.clamp(4096, BUFFER as u64)).min(len.saturating_sub(start)) as usize;
        self.buffer.resize(want, 0);
        if let Err(error) = file.read_at(start, &mut self.buffer) {
            if !is_medium_error(&error) {
                let detail = format!("it cannot be read: {error}");
                return self.wrong(self.next, start, detail);
            }
            return self.read_around(start, limit, want as u64);
        }
        let (mut next, mut at) = (self.next, 0);
        while next <= limit {
            let offset = start + at as u64;
            match record::decode(&self.buffer[at..]) {
                Ok((record, taken)) if record.header.index == next => {
                    (next, at) = (next + 1, at + taken);
                }
                Ok((record, _)) => {
                    let detail = format!("record {} is in its place", record.header.index);
                    return self.wrong(next, offset, detail);
                }
                // The buffer ends within it, and not the file.
                Err(RecordError::Short { need, .. }) if offset + need as u64 <= len => {
                    if next == self.next {
                        return match self.read_long(offset, need) {
                            Ok(()) => Ok((next + 1, need as u64)),
                            Err(detail) => self.wrong(next, offset, detail),
                        };
                    }
                    break;
                }
                Err(error) => return self.wrong(next, offset, error.to_string()),
            }
        }
        Ok((next, at as u64))
    }

    /// The same, where one of the next `want` bytes cannot be read: which record that is about is to be told.
    fn read_around(&mut self, start: u64, limit: u64, want: u64) -> Result<(u64, u64), Wrong> {
        let Some(Open { view, file, .. }) = &self.open else {
            return Err(Wrong::Moved);
        };
        let mut source = SegmentReader::new(file.clone(), view.map.len() as u64);
        let (mut next, mut offset) = (self.next, start);
        while next <= limit && offset < start + want {
            let failed = |error: StorageError| Wrong::Bytes {
                offset,
                detail: error.to_string(),
            };
            let detail = match source.record(offset).map_err(failed)? {
                Ok((record, len)) if record.header.index == next => {
                    (next, offset) = (next + 1, offset + len as u64);
                    continue;
                }
                Ok((record, _)) => format!("record {} is in its place", record.header.index),
                Err(unsound) => unsound.to_string(),
            };
            return self.wrong(next, offset, detail);
        }
        Ok((next, offset - start))
    }

    /// Verifies a record that is longer than the buffer, piece by piece.
    fn read_long(&mut self, offset: u64, len: usize) -> Result<(), String> {
        let Some(Open { file, .. }) = &self.open else {
            return Err("no segment is open".into());
        };
        let unread = |error: io::Error| format!("it cannot be read: {error}");
        let mut head = [0; HEADER_LEN];
        file.read_at(offset, &mut head).map_err(unread)?;
        let (mut crc, mut at) = (0, 4);
        while at < len {
            let n = BUFFER.min(len - at);
            self.buffer.resize(n, 0);
            file.read_at(offset + at as u64, &mut self.buffer)
                .map_err(unread)?;
            crc = crc32c::crc32c_append(crc, &self.buffer);
            at += n;
        }
        let (stored, index) = (record::u32_at(&head, 0), record::u64_at(&head, 8));
        if stored != crc {
            let error = RecordError::Checksum {
                stored,
                computed: crc,
            };
            return Err(error.to_string());
        }
        if index != self.next {
            return Err(format!("record {index} is in its place"));
        }
        Ok(())
    }

    /// Record `index` is wrong; those before it, in the same buffer, were sound.
    fn wrong(&mut self, index: u64, offset: u64, detail: String) -> Result<(u64, u64), Wrong> {
        self.next = index;
        Err(Wrong::Bytes { offset, detail })
    }

    /// A hand for what the last step found bad, if that can be put back in its place: a record up to `applied`, which is
    /// the same on every node that has it, or the header of a segment behind which the log goes on.
    pub fn mend(&mut self, applied: u64) -> Option<RecordRepair<D>> {
        let place = self.found.take()?;
        let file = self.dir.open(&segment_name(place.view.seq)).ok()?;
        let (identity, sync) = (self.identity, self.sync);
        RecordRepair::new(place, file, self.reader.clone(), applied, identity, sync)
    }

    /// Reads on from this record, in this pass.
    pub fn again(&mut self, index: u64) {
        self.next = index;
        self.open = None;
    }
}
