//! Hop 4: answers leave for those who wait.
//!
//! Whoever answers a request (apply, or the consensus stage that refuses it) writes the answer into its slot and
//! puts the slot's token on the ring of its sink. Sink 0 is read here: callers are woken and callbacks run on this
//! stage, so that neither costs the apply stage anything. Every other sink is an [`Outbox`], read by the user.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ringbuf::{ManySender, Notify, Receiver, Sleeper, Waker};

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
}

impl Sinks {
    /// `capacity` is the number of slots in the table: a slot stands in an outbox at most once, so none is ever full.
    pub(crate) fn new(capacity: usize, reply_stage: Waker) -> (Self, Receiver<Mark>) {
        let sinks = Self {
            rings: std::array::from_fn(|_| OnceLock::new()),
            taken: AtomicU64::new(1),
            closed: AtomicU64::new(0),
            capacity: capacity.next_power_of_two(),
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

    /// True when the sink took it; for sink 0 the caller wakes by itself otherwise.
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
        self.replied.drain(TURN, |mark| {
            table.deliver(Token(mark.0.load(Ordering::Relaxed)))
        })
    }

    pub(crate) fn has_work(&mut self) -> bool {
        !self.replied.is_empty()
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
        let sleeper = Sleeper::new(notify);
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
        while self.drain(1024, |_, _, _| ()) > 0 {}
    }
}
