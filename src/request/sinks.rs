//! Where answers go: the rings of answered slots, one for the callers that wait and one for each outbox.
//!
//! Sink 0 is read by the reply stage. Every other sink is an [`Outbox`](crate::Outbox), read by the user; its `notify` is
//! called by the stage that answers, or by the reply stage.
//!
//! Invariant: a thread that must not wait for user code ([`own_thread`]) runs none of it: no waker, no callback, no `notify`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ringbuf::{ManySender, Notify, Receiver, Sleeper, Waker};

use crate::flow::guard;
use crate::request::own_thread;
use crate::request::token::Token;

/// Answers that one turn delivers at the most. A ring with many writers is read best in large batches.
pub(crate) const TURN: usize = 4096;
/// The reply stage, and the most outboxes that one node has at a time. A power of two.
pub(super) const SINKS: usize = 16;

#[derive(Default)]
pub(crate) struct Answered(pub(crate) AtomicU64);

/// Names a sink and which of its readers in turn: `generation << 4 | place`. The reply stage is 0; an outbox has a generation
/// above 0, and no other outbox of this node ever has its name.
pub(crate) type SinkId = u64;

pub(super) const PLACE: u64 = SINKS as u64 - 1;

/// The rings of answered slots, one a sink. An outbox that is dropped leaves its ring to the next one in its place.
pub(crate) struct Sinks {
    rings: [OnceLock<ManySender<Answered>>; SINKS],
    /// Whose each ring is; 0 when its reader has gone. Written under the lock of the place.
    readers: [AtomicU64; SINKS],
    places: [Mutex<Place>; SINKS],
    capacity: usize,
    pub(crate) bells: Arc<Bells>,
    /// Sink 0 was full: the reply stage looks through the whole table.
    pub(crate) missed: AtomicBool,
    reply_stage: Waker,
}

/// Where an outbox may be opened.
#[derive(Default)]
pub(super) struct Place {
    generation: u64,
    is_open: bool,
    /// The reading end, while nobody has it: what is put into the ring by those who have not seen yet that its reader is gone is
    /// taken out again by themselves.
    parked: Option<Reading>,
}

pub(super) struct Reading {
    pub(super) ring: Receiver<Answered>,
    pub(super) sleeper: Sleeper,
}

impl Reading {
    /// Frees the slots of answers that nobody wants any more.
    fn discard(&mut self, discard: &impl Fn(Token)) {
        let mut discarded =
            |answered: &Answered| discard(Token(answered.0.load(Ordering::Relaxed)));
        while self.ring.drain(TURN, &mut discarded) > 0 {}
    }
}

/// The notifications of outboxes.
#[derive(Default)]
pub(crate) struct Bells {
    notify: [Mutex<Option<Arc<dyn Notify>>>; SINKS],
    /// A bit for each outbox whose notification the reply stage owes.
    pub(crate) owed: AtomicU64,
}

impl Bells {
    fn set(&self, at: usize, notify: Option<Arc<dyn Notify>>) {
        let place = self.notify[at].lock();
        let before = std::mem::replace(&mut *place.unwrap_or_else(PoisonError::into_inner), notify);
        drop(before); // The lock is released: this may run user code.
    }

    /// A panic of the embedder's `notify` is its own trouble.
    fn ring(&self, at: usize) {
        let place = self.notify[at].lock();
        let notify = place.unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(notify) = notify {
            guard::contain("the notify of an outbox", || notify.notify());
        }
    }

    /// Rings what is owed. Returns how many that were.
    pub(crate) fn ring_owed(&self) -> usize {
        if self.owed.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let owed = self.owed.swap(0, Ordering::AcqRel);
        for at in (0..SINKS).filter(|at| owed & (1 << at) != 0) {
            self.ring(at);
        }
        owed.count_ones() as usize
    }
}

impl Sinks {
    /// `capacity` is the number of slots in the table: a slot stands in an outbox at most once, so none is ever full.
    pub(crate) fn new(capacity: usize, reply_stage: Waker) -> (Self, Receiver<Answered>) {
        let sinks = Self {
            rings: std::array::from_fn(|_| OnceLock::new()),
            readers: std::array::from_fn(|_| AtomicU64::new(0)),
            places: std::array::from_fn(|_| Mutex::default()),
            capacity: capacity.next_power_of_two(),
            bells: Arc::default(),
            missed: AtomicBool::new(false),
            reply_stage: reply_stage.clone(),
        };
        let receiver = sinks.make(0, "replied", reply_stage);
        (sinks, receiver)
    }

    fn make(&self, at: usize, name: &'static str, reader: Waker) -> Receiver<Answered> {
        // Writers: apply, and consensus for what it refuses. Reader: the reply stage or the outbox's owner. Full: an
        // outbox never is; sink 0 may be, when callers poll and take their answers before the stage does.
        let (sender, receiver) = ringbuf::ring_many(name, self.capacity, Answered::default, reader);
        assert!(self.rings[at].set(sender).is_ok(), "sink {at} made twice");
        receiver
    }

    fn place(&self, at: usize) -> MutexGuard<'_, Place> {
        self.places[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an outbox; `None` when all places are taken.
    pub(super) fn open(
        &self,
        discard: &impl Fn(Token),
        notify: impl Notify + 'static,
    ) -> Option<(SinkId, Reading)> {
        for at in 1..SINKS {
            let mut place = self.place(at);
            if place.is_open {
                continue;
            }
            let mut reading = place.parked.take().unwrap_or_else(|| {
                let sleeper = Sleeper::new(self.bell(at));
                let ring = self.make(at, "outbox", sleeper.waker());
                Reading { ring, sleeper }
            });
            reading.discard(discard);
            place.is_open = true;
            place.generation += 1;
            let id = place.generation << PLACE.count_ones() | at as u64;
            self.bells.set(at, Some(Arc::new(notify)));
            self.readers[at].store(id, Ordering::SeqCst);
            return Some((id, reading));
        }
        None
    }

    /// The outbox is gone: what is in its ring frees its slots, and what comes later does, too.
    pub(super) fn close(&self, id: SinkId, mut reading: Reading, discard: &impl Fn(Token)) {
        let at = (id & PLACE) as usize;
        self.readers[at].store(0, Ordering::SeqCst);
        self.bells.set(at, None);
        fence(Ordering::SeqCst);
        let mut place = self.place(at);
        reading.discard(discard);
        place.parked = Some(reading);
        place.is_open = false;
    }

    /// Whether that sink has its reader still.
    pub(crate) fn is_open(&self, id: SinkId) -> bool {
        id == 0 || self.readers[(id & PLACE) as usize].load(Ordering::SeqCst) == id
    }

    /// The notification of the outbox at `at`: at once, or by the reply stage when this thread must not wait for user code.
    fn bell(&self, at: usize) -> impl Notify + 'static {
        let (bells, reply_stage) = (self.bells.clone(), self.reply_stage.clone());
        move || {
            if own_thread::runs_user_code() {
                bells.ring(at);
            } else {
                bells.owed.fetch_or(1 << at, Ordering::AcqRel);
                reply_stage.wake();
            }
        }
    }

    /// Sink 0 did not take an answer: the reply stage finds it by itself.
    pub(crate) fn miss(&self) {
        self.missed.store(true, Ordering::Release);
        self.reply_stage.wake();
    }

    pub(crate) fn has_missed(&self) -> bool {
        self.missed.load(Ordering::Acquire)
    }

    /// True when the sink took it. Sink 0 may be full; then see [`miss`](Sinks::miss).
    pub(crate) fn push(&self, id: SinkId, token: Token, discard: &impl Fn(Token)) -> bool {
        let at = (id & PLACE) as usize;
        let ring = self.rings[at]
            .get()
            .expect("a request names a sink that was opened");
        let sent = ring.try_send(|answered| answered.0.store(token.0, Ordering::Relaxed));
        // The look comes behind a fence, which sending has for the reader that may sleep; so either this sees that the reader
        // has gone, or the reader in leaving saw what was sent.
        if !self.is_open(id)
            && let Some(parked) = &mut self.place(at).parked
        {
            parked.discard(discard);
        }
        sent.is_ok()
    }
}
