//! What the bytes behind a place in the log show: marks, headers and intact records, however much lies between them.
//!
//! Two questions are answered from this. Had the missing record been durable? Only marks tell, for they are written
//! behind a flush. And how far may the log have gone? There anything counts that is whole, and nothing that is known is an
//! answer too.

use std::ops::RangeInclusive;

use crate::error::StorageError;
use crate::file::File;
use crate::heal::Wound;
use crate::mark::{Furthest, is_zero};
use crate::plan::{End, Walk};
use crate::record::{self, Record};
use crate::segment::RECORDS_AT;
use crate::source::Source;
use crate::survey::{Broken, Survey};

/// What the bytes behind a place show.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behind {
    pub(crate) marks: Furthest,
    /// The highest index of an intact record, or before the beginning of a segment.
    written: u64,
    /// The highest term of an intact record.
    pub(crate) term: u64,
}

impl Behind {
    /// The highest index that may have been reported durable. It is known only when the mark is there that ended the
    /// log: without that one there may have been more behind.
    pub(crate) fn upto(&self) -> u64 {
        let furthest = self.written.max(self.marks.end).max(self.marks.flushed);
        match furthest > 0 && self.marks.tail == furthest {
            true => furthest,
            false => u64::MAX,
        }
    }

    /// Adds the intact records from `offset` on, wherever they begin, of a segment whose first index is `base`.
    pub(crate) fn records<F: File>(
        &mut self,
        source: &mut Source<F>,
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
    source: &'a mut Source<F>,
    at: u64,
    indexes: RangeInclusive<u64>,
}

impl<'a, F: File> Intact<'a, F> {
    /// Those from `at` on with an index of at least `base`. None can be further from it than the number of bytes allows;
    /// whatever looks so is somebody's payload.
    pub(crate) fn new(source: &'a mut Source<F>, at: u64, base: u64) -> Intact<'a, F> {
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

/// What the marks from `offset` of segment `from` on tell.
pub(crate) fn marks<F: File>(
    survey: &Survey<F>,
    from: usize,
    offset: u64,
    incarnation: u64,
) -> Result<Furthest, StorageError> {
    let candidates = &survey.candidates[from..];
    let mut found = Furthest::default();
    let mut at = offset;
    for candidate in candidates {
        let seq = candidate.header.seq;
        found.add(candidate.source()?.furthest(at, seq, incarnation)?);
        at = RECORDS_AT;
    }
    let behind = |broken: &&Broken<F>| broken.seq > candidates[0].header.seq;
    for broken in survey.broken.iter().filter(behind) {
        let marks = broken
            .source()?
            .furthest(RECORDS_AT, broken.seq, incarnation);
        found.add(marks?);
    }
    Ok(found)
}

/// All that is shown from `offset` of segment `from` on.
pub(crate) fn behind<F: File>(
    survey: &Survey<F>,
    from: usize,
    offset: u64,
    incarnation: u64,
) -> Result<Behind, StorageError> {
    let mut found = Behind {
        marks: marks(survey, from, offset, incarnation)?,
        ..Behind::default()
    };
    let mut at = offset;
    for candidate in &survey.candidates[from..] {
        let base = candidate.header.base;
        found.written = found.written.max(base - 1);
        found.term = found.term.max(candidate.header.prev_term);
        found.records(&mut candidate.source()?, at, base)?;
        at = RECORDS_AT;
    }
    for broken in &survey.broken {
        broken.look(incarnation, &mut found)?;
    }
    Ok(found)
}

impl<F: File> Broken<F> {
    pub(crate) fn wound(&self) -> Wound {
        Wound {
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
        let mut found = Behind::default();
        self.look(incarnation, &mut found)?;
        Ok(match end {
            End::Truncated => false,
            // The log ends before it. A mark of its own would say that it was in use all the same.
            End::Whole { sealed: false } | End::Damaged { .. } => found.marks.end > 0,
            // The log went on in some file.
            End::Whole { sealed: true } => {
                let mut source = self.source()?;
                let end = (RECORDS_AT + record::HEADER_LEN as u64).min(source.len());
                let first = source.bytes(RECORDS_AT.min(end), record::HEADER_LEN)?;
                let is_empty = is_zero(&first[..first.len().min(record::HEADER_LEN)]);
                found.marks.end > 0 || !is_empty || source.hole(RECORDS_AT..end).is_some()
            }
            // Behind what nobody was told of, unless a mark says otherwise.
            End::Torn => found.marks.flushed >= at.next,
        })
    }

    /// Adds what its bytes show.
    pub(crate) fn look(&self, incarnation: u64, found: &mut Behind) -> Result<(), StorageError> {
        let mut source = self.source()?;
        if source.len() <= RECORDS_AT {
            return Ok(());
        }
        let marks = source.furthest(RECORDS_AT, self.seq, incarnation)?;
        found.marks.add(marks);
        // Its records are of this life if its marks are.
        if marks.end > 0
            && let Ok((first, _)) = source.record(RECORDS_AT)?
        {
            let base = first.header.index;
            found.records(&mut source, RECORDS_AT, base)?;
        }
        Ok(())
    }
}
