//! Hop 4: answers leave for those who wait.
//!
//! Whoever answers a request (apply, or the consensus stage that refuses it) writes the answer into its slot and
//! puts the slot's token on the ring of its sink. Sink 0 is read here: callers are woken and callbacks run on this
//! stage, so that neither costs the apply stage anything. Every other sink is an [`Outbox`], read by the user; its `notify`
//! is called by the apply stage, or here.
//!
//! Invariant: a thread that must not wait for user code ([`current`]) runs none of it: no waker, no callback, no `notify`.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ringbuf::{ManySender, Notify, Receiver, Sleeper, Waker};

use crate::flow::current;
use crate::pending::{Table, Token};
use crate::{Index, ProposeError};

/// Answers that one turn delivers at the most. A ring with many writers is read best in large batches.
const TURN: usize = 4096;
/// The most outboxes that one node has.
const SINKS: usize = 16;

#[derive(Default)]
pub(crate) struct Mark(AtomicU64);

/// The rings of answered slots, one a sink.
pub(crate) struct Sinks {
    rings: [OnceLock<ManySender<Mark>>; SINKS],
    taken: AtomicU64,
    /// A bit for each sink whose reader has gone.
    closed: AtomicU64,
    capacity: usize,
    bells: Arc<Bells>,
    /// Sink 0 was full: the reply stage looks through the whole table.
    missed: AtomicBool,
    reply_stage: Waker,
}

/// The notifications of outboxes.
#[derive(Default)]
struct Bells {
    notify: [Mutex<Option<Arc<dyn Notify>>>; SINKS],
    /// A bit for each outbox whose notification the reply stage owes.
    owed: AtomicU64,
}

impl Bells {
    fn set(&self, at: usize, notify: Option<Arc<dyn Notify>>) {
        let place = self.notify[at].lock();
        let before = std::mem::replace(&mut *place.unwrap_or_else(PoisonError::into_inner), notify);
        drop(before); // The lock is released: this may run user code.
    }

    /// Rings what is owed. Returns how many that were.
    fn ring_owed(&self) -> usize {
        if self.owed.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let owed = self.owed.swap(0, Ordering::AcqRel);
        for at in (0..SINKS).filter(|at| owed & (1 << at) != 0) {
            let place = self.notify[at].lock();
            let notify = place.unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(notify) = notify {
                notify.notify();
            }
        }
        owed.count_ones() as usize
    }
}

impl Sinks {
    /// `capacity` is the number of slots in the table: a slot stands in an outbox at most once, so none is ever full.
    pub(crate) fn new(capacity: usize, reply_stage: Waker) -> (Self, Receiver<Mark>) {
        let sinks = Self {
            rings: std::array::from_fn(|_| OnceLock::new()),
            taken: AtomicU64::new(1),
            closed: AtomicU64::new(0),
            capacity: capacity.next_power_of_two(),
            bells: Arc::default(),
            missed: AtomicBool::new(false),
            reply_stage: reply_stage.clone(),
        };
        let receiver = sinks.open(0, "replied", reply_stage);
        (sinks, receiver)
    }

    fn open(&self, at: usize, name: &'static str, reader: Waker) -> Receiver<Mark> {
        // Writers: apply, and consensus for what it refuses. Reader: the reply stage or the outbox's owner. Full: an
        // outbox never is; sink 0 may be, when callers poll and take their answers before the stage does.
        let (sender, receiver) = ringbuf::ring_many(name, self.capacity, Mark::default, reader);
        assert!(self.rings[at].set(sender).is_ok(), "sink {at} opened twice");
        receiver
    }

    /// Whether nobody reads that sink any more.
    pub(crate) fn is_closed(&self, sink: u32) -> bool {
        self.closed.load(Ordering::Acquire) & (1 << sink) != 0
    }

    /// The notification of outbox `at`: at once, or by the reply stage when this thread must not wait for user code.
    fn bell(&self, at: usize, notify: impl Notify + 'static) -> impl Notify + 'static {
        let notify: Arc<dyn Notify> = Arc::new(notify);
        self.bells.set(at, Some(notify.clone()));
        let (bells, reply_stage) = (self.bells.clone(), self.reply_stage.clone());
        move || {
            if current::runs_user_code() {
                notify.notify();
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

    fn has_missed(&self) -> bool {
        self.missed.load(Ordering::Acquire)
    }

    /// True when the sink took it. Sink 0 may be full; then see [`miss`](Sinks::miss).
    pub(crate) fn push(&self, sink: u32, token: Token) -> bool {
        let ring = self.rings[sink as usize]
            .get()
            .expect("a request names a sink that was opened");
        ring.try_send(|mark| mark.0.store(token.0, Ordering::Relaxed))
            .is_ok()
    }
}

/// Runs on its own thread in the plan of a thread per stage.
pub(crate) struct ReplyStage {
    pub(crate) table: Arc<Table>,
    pub(crate) replied: Receiver<Mark>,
}

impl ReplyStage {
    pub(crate) fn poll(&mut self) -> usize {
        let table = &self.table;
        let mut work = self.replied.drain(TURN, |mark| {
            table.deliver(Token(mark.0.load(Ordering::Relaxed)))
        });
        let sinks = table.sinks();
        if sinks.has_missed() && sinks.missed.swap(false, Ordering::AcqRel) {
            table.deliver_all();
            work += 1;
        }
        work + sinks.bells.ring_owed()
    }

    pub(crate) fn has_work(&mut self) -> bool {
        let sinks = self.table.sinks();
        !self.replied.is_empty()
            || sinks.has_missed()
            || sinks.bells.owed.load(Ordering::Acquire) != 0
    }
}

/// Answers to many requests, read by one thread in the order in which they were applied.
///
/// For servers: a request made with [`Node::propose_to`](crate::Node::propose_to) carries a tag of the caller's own,
/// and its answer comes out here under that tag, without a lock, an allocation or a wake-up per request. Made by
/// [`Node::outbox`](crate::Node::outbox).
pub struct Outbox {
    table: Arc<Table>,
    ring: Receiver<Mark>,
    sleeper: Sleeper,
    id: u32,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outbox {}", self.id)
    }
}

/// Names an outbox in requests; see [`Outbox::id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxId(pub(crate) u32);

impl Outbox {
    pub(crate) fn open(table: Arc<Table>, notify: impl Notify + 'static) -> Option<Self> {
        let id = table.sinks().taken.fetch_add(1, Ordering::Relaxed);
        if id >= SINKS as u64 {
            return None;
        }
        let sleeper = Sleeper::new(table.sinks().bell(id as usize, notify));
        let ring = table.sinks().open(id as usize, "outbox", sleeper.waker());
        Some(Self {
            table,
            ring,
            sleeper,
            id: id as u32,
        })
    }

    /// What requests name it by.
    pub fn id(&self) -> OutboxId {
        OutboxId(self.id)
    }

    /// Takes up to `limit` answers: `each(tag, outcome, reply)`, where the outcome of a command is its log index.
    /// Returns how many there were.
    pub fn drain(
        &mut self,
        limit: usize,
        mut each: impl FnMut(u64, Result<Index, ProposeError>, &[u8]),
    ) -> usize {
        let table = &self.table;
        self.ring.drain(limit, |mark| {
            table.consume(Token(mark.0.load(Ordering::Relaxed)), &mut each)
        })
    }

    /// Announces that the reader goes to sleep, looks once more whether an answer has come, and only then runs
    /// `sleep`; an answer that comes later calls the `notify` the outbox was made with. Returns false when it did not
    /// sleep.
    pub fn sleep(&mut self, sleep: impl FnOnce()) -> bool {
        let ring = &mut self.ring;
        self.sleeper.sleep(|| !ring.is_empty(), sleep)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // Answers that nobody will read free their slots, those that come later too.
        let sinks = self.table.sinks();
        sinks.closed.fetch_or(1 << self.id, Ordering::AcqRel);
        sinks.bells.set(self.id as usize, None);
        while self.drain(1024, |_, _, _| ()) > 0 {}
    }
}
