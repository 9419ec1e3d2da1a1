//! One file in `log/` as it is, without regard to the others.

use crate::error::{Doing, StorageError};
use crate::log::segment::{RECORDS_AT, SEGMENT_HEADER_LEN, SegmentHeader, State};
use crate::log::tail_marker::{MARKER_LEN, MarkerKind};
use crate::medium::{Dir, File};
use crate::record;
use crate::recovery::segment_reader::SegmentReader;
use crate::recovery::segments::{MAX_INDEX, open_segment, seq_of};
use crate::recovery::tail_scan::Intact;

/// What a file in `log/` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Part of the log.
    InUse,
    /// Prepared, or not used any more.
    Spare,
    /// Still being prepared.
    Unfinished,
    /// Its header is damaged.
    Unreadable,
    /// No file of the log.
    Unknown,
}

/// A place that is bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Where, in bytes.
    pub offset: u64,
    /// The record that should be there.
    pub index: Option<u64>,
    /// What is there instead.
    pub detail: String,
}

/// The marker behind the last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkerSeen {
    /// It ends the segment, and the log goes on in the next one; otherwise it ends the log.
    pub seal: bool,
    /// The last index before it.
    pub end_index: u64,
    /// The log was durable up to here when it was written.
    pub flushed_index: u64,
}

/// A file in `log/`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SegmentReport {
    /// Its name, relative to the directory.
    pub file: String,
    /// Its length in bytes.
    pub file_bytes: u64,
    /// What it is.
    pub state: SegmentState,
    /// The number in its name.
    pub seq: Option<u64>,
    /// Index of its first record; 0 when the header does not say.
    pub base: u64,
    /// Term of the record before that.
    pub prev_term: u64,
    /// The last sound record of the run that begins with `base`; `base - 1` when there is none.
    pub last: u64,
    /// The terms in it, each with the first index of its run.
    pub term_runs: Vec<(u64, u64)>,
    /// Bytes of these records.
    pub record_bytes: u64,
    /// Where the run ends, in bytes.
    pub end_offset: u64,
    /// The marker there.
    pub marker: Option<MarkerSeen>,
    /// Bytes behind the end that are not zero: an old life of the file, or what was cut off by damage.
    pub leftovers: bool,
    /// The first bad place: a damaged header, or the end of the run without the right marker.
    pub bad: Option<Bad>,
    /// The highest index of an intact record behind the bad place; 0 without one.
    pub intact_behind: u64,
}

/// Every file in `log/`, by name.
pub(super) fn all<D: Dir>(
    dir: &D,
    incarnation: Option<u64>,
) -> Result<Vec<SegmentReport>, StorageError> {
    let mut names = dir.list("log").doing("list", &dir.path("log"))?;
    names.sort_unstable();
    let mut found = Vec::new();
    for name in names {
        match one(dir, &name, incarnation) {
            Ok(report) => found.push(report),
            // A node that runs has removed it meanwhile.
            Err(StorageError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn one<D: Dir>(
    dir: &D,
    name: &str,
    incarnation: Option<u64>,
) -> Result<SegmentReport, StorageError> {
    let file = format!("log/{name}");
    let path = dir.path(&file);
    let opened = dir.open(&file).doing("open", &path)?;
    let file_bytes = opened.length().doing("read the length of", &path)?;
    let mut report = SegmentReport {
        file,
        file_bytes,
        state: SegmentState::Unknown,
        seq: seq_of(name),
        base: 0,
        prev_term: 0,
        last: 0,
        term_runs: Vec::new(),
        record_bytes: 0,
        end_offset: 0,
        marker: None,
        leftovers: false,
        bad: None,
        intact_behind: 0,
    };
    let Some(seq) = report.seq else {
        if name.ends_with(".tmp") {
            report.state = SegmentState::Unfinished;
        }
        return Ok(report);
    };
    let header = match open_segment(dir, &report.file) {
        Ok((header, _)) => Some(header),
        Err(StorageError::Corrupt { offset, detail, .. }) => {
            report.state = SegmentState::Unreadable;
            report.bad = Some(Bad {
                offset,
                index: None,
                detail,
            });
            None
        }
        Err(error @ StorageError::Version { .. }) => {
            report.state = SegmentState::Unreadable;
            report.bad = Some(Bad {
                offset: 12,
                index: None,
                detail: error.to_string(),
            });
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    if file_bytes < RECORDS_AT + SEGMENT_HEADER_LEN as u64 {
        return Ok(report);
    }
    let mut source = SegmentReader::new(opened, file_bytes);
    match header {
        Some(header) => report.read(&mut source, &header, seq, incarnation)?,
        None => {
            let first = source.record(RECORDS_AT)?;
            if let Ok(first) = first.map(|(first, _)| first.header.index) {
                report.intact_behind = highest(&mut source, RECORDS_AT, first)?;
            }
        }
    }
    Ok(report)
}

impl SegmentReport {
    fn read<F: File>(
        &mut self,
        source: &mut SegmentReader<F>,
        header: &SegmentHeader,
        seq: u64,
        incarnation: Option<u64>,
    ) -> Result<(), StorageError> {
        (self.base, self.prev_term) = (header.base, header.prev_term);
        if header.state == State::Spare {
            self.state = SegmentState::Spare;
            return Ok(());
        }
        self.state = SegmentState::InUse;
        if header.seq != seq {
            let detail = format!(
                "the header says segment {}, the name says {seq}",
                header.seq
            );
            self.bad = Some(Bad {
                offset: 32,
                index: None,
                detail,
            });
            return Ok(());
        }
        if !(1..MAX_INDEX).contains(&self.base) {
            let detail = format!("begins with record {}, which is no index", self.base);
            self.bad = Some(Bad {
                offset: 40,
                index: None,
                detail,
            });
            return Ok(());
        }
        let (mut at, mut next, mut term) = (RECORDS_AT, self.base, self.prev_term);
        let why = loop {
            match source.record(at)? {
                Ok((record, len)) if record.header.index == next && record.header.term >= term => {
                    if self
                        .term_runs
                        .last()
                        .is_none_or(|run| run.0 != record.header.term)
                    {
                        self.term_runs.push((record.header.term, next));
                    }
                    (at, next, term) = (at + len as u64, next + 1, record.header.term);
                }
                Ok((record, _)) => {
                    let record::Header { index, term, .. } = record.header;
                    break format!("record {index} of term {term} is in its place");
                }
                Err(error) => break error.to_string(),
            }
        };
        self.last = next - 1;
        self.end_offset = at;
        self.record_bytes = at - RECORDS_AT;
        let marker = match incarnation {
            Some(of) => source.marker(at, seq, of)?,
            None => None,
        };
        let marker = marker.filter(|marker| marker.end_index == self.last);
        self.marker = marker.map(|marker| MarkerSeen {
            seal: marker.kind == MarkerKind::Seal,
            end_index: marker.end_index,
            flushed_index: marker.flushed_index,
        });
        match marker {
            Some(_) => self.leftovers = !source.is_zero_from(at + MARKER_LEN as u64)?,
            None => {
                self.leftovers = !source.is_zero_from(at)?;
                self.intact_behind = highest(source, at, next)?;
                self.bad = Some(Bad {
                    offset: at,
                    index: Some(next),
                    detail: why,
                });
            }
        }
        Ok(())
    }
}

/// The highest index of an intact record.
fn highest<F: File>(
    source: &mut SegmentReader<F>,
    from: u64,
    base: u64,
) -> Result<u64, StorageError> {
    let (mut intact, mut highest) = (Intact::new(source, from, base), 0);
    while let Some((_, record)) = intact.next()? {
        highest = highest.max(record.header.index);
    }
    Ok(highest)
}
