//! What the core knows of the log: where each term begins, and where it ends.
//!
//! Invariants: runs have rising terms and rising first indexes, all in `base_index + 1 ..= last`; a
//! log as long as an office has one run, so this stays small however long the log is.

use crate::raft::message::{MAX_RUNS, Runs};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TermRuns {
    /// The last entry that is no longer in the log, and its term; zeros at the beginning.
    base_index: u64,
    base_term: u64,
    /// `(term, first index)`.
    runs: Vec<(u64, u64)>,
    last: u64,
}

impl TermRuns {
    pub(crate) fn new(base_index: u64, base_term: u64, runs: Vec<(u64, u64)>, last: u64) -> Self {
        assert!(
            base_index <= last,
            "the log ends at {last}, before its base {base_index}"
        );
        assert_eq!(
            runs.is_empty(),
            last == base_index,
            "a log to {last} from {base_index} has runs {runs:?}"
        );
        Self {
            base_index,
            base_term,
            runs,
            last,
        }
    }

    pub(crate) fn base_index(&self) -> u64 {
        self.base_index
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn last_term(&self) -> u64 {
        self.runs.last().map_or(self.base_term, |run| run.0)
    }

    /// The place in `runs` of the run that holds `index`, which is in the log.
    fn run_of(&self, index: u64) -> usize {
        self.runs.partition_point(|run| run.1 <= index) - 1
    }

    /// The term of the entry at `index`; `None` when it is not in the log (its base is known,
    /// though).
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index == self.base_index {
            return Some(self.base_term);
        }
        (self.base_index < index && index <= self.last).then(|| self.runs[self.run_of(index)].0)
    }

    pub(crate) fn append(&mut self, term: u64, count: u64) {
        assert!(
            self.last_term() <= term,
            "term {term} after {}",
            self.last_term()
        );
        if count > 0 {
            if self.last_term() != term || self.runs.is_empty() {
                self.runs.push((term, self.last + 1));
            }
            self.last += count;
        }
    }

    pub(crate) fn truncate(&mut self, after: u64) {
        assert!(
            self.base_index <= after && after <= self.last,
            "{after} is not in {}..={}",
            self.base_index,
            self.last
        );
        self.last = after;
        while self.runs.last().is_some_and(|run| run.1 > after) {
            self.runs.pop();
        }
    }

    /// Lets go of everything up to and with `to`.
    pub(crate) fn compact(&mut self, to: u64) {
        let term = self.term(to);
        self.base_term =
            term.unwrap_or_else(|| panic!("{to} is not in {}..={}", self.base_index, self.last));
        self.base_index = to;
        let gone = self.runs.partition_point(|run| run.1 <= to + 1);
        if to == self.last {
            self.runs.clear();
        } else {
            // The run that goes on behind `to` begins there now.
            self.runs.drain(..gone - 1);
            self.runs[0].1 = to + 1;
        }
    }

    /// Forgets everything: the log is empty, and goes on after the entry `index` of `term`.
    pub(crate) fn reset(&mut self, index: u64, term: u64) {
        self.runs.clear();
        (self.base_index, self.base_term, self.last) = (index, term, index);
    }

    /// The last index of at most `index` whose term is at most `term`: where two logs that differ
    /// at `index` may agree yet (etcd's `findConflictByTerm`).
    pub(crate) fn last_with_term_at_most(&self, index: u64, term: u64) -> u64 {
        let index = index.min(self.last);
        if index <= self.base_index {
            return self.base_index;
        }
        let mut at = self.run_of(index);
        if self.runs[at].0 <= term {
            return index;
        }
        loop {
            let before = self.runs[at].1 - 1;
            if at == 0 || self.runs[at - 1].0 <= term {
                return before;
            }
            at -= 1;
        }
    }

    /// The last index of the run that `index` is in.
    fn run_end(&self, index: u64) -> u64 {
        self.runs
            .get(self.run_of(index) + 1)
            .map_or(self.last, |next| next.1 - 1)
    }

    /// The first of `first ..= last` that this log does not have with the same term; `None` when it
    /// has them all. `runs` tells their terms.
    pub(crate) fn first_difference(
        &self,
        first: u64,
        last: u64,
        runs: &[(u64, u64)],
    ) -> Option<u64> {
        let mut index = first;
        while index <= last {
            if index > self.last {
                return Some(index);
            }
            let at = runs.partition_point(|run| run.1 <= index) - 1;
            if self.term(index) != Some(runs[at].0) {
                return Some(index);
            }
            let theirs = runs.get(at + 1).map_or(last, |next| next.1 - 1);
            index = theirs.min(self.run_end(index)) + 1;
        }
        None
    }

    /// The terms of `first ..=`, as many runs as fit into a message, and where they end (at most at
    /// `last`).
    pub(crate) fn runs_from(&self, first: u64, last: u64) -> (Runs, u64) {
        let mut out = Runs::default();
        let mut index = first;
        while index <= last && out.push(self.runs[self.run_of(index)].0, index) {
            index = self.run_end(index) + 1;
        }
        debug_assert!(out.as_slice().len() <= MAX_RUNS);
        (out, last.min(index - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::rng::Rng;

    /// The slow definition: a term per entry.
    fn terms_of(log: &TermRuns) -> Vec<u64> {
        (1..=log.last())
            .map(|index| log.term(index).expect("in the log"))
            .collect()
    }

    fn from(terms: &[u64]) -> TermRuns {
        let mut log = TermRuns::new(0, 0, Vec::new(), 0);
        for &term in terms {
            log.append(term, 1);
        }
        log
    }

    #[test]
    fn runs_say_what_a_term_per_entry_says() {
        let mut rng = Rng::new(7);
        for _ in 0..2000 {
            let mut terms: Vec<u64> = (0..rng.below(12)).map(|_| 1 + rng.below(5)).collect();
            terms.sort_unstable();
            let mut log = from(&terms);
            let cut = rng.below(terms.len() as u64 + 1);
            log.truncate(cut);
            terms.truncate(cut as usize);
            let more = terms.last().copied().unwrap_or(0) + rng.below(2);
            log.append(more.max(1), 2);
            terms.extend([more.max(1); 2]);
            assert_eq!(terms_of(&log), terms);
            for index in 0..=terms.len() as u64 + 2 {
                for term in 0..7 {
                    let slow = (1..=index.min(log.last()))
                        .rev()
                        .find(|&i| terms[i as usize - 1] <= term)
                        .unwrap_or(0);
                    assert_eq!(
                        log.last_with_term_at_most(index, term),
                        slow,
                        "{terms:?} {index} {term}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_first_difference_is_where_terms_differ_or_the_log_ends() {
        let mut rng = Rng::new(11);
        for _ in 0..2000 {
            let mut make = || {
                let mut terms: Vec<u64> =
                    (0..1 + rng.below(10)).map(|_| 1 + rng.below(4)).collect();
                terms.sort_unstable();
                terms
            };
            let (mine, theirs) = (make(), make());
            let (log, other) = (from(&mine), from(&theirs));
            let last = theirs.len() as u64;
            let (runs, end) = other.runs_from(1, last);
            assert_eq!(end, last, "fewer than {MAX_RUNS} terms");
            let slow = (1..=last).find(|&i| mine.get(i as usize - 1) != theirs.get(i as usize - 1));
            assert_eq!(
                log.first_difference(1, last, runs.as_slice()),
                slow,
                "{mine:?} {theirs:?}"
            );
        }
    }

    #[test]
    fn a_message_is_cut_where_its_runs_are_full() {
        let log = from(&(1..=20).collect::<Vec<_>>());
        let (runs, end) = log.runs_from(3, 20);
        assert_eq!((runs.as_slice().len(), end), (MAX_RUNS, 10));
    }
}
