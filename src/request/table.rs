//! One answer on its way: a slot in a table made at start, not a channel per request.
//!
//! A slot goes round this circle. Its state holds the round in its upper half and moves by compare-and-swap, so a
//! late answer to an earlier round of the slot finds nothing to answer:
//!
//! ```text
//!          take            answer           Pending::wait / poll, Outbox::drain
//!   FREE ───────▶ OPEN ─▶ FILLING ─▶ DONE ─────────────────────────────────────▶ FREE
//!                  │ ▲  │ (the query of a read is taken out: back to OPEN)       ▲
//!                  │ └──┘
//!                  │ drop(Pending)                                               │
//!                  └────────▶ LEFT ──────────── answer ──────────────────────────┘
//! ```
//!
//! Invariants: whoever moves a slot into FILLING alone writes its answer, and runs no user code until it leaves that state:
//! others spin meanwhile; after DONE only the holder of the `Pending`, or the reader of the outbox, touches it. A slot returns
//! to the free list exactly once a round.

use std::cell::UnsafeCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;

use crate::error::ProposeError;
use crate::flow::guard;
use crate::request::latency::Hops;
use crate::request::own_thread;
use crate::request::sinks::{SinkId, Sinks};
use crate::request::token::{ROUND_MASK, Reply, SLOT_BITS, Token};
use crate::types::Index;

pub(super) const FREE: u64 = 0;
pub(super) const OPEN: u64 = 1;
pub(super) const FILLING: u64 = 2;
pub(super) const DONE: u64 = 3;
pub(super) const LEFT: u64 = 4;
const PHASE: u64 = 0xff;

/// `Slot::term` while the consensus stage has not yet taken the request.
pub(crate) const NOT_SENT: u64 = u64::MAX;

/// `Slot::since_us` of a request without a time limit.
const NO_LIMIT: u64 = u64::MAX;

/// Where an answer goes once it is there: the reply stage for callers that wait, or an outbox.
pub(crate) const WAITING_CALLER: SinkId = 0;

pub(super) struct Slot {
    pub(super) state: AtomicU64,
    /// The term whose leader got the request; `NOT_SENT` before. A read keeps `NOT_SENT`: a new term does not void it.
    term: AtomicU64,
    /// When it was taken, by the node's clock.
    since_us: AtomicU64,
    /// Which sink hears of the answer, and the caller's own mark for it.
    sink: AtomicU64,
    tag: AtomicU64,
    /// User code: a waker, or a callback in the shape of one.
    pub(super) waker: AtomicWaker,
    /// Unparks the thread that waits in `Pending::wait`: anyone may call it.
    pub(super) unpark: AtomicWaker,
    answer: UnsafeCell<Answer>,
}

impl Slot {
    /// Wakes whoever is registered: a thread that waits, a task - its waker is its runtime's code - or a user's callback.
    fn wake(&self) {
        self.unpark.wake();
        guard::contain("the waker of a request", || self.waker.wake());
    }
}

struct Answer {
    outcome: Result<Index, ProposeError>,
    /// The query of a read on its way in, the reply on its way out.
    bytes: Vec<u8>,
}

// SAFETY: `answer` is reached by one party at a time, handed over by the state machine in the head of this file:
// the taker until OPEN, whoever won FILLING until DONE, then the holder of the `Pending` or of the outbox until FREE.
unsafe impl Sync for Slot {}

/// The table of requests that wait for an answer.
pub(crate) struct Table {
    /// No other table of this process has it.
    id: u64,
    pub(super) slots: Box<[CachePadded<Slot>]>,
    free: ArrayQueue<u32>,
    sinks: Sinks,
    hops: Arc<Hops>,
    /// Replies up to this size stay in the slot's buffer; a longer one's buffer is given back after use.
    keep_bytes: usize,
    /// Set when the stages are gone.
    ended: AtomicBool,
    /// The keeper of the time limits knows that there are requests.
    watched: AtomicBool,
    keeper: ringbuf::Waker,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Table {{ {} of {} slots taken }}",
            self.taken(),
            self.slots.len()
        )
    }
}

impl Table {
    pub(crate) fn new(
        slots: usize,
        keep_bytes: usize,
        first_round: u32,
        sinks: Sinks,
        hops: Arc<Hops>,
        keeper: ringbuf::Waker,
    ) -> Self {
        let free = ArrayQueue::new(slots);
        let slots: Box<[_]> = (0..slots)
            .map(|slot| {
                free.push(slot as u32)
                    .expect("the free list holds every slot");
                CachePadded::new(Slot {
                    state: AtomicU64::new(u64::from(first_round) << 8 | FREE),
                    term: AtomicU64::new(NOT_SENT),
                    since_us: AtomicU64::new(0),
                    sink: AtomicU64::new(WAITING_CALLER),
                    tag: AtomicU64::new(0),
                    waker: AtomicWaker::new(),
                    unpark: AtomicWaker::new(),
                    answer: UnsafeCell::new(Answer {
                        outcome: Err(ProposeError::Unknown),
                        bytes: Vec::with_capacity(keep_bytes),
                    }),
                })
            })
            .collect();
        static TABLES: AtomicU64 = AtomicU64::new(1);
        Self {
            id: TABLES.fetch_add(1, Ordering::Relaxed),
            slots,
            free,
            sinks,
            hops,
            keep_bytes,
            ended: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            keeper,
        }
    }

    pub(crate) fn hops(&self) -> &Arc<Hops> {
        &self.hops
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Requests under way, by the length of the free list.
    pub(crate) fn taken(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot for a request; `None` when all are taken. `request` is kept with it for a read.
    pub(crate) fn take(
        &self,
        sink: SinkId,
        tag: u64,
        now_us: u64,
        request: &[u8],
    ) -> Option<Token> {
        let at = self.free.pop()?;
        let slot = &self.slots[at as usize];
        let round = ((slot.state.load(Ordering::Acquire) >> 8) + 1) & ROUND_MASK;
        slot.term.store(NOT_SENT, Ordering::Relaxed);
        slot.since_us.store(now_us, Ordering::Relaxed);
        slot.sink.store(sink, Ordering::Relaxed);
        slot.tag.store(tag, Ordering::Relaxed);
        // SAFETY: the slot came from the free list, so nobody else has it until OPEN is stored below.
        let answer = unsafe { &mut *slot.answer.get() };
        answer.bytes.clear();
        answer.bytes.extend_from_slice(request);
        slot.state.store(round << 8 | OPEN, Ordering::Release);
        // Either this sees that nobody watches, or `unwatch_if_idle` sees the slot taken.
        fence(Ordering::SeqCst);
        if !self.watched.load(Ordering::Relaxed) {
            self.watch();
        }
        Some(Token(round << SLOT_BITS | u64::from(at)))
    }

    #[cold]
    fn watch(&self) {
        if !self.watched.swap(true, Ordering::AcqRel) {
            self.keeper.wake();
        }
    }

    /// Whether the keeper of the time limits is to look at the requests.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// The keeper of the time limits looks away when there is no request; the next one will wake it. False: there is one.
    pub(crate) fn unwatch_if_idle(&self) -> bool {
        if self.taken() > 0 {
            return false;
        }
        self.watched.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.taken() > 0 {
            self.watched.store(true, Ordering::Release);
            return false;
        }
        true
    }

    /// Gives a slot back that was taken but whose request went nowhere.
    pub(crate) fn untake(&self, token: Token) {
        self.slots[token.slot()]
            .state
            .store(token.state(FREE), Ordering::Release);
        self.release(token);
    }

    /// Notes which term's leader got the request.
    pub(crate) fn sent(&self, token: Token, term: u64) {
        let slot = &self.slots[token.slot()];
        // The round may be over already (the caller left, the sweep answered): then the mark must not touch its
        // successor, whose own `sent` comes after this one on the same stage; and a successor is NOT_SENT until then.
        if slot.state.load(Ordering::Acquire) >> 8 == token.round() {
            slot.term.store(term, Ordering::Release);
        }
    }

    /// Answers a request; a round that is over is left alone.
    pub(crate) fn complete(
        &self,
        token: Token,
        outcome: Result<Index, ProposeError>,
        reply: &[u8],
    ) {
        self.complete_with(token, outcome, |bytes| {
            bytes.clear();
            bytes.extend_from_slice(reply);
        });
    }

    /// Takes the query of a read out of its slot, in exchange for what is in `query`. The slot stays open meanwhile, so that
    /// its limit is kept however long the query runs. False: nobody waits for it any more.
    pub(crate) fn take_query(&self, token: Token, query: &mut Vec<u8>) -> bool {
        let Some(slot) = self.claim(token) else {
            return false;
        };
        // SAFETY: `claim` moved the slot to FILLING, so the answer is ours until OPEN is stored.
        let answer = unsafe { &mut *slot.answer.get() };
        std::mem::swap(&mut answer.bytes, query);
        slot.state.store(token.state(OPEN), Ordering::Release);
        true
    }

    /// Moves an open slot to FILLING; one whose caller has left is freed.
    fn claim(&self, token: Token) -> Option<&Slot> {
        let slot = self.slots.get(token.slot())?;
        let mut from = token.state(OPEN);
        let claimed = loop {
            match slot.state.compare_exchange(
                from,
                token.state(FILLING),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(phase) => break phase & PHASE,
                // The caller left since we looked.
                Err(now) if now == token.state(LEFT) => from = now,
                Err(now) if now == token.state(FILLING) => {
                    // Its query is being taken, or it is being answered.
                    std::hint::spin_loop();
                    from = token.state(OPEN);
                }
                Err(_) => return None,
            }
        };
        if claimed == LEFT {
            slot.state.store(token.state(FREE), Ordering::Release);
            self.release(token);
            return None;
        }
        Some(slot)
    }

    fn complete_with(
        &self,
        token: Token,
        outcome: Result<Index, ProposeError>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        let Some(slot) = self.claim(token) else {
            return;
        };
        // SAFETY: this call moved the slot to FILLING, so the answer is ours until DONE.
        let answer = unsafe { &mut *slot.answer.get() };
        fill(&mut answer.bytes);
        answer.outcome = outcome;
        let sink = slot.sink.load(Ordering::Relaxed);
        slot.state.store(token.state(DONE), Ordering::Release);
        let heard = if self.sinks.is_open(sink) {
            self.sinks.push(sink, token, &|token| self.discard(token))
        } else {
            self.discard(token);
            true
        };
        if sink == WAITING_CALLER {
            if self.ended.load(Ordering::SeqCst) {
                self.deliver(token); // There is no reply stage any more.
            } else if !heard {
                self.sinks.miss();
            }
        }
    }

    /// Wakes whoever waits on an answered slot (a callback is a waker too). Called by the reply stage.
    pub(crate) fn deliver(&self, token: Token) {
        let slot = &self.slots[token.slot()];
        // When the caller looked by itself and took the answer, the slot may be in its next round: a waker too many
        // is woken, which every waiter bears.
        if slot.state.load(Ordering::Acquire) == token.state(DONE) {
            slot.wake();
        }
    }

    /// Wakes whoever waits on any answered slot: some did not find room in the reply stage's ring.
    pub(crate) fn deliver_all(&self) {
        for slot in &self.slots {
            if slot.state.load(Ordering::Acquire) & PHASE == DONE {
                slot.wake(); // In an outbox's slot there is nobody to wake.
            }
        }
    }

    /// Which sink is to hear of an answered slot.
    pub(crate) fn sink_of(&self, token: Token) -> SinkId {
        self.slots[token.slot()].sink.load(Ordering::Relaxed)
    }

    /// Frees an answered slot whose answer nobody wants.
    pub(crate) fn discard(&self, token: Token) {
        self.consume(token, |_, _, _| ());
    }

    /// Reads an answered slot in place and frees it, also when `each` panics: `(tag, outcome, bytes)`.
    pub(crate) fn consume(
        &self,
        token: Token,
        each: impl FnOnce(u64, Result<Index, ProposeError>, &[u8]),
    ) {
        let slot = &self.slots[token.slot()];
        let state = slot.state.load(Ordering::Acquire);
        assert_eq!(
            state,
            token.state(DONE),
            "an outbox hears of a slot once, when it is answered"
        );
        // SAFETY: DONE, and the one who takes it out of its sink holds it until FREE.
        let answer = unsafe { &mut *slot.answer.get() };
        let outcome = std::mem::replace(&mut answer.outcome, Err(ProposeError::Unknown));
        let tag = slot.tag.load(Ordering::Relaxed);
        let seen = catch_unwind(AssertUnwindSafe(|| each(tag, outcome, &answer.bytes)));
        self.finish(token, answer);
        if let Err(panic) = seen {
            resume_unwind(panic);
        }
    }

    pub(super) fn collect(&self, token: Token) -> Result<Reply, ProposeError> {
        let mut result = Err(ProposeError::Unknown);
        self.consume(token, |_, outcome, bytes| {
            result = outcome.map(|index| Reply {
                index,
                bytes: bytes.to_vec(),
            });
        });
        result
    }

    fn finish(&self, token: Token, answer: &mut Answer) {
        self.hops.answered(token.0);
        answer.bytes.clear();
        if answer.bytes.capacity() > 4 * self.keep_bytes {
            answer.bytes = Vec::with_capacity(self.keep_bytes);
        }
        self.slots[token.slot()]
            .state
            .store(token.state(FREE), Ordering::Release);
        self.release(token);
    }

    fn release(&self, token: Token) {
        let pushed = self.free.push(token.slot() as u32);
        assert_eq!(pushed, Ok(()), "slot {} was freed twice", token.slot());
    }

    /// Answers every request that was handed to a leader of a term before `term`: the first entry of `term` has been
    /// applied, and with it everything of those terms that is in the log at all.
    pub(crate) fn replace_before(&self, term: u64) {
        self.sweep(|slot| {
            (slot.term.load(Ordering::Acquire) < term).then_some(ProposeError::Replaced)
        });
    }

    /// Answers every request that was handed to a leader of `term` or an earlier one: the state is that of a snapshot with
    /// a last entry of `term`, and what is in it came without its replies.
    pub(crate) fn leave_to_snapshot(&self, term: u64) {
        self.sweep(|slot| {
            (slot.term.load(Ordering::Acquire) <= term).then_some(ProposeError::Unknown)
        });
    }

    /// When a request was taken.
    pub(crate) fn since_us(&self, token: Token) -> u64 {
        self.slots[token.slot()].since_us.load(Ordering::Relaxed)
    }

    /// Answers every request that waits since before `since_us`, and unparks threads that wait for one. Runs no user code.
    /// Returns how many there were, and since when the oldest that is left waits.
    pub(crate) fn expire(&self, since_us: u64) -> (usize, Option<u64>) {
        let (mut expired, mut oldest) = (0, None);
        for (at, slot) in self.slots.iter().enumerate() {
            let state = slot.state.load(Ordering::Acquire);
            if !matches!(state & PHASE, OPEN | LEFT | FILLING) {
                continue;
            }
            let since = slot.since_us.load(Ordering::Relaxed);
            if since < since_us {
                let token = Token::of(state, at);
                self.complete(token, Err(ProposeError::Unknown), &[]);
                slot.unpark.wake();
                expired += 1;
            } else if since != NO_LIMIT {
                oldest = Some(since.min(oldest.unwrap_or(since)));
            }
        }
        (expired, oldest)
    }

    /// From now on the request has no time limit.
    pub(crate) fn lift_limit(&self, token: Token) {
        let slot = &self.slots[token.slot()];
        if slot.state.load(Ordering::Acquire) >> 8 == token.round() {
            slot.since_us.store(NO_LIMIT, Ordering::Relaxed);
        }
    }

    /// Answers everything that is left, when the node has ended. A request that slips in meanwhile sees
    /// [`ended`](Table::ended) after it took its slot, and is answered by its own caller. `in_doubt`: it is not certain that
    /// what bears no term went nowhere.
    pub(crate) fn abandon_all(&self, in_doubt: bool) {
        self.ended.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.sweep(|slot| {
            Some(match slot.term.load(Ordering::Acquire) {
                NOT_SENT if !in_doubt => ProposeError::Stopped,
                _ => ProposeError::Unknown,
            })
        });
        // The reply stage may have ended before the last answers came.
        self.deliver_all();
    }

    /// Whether this is a thread of the node: it waits for itself in vain.
    pub(crate) fn is_own_thread(&self) -> bool {
        own_thread::is_of(self)
    }

    /// Whether the request still waits for its answer.
    pub(crate) fn is_open(&self, token: Token) -> bool {
        self.slots.get(token.slot()).is_some_and(|slot| {
            let state = slot.state.load(Ordering::Acquire);
            [OPEN, FILLING, LEFT]
                .map(|phase| token.state(phase))
                .contains(&state)
        })
    }

    /// Whether every request has its answer, heard or not.
    pub(crate) fn all_answered(&self) -> bool {
        let open = |slot: &CachePadded<Slot>| {
            matches!(
                slot.state.load(Ordering::Acquire) & PHASE,
                OPEN | FILLING | LEFT
            )
        };
        self.taken() == 0 || !self.slots.iter().any(open)
    }

    /// Whether nobody will answer any more. To be asked after the request was handed in.
    pub(crate) fn ended(&self) -> bool {
        fence(Ordering::SeqCst);
        self.ended.load(Ordering::SeqCst)
    }

    fn sweep(&self, verdict: impl Fn(&Slot) -> Option<ProposeError>) {
        if self.taken() == 0 {
            return;
        }
        for (at, slot) in self.slots.iter().enumerate() {
            let state = slot.state.load(Ordering::Acquire);
            if !matches!(state & PHASE, OPEN | LEFT) {
                continue;
            }
            if let Some(error) = verdict(slot) {
                let token = Token::of(state, at);
                self.complete(token, Err(error), &[]);
            }
        }
    }
}
