//! What a start found.

use crate::damage::DataLoss;
use crate::decision::Decision;
use crate::files::exclusion::Exclusion;
use crate::files::identity::Identity;
use crate::files::meta::Vote;
use crate::snapshot::{SnapshotId, SnapshotMeta};

/// What was found when a log was opened.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whose log it is.
    pub identity: Identity,
    /// Term and vote as last made durable. The last record may be of a later term: then the node
    /// stopped between the two, and it has not voted in that term.
    pub vote: Vote,
    /// Index of the first record; `last_index + 1` when there is none.
    pub first_index: u64,
    /// Index of the last record; `first_index - 1` when there is none. All of them are durable.
    pub last_index: u64,
    /// Term of the record before `first_index`; 0 at the beginning.
    pub prev_term: u64,
    /// Time of the last record, in µs; that of the snapshot when the log holds no record, 0 without one.
    pub last_time_us: u64,
    /// The newest snapshot that is sound: all of it was read. The log goes on at or before its end, without a gap.
    pub snapshot: Option<(SnapshotId, SnapshotMeta)>,
    /// The terms of the records: each with the first index of its run.
    pub term_runs: Vec<(u64, u64)>,
    /// What was found file by file, and what was done.
    pub decisions: Vec<Decision>,
    /// The directory does not hold all that it may have promised: until [`Log::healed`](crate::Log::healed) the node neither votes nor stands.
    pub data_loss: Option<DataLoss>,
    /// A peer has refused this directory: the node takes no part until its operator has decided.
    pub excluded: Option<Exclusion>,
    /// This start has made the directory.
    pub is_new: bool,
}
