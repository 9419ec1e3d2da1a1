//! Committed entries, read back from the log.

use std::fmt;
use std::sync::atomic::Ordering;

use storage::record;

use crate::entry::KIND_COMMAND;
use crate::flow::shared::Shared;
use crate::types::{Index, NodeId, Term};

/// A committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// Its place in the log.
    pub index: Index,
    /// The term in which it was appended.
    pub term: Term,
    /// The leader's wall clock when it was appended, in microseconds since the Unix epoch.
    pub time_us: u64,
    /// The node it was proposed on.
    pub origin: NodeId,
    /// What was proposed; `None` for an entry that is no command: the first of a term, or a read through the log.
    pub command: Option<Vec<u8>>,
}

/// Why a committed entry cannot be read.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadCommittedError {
    /// A snapshot stands for it, and the log begins later.
    Compacted {
        /// The first entry that is still in the log.
        first: Index,
    },
    /// It is not committed, as far as this node knows.
    NotCommitted {
        /// The last entry that is.
        committed: Index,
    },
    /// The disk has not given back what was written; the node finds it out too, and heals.
    Damaged {
        /// What is wrong with it.
        detail: String,
    },
}

impl fmt::Display for ReadCommittedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compacted { first } => {
                write!(
                    f,
                    "no longer in the log, which begins with {first}: a snapshot stands for it"
                )
            }
            Self::NotCommitted { committed } => {
                write!(
                    f,
                    "not committed yet; the last committed entry is {committed}"
                )
            }
            Self::Damaged { detail } => write!(f, "damaged in the log: {detail}"),
        }
    }
}

/// The sentence: a `main` that returns it prints this.
impl fmt::Debug for ReadCommittedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ReadCommittedError {}

/// Reads the entry at `index`.
pub(crate) fn read(shared: &Shared, index: Index) -> Result<Committed, ReadCommittedError> {
    let marks = &shared.marks;
    let committed = marks.committed.load(Ordering::Acquire);
    if index > committed {
        return Err(ReadCommittedError::NotCommitted { committed });
    }
    let reader = shared.reader();
    let slice = reader.slice(index, index, u64::MAX);
    // A snapshot that is to take the place of the log says that what stands there is another leader's. It is looked at after
    // the log was read, since it is said before the log is replaced.
    let replaced = marks.restore.load(Ordering::Acquire);
    let first = marks.first.load(Ordering::Acquire).max(replaced + 1);
    let slice = match slice {
        Some(slice) if index >= first => slice,
        _ => {
            return Err(ReadCommittedError::Compacted {
                first: first.max(index + 1),
            });
        }
    };
    let (record, _) =
        record::decode(slice.as_ref()).map_err(|error| ReadCommittedError::Damaged {
            detail: error.to_string(),
        })?;
    let header = record.header;
    Ok(Committed {
        index: header.index,
        term: header.term,
        time_us: header.time_us,
        origin: NodeId((header.origin >> 32) as u32),
        command: (header.kind == KIND_COMMAND).then(|| record.payload.to_vec()),
    })
}
