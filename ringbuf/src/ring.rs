//! The ring with one writer and one reader: the way between two stages.
//!
//! What holds: `received <= sent <= received + capacity`; the slots `received .. sent` are the
//! reader's, the others the writer's.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use disruptor::{BusySpin, Producer, SingleConsumerBarrier, SingleProducer, build_single_producer};

use crate::gauge::{Counters, Gauge};
use crate::idle::Waker;
use crate::receiver::{Poller, Receiver};

/// Makes a ring of `capacity` slots with one writer and one reader. `slot` is called once for each
/// slot, now; `reader` wakes the reader's thread after each send. `name` is for messages and
/// gauges.
///
/// # Panics
/// When `capacity` is not a power of two.
pub fn ring<T: Send + Sync + 'static>(
    name: &'static str,
    capacity: usize,
    slot: impl FnMut() -> T,
    reader: Waker,
) -> (Sender<T>, Receiver<T>) {
    assert!(
        capacity.is_power_of_two(),
        "ring {name:?}: the capacity must be a power of two, got {capacity}"
    );
    let counters = Counters::new(name, capacity, 1);
    // The wait strategy is of no consequence: nothing here waits inside the crate.
    let (poller, builder) = build_single_producer(capacity, slot, BusySpin).new_event_poller();
    let receiver = Receiver::new(Poller::One(poller), Arc::clone(&counters));
    let sender = Sender {
        producer: builder.build(),
        counters,
        sent: 0,
        received: 0,
        reader,
    };
    (sender, receiver)
}

/// The ring has no free slot; nothing was sent.
///
/// The reader is behind. An edge tells its caller so; a stage stops taking input until there is
/// room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The name of the ring.
    pub ring: &'static str,
    /// How many slots it has.
    pub capacity: usize,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring {:?} is full: its reader is {} slots behind",
            self.ring, self.capacity
        )
    }
}

impl Error for Full {}

impl Full {
    pub(crate) fn of(counters: &Counters) -> Self {
        Self {
            ring: counters.name,
            capacity: counters.capacity,
        }
    }
}

/// The one writer of a ring. When it is dropped the reader still gets what was sent.
pub struct Sender<T> {
    producer: SingleProducer<T, SingleConsumerBarrier>,
    counters: Arc<Counters>,
    /// Slots sent so far.
    sent: u64,
    /// Slots released by the reader, as far as this side has looked. Invariant: never ahead of the
    /// reader.
    received: u64,
    reader: Waker,
}

impl<T: Send + Sync + 'static> Sender<T> {
    /// Fills the next slot, sends it, and wakes the reader if it sleeps. Never blocks.
    ///
    /// The slot holds whatever it was last filled with, or the value it was made with: that is how
    /// buffers are used again. A panic in `fill` comes through to the caller; the slot is not sent,
    /// and the next `try_send` fills it.
    ///
    /// # Errors
    /// [`Full`] when no slot is free, also when the reader was dropped and the ring has filled up.
    /// `fill` is not called then.
    #[inline]
    pub fn try_send(&mut self, fill: impl FnOnce(&mut T)) -> Result<(), Full> {
        if self.producer.try_publish(fill).is_err() {
            self.counters.lanes[0].count_full();
            return Err(Full::of(&self.counters));
        }
        self.sent += 1;
        self.counters.lanes[0].count_sent();
        self.reader.wake();
        Ok(())
    }

    /// How many slots are certainly free: that many `try_send`s will succeed. Looks at the reader's
    /// counter; see [`Sender::has_room`] for what is cheaper.
    pub fn room(&mut self) -> usize {
        self.received = self.counters.received();
        let depth = self.sent - self.received;
        let capacity = self.counters.capacity;
        assert!(
            depth <= capacity as u64,
            "{depth} slots are sent of the {capacity} there are"
        );
        capacity - depth as usize
    }

    /// Whether `count` slots are certainly free. Looks at the reader's counter only when what it
    /// saw there last does not suffice.
    #[inline]
    pub fn has_room(&mut self, count: usize) -> bool {
        self.known_room() >= count || self.room() >= count
    }

    /// As far as the last look tells. `try_send` does not look here, so more may have been sent since than there was
    /// room for by that look.
    fn known_room(&self) -> usize {
        let depth = usize::try_from(self.sent - self.received).unwrap_or(usize::MAX);
        self.counters.capacity.saturating_sub(depth)
    }

    /// The counters of the ring.
    pub fn gauge(&self) -> Gauge {
        Gauge::new(&self.counters)
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender of {:?}", self.counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_says_which_it_is() {
        let (mut sender, receiver) = ring("entry", 2, || 0, Waker::none());
        for value in 0..2 {
            sender.try_send(|slot| *slot = value).unwrap();
        }
        let full = sender
            .try_send(|_| panic!("there is nothing to fill"))
            .unwrap_err();
        assert_eq!(
            full,
            Full {
                ring: "entry",
                capacity: 2
            }
        );
        assert_eq!(
            full.to_string(),
            "ring \"entry\" is full: its reader is 2 slots behind"
        );
        assert_eq!(
            format!("{:?}", receiver.gauge()),
            "ring \"entry\" of 2 slots, 2 sent, 0 received, 1 times full"
        );
    }

    #[test]
    fn room_is_known_after_more_was_sent_than_the_last_look_had_found_free() {
        let (mut sender, mut receiver) = ring("burst", 4, || 0, Waker::none());
        assert!(sender.has_room(4));
        for round in 0..3 {
            sender.try_send(|slot| *slot = round).unwrap();
        }
        receiver.drain(3, |_| ());
        for round in 0..3 {
            sender.try_send(|slot| *slot = round).unwrap();
        }
        assert!(sender.has_room(1));
        assert!(!sender.has_room(2));
    }

    #[test]
    fn a_slot_keeps_its_buffer() {
        let (mut sender, mut receiver) =
            ring("buffers", 2, || Vec::with_capacity(64), Waker::none());
        let mut buffers = Vec::new();
        for round in 0..6_u8 {
            sender
                .try_send(|bytes: &mut Vec<u8>| {
                    bytes.clear();
                    bytes.extend([round; 64]);
                })
                .unwrap();
            receiver.drain(1, |bytes| {
                assert_eq!(**bytes, [round; 64]);
                buffers.push(bytes.as_ptr());
            });
        }
        assert_eq!(buffers[..2], buffers[2..4]);
        assert_eq!(buffers[..2], buffers[4..]);
    }

    #[test]
    fn the_reader_outlives_the_writer_and_gets_the_rest() {
        let (mut sender, mut receiver) = ring("rest", 4, || 0, Waker::none());
        sender.try_send(|slot| *slot = 1).unwrap();
        sender.try_send(|slot| *slot = 2).unwrap();
        drop(sender);
        let mut got = Vec::new();
        receiver.drain(1, |value| got.push(*value));
        receiver.drain_while(1, |_| crate::Take::Stop);
        receiver.drain(8, |value| got.push(*value));
        assert_eq!(got, [1, 2]);
        assert_eq!(receiver.drain(8, |_| ()), 0);
        assert!(receiver.is_empty());
    }

    #[test]
    fn a_writer_without_a_reader_finds_the_ring_full() {
        let (mut sender, receiver) = ring("alone", 4, || 0, Waker::none());
        drop(receiver);
        assert_eq!(
            (0..10).filter(|_| sender.try_send(|_| ()).is_ok()).count(),
            4
        );
    }

    #[test]
    fn slots_are_dropped_with_the_last_handle() {
        let kept = Arc::new(());
        let (mut sender, mut receiver) = ring("drop", 4, || Some(Arc::clone(&kept)), Waker::none());
        assert_eq!(Arc::strong_count(&kept), 5);
        sender.try_send(|_| ()).unwrap();
        sender.try_send(|_| ()).unwrap();
        // A batch that is left in part forgets a guard of the crate's; it must not keep the ring.
        receiver.drain_while(2, |_| crate::Take::Stop);
        drop(sender);
        drop(receiver);
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    #[should_panic(expected = "ring \"odd\": the capacity must be a power of two, got 6")]
    fn a_capacity_is_a_power_of_two() {
        ring("odd", 6, || 0, Waker::none());
    }
}
