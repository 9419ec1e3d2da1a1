//! One machine of the model: a core, the log it steers, and a disk that is behind.
//!
//! What the disk keeps over a crash: every write that was reported as durable, and of the others any
//! beginning, that of the vote and that of the log each for itself, since those are two files; of
//! the write at which the log's beginning ends, any beginning of its entries.

use std::collections::VecDeque;

use crate::raft::message::Runs;
use crate::raft::rng::Rng;
use crate::raft::{Core, Heal, Restored, Sizes};

use super::Rules;

/// An entry: what it is, and in `chain` everything that stands before it in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) term: u64,
    /// No two entries that were ever made have the same.
    pub(super) id: u64,
    pub(super) bytes: u64,
    /// A hash of the entry and of the chain before it, not 0: two logs with the same chain at an
    /// index are the same up to it.
    pub(super) chain: u64,
}

impl Entry {
    pub(super) fn after(chain: u64, term: u64, id: u64, bytes: u64) -> Self {
        let chain = Rng::new(chain ^ Rng::new(id ^ term << 40).next()).next() | 1;
        Self {
            term,
            id,
            bytes,
            chain,
        }
    }
}

/// Entries from index 1 on.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Vec<Entry>);

impl Log {
    pub(super) fn last(&self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn get(&self, index: u64) -> Option<&Entry> {
        self.0.get(index.checked_sub(1)? as usize)
    }

    /// 0 before the first entry, and where there is none.
    pub(super) fn chain(&self, index: u64) -> u64 {
        self.get(index).map_or(0, |entry| entry.chain)
    }

    pub(super) fn term(&self, index: u64) -> u64 {
        self.get(index).map_or(0, |entry| entry.term)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.0.push(entry);
    }

    pub(super) fn truncate(&mut self, after: u64) {
        self.0.truncate(after as usize);
    }

    /// Those up to and with `last`.
    pub(super) fn upto(&self, last: u64) -> Self {
        Self(self.0[..last as usize].to_vec())
    }

    /// Those after `prev`, up to and with `last`.
    pub(super) fn between(&self, prev: u64, last: u64) -> &[Entry] {
        &self.0[prev as usize..last as usize]
    }

    pub(super) fn bytes_after(&self, index: u64) -> u64 {
        self.0
            .iter()
            .skip(index as usize)
            .map(|entry| entry.bytes)
            .sum()
    }

    fn term_runs(&self, base: u64) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (entry, index) in self.0.iter().zip(1..).skip(base as usize) {
            if runs.last().is_none_or(|run| run.0 != entry.term) {
                runs.push((entry.term, index));
            }
        }
        runs
    }
}

impl Sizes for Log {
    fn fit(&self, first: u64, last: u64, max_bytes: u64) -> (u64, u64) {
        // What the core appends by itself when it takes office is not here yet; it has no bytes.
        let bytes_of = |index| self.get(index).map_or(0, |entry| entry.bytes);
        let (mut fits, mut bytes) = (first, bytes_of(first));
        while fits < last && bytes + bytes_of(fits + 1) <= max_bytes {
            fits += 1;
            bytes += bytes_of(fits);
        }
        (fits, bytes)
    }
}

/// The terms of entries that stand after `prev`, as a receiver reads them from the records.
pub(super) fn runs_of(prev: u64, entries: &[Entry]) -> Option<Runs> {
    let mut runs = Runs::default();
    for (entry, index) in entries.iter().zip(prev + 1..) {
        let same = runs
            .as_slice()
            .last()
            .is_some_and(|run| run.0 == entry.term);
        if !same && !runs.push(entry.term, index) {
            return None;
        }
    }
    Some(runs)
}

#[derive(Clone, Debug)]
pub(super) enum Write {
    Vote {
        term: u64,
        vote: Option<u64>,
    },
    Truncate {
        after: u64,
    },
    Entries(Vec<Entry>),
    /// A snapshot takes the place of the log.
    Install(Log),
    Healed,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    /// What is durable.
    pub(super) term: u64,
    pub(super) vote: Option<u64>,
    pub(super) log: Log,
    /// What the last snapshot that was received stands for.
    pub(super) snapshot: Log,
    /// Something was lost: what is to be got back, and the log before.
    pub(super) lost: Option<(Heal, Log)>,
    pub(super) has_lost: bool,
    /// What was asked for and is not durable; the first has the number `done + 1`.
    pending: VecDeque<Write>,
    done: u64,
}

impl Disk {
    pub(super) fn push(&mut self, number: u64, write: Write) {
        assert_eq!(
            number,
            self.issued() + 1,
            "writes are numbered without a gap"
        );
        self.pending.push_back(write);
    }

    pub(super) fn issued(&self) -> u64 {
        self.done + self.pending.len() as u64
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn finish(&mut self, upto: u64) {
        while self.done < upto {
            let write = self
                .pending
                .pop_front()
                .expect("a write that was asked for");
            self.done += 1;
            self.apply(write, usize::MAX);
        }
    }

    fn apply(&mut self, write: Write, at_most: usize) {
        match write {
            Write::Vote { term, vote } => (self.term, self.vote) = (term, vote),
            Write::Truncate { after } => self.log.truncate(after),
            Write::Install(log) => self.log = log,
            Write::Healed => self.lost = None,
            Write::Entries(entries) => {
                for entry in entries.into_iter().take(at_most) {
                    self.log.push(entry);
                }
            }
        }
    }

    /// A power cut; the next life counts its writes anew.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let pending = std::mem::take(&mut self.pending);
        let end = pending.len() as u64 + 1;
        let (votes, writes) = (rng.below(end), rng.below(end));
        for (write, at) in pending.into_iter().zip(0..) {
            match write {
                Write::Vote { .. } if at < votes => self.apply(write, 0),
                Write::Entries(ref entries) if at == writes => {
                    let torn = rng.below(entries.len() as u64 + 1) as usize;
                    self.apply(write, torn);
                }
                Write::Truncate { .. } | Write::Entries(_) | Write::Install(_) | Write::Healed
                    if at < writes =>
                {
                    self.apply(write, usize::MAX);
                }
                _ => {}
            }
        }
        self.done = 0;
        // The next start finishes what a received snapshot had begun.
        let index = self.snapshot.last();
        if self.log.chain(index) != self.snapshot.chain(index) {
            self.log = self.snapshot.clone();
        }
    }

    /// Records that had been durable are gone, and maybe term and vote.
    pub(super) fn lose(&mut self, after: u64, vote_lost: bool) {
        let heal = Heal {
            upto: self.log.last(),
            term: match vote_lost {
                true => self.log.term(self.log.last()),
                false => self.term.max(self.log.term(self.log.last())),
            },
            vote_lost,
        };
        if vote_lost {
            (self.term, self.vote) = (self.log.term(after), None);
        }
        self.has_lost = true;
        self.lost = Some((heal, self.log.clone()));
        self.log.truncate(after);
    }

    /// Everything is gone, snapshots too: the machine goes on with a new directory that says so.
    pub(super) fn lose_all(&mut self) {
        let had = std::mem::take(&mut self.log);
        let heal = Heal {
            upto: u64::MAX,
            term: 0,
            vote_lost: true,
        };
        (self.term, self.vote, self.snapshot) = (0, None, Log::default());
        (self.has_lost, self.lost) = (true, Some((heal, had)));
    }

    /// What it has, or had before it lost it.
    pub(super) fn had(&self) -> &Log {
        self.lost.as_ref().map_or(&self.log, |(_, log)| log)
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: u64,
    /// `None` while it is down.
    pub(super) core: Option<Core>,
    /// The log as the core believes it, durable or not.
    pub(super) log: Log,
    pub(super) disk: Disk,
    /// What the core has said is committed, in this life.
    pub(super) commit: u64,
    /// Reads without an answer: the context, and the index below which an answer would be stale.
    pub(super) reads: Vec<(u64, u64)>,
    /// To whom it was told that its connection is gone.
    pub(super) lost: Vec<u64>,
    /// Counts the restarts: what was meant for an earlier life is not for this one.
    pub(super) life: u64,
    /// Its clock began so long before the world's.
    pub(super) clock_offset_us: u64,
    pub(super) flushing: bool,
    /// When the next call of `tick` is planned.
    pub(super) tick_at: u64,
    /// Stopped, and nobody knows it: nothing reaches it before.
    pub(super) stopped_until: u64,
    /// The disk takes long before.
    pub(super) disk_slow_until: u64,
}

impl Machine {
    pub(super) fn new(id: u64) -> Self {
        Self {
            id,
            core: None,
            log: Log::default(),
            disk: Disk::default(),
            commit: 0,
            reads: Vec::new(),
            lost: Vec::new(),
            life: 0,
            clock_offset_us: 0,
            flushing: false,
            tick_at: u64::MAX,
            stopped_until: 0,
            disk_slow_until: 0,
        }
    }

    /// Comes up with what the disk has; all up to `base_index` was given away before.
    pub(super) fn start(&mut self, rules: &Rules, base_index: u64, now_us: u64, rng: &mut Rng) {
        self.log = self.disk.log.clone();
        self.commit = base_index.max(self.disk.snapshot.last());
        self.life += 1;
        self.clock_offset_us = rng.below(1 << 40);
        let restored = Restored {
            term: self.disk.term,
            vote: self.disk.vote,
            base_index,
            base_term: self.log.term(base_index),
            term_runs: self.log.term_runs(base_index),
            last_index: self.log.last(),
            committed: self.disk.snapshot.last(),
            heal: self.disk.lost.as_ref().map(|(heal, _)| *heal),
            excluded: false,
            membership: rules.membership.clone(),
        };
        let settings = rules.settings(self.id, rng.next());
        self.core = Some(Core::new(settings, restored, now_us + self.clock_offset_us));
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.core = None;
        self.disk.crash(rng);
        self.reads.clear();
        self.lost.clear();
        self.flushing = false;
        self.tick_at = u64::MAX;
        self.stopped_until = 0;
        self.life += 1;
    }

    pub(super) fn leads(&self) -> bool {
        self.core.as_ref().is_some_and(Core::is_leader)
    }
}
