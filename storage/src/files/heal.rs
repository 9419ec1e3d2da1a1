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

use crate::damage::{Damage, DataLoss, LostRecords};
use crate::error::{Doing, StorageError};
use crate::files::identity::Identity;
use crate::files::meta::{META_NAME, Vote};
use crate::medium::is_medium_error;
use crate::medium::{Dir, File};
use crate::record::{u32_at, u64_at};

pub(crate) const HEAL_NAME: &str = "heal";
const TEMPORARY_NAME: &str = "heal.tmp";
const LEN: usize = 64;
const VERSION: u16 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"rr heal\n");
const VOTE_LOST: u8 = 1;
/// What is to be cut off may still be there: this start, or the one that found it, has not ended.
const CUTTING: u8 = 2;
/// The directory was made in the place of one that is gone.
const REPLACES: u8 = 4;

/// The file, and what has to go into it while a directory is opened.
#[derive(Debug)]
pub(crate) struct HealFile<D> {
    dir: D,
    sync: bool,
    incarnation: u64,
    heal: Option<DataLoss>,
    /// The damage that the file tells of is being cut off. What is found then was seen whole before.
    cutting: bool,
    /// The file is there and says nothing.
    pub(crate) damaged: bool,
    /// The term that the file with the vote tells.
    pub(crate) vote_term: u64,
}

impl<D: Dir> HealFile<D> {
    /// Reads the file; without one nothing is missing.
    pub(crate) fn read(
        dir: &D,
        names: &[String],
        identity: &Identity,
        sync: bool,
    ) -> Result<Self, StorageError> {
        let mut healing = HealFile {
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
    pub(crate) fn lost(&mut self, lost: LostRecords, term: u64) -> Result<(), StorageError> {
        // What a start that was cut short has removed so far does not count: the file holds what was seen before that.
        let upto = if self.cutting { 0 } else { lost.upto };
        self.cutting = true;
        self.add(upto, term, false, lost.damage)
    }

    /// What was damaged is cut off, durably.
    pub(crate) fn cut(&mut self) -> Result<(), StorageError> {
        if let (true, Some(heal)) = (std::mem::take(&mut self.cutting), &self.heal) {
            publish(&self.dir, heal, false, self.incarnation, self.sync)?;
        }
        Ok(())
    }

    /// What is kept about the vote may not be what it was. Durable when this returns.
    pub(crate) fn vote_lost(&mut self, term: u64, damage: Damage) -> Result<(), StorageError> {
        self.add(0, term, true, damage)
    }

    /// One copy of the vote is bad, and may have been the newer one. Durable when this returns.
    pub(crate) fn slot_lost(&mut self) -> Result<(), StorageError> {
        let damage = Damage {
            file: META_NAME.into(),
            offset: 0,
            index: None,
            detail: "one of two copies of term and vote is bad, and may have been the newer one"
                .into(),
        };
        self.vote_lost(self.vote_term, damage)
    }

    fn add(
        &mut self,
        upto: u64,
        term: u64,
        vote: bool,
        damage: Damage,
    ) -> Result<(), StorageError> {
        let mut heal = self.heal.take().unwrap_or(DataLoss {
            upto: 0,
            term: 0,
            vote_lost: false,
            replaces: false,
            damage: Vec::new(),
        });
        heal.upto = heal.upto.max(upto);
        heal.term = heal.term.max(term).max(self.vote_term);
        heal.vote_lost |= vote;
        let published = publish(&self.dir, &heal, self.cutting, self.incarnation, self.sync);
        heal.damage.push(damage);
        self.heal = Some(heal);
        published
    }

    /// For whoever opened the directory.
    pub(crate) fn into_data_loss(self, vote: Vote) -> Option<DataLoss> {
        let mut heal = self.heal?;
        if self.damaged {
            heal.term = heal.term.max(vote.term);
        }
        Some(heal)
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

fn publish<D: Dir>(
    dir: &D,
    heal: &DataLoss,
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

fn encode(heal: &DataLoss, cutting: bool, incarnation: u64) -> [u8; LEN] {
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
pub(crate) const UNKNOWN: DataLoss = DataLoss {
    upto: u64::MAX,
    term: 0,
    vote_lost: true,
    replaces: false,
    damage: Vec::new(),
};

/// What a directory begins with that is made in the place of one that is gone. Durable when this returns.
pub(crate) fn begin_anew<D: Dir>(
    dir: &D,
    incarnation: u64,
    sync: bool,
) -> Result<(), StorageError> {
    let heal = DataLoss {
        replaces: true,
        ..UNKNOWN
    };
    publish(dir, &heal, false, incarnation, sync)
}

/// The file, and whether what it tells of is being cut off. `Ok(None)`: it is damaged.
pub(crate) fn read_file<D: Dir>(
    dir: &D,
    incarnation: u64,
) -> Result<Option<(DataLoss, bool)>, StorageError> {
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
    let heal = DataLoss {
        upto: u64_at(&bytes, 16),
        term: u64_at(&bytes, 24),
        vote_lost: bytes[14] & VOTE_LOST != 0,
        replaces: bytes[14] & REPLACES != 0,
        damage: Vec::new(),
    };
    Ok(ours.then_some((heal, bytes[14] & CUTTING != 0)))
}
