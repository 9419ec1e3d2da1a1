//! Rings side by side: one writer streams `u64`s in bursts to one reader; both spin.
//!
//! Every reader adds up what it gets, and the sum is compared: a figure of a ring that loses slots is
//! none. Threads are not pinned. A burst is published at once where the ring knows how to.

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use disruptor::Producer as _;

/// As in the project's own benchmark of its ring.
const CAPACITY: usize = 1024;
/// How many slots are sent between two looks at the clock.
const STRIDE: u64 = 1 << 14;
/// The slot that ends a reader of our ring, which has no closing of its own.
const END: u64 = u64::MAX;

#[derive(Parser)]
#[command(about = "Streams numbers through a ring for a time; one JSON object with slots a second")]
struct Args {
    #[arg(long, value_enum)]
    ring: Ring,
    /// Slots that are written at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=CAPACITY as u64))]
    burst: u64,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Ring {
    Ringbuf,
    Disruptor,
    Crossbeam,
    Rtrb,
}

/// The writer's end of a ring whose reader runs.
trait Writer {
    /// Writes the numbers from `first` on, as many as the burst has; spins while there is no room.
    fn send(&mut self, first: u64, burst: u64);
    /// Waits until all is read; what the reader added up.
    fn finish(self) -> u64;
}

fn main() {
    let args = Args::parse();
    let time = Duration::from_secs(args.seconds);
    let burst = args.burst;
    let (version, ops_per_s) = match args.ring {
        Ring::Ringbuf => ("this tree", measure(Ours::start, burst, time)),
        Ring::Disruptor => ("4.4.0", measure(Disruptor::start, burst, time)),
        Ring::Crossbeam => ("0.5.17", measure(Crossbeam::start, burst, time)),
        Ring::Rtrb => ("0.4.1", measure(Rtrb::start, burst, time)),
    };
    println!(
        "{}",
        serde_json::json!({ "ops_per_s": ops_per_s.round(), "version": version })
    );
}

fn measure<W: Writer>(start: fn() -> W, burst: u64, time: Duration) -> f64 {
    // The first run warms caches and clocks.
    stream(start(), burst, Duration::from_millis(500));
    stream(start(), burst, time)
}

/// Slots a second, from the first that is written to the last that is read.
fn stream<W: Writer>(mut writer: W, burst: u64, time: Duration) -> f64 {
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        let stop = sent + STRIDE;
        while sent < stop {
            writer.send(black_box(sent), burst);
            sent += burst;
        }
    }
    let sum = writer.finish();
    let seconds = start.elapsed().as_secs_f64();
    // 0 + 1 + ... + (sent - 1), in the arithmetic of the readers.
    let expected = (u128::from(sent) * u128::from(sent - 1) / 2) as u64;
    assert_eq!(sum, expected, "the reader got something else than was sent");
    sent as f64 / seconds
}

struct Ours {
    sender: ringbuf::Sender<u64>,
    reader: JoinHandle<u64>,
}

impl Ours {
    fn start() -> Self {
        // Writer: the main thread. Reader: its own. Full: the writer spins. Nobody sleeps.
        let (sender, mut receiver) = ringbuf::ring("peers", CAPACITY, || 0, ringbuf::Waker::none());
        let reader = thread::spawn(move || {
            let (mut sum, mut ended) = (0_u64, false);
            while !ended {
                let taken = receiver.drain(256, |value| match *value {
                    END => ended = true,
                    value => sum = sum.wrapping_add(value),
                });
                if taken == 0 {
                    spin_loop();
                }
            }
            sum
        });
        Self { sender, reader }
    }

    fn put(&mut self, value: u64) {
        while self.sender.try_send(|slot| *slot = value).is_err() {
            spin_loop();
        }
    }
}

impl Writer for Ours {
    fn send(&mut self, first: u64, burst: u64) {
        for value in first..first + burst {
            self.put(value);
        }
    }

    fn finish(mut self) -> u64 {
        self.put(END);
        self.reader.join().expect("the reader ends")
    }
}

struct Disruptor {
    producer: disruptor::SingleProducer<u64, disruptor::SingleConsumerBarrier>,
    sum: Arc<AtomicU64>,
}

impl Disruptor {
    fn start() -> Self {
        let sum = Arc::new(AtomicU64::new(0));
        let (total, mut so_far) = (Arc::clone(&sum), 0_u64);
        let producer = disruptor::build_single_producer(CAPACITY, || 0_u64, disruptor::BusySpin)
            .handle_events_with(move |value: &u64, _, end_of_batch| {
                so_far = so_far.wrapping_add(*value);
                if end_of_batch {
                    total.store(so_far, Ordering::Release);
                }
            })
            .build();
        Self { producer, sum }
    }
}

impl Writer for Disruptor {
    fn send(&mut self, first: u64, burst: u64) {
        if burst == 1 {
            self.producer.publish(|slot| *slot = first);
            return;
        }
        self.producer.batch_publish(burst as usize, |slots| {
            for (slot, value) in slots.zip(first..) {
                *slot = value;
            }
        });
    }

    fn finish(self) -> u64 {
        // It waits until the reader has seen all, and ends it.
        drop(self.producer);
        self.sum.load(Ordering::Acquire)
    }
}

struct Crossbeam {
    sender: crossbeam_channel::Sender<u64>,
    reader: JoinHandle<u64>,
}

impl Crossbeam {
    fn start() -> Self {
        let (sender, receiver) = crossbeam_channel::bounded::<u64>(CAPACITY);
        let reader = thread::spawn(move || {
            let mut sum = 0_u64;
            loop {
                match receiver.try_recv() {
                    Ok(value) => sum = sum.wrapping_add(value),
                    Err(crossbeam_channel::TryRecvError::Empty) => spin_loop(),
                    Err(crossbeam_channel::TryRecvError::Disconnected) => return sum,
                }
            }
        });
        Self { sender, reader }
    }
}

impl Writer for Crossbeam {
    fn send(&mut self, first: u64, burst: u64) {
        for value in first..first + burst {
            while self.sender.try_send(value).is_err() {
                spin_loop();
            }
        }
    }

    fn finish(self) -> u64 {
        drop(self.sender);
        self.reader.join().expect("the reader ends")
    }
}

struct Rtrb {
    producer: rtrb::Producer<u64>,
    reader: JoinHandle<u64>,
}

impl Rtrb {
    fn start() -> Self {
        let (producer, mut consumer) = rtrb::RingBuffer::<u64>::new(CAPACITY);
        let reader = thread::spawn(move || {
            let mut sum = 0_u64;
            loop {
                // Looked at first: what was written before the end is still there after it.
                let ended = consumer.is_abandoned();
                let slots = consumer.slots();
                if slots == 0 {
                    if ended {
                        return sum;
                    }
                    spin_loop();
                    continue;
                }
                let chunk = consumer.read_chunk(slots).expect("they are there");
                sum = chunk.into_iter().fold(sum, u64::wrapping_add);
            }
        });
        Self { producer, reader }
    }
}

impl Writer for Rtrb {
    fn send(&mut self, first: u64, burst: u64) {
        if burst == 1 {
            while self.producer.push(first).is_err() {
                spin_loop();
            }
            return;
        }
        loop {
            match self.producer.write_chunk_uninit(burst as usize) {
                Ok(chunk) => {
                    chunk.fill_from_iter(first..first + burst);
                    return;
                }
                Err(_) => spin_loop(),
            }
        }
    }

    fn finish(self) -> u64 {
        drop(self.producer);
        self.reader.join().expect("the reader ends")
    }
}
