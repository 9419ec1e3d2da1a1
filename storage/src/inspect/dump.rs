//! The records of a directory one by one, with the bad places between them.

use std::ops::{ControlFlow, RangeInclusive};

use super::segment::Bad;
use crate::error::{Doing, StorageError};
use crate::evidence::Intact;
use crate::file::{Dir, File};
use crate::mark::Mark;
use crate::record::{self, Record, RecordError};
use crate::segment::{RECORDS_AT, State};
use crate::survey::{MAX_INDEX, open_segment, seq_of};

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

/// Shows the records of these indexes, in the order of the files, to `visit`; it may break off. Behind a bad place the
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
        let map = match len > RECORDS_AT {
            true => Some(file.map().doing("map", file.path())?),
            false => None,
        };
        let bytes = map
            .as_ref()
            .map_or(&[][..], |map| map.slice(RECORDS_AT as usize..map.len()));
        if segment(&name, bytes, base, &indexes, visit).is_break() {
            break;
        }
    }
    Ok(())
}

fn segment(
    file: &str,
    bytes: &[u8],
    base: Result<u64, (u64, String)>,
    indexes: &RangeInclusive<u64>,
    visit: &mut dyn FnMut(Dumped<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut at = 0;
    let (wrong, next) = match base {
        Ok(base) => {
            let mut next = base;
            loop {
                let rest = &bytes[at..];
                match record::decode(rest) {
                    Ok((record, len)) if record.header.index == next => {
                        if indexes.contains(&next) {
                            let offset = RECORDS_AT + at as u64;
                            visit(Dumped::Record {
                                file,
                                offset,
                                record,
                                behind_damage: false,
                            })?;
                        }
                        (at, next) = (at + len, next + 1);
                    }
                    _ if Mark::looks_like(rest) => return ControlFlow::Continue(()),
                    Err(RecordError::Empty | RecordError::Short { .. })
                        if Intact::new(rest, next).next().is_none() =>
                    {
                        return ControlFlow::Continue(());
                    }
                    found => {
                        let detail = match found {
                            Ok((found, _)) => {
                                format!("record {} is in its place", found.header.index)
                            }
                            Err(error) => error.to_string(),
                        };
                        let (offset, index) = (RECORDS_AT + at as u64, Some(next));
                        let bad = Bad {
                            offset,
                            index,
                            detail,
                        };
                        break (bad, next);
                    }
                }
            }
        }
        Err((offset, detail)) => {
            // Its first record tells the rest; without it nothing does.
            let next = record::decode(bytes).map_or(MAX_INDEX, |(first, _)| first.header.index);
            let bad = Bad {
                offset,
                index: None,
                detail,
            };
            (bad, next)
        }
    };
    if next <= *indexes.end() || wrong.index.is_none() {
        visit(Dumped::Bad { file, bad: wrong })?;
    }
    for (ahead, record) in Intact::new(&bytes[at..], next) {
        if indexes.contains(&record.header.index) {
            let offset = RECORDS_AT + (at + ahead) as u64;
            visit(Dumped::Record {
                file,
                offset,
                record,
                behind_damage: true,
            })?;
        }
    }
    ControlFlow::Continue(())
}
