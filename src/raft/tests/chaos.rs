//! Random runs from a seed: messages lost, doubled and reordered, disks that are late, crashes that
//! lose what was not flushed, cuts. `cluster` checks every step; in the end all is healed, and the
//! group must lead, commit and agree again within a bounded time.
//!
//! `RAFT_SEEDS=5000` runs more, `RAFT_SEED=17` that one alone.

use super::cluster::{Cluster, Counts, settings};
use crate::raft::Membership;
use crate::raft::rng::Rng;

const STEPS: usize = 1500;

struct Run {
    cluster: Cluster,
    rng: Rng,
    /// Out of a hundred.
    loss: u64,
    /// The leader's disk is the slowest, so that the others must do without it.
    slow_leader: bool,
    next_read: u64,
}

fn membership(rng: &mut Rng) -> Membership {
    let voters = |count: u64| (1..=count).collect();
    match rng.below(8) {
        0 => Membership::of_voters(voters(1)),
        1 => Membership::of_voters(voters(2)),
        2 => Membership::of_voters(voters(4)),
        3 => Membership::of_voters(voters(5)),
        4 => Membership {
            voters: vec![1, 2, 3],
            outgoing: vec![3, 4, 5],
            learners: vec![6],
        },
        5 => Membership {
            voters: voters(3),
            learners: vec![4],
            ..Membership::default()
        },
        _ => Membership::of_voters(voters(3)),
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut settings = settings();
        settings.seed = seed;
        settings.max_append_bytes = 1 + rng.below(40);
        settings.max_inflight_bytes = settings.max_append_bytes * (1 + rng.below(4));
        settings.max_inflight_messages = 1 + rng.below(6) as usize;
        if rng.below(3) == 0 {
            let timeout_us = settings.election_timeout_us;
            settings.lease_us = Some(crate::raft::certain_us(timeout_us, 0));
        }
        let cluster = Cluster::new(membership(&mut rng), settings);
        let (loss, slow_leader) = (rng.below(20), rng.below(2) == 0);
        Self {
            cluster,
            rng,
            loss,
            slow_leader,
            next_read: 1,
        }
    }

    fn someone(&mut self) -> u64 {
        let at = self.rng.below(self.cluster.nodes.len() as u64);
        self.cluster.nodes[at as usize].id
    }

    fn step(&mut self) {
        let id = self.someone();
        match self.rng.below(100) {
            0..45 => self.deliver_one(),
            45..65 => {
                let some = 1 + self.rng.below(4) as usize;
                let slow = self.slow_leader && self.cluster.leader() == Some(id);
                if !slow || self.rng.below(20) == 0 {
                    self.cluster.persist(id, some);
                }
            }
            65..75 => {
                self.cluster.now_us += self.rng.below(8_000);
                for id in self.cluster.ids() {
                    self.cluster.tick(id);
                }
            }
            75..90 => {
                let leader = self.cluster.leader().unwrap_or(id);
                let id = if self.rng.below(4) == 0 { id } else { leader };
                let (count, bytes) = (1 + self.rng.below(4), self.rng.below(30));
                self.cluster.propose(id, count, bytes);
            }
            90..95 => {
                let ctx = self.next_read;
                self.next_read += 1;
                self.cluster.read(id, ctx);
            }
            95 => self.crash_or_start(id),
            96 => {
                // Mostly whole, else little is ever agreed on.
                if self.cluster.isolated.is_empty() {
                    self.cluster.isolated.insert(id);
                } else {
                    self.cluster.isolated.clear();
                }
            }
            97 => {
                let peer = self.someone();
                self.cluster.peer_down(id, peer);
                self.cluster.peer_up(id, peer);
            }
            98 => self.cluster.campaign(id),
            _ => {
                let most = self.rng.below(4) == 0;
                self.cluster.net.retain(|_| !most);
            }
        }
    }

    /// Any of the messages under way; it may be lost, or come once more later.
    fn deliver_one(&mut self) {
        let count = self.cluster.net.len() as u64;
        if count == 0 {
            return;
        }
        // Mostly in order, as over a connection.
        let at = if self.rng.below(3) == 0 {
            self.rng.below(count)
        } else {
            0
        } as usize;
        let envelope = if self.rng.below(12) == 0 {
            self.cluster.net[at].clone()
        } else {
            self.cluster.net.remove(at)
        };
        if self.rng.below(100) >= self.loss {
            self.cluster.deliver(&envelope);
        }
    }

    fn crash_or_start(&mut self, id: u64) {
        let down = self
            .cluster
            .ids()
            .into_iter()
            .find(|&id| !self.cluster.is_up(id));
        if let Some(id) = down.filter(|_| self.rng.below(4) > 0) {
            self.cluster.start(id);
        } else if self.cluster.is_up(id) {
            let owed = self.cluster.owed(id) as u64;
            self.cluster.counts.crashes_with_writes += u64::from(owed > 0);
            let kept = self.rng.below(owed + 1) as usize;
            self.cluster.crash(id, kept);
        }
    }

    /// Heals everything: within 30 election timeouts one leads, and what it then takes is
    /// everywhere.
    fn ends_well(&mut self) {
        self.cluster.isolated.clear();
        for id in self.cluster.ids() {
            if !self.cluster.is_up(id) {
                self.cluster.start(id);
            }
        }
        let deadline_us = self.cluster.now_us + 3_000_000;
        let mut proposed = None;
        let mut read_at = None;
        loop {
            assert!(
                self.cluster.now_us < deadline_us,
                "no agreement in 30 election timeouts"
            );
            self.cluster.now_us += 1000;
            for id in self.cluster.ids() {
                self.cluster.tick(id);
                self.cluster.persist(id, usize::MAX);
            }
            for envelope in std::mem::take(&mut self.cluster.net) {
                self.cluster.deliver(&envelope);
            }
            match (proposed, self.cluster.leader()) {
                (None, Some(leader)) if self.cluster.propose(leader, 1, 1) => {
                    proposed = self.cluster.node(leader).log.last().copied();
                }
                // It was replaced before it was committed.
                (Some(entry), Some(leader)) if !self.cluster.node(leader).log.contains(&entry) => {
                    proposed = None;
                }
                (Some(entry), _) if self.cluster.committed.contains(&entry) => {
                    let all = self.cluster.committed.len() as u64;
                    let done = self
                        .cluster
                        .nodes
                        .iter()
                        .all(|node| node.core.as_ref().is_some_and(|core| core.commit == all));
                    match read_at {
                        None if done => {
                            read_at = Some(self.cluster.counts.reads_ready);
                            for id in self.cluster.ids() {
                                self.next_read += 1;
                                self.cluster.read(id, self.next_read);
                            }
                        }
                        Some(before) if self.cluster.counts.reads_ready > before => return,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }
}

fn run(seed: u64) -> Counts {
    let mut run = Run::new(seed);
    for _ in 0..STEPS {
        run.step();
        run.cluster.trace.clear();
    }
    run.ends_well();
    run.cluster.counts
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn a_group_keeps_its_word_whatever_happens() {
    let seeds = match number("RAFT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RAFT_SEEDS").unwrap_or(200),
    };
    let many = seeds.end - seeds.start >= 100;
    let mut sum = Counts::default();
    for seed in seeds {
        let counts = std::panic::catch_unwind(|| run(seed))
            .unwrap_or_else(|_| panic!("RAFT_SEED={seed} fails: the first panic above says what"));
        sum.offices += counts.offices;
        sum.truncations += counts.truncations;
        sum.reads_ready += counts.reads_ready;
        sum.leases += counts.leases;
        sum.crashes_with_writes += counts.crashes_with_writes;
        sum.commits_ahead_of_own_disk += counts.commits_ahead_of_own_disk;
    }
    if many {
        // Else the runs would prove little.
        assert!(sum.offices > 400, "{sum:?}");
        assert!(sum.truncations > 60, "{sum:?}");
        assert!(sum.reads_ready > 500, "{sum:?}");
        assert!(sum.leases > 5000, "{sum:?}");
        assert!(sum.crashes_with_writes > 200, "{sum:?}");
        assert!(sum.commits_ahead_of_own_disk > 20, "{sum:?}");
    }
}
