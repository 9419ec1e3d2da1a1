//! The small files of a directory as they are: `identity`, `meta`, `peers`, `heal`.

use super::Vote;
use crate::damage::DataLoss;
use crate::error::StorageError;
use crate::files::heal;
use crate::files::identity::{Copies, Identity};
use crate::files::known_peers;
use crate::files::meta;
use crate::medium::Dir;

/// A small file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Small<T> {
    /// It is not there.
    Missing,
    /// It is whole.
    Sound(T),
    /// One of its two copies is bad; the other is what counts, and a start writes both anew.
    OneCopyBad(T),
    /// It cannot be read; why.
    Damaged(String),
}

impl<T> Small<T> {
    /// What it says.
    pub fn value(&self) -> Option<&T> {
        match self {
            Small::Sound(value) | Small::OneCopyBad(value) => Some(value),
            Small::Missing | Small::Damaged(_) => None,
        }
    }

    pub(super) fn trouble(&self, name: &str) -> Option<String> {
        match self {
            Small::Missing | Small::Sound(_) => None,
            Small::OneCopyBad(_) => Some(format!("{name}: one of its two copies is damaged")),
            Small::Damaged(detail) => Some(format!("{name}: damaged: {detail}")),
        }
    }

    fn of(read: Result<(T, Copies), StorageError>) -> Result<Small<T>, StorageError> {
        Ok(match read {
            Ok((value, Copies::One)) => Small::OneCopyBad(value),
            Ok((value, Copies::Both | Copies::Older)) => Small::Sound(value),
            Err(StorageError::Corrupt { detail, .. }) => Small::Damaged(detail),
            Err(error @ StorageError::Version { .. }) => Small::Damaged(error.to_string()),
            Err(error) => return Err(error),
        })
    }
}

/// One of the two copies of term and vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotSeen {
    /// The higher one is in force.
    pub sequence: u64,
    /// Term and vote.
    pub vote: Vote,
    /// A truncation behind this index was under way.
    pub truncate_after: Option<u64>,
    /// A replacement of the log by the snapshot at this index and term was under way.
    pub reset_to: Option<(u64, u64)>,
    /// The incarnation of the directory.
    pub incarnation: u64,
}

/// The file `meta`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetaReport {
    /// Its two copies; `None` for a bad one.
    pub slots: [Option<SlotSeen>; 2],
    /// Why the file as a whole cannot be read.
    pub trouble: Option<String>,
}

impl MetaReport {
    /// The copy that counts.
    pub fn in_force(&self) -> Option<SlotSeen> {
        let slots = self.slots.into_iter().flatten();
        slots.max_by_key(|slot| slot.sequence)
    }

    pub(super) fn trouble(&self) -> Option<String> {
        if let Some(trouble) = &self.trouble {
            return Some(format!("meta: {trouble}"));
        }
        match self.slots {
            [Some(_), Some(_)] => None,
            [None, None] => Some("meta: both copies of term and vote are damaged".to_owned()),
            _ => Some(
                "meta: one copy of term and vote is damaged, and may have been the newer one"
                    .to_owned(),
            ),
        }
    }
}

pub(super) fn identity<D: Dir>(dir: &D, there: bool) -> Result<Small<Identity>, StorageError> {
    match there {
        true => Small::of(Identity::read(dir)),
        false => Ok(Small::Missing),
    }
}

pub(super) fn peers<D: Dir>(dir: &D, there: bool) -> Result<Small<Vec<(u64, u64)>>, StorageError> {
    match there {
        true => Small::of(known_peers::read(dir)),
        false => Ok(Small::Missing),
    }
}

pub(super) fn heal<D: Dir>(
    dir: &D,
    there: bool,
    incarnation: Option<u64>,
) -> Result<Small<DataLoss>, StorageError> {
    if !there {
        return Ok(Small::Missing);
    }
    match heal::read_file(dir, incarnation.unwrap_or(0)) {
        Ok(Some((heal, _))) => Ok(Small::Sound(heal)),
        Ok(None) => Ok(Small::Damaged(
            "how far the log has to be fetched again is not known".to_owned(),
        )),
        Err(error @ StorageError::Version { .. }) => Ok(Small::Damaged(error.to_string())),
        Err(error) => Err(error),
    }
}

pub(super) fn meta<D: Dir>(dir: &D, there: bool) -> Result<MetaReport, StorageError> {
    let none = |trouble: String| MetaReport {
        slots: [None, None],
        trouble: Some(trouble),
    };
    if !there {
        return Ok(none("the file is missing".to_owned()));
    }
    let path = dir.path("meta");
    let file = dir
        .open("meta")
        .map_err(|e| StorageError::io("open", &path, e))?;
    match meta::read_slots(&file) {
        Ok(slots) => Ok(MetaReport {
            slots: slots.map(|slot| {
                slot.map(|slot| SlotSeen {
                    sequence: slot.sequence,
                    vote: slot.state.vote,
                    truncate_after: slot.state.truncate_after,
                    reset_to: slot.state.reset_to,
                    incarnation: slot.incarnation,
                })
            }),
            trouble: None,
        }),
        Err(StorageError::Corrupt { detail, .. }) => Ok(none(detail)),
        Err(error @ StorageError::Version { .. }) => Ok(none(error.to_string())),
        Err(error) => Err(error),
    }
}
