//! A request's name, and its reply.

use crate::types::Index;

/// The reply to a command or a read, and where in the log it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// For a command its own index; for a read the index up to which everything was applied when it was answered.
    pub index: Index,
    /// What the state machine wrote.
    pub bytes: Vec<u8>,
}

/// Bits of a token that name the slot, so that `Config::max_pending` is at most [`MAX_SLOTS`]; the others count rounds.
///
/// An answer may come as late as the log keeps its entry, so rounds must not come round within a node's life. The free list
/// gives out all slots in turn, hence a token repeats after `slots << 40` requests: at 1,000,000 a second after 570 years
/// with the default of 16,384 slots, after 2 years with the fewest (64).
pub(super) const SLOT_BITS: u32 = 24;

pub(super) const ROUND_MASK: u64 = u64::MAX >> SLOT_BITS;

/// The most requests that a table has room for.
pub(crate) const MAX_SLOTS: usize = 1 << SLOT_BITS;

/// Names one round of one slot: `round << SLOT_BITS | slot`. Travels in the entry as its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    pub(super) fn slot(self) -> usize {
        (self.0 & (MAX_SLOTS as u64 - 1)) as usize
    }

    /// The round that a slot's state is of.
    pub(super) fn of(state: u64, slot: usize) -> Self {
        Self((state >> 8) << SLOT_BITS | slot as u64)
    }

    pub(super) fn round(self) -> u64 {
        self.0 >> SLOT_BITS
    }

    pub(super) fn state(self, phase: u64) -> u64 {
        self.round() << 8 | phase
    }
}
