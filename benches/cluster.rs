//! Three durable nodes over loopback in this process: what one command costs, by payload and by how many are in flight.
//!
//! Each sample keeps `inflight` commands of `payload` bytes under way on the leader, flushes on; see `README.md` here
//! for the conditions of published figures. Set `BENCH_DATA` to put the data directories on another disk.

mod three_nodes;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use three_nodes::{Cluster, Load, Shape};

fn commit(c: &mut Criterion) {
    let dir = match std::env::var_os("BENCH_DATA") {
        Some(parent) => tempfile::tempdir_in(parent),
        None => tempfile::tempdir(),
    }
    .expect("a temporary directory");
    let cluster = Cluster::start(dir.path(), &Shape::default());
    let leader = cluster.leader().clone();
    let mut group = c.benchmark_group("cluster_3_durable");
    group.sample_size(10);
    for payload in [16, 256, 4096] {
        for inflight in [1, 64, 1024] {
            let mut load = Load::new(&leader, payload, inflight);
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(format!("{payload}B"), inflight), |b| {
                b.iter_custom(|iterations| {
                    let start = std::time::Instant::now();
                    let goal = load.done + iterations;
                    while load.done < goal {
                        load.turn();
                    }
                    start.elapsed()
                });
            });
            load.finish();
        }
    }
    group.finish();
    drop(leader);
    cluster.shutdown();
}

criterion_group!(benches, commit);
criterion_main!(benches);
