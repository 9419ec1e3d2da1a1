//! Letting go of large files piece by piece.
//!
//! A file system gives a whole file back to the device at once, as one long discard where it is mounted so, and every flush
//! of the log waits behind that.

use std::time::Duration;

use crate::file::{Dir, File};

/// So much is given back at a time.
const STEP: u64 = 8 << 20;
/// And then the log has its turn.
const PAUSE: Duration = Duration::from_millis(2);

/// For a file whose name is gone, durably, and that nobody reads any more. It takes its time: for a thread of its own.
pub(super) fn let_go<D: Dir>(file: &D::File) {
    let Ok(mut length) = file.length() else {
        return; // Then it goes with the last handle.
    };
    while length > STEP {
        length -= STEP;
        file.give_back(length);
        if D::BACKGROUND {
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;

    #[test]
    fn what_is_left_is_the_last_piece() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        for (length, left) in [(0, 0), (STEP, STEP), (3 * STEP + 5, 5), (4 * STEP, STEP)] {
            let file = disk.create_empty("f").expect("created");
            if let Some(last) = length.checked_sub(1) {
                file.write_at(last, &[1]).expect("written");
            }
            disk.remove("f").expect("removed");
            let_go::<Disk>(&file);
            assert_eq!(file.length().expect("its length"), left, "of {length}");
        }
    }
}
