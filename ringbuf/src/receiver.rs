//! The reading end: batches of bounded size, whose slots are freed at the end of the batch.
//!
//! How a batch is given back in part. The crate's guard over a batch frees all of it when it is
//! dropped, read or not. So the guard is kept from being dropped unless all was taken; a forgotten
//! guard frees nothing and holds nothing. What was taken is then freed by polling again for exactly
//! that many slots, and dropping that guard.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use disruptor::{EventGuard, EventPoller, MultiProducerBarrier, Polling, SingleProducerBarrier};

use crate::gauge::{Counters, Gauge};
use crate::idle::Waker;

/// What the reader says about the slot it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It is done with; on to the next.
    Taken,
    /// It is not taken, and the batch ends: the next one begins with it.
    Stop,
}

/// The one reader of a ring. When it is dropped, writers find the ring [`Full`](crate::Full) before
/// long.
pub struct Receiver<T> {
    poller: Poller<T>,
    progress: Progress,
}

/// The crate's readers, by the kind of ring.
pub(crate) enum Poller<T> {
    One(EventPoller<T, SingleProducerBarrier>),
    Many(EventPoller<Slot<T>, MultiProducerBarrier>),
}

impl<T: Send + Sync + 'static> Receiver<T> {
    pub(crate) fn new(poller: Poller<T>, counters: Arc<Counters>) -> Self {
        Self {
            poller,
            progress: Progress {
                counters,
                received: 0,
                writer: Waker::none(),
            },
        }
    }

    /// From now on `writer` is woken whenever slots were released, at the end of each batch: for a
    /// writer that sleeps while the ring has no room for it.
    pub fn wake_on_release(&mut self, writer: Waker) {
        self.progress.writer = writer;
    }

    /// Shows `each` up to `limit` slots, in the order in which they were sent, and then frees them
    /// all. Returns how many. Never blocks.
    ///
    /// When `each` panics, the slot it was shown counts as taken, as those before it do: what makes
    /// a reader panic does not come again. Those after it do.
    #[inline]
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&T)) -> usize {
        self.drain_while(limit, |slot| {
            each(slot);
            Take::Taken
        })
    }

    /// As [`Receiver::drain`], until `each` says [`Take::Stop`]: the slot it says that of is not
    /// taken and comes again. Returns how many were taken.
    pub fn drain_while(&mut self, limit: usize, mut each: impl FnMut(&T) -> Take) -> usize {
        let progress = &mut self.progress;
        let poller = match &mut self.poller {
            Poller::One(poller) => return progress.batch(poller, limit, each),
            Poller::Many(poller) => poller,
        };
        let mut taken = 0;
        loop {
            let mut skipped = 0;
            let mut stopped = false;
            let released = progress.batch(poller, limit - taken, |slot| {
                if slot.skip {
                    skipped += 1;
                    return Take::Taken;
                }
                let take = each(&slot.value);
                stopped = take == Take::Stop;
                take
            });
            taken += released - skipped;
            // Slots that were passed over do not count, so there may be more.
            if skipped == 0 || stopped || taken == limit {
                return taken;
            }
        }
    }

    /// True when nothing waits to be taken. Exact for this thread's own sends and what it was woken
    /// for; what others are sending right now may or may not be seen.
    pub fn is_empty(&self) -> bool {
        !match &self.poller {
            Poller::One(poller) => poller.has_available(),
            Poller::Many(poller) => poller.has_available(),
        }
    }

    /// The counters of the ring.
    pub fn gauge(&self) -> Gauge {
        Gauge::new(&self.progress.counters)
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver of {:?}", self.progress.counters)
    }
}

/// What the reader has released, and who is told.
struct Progress {
    counters: Arc<Counters>,
    received: u64,
    writer: Waker,
}

impl Progress {
    /// One batch: shows up to `limit` slots, frees those that were taken, and returns their number.
    #[inline]
    fn batch<P: Poll>(
        &mut self,
        poller: &mut P,
        limit: usize,
        each: impl FnMut(&P::Slot) -> Take,
    ) -> usize {
        if limit == 0 {
            return 0;
        }
        let mut batch = Batch {
            poller,
            progress: self,
            taken: 0,
            freed: false,
        };
        batch.show(limit, each);
        batch.taken
    }
}

/// A batch under way. Frees what was taken when it is dropped, so also when `each` panics.
struct Batch<'a, P: Poll> {
    poller: &'a mut P,
    progress: &'a mut Progress,
    /// The slots at the front that are done with, or whose handling has begun.
    taken: usize,
    /// They are the crate's again already.
    freed: bool,
}

impl<P: Poll> Batch<'_, P> {
    #[inline]
    fn show(&mut self, limit: usize, mut each: impl FnMut(&P::Slot) -> Take) {
        let Ok(guard) = self.poller.take(limit as u64) else {
            return;
        };
        let mut guard = ManuallyDrop::new(guard);
        let slots = &mut *guard;
        let available = slots.len();
        for slot in slots {
            self.taken += 1;
            if each(slot) == Take::Stop {
                self.taken -= 1;
                break;
            }
        }
        if self.taken == available {
            drop(ManuallyDrop::into_inner(guard));
            self.freed = true;
        }
    }
}

impl<P: Poll> Drop for Batch<'_, P> {
    #[inline]
    fn drop(&mut self) {
        if self.taken == 0 {
            return;
        }
        if !self.freed {
            let again = self.poller.take(self.taken as u64).map(|mut guard| {
                let slots = &mut guard;
                slots.len()
            });
            assert_eq!(
                again,
                Ok(self.taken),
                "slots that were shown must be there still"
            );
        }
        // After the slots were freed, never before: the writer counts on it.
        self.progress.received += self.taken as u64;
        self.progress.counters.set_received(self.progress.received);
        self.progress.writer.wake();
    }
}

/// What the crate's two pollers have in common; its own trait for their barriers cannot be named.
trait Poll {
    type Slot;
    type Barrier;

    fn take(&mut self, limit: u64) -> Result<EventGuard<'_, Self::Slot, Self::Barrier>, Polling>;
}

impl<T> Poll for EventPoller<T, SingleProducerBarrier> {
    type Slot = T;
    type Barrier = SingleProducerBarrier;

    fn take(&mut self, limit: u64) -> Result<EventGuard<'_, T, SingleProducerBarrier>, Polling> {
        EventPoller::take(self, limit)
    }
}

impl<T> Poll for EventPoller<Slot<T>, MultiProducerBarrier> {
    type Slot = Slot<T>;
    type Barrier = MultiProducerBarrier;

    fn take(
        &mut self,
        limit: u64,
    ) -> Result<EventGuard<'_, Slot<T>, MultiProducerBarrier>, Polling> {
        EventPoller::take(self, limit)
    }
}

/// A slot, and whether the reader is to pass over it.
pub(crate) struct Slot<T> {
    pub(crate) value: T,
    /// The writer panicked while it filled the slot: what is in it is anyone's guess.
    pub(crate) skip: bool,
}
