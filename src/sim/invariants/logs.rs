//! What is in the nodes' logs: matching across nodes, and kept across crashes.
//!
//! Each node's log is followed as it is written: `Model` has the term and the checksum of every entry. An entry is
//! identified by index and term; whoever writes it first decides what it is and which term the entry before it has. By
//! induction two logs that hold the same entry are the same up to it.

use std::collections::BTreeMap;

use storage::{Reader, Vote};

use crate::sim::invariants::{Broken, Verdict, broken};

/// An entry as the checks know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) term: u64,
    crc: u32,
    /// The term of the entry before it.
    prev_term: u64,
}

/// One node's log, entry by entry, from index 1.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    entries: Vec<(u64, u32)>,
}

/// What a crash must leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) durable: u64,
    pub(crate) vote: Vote,
}

/// What every node's entries must agree with.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// By index: the entry that was written there first.
    first: Vec<Seen>,
    /// The others: by index and term.
    others: BTreeMap<(u64, u64), Seen>,
}

/// What following a write has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Followed {
    /// The first entry that is another now, or gone: index and term.
    pub(crate) cut: Option<(u64, u64)>,
    /// A snapshot has taken the log's place.
    pub(crate) replaced: bool,
}

impl Model {
    pub(crate) fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The term of an entry, 0 for the place before the first.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        match index.checked_sub(1) {
            None => Some(0),
            Some(at) => self.entries.get(at as usize).map(|entry| entry.0),
        }
    }

    /// Takes up what was written since the last call, and compares it with what others have written.
    pub(crate) fn follow(
        &mut self,
        reader: &Reader,
        base: u64,
        committed: &impl Fn(u64) -> Option<u64>,
        registry: &mut Registry,
    ) -> Result<Followed, Broken> {
        let last = reader.written();
        if self.term(base) != committed(base) {
            *self = Self::of_snapshot(base, committed, registry)?;
            self.take_in(reader, base + 1, last, |index, seen| {
                registry.enter(index, seen)
            })?;
            return Ok(Followed {
                cut: None,
                replaced: true,
            });
        }
        let mut agree = last.min(self.last());
        while agree > base && read(reader, agree) != Some(self.entries[agree as usize - 1]) {
            agree -= 1;
        }
        let cut = self
            .entries
            .get(agree as usize)
            .map(|old| (agree + 1, old.0));
        self.entries.truncate(agree as usize);
        self.take_in(reader, agree + 1, last, |index, seen| {
            registry.enter(index, seen)
        })?;
        let replaced = false;
        Ok(Followed { cut, replaced })
    }

    /// What a snapshot of everything up to `base` stands for: what was committed.
    fn of_snapshot(
        base: u64,
        committed: &impl Fn(u64) -> Option<u64>,
        registry: &Registry,
    ) -> Result<Self, Broken> {
        let mut model = Self::default();
        for index in 1..=base {
            let seen = committed(index).and_then(|term| registry.get(index, term));
            match seen {
                Some(seen) => model.entries.push((seen.term, seen.crc)),
                None => broken(
                    "snapshots hold what is committed",
                    format!("one of everything up to {base}, and {index} is not committed"),
                )?,
            }
        }
        Ok(model)
    }

    fn take_in(
        &mut self,
        reader: &Reader,
        first: u64,
        last: u64,
        mut each: impl FnMut(u64, Seen) -> Verdict,
    ) -> Verdict {
        let mut next = first;
        while next <= last {
            let Some(slice) = reader.slice(next, last, u64::MAX) else {
                return broken(
                    "log readable",
                    format!("entry {next} of {last} is written and cannot be read"),
                );
            };
            for record in slice.records() {
                let header = record.header;
                if header.index != next {
                    return broken(
                        "log readable",
                        format!("entry {} stands in the place of {next}", header.index),
                    );
                }
                let prev_term = self.term(next - 1).expect("entries are taken in order");
                let crc = crc(record.bytes);
                let seen = Seen {
                    term: header.term,
                    crc,
                    prev_term,
                };
                each(next, seen)?;
                self.entries.push((header.term, crc));
                next += 1;
            }
        }
        Ok(())
    }

    /// What a start has found, against what the life before must have left.
    pub(crate) fn recovered(
        reader: &Reader,
        base: u64,
        vote: Vote,
        before: &Model,
        kept: Kept,
        (committed, registry): (&impl Fn(u64) -> Option<u64>, &Registry),
    ) -> Result<Model, Broken> {
        let last = reader.written();
        // A snapshot had been received, and the start has put it in the place of the log.
        let replaced = before.term(base) != committed(base);
        let mut model = Self::of_snapshot(base, committed, registry)?;
        model.take_in(reader, base + 1, last, |index, seen| {
            if registry.knows(index, seen) {
                Ok(())
            } else {
                broken(
                    "recovery",
                    format!("entry {index} was found, {seen:?}, which nobody has ever written"),
                )
            }
        })?;
        let durable = if replaced {
            0
        } else {
            kept.durable.min(before.last()) as usize
        };
        let same = model
            .entries
            .iter()
            .zip(&before.entries[..durable])
            .take_while(|(found, kept)| found == kept)
            .count();
        if same < durable {
            broken(
                "durable entries kept",
                format!(
                    "{durable} entries were durable; of these {same} are there, of {last} that were found"
                ),
            )?;
        }
        let lost_vote = vote.term < kept.vote.term
            || (vote.term == kept.vote.term
                && kept.vote.voted_for.is_some()
                && vote.voted_for != kept.vote.voted_for);
        if lost_vote {
            broken(
                "durable vote kept",
                format!("{:?} was durable, {vote:?} was found", kept.vote),
            )?;
        }
        Ok(model)
    }
}

impl Registry {
    fn get(&self, index: u64, term: u64) -> Option<Seen> {
        let first = self.first.get(index as usize - 1).copied();
        first
            .filter(|seen| seen.term == term)
            .or_else(|| self.others.get(&(index, term)).copied())
    }

    fn knows(&self, index: u64, seen: Seen) -> bool {
        self.get(index, seen.term) == Some(seen)
    }

    /// An entry was written somewhere.
    pub(crate) fn enter(&mut self, index: u64, seen: Seen) -> Verdict {
        match self.get(index, seen.term) {
            Some(known) if known == seen => Ok(()),
            Some(known) => broken(
                "log matching",
                format!("entry {index} is written as {seen:?}, elsewhere it is {known:?}"),
            ),
            None => {
                if index as usize == self.first.len() + 1 {
                    self.first.push(seen);
                } else {
                    self.others.insert((index, seen.term), seen);
                }
                Ok(())
            }
        }
    }
}

fn crc(record: &[u8]) -> u32 {
    record
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn read(reader: &Reader, index: u64) -> Option<(u64, u32)> {
    let slice = reader.slice(index, index, u64::MAX)?;
    let record = slice.records().next()?;
    Some((record.header.term, crc(record.bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_contents_of_one_entry_are_found_and_so_are_two_pasts() {
        let seen = |term, crc, prev_term| Seen {
            term,
            crc,
            prev_term,
        };
        let mut registry = Registry::default();
        registry.enter(1, seen(1, 7, 0)).expect("the first");
        registry.enter(1, seen(1, 7, 0)).expect("the same again");
        registry.enter(1, seen(2, 8, 0)).expect("of another term");
        let same_term = registry.enter(1, seen(2, 9, 0)).expect_err("other bytes");
        assert_eq!(same_term.check, "log matching");
        registry.enter(2, seen(2, 5, 2)).expect("after the second");
        registry.enter(2, seen(2, 5, 1)).expect_err("another past");
        assert!(registry.knows(2, seen(2, 5, 2)));
        assert!(!registry.knows(3, seen(2, 5, 2)));
    }
}
