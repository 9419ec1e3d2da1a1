//! Logs on disk side by side: one thread appends batches of entries, each batch durable before the next.
//!
//! A batch is encoded, written and flushed; its whole time is the latency. Nothing is purged, as the
//! runs are short.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt};
use storage::record::{self, Header};
use storage::{Disk, FlushState, Log, Options};

#[derive(Parser)]
#[command(about = "Appends durable batches for a time; one JSON object with entries a second")]
struct Args {
    #[arg(long, value_enum)]
    log: Kind,
    /// An empty directory.
    #[arg(long)]
    data: PathBuf,
    /// Entries of a batch.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch: u64,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 16)]
    payload: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Storage,
    RaftEngine,
}

/// A log that is open.
trait Appender {
    /// Appends entries from index `first` on; they are durable when it comes back.
    fn append(&mut self, first: u64, count: u64, payload: &[u8]);
}

fn main() {
    let args = Args::parse();
    match args.log {
        Kind::Storage => {
            let log = Ours::open(&args.data);
            let way = log.log.flush_backend();
            run(log, &args, serde_json::json!({ "flush_backend": way }));
        }
        Kind::RaftEngine => {
            let log = RaftEngine::open(&args.data);
            run(log, &args, serde_json::json!({ "version": "0.4.2" }));
        }
    }
}

fn run(mut log: impl Appender, args: &Args, mut report: serde_json::Value) {
    let payload = vec![0x5a; args.payload];
    let mut next = 1;
    let mut phase = |time: Duration| {
        let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("sound");
        let start = Instant::now();
        while start.elapsed() < time {
            let begun = Instant::now();
            log.append(next, args.batch, &payload);
            let _ = latency.record(begun.elapsed().as_nanos() as u64);
            next += args.batch;
        }
        (latency, start.elapsed().as_secs_f64())
    };
    phase(Duration::from_secs(1));
    let cpu = cpu_seconds();
    let (latency, seconds) = phase(Duration::from_secs(args.seconds));
    let cpu = cpu_seconds() - cpu;
    let entries = (latency.len() * args.batch) as f64;
    report["ops_per_s"] = (entries / seconds).into();
    report["cpu_s_per_1k_ops"] = (cpu / entries * 1e3).into();
    for (name, quantile) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        report[name] = (latency.value_at_quantile(quantile) as f64 / 1e3).into();
    }
    println!("{report}");
}

struct Ours {
    log: Log<Disk>,
    batch: Vec<u8>,
}

impl Ours {
    fn open(dir: &Path) -> Self {
        let (log, _) = Log::open(Disk::new(dir), Options::default(), 1, 0, 1).expect("a new log");
        Self {
            log,
            batch: Vec::new(),
        }
    }
}

impl Appender for Ours {
    fn append(&mut self, first: u64, count: u64, payload: &[u8]) {
        self.batch.clear();
        for index in first..first + count {
            let header = Header {
                index,
                term: 1,
                time_us: 0,
                origin: 1,
                token: index,
                kind: 1,
            };
            record::encode_into(&mut self.batch, &header, payload);
        }
        self.log
            .append(&self.batch, first, first + count - 1)
            .expect("appended");
        self.log.start_flush().expect("begun");
        while self.log.wait_flush().expect("flushed") != FlushState::Done {}
    }
}

/// An entry as its log wants it, a protobuf message: index and payload in one field of bytes, about as
/// long as the entry of its own Raft, which has term and index beside the data.
struct Entry;

impl MessageExt for Entry {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let (index, _) = entry.value.split_first_chunk().expect("an index in front");
        u64::from_le_bytes(*index)
    }
}

struct RaftEngine {
    engine: Engine,
    entries: Vec<BytesValue>,
    batch: LogBatch,
}

impl RaftEngine {
    fn open(dir: &Path) -> Self {
        let config = Config {
            dir: dir.display().to_string(),
            ..Config::default()
        };
        Self {
            engine: Engine::open(config).expect("a new log"),
            entries: Vec::new(),
            batch: LogBatch::default(),
        }
    }
}

impl Appender for RaftEngine {
    fn append(&mut self, first: u64, count: u64, payload: &[u8]) {
        self.entries.resize_with(count as usize, BytesValue::new);
        for (entry, index) in self.entries.iter_mut().zip(first..) {
            entry.value.clear();
            entry.value.extend_from_slice(&index.to_le_bytes());
            entry.value.extend_from_slice(payload);
        }
        self.batch
            .add_entries::<Entry>(1, &self.entries)
            .expect("encoded");
        let durable = true;
        self.engine
            .write(&mut self.batch, durable)
            .expect("appended");
    }
}

/// CPU time of all threads of this process, where /proc tells.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    ticks.sum::<Result<f64, _>>().unwrap_or(f64::NAN) / 100.0
}
