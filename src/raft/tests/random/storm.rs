//! What happens to a group: work, misfortunes, and the end of both.

use super::machine::Write;
use super::world::{Event, World};
use super::{DISK_STALL_US, ELECTION_US, Weather};

impl World {
    /// Whoever believes to lead takes proposals, and anybody is asked.
    pub(super) fn work(&mut self) {
        if !self.storm {
            return;
        }
        for id in self.ids() {
            if self.machine(id).leads() && self.machine(id).stopped_until <= self.now_us {
                if self.chance(700) {
                    self.propose(id);
                }
                if self.chance(300) {
                    self.read(id);
                }
            }
        }
        let id = self.any();
        if self.chance(300) && self.machine(id).stopped_until <= self.now_us {
            self.read(id);
        }
        let id = self.any();
        if self.chance(100) {
            let commit = self.machine(id).commit;
            let to = self.rng.below(commit + 1);
            self.call(id, |core, now, log| core.compact(now, to, log));
        }
        let wait = 1_000 + self.rng.below(15_000);
        self.after(wait, Event::Work);
    }

    pub(super) fn propose(&mut self, id: u64) {
        let (count, now_us) = (
            1 + self.rng.below(self.rules.max_batch_entries),
            self.now_us,
        );
        let term = self.machine(id).core.as_ref().expect("it leads").term();
        let entries = self.make(id, term, count, self.rules.max_entry_bytes);
        let bytes = entries.iter().map(|entry| entry.bytes).sum();
        let machine = self.machine(id);
        let core = machine.core.as_mut().expect("it leads");
        let now = now_us + machine.clock_offset_us;
        let proposed = core
            .propose(now, count, bytes, &machine.log)
            .expect("it leads");
        let last = machine.log.last();
        assert_eq!(
            (proposed.first, proposed.last),
            (last - count + 1, last),
            "{id} proposes"
        );
        machine.disk.push(proposed.write, Write::Entries(entries));
        self.tell(|| format!("{id} proposes {}..={last}", proposed.first));
        self.carry_out(id, 0, &[]);
    }

    pub(super) fn read(&mut self, id: u64) {
        // A number is used once, over all lives.
        self.read_ctx += 1;
        let (ctx, at_least) = (self.read_ctx, self.laws.committed.last());
        if self.machine(id).core.is_some() {
            self.tell(|| format!("{id} reads {ctx}, of at least {at_least}"));
            self.machine(id).reads.push((ctx, at_least));
            self.call(id, |core, now, _| core.read(now, ctx));
        }
    }

    pub(super) fn misfortune(&mut self) {
        if !self.storm {
            return;
        }
        let leader = self
            .ids()
            .rfind(|id| self.machines[*id as usize - 1].leads());
        let busy = self.machines.iter().find(|machine| !machine.disk.is_idle());
        let busy = busy.map(|machine| machine.id);
        // Those who have something to lose are hit more often.
        let whom = match self.rng.below(10) {
            0..4 => leader,
            4..6 => busy,
            _ => None,
        };
        let whom = whom.unwrap_or_else(|| self.any());
        let now_us = self.now_us;
        match self.rng.below(10) {
            0 | 1 if self.machine(whom).core.is_some() => self.crash(whom),
            2 if self.chance(200) => {
                for id in self.ids() {
                    if self.machine(id).core.is_some() {
                        self.crash(id);
                    }
                }
            }
            3 => self.machine(whom).stopped_until = now_us + self.rng.below(4 * ELECTION_US),
            4 => self.machine(whom).disk_slow_until = now_us + self.rng.below(2 * DISK_STALL_US),
            5 => {
                let both = self.chance(600);
                for id in self.ids() {
                    self.link(whom, id, false);
                    if both {
                        self.link(id, whom, false);
                    }
                }
            }
            6 => {
                let side = self.rng.next();
                for from in self.ids() {
                    for to in self.ids() {
                        self.link(from, to, side >> from & 1 == side >> to & 1);
                    }
                }
            }
            7 => self.join_all(),
            8 if self.may_lose(whom) => {
                if self.machine(whom).core.is_some() {
                    self.crash(whom);
                }
                if self.chance(300) {
                    self.tell(|| format!("{whom} loses everything"));
                    self.machine(whom).disk.lose_all();
                    self.wipes += 1;
                } else {
                    let disk = &self.machine(whom).disk;
                    let (least, last) = (disk.snapshot.last(), disk.log.last());
                    let after = least + self.rng.below(last - least + 1);
                    self.tell(|| format!("{whom} loses what is after {after}"));
                    let vote_lost = self.chance(400);
                    self.machine(whom).disk.lose(after, vote_lost);
                }
                self.losses += 1;
                // A connection ends with its process: nothing of the former one comes after it.
                self.events.retain(
                    |_, event| !matches!(event, Event::Arrives { from, .. } if *from == whom),
                );
            }
            _ => {
                self.weather = Weather::bad(&mut self.rng);
                let peer = self.any();
                let life = self.machine(whom).life;
                for (wait, up) in [(10, false), (5_000, true)] {
                    if peer != whom {
                        self.after(
                            wait,
                            Event::Connection {
                                at: whom,
                                life,
                                peer,
                                up,
                            },
                        );
                    }
                }
            }
        }
        let wait = self.rng.below(self.weather.pause_us);
        self.after(wait, Event::Misfortune);
    }

    /// One machine at a time, and those that are left can decide without it.
    fn may_lose(&self, whom: u64) -> bool {
        let lost = |machine: &super::machine::Machine| machine.disk.lost.is_some();
        !self.machines.iter().any(lost)
            && self.rules.membership.voters.len() >= 3
            && self.machines[whom as usize - 1].disk.log.last() > 0
    }

    /// Makes or cuts a link; the ends mostly learn of it.
    pub(super) fn link(&mut self, from: u64, to: u64, up: bool) {
        let link = &mut self.links[from as usize - 1][to as usize - 1];
        if from != to && std::mem::replace(link, up) != up && (up || self.chance(500)) {
            let life = self.machine(from).life;
            let late = self.rng.below(5_000);
            self.after(
                late,
                Event::Connection {
                    at: from,
                    life,
                    peer: to,
                    up,
                },
            );
        }
    }

    pub(super) fn join_all(&mut self) {
        for from in self.ids() {
            for to in self.ids() {
                self.link(from, to, true);
            }
        }
    }

    pub(super) fn clear_up(&mut self) {
        self.tell(|| "the weather clears".to_owned());
        self.storm = false;
        self.weather = Weather::good();
        for id in self.ids() {
            let now_us = self.now_us;
            let machine = self.machine(id);
            machine.stopped_until = now_us;
            machine.disk_slow_until = now_us;
            self.start(id);
        }
        self.join_all();
        // Who believes that a connection is lost learns better. The others have no reason to try
        // anew, and must find out by themselves what the storm took.
        self.events
            .retain(|_, event| !matches!(event, Event::Connection { .. }));
        for at in self.ids() {
            let life = self.machine(at).life;
            for peer in std::mem::take(&mut self.machine(at).lost) {
                self.after(
                    1_000,
                    Event::Connection {
                        at,
                        life,
                        peer,
                        up: true,
                    },
                );
            }
        }
    }
}
