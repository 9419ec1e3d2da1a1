//! Commands that are too long for a slot of the propose ring: they wait in buffers that are used again, so that after the
//! first of its length none costs an allocation.
//!
//! What holds: the bytes that wait are within the budget, which is taken before a buffer is; and the buffers that are kept
//! for later are so many of each class, whatever was once needed.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

/// Of each class: how long its buffers are, and how many are kept. 4 MiB, 8 MiB, and as much as 16 of the longest commands
/// are; a command that is longer than all classes gets a buffer of its own length.
const CLASSES: [(usize, usize); 3] = [(4 << 10, 1024), (64 << 10, 128), (1 << 20, 16)];

/// Bytes of all that are kept.
pub(crate) const KEPT_BYTES: usize = 28 << 20;

#[derive(Debug)]
pub(crate) struct Spill {
    budget: usize,
    /// Bytes of commands that wait.
    waiting: AtomicUsize,
    kept: [ArrayQueue<Vec<u8>>; CLASSES.len()],
}

impl Spill {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget,
            waiting: AtomicUsize::new(0),
            kept: CLASSES.map(|(_, count)| ArrayQueue::new(count)),
        }
    }

    /// The command in a buffer; `None` when the budget does not allow for it.
    pub(crate) fn take(&self, command: &[u8]) -> Option<Vec<u8>> {
        let before = self.waiting.fetch_add(command.len(), Ordering::Relaxed);
        if before.saturating_add(command.len()) > self.budget {
            self.waiting.fetch_sub(command.len(), Ordering::Relaxed);
            return None;
        }
        let class = CLASSES.iter().position(|class| command.len() <= class.0);
        let kept = class.and_then(|class| self.kept[class].pop());
        let len = class.map_or(command.len(), |class| CLASSES[class].0);
        let mut buffer = kept.unwrap_or_else(|| Vec::with_capacity(len));
        buffer.extend_from_slice(command);
        Some(buffer)
    }

    /// The command waits no more.
    pub(crate) fn give_back(&self, mut buffer: Vec<u8>) {
        self.waiting.fetch_sub(buffer.len(), Ordering::Relaxed);
        buffer.clear();
        let class = CLASSES
            .iter()
            .position(|class| buffer.capacity() == class.0);
        if let Some(class) = class {
            // When so many are kept already, this one is freed.
            let _ = self.kept[class].push(buffer);
        }
    }

    /// Bytes of commands that wait.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_by_commands_of_its_class() {
        let spill = Spill::new(4 << 20);
        let first = spill.take(&[1; 300]).expect("within the budget");
        assert_eq!((first.as_slice(), spill.waiting()), (&[1; 300][..], 300));
        let place = first.as_ptr();
        spill.give_back(first);
        assert_eq!(spill.waiting(), 0);
        let other = spill.take(&[2; 5000]).expect("within the budget");
        assert_ne!(other.as_ptr(), place, "it is too short for that");
        let again = spill.take(&[3; 4096]).expect("within the budget");
        assert_eq!((again.as_slice(), again.as_ptr()), (&[3; 4096][..], place));
    }

    #[test]
    fn beyond_the_budget_nothing_is_taken() {
        let spill = Spill::new(1000);
        let first = spill.take(&[0; 600]).expect("within the budget");
        assert!(spill.take(&[0; 401]).is_none());
        assert_eq!(spill.waiting(), 600, "what was refused does not wait");
        spill.give_back(first);
        assert!(spill.take(&[0; 1000]).is_some());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let spill = Spill::new(64 << 20);
        let many: Vec<_> = (0..20).map(|_| spill.take(&[0; 1 << 20])).collect();
        for buffer in many.into_iter().flatten() {
            spill.give_back(buffer);
        }
        assert_eq!(spill.kept[2].len(), CLASSES[2].1);
        let longest = spill.take(&vec![0; 3 << 20]).expect("within the budget");
        spill.give_back(longest);
        assert_eq!(spill.kept.iter().map(ArrayQueue::len).sum::<usize>(), 16);
    }
}
