//! Writing a growing file to the medium while it grows, so that little is left for the flush at its end.

use crate::error::{Doing, StorageError};
use crate::file::File;

/// As many chunks are handed to the medium at once (256 KiB, mostly).
const PART: u64 = 4;

/// And as many may be on their way there: enough to keep the medium busy while the next part comes, and little enough
/// that a flush of the log never queues behind much of a snapshot.
const ON_THE_WAY: u64 = 4 * PART;

/// How far a growing file is written out. Nothing of it counts before the file is flushed.
#[derive(Debug)]
pub(super) struct WriteOut {
    chunk_bytes: u64,
    begun: u64,
    done: u64,
}

impl WriteOut {
    /// Of a file of which everything before `at` is flushed.
    pub(super) fn from(at: u64, chunk_bytes: u32) -> Self {
        Self {
            chunk_bytes: u64::from(chunk_bytes),
            begun: at,
            done: at,
        }
    }

    /// The file ends at `at` now: begins with what fills a part, and waits for what was begun long ago.
    pub(super) fn grown<F: File>(&mut self, file: &F, at: u64) -> Result<(), StorageError> {
        let part = PART * self.chunk_bytes;
        if at - self.begun < part {
            return Ok(());
        }
        file.begin_write_out(self.begun..at);
        self.begun = at;
        let on_the_way = ON_THE_WAY * self.chunk_bytes;
        let (from, to) = (self.done, at.saturating_sub(on_the_way));
        if to >= from + part {
            file.await_write_out(from..to)
                .doing_at("write out", file.path(), from)?;
            self.done = to;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Dir;
    use crate::memory::{Fault, Memory};

    #[test]
    fn little_is_on_its_way_and_a_failure_is_told() {
        let memory = Memory::new(1);
        let file = memory.create_empty("f").expect("created");
        let mut out = WriteOut::from(0, 512);
        let (part, mut at) = (PART * 512, 0);
        for _ in 0..100 {
            at += part / 3;
            out.grown(&file, at).expect("nothing fails");
            assert!(at - out.begun < part, "{out:?} at {at}");
            assert!(
                at - out.done < (ON_THE_WAY + 2 * PART) * 512,
                "{out:?} at {at}"
            );
            assert!(out.done <= out.begun);
        }
        memory.fail_at(memory.steps(), Fault::Io);
        let error = out
            .grown(&file, at + 2 * part)
            .expect_err("the medium failed");
        assert!(error.to_string().contains("write out"), "{error}");
    }
}
