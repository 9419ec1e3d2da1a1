//! Rings and wake-ups under real threads, for ThreadSanitizer, which reports accesses that nothing
//! orders. It does not get on with the test harness, so this is a program:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
//!     cargo run --release --package ringraft-ringbuf --example race --target x86_64-unknown-linux-gnu
//! ```
//!
//! A report ends it with an error. A run sees only what its threads happened to do: run it several
//! times. Orders of memory that the machine does not show are for loom (`src/tests/loom.rs`).

use std::thread;
use std::time::Duration;

use ringbuf::{Backoff, Idle, Receiver, Rest, Sleeper, Take, ring, ring_many};

/// Messages of each writer.
const MESSAGES: u64 = 20_000;
const WRITERS: u64 = 3;

/// A slot: what a batch is, in small. All of it is written by each message.
type Slot = Vec<u64>;

fn fill(slot: &mut Slot, writer: u64, number: u64) {
    slot.clear();
    slot.extend([writer, number, writer ^ number]);
    slot.extend(std::iter::repeat_n(number, (number % 5) as usize));
}

/// Reads until every writer's last message is there; each writer's come in order and whole.
fn read(mut receiver: Receiver<Slot>, sleeper: &Sleeper, writers: u64) {
    let idle = Idle::Park {
        grace: Duration::from_micros(5),
    };
    let mut backoff = Backoff::new(idle);
    let (mut next, mut left) = (vec![0; writers as usize], writers * MESSAGES);
    while left > 0 {
        let (limit, mut room) = (1 + left as usize % 7, 1 + left % 3);
        let taken = receiver.drain_while(limit, |slot| {
            if room == 0 {
                return Take::Stop;
            }
            room -= 1;
            let (writer, number) = (slot[0], slot[1]);
            assert_eq!(slot[2], writer ^ number);
            assert!(slot[3..].iter().all(|&n| n == number));
            assert_eq!(number, next[writer as usize], "of writer {writer}");
            next[writer as usize] += 1;
            Take::Taken
        });
        left -= taken as u64;
        if taken > 0 {
            backoff.worked();
        } else if backoff.rest() == Rest::Sleep {
            sleeper.park(|| !receiver.is_empty(), None);
        }
    }
}

fn one_writer(capacity: usize) {
    let sleeper = Sleeper::parking();
    let (mut sender, receiver) = ring("one", capacity, Vec::new, sleeper.waker());
    let gauge = sender.gauge();
    let reader = thread::spawn(move || read(receiver, &sleeper, 1));
    for number in 0..MESSAGES {
        while sender.try_send(|slot| fill(slot, 0, number)).is_err() {
            thread::yield_now();
        }
        if number % 64 == 0 {
            assert!(gauge.depth() <= capacity);
        }
    }
    reader.join().expect("the reader");
}

fn many_writers(capacity: usize) {
    let sleeper = Sleeper::parking();
    let (sender, receiver) = ring_many("many", capacity, Vec::new, sleeper.waker());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let sender = sender.clone();
            thread::spawn(move || {
                for number in 0..MESSAGES {
                    while sender.try_send(|slot| fill(slot, writer, number)).is_err() {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    read(receiver, &sleeper, WRITERS);
    for writer in writers {
        writer.join().expect("a writer");
    }
}

fn main() {
    for capacity in [1, 2, 8, 64] {
        one_writer(capacity);
        println!("one writer, {capacity} slots: {MESSAGES} messages");
    }
    for capacity in [64, 256] {
        many_writers(capacity);
        println!("{WRITERS} writers, {capacity} slots: {MESSAGES} messages each");
    }
}
