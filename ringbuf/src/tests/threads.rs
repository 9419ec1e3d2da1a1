//! Real threads that park, through small rings: everything arrives, once, whole, and in its order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Backoff, Idle, ManySender, Receiver, Rest, Sleeper, Take, Waker, ring, ring_many};

/// Far longer than any other thread is kept from running.
const LOST: Duration = Duration::from_secs(60);

/// Parks until woken; a wake-up that is lost fails the test instead of hanging it.
fn park(sleeper: &Sleeper, has_work: impl FnOnce() -> bool) {
    let start = Instant::now();
    sleeper.park(has_work, Some(LOST));
    assert!(start.elapsed() < LOST, "a wake-up was lost");
}

/// A slot large enough to be seen half written.
type Wide = [u64; 8];

fn wide(writer: u64, number: u64) -> Wide {
    let mut slot = [number; 8];
    slot[0] = writer;
    slot
}

/// Reads until `count` slots came, parking as `idle` says, and checks each writer's order. Stops
/// now and then.
fn read_in_order(
    mut receiver: Receiver<Wide>,
    sleeper: Sleeper,
    idle: Idle,
    writers: usize,
    count: u64,
) {
    let mut backoff = Backoff::new(idle);
    let mut next = vec![0; writers];
    let mut left = count;
    let mut turn = 0;
    while left > 0 {
        turn += 1;
        let (stop_at, mut shown) = (turn % 7, 0);
        let taken = receiver.drain_while(1 + turn % 13, |slot| {
            shown += 1;
            if shown == stop_at {
                return Take::Stop;
            }
            let next = &mut next[slot[0] as usize];
            assert_eq!(*slot, wide(slot[0], *next));
            *next += 1;
            Take::Taken
        });
        left -= taken as u64;
        if taken > 0 {
            backoff.worked();
        } else if backoff.rest() == Rest::Sleep {
            park(&sleeper, || !receiver.is_empty());
        }
    }
    assert!(receiver.is_empty());
    assert_eq!(receiver.gauge().received(), count);
}

#[test]
fn one_writer_and_its_reader_both_park() {
    const COUNT: u64 = 40_000;
    for capacity in [1, 2, 64] {
        let (reading, writing) = (Sleeper::parking(), Sleeper::parking());
        let (mut sender, mut receiver) = ring("threads", capacity, || [0; 8], reading.waker());
        receiver.wake_on_release(writing.waker());
        let idle = Idle::Park {
            grace: Duration::ZERO,
        };
        thread::scope(|scope| {
            scope.spawn(move || read_in_order(receiver, reading, idle, 1, COUNT));
            scope.spawn(move || {
                for number in 0..COUNT {
                    while !sender.has_room(1) {
                        park(&writing, || sender.room() > 0);
                    }
                    sender
                        .try_send(|slot| *slot = wide(0, number))
                        .expect("there is room");
                }
            });
        });
    }
}

fn write_all(sender: &ManySender<Wide>, writer: u64, count: u64) {
    for number in 0..count {
        while sender
            .try_send(|slot| *slot = wide(writer, number))
            .is_err()
        {
            thread::yield_now();
        }
    }
}

fn many_writers_arrive(writers: usize, each: u64, grace: Duration) {
    let reading = Sleeper::parking();
    let (sender, receiver) = ring_many("threads", 64, || [0; 8], reading.waker());
    let gauge = sender.gauge();
    let count = writers as u64 * each;
    thread::scope(|scope| {
        let idle = Idle::Park { grace };
        scope.spawn(move || read_in_order(receiver, reading, idle, writers, count));
        for writer in 0..writers as u64 {
            // Half of them by reference, half with a handle of their own.
            let (shared, own) = (&sender, sender.clone());
            scope.spawn(move || {
                if writer % 2 == 0 {
                    write_all(shared, writer, each);
                } else {
                    write_all(&own, writer, each);
                }
            });
        }
    });
    assert_eq!((gauge.sent(), gauge.depth()), (count, 0));
}

#[test]
fn four_writers_to_a_reader_that_parks_at_once() {
    many_writers_arrive(4, 10_000, Duration::ZERO);
}

#[test]
fn four_writers_to_a_reader_that_looks_a_little_longer() {
    many_writers_arrive(4, 10_000, Duration::from_micros(50));
}

#[test]
fn more_writers_than_there_are_handles() {
    many_writers_arrive(40, 500, Duration::ZERO);
}

/// One message at a time around a circle of threads: each hop is a wake-up, and none may be
/// missing.
#[test]
fn a_message_goes_round_threads_that_all_sleep() {
    const THREADS: usize = 3;
    const ROUNDS: u64 = 3_000;
    let sleepers = [(); THREADS].map(|()| Sleeper::parking());
    let mut wakers: Vec<Waker> = sleepers.iter().map(Sleeper::waker).collect();
    let (mut senders, mut receivers): (Vec<_>, Vec<_>) = wakers
        .drain(..)
        .map(|waker| ring("circle", 1, || 0_u64, waker))
        .unzip();
    // Thread `n` reads ring `n` and writes the next one.
    senders.rotate_left(1);
    senders[THREADS - 1].try_send(|hops| *hops = 0).unwrap();
    let hops_made = AtomicU64::new(0);
    thread::scope(|scope| {
        for (sleeper, (mut sender, mut receiver)) in sleepers
            .into_iter()
            .zip(senders.drain(..).zip(receivers.drain(..)))
        {
            let hops_made = &hops_made;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let mut hops = None;
                    while receiver.drain(1, |value| hops = Some(*value)) == 0 {
                        park(&sleeper, || !receiver.is_empty());
                    }
                    let hops = hops.expect("one was taken");
                    hops_made.store(hops + 1, Ordering::Relaxed);
                    sender
                        .try_send(|value| *value = hops + 1)
                        .expect("one message, one slot");
                }
            });
        }
    });
    assert_eq!(hops_made.into_inner(), ROUNDS * THREADS as u64);
}
