//! Stories about whole logs: in memory, where the power can be cut anywhere, and on real files.

mod anew;
mod append;
#[cfg(target_os = "linux")]
mod descriptors;
mod faults;
mod inspect;
mod mend;
mod model;
mod purge;
mod recovery;
mod reset;
mod rot;
mod scrub;
mod snapshot;
mod truncate;
mod unreadable;

use crate::medium::Dir;
use crate::record::{Header, Records, encode_into};
use crate::{
    FlushState, Log, Memory, Options, Reclaim, Recovered, SnapshotId, SnapshotMeta, StorageError,
    Vote,
};
use std::io::{Read as _, Write as _};

pub(crate) const CLUSTER: u64 = 0xC1;
pub(crate) const GROUP: u32 = 5;
pub(crate) const NODE: u64 = 2;

/// Segments of 16 KiB: three hold what a test writes.
pub(crate) fn small() -> Options {
    Options {
        segment_bytes: 16 << 10,
        max_record_bytes: 8 << 10,
        snapshot_chunk_bytes: 512,
        ..Options::default()
    }
}

pub(crate) fn try_open<D: Dir>(dir: &D) -> Result<(Log<D>, Recovered), StorageError> {
    Log::open(dir.clone(), small(), CLUSTER, GROUP, NODE)
}

pub(crate) fn open<D: Dir>(dir: &D) -> Log<D> {
    try_open(dir).expect("the directory opens").0
}

/// What a record holds follows from index and term, so that each can be told from all others.
pub(crate) fn payload(index: u64, term: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (index * 31 + term * 101 + i) as u8)
        .collect()
}

pub(crate) fn header(index: u64, term: u64) -> Header {
    Header {
        index,
        term,
        time_us: index * 1000 + term,
        origin: NODE,
        token: index,
        kind: 1,
    }
}

/// The records `first..=last` of this term, with payloads of `len` bytes.
pub(crate) fn batch(first: u64, last: u64, term: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in first..=last {
        encode_into(&mut bytes, &header(index, term), &payload(index, term, len));
    }
    bytes
}

/// The verbs of the stories.
pub(crate) trait Story {
    /// Appends `count` records of this term with payloads of `len` bytes, as one batch.
    fn append_some(&mut self, count: u64, term: u64, len: usize);
    /// Flushes all that was written.
    fn flush(&mut self);
    /// Index and term of every record, each verified, its payload compared with what was written.
    fn contents(&self) -> Vec<(u64, u64)>;
    /// Takes a snapshot of what is durable, if that is anything, as whoever purges has to.
    fn snapshot_what_is_durable(&mut self) -> Option<SnapshotId>;
    /// Votes for `node` in this term.
    fn vote_for(&mut self, term: u64, node: u64);
}

impl<D: Dir> Story for Log<D> {
    fn append_some(&mut self, count: u64, term: u64, len: usize) {
        let (first, last) = (self.last() + 1, self.last() + count);
        self.append(&batch(first, last, term, len), first, last)
            .expect("appended");
    }

    fn flush(&mut self) {
        self.start_flush().expect("a flush begins");
        self.wait_flush().expect("flushed");
        assert_eq!(self.durable(), self.last());
    }

    fn contents(&self) -> Vec<(u64, u64)> {
        contents(&self.reader(), self.first(), self.last())
    }

    fn snapshot_what_is_durable(&mut self) -> Option<SnapshotId> {
        let (index, snapshots) = (self.durable(), self.snapshots());
        if index == 0 || snapshots.newest().is_some_and(|id| id.index == index) {
            return snapshots.newest();
        }
        let slice = self.reader().slice(index, index, 1).expect("it is there");
        let record = slice.records().next().expect("one record");
        let taken = take(&snapshots, index, record.header.term, 100);
        Some(taken.expect("taken"))
    }

    fn vote_for(&mut self, term: u64, node: u64) {
        self.save_vote(Vote {
            term,
            voted_for: Some(node),
        })
        .expect("saved");
    }
}

/// What a snapshot says of itself follows from index and term.
pub(crate) fn snapshot_meta(index: u64, term: u64) -> SnapshotMeta {
    SnapshotMeta {
        index,
        term,
        time_us: index * 1000 + term,
        members: vec![index as u8; 3 + (index % 5) as usize],
    }
}

/// Takes a snapshot with a state of `len` bytes, which follows from index and term as well.
pub(crate) fn take<D: Dir>(
    snapshots: &crate::Snapshots<D>,
    index: u64,
    term: u64,
    len: usize,
) -> Result<SnapshotId, StorageError> {
    let mut file = snapshots.create(&snapshot_meta(index, term))?;
    let state = payload(index, term, len);
    for part in state.chunks(61) {
        // The reason comes with `finish`.
        if file.write_all(part).is_err() {
            break;
        }
    }
    assert!(file.payload_bytes() <= len as u64);
    file.finish()
}

/// Reads a snapshot; what is in it must be what was taken.
pub(crate) fn look_into<D: Dir>(
    snapshots: &crate::Snapshots<D>,
    id: SnapshotId,
) -> std::io::Result<()> {
    let mut reader = snapshots.open(id).map_err(StorageError::into_io)?;
    assert_eq!(*reader.meta(), snapshot_meta(id.index, id.term));
    let mut state = Vec::new();
    reader.read_to_end(&mut state)?;
    assert_eq!(state.len() as u64, reader.payload_bytes());
    assert_eq!(state, payload(id.index, id.term, state.len()));
    Ok(())
}

pub(crate) fn contents(reader: &crate::Reader, first: u64, last: u64) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut next = first;
    while next <= last {
        let slice = reader
            .slice(next, last, 4096)
            .expect("what is written can be read");
        assert_eq!(slice.first(), next);
        for record in Records::new(slice.as_ref()) {
            let record = record.expect("sound");
            let Header { index, term, .. } = record.header;
            assert_eq!((index, record.header), (next, header(index, term)));
            assert_eq!(record.payload, payload(index, term, record.payload.len()));
            found.push((index, term));
            next += 1;
        }
        assert_eq!(slice.last(), next - 1);
    }
    found
}

/// `first..=last`, all of one term.
pub(crate) fn run(first: u64, last: u64, term: u64) -> Vec<(u64, u64)> {
    (first..=last).map(|index| (index, term)).collect()
}

/// A log in memory with three segments, all of it durable: the records 1..=last of term 1.
pub(crate) fn three_segments() -> (Memory, Log<Memory>) {
    let memory = Memory::new(7);
    let mut log = open(&memory);
    while log.segments.len() < 3 {
        log.append_some(3, 1, 500);
        log.flush();
    }
    (memory, log)
}

/// Polls until the flush is over.
pub(crate) fn poll_until_done<D: Dir>(log: &mut Log<D>) {
    while log.poll_flush().expect("no error") != FlushState::Done {
        std::thread::yield_now();
    }
}
