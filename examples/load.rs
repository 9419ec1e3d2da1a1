//! A durable cluster in this process under load; one JSON object with what it did.
//!
//! `cargo run --release --example load -- --nodes 3 --payload 16 --inflight 1024 --seconds 10 --json`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use ringraft::{Flush, IdleWay, Threads};

#[path = "../benches/three_nodes/floor.rs"]
mod floor;
#[path = "../benches/three_nodes/mod.rs"]
mod three_nodes;

use three_nodes::{Cluster, Load, Shape};

#[derive(Parser)]
#[command(about = "Drives a durable cluster in this process and prints what it did")]
struct Args {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9))]
    nodes: u32,
    /// Bytes of a command.
    #[arg(long, default_value_t = 16)]
    payload: usize,
    /// Commands in flight; 0 leaves the cluster idle, to see what that costs.
    #[arg(long, default_value_t = 1024)]
    inflight: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How long to run before that. The log's first segments are new files; after two snapshots they are used again.
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Bytes of the log from one snapshot to the next.
    #[arg(long, default_value_t = 256 << 20)]
    snapshot_every_bytes: u64,
    /// Where the data directories are made; they are removed at the end. Default: the system's temporary directory.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Which threads run the stages.
    #[arg(long, value_enum, default_value_t = Plan::Auto)]
    threads: Plan,
    /// How bytes are made durable.
    #[arg(long, value_enum, default_value_t = Way::Auto)]
    flush: Way,
    /// Requests that a node has room for: it makes room for them all at its start. Default: 16384, or more if that many are
    /// to be in flight.
    #[arg(long)]
    max_pending: Option<usize>,
    /// Microseconds for which a stage without work looks on before it sleeps.
    #[arg(long, default_value_t = 50)]
    grace_us: u64,
    /// Propose on a follower instead of the leader.
    #[arg(long)]
    follower: bool,
    /// Each command has a number of a session, and would count once if it were sent again.
    #[arg(long)]
    sessions: bool,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Plan {
    Auto,
    SeparateApply,
    Shared,
    PerStage,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Auto,
    IoUring,
    Thread,
    /// None: not durable.
    Never,
}

fn main() {
    let args = Args::parse();
    let dir = match &args.data {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    }
    .expect("a temporary directory");
    let shape = Shape {
        nodes: args.nodes,
        threads: match args.threads {
            Plan::Auto => Threads::Auto,
            Plan::SeparateApply => Threads::SeparateApply,
            Plan::Shared => Threads::Shared,
            Plan::PerStage => Threads::PerStage { cores: Vec::new() },
        },
        idle: IdleWay::Park {
            grace: Duration::from_micros(args.grace_us),
        },
        flush: match args.flush {
            Way::Auto => Flush::Auto,
            Way::IoUring => Flush::IoUring,
            Way::Thread => Flush::Thread,
            Way::Never => Flush::Never,
        },
        max_pending: args
            .max_pending
            .unwrap_or_else(|| args.inflight.next_power_of_two().max(16 << 10)),
        snapshot_every_bytes: args.snapshot_every_bytes,
        sessions: args.sessions,
        ..Shape::default()
    };
    let floor =
        storage::flush_floor(dir.path(), 500).expect("the disk's own flush can be measured");
    let floor_of_all =
        floor::of_all(dir.path(), args.nodes).expect("the disk's own flush can be measured");
    let cluster = Cluster::start(dir.path(), &shape);
    let leader = cluster.leader().clone();
    let follower = cluster
        .nodes
        .iter()
        .find(|node| node.status().id != leader.status().id)
        .filter(|_| args.follower);
    let on = follower.unwrap_or(&leader);
    let mut load = if args.sessions {
        Load::in_session(on, args.payload, args.inflight)
    } else {
        Load::new(on, args.payload, args.inflight)
    };

    let run = |load: &mut Load, time: Duration| {
        let end = Instant::now() + time;
        while Instant::now() < end {
            match args.inflight {
                0 => std::thread::sleep(end.saturating_duration_since(Instant::now())),
                _ => load.turn(),
            }
        }
    };
    run(&mut load, Duration::from_secs(args.warm_up));
    load.latency.reset();
    let (before, done, cpu, rss) = (leader.status(), load.done, cpu_seconds(), resident_mib());
    let start = Instant::now();
    run(&mut load, Duration::from_secs(args.seconds));
    let seconds = start.elapsed().as_secs_f64();
    let (after, done, cpu_s, rss_end) = (
        leader.status(),
        load.done - done,
        cpu_seconds() - cpu,
        resident_mib(),
    );
    load.finish();
    let applied = leader.status().applied;
    cluster.shutdown();

    let flushes = (after.flushes - before.flushes) as f64;
    let us = |quantile| load.latency.value_at_quantile(quantile) as f64 / 1e3;
    let mut report = serde_json::json!({
        "nodes": args.nodes,
        "payload": args.payload,
        "inflight": args.inflight,
        "sessions": args.sessions,
        "seconds": round(seconds),
        "flush_backend": after.flush_backend,
        "ops_per_s": round(done as f64 / seconds),
        "p50_us": round(us(0.5)),
        "p99_us": round(us(0.99)),
        "p999_us": round(us(0.999)),
        "flushes_per_s": round(flushes / seconds),
        "entries_per_flush": round((after.flushed_entries - before.flushed_entries) as f64 / flushes.max(1.0)),
        "cpu_s_per_1k_ops": if done == 0 { None } else { Some((cpu_s / (done as f64 / 1e3) * 1e5).round() / 1e5) },
        "cpu_cores": round(cpu_s / seconds),
        "flush_floor_us": round(floor.as_nanos() as f64 / 1e3),
        "flush_floor_all_us": round(floor_of_all.as_nanos() as f64 / 1e3),
        "p50_over_floor": round(us(0.5) / (floor.as_nanos() as f64 / 1e3)),
        "rss_mib_start": rss,
        "rss_mib_end": rss_end,
        "applied": applied,
    });
    for hop in &after.hops {
        let us = |time: Duration| time.as_micros() as u64;
        report[format!("hop_{}_us", hop.name)] = serde_json::json!([us(hop.p50), us(hop.p99)]);
    }
    if let Some((p50, p99)) = after.why_slow() {
        report["slow"] = serde_json::json!([p50.name, p99.name]);
    }
    if args.json {
        println!("{report}");
    } else {
        for (name, value) in report.as_object().expect("an object") {
            println!("{name:20} {value}");
        }
    }
}

fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// CPU time of all threads of this process, where /proc tells.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let mut fields = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .skip(11);
    let mut ticks = || {
        fields
            .next()
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or(f64::NAN)
    };
    (ticks() + ticks()) / 100.0
}

/// Memory of this process that is its own: mapped files, which are page cache, are left out.
fn resident_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .ok()
        .map(|kib| kib / 1024)
}
