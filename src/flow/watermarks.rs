//! How far everything is: counters that only grow, each written by one stage and read by all.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

/// The cumulative facts that travel against the stream, and the commit index: each has one writer.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// append → consensus: every write up to this number is durable.
    pub(crate) durable_write: CachePadded<AtomicU64>,
    /// append → everyone: the last index that is durable, for the status.
    pub(crate) durable: CachePadded<AtomicU64>,
    /// consensus → apply: entries up to here are committed.
    pub(crate) committed: CachePadded<AtomicU64>,
    /// apply → everyone: entries up to here are applied.
    pub(crate) applied: CachePadded<AtomicU64>,
    /// consensus → everyone: the last index of the log.
    pub(crate) last: CachePadded<AtomicU64>,
    /// append → everyone: the first index in the log.
    pub(crate) first: CachePadded<AtomicU64>,
    /// consensus → apply: the state is to be replaced by the snapshot of this index, if it is behind it.
    pub(crate) restore: CachePadded<AtomicU64>,
    /// background → consensus: entries up to here are needed no more for the state.
    pub(crate) compact: CachePadded<AtomicU64>,
    /// append → everyone: flushes so far, and entries they covered.
    pub(crate) flushes: CachePadded<AtomicU64>,
    pub(crate) flushed_entries: CachePadded<AtomicU64>,
}

/// Moves a mark that only its one writer moves.
pub(crate) fn advance(mark: &AtomicU64, to: u64) {
    mark.store(to, Ordering::Release);
}

impl Marks {
    /// The log holds these entries, if it is not damaged, and they are the same on every node that has them. While a snapshot
    /// is about to take the place of the log, what stands in it may be another leader's.
    pub(crate) fn certain(&self) -> u64 {
        let applied = self.applied.load(Ordering::Acquire);
        let restore = self.restore.load(Ordering::Acquire);
        match restore > 0 && self.first.load(Ordering::Acquire) <= restore {
            true => 0,
            false => applied.min(self.committed.load(Ordering::Acquire)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_applied_or_about_to_be_replaced_is_not_certain() {
        let marks = Marks::default();
        for (mark, to) in [
            (&marks.last, 90),
            (&marks.committed, 70),
            (&marks.applied, 60),
            (&marks.first, 10),
        ] {
            advance(mark, to);
        }
        assert_eq!(marks.certain(), 60);
        // A snapshot is restored before the log is replaced: what stands there is nobody's.
        advance(&marks.restore, 80);
        advance(&marks.applied, 80);
        advance(&marks.committed, 80);
        assert_eq!(marks.certain(), 0);
        advance(&marks.first, 81);
        advance(&marks.applied, 85);
        assert_eq!(marks.certain(), 80);
    }
}
