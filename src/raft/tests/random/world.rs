//! The machines, the network between them, and the time, which goes from event to event.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::raft::rng::Rng;
use crate::raft::{Append, Core, Membership, Message, Output, Role};

use super::laws::Laws;
use super::machine::{Entry, Log, Machine, Write, runs_of};
use super::{ELECTION_US, Rules, STEPS_AT_MOST, Weather};

#[derive(Clone, Debug)]
pub(super) enum Event {
    Arrives {
        from: u64,
        to: u64,
        message: Message,
        entries: Vec<Entry>,
    },
    Tick {
        at: u64,
        life: u64,
        due: u64,
    },
    /// The disk has everything up to `upto`; the core does not know yet.
    Flushed {
        at: u64,
        life: u64,
        upto: u64,
    },
    Persisted {
        at: u64,
        life: u64,
        upto: u64,
    },
    Connection {
        at: u64,
        life: u64,
        peer: u64,
        up: bool,
    },
    Starts {
        at: u64,
    },
    /// A snapshot of everything up to `index` is whole at `to`, or will never be.
    Snapshot {
        from: u64,
        life: u64,
        to: u64,
        snapshot: Log,
    },
    SnapshotEnded {
        at: u64,
        life: u64,
        peer: u64,
        index: Option<u64>,
    },
    /// The next proposals and reads.
    Work,
    /// The next misfortune.
    Misfortune,
}

pub(super) struct World {
    pub(super) rules: Rules,
    pub(super) rng: Rng,
    pub(super) now_us: u64,
    pub(super) events: BTreeMap<(u64, u64), Event>,
    pub(super) scheduled: u64,
    pub(super) machines: Vec<Machine>,
    pub(super) laws: Laws,
    pub(super) weather: Weather,
    /// Whether what `from` sends reaches `to`: `links[from - 1][to - 1]`.
    pub(super) links: Vec<Vec<bool>>,
    pub(super) storm: bool,
    pub(super) entry_ids: u64,
    pub(super) read_ctx: u64,
    pub(super) sent: u64,
    pub(super) answered: u64,
    pub(super) snapshots: u64,
    pub(super) losses: u64,
    /// Those of them that left nothing.
    pub(super) wipes: u64,
    /// How often what was lost was there again.
    pub(super) healed: u64,
    pub(super) tells: bool,
}

impl World {
    pub(super) fn new(seed: u64, tells: bool) -> Self {
        let mut rng = Rng::new(seed);
        let rules = Rules::of(seed, &mut rng);
        let Membership {
            voters,
            outgoing,
            learners,
        } = &rules.membership;
        let ids = voters.iter().chain(outgoing).chain(learners);
        let size = *ids.max().expect("a group has members") as usize;
        let mut world = Self {
            weather: Weather::bad(&mut rng),
            rules,
            rng,
            now_us: 1,
            events: BTreeMap::new(),
            scheduled: 0,
            machines: (1..=size as u64).map(Machine::new).collect(),
            laws: Laws::default(),
            links: vec![vec![true; size]; size],
            storm: true,
            entry_ids: 0,
            read_ctx: 0,
            sent: 0,
            answered: 0,
            snapshots: 0,
            losses: 0,
            wipes: 0,
            healed: 0,
            tells,
        };
        for at in 1..=size as u64 {
            world.start(at);
        }
        world.after(1_000, Event::Work);
        world.after(50_000, Event::Misfortune);
        world
    }

    pub(super) fn ids(&self) -> RangeInclusive<u64> {
        1..=self.machines.len() as u64
    }

    pub(super) fn machine(&mut self, id: u64) -> &mut Machine {
        &mut self.machines[id as usize - 1]
    }

    pub(super) fn chance(&mut self, thousandths: u64) -> bool {
        self.rng.below(1000) < thousandths
    }

    pub(super) fn any(&mut self) -> u64 {
        1 + self.rng.below(self.machines.len() as u64)
    }

    pub(super) fn after(&mut self, us: u64, event: Event) {
        self.scheduled += 1;
        self.events
            .insert((self.now_us + us, self.scheduled), event);
    }

    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            eprintln!("{:>8} {}", self.now_us, what());
        }
    }

    /// Handles the next event.
    pub(super) fn step(&mut self) {
        let ((at, number), event) = self.events.pop_first().expect("ticks never end");
        self.now_us = at;
        if let Event::Arrives { to: at, .. }
        | Event::Tick { at, .. }
        | Event::Persisted { at, .. }
        | Event::Snapshot { to: at, .. }
        | Event::SnapshotEnded { at, .. }
        | Event::Connection { at, .. } = event
        {
            let until = self.machine(at).stopped_until;
            if self.now_us < until {
                self.events.insert((until, number), event);
                return;
            }
        }
        match event {
            Event::Arrives {
                from,
                to,
                message,
                entries,
            } => self.arrives(from, to, message, &entries),
            Event::Tick { at, life, due } => self.tick(at, life, due),
            Event::Flushed { at, life, upto } => self.flushed(at, life, upto),
            Event::Persisted { at, life, upto } if self.machine(at).life == life => {
                self.tell(|| format!("{at} persisted to {upto}"));
                self.call(at, |core, now, log| core.persisted(now, upto, log));
            }
            Event::Connection { at, life, peer, up } if self.machine(at).life == life => {
                self.tell(|| format!("{at} peer {peer} {}", if up { "up" } else { "down" }));
                let lost = &mut self.machine(at).lost;
                lost.retain(|id| *id != peer);
                if !up {
                    lost.push(peer);
                }
                self.call(at, |core, now, log| match up {
                    true => core.peer_up(now, peer, log),
                    false => core.peer_down(now, peer),
                });
            }
            Event::Snapshot {
                from,
                life,
                to,
                snapshot,
            } => self.snapshot_arrives(from, life, to, snapshot),
            Event::SnapshotEnded {
                at,
                life,
                peer,
                index,
            } if self.machine(at).life == life => {
                self.call(at, |core, now, log| match index {
                    Some(index) => core.snapshot_sent(now, peer, index, log),
                    None => core.snapshot_failed(now, peer),
                });
            }
            Event::Persisted { .. } | Event::Connection { .. } | Event::SnapshotEnded { .. } => {}
            Event::Starts { at } => self.start(at),
            Event::Work => self.work(),
            Event::Misfortune => self.misfortune(),
        }
        self.laws
            .committed_is_durable(&self.machines, &self.rules.membership);
    }

    pub(super) fn start(&mut self, at: u64) {
        if self.machine(at).core.is_some() {
            return;
        }
        // Some have given away the beginning of their log; all that came with a snapshot.
        let machine = &self.machines[at as usize - 1];
        let least = machine.disk.snapshot.last();
        let has = |index: &u64| machine.disk.log.chain(*index) == self.laws.committed.chain(*index);
        let most = (least..=self.laws.committed.last()).rev().find(has);
        let more = most.unwrap_or(least) - least;
        let base = match self.chance(200) {
            true => least + self.rng.below(more + 1),
            false => least,
        };
        self.tell(|| format!("{at} starts, base {base}"));
        let now_us = self.now_us;
        self.machines[at as usize - 1].start(&self.rules, base, now_us, &mut self.rng);
        for peer in self.ids() {
            let life = self.machine(peer).life;
            if peer != at && self.machine(peer).core.is_some() {
                self.after(
                    100,
                    Event::Connection {
                        at: peer,
                        life,
                        peer: at,
                        up: true,
                    },
                );
            }
        }
        self.carry_out(at, 0, &[]);
    }

    pub(super) fn crash(&mut self, at: u64) {
        self.tell(|| format!("{at} crashes"));
        self.machines[at as usize - 1].crash(&mut self.rng);
        for peer in self.ids() {
            let life = self.machine(peer).life;
            if peer != at && self.chance(700) {
                let late = self.rng.below(2_000);
                self.after(
                    late,
                    Event::Connection {
                        at: peer,
                        life,
                        peer: at,
                        up: false,
                    },
                );
            }
        }
        let down_us = 1_000 + self.rng.below(400_000);
        self.after(down_us, Event::Starts { at });
    }

    pub(super) fn tick(&mut self, at: u64, life: u64, due: u64) {
        if self.machine(at).life != life || self.machine(at).tick_at != due {
            return; // Another one was planned for an earlier time.
        }
        self.machine(at).tick_at = u64::MAX;
        self.call(at, Core::tick);
        let machine = &self.machines[at as usize - 1];
        let core = machine.core.as_ref().expect("it lives");
        let now = self.now_us + machine.clock_offset_us;
        assert!(now < core.next_deadline(), "{at} has done what was due");
    }

    pub(super) fn flushed(&mut self, at: u64, life: u64, upto: u64) {
        if self.machine(at).life == life {
            self.machine(at).disk.finish(upto);
            self.machine(at).flushing = false;
            let late = self.rng.below(self.weather.disk_us / 4 + 1);
            self.after(late, Event::Persisted { at, life, upto });
            self.flush(at);
        }
    }

    /// One flush at a time, of all that was written when it began.
    pub(super) fn flush(&mut self, at: u64) {
        let now_us = self.now_us;
        let machine = self.machine(at);
        if machine.flushing || machine.disk.is_idle() {
            return;
        }
        machine.flushing = true;
        let (life, upto) = (machine.life, machine.disk.issued());
        let slow = machine.disk_slow_until.saturating_sub(now_us);
        let takes = slow + 1 + self.rng.below(self.weather.disk_us);
        self.after(takes, Event::Flushed { at, life, upto });
    }

    pub(super) fn arrives(&mut self, from: u64, to: u64, mut message: Message, entries: &[Entry]) {
        if self.machine(to).core.is_none() {
            return;
        }
        self.tell(|| format!("{to} <- {from} {message}"));
        let mut prev = 0;
        if let Message::Append(append) = &mut message {
            prev = append.prev_index;
            append.bytes = 0;
            append.runs = runs_of(prev, entries).expect("the sender cut there");
        }
        let now_us = self.now_us;
        let machine = self.machine(to);
        let now = now_us + machine.clock_offset_us;
        let core = machine.core.as_mut().expect("seen above");
        core.receive(now, from, &message, &machine.log);
        self.carry_out(to, prev, entries);
    }

    /// It is durable at `to`, and the sender learns of it, mostly.
    fn snapshot_arrives(&mut self, from: u64, life: u64, to: u64, snapshot: Log) {
        let index = snapshot.last();
        let lost =
            !self.links[from as usize - 1][to as usize - 1] || self.storm && self.chance(200);
        let arrives = !lost && self.machine(to).core.is_some();
        if arrives {
            self.tell(|| format!("{to} has a snapshot of {from} up to {index}"));
            self.snapshots += 1;
            let term = snapshot.term(index);
            let machine = self.machine(to);
            // What is behind the one it has is of no use to anybody.
            if index > machine.disk.snapshot.last() && index > machine.commit {
                machine.disk.snapshot = snapshot;
            }
            self.call(to, |core, now, _| core.snapshot_received(now, index, term));
        }
        if !self.storm || self.chance(900) {
            let index = arrives.then_some(index);
            let event = Event::SnapshotEnded {
                at: from,
                life,
                peer: to,
                index,
            };
            let late = self.rng.below(self.weather.delay_us + 1);
            self.after(late, event);
        } else {
            let event = Event::SnapshotEnded {
                at: from,
                life,
                peer: to,
                index: None,
            };
            self.after(10 * ELECTION_US, event);
        }
    }

    pub(super) fn call(&mut self, at: u64, what: impl FnOnce(&mut Core, u64, &Log)) {
        let now_us = self.now_us;
        let machine = self.machine(at);
        if let Some(core) = &mut machine.core {
            what(core, now_us + machine.clock_offset_us, &machine.log);
            self.carry_out(at, 0, &[]);
        }
    }

    /// Does what the core of `id` says; `entries`, after `prev`, came with what it was told.
    pub(super) fn carry_out(&mut self, id: u64, prev: u64, entries: &[Entry]) {
        let place = id as usize - 1;
        let mut conflict = None;
        loop {
            let machine = &mut self.machines[place];
            let core = machine.core.as_mut().expect("it lives");
            let Some(output) = core.pop_output() else {
                break;
            };
            let core_commit = core.commit();
            self.tell(|| format!("{id}    {output}"));
            let machine = &mut self.machines[place];
            match output {
                Output::SaveVote { write, term, vote } => {
                    machine.disk.push(write, Write::Vote { term, vote });
                }
                Output::Truncate { write, after } => {
                    self.laws.truncates(machine, after);
                    conflict = Some((after + 1, machine.log.term(after + 1)));
                    machine.log.truncate(after);
                    machine.disk.push(write, Write::Truncate { after });
                }
                Output::AppendReceived { write, first, last } => {
                    assert_eq!(first, machine.log.last() + 1, "{id} appends at its end");
                    let received = &entries[(first - prev - 1) as usize..(last - prev) as usize];
                    if let Some((at, term)) = conflict.take() {
                        assert_eq!(at, first, "{id} truncates what it replaces");
                        assert_ne!(term, received[0].term, "{id} truncates what differs");
                    }
                    for entry in received {
                        self.laws.appends(machine, entry);
                        machine.log.push(*entry);
                    }
                    machine.disk.push(write, Write::Entries(received.to_vec()));
                }
                Output::AppendTermStart { write, index, term } => {
                    assert_eq!(index, machine.log.last() + 1, "{id} appends at its end");
                    let entries = self.make(id, term, 1, 0);
                    self.machines[place]
                        .disk
                        .push(write, Write::Entries(entries));
                }
                Output::Send { to, message } => self.send(id, to, message),
                Output::SendSnapshot { to } => {
                    let (life, snapshot) = (machine.life, machine.log.upto(core_commit));
                    let takes = 1_000 + self.rng.below(20 * self.weather.delay_us);
                    let from = id;
                    let event = Event::Snapshot {
                        from,
                        life,
                        to,
                        snapshot,
                    };
                    self.after(takes, event);
                }
                Output::Install { write, index, term } => {
                    let log = machine.disk.snapshot.clone();
                    assert_eq!((log.last(), log.term(index)), (index, term));
                    assert_eq!(log.chain(index), self.laws.committed.chain(index));
                    assert!(machine.commit < index, "{id} is behind what replaces it");
                    (machine.log, machine.commit) = (log.clone(), index);
                    machine.disk.push(write, Write::Install(log));
                }
                Output::Healed { write } => {
                    // From here on it is counted for what it has, all of which this write waits for, and no more for what
                    // it had.
                    let lost = machine.disk.lost.take();
                    let (heal, _) = lost.as_ref().expect("it had lost something");
                    machine.disk.lost = Some((*heal, machine.log.clone()));
                    self.laws
                        .committed_is_durable(&self.machines, &self.rules.membership);
                    let machine = &mut self.machines[place];
                    machine.disk.lost = lost;
                    machine.disk.push(write, Write::Healed);
                    self.healed += 1;
                }
                Output::Commit { index } => {
                    self.laws.commits(&self.machines, id, index);
                    self.machines[place].commit = index;
                }
                Output::ReadReady { ctx, index } => {
                    assert!(
                        index <= self.laws.committed.last(),
                        "{index} is committed by nobody"
                    );
                    let due = machine.reads.extract_if(.., |read| read.0 <= ctx);
                    let due: Vec<_> = due.collect();
                    assert!(
                        !due.is_empty(),
                        "{id} answers a read {ctx} that nobody waits for"
                    );
                    for (ctx, at_least) in due {
                        assert!(
                            at_least <= index,
                            "read {ctx} at {index}, {at_least} was there"
                        );
                        self.answered += 1;
                    }
                }
                Output::ReadFailed { ctx } => machine.reads.retain(|read| ctx < read.0),
                Output::Role {
                    role: Role::Leader,
                    term,
                    leader,
                } => {
                    assert_eq!(leader, Some(id), "a leader knows who leads");
                    self.laws.leads(machine, term);
                }
                Output::Role { .. } => {}
            }
        }
        assert_eq!(conflict, None, "{id} truncates and appends nothing");
        self.flush(id);
        let machine = &self.machines[place];
        let core = machine.core.as_ref().expect("it lives");
        self.laws.holds_of(&self.machines, id, &self.rules);
        let due = core
            .next_deadline()
            .saturating_sub(machine.clock_offset_us)
            .max(self.now_us);
        if due < machine.tick_at {
            let machine = self.machine(id);
            machine.tick_at = due;
            let life = machine.life;
            let wait = due - self.now_us + self.rng.below(self.weather.tick_late_us);
            self.after(wait, Event::Tick { at: id, life, due });
        }
    }

    /// Makes entries of the leader `id` and appends them to its log.
    pub(super) fn make(&mut self, id: u64, term: u64, count: u64, max_bytes: u64) -> Vec<Entry> {
        let mut made = Vec::new();
        for _ in 0..count {
            self.entry_ids += 1;
            let (entry_id, bytes) = (self.entry_ids, self.rng.below(max_bytes + 1));
            let machine = &mut self.machines[id as usize - 1];
            let before = machine.log.chain(machine.log.last());
            let entry = Entry::after(before, term, entry_id, bytes);
            self.laws.appends(machine, &entry);
            self.laws.office_appends(term, entry);
            machine.log.push(entry);
            made.push(entry);
        }
        made
    }

    pub(super) fn send(&mut self, from: u64, to: u64, message: Message) {
        self.laws
            .sends(&self.machines, from, to, &message, &self.rules);
        self.sent += 1;
        let entries = match message {
            Message::Append(Append {
                prev_index, last, ..
            }) => self.machine(from).log.between(prev_index, last).to_vec(),
            _ => Vec::new(),
        };
        if !self.links[from as usize - 1][to as usize - 1] || self.chance(self.weather.lose) {
            return;
        }
        for _ in 0..1 + u64::from(self.chance(self.weather.double)) {
            let mut delay = 50 + self.rng.below(self.weather.delay_us);
            if self.chance(self.weather.straggle) {
                delay += self.rng.below(10 * ELECTION_US);
            }
            self.after(
                delay,
                Event::Arrives {
                    from,
                    to,
                    message,
                    entries: entries.clone(),
                },
            );
        }
    }

    pub(super) fn run_for(&mut self, us: u64) {
        self.run_until(self.now_us + us, |_| false);
    }

    /// True when it came true before `deadline`.
    pub(super) fn run_until(&mut self, deadline: u64, holds: impl Fn(&Self) -> bool) -> bool {
        while !holds(self) {
            if self
                .events
                .first_key_value()
                .is_none_or(|(key, _)| deadline < key.0)
            {
                self.now_us = deadline;
                return false;
            }
            self.step();
            assert!(self.scheduled < STEPS_AT_MOST, "the group never rests");
        }
        true
    }

    /// The one who leads and whom everybody follows.
    pub(super) fn leader(&self) -> Option<u64> {
        let core = |machine: &Machine| machine.core.as_ref().and_then(Core::leader);
        let leader = core(&self.machines[0])?;
        let followed = self
            .machines
            .iter()
            .all(|machine| core(machine) == Some(leader));
        (followed && self.machines[leader as usize - 1].leads()).then_some(leader)
    }

    pub(super) fn all_have_all(&self) -> bool {
        let last = self.machines[0].log.last();
        let has = |machine: &Machine| machine.log.last() == last && machine.commit == last;
        self.machines.iter().all(has)
    }
}
