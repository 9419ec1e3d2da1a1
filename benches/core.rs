//! The pure core: what one batch costs from proposal to commit, without a disk, a network or a ring.
//!
//! Topology: a leader and two followers as cores in one thread; every message is delivered at once and every write is
//! durable at once. One iteration proposes a batch, carries everything out, and checks that it was committed.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringraft::bench::Trio;

fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("core_3");
    for batch in [1u64, 64, 1024] {
        let mut trio = Trio::with_leader();
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("batch_{batch}"), |b| {
            b.iter(|| {
                let last = trio.propose(batch);
                assert_eq!(trio.committed(), last);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
