//! Who leads, and what a leader may call committed.

use std::collections::BTreeMap;

use crate::sim::invariants::logs::Model;
use crate::sim::invariants::{Broken, Verdict, broken};

/// What was decided so far, by the word of the nodes.
#[derive(Debug, Default)]
pub(crate) struct Office {
    /// By term: who led.
    leaders: BTreeMap<u64, usize>,
    /// By index, from 1: the term of the committed entry.
    committed: Vec<u64>,
    /// The term of the leader that committed it.
    by: Vec<u64>,
}

/// What a new commit was, for the marks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fresh {
    /// Entries of earlier terms came with it.
    pub(crate) earlier_terms: bool,
    /// The leader's own disk had not yet got it.
    pub(crate) before_own_flush: bool,
}

/// A node's log as it can be counted for a commit.
pub(crate) struct Copy<'a> {
    pub(crate) model: &'a Model,
    pub(crate) durable: u64,
    /// What it had before its disk lost some of it: until it has that again, nobody is elected as if it never had.
    pub(crate) had: Option<(&'a Model, u64)>,
}

impl Copy<'_> {
    /// Whether it counts for a commit of the entry at `index`.
    fn holds(&self, index: u64, term: u64) -> bool {
        let holds = |model: &Model, durable| durable >= index && model.term(index) == Some(term);
        holds(self.model, self.durable)
            || self
                .had
                .is_some_and(|(model, durable)| holds(model, durable))
    }
}

impl Office {
    pub(crate) fn committed(&self) -> u64 {
        self.committed.len() as u64
    }

    /// How far leaders of terms before `term` have committed: what its leader must have.
    pub(crate) fn committed_before(&self, term: u64) -> u64 {
        self.by.partition_point(|by| *by < term) as u64
    }

    /// The term of the committed entry at `index`, 0 for the place before the first.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        match index.checked_sub(1) {
            None => Some(0),
            Some(at) => self.committed.get(at as usize).copied(),
        }
    }

    /// `node` says that it leads `term`. True the first time.
    pub(crate) fn leads(&mut self, node: usize, term: u64) -> Result<bool, Broken> {
        match self.leaders.get(&term) {
            None => {
                self.leaders.insert(term, node);
                Ok(true)
            }
            Some(&other) if other == node => Ok(false),
            Some(&other) => {
                broken(
                    "election safety",
                    format!("nodes {} and {} both lead term {term}", other + 1, node + 1),
                )?;
                Ok(false)
            }
        }
    }

    /// The log of the leader of `office` (term and first index) holds what was committed when it came into office.
    pub(crate) fn complete(
        &self,
        node: usize,
        office: (u64, u64),
        committed: u64,
        log: &Model,
    ) -> Verdict {
        let Some(at) = (committed as usize).checked_sub(1) else {
            return Ok(());
        };
        // The last one stands for all before it: logs match.
        if committed < office.1 && log.term(committed) == Some(self.committed[at]) {
            return Ok(());
        }
        broken(
            "leader completeness",
            format!(
                "node {} leads term {} from index {} on; entry {committed} is committed, of term {}, and there it has \
                 one of term {:?}",
                node + 1,
                office.0,
                office.1,
                self.committed[at],
                log.term(committed)
            ),
        )
    }

    /// `leader` of `term` says that everything up to `index` is committed.
    pub(crate) fn commits(
        &mut self,
        leader: usize,
        term: u64,
        index: u64,
        logs: &[Copy<'_>],
    ) -> Result<Fresh, Broken> {
        let mut fresh = Fresh::default();
        if index <= self.committed() {
            self.agrees(leader, index, logs[leader].model)?;
            return Ok(fresh);
        }
        let model = logs[leader].model;
        let says = |what: String| {
            broken(
                "committed on a quorum",
                format!("node {} commits {index} in term {term}: {what}", leader + 1),
            )
        };
        let Some(of_term) = model.term(index) else {
            says(format!("its log ends at {}", model.last()))?;
            return Ok(fresh);
        };
        if of_term != term {
            says(format!("the entry is of term {of_term}"))?;
        }
        let holders = logs.iter().filter(|log| log.holds(index, of_term)).count();
        if holders < logs.len() / 2 + 1 {
            let durable: Vec<_> = logs.iter().map(|log| log.durable).collect();
            says(format!(
                "{holders} of {} nodes have it durably; durable are {durable:?}",
                logs.len()
            ))?;
        }
        self.agrees(leader, self.committed(), model)?;
        for next in self.committed() + 1..=index {
            let of = model.term(next).expect("below an entry that is there");
            fresh.earlier_terms |= of < term;
            self.committed.push(of);
            self.by.push(term);
        }
        fresh.before_own_flush = logs[leader].durable < index;
        Ok(fresh)
    }

    /// A follower says that everything up to `index` is committed.
    pub(crate) fn follows(&self, node: usize, index: u64) -> Verdict {
        if index <= self.committed() {
            return Ok(());
        }
        broken(
            "commit of a follower",
            format!(
                "node {} takes {index} for committed, no leader has committed more than {}",
                node + 1,
                self.committed()
            ),
        )
    }

    /// What a node calls committed and has written is what is committed.
    pub(crate) fn agrees(&self, node: usize, upto: u64, log: &Model) -> Verdict {
        let upto = upto.min(self.committed()).min(log.last());
        let Some(at) = (upto as usize).checked_sub(1) else {
            return Ok(());
        };
        if log.term(upto) == Some(self.committed[at]) {
            return Ok(());
        }
        broken(
            "commits agree",
            format!(
                "node {} takes entry {upto} of term {:?} for committed, where the entry of term {} is",
                node + 1,
                log.term(upto),
                self.committed[at]
            ),
        )
    }

    /// A node's log is cut from the entry of index `from` and term `term` on.
    pub(crate) fn cuts(&self, node: usize, (from, term): (u64, u64)) -> Verdict {
        // Were a later one committed, this one would be too, for logs match.
        if self.committed.get(from as usize - 1) != Some(&term) {
            return Ok(());
        }
        broken(
            "committed entries stay",
            format!(
                "node {} cuts its log from {from} on, whose entry of term {term} is committed",
                node + 1
            ),
        )
    }
}
