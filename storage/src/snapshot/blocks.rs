//! A snapshot's file in long blocks, past the system's page cache where that can be done.
//!
//! A snapshot is written once and read seldom. In the page cache it would take the place of what is of more use, ask for
//! fresh memory for every page of it, and go to the medium when the system likes, in front of the log's next flush. Here one
//! block at a time is on its way, to the medium or from it, while the other is filled or read: two blocks are all the memory
//! there is to it.

use std::{fmt, io, mem};

use crate::error::{Doing, StorageError};
use crate::medium::{ALIGNED, File};
use crate::snapshot::background::Background;

/// A block has as many chunks,
const CHUNKS: usize = 16;
/// and no more bytes: enough to keep a medium busy, and few enough that a flush of the log is not much longer behind them.
const MOST: usize = 1 << 20;
/// After as many blocks the file is flushed: little is left for the flush at its end, and not more than that is lost of a
/// part when the power fails.
const SYNC_EVERY: u64 = 32;

/// How a file is gone through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// Of its chunks.
    pub(super) chunk_bytes: u32,
    /// Whether it is flushed.
    pub(super) sync: bool,
    /// Whether the medium is waited for on a thread of its own; without one the order depends on the calls alone.
    pub(super) aside: bool,
}

impl Manner {
    /// Makes what was written durable, if that is to be.
    pub(super) fn flush<F: File>(self, file: &F) -> Result<(), StorageError> {
        if self.sync {
            file.sync().doing("flush", file.path())?;
        }
        Ok(())
    }
}

/// Memory for a part of a file, which begins at a multiple of [`ALIGNED`].
struct Block {
    memory: Vec<u8>,
    skip: usize,
    /// Where it begins in the file, and how much of it is filled.
    from: u64,
    filled: usize,
}

impl Block {
    /// For a file with chunks of this length. Those below a page are not long enough to go past the page cache.
    fn new(chunk_bytes: u32) -> Self {
        let chunk = chunk_bytes as usize;
        let len = match chunk {
            ..ALIGNED => chunk,
            _ => (CHUNKS * chunk).min(MOST).next_multiple_of(ALIGNED),
        };
        let memory = vec![0; len + ALIGNED];
        let skip = memory.as_ptr().align_offset(ALIGNED);
        Self {
            memory,
            // Who cannot tell need not: what is not aligned goes through the page cache.
            skip: if skip < ALIGNED { skip } else { 0 },
            from: 0,
            filled: 0,
        }
    }

    fn len(&self) -> usize {
        self.memory.len() - ALIGNED
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.skip..][..self.filled]
    }

    /// What is not filled.
    fn room(&mut self) -> &mut [u8] {
        let len = self.len();
        &mut self.memory[self.skip..][self.filled..len]
    }

    /// Where it ends in the file, as far as it is filled.
    fn end(&self) -> u64 {
        self.from + self.filled as u64
    }

    /// Begins where `at` is in it.
    fn move_to(&mut self, at: u64) {
        self.from = at - at % ALIGNED.min(self.len()) as u64;
        self.filled = 0;
    }

    fn write<F: File>(&self, file: &F) -> Result<(), StorageError> {
        file.write_past_cache(self.from, self.bytes())
            .doing_at("write", file.path(), self.from)
    }

    /// Reads as much of the file as there is and finds room; nothing, where all of that cannot be read.
    fn read<F: File>(&mut self, file: &F) {
        let from = self.end();
        self.filled += file.read_past_cache(from, self.room()).unwrap_or(0);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} bytes from {}",
            self.filled,
            self.len(),
            self.from
        )
    }
}

/// A block that is to be written, and what came of that.
#[derive(Debug)]
struct Written<F> {
    file: F,
    block: Block,
    /// Flushed afterwards, in this manner.
    flush: Option<Manner>,
    outcome: Result<(), StorageError>,
}

impl<F: File> Written<F> {
    fn write(&mut self) {
        let written = self.block.write(&self.file);
        self.outcome = written.and_then(|()| match self.flush {
            Some(manner) => manner.flush(&self.file),
            None => Ok(()),
        });
    }
}

/// A file that is written from front to back.
#[derive(Debug)]
pub(super) struct Appender<F: File> {
    file: F,
    manner: Manner,
    /// What is being filled.
    block: Block,
    writes: Background<Written<F>>,
    /// Up to where it is flushed, or will be with what is on its way.
    synced: u64,
}

impl<F: File> Appender<F> {
    /// Goes on at `at`, over what is there.
    pub(super) fn new(file: F, at: u64, manner: Manner) -> Result<Self, StorageError> {
        let mut block = Block::new(manner.chunk_bytes);
        block.move_to(at);
        let before = (at - block.from) as usize;
        file.read_at(block.from, &mut block.room()[..before])
            .doing_at("read", file.path(), block.from)?;
        block.filled = before;
        Ok(Self {
            file,
            manner,
            block,
            writes: Background::new("ringraft-snap-w", manner.aside, Written::write),
            synced: at,
        })
    }

    /// Where the next bytes go.
    pub(super) fn at(&self) -> u64 {
        self.block.end()
    }

    /// After an error nothing more may be written with this.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            let room = self.block.room();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.block.filled += now.len();
            bytes = later;
            if self.block.room().is_empty() {
                self.begin_to_write()?;
            }
        }
        Ok(())
    }

    /// Has the full block written, and takes another one.
    fn begin_to_write(&mut self) -> Result<(), StorageError> {
        let spare = self.await_written()?;
        let end = self.block.end();
        let mut next = spare.unwrap_or_else(|| Block::new(self.manner.chunk_bytes));
        next.move_to(end);
        let is_due = end - self.synced >= SYNC_EVERY * self.block.len() as u64;
        if is_due {
            self.synced = end;
        }
        let write = Written {
            file: self.file.clone(),
            block: mem::replace(&mut self.block, next),
            flush: is_due.then_some(self.manner),
            outcome: Ok(()),
        };
        self.writes.begin(write);
        Ok(())
    }

    fn await_written(&mut self) -> Result<Option<Block>, StorageError> {
        match self.writes.end() {
            None => Ok(None),
            Some(written) => written.outcome.map(|()| Some(written.block)),
        }
    }

    /// Writes what there is, but does not flush it.
    pub(super) fn write_rest(&mut self) -> Result<(), StorageError> {
        self.await_written()?;
        self.block.write(&self.file)
    }

    /// Writes what is left, and makes all of it durable.
    pub(super) fn finish(&mut self) -> Result<(), StorageError> {
        self.write_rest()?;
        self.manner.flush(&self.file)
    }

    /// From the front again, over what is there.
    pub(super) fn begin_again(&mut self) -> Result<(), StorageError> {
        self.await_written()?;
        self.block.move_to(0);
        self.synced = 0;
        Ok(())
    }
}

/// A block that is to be read.
#[derive(Debug)]
struct Fetched<F> {
    file: F,
    block: Block,
}

impl<F: File> Fetched<F> {
    fn read(&mut self) {
        self.block.read(&self.file);
    }
}

/// A file that is read from front to back, mostly.
#[derive(Debug)]
pub(super) struct Scan<F: File> {
    file: F,
    manner: Manner,
    /// What was read last.
    block: Block,
    reads: Background<Fetched<F>>,
}

impl<F: File> Scan<F> {
    pub(super) fn new(file: F, manner: Manner) -> Self {
        Self {
            file,
            manner,
            block: Block::new(manner.chunk_bytes),
            reads: Background::new("ringraft-snap-r", manner.aside, Fetched::read),
        }
    }

    pub(super) fn file(&self) -> &F {
        &self.file
    }

    /// Fills `out` from `at` on; an error when the file ends before, or when just these bytes cannot be read.
    pub(super) fn read_at(&mut self, mut at: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            let skip = at.checked_sub(self.block.from);
            let have = skip.and_then(|skip| self.block.bytes().get(skip as usize..));
            let have = have.unwrap_or_default();
            if have.is_empty() {
                if !self.load(at) {
                    return self.file.read_at(at, out);
                }
                continue;
            }
            let (now, later) = out.split_at_mut(have.len().min(out.len()));
            now.copy_from_slice(&have[..now.len()]);
            at += now.len() as u64;
            out = later;
        }
        Ok(())
    }

    /// Gets the block that `at` is in. False: that could not be read, or the file ends before `at`.
    fn load(&mut self, at: u64) -> bool {
        let goes_on = self.block.filled > 0 && at == self.block.end();
        let ahead = self.reads.end();
        let spare = ahead.map(|ahead| mem::replace(&mut self.block, ahead.block));
        if !(self.block.from..self.block.end()).contains(&at) {
            self.block.move_to(at);
            self.block.read(&self.file);
        }
        if self.manner.aside && goes_on && self.block.room().is_empty() {
            let mut block = spare.unwrap_or_else(|| Block::new(self.manner.chunk_bytes));
            block.move_to(self.block.end());
            let fetch = Fetched {
                file: self.file.clone(),
                block,
            };
            self.reads.begin(fetch);
        }
        self.block.end() > at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::Dir;
    use crate::medium::PAGE;
    use crate::medium::memory::{Fault, Memory};
    use crate::{Disk, StorageError};

    const MANNER: Manner = Manner {
        chunk_bytes: 4096,
        sync: true,
        aside: false,
    };
    const BLOCK: usize = CHUNKS * MANNER.chunk_bytes as usize;

    fn bytes(len: usize) -> Vec<u8> {
        let byte = |i: usize| (i % 251) as u8 ^ (i / 4096) as u8;
        (0..len).map(byte).collect()
    }

    fn append<F: File>(out: &mut Appender<F>, bytes: &[u8], piece: usize) {
        for piece in bytes.chunks(piece) {
            out.push(piece).expect("written");
        }
    }

    /// Written in pieces of one length, left and gone on with in the midst, and read in pieces of another.
    fn there_and_back<D: Dir>(dir: &D, aside: bool) {
        let manner = Manner { aside, ..MANNER };
        let lengths = [
            1,
            4095,
            4096,
            BLOCK,
            BLOCK + 1,
            3 * BLOCK - 4096,
            40 * BLOCK + 77,
        ];
        for (len, piece) in lengths
            .into_iter()
            .zip([1, 100, 4096, 70_000, 65_544, 333, 65_544])
        {
            let (all, half) = (bytes(len), len / 2);
            let file = dir.create_empty("f").expect("created");
            let mut out = Appender::new(file, 0, manner).expect("new");
            append(&mut out, &all[..half], piece);
            out.write_rest().expect("written");
            drop(out);

            let file = dir.open("f").expect("opened");
            let mut out = Appender::new(file.clone(), half as u64, manner).expect("goes on");
            append(&mut out, &all[half..], piece);
            assert_eq!(out.at(), len as u64);
            out.finish().expect("written");
            assert_eq!(file.length().expect("its length"), len as u64);

            let mut scan = Scan::new(file.clone(), manner);
            let mut read = vec![0; len];
            for (at, out) in read.chunks_mut(piece + 13).enumerate() {
                let at = (at * (piece + 13)) as u64;
                scan.read_at(at, out).expect("read");
            }
            assert!(read == all, "{len} bytes by {piece}");
            // Back, and over the end.
            scan.read_at(0, &mut read[..1]).expect("read");
            assert_eq!(read[0], all[0]);
            let error = scan
                .read_at(len as u64 - 1, &mut [0; 2])
                .expect_err("the end");
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_is_written_is_read_whatever_the_pieces() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for aside in [false, true] {
            there_and_back(&Disk::new(dir.path()), aside);
            there_and_back(&Memory::new(1), aside);
        }
    }

    #[test]
    fn what_fails_is_told_with_the_next_block_and_the_file_is_flushed_as_it_grows() {
        for aside in [false, true] {
            let memory = Memory::new(1);
            let file = memory.create_empty("f").expect("created");
            let manner = Manner { aside, ..MANNER };
            let mut out = Appender::new(file, 0, manner).expect("new");
            let block = bytes(BLOCK);
            for _ in 0..2 * SYNC_EVERY {
                out.push(&block).expect("written");
            }
            out.await_written().expect("written");
            assert_eq!(memory.counts().syncs, 2);
            memory.fail_at(memory.steps(), Fault::Io);
            out.push(&block).expect("begun");
            let error = out.push(&block).expect_err("the medium failed");
            let at = 2 * SYNC_EVERY * BLOCK as u64;
            let place = matches!(&error, StorageError::Io { offset, .. } if *offset == Some(at));
            assert!(place, "{error:?}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_read_does_not_hide_what_is_around_it() {
        for aside in [false, true] {
            let memory = Memory::new(1);
            let file = memory.create_empty("f").expect("created");
            let all = bytes(4 * BLOCK);
            file.write_at(0, &all).expect("written");
            file.sync().expect("flushed");
            let bad = 2 * BLOCK + 8192..2 * BLOCK + 8192 + PAGE as usize;
            memory
                .make_unreadable("f", bad.start as u64)
                .expect("it is there");
            let mut scan = Scan::new(file, Manner { aside, ..MANNER });
            for at in (0..4 * BLOCK).step_by(4096) {
                let mut out = [0; 4096];
                let read = scan.read_at(at as u64, &mut out);
                assert_eq!(read.is_err(), bad.contains(&at), "at {at}");
                assert!(bad.contains(&at) || out == all[at..at + 4096], "at {at}");
            }
        }
    }
}
