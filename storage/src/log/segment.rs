//! A segment: a file of fixed length that holds a run of records, and where in it they are.
//!
//! ```text
//!  0              64         4096                                             file length
//!  ├── header ────┼── zero ──┼ record ┼ record ┼ … ┼ record ┼ marker ┼ zeros or an old life ┤
//! ```
//!
//! Invariants: the header is one sector, so it says either "spare" or "in use from `base` on"; the
//! records of a segment begin with index `base` and have no gap; bytes behind the marker mean nothing.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::StorageError;
use crate::medium::Map;
use crate::record::{self, HEADER_LEN, u32_at, u64_at};

/// Where the records begin, in bytes.
pub(crate) const RECORDS_AT: u64 = 4096;

/// Bytes of the header that mean something.
pub(crate) const SEGMENT_HEADER_LEN: usize = 64;

/// The format of segment files this build reads and writes.
pub(crate) const SEGMENT_VERSION: u16 = 1;

/// One entry of the index for each of these many bytes, where the log grows and is read most.
const BLOCK: u64 = 4096;

/// The same in cold segments: a log that is never purged costs a few KiB of memory for each of them.
const COLD_BLOCK: u64 = 64 << 10;

const MAGIC: u64 = u64::from_le_bytes(*b"rr segm\n");

/// What the file is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Prepared and not used yet, or not used any more.
    Spare,
    /// Part of the log.
    InUse,
}

/// The first bytes of a segment file.
///
/// ```text
///  0     8      12    14    15   16        24    28   32    40     48          56       64
///  ├magic┼crc32c┼ ver ┼state┼ 0 ─┼ cluster ┼group┼ 0 ─┼ seq ┼ base ┼ prev_term ┼ length ┤
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) state: State,
    pub(crate) cluster_id: u64,
    pub(crate) group_id: u32,
    /// Position in the order of use; also the file's name.
    pub(crate) seq: u64,
    /// Index of the first record.
    pub(crate) base: u64,
    /// Term of the record before `base`; 0 at the beginning of a log.
    pub(crate) prev_term: u64,
    /// Length of the file in bytes.
    pub(crate) len: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut out = [0; SEGMENT_HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[12..14].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        out[14] = match self.state {
            State::Spare => 1,
            State::InUse => 2,
        };
        out[16..24].copy_from_slice(&self.cluster_id.to_le_bytes());
        out[24..28].copy_from_slice(&self.group_id.to_le_bytes());
        out[32..40].copy_from_slice(&self.seq.to_le_bytes());
        out[40..48].copy_from_slice(&self.base.to_le_bytes());
        out[48..56].copy_from_slice(&self.prev_term.to_le_bytes());
        out[56..64].copy_from_slice(&self.len.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of the file at `path`, which has `file_len` bytes.
    pub(crate) fn decode(
        bytes: &[u8; SEGMENT_HEADER_LEN],
        path: &Path,
        file_len: u64,
    ) -> Result<SegmentHeader, StorageError> {
        let damaged = |at, detail: &str| StorageError::corrupt(path, at, detail);
        if u64_at(bytes, 0) != MAGIC {
            return Err(damaged(0, "the segment header has no magic number"));
        }
        if crc32c::crc32c(&bytes[12..]) != u32_at(bytes, 8) {
            return Err(damaged(
                8,
                "the checksum of the segment header does not match",
            ));
        }
        let version = u16::from_le_bytes([bytes[12], bytes[13]]);
        if version != SEGMENT_VERSION {
            let (found, supported) = (version.into(), SEGMENT_VERSION.into());
            return Err(StorageError::Version {
                path: path.into(),
                found,
                supported,
            });
        }
        let state = match bytes[14] {
            1 => State::Spare,
            2 => State::InUse,
            _ => return Err(damaged(14, "the segment is neither spare nor in use")),
        };
        let header = SegmentHeader {
            state,
            cluster_id: u64_at(bytes, 16),
            group_id: u32_at(bytes, 24),
            seq: u64_at(bytes, 32),
            base: u64_at(bytes, 40),
            prev_term: u64_at(bytes, 48),
            len: u64_at(bytes, 56),
        };
        if header.len != file_len {
            let detail = format!(
                "the file has {file_len} bytes, its header says {}",
                header.len
            );
            return Err(StorageError::corrupt(path, 56, detail));
        }
        Ok(header)
    }
}

/// The path of segment `seq` in the directory.
pub(crate) fn segment_name(seq: u64) -> String {
    format!("log/{seq:016}.seg")
}

/// A segment as readers see it: its bytes, and an index into them.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) seq: u64,
    /// Index of the first record.
    pub(crate) base: u64,
    /// Term of the record before it.
    pub(crate) prev_term: u64,
    /// The whole file.
    pub(crate) map: Map,
    pub(crate) index: SparseIndex,
    /// Shared by all views of one segment: the file may be used again when only one is left.
    pub(crate) lease: Arc<Lease>,
}

/// Whether a segment is a part of the log. When it leaves, its header becomes a spare's; should one that found the header
/// bad write it anew at that moment, a segment in front of a gap would be in use again. So the two exclude each other.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    has_left: Mutex<bool>,
}

impl Lease {
    /// The segment leaves the log: its header is written by nobody else from now on.
    pub(crate) fn leave(&self) {
        *self.locked() = true;
    }

    /// Does `work` if the segment is a part of the log; it does not leave meanwhile.
    pub(crate) fn while_in_use<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let has_left = self.locked();
        (!*has_left).then(work)
    }

    fn locked(&self) -> MutexGuard<'_, bool> {
        self.has_left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For each block of the file, the first record that begins in it or behind it.
///
/// One writer (the log), any number of readers. An entry packs the record's distance from `base`
/// (high half) and its offset in units of 8 bytes (low half); both grow from entry to entry, so
/// readers search by halves. Readers check every header they walk over against the index they
/// expect, so an entry that is being replaced by a truncation leads to "not there", never astray.
#[derive(Debug)]
pub(crate) struct SparseIndex {
    /// Bytes of the file for each entry.
    block: u64,
    entries: Box<[AtomicU64]>,
    filled: AtomicUsize,
}

impl SparseIndex {
    pub(crate) fn new(segment_len: u64) -> SparseIndex {
        SparseIndex::with_block(segment_len, BLOCK)
    }

    fn with_block(segment_len: u64, block: u64) -> SparseIndex {
        let blocks = segment_len.div_ceil(block) as usize;
        let entries = (0..blocks).map(|_| AtomicU64::new(0)).collect();
        SparseIndex {
            block,
            entries,
            filled: AtomicUsize::new(0),
        }
    }

    /// The same positions, fewer of them.
    fn thinned(&self, segment_len: u64) -> SparseIndex {
        let thin = SparseIndex::with_block(segment_len, COLD_BLOCK.max(self.block));
        for entry in &self.entries[..self.filled.load(Ordering::Relaxed)] {
            let (rel, offset) = unpack(entry);
            thin.note(rel, offset);
        }
        thin
    }

    /// Notes that the record `rel` after `base` begins at `offset`. Called in the order of records.
    #[inline]
    pub(crate) fn note(&self, rel: u64, offset: u64) {
        let block = (offset / self.block) as usize;
        let filled = self.filled.load(Ordering::Relaxed);
        if block < filled {
            return;
        }
        for entry in &self.entries[filled..=block] {
            entry.store((rel << 32) | (offset / 8), Ordering::Relaxed);
        }
        self.filled.store(block + 1, Ordering::Release);
    }

    /// Forgets the records from `offset` on.
    pub(crate) fn cut(&self, offset: u64) {
        let filled = self.filled.load(Ordering::Relaxed);
        let kept = self.entries[..filled].partition_point(|e| unpack(e).1 < offset);
        self.filled.store(kept, Ordering::Release);
    }
}

fn unpack(entry: &AtomicU64) -> (u64, u64) {
    let entry = entry.load(Ordering::Relaxed);
    (entry >> 32, (entry & u64::from(u32::MAX)) * 8)
}

impl View {
    /// The view of a segment that is read seldom from now on: its index takes less memory.
    pub(crate) fn cold(&self) -> View {
        View {
            index: self.index.thinned(self.map.len() as u64),
            map: self.map.clone(),
            lease: self.lease.clone(),
            ..*self
        }
    }

    /// Whether a reader or a slice holds this view, or the one of the same segment before it became cold.
    pub(crate) fn is_read(self: &Arc<View>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.lease) > 1
    }

    /// The last border between records with `index <= index_limit` and `offset <= offset_limit`: the
    /// record `index` begins there, or would. All records below `index_limit` must have been
    /// published. `None` when there is no such border, or when the records were truncated meanwhile.
    pub(crate) fn seek(&self, index_limit: u64, offset_limit: u64) -> Option<(u64, u64)> {
        if index_limit < self.base || offset_limit < RECORDS_AT {
            return None;
        }
        let (mut index, mut offset) = self.floor(index_limit, offset_limit);
        while index < index_limit {
            let next = self.after(index, offset)?;
            if next > offset_limit {
                break;
            }
            (index, offset) = (index + 1, next);
        }
        Some((index, offset))
    }

    /// The last border with `index <= index_limit` and `offset <= offset_limit` that is known without a look at the
    /// bytes; the front of the segment when there is none.
    pub(crate) fn floor(&self, index_limit: u64, offset_limit: u64) -> (u64, u64) {
        let rel_limit = index_limit.saturating_sub(self.base);
        let filled = self.index.filled.load(Ordering::Acquire);
        let below = self.index.entries[..filled].partition_point(|entry| {
            let (rel, offset) = unpack(entry);
            rel <= rel_limit && offset <= offset_limit
        });
        match below {
            0 => (self.base, RECORDS_AT),
            n => {
                let (rel, offset) = unpack(&self.index.entries[n - 1]);
                (self.base + rel, offset)
            }
        }
    }

    /// Where the record behind `index`, which begins at `offset`, begins.
    #[inline]
    pub(crate) fn after(&self, index: u64, offset: u64) -> Option<u64> {
        let (at, len) = (offset as usize, self.map.len());
        if at + HEADER_LEN > len {
            return None;
        }
        let head = self.map.slice(at..at + 16);
        let next = at + record::encoded_len(u32_at(head, 4) as usize);
        (u64_at(head, 8) == index && next <= len).then_some(next as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::medium::memory::Memory;
    use crate::medium::{Dir, File};
    use crate::record::{Header, encode_into, encoded_len};

    const HEADER: SegmentHeader = SegmentHeader {
        state: State::InUse,
        cluster_id: 0xC1,
        group_id: 7,
        seq: 3,
        base: 100,
        prev_term: 2,
        len: 65536,
    };

    #[test]
    fn a_header_is_read_back_and_any_flipped_bit_noticed() {
        let path = Path::new("f");
        let bytes = HEADER.encode();
        assert_eq!(
            SegmentHeader::decode(&bytes, path, 65536).expect("sound"),
            HEADER
        );
        for bit in 0..SEGMENT_HEADER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                SegmentHeader::decode(&bad, path, 65536).is_err(),
                "bit {bit}"
            );
        }
        assert!(
            SegmentHeader::decode(&bytes, path, 65535).is_err(),
            "a file that was cut"
        );
    }

    /// A view of records 100.. with these payload lengths, and their offsets (one more: the end).
    fn view(lengths: &[usize]) -> (View, Vec<u64>) {
        let file = Memory::new(1).create("f", 1 << 20).expect("created");
        let map = file.map().expect("map");
        let index = SparseIndex::new(1 << 20);
        let (mut offsets, mut bytes) = (vec![RECORDS_AT], Vec::new());
        for (rel, &len) in lengths.iter().enumerate() {
            let header = Header {
                index: 100 + rel as u64,
                term: 1,
                time_us: 0,
                origin: 0,
                token: 0,
                kind: 1,
            };
            encode_into(&mut bytes, &header, &vec![1; len]);
            index.note(rel as u64, offsets[rel]);
            offsets.push(offsets[rel] + encoded_len(len) as u64);
        }
        file.write_at(RECORDS_AT, &bytes).expect("written");
        (
            View {
                seq: 1,
                base: 100,
                prev_term: 0,
                map,
                index,
                lease: Arc::default(),
            },
            offsets,
        )
    }

    #[test]
    fn every_record_is_found_also_when_some_span_blocks() {
        let lengths: Vec<usize> = (0..300)
            .map(|i| if i % 7 == 0 { 9000 } else { i })
            .collect();
        let (view, offsets) = view(&lengths[..100]);
        for (rel, &offset) in offsets.iter().enumerate() {
            let index = 100 + rel as u64;
            assert_eq!(view.seek(index, u64::MAX), Some((index, offset)));
        }
        assert_eq!(view.seek(99, u64::MAX), None);
    }

    #[test]
    fn a_cold_view_finds_the_same_with_less_memory() {
        let lengths: Vec<usize> = (0..300).map(|i| (i * 37) % 3000).collect();
        let (view, offsets) = view(&lengths);
        let cold = view.cold();
        assert!(cold.index.entries.len() * 16 <= view.index.entries.len());
        for (rel, &offset) in offsets.iter().enumerate() {
            let index = 100 + rel as u64;
            assert_eq!(cold.seek(index, u64::MAX), Some((index, offset)));
            assert_eq!(cold.seek(400, offset), Some((index, offset)));
        }
        // It may become the log's end again: cut, and noted anew.
        cold.index.cut(offsets[150]);
        assert_eq!(cold.seek(250, u64::MAX), Some((250, offsets[150])));
        for (rel, &offset) in (0..300).zip(&offsets).skip(150) {
            cold.index.note(rel, offset);
        }
        assert_eq!(cold.seek(399, u64::MAX), Some((399, offsets[299])));
        assert_eq!(cold.cold().seek(399, u64::MAX), Some((399, offsets[299])));
    }

    #[test]
    fn the_offset_limit_cuts_between_records() {
        let (view, offsets) = view(&[40; 500]);
        for limit in (RECORDS_AT..offsets[500] + 100).step_by(24) {
            let rel = offsets
                .iter()
                .rposition(|&o| o <= limit)
                .expect("the first is below");
            assert_eq!(
                view.seek(600, limit),
                Some((100 + rel as u64, offsets[rel]))
            );
        }
        assert_eq!(view.seek(600, RECORDS_AT - 1), None);
    }

    #[test]
    fn what_was_cut_is_not_found_and_what_is_noted_later_is() {
        let (view, offsets) = view(&[3000; 50]);
        view.index.cut(offsets[20]);
        assert_eq!(view.seek(120, u64::MAX), Some((120, offsets[20])));
        view.index.note(20, offsets[20]);
        view.index.note(21, offsets[21]);
        assert_eq!(view.seek(121, u64::MAX), Some((121, offsets[21])));
    }

    #[test]
    fn a_reader_that_meets_foreign_bytes_turns_back() {
        let (view, _) = view(&[40; 10]);
        // Record 110 was never written: zeros are not taken for it.
        assert_eq!(view.seek(112, u64::MAX), None);
    }
}
