//! What must hold at every step, whatever happens (Raft paper, figure 3, and what the disk adds).

use std::collections::{BTreeMap, HashMap};

use crate::raft::{Append, Membership, Message, Outcome};

use super::Rules;
use super::machine::{Entry, Log, Machine, runs_of};

#[derive(Debug, Default)]
pub(super) struct Laws {
    /// Who led a term, and the log of that office.
    offices: BTreeMap<u64, (u64, Log)>,
    /// For whom a node voted in a term, by what it said: `(node, term)`.
    votes: HashMap<(u64, u64), u64>,
    /// The chain of the entry of an index and a term, wherever it stands.
    chains: HashMap<(u64, u64), u64>,
    /// What was committed, by whomever.
    pub(super) committed: Log,
    pub(super) elections: u64,
}

impl Laws {
    /// Election safety, and leader completeness: its log holds all that was committed before.
    pub(super) fn leads(&mut self, machine: &Machine, term: u64) {
        let id = machine.id;
        assert!(
            machine.disk.lost.is_none(),
            "{id} leads and has lost entries"
        );
        let (leader, _) = self
            .offices
            .entry(term)
            .or_insert_with(|| (id, machine.log.clone()));
        assert_eq!((*leader, id), (id, id), "two leaders of term {term}");
        let last = self.committed.last();
        assert_eq!(
            machine.log.chain(last),
            self.committed.chain(last),
            "leader {id} of term {term} lacks what is committed up to {last}"
        );
        assert_eq!(machine.disk.term, term, "leader {id} has its term on disk");
        self.elections += 1;
    }

    /// The leader of `term` appended.
    pub(super) fn office_appends(&mut self, term: u64, entry: Entry) {
        self.offices
            .get_mut(&term)
            .expect("the leader has taken office")
            .1
            .push(entry);
    }

    /// Log matching: one index and one term, one entry, and the same entries before it.
    pub(super) fn appends(&mut self, machine: &Machine, entry: &Entry) {
        let (id, index) = (machine.id, machine.log.last() + 1);
        let before = machine.log.chain(index - 1);
        let joined = Entry::after(before, entry.term, entry.id, entry.bytes);
        assert_eq!(
            joined.chain, entry.chain,
            "{id} appends {index} to what is not before it"
        );
        assert!(
            machine.log.term(index - 1) <= entry.term,
            "terms fall at {index} of {id}"
        );
        let chain = *self
            .chains
            .entry((index, entry.term))
            .or_insert(entry.chain);
        assert_eq!(
            chain, entry.chain,
            "two entries at {index} of term {}",
            entry.term
        );
    }

    pub(super) fn truncates(&self, machine: &Machine, after: u64) {
        let id = machine.id;
        assert!(
            machine.commit <= after,
            "{id} truncates after {after}, below {}",
            machine.commit
        );
        let (has, committed) = (
            machine.log.chain(after + 1),
            self.committed.chain(after + 1),
        );
        assert!(has != 0, "{id} truncates after {after}, which is its end");
        assert_ne!(
            has,
            committed,
            "{id} truncates {}, which is committed",
            after + 1
        );
    }

    pub(super) fn commits(&mut self, machines: &[Machine], id: u64, index: u64) {
        let machine = &machines[id as usize - 1];
        let core = machine.core.as_ref().expect("it has just spoken");
        assert!(
            machine.commit < index,
            "{id} commits {index} after {}",
            machine.commit
        );
        assert!(
            index <= machine.log.last(),
            "{id} commits {index}, beyond its log"
        );
        if core.is_leader() {
            assert_eq!(
                machine.log.term(index),
                core.term(),
                "{id} commits {index} of old"
            );
        }
        for &entry in machine.log.between(self.committed.last().min(index), index) {
            self.committed.push(entry);
        }
        assert_eq!(
            machine.log.chain(index),
            self.committed.chain(index),
            "{id} commits other entries up to {index} than were committed"
        );
    }

    /// What is committed is durable on a quorum, now and after any crash.
    pub(super) fn committed_is_durable(&self, machines: &[Machine], membership: &Membership) {
        let last = self.committed.last();
        let chain = self.committed.chain(last);
        let has = |id: &&u64| {
            machines[**id as usize - 1].disk.had().chain(last) == chain
                || machines[**id as usize - 1].disk.log.chain(last) == chain
        };
        for voters in [&membership.voters, &membership.outgoing] {
            let count = voters.iter().filter(has).count();
            assert!(
                voters.is_empty() || 2 * count > voters.len(),
                "{last} is committed, and durable on only {count} of {voters:?}"
            );
        }
    }

    pub(super) fn sends(
        &mut self,
        machines: &[Machine],
        from: u64,
        to: u64,
        message: &Message,
        rules: &Rules,
    ) {
        let machine = &machines[from as usize - 1];
        let core = machine.core.as_ref().expect("it has just spoken");
        // Who asks whether it would be elected, or for a read, promises nothing.
        let promises = match *message {
            Message::Vote { pre, .. } => !pre,
            Message::VoteReply { pre, granted, .. } => !(pre && granted),
            Message::ReadIndex { .. } | Message::ReadIndexReply { .. } => false,
            _ => true,
        };
        if promises {
            let term = machine
                .disk
                .term
                .max(machine.disk.log.term(machine.disk.log.last()));
            assert!(
                message.term() <= term,
                "{from} has {term} on disk and says {message}"
            );
        }
        match *message {
            Message::Vote { pre, term, .. } => {
                assert!(
                    is_voter(&rules.membership, from),
                    "{from} is a learner and stands"
                );
                if !pre {
                    self.votes_for(machine, term, from);
                }
            }
            Message::VoteReply {
                pre: false,
                granted: true,
                term,
            } => {
                self.votes_for(machine, term, to);
            }
            Message::Append(ref append) => {
                assert!(
                    core.is_leader() && append.term == core.term(),
                    "{from} sends {append:?}"
                );
                Self::sends_entries(machine, append, rules);
            }
            Message::AppendReply {
                term,
                outcome: Outcome::Matched { index },
                ..
            } => {
                let (leader, office) = &self.offices[&term];
                assert_eq!(*leader, to, "{from} answers who does not lead term {term}");
                assert_eq!(
                    machine.disk.log.chain(index),
                    office.chain(index),
                    "{from} has on disk up to {index} what the leader {to} of term {term} has"
                );
            }
            Message::Heartbeat { term, commit, .. } => {
                assert!(
                    core.is_leader() && term == core.term(),
                    "{from} sends {message}"
                );
                // Who has lost entries acknowledged them all the same; a leader hears of it with its new connection.
                let disk = &machines[to as usize - 1].disk;
                assert!(
                    disk.has_lost || disk.log.chain(commit) == self.committed.chain(commit),
                    "{from} tells {to} of commit {commit}, which it never acknowledged"
                );
            }
            _ => {}
        }
    }

    fn votes_for(&mut self, machine: &Machine, term: u64, whom: u64) {
        let id = machine.id;
        let vote = *self.votes.entry((id, term)).or_insert(whom);
        assert_eq!(vote, whom, "{id} votes a second time in term {term}");
        let saved = (machine.disk.term, machine.disk.vote);
        assert_eq!(
            saved,
            (term, Some(whom)),
            "the vote of {id} is on disk before it is given"
        );
    }

    fn sends_entries(machine: &Machine, append: &Append, rules: &Rules) {
        let (id, prev) = (machine.id, append.prev_index);
        assert_eq!(
            machine.log.term(prev),
            append.prev_term,
            "{id} names its entry {prev}"
        );
        assert!(
            prev <= append.last && append.last <= machine.log.last(),
            "{id} sends {append:?}"
        );
        let entries = machine.log.between(prev, append.last);
        assert_eq!(
            runs_of(prev, entries),
            Some(append.runs),
            "{id} names the terms it sends"
        );
        let bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        assert_eq!(bytes, append.bytes, "{id} counts the bytes it sends");
        let limit = rules.max_append_bytes.min(rules.max_inflight_bytes);
        assert!(
            bytes <= limit || entries.len() == 1,
            "{id} sends {bytes} bytes at once"
        );
    }

    /// What a core says of itself agrees with what it did.
    pub(super) fn holds_of(&self, machines: &[Machine], id: u64, rules: &Rules) {
        let machine = &machines[id as usize - 1];
        let core = machine.core.as_ref().expect("it has just spoken");
        assert_eq!(
            core.last_index(),
            machine.log.last(),
            "{id} knows its log's end"
        );
        let open = machine
            .log
            .bytes_after(machine.commit.max(core.term_start().saturating_sub(1)));
        let counted = core.uncommitted_bytes();
        if !core.is_leader() {
            assert_eq!(counted, 0, "{id} does not lead");
            return; // What it knew of its peers is of an office that is over.
        }
        // Batches are counted as a whole until their last entry is committed.
        let batch = rules.max_batch_bytes();
        assert!(
            (open..=open + batch).contains(&counted),
            "{id} counts {counted} for {open}"
        );
        for (peer, matched, next, bytes, _) in core.peers() {
            assert!(
                matched < next && next <= core.last_index() + 1,
                "{id}: {peer} {matched} {next}"
            );
            let limit = rules.max_inflight_bytes.max(rules.max_entry_bytes);
            assert!(
                bytes <= limit,
                "{id} has {bytes} bytes on their way to {peer}"
            );
            // Nobody has others truncate what the latest leader has counted.
            if self
                .offices
                .last_key_value()
                .is_some_and(|office| *office.0 == core.term())
            {
                let disk = &machines[peer as usize - 1].disk;
                let (own, theirs) = (machine.log.chain(matched), disk.log.chain(matched));
                assert!(
                    disk.has_lost || own == theirs,
                    "{id} counts {matched} of {peer}"
                );
            }
        }
    }
}

fn is_voter(membership: &Membership, id: u64) -> bool {
    membership.voters.contains(&id) || membership.outgoing.contains(&id)
}
