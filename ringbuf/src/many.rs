//! The ring with many writers and one reader: the way into the pipeline, from any thread.
//!
//! A writer claims the next slot, fills it and publishes it; the reader takes slots in the order of
//! the claims, so a writer that is preempted while it fills holds up those behind it. Hence `fill`
//! only copies.
//!
//! The crate's own handle needs `&mut`, and cloning it takes a lock and allocates. So a fixed set
//! of handles, the stripes, is made at the start, and whoever sends borrows one that is free.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;

use crossbeam_utils::CachePadded;
use disruptor::{BusySpin, MultiProducer, Producer, SingleConsumerBarrier, build_multi_producer};

use crate::gauge::{Counters, Gauge, Lane};
use crate::idle::Waker;
use crate::receiver::{Poller, Receiver, Slot};
use crate::ring::Full;

/// The fewest slots a ring with many writers can have.
pub const MIN_MANY_CAPACITY: usize = 64;

/// How many threads can send at the very same moment without one of them having to yield.
const STRIPES: usize = 16;

/// Makes a ring of `capacity` slots with any number of writers and one reader; else as
/// [`ring`](crate::ring()).
///
/// The reader looks over everything that is published each time it drains the ring or asks whether
/// it is empty, at about a nanosecond a slot. So a deep ring should be drained with a limit of
/// hundreds.
///
/// # Panics
/// When `capacity` is not a power of two, or less than [`MIN_MANY_CAPACITY`].
pub fn ring_many<T: Send + Sync + 'static>(
    name: &'static str,
    capacity: usize,
    mut slot: impl FnMut() -> T,
    reader: Waker,
) -> (ManySender<T>, Receiver<T>) {
    assert!(
        capacity.is_power_of_two() && capacity >= MIN_MANY_CAPACITY,
        "ring {name:?}: the capacity must be a power of two and at least {MIN_MANY_CAPACITY}, got {capacity}"
    );
    let counters = Counters::new(name, capacity, STRIPES);
    let slot = move || Slot {
        value: slot(),
        skip: false,
    };
    // The wait strategy is of no consequence: nothing here waits inside the crate.
    let (poller, builder) = build_multi_producer(capacity, slot, BusySpin).new_event_poller();
    let receiver = Receiver::new(Poller::Many(poller), Arc::clone(&counters));
    let producer = builder.build();
    let stripes = (0..STRIPES)
        .map(|_| CachePadded::new(Mutex::new(producer.clone())))
        .collect();
    (
        ManySender {
            shared: Arc::new(Shared {
                stripes,
                counters,
                reader,
            }),
        },
        receiver,
    )
}

type Stripe<T> = Mutex<MultiProducer<Slot<T>, SingleConsumerBarrier>>;

struct Shared<T> {
    /// A stripe is only ever tried, never waited for: the mutex is the busy flag of a handle that
    /// wants `&mut`.
    stripes: Box<[CachePadded<Stripe<T>>]>,
    counters: Arc<Counters>,
    reader: Waker,
}

/// A writer of a ring that has many; clone it or share it by reference, both as you like. When the
/// last is dropped the reader still gets what was sent.
pub struct ManySender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for ManySender<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T: Send + Sync + 'static> ManySender<T> {
    /// Fills the next slot, sends it, and wakes the reader if it sleeps. What one thread sends
    /// arrives in that order.
    ///
    /// `fill` should only copy: until it returns, the reader gets nothing that others claim after
    /// it. It must not send on the same ring. The slot holds whatever it was last filled with, or
    /// the value it was made with.
    ///
    /// A panic in `fill` comes through to the caller. The slot, which is claimed by then, goes out
    /// marked, and the reader passes over it: no hole is left that would stop the ring. (It counts
    /// as sent and as received.)
    ///
    /// Takes no lock and waits for no other writer, but that when as many threads as there are
    /// stripes (16) are inside this function at the same moment, the next one yields until one of
    /// them is through.
    ///
    /// # Errors
    /// [`Full`] when no slot is free, also when the reader was dropped and the ring has filled up.
    /// `fill` is not called then.
    pub fn try_send(&self, fill: impl FnOnce(&mut T)) -> Result<(), Full> {
        let shared = &*self.shared;
        let (mut producer, lane) = shared.free_stripe();
        let mut outcome = Ok(());
        let published = producer.try_publish(|slot| {
            outcome = catch_unwind(AssertUnwindSafe(|| fill(&mut slot.value)));
            slot.skip = outcome.is_err();
        });
        match published {
            Ok(_) => lane.count_sent(),
            Err(_) => lane.count_full(),
        }
        drop(producer);
        if published.is_err() {
            return Err(Full::of(&shared.counters));
        }
        shared.reader.wake();
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        Ok(())
    }

    /// The counters of the ring.
    pub fn gauge(&self) -> Gauge {
        Gauge::new(&self.shared.counters)
    }
}

impl<T> Shared<T> {
    /// The stripe of this thread, or the next one that is free.
    fn free_stripe(
        &self,
    ) -> (
        MutexGuard<'_, MultiProducer<Slot<T>, SingleConsumerBarrier>>,
        &Lane,
    ) {
        let own = own_stripe();
        loop {
            for at in (own..own + STRIPES).map(|at| at % STRIPES) {
                let producer = match self.stripes[at].try_lock() {
                    Ok(producer) => producer,
                    // No panic passes a handle half used: the one in `fill` is caught before it
                    // gets there.
                    Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                    Err(TryLockError::WouldBlock) => continue,
                };
                return (producer, &self.counters.lanes[at]);
            }
            thread::yield_now();
        }
    }
}

/// Threads get stripes in turn, so that as many as there are stripes do not meet.
fn own_stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    const NONE: usize = usize::MAX;
    thread_local!(static OWN: Cell<usize> = const { Cell::new(NONE) });
    OWN.with(|own| {
        if own.get() == NONE {
            own.set(NEXT.fetch_add(1, Relaxed) % STRIPES);
        }
        own.get()
    })
}

impl<T> fmt::Debug for ManySender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManySender of {:?}", self.shared.counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_whose_stripe_is_busy_takes_another() {
        let (sender, mut receiver) = ring_many("busy", 64, || 0, Waker::none());
        let own = sender.shared.stripes[own_stripe()].try_lock().unwrap();
        sender.try_send(|slot| *slot = 1).unwrap();
        drop(own);
        sender.try_send(|slot| *slot = 2).unwrap();
        let mut got = Vec::new();
        receiver.drain(8, |value| got.push(*value));
        assert_eq!(got, [1, 2], "in the order sent, whichever the stripe");
        assert_eq!(sender.gauge().sent(), 2);
    }

    #[test]
    fn a_thread_that_finds_all_stripes_busy_goes_on_when_one_is_free() {
        let (sender, mut receiver) = ring_many("busy", 64, || 0, Waker::none());
        let mut taken: Vec<_> = sender
            .shared
            .stripes
            .iter()
            .map(|stripe| stripe.try_lock().unwrap())
            .collect();
        thread::scope(|scope| {
            let sending = scope.spawn(|| sender.try_send(|slot| *slot = 1));
            assert_eq!(receiver.drain(8, |_| ()), 0);
            drop(taken.swap_remove(STRIPES / 2));
            sending.join().unwrap().unwrap();
        });
        assert_eq!(receiver.drain(8, |value| assert_eq!(*value, 1)), 1);
    }

    /// A writer that is inside its closure holds up what is claimed after it, and what was claimed
    /// before goes out.
    #[test]
    fn slots_come_in_the_order_of_their_claims() {
        let (sender, mut receiver) = ring_many("claims", 64, || 0, Waker::none());
        let mut got = Vec::new();
        sender.try_send(|slot| *slot = 1).unwrap();
        sender
            .try_send(|slot| {
                thread::scope(|scope| {
                    scope.spawn(|| sender.try_send(|slot| *slot = 3).unwrap());
                });
                receiver.drain(8, |value| got.push(*value));
                assert_eq!(got, [1]);
                *slot = 2;
            })
            .unwrap();
        receiver.drain(8, |value| got.push(*value));
        assert_eq!(got, [1, 2, 3]);
    }

    #[test]
    fn the_reader_outlives_the_writers_and_gets_the_rest() {
        let (sender, mut receiver) = ring_many("rest", 64, || 0, Waker::none());
        let other = sender.clone();
        sender.try_send(|slot| *slot = 1).unwrap();
        drop(sender);
        other.try_send(|slot| *slot = 2).unwrap();
        drop(other);
        let mut got = Vec::new();
        assert_eq!(receiver.drain(8, |value| got.push(*value)), 2);
        assert_eq!(got, [1, 2]);
        assert_eq!(receiver.drain(8, |_| ()), 0);
    }

    #[test]
    #[should_panic(expected = "a power of two and at least 64, got 32")]
    fn a_capacity_has_a_least() {
        ring_many("small", 32, || 0, Waker::none());
    }
}
