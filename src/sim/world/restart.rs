//! How a node's life begins and ends, and what must hold from one to the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use storage::Memory;
use storage::decision::{Found, SnapshotFound};
use storage::medium::memory::Loss;

use crate::error::Fault;
use crate::sim::coverage;
use crate::sim::invariants::logs::{Kept, Model};
use crate::sim::invariants::{Verdict, broken};
use crate::sim::machine::recorder::{MachineDisk, Scribe};
use crate::sim::node::act::EVERYTHING;
use crate::sim::node::clock::{NodeClock, TRUE_RATE};
use crate::sim::node::{Armed, DAMAGED, Life, REJOINS, ROTTEN, Refusal, SimNode, Start};
use crate::sim::plan::{Plan, Trouble};
use crate::sim::rng::Rng;
use crate::sim::world::{World, tell};
use crate::status::Role;
use crate::types::NodeId;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It dies; what it wrote is in the page cache.
    Killed,
    /// Its machine loses power.
    PowerCut(Loss),
}

impl World<'_> {
    /// Begins a life of a node, on whatever its disk holds.
    pub(crate) fn start(&mut self, at: usize) -> Verdict {
        let now_us = self.now_us;
        let node = &mut self.nodes[at];
        if !self.calm
            && self.plan.troubles.contains(&Trouble::PowerCutInside)
            && self.chance.chance(200_000)
        {
            let step = node.disk.steps() + self.chance.below(24);
            node.disk
                .fail_at(step, storage::medium::memory::Fault::PowerOff);
            node.armed.power = true;
        }
        node.disk.hold_flushes(true);
        self.panics[at] = Arc::default();
        let (panics, ledger) = (self.panics[at].clone(), self.ledger.clone());
        let own_disk = &node.machine_disk;
        let machine = Scribe::new(at as u64 + 1, &self.plan.load, panics, ledger, own_disk);
        let machine_has = own_disk.applied();
        let begun = Life::begin(Start {
            at,
            config: &node.config,
            rings: self.plan.rings,
            disk: &node.disk,
            fabric: &self.fabric,
            machine: Box::new(machine),
            clock: NodeClock::new(now_us, node.rate_ppm, node.wall_offset_us),
            nonce: self.chance.next(),
        });
        let (life, recovered, known) = match begun {
            Ok(begun) => begun,
            Err(error) => return self.refused_to_start(at, &error),
        };
        for decision in &recovered.decisions {
            if let (Found::Damaged { flushed, .. }, None) = (&decision.found, &recovered.data_loss)
            {
                broken(
                    "recovery",
                    format!(
                        "node {} opens although {flushed} records had been durable and are not there",
                        at + 1
                    ),
                )?;
            }
            if let Found::Snapshot(SnapshotFound::Bad { detail }) = &decision.found
                && !(node.was_damaged || node.armed.error || node.no_reads)
            {
                broken(
                    "what has a snapshot's name is one",
                    format!("node {} finds in {}: {detail}", at + 1, decision.file),
                )?;
            }
            if let Some(mark) = coverage::of_recovery(&decision.found) {
                self.counts.add(mark);
            }
        }
        if machine_has > recovered.last_index {
            self.counts
                .add("mark: a state machine was ahead of its log");
        }
        let before = node.model.clone();
        let kept = node.kept.take().unwrap_or(Kept {
            durable: 0,
            vote: recovered.vote,
        });
        let is_healing = recovered.data_loss.is_some();
        if is_healing {
            if self.plan.nodes == 1 {
                broken(
                    "a node without peers refuses to start when it lacks what was durable",
                    format!("it goes on: {:?}", recovered.data_loss),
                )?;
            }
            if node.damaged.is_none() {
                broken(
                    "no loss without a cause",
                    format!("node {} heals: {:?}", at + 1, recovered.data_loss),
                )?;
            }
            self.counts.add("mark: a node began to heal");
            // It is counted for what it had, until it has it again.
            node.had
                .get_or_insert_with(|| (before.clone(), kept.durable));
        }
        let kept = if is_healing {
            Kept {
                durable: 0,
                vote: recovered.vote,
            }
        } else {
            kept
        };
        let found = Model::recovered(
            &life.reader,
            recovered.first_index - 1,
            recovered.vote,
            &before,
            kept,
            (&|index| self.office.term(index), &self.registry),
        );
        let model = match (found, node.damaged) {
            (Ok(model), _) => model,
            // What rotted looks like the torn end of a write that nobody was told of, or the directory is new.
            (Err(lost), Some(how))
                if how != REJOINS && lost.check.starts_with("durable") || how == WIPED =>
            {
                self.counts.add("damage: a node went on with less");
                if how != WIPED {
                    node.kept = Some(kept);
                    // Its disk goes back to the copy, so nothing of this life may end on it.
                    drop(life);
                    if self.put_backup_back(at) {
                        return Ok(());
                    }
                    tell!(self, "n{} is retired: {}", at + 1, lost.facts);
                    self.nodes[at].retired = true;
                    return Ok(());
                }
                Model::default()
            }
            (Err(lost), _) => return Err(lost),
        };
        if model
            .term(model.last())
            .is_some_and(|term| term > recovered.vote.term)
        {
            self.counts
                .add("mark: the log was ahead of the term on disk");
        }
        let replaces = life.shared.replaces.clone();
        if node.backup.take().is_some() {
            node.damaged = None; // The start has read everything, and nothing that was durable is missing.
        }
        node.model = model;
        node.life = Some(life);
        node.lives += 1;
        node.mended = 0;
        node.hot = EVERYTHING;
        node.wake_us = now_us;
        node.stalled = None;
        node.spins = 0;
        node.drains_until_us = None;
        node.seen = (Role::Follower, 0);
        self.fabric
            .state()
            .born(at, recovered.identity.incarnation, replaces, &known);
        self.counts.add("lives");
        let (last, term) = (recovered.last_index, recovered.vote.term);
        tell!(self, "n{} starts: entries to {last}, term {term}", at + 1);
        self.trace.note(last ^ term << 32);
        Ok(())
    }

    pub(crate) fn refused_to_start(&mut self, at: usize, error: &Refusal) -> Verdict {
        tell!(self, "n{} does not start: {error}", at + 1);
        let now_us = self.now_us;
        let node = &mut self.nodes[at];
        node.start_us = now_us + self.chance.around(self.plan.trouble_us);
        if node.armed.power {
            let seed = self.chance.next();
            node.disk = node.disk.power_cut(Loss::Random(seed));
            node.armed = Armed {
                full: node.no_room,
                ..Armed::default()
            };
            self.counts.add("mark: the power failed in recovery");
            return Ok(());
        }
        // Whatever else is amiss: it tries again when that has passed.
        if node.armed.full || node.armed.error || node.no_reads {
            self.counts.add("mark: a node could not start for its disk");
            return Ok(());
        }
        if node.damaged.is_some_and(|how| how != REJOINS) {
            self.counts.add("damage: a node refused to start");
            if self.put_backup_back(at) {
                self.counts
                    .add("mark: a node without peers refused a damaged log");
                return Ok(());
            }
            self.nodes[at].retired = true;
            return Ok(());
        }
        broken(
            "a node starts",
            format!("node {} does not: {error}", at + 1),
        )
    }

    /// The operator puts the copy of the disk back from before it was damaged; false without one.
    fn put_backup_back(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let Some(disk) = node.backup.take() else {
            return false;
        };
        (node.disk, node.damaged) = (disk, None);
        node.start_us = self.now_us + 1;
        if node.no_room {
            node.disk.set_capacity(Some(0));
        }
        node.disk.fail_reads(node.no_reads);
        tell!(self, "n{} has its disk back as it was", at + 1);
        true
    }

    /// A stage has ended the node.
    pub(crate) fn stopped(&mut self, at: usize, fault: Fault) -> Verdict {
        tell!(self, "n{} stops: {fault}", at + 1);
        // Some of what it was about to write may have reached the disk. A log that was about to be replaced has neither the
        // old entries nor the new end: the next start says which.
        let life = self.nodes[at].life.as_ref().expect("it ran");
        let replaced_to = life.shared.marks.restore.load(Ordering::Relaxed);
        if life.stages.append.log().first() > replaced_to {
            self.follow_log(at)?;
        }
        let node = &mut self.nodes[at];
        let armed = node.armed;
        let expected = match &fault {
            Fault::Storage(_) => armed.error || armed.power || armed.full || node.damaged.is_some(),
            Fault::StateMachine(_) => armed.panic,
            Fault::Network(_) | Fault::Panic(_) => false,
        };
        if !expected {
            broken(
                "no fault without a cause",
                format!("node {} stops: {fault}", at + 1),
            )?;
        }
        if armed.power {
            // Nobody is there any more to tell anybody.
            let seed = self.chance.next();
            return self.end(at, End::PowerCut(Loss::Random(seed)));
        }
        self.counts.add("mark: a node stopped with a fault");
        node.life.as_mut().expect("it ran").fail(fault);
        self.drain_answers(at)?;
        // The bytes of a failed write are in the page cache, clean: nobody flushes them again by himself. Some operators
        // restart the machine whose disk has failed, others the process.
        let end = if armed.error && self.chance.chance(500_000) {
            End::PowerCut(Loss::Random(self.chance.next()))
        } else {
            End::Killed
        };
        self.end(at, end)
    }

    pub(crate) fn drain_answers(&mut self, at: usize) -> Verdict {
        while self.take_answers(at, usize::MAX)? > 0 {}
        if let Some(op) = self.clients.open_on(at) {
            broken(
                "every request is answered",
                format!(
                    "operation {op} has no answer, and node {} has ended in order",
                    at + 1
                ),
            )?;
        }
        Ok(())
    }

    /// It has left in order.
    pub(crate) fn left(&mut self, at: usize) -> Verdict {
        let life = self.nodes[at].life.as_mut().expect("it runs");
        if let Err(fault) = life.close() {
            return self.stopped(at, fault);
        }
        self.follow_log(at)?;
        self.drain_answers(at)?;
        self.counts.add("mark: a node left in order");
        self.end(at, End::Killed)
    }

    /// The process is gone.
    pub(crate) fn end(&mut self, at: usize, how: End) -> Verdict {
        let again_us = self.now_us + self.chance.around(self.plan.trouble_us);
        let node = &mut self.nodes[at];
        let Some(life) = node.life.take() else {
            return Ok(());
        };
        if node.damaged == Some(ROTTEN) {
            node.damaged = Some(DAMAGED); // From now on it is for the start to find.
        }
        node.kept = Some(life.kept());
        if life.flush_done_us.is_some() {
            self.counts.add("mark: ended while a flush was in flight");
        }
        {
            let view = life.shared.snapshots();
            self.counts.add_many("snapshots taken", view.taken);
            self.counts.add_many("snapshots restored", view.restored);
            if view.trouble.is_some() {
                self.counts
                    .add("mark: a snapshot could not be taken or received");
            }
            if view.receiving.is_some() {
                self.counts.add("mark: ended while a snapshot came in");
            }
        }
        if life.shared.marks.compact.load(Ordering::Relaxed) > 0 {
            self.counts.add("mark: the front of a log was let go");
        }
        for gauge in life.shared.gauges() {
            self.counts
                .add_many(coverage::of_full_ring(gauge.name()), gauge.full_count());
        }
        drop(life);
        if let End::PowerCut(loss) = how {
            node.disk = node.disk.power_cut(loss);
        }
        node.armed = Armed {
            full: node.no_room,
            error: node.armed.error && how == End::Killed,
            power: node.armed.power && how == End::Killed,
            panic: false,
        };
        node.start_us = again_us;
        node.paused_until_us = None;
        node.stalled = None;
        node.hot = 0;
        node.seen = (Role::Follower, 0);
        node.owes = None;
        self.fabric.state().news.clear();
        self.clients.abandoned(at);
        let silently = matches!(how, End::PowerCut(_)) && self.chance.chance(500_000);
        self.fabric.state().died(at, silently);
        tell!(self, "n{} is gone: {how:?}", at + 1);
        self.look_at_ledger()
    }
}

/// How a node is damaged whose directory is empty.
pub(crate) const WIPED: &str = "wiped";

impl SimNode {
    pub(crate) fn new(at: usize, plan: &Plan, chance: &mut Rng) -> Self {
        let mut config = plan.config.clone();
        config.id = NodeId(at as u32 + 1);
        if chance.chance(50_000) {
            config.lease = None; // Nodes need not be configured alike.
        }
        Self {
            config,
            disk: Memory::new(chance.next()),
            machine_disk: MachineDisk::default(),
            life: None,
            lives: 0,
            model: Model::default(),
            kept: None,
            rate_ppm: TRUE_RATE - plan.skew_ppm + chance.below(2 * plan.skew_ppm + 1),
            wall_offset_us: chance.below(2_000_000) as i64 - 1_000_000,
            paused_until_us: None,
            start_us: chance.below(100_000),
            slow_until_us: 0,
            armed: Armed::default(),
            no_room: false,
            no_reads: false,
            damaged: None,
            was_damaged: false,
            backup: None,
            retired: false,
            drains_until_us: None,
            hot: 0,
            wake_us: 0,
            stalled: None,
            spins: 0,
            seen: (Role::Follower, 0),
            owes: None,
            met: 0,
            mended: 0,
            had: None,
        }
    }
}
