//! What the bytes behind a place in the log show: marks, headers and intact records, however much lies between them.
//!
//! Two questions are answered from this. Had the missing record been durable? Only marks tell, for they are written
//! behind a flush. And how far may the log have gone? There anything counts that is whole, and nothing that is known is an
//! answer too.

use std::ops::RangeInclusive;

use crate::heal::Wound;
use crate::mark::{Furthest, Mark, is_zero};
use crate::plan::{End, Walk};
use crate::record::{self, Record};
use crate::segment::RECORDS_AT;
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

    /// Adds the intact records in `bytes`, wherever they begin, of a segment whose first index is `base`.
    pub(crate) fn records(&mut self, bytes: &[u8], base: u64) {
        for (_, record) in Intact::new(bytes, base) {
            self.written = self.written.max(record.header.index);
            self.term = self.term.max(record.header.term);
        }
    }
}

/// The intact records in bytes that may hold anything else between them.
#[derive(Debug)]
pub(crate) struct Intact<'a> {
    bytes: &'a [u8],
    at: usize,
    indexes: RangeInclusive<u64>,
}

impl<'a> Intact<'a> {
    /// Those with an index of at least `base`. None can be further from it than the number of bytes allows; whatever looks
    /// so is somebody's payload.
    pub(crate) fn new(bytes: &'a [u8], base: u64) -> Intact<'a> {
        let most = base.saturating_add((bytes.len() / record::HEADER_LEN) as u64);
        Intact {
            bytes,
            at: 0,
            indexes: base..=most,
        }
    }
}

impl<'a> Iterator for Intact<'a> {
    /// Where it begins, and what it is.
    type Item = (usize, Record<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        while self.at + record::HEADER_LEN <= self.bytes.len() {
            let (at, rest) = (self.at, &self.bytes[self.at..]);
            // The cheap looks first: most places are no record.
            let plausible = rest[48] != 0
                && rest[49..56] == [record::VERSION, 0, 0, 0, 0, 0, 0]
                && self.indexes.contains(&record::u64_at(rest, 8));
            if let Some(Ok((record, len))) = plausible.then(|| record::decode(rest)) {
                self.at += len;
                return Some((at, record));
            }
            self.at += 8;
        }
        None
    }
}

/// What the marks from `offset` of segment `from` on tell.
pub(crate) fn marks<F>(survey: &Survey<F>, from: usize, offset: u64, incarnation: u64) -> Furthest {
    let candidates = &survey.candidates[from..];
    let mut found = Furthest::default();
    let mut at = offset;
    for candidate in candidates {
        let seq = candidate.header.seq;
        found.add(Mark::furthest(candidate.rest(at), seq, incarnation));
        at = RECORDS_AT;
    }
    let behind = |broken: &&Broken| broken.seq > candidates[0].header.seq;
    for broken in survey.broken.iter().filter(behind) {
        found.add(Mark::furthest(broken.records(), broken.seq, incarnation));
    }
    found
}

/// All that is shown from `offset` of segment `from` on.
pub(crate) fn behind<F>(survey: &Survey<F>, from: usize, offset: u64, incarnation: u64) -> Behind {
    let mut found = Behind {
        marks: marks(survey, from, offset, incarnation),
        ..Behind::default()
    };
    let mut at = offset;
    for candidate in &survey.candidates[from..] {
        let base = candidate.header.base;
        found.written = found.written.max(base - 1);
        found.term = found.term.max(candidate.header.prev_term);
        found.records(candidate.rest(at), base);
        at = RECORDS_AT;
    }
    for broken in &survey.broken {
        broken.look(incarnation, &mut found);
    }
    found
}

impl Broken {
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
    pub(crate) fn held(&self, end: &End, at: &Walk, incarnation: u64) -> bool {
        let mut found = Behind::default();
        self.look(incarnation, &mut found);
        match end {
            End::Truncated => false,
            // The log ends before it. A mark of its own would say that it was in use all the same.
            End::Whole { sealed: false } | End::Damaged { .. } => found.marks.end > 0,
            // The log went on in some file.
            End::Whole { sealed: true } => {
                let records = self.records();
                found.marks.end > 0 || !is_zero(&records[..records.len().min(record::HEADER_LEN)])
            }
            // Behind what nobody was told of, unless a mark says otherwise.
            End::Torn => found.marks.flushed >= at.next,
        }
    }

    /// Adds what its bytes show.
    pub(crate) fn look(&self, incarnation: u64, found: &mut Behind) {
        let bytes = self.records();
        let marks = Mark::furthest(bytes, self.seq, incarnation);
        found.marks.add(marks);
        // Its records are of this life if its marks are.
        if marks.end > 0
            && let Ok((first, _)) = record::decode(bytes)
        {
            found.records(bytes, first.header.index);
        }
    }
}
