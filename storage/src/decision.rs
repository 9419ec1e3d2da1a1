//! What a directory holds after a stop of any kind, and what is done about it.
//!
//! Looking and deciding are apart from doing (`recovery/repair.rs`), so that the rules can be read in one table:
//! [`decide`]. `docs/file_format.md` gives it with its reasons.
//!
//! The one question that matters: the records end at some place. Was what is missing there ever
//! reported durable? Each marker carries how far the log was durable when it was written. If any marker
//! at or behind the place says that the missing record had been durable, something that was promised
//! is damaged: refuse, or, when peers have it, cut and do not vote before it is here again (`files/heal.rs`). If none does, it
//! is the torn end of writes that nobody was told of: cut.

use std::fmt;

/// What recovery found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// A segment that was still being prepared.
    Unfinished,
    /// A file this library does not know.
    Unknown,
    /// A segment that was prepared or purged, not in use; it may hold leftovers.
    Spare,
    /// A full segment whose records go on in the next.
    Sealed {
        /// First index in it.
        first: u64,
        /// Last index in it.
        last: u64,
    },
    /// The last segment, ending with a whole marker.
    Tail {
        /// First index in it.
        first: u64,
        /// Last index in it.
        last: u64,
        /// Bytes behind the marker that are not zero: an old life, or writes that were not flushed.
        leftovers: bool,
    },
    /// Records end without the right marker, and nothing says that what is missing was durable.
    Torn {
        /// The first index that is missing.
        index: u64,
        /// Where it should be, in bytes.
        offset: u64,
    },
    /// Records end, and a marker says that what is missing had been durable.
    Damaged {
        /// The first index that is missing.
        index: u64,
        /// Where it should be, in bytes.
        offset: u64,
        /// How far the log had been durable.
        flushed: u64,
    },
    /// A segment of records that were never durable, behind a torn one.
    BehindTear,
    /// A segment behind a damaged one: it does not go on where the log ends now.
    BehindDamage,
    /// A full segment whose seal is bad. Its records are whole, and the next segment goes on behind them.
    SealDamaged {
        /// Where the seal should be, in bytes.
        offset: u64,
    },
    /// A segment file whose header, or length, does not say what it holds.
    SegmentDamaged {
        /// Where it is bad, in bytes.
        offset: u64,
        /// It held records of the log, or may have; otherwise it was a spare.
        in_use: bool,
    },
    /// A segment of which nothing is left that a log could be made of.
    GivenUp,
    /// A segment, damaged or in front of a damaged one, whose records a snapshot holds.
    Covered {
        /// What the snapshot covers.
        index: u64,
    },
    /// A truncation was begun; the records to drop begin in this segment.
    TruncationBegun {
        /// The last index to keep.
        after: u64,
    },
    /// A segment that holds nothing but records which a truncation dropped.
    BehindTruncation,
    /// One of the two copies of term and vote is bad.
    MetaSlotTorn,
    /// Something about a snapshot.
    Snapshot(SnapshotFound),
    /// Both copies of term and vote are bad, or the file is not there.
    MetaDamaged,
    /// One of two copies in a file that never changes in part is bad: the other is the same.
    CopyDamaged,
    /// The file that says how far the log has to be fetched again is bad.
    HealDamaged,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Left as it is.
    Keep,
    /// Bytes behind the end become zero.
    Erase,
    /// Cut at its last sound record, durably.
    Cut,
    /// The same; what is cut off had been promised, and the node does not vote before it has it again.
    Heal,
    /// Written anew from what is sound.
    Rewrite,
    /// The file is removed.
    Remove,
    /// The file gets another name, and does not count any more.
    SetAside,
    /// The log does not open, and nothing is changed.
    Refuse,
}

/// The table. With `heal`, what was promised and is bad may be cut off, because the peers have it.
pub fn decide(found: &Found, heal: bool) -> Action {
    match found {
        Found::Unfinished => Action::Remove,
        Found::Unknown => Action::Keep,
        // Its leftovers may be records that were written and never became durable. Should new
        // records end exactly where one of those begins, it would come back to life.
        Found::Spare => Action::Remove,
        Found::Sealed { .. } => Action::Keep,
        Found::Tail {
            leftovers: false, ..
        } => Action::Keep,
        // The same danger as with a spare.
        Found::Tail {
            leftovers: true, ..
        } => Action::Erase,
        Found::Torn { .. } => Action::Cut,
        Found::Damaged { .. } if heal => Action::Heal,
        Found::Damaged { .. } => Action::Refuse,
        Found::SegmentDamaged { .. } | Found::GivenUp if heal => Action::Remove,
        Found::SegmentDamaged { .. } | Found::GivenUp => Action::Refuse,
        Found::MetaDamaged if heal => Action::Heal,
        Found::MetaDamaged => Action::Refuse,
        Found::SealDamaged { .. } | Found::CopyDamaged => Action::Rewrite,
        // It says that something is missing, and no more: the node votes when it has everything.
        Found::HealDamaged => Action::Heal,
        Found::Covered { .. } | Found::BehindDamage => Action::Remove,
        Found::BehindTear | Found::BehindTruncation => Action::Remove,
        Found::TruncationBegun { .. } => Action::Cut,
        // The other copy is what was last made durable; this one is written next.
        Found::MetaSlotTorn => Action::Keep,
        Found::Snapshot(found) => found.decide(),
    }
}

/// A file, what was found in it and what was done. One line when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The file, relative to the directory.
    pub file: String,
    /// What was found.
    pub found: Found,
    /// What was done.
    pub action: Action,
}

impl Decision {
    pub(crate) fn new(file: impl Into<String>, found: Found) -> Decision {
        Decision {
            file: file.into(),
            action: decide(&found, false),
            found,
        }
    }

    /// The same, when the log may be healed from its peers.
    pub(crate) fn healing(file: impl Into<String>, found: Found) -> Decision {
        Decision {
            file: file.into(),
            action: decide(&found, true),
            found,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        match &self.found {
            Found::Unfinished => write!(f, "preparation was not finished")?,
            Found::Unknown => write!(f, "not a file of the log")?,
            Found::Spare => write!(f, "spare segment")?,
            Found::Sealed { first, last } => write!(f, "full segment, records {first}..={last}")?,
            Found::Tail {
                first,
                last,
                leftovers,
            } => {
                write!(f, "last segment, records {first}..={last}")?;
                if *leftovers {
                    write!(f, ", leftovers behind them")?;
                }
            }
            Found::Torn { index, offset } => {
                write!(
                    f,
                    "torn at offset {offset}, record {index}, which was never durable"
                )?;
            }
            Found::Damaged {
                index,
                offset,
                flushed,
            } => write!(
                f,
                "damaged at offset {offset}, record {index}, although durable up to {flushed}"
            )?,
            Found::BehindTear => write!(f, "behind a torn segment, never durable")?,
            Found::TruncationBegun { after } => write!(f, "truncation after {after} was begun")?,
            Found::BehindTruncation => write!(f, "holds truncated records only")?,
            Found::MetaSlotTorn => write!(f, "one of its two copies is torn")?,
            Found::Snapshot(found) => write!(f, "{found}")?,
            Found::BehindDamage => write!(f, "behind what is damaged")?,
            Found::SealDamaged { offset } => {
                write!(
                    f,
                    "full segment, its seal at offset {offset} damaged, its records whole"
                )?;
            }
            Found::SegmentDamaged { offset, in_use } => {
                let held = if *in_use {
                    "it held records"
                } else {
                    "it was a spare"
                };
                write!(f, "its header is damaged at offset {offset}, {held}")?;
            }
            Found::GivenUp => write!(f, "no log can be made of it")?,
            Found::Covered { index } => {
                write!(
                    f,
                    "damaged, or in front of what is; a snapshot holds the records up to {index}"
                )?;
            }
            Found::MetaDamaged => write!(f, "term and vote are lost")?,
            Found::CopyDamaged => write!(f, "one of its two copies is damaged")?,
            Found::HealDamaged => {
                write!(
                    f,
                    "damaged; how far the log has to be fetched again is not known"
                )?;
            }
        }
        let done = match self.action {
            Action::Keep => "kept",
            Action::Erase => "erased behind the end",
            Action::Cut => "cut there",
            Action::Heal => "to be fetched again from the peers",
            Action::Rewrite => "written anew",
            Action::Remove => "removed",
            Action::SetAside => "set aside",
            Action::Refuse => "refused",
        };
        write!(f, ": {done}")
    }
}

/// What recovery found of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotFound {
    /// All of it was read and is sound.
    Whole,
    /// There is a newer one that is sound; this one was not read.
    Older,
    /// Part of one that was being received.
    Partial,
    /// One that was being taken when the process ended.
    Unfinished,
    /// It is damaged.
    Bad {
        /// Where, and what is wrong.
        detail: String,
    },
    /// It was found damaged earlier.
    SetAside,
    /// The log ends before the snapshot or contradicts it: the snapshot stands for all of it.
    StandsForLog {
        /// The last entry in the snapshot.
        index: u64,
        /// Its term.
        term: u64,
    },
}

impl SnapshotFound {
    /// The rows of the table that are about snapshots.
    pub(crate) fn decide(&self) -> Action {
        match self {
            SnapshotFound::Whole
            | SnapshotFound::Older
            | SnapshotFound::Partial
            | SnapshotFound::SetAside => Action::Keep,
            SnapshotFound::Unfinished | SnapshotFound::StandsForLog { .. } => Action::Remove,
            SnapshotFound::Bad { .. } => Action::SetAside,
        }
    }
}

impl fmt::Display for SnapshotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotFound::Whole => write!(f, "snapshot, sound"),
            SnapshotFound::Older => write!(f, "snapshot, older than a sound one"),
            SnapshotFound::Partial => write!(f, "snapshot, received in part"),
            SnapshotFound::Unfinished => write!(f, "snapshot that was not finished"),
            SnapshotFound::Bad { detail } => write!(f, "snapshot, damaged: {detail}"),
            SnapshotFound::SetAside => write!(f, "snapshot that was found damaged earlier"),
            SnapshotFound::StandsForLog { index, term } => {
                write!(f, "replaced by the snapshot at {index} of term {term}")
            }
        }
    }
}
