//! What must outlive the process beside the records: term and vote, and the intent to truncate or to replace the log.
//!
//! One file with two slots in blocks of their own:
//!
//! ```text
//!  0        8        12   14     15   16        24     32         40              48            56           64
//!  ├ magic ─┼ crc32c ┼ ver┼flags ┼ 0 ─┼sequence ┼ term ┼voted_for ┼truncate_after ┼ incarnation ┼ reset_term ┤
//!                                                               │or reset_to     │
//! ```
//!
//! The slot with the higher sequence counts. Invariants: a slot is written only when the other one
//! holds what was last made durable, so a torn write loses nothing that was promised; no slot is
//! written while its flush runs (what is saved meanwhile waits here for the next one).
//!
//! What has become durable in one slot is then written into the other one too, with whatever flush
//! comes next: from then on a slot that goes bad costs nothing.

use std::path::Path;

use crate::error::{Doing, StorageError};
use crate::medium::File;
use crate::medium::is_medium_error;
use crate::record::{u32_at, u64_at};

/// Where the log keeps it.
pub(crate) const META_NAME: &str = "meta";
/// Length of the file in bytes.
pub(crate) const META_LEN: u64 = 2 * SLOT_STEP;

const SLOT_STEP: u64 = 4096;
const SLOT_LEN: usize = 64;
const VERSION: u16 = 1;
/// Of a slot with the intent to replace the log: a build that does not know it must not take the log for what is there.
const VERSION_OF_RESET: u16 = 2;
const MAGIC: u64 = u64::from_le_bytes(*b"rr meta\n");
const VOTED: u8 = 1;
const TRUNCATE: u8 = 2;
const RESET: u8 = 4;

/// The term a node is in, and whom it voted for there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vote {
    /// The latest term the node has seen; 0 in a new directory.
    pub term: u64,
    /// The node it voted for in this term, if any.
    pub voted_for: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MetaState {
    pub(crate) vote: Vote,
    /// The log is being cut behind this index; recovery finishes it.
    pub(crate) truncate_after: Option<u64>,
    /// The log is being replaced by an empty one behind this index and term; recovery finishes it. Never both.
    pub(crate) reset_to: Option<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) sequence: u64,
    pub(crate) incarnation: u64,
    pub(crate) state: MetaState,
}

impl Slot {
    fn encode(&self) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        let MetaState {
            vote,
            truncate_after,
            reset_to,
        } = self.state;
        assert!(
            truncate_after.is_none() || reset_to.is_none(),
            "a truncation after {truncate_after:?} while the log is replaced by {reset_to:?}"
        );
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        let version = match reset_to {
            None => VERSION,
            Some(_) => VERSION_OF_RESET,
        };
        out[12..14].copy_from_slice(&version.to_le_bytes());
        let flag = |set: bool, flag| if set { flag } else { 0 };
        out[14] = flag(vote.voted_for.is_some(), VOTED)
            | flag(truncate_after.is_some(), TRUNCATE)
            | flag(reset_to.is_some(), RESET);
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&vote.term.to_le_bytes());
        out[32..40].copy_from_slice(&vote.voted_for.unwrap_or(0).to_le_bytes());
        let (reset_index, reset_term) = reset_to.unwrap_or_default();
        let index = truncate_after.unwrap_or(reset_index);
        out[40..48].copy_from_slice(&index.to_le_bytes());
        out[48..56].copy_from_slice(&self.incarnation.to_le_bytes());
        out[56..64].copy_from_slice(&reset_term.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `Ok(None)`: torn or damaged.
    fn decode(bytes: &[u8; SLOT_LEN], path: &Path) -> Result<Option<Slot>, StorageError> {
        if u64_at(bytes, 0) != MAGIC || crc32c::crc32c(&bytes[12..]) != u32_at(bytes, 8) {
            return Ok(None);
        }
        let version = u16::from_le_bytes([bytes[12], bytes[13]]);
        if version != VERSION && version != VERSION_OF_RESET {
            let (found, supported) = (version.into(), VERSION_OF_RESET.into());
            return Err(StorageError::Version {
                path: path.into(),
                found,
                supported,
            });
        }
        let flag = |flag, at| (bytes[14] & flag != 0).then(|| u64_at(bytes, at));
        let vote = Vote {
            term: u64_at(bytes, 24),
            voted_for: flag(VOTED, 32),
        };
        let state = MetaState {
            vote,
            truncate_after: flag(TRUNCATE, 40),
            reset_to: flag(RESET, 40).map(|index| (index, u64_at(bytes, 56))),
        };
        let (sequence, incarnation) = (u64_at(bytes, 16), u64_at(bytes, 48));
        Ok(Some(Slot {
            sequence,
            incarnation,
            state,
        }))
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Meta<F> {
    pub(crate) file: F,
    /// What it shall hold; ahead of the file while `unwritten`.
    state: MetaState,
    unwritten: bool,
    /// What was written last, and what was last made durable.
    written_state: MetaState,
    durable_state: MetaState,
    incarnation: u64,
    /// Sequence of the slot that was written last; its slot is `sequence % 2`.
    sequence: u64,
    /// Sequence of the slot that holds what was last made durable.
    durable: u64,
    /// Only one slot holds what was last made durable.
    single: bool,
}

impl<F: File> Meta<F> {
    /// Fills a new file; the caller makes it durable.
    pub(crate) fn create(file: F, incarnation: u64) -> Result<Meta<F>, StorageError> {
        let state = MetaState::default();
        for sequence in 0..2 {
            let slot = Slot {
                sequence,
                incarnation,
                state,
            };
            let at = sequence * SLOT_STEP;
            file.write_at(at, &slot.encode())
                .doing_at("write", file.path(), at)?;
        }
        let slot = Slot {
            sequence: 1,
            incarnation,
            state,
        };
        Ok(Meta::holding(file, slot, false))
    }

    /// Reads the file. The second result says that one slot was bad.
    pub(crate) fn open(file: F, incarnation: u64) -> Result<(Meta<F>, bool), StorageError> {
        let path = file.path();
        let slots = read_slots(&file)?;
        let bad_slot = slots.contains(&None);
        let Some(slot) = slots
            .iter()
            .flatten()
            .copied()
            .max_by_key(|slot| slot.sequence)
        else {
            // Term 0 would be a lie: this node may have voted.
            let detail = "both copies of term and vote are damaged";
            return Err(StorageError::corrupt(path, 0, detail));
        };
        if slot.incarnation != incarnation {
            return Err(StorageError::Foreign {
                path: path.into(),
                what: "incarnation",
                found: slot.incarnation,
                expected: incarnation,
            });
        }
        let single = !slots
            .iter()
            .flatten()
            .all(|other| other.state == slot.state)
            || bad_slot;
        Ok((Meta::holding(file, slot, single), bad_slot))
    }

    fn holding(file: F, slot: Slot, single: bool) -> Meta<F> {
        let Slot {
            sequence,
            incarnation,
            state,
        } = slot;
        Meta {
            file,
            state,
            unwritten: false,
            written_state: state,
            durable_state: state,
            incarnation,
            sequence,
            durable: sequence,
            single,
        }
    }

    /// Whether a file that may be anything holds a term, a vote or an intent.
    pub(crate) fn holds_something(file: &F) -> Result<bool, StorageError> {
        let len = file.length().doing("read the length of", file.path())?;
        let new = |slot: &Slot| slot.state == MetaState::default();
        Ok(len == META_LEN && !read_slots(file)?.iter().flatten().all(new))
    }

    pub(crate) fn state(&self) -> MetaState {
        self.state
    }

    pub(crate) fn durable_state(&self) -> MetaState {
        self.durable_state
    }

    /// Takes the new state; [`Meta::write`] brings it into the file.
    pub(crate) fn set(&mut self, state: MetaState) {
        self.state = state;
        self.unwritten = true;
    }

    /// Whether the file is behind.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.unwritten
    }

    /// Whether the file is behind, or its last write not known to be durable.
    pub(crate) fn is_dirty(&self) -> bool {
        self.unwritten || self.sequence != self.durable
    }

    /// Writes the slot in force once more, as it is: after a flush that failed it may be in the page cache only, and the
    /// kernel takes it for clean.
    pub(crate) fn renew(&mut self) -> Result<(), StorageError> {
        let (sequence, incarnation) = (self.durable, self.incarnation);
        let slot = Slot {
            sequence,
            incarnation,
            state: self.durable_state,
        };
        let at = sequence % 2 * SLOT_STEP;
        self.file
            .write_at(at, &slot.encode())
            .doing_at("write", self.file.path(), at)
    }

    /// Whether a write would be of use although nothing is new: it makes the slots the same.
    pub(crate) fn is_single(&self) -> bool {
        self.single
    }

    /// Writes the slot that does not hold what was last made durable. No flush may be running.
    pub(crate) fn write(&mut self) -> Result<(), StorageError> {
        let (sequence, incarnation) = (self.durable + 1, self.incarnation);
        let at = sequence % 2 * SLOT_STEP;
        let bytes = Slot {
            sequence,
            incarnation,
            state: self.state,
        }
        .encode();
        self.file
            .write_at(at, &bytes)
            .doing_at("write", self.file.path(), at)?;
        self.sequence = sequence;
        self.written_state = self.state;
        self.unwritten = false;
        Ok(())
    }

    /// The last write is durable.
    pub(crate) fn flushed(&mut self) {
        if self.durable != self.sequence {
            self.single = self.durable_state != self.written_state;
        }
        self.durable = self.sequence;
        self.durable_state = self.written_state;
    }
}

/// The two slots; `None` for one that is torn or damaged.
pub(crate) fn read_slots<F: File>(file: &F) -> Result<[Option<Slot>; 2], StorageError> {
    let path = file.path();
    let len = file.length().doing("read the length of", path)?;
    if len != META_LEN {
        let detail = format!("the file has {len} bytes instead of {META_LEN}");
        return Err(StorageError::corrupt(path, 0, detail));
    }
    let mut slots = [None; 2];
    for (number, slot) in (0..).zip(&mut slots) {
        let (mut bytes, at) = ([0; SLOT_LEN], number * SLOT_STEP);
        match file.read_at(at, &mut bytes) {
            // The slot is in a page of its own: the other one does not suffer.
            Err(error) if is_medium_error(&error) => continue,
            read => read.doing_at("read", path, at)?,
        }
        *slot = Slot::decode(&bytes, path)?.filter(|slot| slot.sequence % 2 == number);
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::Dir;
    use crate::medium::memory::{Loss, Memory, MemoryFile};

    fn voted(term: u64, voted_for: u64) -> MetaState {
        let vote = Vote {
            term,
            voted_for: Some(voted_for),
        };
        MetaState {
            vote,
            truncate_after: None,
            reset_to: None,
        }
    }

    fn new_file() -> (Memory, Meta<MemoryFile>) {
        let memory = Memory::new(1);
        let file = memory.create(META_NAME, META_LEN).expect("created");
        let meta = Meta::create(file, 42).expect("written");
        meta.file.sync().expect("synced");
        memory.sync_dir("").expect("synced");
        (memory, meta)
    }

    fn reopen(memory: &Memory) -> Result<(Meta<MemoryFile>, bool), StorageError> {
        Meta::open(memory.open(META_NAME).expect("it is there"), 42)
    }

    fn save(meta: &mut Meta<MemoryFile>, state: MetaState) {
        meta.set(state);
        meta.write().expect("written");
        meta.file.sync().expect("synced");
        meta.flushed();
    }

    #[test]
    fn a_new_node_has_not_voted() {
        let (memory, _) = new_file();
        let (meta, bad_slot) = reopen(&memory).expect("sound");
        assert_eq!((meta.state(), bad_slot), (MetaState::default(), false));
    }

    #[test]
    fn the_last_saved_state_is_read_back() {
        let (memory, mut meta) = new_file();
        for term in 1..=5 {
            save(&mut meta, voted(term, 3));
            assert_eq!(
                reopen(&memory.power_cut(Loss::All))
                    .expect("sound")
                    .0
                    .state(),
                voted(term, 3)
            );
        }
        let intent = MetaState {
            truncate_after: Some(0),
            ..voted(5, 0)
        };
        save(&mut meta, intent);
        assert_eq!(reopen(&memory).expect("sound").0.state(), intent);
    }

    #[test]
    fn what_was_made_durable_survives_whatever_happens_to_the_next_writes() {
        let (memory, mut meta) = new_file();
        save(&mut meta, voted(7, 1));
        for term in 8..=11 {
            // Saved and written, and never flushed.
            meta.set(voted(term, 2));
            meta.write().expect("written");
            for seed in 0..8 {
                let left = memory.power_cut(Loss::Random(seed));
                let state = reopen(&left).expect("one slot is good").0.state();
                assert!(state == voted(7, 1) || state == voted(term, 2), "{state:?}");
            }
            // Torn inside the sector, as a disk without the promise would.
            let torn = memory.power_cut(Loss::Nothing);
            let slot = (meta.sequence % 2 * SLOT_STEP) as usize;
            torn.damage(META_NAME, |bytes| bytes[slot + 24] ^= 0xFF)
                .expect("damaged");
            let (meta, bad_slot) = reopen(&torn).expect("one slot is good");
            assert_eq!((meta.state(), bad_slot), (voted(7, 1), true));
        }
    }

    #[test]
    fn two_bad_slots_are_an_error_and_never_term_0() {
        let (memory, mut meta) = new_file();
        save(&mut meta, voted(7, 1));
        memory
            .damage(META_NAME, |bytes| {
                bytes[20] ^= 1;
                bytes[SLOT_STEP as usize + 20] ^= 1;
            })
            .expect("damaged");
        let error = reopen(&memory).expect_err("nothing to trust").to_string();
        assert!(error.contains("both copies of term and vote"), "{error}");
    }

    #[test]
    fn another_directorys_meta_is_refused() {
        let (memory, _) = new_file();
        let file = memory.open(META_NAME).expect("it is there");
        assert!(matches!(
            Meta::open(file, 43),
            Err(StorageError::Foreign { .. })
        ));
    }
}
