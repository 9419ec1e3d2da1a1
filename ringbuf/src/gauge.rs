//! How full a ring is and how much went through it, for whoever looks from outside.
//!
//! Every counter has one writer at a time and is on a cache line of that writer's, so keeping it
//! costs a plain store.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crossbeam_utils::CachePadded;

/// Reads the counters of a ring, from any thread and at any time. Cheap to clone.
///
/// Counters are read one after the other while the ring goes on: they are each right, and together
/// nearly so.
#[derive(Clone)]
pub struct Gauge {
    counters: Arc<Counters>,
}

impl Gauge {
    pub(crate) fn new(counters: &Arc<Counters>) -> Self {
        Self {
            counters: Arc::clone(counters),
        }
    }

    /// The name the ring was made with.
    pub fn name(&self) -> &'static str {
        self.counters.name
    }

    /// How many slots the ring has.
    pub fn capacity(&self) -> usize {
        self.counters.capacity
    }

    /// How many slots are sent and not yet released by the reader; at most [`Gauge::capacity`].
    pub fn depth(&self) -> usize {
        // The reader's counter first: what is sent in between then counts as depth, and the result
        // is never negative but for a reader that counted a slot sooner than its writer did.
        let received = self.received();
        let depth = self.sent().saturating_sub(received);
        usize::try_from(depth)
            .unwrap_or(usize::MAX)
            .min(self.counters.capacity)
    }

    /// How often a writer was told [`Full`](crate::Full).
    pub fn full_count(&self) -> u64 {
        self.counters
            .lanes
            .iter()
            .map(|lane| lane.full.load(Relaxed))
            .sum()
    }

    /// How many slots were sent since the ring was made.
    pub fn sent(&self) -> u64 {
        self.counters
            .lanes
            .iter()
            .map(|lane| lane.sent.load(Relaxed))
            .sum()
    }

    /// How many slots the reader has released since the ring was made.
    pub fn received(&self) -> u64 {
        self.counters.received.load(Acquire)
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.counters, f)
    }
}

pub(crate) struct Counters {
    pub(crate) name: &'static str,
    pub(crate) capacity: usize,
    /// One for each handle that sends.
    pub(crate) lanes: Box<[CachePadded<Lane>]>,
    received: CachePadded<AtomicU64>,
}

/// What one writer at a time counts.
#[derive(Default)]
pub(crate) struct Lane {
    sent: AtomicU64,
    full: AtomicU64,
}

impl Counters {
    pub(crate) fn new(name: &'static str, capacity: usize, lane_count: usize) -> Arc<Self> {
        let lanes = (0..lane_count).map(|_| CachePadded::default()).collect();
        Arc::new(Self {
            name,
            capacity,
            lanes,
            received: CachePadded::default(),
        })
    }

    /// Called by the reader after it released the slots: who reads the number here may count on
    /// them to be free.
    pub(crate) fn set_received(&self, received: u64) {
        self.received.store(received, Release);
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Acquire)
    }
}

impl Lane {
    pub(crate) fn count_sent(&self) {
        one_more(&self.sent);
    }

    pub(crate) fn count_full(&self) {
        one_more(&self.full);
    }
}

/// No read-modify-write: nobody else writes this counter meanwhile.
fn one_more(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed) + 1, Relaxed);
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent: u64 = self.lanes.iter().map(|lane| lane.sent.load(Relaxed)).sum();
        let full: u64 = self.lanes.iter().map(|lane| lane.full.load(Relaxed)).sum();
        let (name, capacity, received) = (self.name, self.capacity, self.received());
        write!(
            f,
            "ring {name:?} of {capacity} slots, {sent} sent, {received} received, {full} times full"
        )
    }
}
