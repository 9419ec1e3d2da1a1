//! What all copies of the state must agree on: at each index the entry, what it did, and how it was answered.
//!
//! Everything that a client asks for has a number, and so has every try of a command in a session. A command does something
//! once; with sessions, under the number of its first try. What was refused is nowhere in the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sim::rng::mix;
use crate::types::{Index, Term};

/// The number of the request that entry is not: the first entries of terms.
pub(crate) const NO_OP: u64 = u64::MAX;
/// Likewise, of entries that no state machine gets: queries that went through the log.
const SKIPPED: u64 = u64::MAX - 1;
/// Likewise, of what is about sessions themselves, and has no number in it.
pub(crate) const MANAGED: u64 = u64::MAX - 2;
/// Of bytes that nobody can have sent.
pub(crate) const NOTHING: u64 = u64::MAX - 3;

/// What was applied at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) term: Term,
    pub(crate) time_us: u64,
    /// The request that it is of.
    pub(crate) op: u64,
    /// Of the command's bytes.
    pub(crate) digest: u64,
    /// The operation that was done by it; nothing is done where a session has the answer already.
    pub(crate) did: Option<u64>,
    /// The register that it changed, and to what.
    pub(crate) wrote: Option<(u8, i64)>,
    /// A number of the state after it; of a counter, the counter.
    pub(crate) value: u64,
    /// Of the answer's bytes.
    pub(crate) answer: u64,
}

/// What a machine has done with the command that it was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// `None`: its state was replaced.
    pub(crate) op: Option<u64>,
    pub(crate) value: u64,
    pub(crate) wrote: Option<(u8, i64)>,
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    /// By index, from 1 on.
    entries: Vec<Applied>,
    /// By request: where it is in the log, 0 for nowhere; and whether its client was told that it never will be.
    at: Vec<Index>,
    refused: Vec<bool>,
    /// By operation: where it was done, 0 for nowhere.
    done_at: Vec<Index>,
    /// What each register held, and from which index on.
    registers: Vec<Vec<(Index, i64)>>,
    /// Requests about sessions themselves, and how many of them were applied.
    managing: u64,
    managed: u64,
    /// The first snapshot that was taken of each index.
    captured: BTreeMap<Index, u64>,
    /// What was answered again by a node that knew of the first answer from a snapshot only.
    pub(crate) repeated_from_snapshots: u64,
    /// What the machine that is being applied to has done: taken by who gave it the entry.
    pub(crate) done: Option<Done>,
    /// Queries through the log that were asked for, and entries that state machines did not get.
    log_reads: u64,
    skipped: u64,
    /// The first disagreement.
    pub(crate) violation: Option<String>,
}

impl Book {
    pub(crate) fn entry(&self, index: Index) -> Option<&Applied> {
        self.entries
            .get(usize::try_from(index).ok()?.checked_sub(1)?)
    }

    pub(crate) fn last(&self) -> Index {
        self.entries.len() as u64
    }

    /// The state after `index` is applied. Behind the last entry that a state machine got there may be queries.
    pub(crate) fn value_at(&self, index: Index) -> u64 {
        let entry = self.entry(index.min(self.last()));
        entry.map_or(0, |entry| entry.value)
    }

    /// What a register holds after `index` is applied.
    pub(crate) fn register_at(&self, register: u8, index: Index) -> Option<i64> {
        let values = self.registers.get(usize::from(register))?;
        let later = values.partition_point(|(at, _)| *at <= index);
        later.checked_sub(1).map(|last| values[last].1)
    }

    /// A node answers again what was done before, and knows that from a snapshot if it was done up to `restored`.
    pub(crate) fn repeated(&mut self, node: u64, op: u64, answer: u64, restored: Index) {
        let first = self.place_of(op);
        let same = first
            .and_then(|at| self.entry(at))
            .map(|entry| entry.answer == answer);
        if same != Some(true) {
            self.blame(format!(
                "node {node} answers operation {op} again, which was done at {first:?}; the same answer: {same:?}"
            ));
        }
        if first.is_some_and(|at| at <= restored) {
            self.repeated_from_snapshots += 1;
        }
    }

    /// A node has written out its state as it was at `index`.
    pub(crate) fn captured(&mut self, node: u64, index: Index, digest: u64) {
        let first = *self.captured.entry(index).or_insert(digest);
        if first != digest {
            self.blame(format!(
                "node {node} writes another snapshot of index {index} than was written before"
            ));
        }
    }

    /// A request about sessions themselves is about to be sent.
    pub(crate) fn expect_managing(&mut self) {
        self.managing += 1;
    }

    /// A query is about to be sent through the log.
    pub(crate) fn expect_log_read(&mut self) {
        self.log_reads += 1;
    }

    /// A node goes on without having been given `index`.
    pub(crate) fn skip(&mut self, node: u64, index: Index) {
        if let Some(found) = self.entry(index) {
            if found.op != SKIPPED {
                let found = *found;
                self.blame(format!(
                    "node {node} does not apply {index}, where {found:?} was applied before"
                ));
            }
            return;
        }
        self.skipped += 1;
        if index != self.last() + 1 || self.skipped > self.log_reads {
            let (last, queries) = (self.last(), self.log_reads);
            self.blame(format!(
                "node {node} does not apply {index}; the last that anybody applied is {last}, and {queries} queries went through the log"
            ));
            return;
        }
        let before = self.entries.last();
        self.entries.push(Applied {
            term: before.map_or(0, |entry| entry.term),
            time_us: before.map_or(0, |entry| entry.time_us),
            op: SKIPPED,
            digest: 0,
            did: None,
            wrote: None,
            value: before.map_or(0, |entry| entry.value),
            answer: 0,
        });
    }

    /// Where an operation was done; `None` if it was not.
    pub(crate) fn place_of(&self, op: u64) -> Option<Index> {
        self.done_at.get(op as usize).copied().filter(|&at| at > 0)
    }

    /// A request begins.
    pub(crate) fn begin(&mut self) -> u64 {
        self.at.push(0);
        self.done_at.push(0);
        self.refused.push(false);
        self.at.len() as u64 - 1
    }

    /// The client was told that the request will never be applied.
    pub(crate) fn refuse(&mut self, op: u64, why: &str) {
        self.refused[op as usize] = true;
        let at = self.at[op as usize];
        if at > 0 {
            self.blame(format!(
                "operation {op} was refused ({why}) and is applied at index {at}"
            ));
        }
    }

    pub(crate) fn blame(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn apply(&mut self, node: u64, index: Index, entry: Applied) {
        if let Some(found) = self.entry(index) {
            if *found != entry {
                let found = *found;
                self.blame(format!(
                    "node {node} applies {entry:?} at index {index}, where {found:?} was applied before"
                ));
            }
            return;
        }
        if index != self.last() + 1 {
            let last = self.last();
            self.blame(format!(
                "node {node} applies index {index}, and the last that anybody applied is {last}"
            ));
            return;
        }
        if let Some(before) = self.entries.last()
            && (entry.term < before.term || entry.time_us < before.time_us)
        {
            let before = *before;
            self.blame(format!(
                "index {index} goes back in term or time: {entry:?} after {before:?}"
            ));
        }
        self.entries.push(entry);
        if let Some(op) = entry.did {
            self.does(op, index);
        }
        if let Some((register, value)) = entry.wrote {
            let count = self.registers.len().max(usize::from(register) + 1);
            self.registers.resize(count, Vec::new());
            self.registers[usize::from(register)].push((index, value));
        }
        match entry.op {
            NO_OP => {}
            MANAGED => {
                self.managed += 1;
                if self.managed > self.managing {
                    let asked = self.managing;
                    self.blame(format!(
                        "index {index} is about a session, and {asked} such requests were sent"
                    ));
                }
            }
            op => self.holds(op, index, &entry),
        }
    }

    /// An operation is done at `index`.
    fn does(&mut self, op: u64, index: Index) {
        match self.done_at.get_mut(op as usize) {
            Some(at @ 0) => *at = index,
            Some(&mut first) => self.blame(format!(
                "operation {op} is done twice, at {first} and at {index}"
            )),
            None => self.blame(format!("index {index} does {op}, which nobody asked for")),
        }
    }

    /// A request is in the log at `index`.
    fn holds(&mut self, op: u64, index: Index, entry: &Applied) {
        let at = op as usize;
        if at >= self.at.len() {
            self.blame(format!(
                "index {index} holds what nobody proposed: {entry:?}"
            ));
        } else if self.at[at] != 0 {
            let first = self.at[at];
            self.blame(format!(
                "operation {at} is applied twice, at {first} and at {index}"
            ));
        } else if self.refused[at] {
            self.blame(format!(
                "operation {at} was refused and is applied at index {index}"
            ));
        } else {
            self.at[at] = index;
        }
    }

    /// A number of all that was applied.
    pub(crate) fn digest(&self) -> u64 {
        self.entries.iter().fold(0, |sum, entry| {
            mix(sum ^ entry.digest ^ entry.term.rotate_left(17) ^ entry.time_us.rotate_left(40))
        })
    }
}

/// Shared by all nodes and the checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    /// Never waited for: everything runs in one thread.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(op: u64, value: u64) -> Applied {
        Applied {
            term: 1,
            time_us: 0,
            op,
            digest: 0,
            did: Some(op),
            wrote: None,
            value,
            answer: 0,
        }
    }

    /// A book in which operation 0 was applied at index 1, and index 2 was a query.
    fn book() -> Book {
        let mut book = Book::default();
        book.begin();
        book.begin();
        book.expect_log_read();
        book.apply(1, 1, entry(0, 1));
        book.skip(1, 2);
        assert_eq!(book.violation, None);
        assert_eq!((book.value_at(2), book.value_at(3)), (1, 1));
        book
    }

    #[test]
    fn what_one_node_skips_and_another_applies_is_found() {
        for wrong in [
            |book: &mut Book| book.skip(2, 1),
            |book: &mut Book| book.apply(2, 2, entry(1, 2)),
            // There was one query, no more.
            |book: &mut Book| book.skip(1, 3),
        ] {
            let mut book = book();
            wrong(&mut book);
            assert!(book.violation.is_some());
        }
        let mut book = book();
        book.skip(2, 2);
        book.apply(2, 3, entry(1, 2));
        assert_eq!(book.violation, None);
    }

    #[test]
    fn what_is_done_twice_under_two_requests_is_found_and_so_is_another_answer() {
        let mut book = book();
        book.apply(1, 3, entry(1, 2));
        // Request 2 tries operation 1 again.
        let again = book.begin();
        let retry = |did, answer| Applied {
            did,
            answer,
            ..entry(again, 2)
        };
        book.repeated(1, 1, 0, 0);
        book.apply(1, 4, retry(None, 0));
        assert_eq!((book.violation.take(), book.place_of(1)), (None, Some(3)));
        assert_eq!(book.repeated_from_snapshots, 0);
        book.repeated(2, 1, 0, 3);
        assert_eq!(book.repeated_from_snapshots, 1, "it was done at 3");
        let wrongs: [fn(&mut Book, Applied); 5] = [
            |book, entry| book.apply(2, 4, entry),
            |book, _| book.repeated(2, 1, 7, 0),
            |book, _| book.repeated(2, 2, 0, 0),
            |book, entry| {
                let third = book.begin();
                book.apply(1, 5, Applied { op: third, ..entry });
            },
            // It is about a session, and nobody has sent such a thing.
            |book, entry| {
                let about = Applied {
                    op: MANAGED,
                    did: None,
                    ..entry
                };
                book.apply(1, 6, about);
            },
        ];
        for (number, wrong) in wrongs.iter().enumerate() {
            wrong(&mut book, retry(Some(1), 0));
            assert!(book.violation.take().is_some(), "number {number}");
        }
    }

    #[test]
    fn two_snapshots_of_one_index_are_the_same_bytes() {
        let mut book = book();
        for (node, index, bytes) in [(1, 2, 7), (2, 2, 7), (3, 1, 8)] {
            book.captured(node, index, bytes);
            assert_eq!(book.violation, None);
        }
        book.captured(3, 2, 8);
        assert!(book.violation.is_some());
    }

    #[test]
    fn a_register_has_what_was_written_last_up_to_an_index() {
        let mut book = book();
        let wrote = |value| Applied {
            wrote: Some((1, value)),
            ..entry(1, 2)
        };
        book.apply(1, 3, wrote(7));
        book.apply(1, 4, wrote(8));
        let found = [2, 3, 4, 9].map(|index| book.register_at(1, index));
        assert_eq!(found, [None, Some(7), Some(8), Some(8)]);
        assert_eq!(book.register_at(0, 9), None);
    }
}
