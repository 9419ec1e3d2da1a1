//! What a directory lost: the damage as it was found, and how far the log may have gone before.

/// What was found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, relative to the directory.
    pub file: String,
    /// Where it is bad, in bytes.
    pub offset: u64,
    /// The first index that is bad, when it is about a record.
    pub index: Option<u64>,
    /// What is wrong there.
    pub detail: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is damaged at offset {}", self.file, self.offset)?;
        if let Some(index) = self.index {
            write!(f, ", index {index}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// The log does not hold all that this directory may have promised. As long as that is so the node must not vote, not
/// stand, and not say to anybody that it has what it has not; it follows and takes what the leader sends.
///
/// The log is whole again when one of these holds, each counted from this start on:
/// - it reaches [`DataLoss::upto`], by entries of a leader whose term is at least [`DataLoss::term`];
/// - it holds a committed entry of a term later than [`DataLoss::term`] (a leader may have a shorter log than `upto`, for
///   not all that was acknowledged was committed; but it has all that was committed before its term).
///
/// With [`DataLoss::vote_lost`] the vote has to be settled before that, see there. Then [`Log::healed`](crate::Log::healed).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataLoss {
    /// The highest index that may ever have been reported durable by this directory; `u64::MAX` when that is not known,
    /// 0 when no record is missing.
    pub upto: u64,
    /// The latest term that the node is known to have been in when the loss was found. What it acknowledged is of no
    /// later term, unless the vote is lost too.
    pub term: u64,
    /// Term and vote are lost: the node may have voted in any term, for anybody, whatever [`crate::Recovered::vote`] says.
    ///
    /// Whoever got such a vote asked for it, so he was in that term and keeps it on disk. Hence the vote is settled when
    /// **every** other voter (not only a majority) was heard from since this start and its term is known: the highest
    /// of these terms and of `Recovered::vote` is saved with a vote for the node itself ([`Log::save_vote`](crate::Log::save_vote)), durably.
    /// In that term and in all earlier ones it votes for nobody then. Only what the log takes from then on counts for `upto`,
    /// and `term` is at least that term.
    pub vote_lost: bool,
    /// The directory was made in the place of one that is gone for good, and its operator has said so.
    pub replaces: bool,
    /// What this start found damaged, for the log line; empty when it was found by an earlier one.
    pub damage: Vec<Damage>,
}

/// What may have been promised and is not there.
#[derive(Clone, Debug)]
pub(crate) struct LostRecords {
    /// The highest index that may have been reported durable; `u64::MAX` when nothing tells.
    pub(crate) upto: u64,
    pub(crate) damage: Damage,
}
