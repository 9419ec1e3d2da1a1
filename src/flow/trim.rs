//! The slots of a ring keep their buffers, which have grown to the longest contents that each of them ever had. Once nothing
//! long has come for a while, they are given back what is beyond a usual size.
//!
//! Only the writer can touch the buffers of free slots, by sending them. So it shrinks those of all slots that it sends, one
//! round of the ring long; in a ring that stands still it sends slots without contents for that. As long as something long
//! comes now and then no buffer shrinks: a steady load of long batches allocates nothing.

/// A buffer of a slot keeps this much.
pub(crate) const KEEP_BYTES: usize = 64 << 10;
/// Nothing longer has come for so long.
const QUIET_US: u64 = 1_000_000;

/// The state of one ring.
#[derive(Debug)]
pub(crate) struct Trim {
    slots: usize,
    /// Something long was sent since the last tick.
    is_long: bool,
    /// When something long was sent last, if the buffers have not been looked at since.
    long_us: Option<u64>,
    /// Slots that are to be sent before all have been looked at.
    left: usize,
}

impl Trim {
    /// For a ring of so many slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            is_long: false,
            long_us: None,
            left: 0,
        }
    }

    /// Whether a tick would do nothing.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_long && self.long_us.is_none() && self.left == 0
    }

    /// Whether nothing long came for a while, and not all slots have been looked at.
    pub(crate) fn is_quiet(&self) -> bool {
        self.left > 0
    }

    /// Looks at the clock, once a turn. Says how many slots are to be sent without contents, as far as there is room.
    pub(crate) fn tick(&mut self, now_us: u64) -> usize {
        if std::mem::take(&mut self.is_long) {
            self.long_us = Some(now_us);
        }
        if self.long_us.is_some_and(|at| now_us >= at + QUIET_US) {
            self.long_us = None;
            self.left = self.slots;
        }
        self.left
    }

    /// A slot is about to be sent, with this in its buffer.
    pub(crate) fn sends(&mut self, buffer: &mut Vec<u8>) {
        if buffer.len() > KEEP_BYTES {
            // Those that were not looked at by now wait for the next quiet moment.
            (self.is_long, self.left) = (true, 0);
        } else if self.left > 0 {
            self.left -= 1;
            shrink(buffer);
        }
    }
}

/// Gives back what an empty or short buffer has over the usual size.
pub(crate) fn shrink(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEEP_BYTES {
        buffer.shrink_to(KEEP_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_shrink_when_nothing_long_came_for_a_while_and_not_before() {
        let mut trim = Trim::new(2);
        let mut slots = [Vec::new(), Vec::new()];
        for (slot, now_us) in slots.iter_mut().zip([5, QUIET_US]) {
            slot.resize(KEEP_BYTES + 1, 0);
            trim.sends(slot);
            assert_eq!(trim.tick(now_us), 0);
            slot.clear();
        }
        assert!(!trim.is_idle());
        assert_eq!(trim.tick(2 * QUIET_US - 1), 0);
        trim.sends(&mut slots[0]);
        assert!(slots[0].capacity() > KEEP_BYTES, "not yet");
        assert_eq!(trim.tick(2 * QUIET_US), 2);
        for (slot, left) in slots.iter_mut().zip([1, 0]) {
            trim.sends(slot);
            assert!(slot.capacity() <= KEEP_BYTES);
            assert_eq!(trim.tick(2 * QUIET_US + 1), left);
        }
        assert!(trim.is_idle());
    }

    #[test]
    fn something_long_in_between_puts_it_off() {
        let mut trim = Trim::new(4);
        let mut long = vec![0; KEEP_BYTES + 1];
        trim.sends(&mut long);
        trim.tick(0);
        assert_eq!(trim.tick(QUIET_US), 4);
        trim.sends(&mut long);
        assert_eq!(trim.tick(QUIET_US + 1), 0);
        assert_eq!(trim.tick(2 * QUIET_US + 1), 4);
    }
}
