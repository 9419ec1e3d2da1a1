//! Reads on the apply stage whose index is not applied yet.
//!
//! They stand in the order of their indexes, not in that of their coming: one whose index this node may not reach for
//! long - its leader is gone, say - holds up none behind it. What an entry's application makes due is answered in the
//! same turn. Requests whose time is over are answered by the keeper of the limits (`request/time_limits.rs`) and forgotten here after
//! that, and before there would be more than `Config::max_pending`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::request::table::Table;
use crate::request::token::Token;
use crate::types::Index;

/// Something to be answered once `index` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Due {
    pub(crate) index: Index,
    /// Of those at one index, the one that came first.
    number: u64,
    pub(crate) token: u64,
    /// A query for the state machine; otherwise all that is asked is that the index is applied.
    pub(crate) is_query: bool,
}

#[derive(Debug, Default)]
pub(crate) struct WaitingReads {
    heap: BinaryHeap<Reverse<Due>>,
    /// As many requests as there can be.
    most: usize,
    number: u64,
}

impl WaitingReads {
    pub(crate) fn with_capacity(most: usize) -> Self {
        Self {
            heap: BinaryHeap::with_capacity(most),
            most,
            number: 0,
        }
    }

    pub(crate) fn push(&mut self, index: Index, token: u64, is_query: bool) {
        self.number += 1;
        self.heap.push(Reverse(Due {
            index,
            number: self.number,
            token,
            is_query,
        }));
    }

    /// Whether some of them must have been answered: there cannot be more requests.
    pub(crate) fn is_full(&self) -> bool {
        self.heap.len() >= self.most
    }

    /// Whether one is due.
    pub(crate) fn is_due(&self, applied: Index) -> bool {
        self.heap.peek().is_some_and(|next| next.0.index <= applied)
    }

    /// The next one that is due.
    pub(crate) fn pop_due(&mut self, applied: Index) -> Option<Due> {
        if self.is_due(applied) {
            self.heap.pop().map(|next| next.0)
        } else {
            None
        }
    }

    /// Forgets those whose requests have been answered without them.
    pub(crate) fn forget_answered(&mut self, table: &Table) {
        self.heap.retain(|due| table.is_open(Token(due.0.token)));
    }

    /// All that are left.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Due> {
        self.heap.drain().map(|due| due.0)
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_waits_long_holds_up_none_behind_it() {
        let mut waiting = WaitingReads::default();
        for (index, token) in [(9, 1), (3, 2), (0, 3), (3, 4)] {
            waiting.push(index, token, true);
        }
        let mut due = |applied| -> Vec<u64> {
            std::iter::from_fn(|| waiting.pop_due(applied))
                .map(|due| due.token)
                .collect()
        };
        assert_eq!(due(0), [3]);
        assert_eq!(due(2), [0; 0]);
        assert_eq!(due(8), [2, 4], "in the order they came");
        assert_eq!(due(9), [1]);
        assert_eq!(waiting.len(), 0);
    }
}
