//! What goes wrong, when, and how it is put right again.

use std::sync::atomic::Ordering;

use storage::medium::Dir;
use storage::medium::memory::{Fault, Loss, Memory};

use crate::flow::shared::Stop;
use crate::sim::fault_schedule::Heal;
use crate::sim::invariants::Broken;
use crate::sim::invariants::Verdict;
use crate::sim::invariants::logs::Model;
use crate::sim::machine::recorder::MachineDisk;
use crate::sim::node::SimNode;
use crate::sim::node::act::EVERYTHING;
use crate::sim::node::{DAMAGED, REJOINS, ROTTEN};
use crate::sim::plan::{TROUBLES, Trouble};
use crate::sim::world::restart::{End, WIPED};
use crate::sim::world::{World, tell};
use crate::status::Role;

/// Polls that a trouble waits for at the most when its time has come: it may strike between any two of them.
const MOST_POLLS: u64 = 60;
const HOUR_US: u64 = 3_600_000_000;

impl World<'_> {
    pub(crate) fn on_trouble_time(&mut self) -> Verdict {
        let now_us = self.now_us;
        let healed: Vec<Heal> = self
            .troubles
            .heals
            .extract_if(.., |(at, _)| *at <= now_us)
            .map(|(_, heal)| heal)
            .collect();
        for heal in healed {
            self.heal(&heal);
        }
        if self.troubles.next_us <= now_us {
            let next = self.troubles.rng.around(self.plan.trouble_every_us);
            self.troubles.next_us = now_us + next;
            self.troubles.in_polls = Some(self.troubles.rng.below(MOST_POLLS));
        }
        Ok(())
    }

    pub(crate) fn strike(&mut self) -> Verdict {
        self.troubles.in_polls = None;
        let trouble = self.troubles.rng.pick(&self.plan.troubles);
        let any = self.troubles.rng.below(self.nodes.len() as u64) as usize;
        // Whatever happens to a leader matters more.
        let leads = |node: &SimNode| node.seen.0 == Role::Leader;
        let leader = self.nodes.iter().position(leads);
        let at = leader
            .filter(|_| self.troubles.rng.chance(400_000))
            .unwrap_or(any);
        if self.carry_out(trouble, at)? {
            let name = TROUBLES.iter().find(|(of, _)| *of == trouble);
            let name = name.map_or("fault", |(_, name)| *name);
            self.counts.add(name);
            tell!(self, "{name}, at n{}", at + 1);
            self.trace.note(trouble as u64 ^ 0xdead << 32);
        }
        Ok(())
    }

    fn lasts(&mut self) -> u64 {
        self.now_us + self.troubles.rng.around(self.plan.trouble_us)
    }

    /// False: it could not be done now.
    fn carry_out(&mut self, trouble: Trouble, at: usize) -> Result<bool, Broken> {
        let count = self.nodes.len();
        let lives = self.nodes[at].life.is_some();
        match trouble {
            Trouble::Kill if lives => self.end(at, End::Killed)?,
            Trouble::Leave if lives => self.leave(at),
            Trouble::PowerCut if lives => {
                let loss = self.loss();
                self.end(at, End::PowerCut(loss))?;
            }
            Trouble::PowerCutInside if lives => {
                self.fail_soon(at, Fault::PowerOff, 12);
                self.nodes[at].armed.power = true;
            }
            Trouble::Blackout => {
                for node in 0..count {
                    let loss = self.loss();
                    self.end(node, End::PowerCut(loss))?;
                }
            }
            Trouble::Pause if lives => {
                let until = self.lasts();
                self.nodes[at].paused_until_us = Some(until);
                self.fabric.state().set_deaf(at, true);
            }
            Trouble::Partition if count > 1 => {
                let sides = self.troubles.rng.between(1, (1 << count) - 2);
                self.cut(|to, from| (sides >> to & 1) != (sides >> from & 1));
            }
            Trouble::Isolate if count > 1 => {
                self.cut(|to, from| to == at || from == at);
                self.ask_both_sides(at)?;
            }
            Trouble::Unplug if count > 1 => {
                self.cut(|to, from| to == at || from == at);
                for other in (0..count).filter(|&other| other != at) {
                    self.fabric.state().disconnect(at, other);
                }
            }
            Trouble::OneWay if count > 1 => {
                let other = (at + 1 + self.troubles.rng.below(count as u64 - 1) as usize) % count;
                self.cut(|to, from| (to, from) == (at, other));
            }
            Trouble::Bridge if count > 2 => {
                let side = |node: usize| (node + count - at) % count <= count / 2;
                self.cut(|to, from| to != at && from != at && side(to) != side(from));
            }
            Trouble::Reset if count > 1 => {
                let other = (at + 1 + self.troubles.rng.below(count as u64 - 1) as usize) % count;
                self.fabric.state().disconnect(at, other);
            }
            Trouble::SlowNetwork if count > 1 => {
                let slow = self.plan.config.election_timeout.as_micros() as u64;
                let delay_us = self.troubles.rng.below(slow);
                self.fabric.state().weather.delay_us = delay_us;
                let until = self.lasts();
                self.troubles.heals.push((until, Heal::Network));
            }
            Trouble::SlowDisk => self.nodes[at].slow_until_us = self.lasts(),
            Trouble::DiskError if lives => {
                self.fail_soon(at, Fault::Io, 6);
                self.nodes[at].armed.error = true;
            }
            Trouble::DiskFull => {
                self.nodes[at].disk.set_capacity(Some(0));
                self.nodes[at].no_room = true;
                self.nodes[at].armed.full = true;
                let until = self.lasts();
                self.troubles.heals.push((until, Heal::Room(at)));
            }
            Trouble::ReadError if lives => {
                self.end(at, End::Killed)?;
                self.nodes[at].disk.fail_reads(true);
                self.nodes[at].no_reads = true;
                let until = self.lasts();
                self.troubles.heals.push((until, Heal::Reads(at)));
            }
            Trouble::ClockJump => {
                // Mostly by up to an hour, now and then by up to ten years.
                let most = match self.troubles.rng.below(4) {
                    0 => 10 * 365 * 24 * HOUR_US,
                    _ => HOUR_US,
                };
                let offset = self.troubles.rng.below(2 * most) as i64 - most as i64;
                self.nodes[at].wall_offset_us = offset;
                if let Some(life) = &self.nodes[at].life {
                    life.clock.jump(offset);
                }
            }
            Trouble::MachinePanic if lives => {
                self.panics[at].store(true, Ordering::Relaxed);
                self.nodes[at].armed.panic = true;
            }
            // Who rejoins has to hear from all others: none of them is lost for good meanwhile.
            Trouble::BitRot | Trouble::Misdirected
                if self.may_damage(at) && !self.is_any(|how| how == REJOINS) =>
            {
                return self.damage(at, trouble);
            }
            // No peer can make up for it: the node must refuse, and its operator puts a copy of the disk back.
            Trouble::BitRot | Trouble::Misdirected if self.may_damage_lone(at) => {
                self.end(at, End::Killed)?;
                let copy = self.nodes[at].disk.power_cut(Loss::Nothing);
                let is_damaged = self.damage(at, trouble)?;
                if is_damaged {
                    self.nodes[at].backup = Some(copy);
                }
                return Ok(is_damaged);
            }
            // It may end before that is mended, and be refused then.
            Trouble::RotInUse
                if lives && self.may_damage(at) && !self.is_any(|how| how == REJOINS) =>
            {
                return Ok(self.rot(at));
            }
            Trouble::Wipe if self.may_damage(at) && self.is_known_to_all(at) => {
                let (may_rejoin, must_rejoin) = (
                    !self.is_any(|how| how != REJOINS),
                    self.is_any(|how| how == REJOINS),
                );
                let rejoins = must_rejoin || self.troubles.rng.chance(500_000);
                if rejoins && !may_rejoin {
                    return Ok(false);
                }
                self.wipe(at, rejoins)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Logs part where both sides of a cut are written to.
    fn ask_both_sides(&mut self, at: usize) -> Verdict {
        if !self.troubles.rng.chance(300_000) {
            return Ok(());
        }
        for node in 0..self.nodes.len() {
            let count = self.troubles.rng.between(1, 12) * if node == at { 3 } else { 1 };
            for _ in 0..count {
                if self.nodes[node].runs() {
                    self.ask(node)?;
                }
            }
        }
        Ok(())
    }

    fn loss(&mut self) -> Loss {
        match self.troubles.rng.below(4) {
            0 => Loss::All,
            _ => Loss::Random(self.troubles.rng.next()),
        }
    }

    /// One of the next `most` operations on the disk fails.
    fn fail_soon(&mut self, at: usize, fault: Fault, most: u64) {
        let disk = &self.nodes[at].disk;
        disk.fail_at(disk.steps() + self.troubles.rng.below(most), fault);
    }

    fn leave(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let life = node.life.as_ref().expect("it lives");
        life.shared.request_stop(Stop::Drain);
        let limit = node.config.proposal_timeout.as_micros() as u64;
        node.drains_until_us
            .get_or_insert(life.clock.now_us() + limit);
        node.hot = EVERYTHING;
    }

    /// Lets nothing pass on the ways for which `which(to, from)`, for a while.
    fn cut(&mut self, which: impl Fn(usize, usize) -> bool) {
        let count = self.nodes.len();
        let cuts: Vec<(usize, usize)> = (0..count * count)
            .map(|pair| (pair / count, pair % count))
            .filter(|&(to, from)| to != from && which(to, from))
            .collect();
        let mut state = self.fabric.state();
        for &(to, from) in &cuts {
            state.cut(to, from, true);
        }
        drop(state);
        let until = self.lasts();
        self.troubles.heals.push((until, Heal::Cuts(cuts)));
    }

    fn heal(&mut self, heal: &Heal) {
        match heal {
            Heal::Cuts(cuts) => {
                let still = |way: &(usize, usize)| {
                    let mut heals = self.troubles.heals.iter();
                    heals.any(|(_, heal)| matches!(heal, Heal::Cuts(cuts) if cuts.contains(way)))
                };
                let mut state = self.fabric.state();
                for way in cuts.iter().filter(|way| !still(way)) {
                    state.cut(way.0, way.1, false);
                }
            }
            Heal::Network => {
                self.fabric.state().weather.delay_us = self.plan.weather.delay_us;
            }
            Heal::Reads(at) => {
                self.nodes[*at].disk.fail_reads(false);
                self.nodes[*at].no_reads = false;
            }
            Heal::Room(at) => {
                // What failed for want of room may be told later in this life.
                self.nodes[*at].disk.set_capacity(None);
                self.nodes[*at].no_room = false;
            }
        }
    }

    /// A quorum of sound disks must be left, and the node must be sound so far.
    fn may_damage(&self, at: usize) -> bool {
        let damaged = |node: &SimNode| node.damaged.is_some();
        let count = self.nodes.iter().filter(|node| damaged(node)).count();
        count < (self.nodes.len() - 1) / 2 && !damaged(&self.nodes[at]) && self.nodes[at].lives > 0
    }

    /// Whether a node without peers may be damaged.
    fn may_damage_lone(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        self.nodes.len() == 1 && node.damaged.is_none() && node.lives > 0
    }

    /// A node that a peer has never met may be another the next time, for all that peer knows.
    pub(crate) fn is_known_to_all(&self, at: usize) -> bool {
        let mut peers = (0..self.nodes.len()).filter(|&peer| peer != at);
        peers.all(|peer| self.nodes[peer].met >> at & 1 == 1)
    }

    pub(crate) fn is_any(&self, how: impl Fn(&'static str) -> bool) -> bool {
        let mut damaged = self.nodes.iter().filter_map(|node| node.damaged);
        damaged.any(how)
    }

    /// The node comes back with an empty directory: as if nothing were amiss, or with its operator's word that the old one
    /// is gone.
    pub(crate) fn wipe(&mut self, at: usize, rejoins: bool) -> Verdict {
        self.end(at, End::Killed)?;
        let disk = Memory::new(self.troubles.rng.next());
        let node = &mut self.nodes[at];
        node.had = Some((node.model.clone(), node.durable()));
        (node.met, node.disk, node.armed) = (0, disk, Default::default());
        node.damaged = Some(if rejoins { REJOINS } else { WIPED });
        if !rejoins {
            node.machine_disk = MachineDisk::default();
        }
        if rejoins {
            node.config.rejoin_with_nothing = true;
            (node.model, node.kept) = (Model::default(), None);
            self.counts.add("mark: a wiped node rejoins");
        }
        Ok(())
    }

    /// Changes something in a file of the node, which is down for that.
    fn damage(&mut self, at: usize, trouble: Trouble) -> Result<bool, Broken> {
        self.end(at, End::Killed)?;
        let disk = &self.nodes[at].disk;
        let log = disk.list("log").unwrap_or_default();
        let mut names: Vec<String> = log.iter().map(|name| format!("log/{name}")).collect();
        // A start reads all of the log, so what is damaged there shows at once. A node without peers has nothing that makes up
        // for damage which shows later.
        if self.nodes.len() > 1 {
            let folder = disk.list("").unwrap_or_default();
            names.splice(0..0, folder);
            let snapshots = disk.list("snap").unwrap_or_default();
            names.extend(snapshots.iter().map(|name| format!("snap/{name}")));
            names.retain(|name| name != "lock");
        }
        if names.is_empty() {
            return Ok(false);
        }
        let name = &names[self.troubles.rng.below(names.len() as u64) as usize];
        let rng = &mut self.troubles.rng;
        let mut is_empty = false;
        let changed = disk.damage(name, |bytes| {
            // A snapshot of which nothing was written yet.
            is_empty = bytes.is_empty();
            if is_empty {
                return;
            }
            let sectors = (bytes.len() / 512).max(1) as u64;
            if trouble == Trouble::BitRot {
                // Near the front, where something is.
                let sector = rng.below(1 + rng.clone().below(sectors));
                let bit = rng.below(512 * 8) as usize;
                let byte = (sector as usize * 512 + bit / 8) % bytes.len();
                bytes[byte] ^= 1 << (bit % 8);
            } else if sectors > 1 {
                let from = rng.below(sectors) as usize * 512;
                let to = rng.below(sectors) as usize * 512;
                bytes.copy_within(from..from + 512, to);
            }
        });
        if changed.is_err() || is_empty {
            return Ok(false);
        }
        self.nodes[at].damaged = Some(DAMAGED);
        self.nodes[at].was_damaged = true;
        Ok(true)
    }

    /// A bit changes in a record that is applied. False: there is none.
    fn rot(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let rng = &mut self.troubles.rng;
        let life = node.life.as_ref().expect("it runs");
        let first = life.shared.marks.first.load(Ordering::Relaxed);
        let certain = life.shared.marks.certain();
        // Not the last of them: by that one it is told whether the log goes on where it was.
        if first == 0 || certain <= first {
            return false;
        }
        let index = rng.between(first, certain - 1);
        let Some(record) = life.reader.slice(index, index, 1) else {
            return false;
        };
        let record = record.as_ref().to_vec();
        let log = node.disk.list("log").unwrap_or_default();
        let bit = rng.below(record.len() as u64 * 8) as usize;
        // Length and index are what finds the records behind it, for whoever looks before it is mended.
        let byte = if (4..16).contains(&(bit / 8)) {
            0
        } else {
            bit / 8
        };
        let changed = log.iter().any(|name| {
            let mut found = false;
            let damaged = node.disk.damage(&format!("log/{name}"), |bytes| {
                let place = bytes.windows(record.len()).position(|at| at == record);
                if let Some(place) = place {
                    bytes[place + byte] ^= 1 << (bit % 8);
                    found = true;
                }
            });
            damaged.is_ok() && found
        });
        if changed {
            node.damaged = Some(ROTTEN);
        }
        changed
    }

    /// Nothing goes wrong from here on, and what has gone wrong is put right.
    pub(crate) fn put_right(&mut self) -> Verdict {
        self.calm = true;
        self.troubles.next_us = u64::MAX;
        self.troubles.in_polls = None;
        for (_, heal) in std::mem::take(&mut self.troubles.heals) {
            self.heal(&heal);
        }
        {
            let mut state = self.fabric.state();
            let weather = &mut state.weather;
            (weather.loss_ppm, weather.spike_ppm) = (0, 0);
            (weather.double_ppm, weather.overtake_ppm) = (0, 0);
        }
        for at in 0..self.nodes.len() {
            self.panics[at].store(false, Ordering::Relaxed);
            let node = &mut self.nodes[at];
            node.slow_until_us = 0;
            node.start_us = node.start_us.min(self.now_us + 1);
            node.paused_until_us = node.paused_until_us.map(|_| self.now_us + 1);
            if node.armed.error || node.armed.power || node.armed.full {
                // What still lies in wait would strike later: the process is begun anew, on the same bytes.
                self.end(at, End::Killed)?;
                self.nodes[at].disk = self.nodes[at].disk.power_cut(Loss::Nothing);
                self.nodes[at].armed = Default::default();
                self.nodes[at].start_us = self.now_us + 1;
            }
        }
        Ok(())
    }
}
