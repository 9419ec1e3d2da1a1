//! A large snapshot: how fast it is taken, verified and installed, beside what the disk itself can do; what the transfer
//! takes of memory; and how long writes take meanwhile.
//!
//! A round: a plain file of the same length is written and flushed, for the disk's own speed. The third node stands
//! still from then on. Writes go on at a steady rate: undisturbed, while a plain file is written beside them, while the
//! leader takes two snapshots (only then its log is let go of), and while the third node, back again, gets the newer one;
//! just before that and just after it two more plain files are written, for a disk whose speed changes by the second.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringraft::{Batch, Index, SnapshotWriter, StateMachine};

use crate::Common;
use crate::cluster::{Cluster, temp_dir, until};
use crate::figures::{Figures, Goal};
use crate::process::{MemoryWatch, cpu_seconds};
use crate::steady::{Seen, Steady};

/// Kept small, so that the log a follower lacks is soon gone.
const SEGMENT_BYTES: u64 = 4 << 20;
const BLOCK: usize = 1 << 20;
/// How long writes go on undisturbed, at the least.
const QUIET: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How large the state is: a number with MiB or GiB, from 64MiB on. The disk needs seven times as much.
    #[arg(long, default_value = "1GiB", value_parser = state_size)]
    bytes: u64,
    /// Writes a second, meanwhile.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// `Config::snapshot_window_bytes`. Default: its own.
    #[arg(long, value_parser = size)]
    window: Option<u64>,
    /// `Config::snapshot_bytes_per_second`. Default: its own.
    #[arg(long, value_parser = size)]
    pace: Option<u64>,
}

/// A length such as `64MiB`.
fn size(text: &str) -> Result<u64, String> {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("", 0)];
    let (number, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .expect("every text ends with nothing");
    let number: u64 = number
        .trim()
        .parse()
        .map_err(|_| format!("{text}: a number with KiB, MiB or GiB, such as 64MiB"))?;
    number
        .checked_mul(1 << shift)
        .filter(|bytes| *bytes <= 1 << 40)
        .ok_or_else(|| format!("{text}: more than 1024GiB"))
}

/// Smaller ones are there before anybody could look.
fn state_size(text: &str) -> Result<u64, String> {
    size(text).and_then(|bytes| match bytes {
        0..0x400_0000 => Err(format!("{text}: less than 64MiB")),
        bytes => Ok(bytes),
    })
}

/// When what happened to the state of one node, in microseconds since `epoch`.
struct Stamps {
    epoch: Instant,
    written_us: AtomicU64,
    restoring_us: AtomicU64,
}

impl Stamps {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            written_us: AtomicU64::new(0),
            restoring_us: AtomicU64::new(0),
        })
    }

    fn now_us(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn at(&self, stamp: &AtomicU64) -> Instant {
        self.epoch + Duration::from_micros(stamp.load(Ordering::Acquire))
    }
}

/// A state of a given size that is made while it is written, and dropped while it is read: it takes no memory itself.
struct Blob {
    bytes: u64,
    applied: u64,
    stamps: Arc<Stamps>,
}

impl StateMachine for Blob {
    fn apply(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        while batch.next().is_some() {
            self.applied += 1;
        }
        Ok(())
    }

    fn query(&self, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&self.applied.to_le_bytes());
    }

    fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
        let (bytes, applied, stamps) = (self.bytes, self.applied, self.stamps.clone());
        Ok(Box::new(move |out| {
            out.write_all(&applied.to_le_bytes())?;
            fill(bytes, out)?;
            stamps.written_us.store(stamps.now_us(), Ordering::Release);
            Ok(())
        }))
    }

    fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.stamps
            .restoring_us
            .store(self.stamps.now_us(), Ordering::Release);
        let mut applied = [0; 8];
        from.read_exact(&mut applied)?;
        let (mut block, mut read) = (vec![0; BLOCK], 0);
        loop {
            match from.read(&mut block)? {
                0 => break,
                more => read += more as u64,
            }
        }
        if read != self.bytes {
            let what = format!("the state has {read} bytes, it should have {}", self.bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        self.applied = u64::from_le_bytes(applied);
        Ok(())
    }
}

/// Bytes of which no block is like another, so that no disk can make less of them by comparing.
fn fill(bytes: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block: Vec<u8> = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        block.extend_from_slice(&seed.to_le_bytes());
    }
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(BLOCK as u64);
        for page in block.chunks_mut(4096) {
            page[..8].copy_from_slice(&left.to_le_bytes());
        }
        out.write_all(&block[..piece as usize])?;
        left -= piece;
    }
    Ok(())
}

/// Writes a plain file from front to back and flushes it; how long that took.
fn write_plainly(path: &Path, bytes: u64) -> io::Result<Duration> {
    let begin = Instant::now();
    let mut file = File::create(path)?;
    fill(bytes, &mut file)?;
    file.sync_data()?;
    let took = begin.elapsed();
    drop(file);
    std::fs::remove_file(path)?;
    Ok(took)
}

/// What the writes of one round ran beside.
#[derive(Clone, Copy)]
enum Beside {
    Other,
    Nothing,
    PlainFile,
    Taking,
    Installing,
}

const PHASES: usize = 5;

pub(crate) fn run(args: &Args) -> Result<Figures, String> {
    let io = |error: io::Error| error.to_string();
    let dir = temp_dir(args.common.data.as_deref()).map_err(io)?;
    let mut figures = Figures::new("snapshots");
    figures.condition("bytes", args.bytes);
    figures.condition("writes_per_s", args.rate);
    figures.condition("rounds", args.common.rounds);
    let floor = storage::flush_floor(dir.path(), 500).map_err(|error| error.to_string())?;
    figures.condition("flush_floor_us", floor.as_micros() as u64);

    let (window, pace) = (args.window, args.pace);
    let mut cluster = Cluster::new(dir.path(), 3, move |config| {
        config.segment_bytes = SEGMENT_BYTES;
        config.snapshot_every_bytes = 0;
        config.log_tail_entries = 0;
        config.scrub_every = Duration::ZERO;
        if let Some(window) = window {
            config.snapshot_window_bytes = window as usize;
        }
        if let Some(pace) = pace {
            config.snapshot_bytes_per_second = pace;
        }
    })
    .map_err(io)?;
    figures.condition("window", args.window.unwrap_or(4 << 20));
    figures.condition("bytes_per_second", args.pace.unwrap_or(0));
    let stamps = [Stamps::new(), Stamps::new(), Stamps::new()];
    let blob = |at: usize| Blob {
        bytes: args.bytes,
        applied: 0,
        stamps: stamps[at].clone(),
    };
    // The third one only watches, lest it lead when it is to be stopped.
    for at in 0..2 {
        cluster.start(at, blob(at))?;
    }
    let leader = cluster.leader()?;
    // What the third one had when it was last stopped.
    let mut behind = 0;
    let mut elections = cluster.node(leader).status().term;
    for _ in 0..args.common.rounds {
        round(
            args,
            dir.path(),
            &mut cluster,
            leader,
            &stamps,
            &blob,
            &mut behind,
            &mut figures,
        )?;
        let term = cluster.node(leader).status().term;
        figures.note("elections", "", (term - elections) as f64);
        elections = term;
    }
    cluster.shutdown()?;
    Ok(figures)
}

#[expect(
    clippy::too_many_arguments,
    reason = "called once, in the loop over the rounds"
)]
fn round(
    args: &Args,
    dir: &Path,
    cluster: &mut Cluster,
    leader: usize,
    stamps: &[Arc<Stamps>; 3],
    blob: &dyn Fn(usize) -> Blob,
    behind: &mut Index,
    figures: &mut Figures,
) -> Result<(), String> {
    let mib = args.bytes as f64 / f64::from(1 << 20);
    let plain = |name: &str| {
        let path = dir.join(name);
        write_plainly(&path, args.bytes).map_err(|error| format!("{}: {error}", path.display()))
    };
    let disk = mib / plain("plain")?.as_secs_f64();
    figures.note("disk, sequential write", "MiB/s", disk);

    let steady = Steady::begin(cluster.node(leader), args.rate, 16, PHASES);
    // The files of before are written back, the load is at its rate.
    std::thread::sleep(Duration::from_secs(1));
    steady.enter(Beside::Nothing as usize);
    std::thread::sleep(QUIET);
    steady.enter(Beside::PlainFile as usize);
    figures.note(
        "disk, sequential write beside the writes",
        "MiB/s",
        mib / plain("beside")?.as_secs_f64(),
    );

    for _ in 0..2 {
        steady.enter(Beside::Other as usize);
        outgrow_a_segment(cluster, leader)?;
        steady.enter(Beside::Taking as usize);
        let begin = Instant::now();
        let node = cluster.node(leader);
        let pending = node.snapshot().map_err(|error| error.to_string())?;
        let there = cluster.node_dir(leader).join("group-0/snap");
        let before = whole(&there);
        until("snapshot file", || whole(&there) != before)?;
        let taken = Instant::now();
        let reply = pending
            .wait()
            .map_err(|error| format!("no snapshot: {error}"))?;
        let verified = Instant::now();
        assert!(reply.index > 0, "a snapshot stands for something");
        let written = stamps[leader].at(&stamps[leader].written_us);
        steady.enter(Beside::Other as usize);
        let speed = |from: Instant, to: Instant| mib / (to - from).as_secs_f64();
        figures.note(
            "take: the state written, not all flushed",
            "MiB/s",
            speed(begin, written),
        );
        figures.note("take", "MiB/s", speed(begin, taken));
        figures.note("verify", "MiB/s", speed(taken, verified));
        figures.ratio(
            "take / disk",
            speed(begin, taken) / disk,
            Goal::AtLeast(0.5),
        );
    }

    let near = plain("before")?;
    let index = cluster.node(leader).status().snapshot.index;
    until("compaction of the leader's log", || {
        cluster.node(leader).status().first > *behind + 1
    })?;
    cluster.start(2, blob(2))?;
    until("snapshot on its way", || {
        cluster.node(2).status().snapshot.receiving.is_some()
    })?;
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    steady.enter(Beside::Installing as usize);
    let memory = MemoryWatch::begin();
    until("snapshot that is installed", || {
        cluster.node(2).status().snapshot.restored > 0
    })?;
    let (end, cpu) = (Instant::now(), cpu_seconds() - cpu);
    let grown = memory.grown_mib();
    steady.enter(Beside::Other as usize);
    until("follower that has caught up", || {
        cluster.node(2).status().applied >= index
    })?;
    let near = 2.0 * mib / (near + plain("after")?).as_secs_f64();
    let restoring = stamps[2].at(&stamps[2].restoring_us);
    let speed = |from: Instant, to: Instant| mib / (to - from).as_secs_f64();
    figures.note("install: transfer", "MiB/s", speed(begin, restoring));
    figures.note("install: restore", "MiB/s", speed(restoring, end));
    figures.note("install", "MiB/s", speed(begin, end));
    figures.ratio(
        "transfer / disk",
        speed(begin, restoring) / disk,
        Goal::AtLeast(0.5),
    );
    figures.ratio(
        "install / disk",
        speed(begin, end) / disk,
        Goal::AtLeast(0.5),
    );
    figures.note(
        "disk, sequential write just before and after, beside the writes",
        "MiB/s",
        near,
    );
    figures.note(
        "install / disk just before and after",
        "x",
        speed(begin, end) / near,
    );
    figures.note("install: CPU, with the writes", "s", cpu);
    figures.note("install: memory grows by", "MiB", grown);
    *behind = cluster.node(2).status().last;
    cluster.stop(2)?;

    let seen = steady.end()?;
    writes(&seen, figures);
    Ok(())
}

/// How long writes took, beside what.
fn writes(seen: &Seen, figures: &mut Figures) {
    let named = [
        (Beside::Nothing, "writes p99, undisturbed"),
        (Beside::PlainFile, "writes p99, beside a plain file"),
        (Beside::Taking, "writes p99, taking"),
        (Beside::Installing, "writes p99, installing"),
    ];
    for (beside, name) in named {
        figures.note(name, "ms", seen.p99_ms(beside as usize));
    }
    let quiet = seen.p99_ms(Beside::Nothing as usize);
    let plain = seen.p99_ms(Beside::PlainFile as usize);
    let taking = seen.p99_ms(Beside::Taking as usize);
    let installing = seen.p99_ms(Beside::Installing as usize);
    figures.note("writes p99, plain file / undisturbed", "x", plain / quiet);
    figures.ratio(
        "writes p99, taking / undisturbed",
        taking / quiet,
        Goal::AtMost(2.0),
    );
    figures.ratio(
        "writes p99, installing / undisturbed",
        installing / quiet,
        Goal::AtMost(2.0),
    );
    figures.note("writes without a reply", "", seen.lost as f64);
}

/// Fills the log's present segment, so that a snapshot leaves a whole one to be let go of.
fn outgrow_a_segment(cluster: &Cluster, leader: usize) -> Result<(), String> {
    let command = vec![0; 256 << 10];
    for _ in 0..2 * SEGMENT_BYTES / command.len() as u64 {
        let pending = cluster.node(leader).propose(&command);
        let pending = pending.map_err(|error| format!("filling the log: {error}"))?;
        pending
            .wait()
            .map_err(|error| format!("filling the log: {error}"))?;
    }
    Ok(())
}

/// The snapshots that have their name.
fn whole(folder: &Path) -> Vec<std::ffi::OsString> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names
        .filter(|name| !name.to_string_lossy().starts_with("taking"))
        .collect();
    names.sort();
    names
}
