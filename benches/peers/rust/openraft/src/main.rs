//! Three openraft nodes in this process under load: a log in memory, function calls for a network.
//!
//! The shape is that of openraft's own benchmark: a task for each write in flight, and its settings for
//! batches. Nothing is durable and nothing crosses a socket: what is measured is openraft alone.

mod network;
mod store;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use openraft::{Config, Raft};

use network::{Calls, Node};
use store::{Command, Log, Machine};

#[derive(Parser)]
#[command(about = "Drives three openraft nodes in memory for a time; one JSON object")]
struct Args {
    /// Writes in flight.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    inflight: u32,
    /// Bytes of a command.
    #[arg(long, default_value_t = 16)]
    payload: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const STOPPING: u8 = 2;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run(args))
}

async fn run(args: Args) -> Result<(), Error> {
    let leader = start().await?;
    let command: Arc<[u8]> = vec![0x5a; args.payload].into();
    let phase = Arc::new(AtomicU8::new(WARMING));
    let tasks: Vec<_> = (0..args.inflight)
        .map(|_| {
            let (leader, command) = (leader.clone(), Command(Arc::clone(&command)));
            tokio::spawn(write(leader, command, Arc::clone(&phase)))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cpu = cpu_seconds();
    let start = Instant::now();
    phase.store(MEASURING, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    phase.store(STOPPING, Ordering::Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    for task in tasks {
        latency.add(task.await??)?;
    }
    let done = latency.len() as f64;
    println!(
        "{}",
        serde_json::json!({
            "ops_per_s": done / seconds,
            "p50_us": latency.value_at_quantile(0.5),
            "p99_us": latency.value_at_quantile(0.99),
            "p999_us": latency.value_at_quantile(0.999),
            "cpu_s_per_1k_ops": cpu / done * 1e3,
            "version": "0.10.0-alpha.37",
        })
    );
    Ok(())
}

/// Writes one command after the other; the latency of those within the measured time, in microseconds.
async fn write(
    leader: Node,
    command: Command,
    phase: Arc<AtomicU8>,
) -> Result<Histogram<u64>, String> {
    // Two digits: thousands of histograms with three would not fit into a cache.
    let mut latency = Histogram::new_with_bounds(1, 60_000_000, 2).expect("sound bounds");
    loop {
        let begun = Instant::now();
        let done = leader.client_write(command.clone()).await;
        done.map_err(|error| format!("writing: {error}"))?;
        match phase.load(Ordering::Relaxed) {
            WARMING => {}
            MEASURING => {
                let _ = latency.record(begun.elapsed().as_micros() as u64);
            }
            _ => return Ok(latency),
        }
    }
}

/// Founds a cluster of three; its leader.
async fn start() -> Result<Node, Error> {
    let config = Config {
        election_timeout_min: 200,
        election_timeout_max: 2000,
        purge_batch_size: 1024,
        max_payload_entries: 1024,
        ..Config::default()
    };
    let config = Arc::new(config.validate()?);
    let calls = Calls::default();
    let members: BTreeSet<u64> = (0..3).collect();
    for &id in &members {
        let node = Raft::new(
            id,
            Arc::clone(&config),
            calls.clone(),
            Log::default(),
            Machine::default(),
        )
        .await?;
        calls.0.lock().expect("nobody panics").insert(id, node);
    }
    let first = calls.0.lock().expect("nobody panics")[&0].clone();
    first.initialize(members).await?;
    first
        .wait(Some(Duration::from_secs(30)))
        .current_leader(0, "the first node leads")
        .await?;
    Ok(first)
}

/// CPU time of all threads of this process, where /proc tells.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    ticks.sum::<Result<f64, _>>().unwrap_or(f64::NAN) / 100.0
}
