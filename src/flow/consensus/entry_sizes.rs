//! How many entries fit into so many bytes: exact for the recent ones, from a ring of running sums; the log knows the rest.

use storage::Reader;

use crate::raft;

/// Entries whose sizes are remembered here. Older ones have long been written, so the log's reader can be asked.
const REMEMBERED: usize = 64 << 10;

pub(crate) struct Sizes {
    reader: Reader,
    /// `sums[i % REMEMBERED]` is the number of bytes of all entries up to and with `i`, from an arbitrary start.
    sums: Box<[u64]>,
    /// The sums of `low ..= last` are valid (of `low` only as the base of `low + 1`).
    low: u64,
    last: u64,
}

impl Sizes {
    pub(crate) fn new(reader: Reader, last: u64) -> Self {
        Self {
            reader,
            sums: vec![0; REMEMBERED].into(),
            low: last,
            last,
        }
    }

    fn sum(&self, index: u64) -> u64 {
        // What the core has decided on and nobody has encoded yet is the first entry of a term, which is empty.
        let known = index.min(self.last);
        self.sums[known as usize % REMEMBERED]
            + (index - known) * storage::record::encoded_len(0) as u64
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The entry after the last one takes `bytes` in the log.
    pub(crate) fn push(&mut self, index: u64, bytes: u64) {
        assert_eq!(index, self.last + 1, "sizes are noted in order");
        self.sums[index as usize % REMEMBERED] = self.sum(self.last) + bytes;
        self.last = index;
        self.low = self.low.max(index.saturating_sub(REMEMBERED as u64 - 1));
    }

    /// The log is empty, and goes on after `last`.
    pub(crate) fn reset(&mut self, last: u64) {
        (self.low, self.last) = (last, last);
        self.sums[last as usize % REMEMBERED] = 0;
    }

    pub(crate) fn truncate(&mut self, last: u64) {
        self.last = last;
        self.low = self.low.min(last);
        if self.low == last {
            self.sums[last as usize % REMEMBERED] = 0;
        }
    }
}

impl raft::Sizes for Sizes {
    fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64) {
        assert!(first <= last, "asked for {first} ..= {last}");
        if first <= self.low {
            // What is older than the sums has been written long ago: the rings hold far fewer entries than we remember.
            let (fits, bytes) = self
                .reader
                .fit(first, last.min(self.reader.written()), max_bytes);
            return (fits.max(first), bytes);
        }
        let base = self.sum(first - 1);
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.sum(middle) - base <= max_bytes {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        (low, self.sum(low) - base)
    }
}
