//! The records of a directory one by one, with the bad places between them.

use std::ops::{ControlFlow, RangeInclusive};

use super::segment::Bad;
use crate::error::{Doing, StorageError};
use crate::log::segment::{RECORDS_AT, State};
use crate::log::tail_marker::{MARKER_LEN, TailMarker};
use crate::medium::{Dir, File};
use crate::record::{Record, RecordError};
use crate::recovery::segment_reader::{SegmentReader, Unsound};
use crate::recovery::segments::{MAX_INDEX, open_segment, seq_of};
use crate::recovery::tail_scan::Intact;

/// What was come upon.
#[derive(Clone, Debug)]
pub enum Dumped<'a> {
    /// A sound record.
    Record {
        /// The file.
        file: &'a str,
        /// Where it begins, in bytes.
        offset: u64,
        /// What it says.
        record: Record<'a>,
        /// It stands behind a bad place: the log cannot be read up to here any more.
        behind_damage: bool,
    },
    /// A place where a record should be and is not.
    Bad {
        /// The file.
        file: &'a str,
        /// The place.
        bad: Bad,
    },
}

/// Shows the records of these indexes, in the order of the files, to `visit`; it may break off. TailScan a bad place the
/// file is searched for intact records.
///
/// # Errors
/// What the system refuses.
pub fn dump<D: Dir>(
    dir: &D,
    indexes: RangeInclusive<u64>,
    visit: &mut dyn FnMut(Dumped<'_>) -> ControlFlow<()>,
) -> Result<(), StorageError> {
    let mut names = dir.list("log").doing("list", &dir.path("log"))?;
    names.sort_unstable();
    for name in names.into_iter().filter(|name| seq_of(name).is_some()) {
        let name = format!("log/{name}");
        let base = match open_segment(dir, &name) {
            Ok((header, _)) if header.state == State::Spare => continue,
            Ok((header, _)) if (1..MAX_INDEX).contains(&header.base) => Ok(header.base),
            Ok((header, _)) => Err((40, format!("begins with record {}", header.base))),
            Err(StorageError::Corrupt { offset, detail, .. }) => Err((offset, detail)),
            Err(error @ StorageError::Version { .. }) => Err((12, error.to_string())),
            Err(error) => return Err(error),
        };
        let file = dir.open(&name).doing("open", &dir.path(&name))?;
        let len = file.length().doing("read the length of", file.path())?;
        let mut source = SegmentReader::new(file, len);
        if segment(&name, &mut source, base, &indexes, visit)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn segment<F: File>(
    file: &str,
    source: &mut SegmentReader<F>,
    base: Result<u64, (u64, String)>,
    indexes: &RangeInclusive<u64>,
    visit: &mut dyn FnMut(Dumped<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, StorageError> {
    let mut at = RECORDS_AT;
    let (wrong, next) = match base {
        Ok(base) => {
            let mut next = base;
            loop {
                let (detail, is_end) = match source.record(at)? {
                    Ok((record, len)) if record.header.index == next => {
                        let dumped = Dumped::Record {
                            file,
                            offset: at,
                            record,
                            behind_damage: false,
                        };
                        if indexes.contains(&next) && visit(dumped).is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                        (at, next) = (at + len as u64, next + 1);
                        continue;
                    }
                    Ok((found, _)) => {
                        let index = found.header.index;
                        (format!("record {index} is in its place"), false)
                    }
                    Err(error) => {
                        let ends = RecordError::Empty;
                        let ends = error == Unsound::Bytes(ends)
                            || matches!(error, Unsound::Bytes(RecordError::Short { .. }));
                        (error.to_string(), ends)
                    }
                };
                if TailMarker::looks_like(source.bytes(at, MARKER_LEN)?)
                    || is_end && Intact::new(source, at, next).next()?.is_none()
                {
                    return Ok(ControlFlow::Continue(()));
                }
                let bad = Bad {
                    offset: at,
                    index: Some(next),
                    detail,
                };
                break (bad, next);
            }
        }
        Err((offset, detail)) => {
            // Its first record tells the rest; without it nothing does.
            let first = source.record(at)?;
            let next = first.map_or(MAX_INDEX, |(first, _)| first.header.index);
            let bad = Bad {
                offset,
                index: None,
                detail,
            };
            (bad, next)
        }
    };
    if next <= *indexes.end() || wrong.index.is_none() {
        let said = visit(Dumped::Bad { file, bad: wrong });
        if said.is_break() {
            return Ok(said);
        }
    }
    let mut intact = Intact::new(source, at, next);
    while let Some((offset, record)) = intact.next()? {
        let dumped = Dumped::Record {
            file,
            offset,
            record,
            behind_damage: true,
        };
        if indexes.contains(&record.header.index) && visit(dumped).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
