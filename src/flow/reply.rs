//! Hop 4: answers leave for those who wait.
//!
//! Whoever answers a request (apply, or the consensus stage that refuses it) writes the answer into its slot and
//! puts the slot's token on the ring of its sink. Sink 0 is read here: callers are woken and callbacks run on this
//! stage, so that neither costs the apply stage anything. Every other sink is an [`Outbox`], read by the user; its `notify`
//! is called by the apply stage, or here.
//!
//! Invariant: a thread that must not wait for user code ([`current`]) runs none of it: no waker, no callback, no `notify`.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ringbuf::{ManySender, Notify, Receiver, Sleeper, Waker};

use crate::flow::current;
use crate::flow::guard;
use crate::pending::{Table, Token};
use crate::{Index, ProposeError};

/// Answers that one turn delivers at the most. A ring with many writers is read best in large batches.
const TURN: usize = 4096;
/// The reply stage, and the most outboxes that one node has at a time. A power of two.
const SINKS: usize = 16;

#[derive(Default)]
pub(crate) struct Mark(AtomicU64);

/// Names a sink and which of its readers in turn: `generation << 4 | place`. The reply stage is 0; an outbox has a generation
/// above 0, and no other outbox of this node ever has its name.
pub(crate) type SinkId = u64;

const PLACE: u64 = SINKS as u64 - 1;

/// The rings of answered slots, one a sink. An outbox that is dropped leaves its ring to the next one in its place.
pub(crate) struct Sinks {
    rings: [OnceLock<ManySender<Mark>>; SINKS],
    /// Whose each ring is; 0 when its reader has gone. Written under the lock of the place.
    readers: [AtomicU64; SINKS],
    places: [Mutex<Place>; SINKS],
    capacity: usize,
    bells: Arc<Bells>,
    /// Sink 0 was full: the reply stage looks through the whole table.
    missed: AtomicBool,
    reply_stage: Waker,
}

/// Where an outbox may be opened.
#[derive(Default)]
struct Place {
    generation: u64,
    is_open: bool,
    /// The reading end, while nobody has it: what is put into the ring by those who have not seen yet that its reader is gone is
    /// taken out again by themselves.
    parked: Option<Reading>,
}

struct Reading {
    ring: Receiver<Mark>,
    sleeper: Sleeper,
}

impl Reading {
    /// Frees the slots of answers that nobody wants any more.
    fn discard(&mut self, table: &Table) {
        let mut discarded = |mark: &Mark| table.discard(Token(mark.0.load(Ordering::Relaxed)));
        while self.ring.drain(TURN, &mut discarded) > 0 {}
    }
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

    /// A panic of the embedder's `notify` is its own trouble.
    fn ring(&self, at: usize) {
        let place = self.notify[at].lock();
        let notify = place.unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(notify) = notify {
            guard::contain("the notify of an outbox", || notify.notify());
        }
    }

    /// Rings what is owed. Returns how many that were.
    fn ring_owed(&self) -> usize {
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
    pub(crate) fn new(capacity: usize, reply_stage: Waker) -> (Self, Receiver<Mark>) {
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

    fn make(&self, at: usize, name: &'static str, reader: Waker) -> Receiver<Mark> {
        // Writers: apply, and consensus for what it refuses. Reader: the reply stage or the outbox's owner. Full: an
        // outbox never is; sink 0 may be, when callers poll and take their answers before the stage does.
        let (sender, receiver) = ringbuf::ring_many(name, self.capacity, Mark::default, reader);
        assert!(self.rings[at].set(sender).is_ok(), "sink {at} made twice");
        receiver
    }

    fn place(&self, at: usize) -> MutexGuard<'_, Place> {
        self.places[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an outbox; `None` when all places are taken.
    fn open(&self, table: &Table, notify: impl Notify + 'static) -> Option<(SinkId, Reading)> {
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
            reading.discard(table);
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
    fn close(&self, id: SinkId, mut reading: Reading, table: &Table) {
        let at = (id & PLACE) as usize;
        self.readers[at].store(0, Ordering::SeqCst);
        self.bells.set(at, None);
        fence(Ordering::SeqCst);
        let mut place = self.place(at);
        reading.discard(table);
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
            if current::runs_user_code() {
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

    fn has_missed(&self) -> bool {
        self.missed.load(Ordering::Acquire)
    }

    /// True when the sink took it. Sink 0 may be full; then see [`miss`](Sinks::miss).
    pub(crate) fn push(&self, id: SinkId, token: Token, table: &Table) -> bool {
        let at = (id & PLACE) as usize;
        let ring = self.rings[at]
            .get()
            .expect("a request names a sink that was opened");
        let sent = ring.try_send(|mark| mark.0.store(token.0, Ordering::Relaxed));
        // The look comes behind a fence, which sending has for the reader that may sleep; so either this sees that the reader
        // has gone, or the reader in leaving saw what was sent.
        if !self.is_open(id)
            && let Some(parked) = &mut self.place(at).parked
        {
            parked.discard(table);
        }
        sent.is_ok()
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
    /// `None` only while it is being dropped.
    reading: Option<Reading>,
    id: SinkId,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outbox {}", self.id & PLACE)
    }
}

/// Names an outbox in requests; see [`Outbox::id`]. No other outbox ever has the same name: a request that names one that is
/// dropped, or another node's, is refused with [`ProposeError::NoOutbox`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxId {
    pub(crate) table: u64,
    pub(crate) sink: SinkId,
}

impl Outbox {
    pub(crate) fn open(table: Arc<Table>, notify: impl Notify + 'static) -> Option<Self> {
        let (id, reading) = table.sinks().open(&table, notify)?;
        Some(Self {
            table,
            reading: Some(reading),
            id,
        })
    }

    /// What requests name it by.
    pub fn id(&self) -> OutboxId {
        OutboxId {
            table: self.table.id(),
            sink: self.id,
        }
    }

    /// Takes up to `limit` answers: `each(tag, outcome, reply)`, where the outcome of a command is its log index.
    /// Returns how many there were. A panic in `each` comes through; that answer counts as taken.
    pub fn drain(
        &mut self,
        limit: usize,
        mut each: impl FnMut(u64, Result<Index, ProposeError>, &[u8]),
    ) -> usize {
        let Self { table, reading, id } = self;
        let reading = reading.as_mut().expect("taken only by drop");
        let mut heard = 0;
        while heard < limit {
            let mut mine = 0;
            let taken = reading.ring.drain(limit - heard, |mark| {
                let token = Token(mark.0.load(Ordering::Relaxed));
                // What was asked for by the outbox that had this place before is nobody's.
                if table.sink_of(token) == *id {
                    mine += 1;
                    table.consume(token, &mut each);
                } else {
                    table.discard(token);
                }
            });
            heard += mine;
            if taken == mine {
                break;
            }
        }
        heard
    }

    /// Announces that the reader goes to sleep, looks once more whether an answer has come, and only then runs
    /// `sleep`; an answer that comes later calls the `notify` the outbox was made with. Returns false when it did not
    /// sleep. `notify` may be called without an answer: whoever is woken drains, and sleeps again.
    pub fn sleep(&mut self, sleep: impl FnOnce()) -> bool {
        let Reading { ring, sleeper } = self.reading.as_mut().expect("taken only by drop");
        sleeper.sleep(|| !ring.is_empty(), sleep)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Some(reading) = self.reading.take() {
            self.table.sinks().close(self.id, reading, &self.table);
        }
    }
}
