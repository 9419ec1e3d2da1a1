//! What the caller of a request holds: wait, await, or attach a callback.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::clock::deadline;
use crate::error::ProposeError;
use crate::flow::guard;
use crate::request::table::{DONE, LEFT, OPEN, Slot, Table};
use crate::request::token::{Reply, Token};

thread_local! {
    /// Made once a thread, so that waiting allocates nothing.
    static THREAD_WAKER: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

type Callback = Box<dyn FnOnce(Result<Reply, ProposeError>) + Send>;

/// A request that has been handed in; yields its [`Reply`].
///
/// Wait for it ([`wait`](Pending::wait), [`wait_timeout`](Pending::wait_timeout)), attach a callback
/// ([`then`](Pending::then)) or await it (it is a `Future`, of no particular runtime; polled again after its answer it panics,
/// as many do). Dropping it leaves the request under way and its answer unheard.
#[must_use = "a request that nobody waits for may still be applied"]
pub struct Pending {
    table: Arc<Table>,
    pub(super) token: Token,
    /// The answer was given away: the slot is another request's, or will be.
    taken: bool,
    /// A task's waker may be in the slot.
    registered: bool,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending {{ slot {} }}", self.token.slot())
    }
}

impl Pending {
    pub(crate) fn new(table: Arc<Table>, token: Token) -> Self {
        Self {
            table,
            token,
            taken: false,
            registered: false,
        }
    }

    fn slot(&self) -> &Slot {
        &self.table.slots[self.token.slot()]
    }

    fn try_take(&mut self) -> Option<Result<Reply, ProposeError>> {
        if self.slot().state.load(Ordering::Acquire) != self.token.state(DONE) {
            return None;
        }
        self.forget_waker();
        self.taken = true;
        Some(self.table.collect(self.token))
    }

    fn register(&mut self, waker: &Waker) {
        self.registered = true;
        self.slot().waker.register(waker);
    }

    /// Takes the waker out of the slot, as long as that is this request's: left there it would be woken for another one, and
    /// keep its task from being freed until then.
    fn forget_waker(&mut self) {
        if std::mem::take(&mut self.registered) {
            drop(self.slot().waker.take());
        }
    }

    /// Waits for the answer. It comes in the end: `Config::proposal_timeout` bounds every request, whatever the state machine
    /// does. On a thread of the node itself - in the state machine, a callback, a waker, a `notify` - nobody waits: it is
    /// `WouldDeadlock` at once, and still under way.
    ///
    /// # Errors
    /// See [`ProposeError`]; only `Unknown` and `WouldDeadlock` may have been applied.
    pub fn wait(mut self) -> Result<Reply, ProposeError> {
        if self.table.is_own_thread() {
            return Err(ProposeError::WouldDeadlock);
        }
        self.block_until(None)
            .expect("without a deadline the answer is there")
    }

    /// As [`wait`](Pending::wait), no longer than `limit`: any `Duration` is one, and `Duration::MAX` has no end. With none at
    /// all it only looks, on any thread.
    ///
    /// # Errors
    /// The request itself is given back when the time is over: it is still under way.
    pub fn wait_timeout(mut self, limit: Duration) -> Result<Result<Reply, ProposeError>, Self> {
        if !limit.is_zero() && self.table.is_own_thread() {
            return Ok(Err(ProposeError::WouldDeadlock));
        }
        match self.block_until(deadline(limit)) {
            Some(result) => Ok(result),
            None => Err(self),
        }
    }

    fn block_until(&mut self, deadline: Option<Instant>) -> Option<Result<Reply, ProposeError>> {
        if let Some(result) = self.try_take() {
            return Some(result);
        }
        THREAD_WAKER.with(|waker| {
            loop {
                // It may stay in the slot: a thread that is woken for nothing looks and sleeps on.
                self.slot().unpark.register(waker);
                if let Some(result) = self.try_take() {
                    return Some(result);
                }
                match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                    None => std::thread::park(),
                    Some(Duration::ZERO) => return None,
                    Some(left) => std::thread::park_timeout(left),
                }
            }
        })
    }

    /// Runs `callback` with the answer: on the reply stage, or right here if the answer is there already. It should
    /// be short - other callbacks, and with [`Threads::Shared`](crate::Threads::Shared) the whole node, wait for it - and cannot
    /// wait for the node; a panic in it is caught and logged.
    pub fn then(mut self, callback: impl FnOnce(Result<Reply, ProposeError>) + Send + 'static) {
        self.taken = true; // From here on the slot is the callback's.
        Arc::new(RunOnce {
            table: self.table.clone(),
            token: self.token,
            wakes: AtomicU32::new(0),
            callback: Mutex::new(Some(Box::new(callback))),
        })
        .wake();
    }
}

impl Future for Pending {
    type Output = Result<Reply, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(
            !self.taken,
            "a Pending was polled again after it had given its answer"
        );
        if let Some(result) = self.try_take() {
            return Poll::Ready(result);
        }
        self.register(context.waker());
        match self.try_take() {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.forget_waker();
        while !self.taken {
            let open = self.token.state(OPEN);
            match self.slot().state.compare_exchange(
                open,
                self.token.state(LEFT),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => self.taken = true,
                Err(now) if now == self.token.state(DONE) => {
                    self.taken = true;
                    self.table.consume(self.token, |_, _, _| ());
                }
                // FILLING: the answer is being written at this moment.
                Err(_) => std::hint::spin_loop(),
            }
        }
    }
}

/// A callback in the shape of a waker. A wake-up is a hint, never a promise: the one who looked at the slot's previous round
/// may wake this one. So each wake-up looks for the answer, and registers again when there is none.
struct RunOnce {
    table: Arc<Table>,
    pub(super) token: Token,
    /// Wake-ups since the look that is under way began; 0 when none is. It stays above 0 once the callback has run.
    wakes: AtomicU32,
    callback: Mutex<Option<Callback>>,
}

impl Wake for RunOnce {
    fn wake(self: Arc<Self>) {
        // One look at a time, and no recursion: registering may wake at once. Whoever looks does so again for the others.
        if self.wakes.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let waker = Waker::from(self.clone());
        let mut seen = 1;
        while !self.run_if_answered(&waker) {
            match self
                .wakes
                .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

impl RunOnce {
    fn run_if_answered(&self, waker: &Waker) -> bool {
        let slot = &self.table.slots[self.token.slot()];
        let is_answered = || slot.state.load(Ordering::Acquire) == self.token.state(DONE);
        if !is_answered() {
            slot.waker.register(waker);
            if !is_answered() {
                return false;
            }
        }
        // Until the answer is collected the slot is ours. A waker left in it would keep this callback, and with it the
        // table, for as long as the slot is not waited for again.
        drop(slot.waker.take());
        let callback = self
            .callback
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let result = self.table.collect(self.token);
        if let Some(callback) = callback {
            guard::contain("a callback of Pending::then", || callback(result));
        }
        true
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
