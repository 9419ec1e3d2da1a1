//! What the seed decides before a run begins: how large everything is, and what may go wrong.
//!
//! Each run gets a different, narrow corner (swarm testing): some have no crashes at all, some nothing but crashes, so
//! that one kind of fault does not hide what another would show.

use std::time::Duration;

use crate::config::{Config, Lease, Member};
use crate::host::build::RingSizes;
use crate::session::Limits;
use crate::sim::network::Weather;
use crate::sim::rng::Rng;
use crate::types::NodeId;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The process dies; what it wrote is in the page cache.
    Kill,
    /// The process leaves in order.
    Leave,
    /// The machine loses power: what was not flushed is lost, sector by sector, by chance or all of it.
    PowerCut,
    /// The power fails in the middle of what a stage does with the disk.
    PowerCutInside,
    /// All machines lose power at once.
    Blackout,
    /// The process stands still and goes on later, as after SIGSTOP.
    Pause,
    /// The nodes fall into two parts.
    Partition,
    /// One node is alone.
    Isolate,
    /// The connections of one node break, and it is alone for a while.
    Unplug,
    /// One node hears another no more; the other way is open.
    OneWay,
    /// Two halves that only one node sees both of.
    Bridge,
    /// A connection breaks and is made anew.
    Reset,
    /// The network is slow for a while.
    SlowNetwork,
    /// Flushes take long for a while.
    SlowDisk,
    /// One of the next writes or flushes fails with EIO.
    DiskError,
    /// No new segment can be made until there is room again.
    DiskFull,
    /// The process dies, and what its disk holds cannot be read for a while.
    ReadError,
    /// The wall clock is set to another time.
    ClockJump,
    /// User code panics.
    MachinePanic,
    /// A bit of a node's files changes while it is down.
    BitRot,
    /// A sector of a node's files is found where another should be.
    Misdirected,
    /// A node comes back with an empty directory.
    Wipe,
    /// A bit of a record changes on the disk of a node that runs, in a part of the log that it has applied.
    RotInUse,
}

pub(crate) const TROUBLES: [(Trouble, &str); 23] = [
    (Trouble::Kill, "fault: process killed"),
    (Trouble::Leave, "fault: process left in order"),
    (Trouble::PowerCut, "fault: power cut"),
    (
        Trouble::PowerCutInside,
        "fault: power cut in a disk operation",
    ),
    (Trouble::Blackout, "fault: power cut of all nodes"),
    (Trouble::Pause, "fault: pause"),
    (Trouble::Partition, "fault: partition"),
    (Trouble::Isolate, "fault: isolated node"),
    (Trouble::Unplug, "fault: unplugged node"),
    (Trouble::OneWay, "fault: one-way cut"),
    (Trouble::Bridge, "fault: bridge partition"),
    (Trouble::Reset, "fault: connection reset"),
    (Trouble::SlowNetwork, "fault: slow network"),
    (Trouble::SlowDisk, "fault: slow disk"),
    (Trouble::DiskError, "fault: disk error"),
    (Trouble::DiskFull, "fault: disk full"),
    (Trouble::ReadError, "fault: read error"),
    (Trouble::ClockJump, "fault: clock jump"),
    (Trouble::MachinePanic, "fault: state machine panic"),
    (Trouble::BitRot, "fault: bit rot"),
    (Trouble::Misdirected, "fault: misdirected write"),
    (Trouble::Wipe, "fault: wiped directory"),
    (Trouble::RotInUse, "fault: bit rot in use"),
];

/// What the clients do, and with what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    /// They read, write, and compare and set so many registers; 0: they count.
    pub(crate) registers: u8,
    /// Commands are tried again until their outcome is known.
    pub(crate) sessions: Option<SessionLoad>,
    /// The state machine has a disk of its own.
    pub(crate) own_disk: bool,
}

/// How sessions are used.
#[derive(Clone, Debug)]
pub(crate) struct SessionLoad {
    /// What the group is founded with.
    pub(crate) limits: Limits,
    /// Clients, each with a session at a time.
    pub(crate) clients: usize,
}

impl Load {
    fn draw(rng: &mut Rng, election: Duration) -> Self {
        let kind = rng.below(100);
        let registers = match kind {
            0..40 => 0,
            40..70 => rng.pick(&[1, 1, 3, 5]),
            70..85 => 0,
            _ => rng.pick(&[1, 3]),
        };
        let sessions = (kind >= 70).then(|| SessionLoad {
            limits: Limits {
                sessions: rng.pick(&[2, 4, 64]),
                window: rng.pick(&[1, 2, 8, 64]),
                kept_bytes: rng.pick(&[0, 100, 1 << 20]),
                expire_after: rng.pick(&[None, None, Some(election * 4), Some(election * 40)]),
            },
            clients: rng.pick(&[2, 4, 8]),
        });
        // `Sessions` takes no such machine.
        let own_disk = sessions.is_none() && rng.chance(300_000);
        Self {
            registers,
            sessions,
            own_disk,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) config: Config,
    pub(crate) rings: RingSizes,
    pub(crate) weather: Weather,
    pub(crate) troubles: Vec<Trouble>,
    /// Between two troubles, about.
    pub(crate) trouble_every_us: u64,
    /// How long one lasts, about.
    pub(crate) trouble_us: u64,
    /// How long the troubles go on.
    pub(crate) duration_us: u64,
    /// Operations of all clients together, and about how long it is from one to the next.
    pub(crate) ops: u64,
    pub(crate) op_every_us: u64,
    /// How often many come at once, and how many.
    pub(crate) burst_ppm: u64,
    pub(crate) burst: u64,
    /// Operations under way at the most.
    pub(crate) most_open: usize,
    pub(crate) reads_ppm: u64,
    /// The longest command, in bytes.
    pub(crate) command_bytes: u64,
    /// How far the nodes' clocks may run too fast or too slow.
    pub(crate) skew_ppm: u64,
    /// How long a flush takes, about.
    pub(crate) flush_us: u64,
    /// How often a stage's thread does not get the processor for a while.
    pub(crate) stall_ppm: u64,
    /// How often a poll takes time.
    pub(crate) cost_ppm: u64,
    /// Everything is polled after anything was done, though most of it be in vain.
    pub(crate) thorough: bool,
    pub(crate) load: Load,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let nodes = rng.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5, 5]);
        let members = (1..=nodes as u32)
            .map(|id| Member {
                id: NodeId(id),
                addr: format!("sim:{id}"),
            })
            .collect();
        let election_ms = rng.pick(&[50, 150, 300, 1000]);
        let small_windows = rng.chance(300_000);
        let config = Config {
            election_timeout: Duration::from_millis(election_ms),
            heartbeat: Duration::from_millis(election_ms / rng.pick(&[3, 10])),
            proposal_timeout: Duration::from_millis(election_ms * rng.pick(&[2, 5, 20])),
            forward: !rng.chance(200_000),
            segment_bytes: rng.pick(&[64 << 10, 64 << 10, 256 << 10]),
            max_entry_bytes: 8 << 10,
            inline_bytes: rng.pick(&[16, 64, 256]),
            max_pending: rng.pick(&[64, 128, 512]),
            max_spilled_bytes: rng.pick(&[16 << 10, 1 << 20]),
            propose_ring: rng.pick(&[64, 256]),
            entry_ring: rng.pick(&[64, 64, 128]),
            max_batch_bytes: rng.pick(&[512, 4 << 10, 64 << 10]),
            max_append_bytes: rng.pick(&[256, 4 << 10, 64 << 10]),
            max_inflight_messages: if small_windows { 2 } else { 64 },
            max_inflight_bytes: if small_windows { 64 << 10 } else { 1 << 20 },
            max_uncommitted_bytes: rng.pick(&[4 << 10, 64 << 10, 1 << 20]),
            snapshot_every_entries: rng.pick(&[0, 5, 10, 10, 50]),
            snapshot_every_bytes: rng.pick(&[0, 20 << 10]),
            snapshot_every: Duration::from_millis(rng.pick(&[0, 0, 0, 2_000])),
            log_tail_entries: rng.pick(&[0, 0, 5, 100]),
            snapshot_window_bytes: rng.pick(&[2 << 10, 16 << 10, 1 << 20]),
            snapshot_bytes_per_second: rng.pick(&[0, 0, 100 << 10]),
            scrub_every: Duration::from_millis(rng.pick(&[0, 0, 3_000])),
            scrub_bytes_per_second: 256 << 10,
            ..Config::new(NodeId(1), "simulated", members)
        };
        let config = Config {
            // A batch must fit.
            max_uncommitted_bytes: config.max_uncommitted_bytes.max(config.max_batch_bytes),
            ..config
        };
        let config = config.checked().expect("every plan is a configuration");
        let election_us = election_ms * 1000;
        let foul = rng.chance(350_000);
        let weather = Weather {
            delay_us: rng.pick(&[5, 50, 200]),
            spread_us: rng.pick(&[10, 200, 2_000]),
            spike_ppm: rng.pick(&[0, 500, 20_000]),
            spike_us: election_us,
            loss_ppm: if foul { rng.pick(&[1_000, 50_000]) } else { 0 },
            double_ppm: rng.pick(&[0, 10_000, 100_000]),
            overtake_ppm: rng.pick(&[0, 10_000, 300_000]),
            stall_us: (election_us * 3).max(1_000_000),
            queue_frames: rng.pick(&[64, 1024]),
        };
        let odds = rng.pick(&[150_000, 400_000, 800_000]);
        let drawn = |trouble: &Trouble| *trouble != Trouble::RotInUse && rng.chance(odds);
        let mut troubles: Vec<Trouble> = TROUBLES
            .iter()
            .map(|(trouble, _)| *trouble)
            .filter(drawn)
            .collect();
        // It would stay until the next start where nothing is read again.
        if !config.scrub_every.is_zero() && troubles.contains(&Trouble::BitRot) {
            troubles.extend([Trouble::RotInUse; 3]);
        }
        let trouble_every_us = election_us * rng.pick(&[1, 4, 15]);
        let duration_us = (trouble_every_us * rng.pick(&[10, 30])).clamp(3_000_000, 120_000_000);
        let ops = rng.pick(&[150, 500, 1_500]);
        let mut plan = Self {
            nodes,
            rings: RingSizes {
                small: rng.pick(&[128, 128, 1024]),
                bulk: rng.pick(&[128, 512]),
                inbound_bulk: rng.pick(&[8, 64]),
            },
            weather,
            troubles,
            trouble_every_us,
            trouble_us: election_us * rng.pick(&[1, 3, 8]),
            duration_us,
            ops,
            op_every_us: duration_us / ops,
            burst_ppm: rng.pick(&[0, 10_000, 100_000]),
            burst: rng.pick(&[8, 100, 400]),
            most_open: rng.pick(&[4, 32, 150]),
            reads_ppm: rng.pick(&[0, 200_000, 700_000]),
            command_bytes: rng.pick(&[8, 100, 1000, 9 << 10]),
            skew_ppm: rng.pick(&[0, 1_000, 200_000]),
            flush_us: rng.pick(&[1, 100, 2_000, 20_000]),
            stall_ppm: rng.pick(&[0, 0, 300, 5_000]),
            cost_ppm: rng.pick(&[0, 10_000, 100_000]),
            thorough: rng.chance(150_000),
            load: Load::default(),
            config,
        };
        if rng.chance(600_000) {
            // Exactly what the clocks do, now and then: any less would be too little.
            let max_clock_drift_ppm = plan.skew_ppm as u32 + rng.pick(&[0, 0, 10_000]);
            plan.config.lease = Some(Lease {
                max_clock_drift_ppm,
            });
        }
        plan.load = Load::draw(rng, plan.config.election_timeout);
        plan
    }
}
