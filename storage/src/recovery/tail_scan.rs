//! What the bytes behind a place in the log show: markers, headers and intact records, however much lies between them.
//!
//! Two questions are answered from this. Had the missing record been durable? Only markers tell, for they are written
//! behind a flush. And how far may the log have gone? There anything counts that is whole, and nothing that is known is an
//! answer too.

use std::ops::RangeInclusive;

use crate::damage::Damage;
use crate::error::StorageError;
use crate::log::segment::RECORDS_AT;
use crate::log::tail_marker::{Furthest, is_zero};
use crate::medium::File;
use crate::record::{self, Record};
use crate::recovery::segment_reader::SegmentReader;
use crate::recovery::segments::{Broken, SegmentScan};
use crate::recovery::walk::{End, Walk};

/// What the bytes behind a place show.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TailScan {
    pub(crate) markers: Furthest,
    /// The highest index of an intact record, or before the beginning of a segment.
    written: u64,
    /// The highest term of an intact record.
    pub(crate) term: u64,
}

impl TailScan {
    /// The highest index that may have been reported durable. It is known only when the marker is there that ended the
    /// log: without that one there may have been more behind.
    pub(crate) fn upto(&self) -> u64 {
        let furthest = self.written.max(self.markers.end).max(self.markers.flushed);
        match furthest > 0 && self.markers.tail == furthest {
            true => furthest,
            false => u64::MAX,
        }
    }

    /// Adds the intact records from `offset` on, wherever they begin, of a segment whose first index is `base`.
    pub(crate) fn records<F: File>(
        &mut self,
        source: &mut SegmentReader<F>,
        offset: u64,
        base: u64,
    ) -> Result<(), StorageError> {
        let mut intact = Intact::new(source, offset, base);
        while let Some((_, record)) = intact.next()? {
            self.written = self.written.max(record.header.index);
            self.term = self.term.max(record.header.term);
        }
        Ok(())
    }
}

/// The intact records in bytes that may hold anything else between them.
#[derive(Debug)]
pub(crate) struct Intact<'a, F> {
    source: &'a mut SegmentReader<F>,
    at: u64,
    indexes: RangeInclusive<u64>,
}

impl<'a, F: File> Intact<'a, F> {
    /// Those from `at` on with an index of at least `base`. None can be further from it than the number of bytes allows;
    /// whatever looks so is somebody's payload.
    pub(crate) fn new(source: &'a mut SegmentReader<F>, at: u64, base: u64) -> Intact<'a, F> {
        let most = source.len().saturating_sub(at) / record::HEADER_LEN as u64;
        Intact {
            source,
            at,
            indexes: base..=base.saturating_add(most),
        }
    }

    /// The next one: where in the file it begins, and what it is.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Record<'_>)>, StorageError> {
        let (at, len) = loop {
            // The cheap looks first: most places are no record.
            let bytes = self.source.bytes(self.at, record::HEADER_LEN)?;
            let plausible = |at: &usize| {
                let rest = &bytes[*at..];
                rest[48] != 0
                    && rest[49..56] == [record::VERSION, 0, 0, 0, 0, 0, 0]
                    && self.indexes.contains(&record::u64_at(rest, 8))
            };
            let heads = (bytes.len() + 1).saturating_sub(record::HEADER_LEN);
            if heads == 0 {
                return Ok(None);
            }
            let Some(found) = (0..heads).step_by(8).find(plausible) else {
                self.at += heads.next_multiple_of(8) as u64;
                continue;
            };
            self.at += found as u64;
            let at = self.at;
            match self.source.record(at)? {
                Ok((_, len)) => break (at, len),
                Err(_) => self.at += 8,
            }
        };
        self.at = at + len as u64;
        Ok(self.source.record(at)?.ok().map(|(record, _)| (at, record)))
    }
}

/// What the markers from `offset` of segment `from` on tell.
pub(crate) fn furthest_markers<F: File>(
    scan: &SegmentScan<F>,
    from: usize,
    offset: u64,
    incarnation: u64,
) -> Result<Furthest, StorageError> {
    let candidates = &scan.candidates[from..];
    let mut found = Furthest::default();
    let mut at = offset;
    for candidate in candidates {
        let seq = candidate.header.seq;
        found.add(candidate.source()?.furthest(at, seq, incarnation)?);
        at = RECORDS_AT;
    }
    let behind = |broken: &&Broken<F>| broken.seq > candidates[0].header.seq;
    for broken in scan.broken.iter().filter(behind) {
        let markers = broken
            .source()?
            .furthest(RECORDS_AT, broken.seq, incarnation);
        found.add(markers?);
    }
    Ok(found)
}

/// All that is shown from `offset` of segment `from` on.
pub(crate) fn scan_tail<F: File>(
    scan: &SegmentScan<F>,
    from: usize,
    offset: u64,
    incarnation: u64,
) -> Result<TailScan, StorageError> {
    let mut found = TailScan {
        markers: furthest_markers(scan, from, offset, incarnation)?,
        ..TailScan::default()
    };
    let mut at = offset;
    for candidate in &scan.candidates[from..] {
        let base = candidate.header.base;
        found.written = found.written.max(base - 1);
        found.term = found.term.max(candidate.header.prev_term);
        found.records(&mut candidate.source()?, at, base)?;
        at = RECORDS_AT;
    }
    for broken in &scan.broken {
        broken.look(incarnation, &mut found)?;
    }
    Ok(found)
}

impl<F: File> Broken<F> {
    pub(crate) fn damage(&self) -> Damage {
        Damage {
            file: self.name.clone(),
            offset: self.offset,
            index: None,
            detail: self.detail.clone(),
        }
    }

    /// Whether this file may have held something of the log that was promised, where the records before it end like this.
    /// Only a sector that was written as a whole can be bad, so a bad header is never the trace of a power failure.
    pub(crate) fn held(
        &self,
        end: &End,
        at: &Walk,
        incarnation: u64,
    ) -> Result<bool, StorageError> {
        let mut found = TailScan::default();
        self.look(incarnation, &mut found)?;
        Ok(match end {
            End::Truncated => false,
            // The log ends before it. A marker of its own would say that it was in use all the same.
            End::Whole { sealed: false } | End::Damaged { .. } => found.markers.end > 0,
            // The log went on in some file.
            End::Whole { sealed: true } => {
                let mut source = self.source()?;
                let end = (RECORDS_AT + record::HEADER_LEN as u64).min(source.len());
                let first = source.bytes(RECORDS_AT.min(end), record::HEADER_LEN)?;
                let is_empty = is_zero(&first[..first.len().min(record::HEADER_LEN)]);
                found.markers.end > 0 || !is_empty || source.hole(RECORDS_AT..end).is_some()
            }
            // TailScan what nobody was told of, unless a marker says otherwise.
            End::Torn => found.markers.flushed >= at.next,
        })
    }

    /// Adds what its bytes show.
    pub(crate) fn look(&self, incarnation: u64, found: &mut TailScan) -> Result<(), StorageError> {
        let mut source = self.source()?;
        if source.len() <= RECORDS_AT {
            return Ok(());
        }
        let markers = source.furthest(RECORDS_AT, self.seq, incarnation)?;
        found.markers.add(markers);
        // Its records are of this life if its markers are.
        if markers.end > 0
            && let Ok((first, _)) = source.record(RECORDS_AT)?
        {
            let base = first.header.index;
            found.records(&mut source, RECORDS_AT, base)?;
        }
        Ok(())
    }
}
