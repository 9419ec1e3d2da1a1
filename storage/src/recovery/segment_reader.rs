//! A segment file read piece by piece, so that a place that the disk does not give back is an answer.
//!
//! Through a map such a place is a signal that ends the process. So whoever looks at what a stop, or time, has left of a
//! file reads it: in pieces of bounded size, one pass from the front. A piece that cannot be read as a whole is read page by
//! page; a page that cannot be read is a [`Hole`], and its bytes count as zeros, which are neither record nor marker.
//!
//! The system writes a part of a page only when it knows the rest. So a hole is written over as whole pages
//! ([`patch`]); then the disk has a new place for it.

use std::ops::Range;

use crate::error::{Doing, StorageError};
use crate::log::tail_marker::{Furthest, MARKER_LEN, TailMarker, is_zero};
use crate::medium::{File, PAGE, is_medium_error};
use crate::record::{self, HEADER_LEN, Record, RecordError};

/// Bytes read at once, unless a record is longer.
const PIECE: usize = 256 << 10;

/// A page that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    /// Its bytes in the file.
    pub(crate) range: Range<u64>,
    /// What the system said.
    pub(crate) detail: String,
}

/// Why there is no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsound {
    /// The disk does not give it back.
    Unreadable(Hole),
    /// It does, and it is none.
    Bytes(RecordError),
}

impl std::fmt::Display for Unsound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unsound::Unreadable(hole) => {
                let Range { start, end } = hole.range;
                write!(f, "bytes {start}..{end} cannot be read: {}", hole.detail)
            }
            Unsound::Bytes(error) => error.fmt(f),
        }
    }
}

/// A file that is read from front to back, and now and then again.
#[derive(Debug)]
pub(crate) struct SegmentReader<F> {
    file: F,
    len: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins: at a page.
    start: u64,
    /// In the buffer.
    holes: Vec<Hole>,
}

impl<F: File> SegmentReader<F> {
    /// The first `len` bytes of `file`.
    pub(crate) fn new(file: F, len: u64) -> SegmentReader<F> {
        SegmentReader {
            file,
            len,
            buffer: Vec::new(),
            start: 0,
            holes: Vec::new(),
        }
    }

    /// Bytes in the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What is at hand from `offset` on: at least `want` bytes, or all up to the end of the file.
    pub(crate) fn bytes(&mut self, offset: u64, want: usize) -> Result<&[u8], StorageError> {
        self.fill(offset, want)?;
        Ok(self.at_hand(offset))
    }

    fn at_hand(&self, offset: u64) -> &[u8] {
        let at = offset.saturating_sub(self.start) as usize;
        self.buffer.get(at..).unwrap_or(&[])
    }

    /// The first hole in these bytes, which are at hand.
    pub(crate) fn hole(&self, range: Range<u64>) -> Option<&Hole> {
        let meets = |hole: &&Hole| hole.range.start < range.end && range.start < hole.range.end;
        self.holes.iter().find(meets)
    }

    fn fill(&mut self, offset: u64, want: usize) -> Result<(), StorageError> {
        let end = offset.saturating_add(want as u64).min(self.len);
        let here = self.start..self.start + self.buffer.len() as u64;
        if here.start <= offset && end <= here.end {
            return Ok(());
        }
        self.start = offset.min(self.len) / PAGE * PAGE;
        let least = end.saturating_sub(self.start);
        let size = least.max(PIECE as u64).min(self.len - self.start);
        self.buffer.clear();
        self.buffer.resize(size as usize, 0);
        self.holes.clear();
        match self.file.read_at(self.start, &mut self.buffer) {
            Ok(()) => Ok(()),
            Err(error) if is_medium_error(&error) => self.fill_by_pages(),
            Err(error) => Err(error).doing_at("read", self.file.path(), self.start),
        }
    }

    fn fill_by_pages(&mut self) -> Result<(), StorageError> {
        for (page, at) in self.buffer.chunks_mut(PAGE as usize).zip(0..) {
            let offset = self.start + at * PAGE;
            match self.file.read_at(offset, page) {
                Ok(()) => {}
                Err(error) if is_medium_error(&error) => {
                    page.fill(0);
                    let range = offset..offset + page.len() as u64;
                    let detail = error.to_string();
                    self.holes.push(Hole { range, detail });
                }
                Err(error) => return Err(error).doing_at("read", self.file.path(), offset),
            }
        }
        Ok(())
    }

    /// The record at `offset`, verified, and its length; or what is there instead.
    #[allow(clippy::type_complexity)]
    pub(crate) fn record(
        &mut self,
        offset: u64,
    ) -> Result<Result<(Record<'_>, usize), Unsound>, StorageError> {
        self.fill(offset, HEADER_LEN)?;
        let mut need = HEADER_LEN;
        if let Err(RecordError::Short { need: all, .. }) = record::peek(self.at_hand(offset))
            && offset + all as u64 <= self.len
        {
            need = all;
            self.fill(offset, need)?;
        }
        if let Ok(record) = record::peek(self.at_hand(offset)) {
            need = record.bytes.len();
        }
        if let Some(hole) = self.hole(offset..offset + need as u64) {
            return Ok(Err(Unsound::Unreadable(hole.clone())));
        }
        Ok(record::decode(self.at_hand(offset)).map_err(Unsound::Bytes))
    }

    /// The marker at `offset`, of this life of the segment. Where it cannot be read there is none.
    pub(crate) fn marker(
        &mut self,
        offset: u64,
        seq: u64,
        incarnation: u64,
    ) -> Result<Option<TailMarker>, StorageError> {
        Ok(TailMarker::decode(
            self.bytes(offset, MARKER_LEN)?,
            seq,
            incarnation,
        ))
    }

    /// Whether all bytes from `offset` on are zero, and can be read.
    pub(crate) fn is_zero_from(&mut self, mut offset: u64) -> Result<bool, StorageError> {
        while offset < self.len {
            let bytes = self.bytes(offset, 1)?;
            let (zero, read) = (is_zero(bytes), bytes.len() as u64);
            if !zero || self.hole(offset..offset + read).is_some() {
                return Ok(false);
            }
            offset += read;
        }
        Ok(true)
    }

    /// The furthest positions that markers from `offset` on tell of.
    pub(crate) fn furthest(
        &mut self,
        mut offset: u64,
        seq: u64,
        incarnation: u64,
    ) -> Result<Furthest, StorageError> {
        // One that begins in a piece and ends in the next is looked for in the next.
        const OVERLAP: u64 = MARKER_LEN as u64 - 8;
        let mut furthest = Furthest::default();
        while offset < self.len {
            let bytes = self.bytes(offset, 2 * MARKER_LEN)?;
            furthest.add(TailMarker::furthest(bytes, seq, incarnation));
            let end = offset + bytes.len() as u64;
            offset = if end < self.len { end - OVERLAP } else { end };
        }
        Ok(furthest)
    }
}

/// Writes `bytes` at `offset` where a hole may be: then all of the pages that it is in, with what is left of them and
/// zeros for what is not. One write, as any other.
pub(crate) fn patch<F: File>(file: &F, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
    let path = file.path();
    let len = file.length().doing("read the length of", path)?;
    let end = offset + bytes.len() as u64;
    let pages = offset / PAGE * PAGE..end.next_multiple_of(PAGE).min(len);
    let mut source = SegmentReader::new(file.clone(), len);
    let size = (pages.end - pages.start) as usize;
    let mut whole = source.bytes(pages.start, size)?[..size].to_vec();
    // What is in the middle is written over anyhow; at the edges the system has to know the rest.
    let edges = [
        pages.start..offset.next_multiple_of(PAGE),
        end / PAGE * PAGE..pages.end,
    ];
    let holed = |edge: &Range<u64>| !edge.is_empty() && source.hole(edge.clone()).is_some();
    if !edges.iter().any(holed) {
        return file.write_at(offset, bytes).doing_at("write", path, offset);
    }
    whole[(offset - pages.start) as usize..][..bytes.len()].copy_from_slice(bytes);
    file.write_at(pages.start, &whole)
        .doing_at("write", path, pages.start)
}

/// Makes pages that cannot be read readable again, as zeros; says whether there were any.
pub(crate) fn fill_holes<F: File>(file: &F, range: Range<u64>) -> Result<bool, StorageError> {
    let path = file.path();
    let len = file.length().doing("read the length of", path)?;
    let mut source = SegmentReader::new(file.clone(), len);
    let (mut at, mut found) = (range.start, false);
    while at < range.end.min(len) {
        let next = at + source.bytes(at, 1)?.len() as u64;
        for hole in std::mem::take(&mut source.holes) {
            let zeros = vec![0; (hole.range.end - hole.range.start) as usize];
            let offset = hole.range.start;
            if offset < range.end {
                file.write_at(offset, &zeros)
                    .doing_at("write", path, offset)?;
                found = true;
            }
        }
        at = next;
    }
    Ok(found)
}
