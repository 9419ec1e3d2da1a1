//! What a ring costs, beside the figures of whole clusters: one hop, by how the reader idles, by
//! burst, by writers.
//!
//! - `hop`: one writer sends a burst and waits until the reader has released it. Burst 1 is the
//!   latency of a hop and back (the writer sees the reader's counter); with `park_at_once` each
//!   burst has to wake the reader.
//! - `unicast`: one writer streams bursts to one reader and waits for nothing but room.
//! - `sequencer`: many writers stream to one reader, as proposals do to the consensus stage.
//! - `deep`: the same ring with many writers read from when full, by batch limit: the reader looks
//!   over all that is there each time, so small batches of a deep ring cost more.
//!
//! Each reader adds up what it gets, and the sum is compared: a figure of a ring that loses slots
//! is none. Threads are not pinned; say how many cores there were beside every figure.

use std::hint::black_box;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringbuf::{Backoff, Gauge, Idle, ManySender, Receiver, Rest, Sender, Sleeper, Waker};

const CAPACITY: usize = 1024;
const BURSTS: [u64; 3] = [1, 16, 256];
/// The slot that ends a reader.
const END: u64 = u64::MAX;

const IDLES: [(&str, Idle); 4] = [
    ("spin", Idle::Spin),
    ("yield", Idle::Yield),
    (
        "park_after_50us",
        Idle::Park {
            grace: Duration::from_micros(50),
        },
    ),
    (
        "park_at_once",
        Idle::Park {
            grace: Duration::ZERO,
        },
    ),
];

/// Reads until [`END`] and returns the sum of what came before.
fn read(mut receiver: Receiver<u64>, sleeper: Sleeper, idle: Idle) -> u64 {
    let mut backoff = Backoff::new(idle);
    let (mut sum, mut ended) = (0_u64, false);
    while !ended {
        let taken = receiver.drain(256, |value| match *value {
            END => ended = true,
            value => sum = sum.wrapping_add(value),
        });
        if taken > 0 {
            backoff.worked();
        } else if backoff.rest() == Rest::Sleep {
            sleeper.park(|| !receiver.is_empty(), None);
        }
    }
    sum
}

/// One writer, its reader's thread, and what the reader is to come to.
struct Unicast {
    sender: Sender<u64>,
    gauge: Gauge,
    reader: JoinHandle<u64>,
    sent: u64,
    sum: u64,
}

impl Unicast {
    fn start(idle: Idle) -> Self {
        let sleeper = Sleeper::parking();
        // Writer: the bench's thread. Reader: its own. Full: the writer yields.
        let (sender, receiver) = ringbuf::ring("bench", CAPACITY, || 0, sleeper.waker());
        let gauge = sender.gauge();
        let reader = thread::spawn(move || read(receiver, sleeper, idle));
        Self {
            sender,
            gauge,
            reader,
            sent: 0,
            sum: 0,
        }
    }

    fn send(&mut self, value: u64) {
        while self.sender.try_send(|slot| *slot = value).is_err() {
            thread::yield_now();
        }
        self.sent += 1;
    }

    fn send_burst(&mut self, burst: u64) {
        for _ in 0..burst {
            let value = black_box(self.sent);
            self.sum = self.sum.wrapping_add(value);
            self.send(value);
        }
    }

    fn wait_until_released(&self, idle: Idle) {
        while self.gauge.received() < self.sent {
            match idle {
                Idle::Spin => std::hint::spin_loop(),
                _ => thread::yield_now(),
            }
        }
    }

    fn finish(mut self) {
        self.send(END);
        let sum = self.reader.join().expect("the reader ends");
        assert_eq!(sum, self.sum, "the reader got something else than was sent");
    }
}

fn hop(c: &mut Criterion) {
    let mut group = c.benchmark_group("hop");
    for (name, idle) in IDLES {
        for burst in BURSTS {
            let mut ring = Unicast::start(idle);
            group.throughput(Throughput::Elements(burst));
            group.bench_function(BenchmarkId::new(name, burst), |b| {
                b.iter(|| {
                    ring.send_burst(burst);
                    ring.wait_until_released(idle);
                });
            });
            ring.finish();
        }
    }
    group.finish();
}

fn unicast(c: &mut Criterion) {
    let mut group = c.benchmark_group("unicast");
    for (name, idle) in IDLES {
        for burst in BURSTS {
            let mut ring = Unicast::start(idle);
            group.throughput(Throughput::Elements(burst));
            group.bench_function(BenchmarkId::new(name, burst), |b| {
                b.iter_custom(|iterations| {
                    let start = Instant::now();
                    for _ in 0..iterations {
                        ring.send_burst(burst);
                    }
                    ring.wait_until_released(idle);
                    start.elapsed()
                });
            });
            ring.finish();
        }
    }
    group.finish();
}

/// Sends `count` ones.
fn stream(sender: &ManySender<u64>, count: u64) {
    for _ in 0..count {
        while sender.try_send(|slot| *slot = black_box(1)).is_err() {
            thread::yield_now();
        }
    }
}

fn sequencer(c: &mut Criterion) {
    let mut group = c.benchmark_group("sequencer");
    group.throughput(Throughput::Elements(1));
    for (name, idle) in IDLES {
        for writers in [1, 2, 4] {
            let sleeper = Sleeper::parking();
            // Writers: as many threads as the bench says. Reader: its own. Full: a writer yields.
            let (sender, receiver) = ringbuf::ring_many("bench", CAPACITY, || 0, sleeper.waker());
            let reader = thread::spawn(move || read(receiver, sleeper, idle));
            let gauge = sender.gauge();
            group.bench_function(BenchmarkId::new(name, writers), |b| {
                b.iter_custom(|iterations| {
                    let start = Instant::now();
                    thread::scope(|scope| {
                        for writer in 0..writers {
                            let sender = &sender;
                            let share =
                                iterations / writers + u64::from(writer < iterations % writers);
                            scope.spawn(move || stream(sender, share));
                        }
                    });
                    while gauge.depth() > 0 {
                        thread::yield_now();
                    }
                    start.elapsed()
                });
            });
            let sent = gauge.sent();
            while sender.try_send(|slot| *slot = END).is_err() {
                thread::yield_now();
            }
            assert_eq!(
                reader.join().expect("the reader ends"),
                sent,
                "slots were lost"
            );
        }
    }
    group.finish();
}

fn deep(c: &mut Criterion) {
    let mut group = c.benchmark_group("deep");
    const DEPTH: usize = 16 << 10;
    group.throughput(Throughput::Elements(DEPTH as u64));
    for limit in [16, 256, DEPTH] {
        // Writer and reader: the bench's thread, which fills the ring and empties it.
        let (sender, mut receiver) = ringbuf::ring_many("bench", DEPTH, || 0_u64, Waker::none());
        group.bench_function(BenchmarkId::new("drain", limit), |b| {
            b.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for _ in 0..iterations {
                    stream(&sender, DEPTH as u64);
                    let start = Instant::now();
                    let mut sum = 0;
                    while receiver.drain(limit, |value| sum += value) > 0 {}
                    took += start.elapsed();
                    assert_eq!(sum, DEPTH as u64, "slots were lost");
                }
                took
            });
        });
    }
    group.finish();
}

fn few_samples() -> Criterion {
    let (warm_up, measure) = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default()
        .sample_size(20)
        .warm_up_time(warm_up)
        .measurement_time(measure)
}

criterion_group! {
    name = benches;
    config = few_samples();
    targets = hop, unicast, sequencer, deep
}
criterion_main!(benches);
