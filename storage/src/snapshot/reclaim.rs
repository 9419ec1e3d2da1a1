//! Letting go of large files piece by piece.
//!
//! A file system gives a whole file back to the device at once, as one long discard where it is mounted so, and every flush
//! of the log waits behind that.

use crate::medium::{Dir, File};

/// So much is given back at a time.
const STEP: u64 = 8 << 20;

/// Files whose names are gone, durably, and that nobody reads any more. What is left of them goes when this is dropped.
#[derive(Debug)]
pub struct Reclaim<D: Dir> {
    files: Vec<D::File>,
}

impl<D: Dir> Default for Reclaim<D> {
    fn default() -> Self {
        Self { files: Vec::new() }
    }
}

impl<D: Dir> Reclaim<D> {
    /// Whether everything is given back.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn add(&mut self, files: Vec<D::File>) {
        self.files.extend(files);
    }

    /// Gives one piece of them back. It waits for the disk: for a thread that nobody waits for.
    pub fn reclaim(&mut self) {
        let Some(file) = self.files.last() else {
            return;
        };
        let length = file.length().unwrap_or(0);
        if length <= STEP || file.reclaim(length - STEP).is_err() {
            self.files.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;
    use crate::medium::memory::Memory;

    #[test]
    fn a_piece_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        for (length, pieces) in [(0, 1), (STEP, 1), (3 * STEP + 5, 4), (4 * STEP, 4)] {
            let file = disk.create_empty("f").expect("created");
            if let Some(last) = length.checked_sub(1) {
                file.write_at(last, &[1]).expect("written");
            }
            disk.remove("f").expect("removed");
            let mut gone = Reclaim::<Disk>::default();
            gone.add(vec![file.clone()]);
            for piece in 1..=pieces {
                assert!(!gone.is_empty(), "piece {piece} of {length}");
                gone.reclaim();
                // The last piece goes with the last handle.
                let left = length - STEP * piece.min(pieces - 1);
                assert_eq!(
                    file.length().expect("its length"),
                    left,
                    "{piece} of {length}"
                );
            }
            assert!(gone.is_empty(), "of {length}");
        }
    }

    #[test]
    fn where_it_cannot_be_done_in_pieces_it_goes_at_once() {
        let memory = Memory::new(1);
        let file = memory.create_empty("f").expect("created");
        file.write_at(0, &vec![1; 2 * STEP as usize])
            .expect("written");
        let mut gone = Reclaim::<Memory>::default();
        gone.add(vec![file]);
        gone.reclaim();
        assert!(gone.is_empty());
    }
}
