//! One node's core, whose peers say anything at all and whose disk takes its time.
//!
//! What holds, whoever the peers are: no panic; terms and the commit index never fall; one vote a
//! term; nothing committed is truncated; a vote, a candidacy and an acknowledgement leave only when
//! what they promise is durable.

use std::collections::VecDeque;

use ringraft::fuzzing::{Lone, Wants, message_heads};

use super::input::Input;

/// What the node has asked for and what of it is durable.
struct World {
    term: u64,
    vote: Option<u64>,
    last: u64,
    commit: u64,
    writes: VecDeque<Write>,
    issued: u64,
    done: u64,
    durable_term: u64,
    durable_vote: Option<u64>,
    durable_last: u64,
    /// The furthest that the durable log has reached in this term. A leader that takes back its own
    /// entries is lied to in turn; a sound one never does.
    durable_furthest: u64,
}

#[derive(Clone, Copy)]
enum Write {
    Vote(u64, Option<u64>),
    /// The log ends here.
    End(u64),
}

pub(super) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut node = Lone::new();
    let mut world = World {
        term: Lone::TERM,
        vote: None,
        last: Lone::LAST,
        commit: 0,
        writes: VecDeque::new(),
        issued: 0,
        done: 0,
        durable_term: Lone::TERM,
        durable_vote: None,
        durable_last: Lone::LAST,
        durable_furthest: Lone::LAST,
    };
    let mut ctx = 0;
    while !input.is_empty() {
        match input.below(10) {
            0 => node.tick(input.u16().into()),
            1 => node.tick_when_due(),
            2 => {
                if let Some(wants) = node.propose(input.below(4) as u64) {
                    world.carry_out(wants);
                }
            }
            3 => {
                ctx += 1;
                node.read(ctx);
            }
            4 => {
                let peer = input.below(5) as u64;
                node.connection(peer, input.flag());
            }
            5 | 6 => {
                let finished = input.below(1 + world.writes.len());
                world.finish(finished);
                node.persisted(world.done);
            }
            _ => receive(&mut node, &mut input, &world),
        }
        while let Some(wants) = node.next_wish() {
            world.carry_out(wants);
        }
    }
}

fn receive(node: &mut Lone, input: &mut Input<'_>, world: &World) {
    let from = 2 + input.below(3) as u64;
    let (kind, mut head) = input.one_of_heads();
    // Terms and indexes near those of the node, or anything.
    for value in head.chunks_exact_mut(8) {
        let near = [world.term, world.last, world.commit, 0];
        let number = match input.below(8) {
            0..=2 => continue,
            3..=6 => (input.one_of(&near) + input.below(5) as u64).saturating_sub(2),
            _ => u64::from(input.u32()) << input.below(33),
        };
        value.copy_from_slice(&number.to_le_bytes());
    }
    let mut runs = Vec::new();
    if input.flag() {
        // Entries as a leader has them: they follow what the head names.
        let u64_at = |at: usize| {
            head.get(at..at + 8).map_or(0, |b| {
                u64::from_le_bytes(b.try_into().expect("eight bytes"))
            })
        };
        let (mut term, mut first) = (u64_at(16), u64_at(8).saturating_add(1));
        for _ in 0..input.below(4) {
            runs.push((term, first));
            term = term.saturating_add(input.below(3) as u64);
            first = first.saturating_add(1 + input.below(3) as u64);
        }
    }
    node.receive(from, kind, &head, &runs);
}

impl Input<'_> {
    fn one_of_heads(&mut self) -> (u8, Vec<u8>) {
        let mut heads = message_heads();
        heads.swap_remove(self.below(heads.len()))
    }
}

impl World {
    fn write(&mut self, write: Write) {
        self.issued += 1;
        self.writes.push_back(write);
    }

    fn finish(&mut self, count: usize) {
        for write in self.writes.drain(..count) {
            self.done += 1;
            match write {
                Write::Vote(term, vote) => (self.durable_term, self.durable_vote) = (term, vote),
                Write::End(last) => self.durable_last = last,
            }
            self.durable_furthest = self.durable_furthest.max(self.durable_last);
        }
    }

    fn carry_out(&mut self, wants: Wants) {
        match wants {
            Wants::SaveVote(term, vote) => {
                assert!(self.term <= term, "term {term} after {}", self.term);
                let free = self.term < term || self.vote.is_none() || self.vote == vote;
                assert!(free, "{vote:?} after {:?} in term {term}", self.vote);
                if self.term < term {
                    self.durable_furthest = self.durable_last;
                }
                (self.term, self.vote) = (term, vote);
                self.write(Write::Vote(term, vote));
            }
            Wants::Truncate(after) => {
                assert!(self.commit <= after && after < self.last, "after {after}");
                self.last = after;
                self.write(Write::End(after));
            }
            Wants::Append(first, last) => {
                assert!(first == self.last + 1 && first <= last, "{first}..={last}");
                self.last = last;
                self.write(Write::End(last));
            }
            Wants::Commit(index) => {
                assert!(self.commit < index && index <= self.last, "commit {index}");
                self.commit = index;
            }
            Wants::Grant(term, to) => {
                assert_eq!((self.durable_term, self.durable_vote), (term, Some(to)));
            }
            Wants::Stand(term) => {
                assert_eq!((self.durable_term, self.durable_vote), (term, Some(1)));
            }
            Wants::Acknowledge(term, index) => {
                let furthest = self.durable_furthest;
                assert!(index <= furthest, "{index} > {furthest}");
                assert!(term <= self.durable_term, "{term} > {}", self.durable_term);
            }
        }
        // Many writes may be under way, but they are not many for one input.
        assert!(self.issued - self.done == self.writes.len() as u64);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // It stands, wins and leads; it follows; it votes. Kinds are places in `message_heads`.
    let win = [
        1, 5, 1, 7, 0, 0, 3, 0, 3, 2, 0, 0, 0, 1, 5, 9, 7, 0, 2, 3, 0, 2, 0, 0, 5, 9,
    ];
    let propose = [2, 3, 5, 9, 7, 0, 4, 3, 0, 2, 0, 3, 1, 4, 0, 0, 0, 0, 3];
    let follow = [
        7, 0, 3, 3, 0, 4, 3, 1, 2, 3, 1, 4, 3, 2, 2, 0, 1, 2, 1, 1, 5, 9,
    ];
    let vote = [
        7, 1, 1, 3, 0, 3, 3, 1, 2, 3, 0, 2, 0, 0, 5, 9, 7, 2, 1, 3, 0, 3, 0, 0, 0,
    ];
    let seeds: [&[&[u8]]; 4] = [
        &[&win, &propose],
        &[&follow, &follow],
        &[&vote],
        &[&follow, &win],
    ];
    seeds.map(<[&[u8]]>::concat).to_vec()
}
