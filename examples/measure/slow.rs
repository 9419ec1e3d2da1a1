//! What a slow or dead part costs the rest: throughput, memory, elections.
//!
//! Each case has a cluster of its own, in turns within a round; the first one is well and is what the others are
//! compared with. It is measured when the leader's log uses its segments again: new ones cost more than what is looked for.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ringraft::{Batch, SnapshotWriter, StateMachine, Threads};

use crate::Common;
use crate::cluster::{Cluster, temp_dir};
use crate::driver::{Clients, Driver, Span};
use crate::figures::{Figures, Goal};
use crate::line::{Line, Manner};
use crate::process::MemoryWatch;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Commands in flight.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=16384))]
    inflight: u16,
    /// How long each of the cases is measured, after warming up.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// What the slow follower's line lets through in a second, in KiB.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    line_kib: u64,
    /// By how much it delays, in milliseconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    line_delay_ms: u64,
    /// A directory on a slow disk: with it there is a case more, in which a follower has its data there. `benches/slow_disk`
    /// makes one.
    #[arg(long)]
    slow_disk: Option<PathBuf>,
    /// How long the slow state machine takes for a command, in microseconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    apply_us: u64,
    /// Only the cases with a slow state machine.
    #[arg(long)]
    only_apply: bool,
}

/// Requests that a node with a slow state machine takes at a time; twice as many clients ask.
const SLOW_PENDING: usize = 4096;

/// Short, so that segments are used again soon.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Takes its time for every command.
struct Slow(Duration);

impl StateMachine for Slow {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while batch.next().is_some() {
            if !self.0.is_zero() {
                std::thread::sleep(self.0);
            }
        }
        Ok(())
    }

    fn query(&self, _: &[u8], _: &mut Vec<u8>) {}

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        Ok(Box::new(|out| out.write_all(b"nothing")))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        io::copy(from, &mut io::sink()).map(drop)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Well,
    Dead,
    SlowLine,
    SlowDisk,
    SlowApply,
    SlowApplyOwnThread,
}

impl Case {
    fn is_slow_apply(self) -> bool {
        matches!(self, Self::SlowApply | Self::SlowApplyOwnThread)
    }
}

const CASES: [(Case, &str); 6] = [
    (Case::Well, "all well"),
    (Case::Dead, "one follower dead"),
    (Case::SlowLine, "one follower on a slow line"),
    (Case::SlowDisk, "one follower with a slow disk"),
    (Case::SlowApply, "slow state machine, one thread"),
    (
        Case::SlowApplyOwnThread,
        "slow state machine, a thread per stage",
    ),
];

pub(crate) fn run(args: &Args) -> Result<Figures, String> {
    let mut figures = Figures::new("slow parts");
    figures.condition("inflight", args.inflight);
    figures.condition("rounds", args.common.rounds);
    figures.condition("seconds", args.seconds);
    figures.condition("line_kib_per_s", args.line_kib);
    figures.condition("line_delay_ms", args.line_delay_ms);
    figures.condition("apply_us", args.apply_us);
    for _ in 0..args.common.rounds {
        let mut well = 0.0;
        for (case, name) in CASES {
            if args.only_apply && !case.is_slow_apply()
                || case == Case::SlowDisk && args.slow_disk.is_none()
            {
                continue;
            }
            let seen = measure(args, case).map_err(|error| format!("{name}: {error}"))?;
            let span = seen.span;
            figures.note(
                format!("{name}: throughput"),
                "writes/s",
                span.writes_per_s(),
            );
            figures.note(format!("{name}: p99"), "ms", span.writes.us(0.99) / 1e3);
            figures.note(format!("{name}: memory grows by"), "MiB", seen.grown_mib);
            let gained = format!("{name}: elections");
            figures.note(gained.clone(), "", seen.elections as f64);
            figures.set_goal(&gained, Goal::AtMost(0.0));
            let lost = format!("{name}: failed");
            figures.note(lost.clone(), "", span.writes.failed as f64);
            figures.set_goal(&lost, Goal::AtMost(0.0));
            if matches!(case, Case::SlowLine | Case::SlowDisk) {
                let behind = format!("{name}: it is behind by");
                figures.note(behind, "entries", seen.behind as f64);
            }
            match case {
                Case::Well => well = span.writes_per_s(),
                Case::Dead | Case::SlowLine | Case::SlowDisk => figures.ratio(
                    format!("{name} / all well"),
                    span.writes_per_s() / well,
                    Goal::AtLeast(0.95),
                ),
                Case::SlowApply | Case::SlowApplyOwnThread => {
                    figures.note(format!("{name}: busy"), "", span.writes.busy as f64);
                }
            }
        }
    }
    Ok(figures)
}

/// What a case brought.
struct Seen {
    span: Span,
    /// By how many MiB the memory grew.
    grown_mib: f64,
    elections: u64,
    /// By how many entries the third node is behind its leader, in the end.
    behind: u64,
}

fn measure(args: &Args, case: Case) -> Result<Seen, String> {
    let dir = temp_dir(args.common.data.as_deref()).map_err(|error| error.to_string())?;
    let slow_apply = case.is_slow_apply();
    let mut cluster = Cluster::new(dir.path(), 3, move |config| {
        config.segment_bytes = SEGMENT_BYTES;
        config.snapshot_every_bytes = 4 * SEGMENT_BYTES;
        if slow_apply {
            config.threads = match case {
                Case::SlowApply => Threads::Shared,
                _ => Threads::PerStage { cores: Vec::new() },
            };
            // Less room than the clients want, and more than is applied within an election timeout.
            config.max_pending = SLOW_PENDING;
        }
    })
    .map_err(|error| error.to_string())?;
    // Removed with what is in it, on that disk.
    let apart = match (&args.slow_disk, case) {
        (Some(slow), Case::SlowDisk) => {
            let apart = temp_dir(Some(slow)).map_err(|error| error.to_string())?;
            cluster.put(2, apart.path());
            Some(apart)
        }
        _ => None,
    };
    let line = match case {
        Case::SlowLine => {
            let manner = Manner {
                delay: Duration::from_millis(args.line_delay_ms),
                bytes_per_second: args.line_kib << 10,
            };
            let line = Line::open(cluster.addr(2), manner).map_err(|error| error.to_string())?;
            cluster.lead_to(2, line.addr());
            Some(line)
        }
        _ => None,
    };
    let machine = || {
        Slow(Duration::from_micros(if slow_apply {
            args.apply_us
        } else {
            0
        }))
    };
    // The first two elect one of them, which is not the one that is slow or dead.
    cluster.start(0, machine())?;
    cluster.start(1, machine())?;
    let leader = cluster.leader()?;
    if case != Case::Dead {
        cluster.start(2, machine())?;
    }
    let node = cluster.node(leader).clone();
    let term = node.status().term;
    let inflight = if slow_apply {
        2 * SLOW_PENDING
    } else {
        args.inflight.into()
    };
    let mut driver = Driver::new(&node, Clients::writers(inflight, 16));
    match slow_apply {
        true => drop(driver.run(Duration::from_secs(1))),
        false => driver.until_steady(vec![&node])?,
    }
    let memory = MemoryWatch::begin();
    let span = driver.run(Duration::from_secs(args.seconds));
    let grown_mib = memory.grown_mib();
    let behind = match case {
        Case::Dead => 0,
        // The second look is the later one.
        _ => {
            let last = node.status().last;
            last.saturating_sub(cluster.node(2).status().durable)
        }
    };
    driver.finish();
    let elections = node.status().term - term;
    drop(node);
    drop(line);
    cluster.shutdown()?;
    drop(apart);
    Ok(Seen {
        span,
        grown_mib,
        elections,
        behind,
    })
}
