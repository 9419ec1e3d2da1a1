//! What it costs to make an append durable: the ways a disk offers, one beside the other, and the log
//! on top of its own way.
//!
//! `BENCH_DATA=/path cargo bench --bench append` puts the files on another disk. The figures mean
//! something only together with the disk: `README.md` here has the conditions of published ones.

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use storage::medium::probe::{Probe, Way};
use storage::record::{self, Header};
use storage::{Disk, FlushBackend, FlushState, Log, Options};

fn directory() -> tempfile::TempDir {
    match std::env::var_os("BENCH_DATA") {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    }
    .expect("a temporary directory")
}

/// One append of so many bytes, durable at the end, by every way there is.
fn ways(c: &mut Criterion) {
    let dir = directory();
    let mut group = c.benchmark_group("durable_append");
    group.sample_size(20);
    for bytes in [256, 4096, 65536] {
        for way in Way::ALL {
            match Probe::open(dir.path(), way, bytes) {
                Ok(mut probe) => {
                    group.throughput(Throughput::Bytes(bytes as u64));
                    group.bench_function(BenchmarkId::new(way.name(), bytes), |b| {
                        b.iter(|| probe.append().expect("appended"));
                    });
                }
                Err(e) => eprintln!("{} is not offered here: {e}", way.name()),
            }
        }
    }
    group.finish();
}

/// A log, and the batch to append next.
struct Appender {
    log: Log<Disk>,
    batch: Vec<u8>,
}

const PAYLOAD: [u8; 128] = [0x5A; 128];

impl Appender {
    fn open(dir: &Path, flush: FlushBackend, sync: bool) -> Appender {
        let mut options = Options::default();
        options.flush = flush;
        options.sync = sync;
        let (log, _) = Log::open(Disk::new(dir), options, 1, 0, 1).expect("a new log");
        Appender {
            log,
            batch: Vec::new(),
        }
    }

    fn append(&mut self, count: u64) {
        let first = self.log.last() + 1;
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
            record::encode_into(&mut self.batch, &header, &PAYLOAD);
        }
        self.log
            .append(&self.batch, first, first + count - 1)
            .expect("appended");
    }

    fn flush(&mut self) {
        self.log.start_flush().expect("begun");
        while self.log.wait_flush().expect("flushed") != FlushState::Done {}
        // What is durable is not needed any more: the bench runs in constant space.
        self.log.purge_before(self.log.last()).expect("purged");
    }
}

/// A batch of so many commands of 128 bytes: encoded, written, flushed.
fn log(c: &mut Criterion) {
    let mut group = c.benchmark_group("log_append");
    group.sample_size(20);
    for (name, flush, sync) in [
        ("uring", FlushBackend::Uring, true),
        ("thread", FlushBackend::Thread, true),
        ("no-sync", FlushBackend::Auto, false),
    ] {
        let dir = directory();
        let mut options = Options::default();
        options.flush = flush;
        if let Err(e) = Log::open(Disk::new(dir.path()), options, 1, 0, 1) {
            eprintln!("{name} is not offered here: {e}");
            continue;
        }
        let mut appender = Appender::open(dir.path(), flush, sync);
        for count in [1, 64, 1024] {
            group.throughput(Throughput::Elements(count));
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| {
                    appender.append(count);
                    appender.flush();
                });
            });
        }
    }
    group.finish();
}

/// Reading back what was just written: a slice of 64 KiB from the map, and where it would end.
fn read(c: &mut Criterion) {
    let dir = directory();
    let mut appender = Appender::open(dir.path(), FlushBackend::Auto, false);
    appender.append(20_000);
    let (reader, last) = (appender.log.reader(), appender.log.last());
    let mut group = c.benchmark_group("log_read");
    let mut first = 1;
    group.bench_function("slice_64KiB", |b| {
        b.iter(|| {
            first = first % (last - 1000) + 37;
            black_box(reader.slice(first, last, 64 << 10)).expect("written")
        });
    });
    group.bench_function("fit_64KiB", |b| {
        b.iter(|| {
            first = first % (last - 1000) + 37;
            black_box(reader.fit(first, last, 64 << 10))
        });
    });
    group.finish();
}

criterion_group!(benches, ways, log, read);
criterion_main!(benches);
