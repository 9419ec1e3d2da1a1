//! What is promised of writes: of one in flight and of thousands, of the slowest at half of that, of long ones.
//!
//! A log that takes snapshots uses its segments again, and those of the first seconds are all new files, which cost a good
//! deal more. So the cluster runs at its peak until it has let go of a part of its log, and what is measured is what it
//! does from then on.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ringraft::Node;

use crate::Common;
use crate::cluster::{Cluster, temp_dir};
use crate::count::Count;
use crate::driver::{Clients, Driver};
use crate::figures::{Figures, Goal};
use crate::floor;
use crate::process::cpu_seconds;
use crate::steady::Steady;

/// Long commands: their name, bytes, and how many are in flight.
const LONG: [(&str, usize, usize); 3] = [
    ("4 KiB", 4 << 10, 256),
    ("64 KiB", 64 << 10, 64),
    ("1 MiB", 1 << 20, 8),
];
/// What one stream of the disk writes at once: as much as the log puts into a batch.
const CHUNK: usize = 256 << 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How long each of the measurements takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Commands in flight for the peak.
    #[arg(long, default_value_t = 16 << 10, value_parser = clap::value_parser!(u16).range(1..))]
    inflight: u16,
    /// Bytes of the log from one snapshot to the next.
    #[arg(long, default_value_t = 256 << 20)]
    snapshot_every_bytes: u64,
}

pub(crate) fn run(args: &Args) -> Result<Figures, String> {
    let dir = temp_dir(args.common.data.as_deref()).map_err(|error| error.to_string())?;
    let mut figures = Figures::new("writes");
    figures.condition("nodes", 3);
    figures.condition("payload", 16);
    figures.condition("rounds", args.common.rounds);
    figures.condition("seconds", args.seconds);
    figures.condition("snapshot_every_bytes", args.snapshot_every_bytes);
    let every = args.snapshot_every_bytes;
    let cluster = Cluster::new(dir.path(), 3, move |config| {
        config.snapshot_every_bytes = every;
    });
    let mut cluster = cluster.map_err(|error| error.to_string())?;
    for at in 0..3 {
        cluster.start(at, Count::default())?;
    }
    let leader = cluster.leader()?;
    let node = cluster.node(leader).clone();
    let time = Duration::from_secs(args.seconds);
    let many = Clients::writers(args.inflight.into(), 16);
    let mut driver = Driver::new(&node, many);
    for _ in 0..args.common.rounds {
        driver.change(many);
        driver.until_steady(cluster.all())?;
        one(&mut driver, dir.path(), time, &mut figures)?;
        let peak = peak(&mut driver, many, time, &mut figures)?;
        half(&node, peak, time, &mut figures)?;
    }
    // Behind all else: a disk may be slow for a while after so much.
    for _ in 0..args.common.rounds {
        for (name, bytes, inflight) in LONG {
            let clients = Clients::writers(inflight, bytes);
            driver.change(clients);
            driver.until_steady(cluster.all())?;
            long(&mut driver, (name, clients), dir.path(), time, &mut figures)?;
        }
    }
    drop(driver);
    drop(node);
    cluster.shutdown()?;
    Ok(figures)
}

/// One in flight, beside what the disk takes for a flush: of one stream, and of as many as there are nodes on it.
fn one(
    driver: &mut Driver,
    dir: &Path,
    time: Duration,
    figures: &mut Figures,
) -> Result<(), String> {
    let floor = storage::flush_floor(dir, 1000).map_err(|error| error.to_string())?;
    let floor_of_three = floor::of_all(dir, 3).map_err(|error| error.to_string())?;
    let span = driver.measure(Clients::writers(1, 16), time);
    let (floor_us, three_us) = (
        floor.as_secs_f64() * 1e6,
        floor_of_three.as_secs_f64() * 1e6,
    );
    let p50_us = span.writes.us(0.5);
    figures.note("the disk's flush: p50", "us", floor_us);
    figures.note("three such streams at once: p50", "us", three_us);
    figures.note("1 in flight", "commits/s", span.writes_per_s());
    figures.note("1 in flight: p50", "us", p50_us);
    figures.note("1 in flight: p99", "us", span.writes.us(0.99));
    let goal = Goal::AtMost(2.0);
    figures.ratio("1 in flight: p50 / flush", p50_us / floor_us, goal);
    figures.note(
        "1 in flight: p50 / three flushes at once",
        "x",
        p50_us / three_us,
    );
    Ok(())
}

fn peak(
    driver: &mut Driver,
    many: Clients,
    time: Duration,
    figures: &mut Figures,
) -> Result<f64, String> {
    let cpu = cpu_seconds();
    let begin = Instant::now();
    let span = driver.measure(many, time);
    let cores = (cpu_seconds() - cpu) / begin.elapsed().as_secs_f64();
    if span.writes.failed > 0 {
        return Err("an undisturbed cluster did not answer".into());
    }
    let peak = span.writes_per_s();
    let name = format!("{} in flight", many.writers);
    figures.note(name.clone(), "commits/s", peak);
    figures.set_goal(&name, Goal::AtLeast(1e6));
    figures.note(format!("{name}: p50"), "ms", span.writes.us(0.5) / 1e3);
    figures.note(format!("{name}: cores, the load's too"), "", cores);
    Ok(peak)
}

/// At half of the peak, at a steady rate: from when a command was due until it was answered.
fn half(node: &Node, peak: f64, time: Duration, figures: &mut Figures) -> Result<(), String> {
    let load = Steady::begin(node, (peak / 2.0).max(1.0) as u64, 16, 2);
    std::thread::sleep(Duration::from_millis(500));
    load.enter(1);
    std::thread::sleep(time);
    let seen = load.end()?;
    if seen.lost > 0 {
        return Err(format!("{} commands were lost at half load", seen.lost));
    }
    let (p50, p999) = (seen.ms(1, 0.5), seen.ms(1, 0.999));
    figures.note("half of that: p50", "ms", p50);
    figures.note("half of that: p99", "ms", seen.ms(1, 0.99));
    figures.note("half of that: p99.9", "ms", p999);
    figures.ratio("half of that: p99.9 / p50", p999 / p50, Goal::AtMost(5.0));
    Ok(())
}

/// Long commands, beside three streams of writes that are each made durable.
fn long(
    driver: &mut Driver,
    (name, clients): (&str, Clients),
    dir: &Path,
    time: Duration,
    figures: &mut Figures,
) -> Result<(), String> {
    let streams = || -> Result<f64, String> {
        let bytes = at_once(|at| stream(&dir.join(format!("stream-{at}")), time / 2))?;
        Ok(bytes.iter().sum::<f64>())
    };
    let before = streams()?;
    let span = driver.measure(clients, time);
    let disk = (before + streams()?) / 2.0;
    let ours = 3.0 * span.writes_per_s() * clients.payload as f64;
    let mib = f64::from(1 << 20);
    figures.note(
        format!("{name}, {} in flight", clients.writers),
        "commits/s",
        span.writes_per_s(),
    );
    let written = format!("{name}: written by three nodes");
    figures.note(written, "MiB/s", ours / mib);
    let streams = format!("{name}: three streams of write and fdatasync beside it");
    figures.note(streams, "MiB/s", disk / mib);
    let ratio = format!("{name}: nodes / streams");
    figures.ratio(ratio, ours / disk, Goal::AtLeast(0.7));
    Ok(())
}

/// Bytes per second of one stream, into a file that is there already.
fn stream(path: &Path, time: Duration) -> io::Result<f64> {
    const CHUNKS: u64 = 256;
    let file = std::fs::File::create(path)?;
    let chunk = vec![0x5a; CHUNK];
    for at in 0..CHUNKS {
        file.write_all_at(&chunk, at * CHUNK as u64)?;
    }
    file.sync_all()?;
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < time {
        file.write_all_at(&chunk, count % CHUNKS * CHUNK as u64)?;
        file.sync_data()?;
        count += 1;
    }
    let per_second = (count * CHUNK as u64) as f64 / begin.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(per_second)
}

/// The same on three threads.
fn at_once<T: Send>(what: impl Fn(usize) -> io::Result<T> + Sync) -> Result<Vec<T>, String> {
    let what = &what;
    let done: io::Result<Vec<T>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|at| scope.spawn(move || what(at))).collect();
        let done = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        done.collect()
    });
    done.map_err(|error| error.to_string())
}
