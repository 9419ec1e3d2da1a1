//! What this directory may have promised and does not hold any more, until the peers have given it back.
//!
//! ```text
//!  0        8        12   14     15   16     24     32            40         64
//!  ├ magic ─┼ crc32c ┼ ver┼flags ┼ 0 ─┼ upto ┼ term ┼ incarnation ┼ … zeros ┤
//! ```
//!
//! The danger: a node has acknowledged entry 100, its disk loses it, the node cuts its log back to 50 and votes as if it
//! had lost nothing. With a second node that never had entry 100 it elects a leader without it, and what was committed is
//! gone. So the file `heal` is durable before anything is cut, it is found again by every start, and as long as it is
//! there the node neither votes nor stands. Only [`Log::healed`] removes it.
//!
//! A directory that takes the place of one that is gone for good ([`Options::replaces`]) is born with the file: nothing is
//! known of what the old one promised.
//!
//! A file `heal` that is damaged itself still says that something is missing: then nothing is known about how much.

use crate::error::{Doing, StorageError};
use crate::file::{Dir, File};
use crate::identity::Identity;
use crate::log::Log;
use crate::meta::{META_LEN, META_NAME, Meta, MetaState, Vote};
use crate::options::Options;
use crate::plan::{self, Lost, Rules};
use crate::record::{u32_at, u64_at};
use crate::recover::{Decision, Found};
use crate::source::is_medium_error;

pub(crate) const HEAL_NAME: &str = "heal";
const TEMPORARY_NAME: &str = "heal.tmp";
const META_TEMPORARY: &str = "meta.tmp";
const LEN: usize = 64;
const VERSION: u16 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"rr heal\n");
const VOTE_LOST: u8 = 1;
/// What is to be cut off may still be there: this start, or the one that found it, has not ended.
const CUTTING: u8 = 2;
/// The directory was made in the place of one that is gone.
const REPLACES: u8 = 4;

/// What was found damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wound {
    /// The file, relative to the directory.
    pub file: String,
    /// Where it is bad, in bytes.
    pub offset: u64,
    /// The first index that is bad, when it is about a record.
    pub index: Option<u64>,
    /// What is wrong there.
    pub detail: String,
}

impl std::fmt::Display for Wound {
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
/// - it reaches [`Heal::upto`], by entries of a leader whose term is at least [`Heal::term`];
/// - it holds a committed entry of a term later than [`Heal::term`] (a leader may have a shorter log than `upto`, for
///   not all that was acknowledged was committed; but it has all that was committed before its term).
///
/// With [`Heal::vote_lost`] the vote has to be settled before that, see there. Then [`Log::healed`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heal {
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
    /// of these terms and of `Recovered::vote` is saved with a vote for the node itself ([`Log::save_vote`]), durably.
    /// In that term and in all earlier ones it votes for nobody then. Only what the log takes from then on counts for `upto`,
    /// and `term` is at least that term.
    pub vote_lost: bool,
    /// The directory was made in the place of one that is gone for good, and its operator has said so.
    pub replaces: bool,
    /// What this start found damaged, for the log line; empty when it was found by an earlier one.
    pub wounds: Vec<Wound>,
}

/// The file, and what has to go into it while a directory is opened.
#[derive(Debug)]
pub(crate) struct Healing<D> {
    dir: D,
    sync: bool,
    incarnation: u64,
    heal: Option<Heal>,
    /// The damage that the file tells of is being cut off. What is found then was seen whole before.
    cutting: bool,
    /// The file is there and says nothing.
    pub(crate) damaged: bool,
    /// The term that the file with the vote tells.
    pub(crate) vote_term: u64,
}

impl<D: Dir> Healing<D> {
    /// Reads the file; without one nothing is missing.
    pub(crate) fn read(
        dir: &D,
        names: &[String],
        identity: &Identity,
        sync: bool,
    ) -> Result<Self, StorageError> {
        let mut healing = Healing {
            dir: dir.clone(),
            sync,
            incarnation: identity.incarnation,
            heal: None,
            cutting: false,
            damaged: false,
            vote_term: 0,
        };
        if names.iter().any(|name| name == HEAL_NAME) {
            let heal = read_file(dir, identity.incarnation)?;
            healing.damaged = heal.is_none();
            let (heal, cutting) = heal.unwrap_or((UNKNOWN, false));
            healing.heal = Some(heal);
            healing.cutting = cutting;
        }
        Ok(healing)
    }

    pub(crate) fn is_some(&self) -> bool {
        self.heal.is_some()
    }

    /// Something that was promised is not in the log. Durable when this returns.
    pub(crate) fn lost(&mut self, lost: Lost, term: u64) -> Result<(), StorageError> {
        // What a start that was cut short has removed so far does not count: the file holds what was seen before that.
        let upto = if self.cutting { 0 } else { lost.upto };
        self.cutting = true;
        self.add(upto, term, false, lost.wound)
    }

    /// What was damaged is cut off, durably.
    pub(crate) fn cut(&mut self) -> Result<(), StorageError> {
        if let (true, Some(heal)) = (std::mem::take(&mut self.cutting), &self.heal) {
            publish(&self.dir, heal, false, self.incarnation, self.sync)?;
        }
        Ok(())
    }

    /// What is kept about the vote may not be what it was. Durable when this returns.
    pub(crate) fn vote_lost(&mut self, term: u64, wound: Wound) -> Result<(), StorageError> {
        self.add(0, term, true, wound)
    }

    /// One copy of the vote is bad, and may have been the newer one. Durable when this returns.
    pub(crate) fn slot_lost(&mut self) -> Result<(), StorageError> {
        let wound = Wound {
            file: META_NAME.into(),
            offset: 0,
            index: None,
            detail: "one of two copies of term and vote is bad, and may have been the newer one"
                .into(),
        };
        self.vote_lost(self.vote_term, wound)
    }

    fn add(&mut self, upto: u64, term: u64, vote: bool, wound: Wound) -> Result<(), StorageError> {
        let mut heal = self.heal.take().unwrap_or(Heal {
            upto: 0,
            term: 0,
            vote_lost: false,
            replaces: false,
            wounds: Vec::new(),
        });
        heal.upto = heal.upto.max(upto);
        heal.term = heal.term.max(term).max(self.vote_term);
        heal.vote_lost |= vote;
        let published = publish(&self.dir, &heal, self.cutting, self.incarnation, self.sync);
        heal.wounds.push(wound);
        self.heal = Some(heal);
        published
    }

    /// For whoever opened the directory.
    pub(crate) fn into_heal(self, vote: Vote) -> Option<Heal> {
        let mut heal = self.heal?;
        if self.damaged {
            heal.term = heal.term.max(vote.term);
        }
        Some(heal)
    }
}

impl<D: Dir> Log<D> {
    /// The log is whole again, and the vote is settled ([`Heal`]): forgets, durably, that something was missing.
    ///
    /// What makes it whole may still be on its way to the disk: it waits until that is there.
    ///
    /// # Errors
    /// The medium failed. Then the next start may find the directory healing still, which is safe.
    pub fn healed(&mut self) -> Result<(), StorageError> {
        self.check()?;
        let result = self
            .flush_all()
            .and_then(|()| forget(&self.dir, self.options.sync));
        self.keep(result)
    }
}

/// Removes the file, durably.
pub(crate) fn forget<D: Dir>(dir: &D, sync: bool) -> Result<(), StorageError> {
    let path = dir.path(HEAL_NAME);
    match dir.remove(HEAL_NAME) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(StorageError::io("remove", &path, e)),
    }
    if sync {
        dir.sync_dir("").doing("flush the directory of", &path)?;
    }
    Ok(())
}

/// Whether this error about the file `meta` says that term and vote are lost.
pub(crate) fn is_loss(error: &StorageError) -> bool {
    match error {
        StorageError::Corrupt { .. } => true,
        StorageError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The log was being replaced by a snapshot that is damaged: nothing is left of either.
pub(crate) fn reset_without_snapshot(found: &StorageError) -> Lost {
    let wound = Wound {
        file: "log".into(),
        offset: 0,
        index: None,
        detail: found.to_string(),
    };
    let upto = u64::MAX;
    Lost { upto, wound }
}

/// Makes the file `meta` anew, after both copies of term and vote were lost: the highest term that a record shows, and a
/// vote for the node itself there, so that it votes for nobody in it. That it may have voted in later ones too goes into
/// `healing`, first.
pub(crate) fn remake_meta<D: Dir>(
    dir: &D,
    identity: &Identity,
    snapshot: Option<(u64, u64)>,
    options: &Options,
    healing: &mut Healing<D>,
    found: &StorageError,
) -> Result<Decision, StorageError> {
    let rules = Rules {
        heal: true,
        healing: healing.is_some(),
        snapshot,
    };
    let term = plan::look(dir, identity, None, rules)?.term;
    let term = term.max(snapshot.map_or(0, |(_, term)| term));
    let detail = match found {
        StorageError::Corrupt { detail, .. } => detail.clone(),
        _ => "the file is missing".into(),
    };
    let wound = Wound {
        file: META_NAME.into(),
        offset: 0,
        index: None,
        detail,
    };
    healing.vote_lost(term, wound)?;

    let path = dir.path(META_TEMPORARY);
    let file = dir
        .create(META_TEMPORARY, META_LEN)
        .doing("create", &path)?;
    let mut meta = Meta::create(file, identity.incarnation)?;
    let vote = Vote {
        term,
        voted_for: Some(identity.node_id),
    };
    meta.set(MetaState {
        vote,
        truncate_after: None,
        reset_to: None,
    });
    // Into both copies.
    for _ in 0..2 {
        meta.write()?;
        if options.sync {
            meta.file.sync().doing("flush", &path)?;
        }
        meta.flushed();
    }
    dir.rename(META_TEMPORARY, META_NAME)
        .doing("rename", &path)?;
    if options.sync {
        dir.sync_dir("").doing("flush the directory of", &path)?;
    }
    Ok(Decision::healing(META_NAME, Found::MetaDamaged))
}

fn publish<D: Dir>(
    dir: &D,
    heal: &Heal,
    cutting: bool,
    incarnation: u64,
    sync: bool,
) -> Result<(), StorageError> {
    let path = dir.path(TEMPORARY_NAME);
    let file = dir
        .create(TEMPORARY_NAME, LEN as u64)
        .doing("create", &path)?;
    file.write_at(0, &encode(heal, cutting, incarnation))
        .doing("write", &path)?;
    if sync {
        file.sync().doing("flush", &path)?;
    }
    dir.rename(TEMPORARY_NAME, HEAL_NAME)
        .doing("rename", &path)?;
    if sync {
        dir.sync_dir("").doing("flush the directory of", &path)?;
    }
    Ok(())
}

fn encode(heal: &Heal, cutting: bool, incarnation: u64) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[12..14].copy_from_slice(&VERSION.to_le_bytes());
    for (is_set, flag) in [
        (heal.vote_lost, VOTE_LOST),
        (cutting, CUTTING),
        (heal.replaces, REPLACES),
    ] {
        out[14] |= if is_set { flag } else { 0 };
    }
    out[16..24].copy_from_slice(&heal.upto.to_le_bytes());
    out[24..32].copy_from_slice(&heal.term.to_le_bytes());
    out[32..40].copy_from_slice(&incarnation.to_le_bytes());
    let crc = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

/// What a damaged file says.
pub(crate) const UNKNOWN: Heal = Heal {
    upto: u64::MAX,
    term: 0,
    vote_lost: true,
    replaces: false,
    wounds: Vec::new(),
};

/// What a directory begins with that is made in the place of one that is gone. Durable when this returns.
pub(crate) fn begin_anew<D: Dir>(
    dir: &D,
    incarnation: u64,
    sync: bool,
) -> Result<(), StorageError> {
    let heal = Heal {
        replaces: true,
        ..UNKNOWN
    };
    publish(dir, &heal, false, incarnation, sync)
}

/// The file, and whether what it tells of is being cut off. `Ok(None)`: it is damaged.
pub(crate) fn read_file<D: Dir>(
    dir: &D,
    incarnation: u64,
) -> Result<Option<(Heal, bool)>, StorageError> {
    let path = dir.path(HEAL_NAME);
    let file = dir.open(HEAL_NAME).doing("open", &path)?;
    if file.length().doing("read the length of", &path)? != LEN as u64 {
        return Ok(None);
    }
    let mut bytes = [0; LEN];
    match file.read_at(0, &mut bytes) {
        Err(error) if is_medium_error(&error) => return Ok(None),
        read => read.doing("read", &path)?,
    }
    if u64_at(&bytes, 0) != MAGIC || crc32c::crc32c(&bytes[12..]) != u32_at(&bytes, 8) {
        return Ok(None);
    }
    let version = u16::from_le_bytes([bytes[12], bytes[13]]);
    if version != VERSION {
        let (found, supported) = (version.into(), VERSION.into());
        return Err(StorageError::Version {
            path,
            found,
            supported,
        });
    }
    // One of another directory got here by mistake: what it says about this one is not known.
    let ours = u64_at(&bytes, 32) == incarnation;
    let heal = Heal {
        upto: u64_at(&bytes, 16),
        term: u64_at(&bytes, 24),
        vote_lost: bytes[14] & VOTE_LOST != 0,
        replaces: bytes[14] & REPLACES != 0,
        wounds: Vec::new(),
    };
    Ok(ours.then_some((heal, bytes[14] & CUTTING != 0)))
}
