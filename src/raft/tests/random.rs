//! Groups of cores in bad weather, each run made of one seed.
//!
//! Messages are late, lost, doubled and overtaken; machines crash and lose what was not durable,
//! stop for a while, are cut off in one direction or both; disks are slow, and slower at times. At
//! every step the [`laws`] are checked. Then the weather clears, and within a bounded time there
//! must be a leader, everybody must have what is proposed, reads must be answered, and the group
//! must be quiet when nobody wants anything.
//!
//! `RINGRAFT_RAFT_SEEDS=20000` runs so many; `RINGRAFT_RAFT_SEED=17` runs that one and prints
//! everything that happens.

mod laws;
mod machine;
mod storm;
mod world;

use std::env;

use crate::raft::rng::Rng;
use crate::raft::{Membership, Settings};

use self::world::World;

const ELECTION_US: u64 = 100_000;
const HEARTBEAT_US: u64 = 20_000;
const DISK_STALL_US: u64 = 300_000;
const BAD_WEATHER_US: u64 = 2_000_000;
/// Bound of everything that must happen in good weather.
const PATIENCE_US: u64 = 20 * ELECTION_US;
const STEPS_AT_MOST: u64 = 500_000;

/// What stays the same over a run.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    membership: Membership,
    max_append_bytes: u64,
    max_inflight_messages: usize,
    max_inflight_bytes: u64,
    max_entry_bytes: u64,
    max_batch_entries: u64,
}

impl Rules {
    fn of(seed: u64, rng: &mut Rng) -> Self {
        let set = |ids: &[u64]| ids.to_vec();
        let membership = match seed % 8 {
            0 => Membership::of_voters(set(&[1])),
            1 => Membership::of_voters(set(&[1, 2, 3, 4])),
            2 | 3 => Membership::of_voters(set(&[1, 2, 3, 4, 5])),
            4 => Membership {
                voters: set(&[1, 2, 3]),
                outgoing: set(&[3, 4, 5]),
                learners: vec![],
            },
            5 => Membership {
                voters: set(&[1, 2, 3]),
                outgoing: vec![],
                learners: set(&[4]),
            },
            _ => Membership::of_voters(set(&[1, 2, 3])),
        };
        Self {
            membership,
            max_append_bytes: 50 + rng.below(500),
            max_inflight_messages: 1 + rng.below(8) as usize,
            max_inflight_bytes: 100 + rng.below(2000),
            max_entry_bytes: 1 + rng.below(300),
            max_batch_entries: 1 + rng.below(6),
        }
    }

    fn settings(&self, id: u64, seed: u64) -> Settings {
        Settings {
            id,
            election_timeout_us: ELECTION_US,
            heartbeat_us: HEARTBEAT_US,
            seed,
            max_append_bytes: self.max_append_bytes,
            max_inflight_messages: self.max_inflight_messages,
            max_inflight_bytes: self.max_inflight_bytes,
            disk_stall_us: DISK_STALL_US,
            founding_wait_us: 0,
            lease_us: None,
        }
    }

    fn max_batch_bytes(&self) -> u64 {
        self.max_entry_bytes * self.max_batch_entries
    }
}

/// How bad it is. Chances are in thousandths.
#[derive(Clone, Debug)]
struct Weather {
    lose: u64,
    double: u64,
    /// Messages that come long after.
    straggle: u64,
    delay_us: u64,
    disk_us: u64,
    tick_late_us: u64,
    /// Between two misfortunes, at most.
    pause_us: u64,
}

impl Weather {
    fn bad(rng: &mut Rng) -> Self {
        Self {
            lose: [0, 0, 20, 100, 300][rng.below(5) as usize],
            double: [0, 50, 300][rng.below(3) as usize],
            straggle: [0, 50, 300][rng.below(3) as usize],
            delay_us: [500, 5_000, 30_000][rng.below(3) as usize],
            disk_us: [200, 5_000, 40_000][rng.below(3) as usize],
            tick_late_us: [1, 1_000, 50_000][rng.below(3) as usize],
            pause_us: [100_000, 300_000, 900_000][rng.below(3) as usize],
        }
    }

    fn good() -> Self {
        Self {
            lose: 0,
            double: 0,
            straggle: 0,
            delay_us: 500,
            disk_us: 500,
            tick_late_us: 1,
            pause_us: 0,
        }
    }
}

/// Names the seed when a check fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {0} failed; RINGRAFT_RAFT_SEED={0} shows all of it",
                self.0
            );
        }
    }
}

/// What came of a run, to see that the runs are worth something.
#[derive(Debug, Default)]
struct Sum {
    elections: u64,
    committed: u64,
    answered: u64,
    sent: u64,
    snapshots: u64,
    losses: u64,
    wipes: u64,
    healed: u64,
}

fn run(seed: u64, tells: bool) -> Sum {
    let _named = Named(seed);
    let mut world = World::new(seed, tells);
    world.run_for(BAD_WEATHER_US);
    world.clear_up();

    let deadline = world.now_us + PATIENCE_US;
    assert!(
        world.run_until(deadline, |world| world.leader().is_some()),
        "nobody leads"
    );
    assert!(
        world.run_until(deadline, World::all_have_all),
        "some lack what the others have"
    );
    // Stragglers of the storm may still make a node stand; give them time to come in.
    world.run_for(12 * ELECTION_US);

    let deadline = world.now_us + PATIENCE_US;
    assert!(
        world.run_until(deadline, |world| world.leader().is_some()),
        "nobody leads for long"
    );
    let leader = world.leader().expect("seen above");
    let before = world.laws.committed.last();
    for _ in 0..10 {
        world.propose(leader);
        for id in world.ids() {
            world.read(id);
        }
        world.run_for(3_000);
    }
    let answered = world.answered;
    let deadline = world.now_us + 5 * ELECTION_US;
    let done = |world: &World| {
        world.all_have_all()
            && world
                .machines
                .iter()
                .all(|machine| machine.reads.is_empty())
    };
    assert!(
        world.run_until(deadline, done),
        "not everybody gets what is proposed and read"
    );
    assert!(
        before + 10 <= world.laws.committed.last(),
        "what was proposed is committed"
    );
    assert!(answered > 0, "reads are answered");

    let lacks = |machine: &machine::Machine| machine.disk.lost.is_some();
    assert!(
        !world.machines.iter().any(lacks),
        "what was lost is found again, without another election"
    );

    // Nobody wants anything: a heartbeat and its answer for each, and the same leader. What was
    // overtaken on its way, and sent again for that, is done by then.
    world.run_for(ELECTION_US);
    let (sent, elections) = (world.sent, world.laws.elections);
    world.run_for(10 * HEARTBEAT_US);
    let quiet = 2 * 11 * (world.machines.len() as u64 - 1);
    assert!(
        world.sent - sent <= quiet,
        "{} messages in a quiet group",
        world.sent - sent
    );
    assert_eq!(
        (world.leader(), world.laws.elections),
        (Some(leader), elections),
        "it still leads"
    );
    Sum {
        elections,
        committed: world.laws.committed.last(),
        answered: world.answered,
        sent: world.sent,
        snapshots: world.snapshots,
        losses: world.losses,
        wipes: world.wipes,
        healed: world.healed,
    }
}

#[test]
fn nothing_is_lost_and_nothing_forks_in_bad_weather() {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    if let Some(seed) = number("RINGRAFT_RAFT_SEED") {
        eprintln!("{:?}", run(seed, true));
        return;
    }
    let seeds = number("RINGRAFT_RAFT_SEEDS").unwrap_or(300);
    let mut all = Sum::default();
    for seed in 0..seeds {
        let sum = run(seed, false);
        all.elections += sum.elections;
        all.committed += sum.committed;
        all.answered += sum.answered;
        all.sent += sum.sent;
        all.snapshots += sum.snapshots;
        all.losses += sum.losses;
        all.wipes += sum.wipes;
        all.healed += sum.healed;
    }
    println!("{seeds} seeds: {all:?}");
    // Weather in which nothing happens would prove nothing.
    assert!(all.elections > seeds, "{all:?}");
    assert!(
        all.committed > 50 * seeds
            && all.answered > 30 * seeds
            && all.snapshots > seeds / 10
            && all.losses > seeds / 10
            && all.wipes > seeds / 20
            && all.healed > seeds / 20,
        "{all:?}"
    );
}
