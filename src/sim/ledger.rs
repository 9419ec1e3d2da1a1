//! The state machine of the simulated cluster, and what all of its copies must agree on.
//!
//! A command is the number of an operation, padded to some length; it adds one to the counter, and its reply is the
//! counter after it. Whichever node applies an index first writes it into the ledger; every other, and the same one in
//! a later life, must find there what it applies itself.

use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sim::rng::mix;
use crate::{Batch, Index, SnapshotWriter, StateMachine, Term};

/// The number of the operation that entry is not: the first entries of terms.
pub(crate) const NO_OP: u64 = u64::MAX;
/// Likewise, of entries that no state machine gets: queries that went through the log.
const SKIPPED: u64 = u64::MAX - 1;

/// What was applied at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) term: Term,
    pub(crate) time_us: u64,
    pub(crate) op: u64,
    /// Of the command's bytes.
    digest: u64,
    /// The counter after it.
    pub(crate) value: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    /// By index, from 1 on.
    entries: Vec<Applied>,
    /// By operation: where it was applied, 0 for nowhere; and whether its client was told that it never will be.
    at: Vec<u64>,
    refused: Vec<bool>,
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

    /// The counter after `index` is applied. Behind the last entry that a state machine got there may be queries.
    pub(crate) fn value_at(&self, index: Index) -> u64 {
        let entry = self.entry(index.min(self.last()));
        entry.map_or(0, |entry| entry.value)
    }

    /// A query is about to be sent through the log.
    pub(crate) fn expect_log_read(&mut self) {
        self.log_reads += 1;
    }

    /// A node goes on without having been given `index`.
    fn skip(&mut self, node: u64, index: Index) {
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
            value: before.map_or(0, |entry| entry.value),
        });
    }

    /// Where an operation was applied; `None` if it was not.
    pub(crate) fn place_of(&self, op: u64) -> Option<Index> {
        self.at.get(op as usize).copied().filter(|&at| at > 0)
    }

    /// An operation begins.
    pub(crate) fn begin(&mut self) -> u64 {
        self.at.push(0);
        self.refused.push(false);
        self.at.len() as u64 - 1
    }

    /// The client was told that the operation will never be applied.
    pub(crate) fn refuse(&mut self, op: u64, why: &str) {
        self.refused[op as usize] = true;
        if let Some(at) = self.place_of(op) {
            self.blame(format!(
                "operation {op} was refused ({why}) and is applied at index {at}"
            ));
        }
    }

    fn blame(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn apply(&mut self, node: u64, index: Index, entry: Applied) {
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
        if entry.op == NO_OP {
            return;
        }
        let at = entry.op as usize;
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

/// One node's copy, in one of its lives.
#[derive(Debug)]
pub(crate) struct Counter {
    node: u64,
    /// Set from outside: the next command makes it panic.
    panics: Arc<AtomicBool>,
    leads: Option<Term>,
    ledger: Ledger,
    value: u64,
    applied: Index,
}

impl Counter {
    pub(crate) fn new(node: u64, panics: Arc<AtomicBool>, ledger: Ledger) -> Self {
        Self {
            node,
            panics,
            leads: None,
            ledger,
            value: 0,
            applied: 0,
        }
    }

    fn advance(&mut self, index: Index, entry: Applied) {
        let mut book = self.ledger.book();
        if index <= self.applied {
            let (node, applied) = (self.node, self.applied);
            book.blame(format!("node {node} applies {index} after {applied}"));
        }
        for skipped in self.applied + 1..index {
            book.skip(self.node, skipped);
        }
        self.applied = index;
        book.apply(self.node, index, entry);
    }
}

/// The operation that a command stands for.
pub(crate) fn op_of(command: &[u8]) -> u64 {
    command
        .first_chunk::<8>()
        .map_or(SKIPPED - 1, |bytes| u64::from_le_bytes(*bytes))
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum ^ u64::from_le_bytes(word))
    })
}

impl StateMachine for Counter {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while let Some((entry, reply)) = batch.next() {
            if self.panics.swap(false, Ordering::Relaxed) {
                // As a panic does, but without a word on the terminal.
                resume_unwind(Box::new(
                    "the simulated state machine panics, as it was told to",
                ));
            }
            self.value += 1;
            reply.extend_from_slice(&self.value.to_le_bytes());
            let (index, applied) = (
                entry.index,
                Applied {
                    term: entry.term,
                    time_us: entry.time_us,
                    op: op_of(entry.command),
                    digest: digest(entry.command),
                    value: self.value,
                },
            );
            self.advance(index, applied);
        }
        Ok(())
    }

    fn query(&self, _query: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.value.to_le_bytes());
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let (value, applied) = (self.value, self.applied);
        Ok(Box::new(move |out| {
            out.write_all(&value.to_le_bytes())?;
            out.write_all(&applied.to_le_bytes())?;
            // Some are so long that they go in many pieces.
            let filler = mix(applied) % if applied % 7 == 0 { 200_000 } else { 2_000 };
            let piece = mix(value).to_le_bytes();
            for _ in 0..filler / 8 {
                out.write_all(&piece)?;
            }
            Ok(())
        }))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        let mut state = Vec::new();
        from.read_to_end(&mut state)?;
        let number = |at: usize| {
            let bytes = state
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok());
            bytes
                .map(u64::from_le_bytes)
                .ok_or(io::ErrorKind::UnexpectedEof)
        };
        let (value, applied) = (number(0)?, number(8)?);
        let piece = mix(value).to_le_bytes();
        let mut book = self.ledger.book();
        let was = book.value_at(applied);
        if was != value || state[16..].chunks(8).any(|at| at != piece) {
            let node = self.node;
            book.blame(format!(
                "node {node} restores {value} at {applied}, where the counter was {was:?}"
            ));
        }
        (self.value, self.applied) = (value, applied);
        Ok(())
    }

    fn new_term(&mut self, term: Term, at: Index, time_us: u64) {
        let value = self.value;
        self.advance(
            at,
            Applied {
                term,
                time_us,
                op: NO_OP,
                digest: 0,
                value,
            },
        );
    }

    fn leader_start(&mut self, term: Term) {
        if let Some(before) = self.leads.replace(term) {
            let node = self.node;
            self.ledger.book().blame(format!(
                "node {node} is told that it leads {term}, and not that it no longer leads {before}"
            ));
        }
    }

    fn leader_stop(&mut self, term: Term) {
        if self.leads.take() != Some(term) {
            let node = self.node;
            self.ledger.book().blame(format!(
                "node {node} is told that it no longer leads {term}, and never was that it does"
            ));
        }
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
            value,
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
}
