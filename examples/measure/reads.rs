//! Reads in every mode, on the leader and on a follower; what reads cost writes; and etcd beside it.

use std::time::Duration;

use ringraft::{Consistency, Lease};

use crate::Common;
use crate::cluster::{Cluster, temp_dir};
use crate::count::Count;
use crate::driver::{Clients, Driver};
use crate::etcd;
use crate::figures::{Figures, Goal};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Clients that read, each the next time when it was answered.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    clients: u16,
    /// Clients that write, for what reads cost them.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=4096))]
    writers: u16,
    /// How long each of the measurements takes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Leaves etcd out.
    #[arg(long)]
    no_etcd: bool,
}

const MODES: [(&str, Consistency); 5] = [
    ("linearizable", Consistency::Linearizable),
    ("lease", Consistency::Lease),
    ("stale", Consistency::Stale),
    (
        "at most 100 ms",
        Consistency::AtMost {
            age: Duration::from_millis(100),
            entries: 0,
        },
    ),
    ("log", Consistency::Log),
];

pub(crate) fn run(args: &Args) -> Result<Figures, String> {
    let dir = temp_dir(args.common.data.as_deref()).map_err(|error| error.to_string())?;
    let mut figures = Figures::new("reads");
    let floor = storage::flush_floor(dir.path(), 500).map_err(|error| error.to_string())?;
    figures.condition("clients", args.clients);
    figures.condition("writers", args.writers);
    figures.condition("rounds", args.common.rounds);
    figures.condition("seconds", args.seconds);
    figures.condition("flush_floor_us", floor.as_micros() as u64);
    let cluster = Cluster::new(dir.path(), 3, |config| {
        config.lease = Some(Lease::default())
    });
    let mut cluster = cluster.map_err(|error| error.to_string())?;
    for at in 0..3 {
        cluster.start(at, Count::default())?;
    }
    let leader = cluster.leader()?;
    let follower = (leader + 1) % 3;
    // Only then etcd: what it does at its start costs nobody.
    let etcd = match args.no_etcd {
        true => Err("etcd: left out".to_owned()),
        false => etcd::Etcd::start(dir.path()),
    };
    if let Err(why) = &etcd {
        figures.remark(why.clone());
    }

    let time = Duration::from_secs(args.seconds);
    let driver = |at| Driver::new(cluster.node(at), Clients::writers(0, 0));
    let (mut leads, mut follows) = (driver(leader), driver(follower));
    for _ in 0..args.common.rounds {
        let mut on_leader = [0.0; MODES.len()];
        for (place, driver) in [("leader", &mut leads), ("follower", &mut follows)] {
            for (mode, (name, how)) in MODES.into_iter().enumerate() {
                let clients = Clients::readers(args.clients.into(), how);
                let span = driver.measure(clients, time);
                if span.reads.failed > 0 {
                    return Err(format!(
                        "{} reads failed: {name}, {place}",
                        span.reads.failed
                    ));
                }
                figures.note(format!("{place}, {name}"), "reads/s", span.reads_per_s());
                figures.note(format!("{place}, {name}: p50"), "us", span.reads.us(0.5));
                figures.note(format!("{place}, {name}: p99"), "us", span.reads.us(0.99));
                if place == "leader" {
                    on_leader[mode] = span.reads_per_s();
                }
            }
        }
        let [linearizable, lease, stale, ..] = on_leader;
        figures.ratio("leader, lease / stale", lease / stale, Goal::AtLeast(0.8));
        if let Ok(etcd) = &etcd {
            let gets = etcd.linearizable_gets(args.clients.into(), time)?;
            figures.note("etcd, linearizable gets", "reads/s", gets.per_s);
            figures.note("etcd, linearizable gets: p50", "us", gets.p50_us);
            figures.note("etcd, linearizable gets: p99", "us", gets.p99_us);
            figures.ratio(
                "leader, linearizable / etcd",
                linearizable / gets.per_s,
                Goal::AtLeast(5.0),
            );
        }
        with_writes(args, &mut leads, &mut figures)?;
    }
    drop((leads, follows));
    cluster.shutdown()?;
    Ok(figures)
}

/// Writes as fast as they go, alone and with as many reads.
fn with_writes(args: &Args, driver: &mut Driver, figures: &mut Figures) -> Result<(), String> {
    let time = Duration::from_secs(args.seconds);
    let writers = Clients::writers(args.writers.into(), 16);
    // Before and after, since a shared machine drifts.
    let before = driver.measure(writers, time);
    for (name, how) in &MODES[..2] {
        let both = Clients {
            readers: args.writers.into(),
            how: *how,
            as_often_as_writes: true,
            ..writers
        };
        let both = driver.measure(both, time);
        let after = driver.measure(writers, time);
        let alone = (before.writes_per_s() + after.writes_per_s()) / 2.0;
        if both.writes.failed + both.reads.failed > 0 {
            return Err("an undisturbed cluster did not answer".into());
        }
        figures.note("writes alone", "writes/s", alone);
        figures.note(
            format!("writes with {name} reads"),
            "writes/s",
            both.writes_per_s(),
        );
        figures.note(
            format!("{name} reads beside them"),
            "reads/s",
            both.reads_per_s(),
        );
        figures.ratio(
            format!("writes with {name} reads / alone"),
            both.writes_per_s() / alone,
            Goal::AtLeast(0.8),
        );
    }
    Ok(())
}
