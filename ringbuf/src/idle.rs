//! How a thread falls asleep, and how it is woken, so that no wake-up is lost and none is wasted.
//!
//! ```text
//!   reader                                    writer
//!   (1) asleep = true        announce         (1) publish the slot
//!   (2) fence                                 (2) fence
//!   (3) look again for work                   (3) look whether the reader is asleep
//!   (4) sleep only if none                    (4) if so: asleep = false, notify
//!   (5) asleep = false       withdraw
//! ```
//!
//! Why nothing is lost: both fences are sequentially consistent, so they have an order. If the
//! reader's is first, the writer's look at (3) sees the announcement and notifies; if the writer's
//! is first, the reader's look at (3) sees the slot and does not sleep. A notification that comes
//! between the reader's (3) and (4) is kept by whatever it sleeps on: a thread's park token, an
//! eventfd. Of many writers only the one that takes the announcement down notifies; the others need
//! not.
//!
//! Why nothing is wasted: while the reader is awake a writer pays a fence and a load of a line that
//! nobody writes.
//!
//! `tests/loom.rs` runs this very code through every interleaving of up to three preemptions, and
//! shows that one is found in which it fails without (2) or (3).

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::{Arc as StdArc, OnceLock};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::sync::{self, Arc, AtomicBool, AtomicU64, Thread, fence};

/// What gets a sleeping thread out of its sleep: an unpark, or a write to an eventfd it polls.
///
/// A notification must not be lost when it comes just before the sleep begins: it ends that sleep
/// at once. It may be called from many threads at the same time, and must neither block nor panic.
/// Any `Fn()` is one.
pub trait Notify: Send + Sync {
    /// Ends the sleep that goes on, or the next one.
    fn notify(&self);
}

impl<F: Fn() + Send + Sync> Notify for F {
    fn notify(&self) {
        self();
    }
}

/// Where one sleeper and all its wakers meet.
struct Bell {
    /// What: the sleeper has announced that it is about to sleep, or sleeps. Use: writers read it
    /// after each send. Invariant: set by the sleeper alone; whoever takes it down, other than the
    /// sleeper, notifies.
    asleep: CachePadded<AtomicBool>,
    notifications: AtomicU64,
    notify: Box<dyn Notify>,
}

/// Wakes the thread that owns the [`Sleeper`] it comes from. Cheap to clone: one thread has one for
/// all its rings.
#[derive(Clone)]
pub struct Waker {
    bell: Option<Arc<Bell>>,
}

impl Waker {
    /// Wakes nobody and costs nothing: for a reader that never sleeps, or that its embedder drives.
    pub fn none() -> Self {
        Self { bell: None }
    }

    /// To be called after whatever the sleeper looks for was published. A fence and a load when it
    /// is awake; notifies it when it sleeps or is about to. Never blocks. Callable on the sleeper's
    /// own thread too.
    #[inline]
    pub fn wake(&self) {
        let Some(bell) = &self.bell else { return };
        fence(SeqCst);
        if bell.asleep.load(Relaxed) {
            bell.ring();
        }
    }

    /// How often a sleeper was notified by any of its wakers so far: a system call each. 0 for
    /// [`Waker::none`].
    pub fn notifications(&self) -> u64 {
        self.bell
            .as_ref()
            .map_or(0, |bell| bell.notifications.load(Relaxed))
    }
}

impl Bell {
    #[cold]
    fn ring(&self) {
        // Acquire pairs with the announcement's Release: what the sleeper did before it, such as
        // saying which thread it is, is seen by `notify`. Who finds the announcement gone writes
        // nothing, which a swap would: by loom's lights (it is laxer about read-modify-writes than
        // the language) such a write may hide the next announcement.
        if self
            .asleep
            .compare_exchange(true, false, Acquire, Relaxed)
            .is_ok()
        {
            self.notifications.fetch_add(1, Relaxed);
            self.notify.notify();
        }
    }
}

/// The side that sleeps: one a thread, used by that thread alone.
///
/// Made wherever the rings are made and moved to the thread that will sleep.
pub struct Sleeper {
    bell: Arc<Bell>,
    /// The thread to unpark, for [`Sleeper::parking`]. Invariant: set before the first
    /// announcement.
    thread: Option<StdArc<OnceLock<Thread>>>,
    /// Not `Sync`: two threads cannot share one announcement.
    one_thread: PhantomData<Cell<()>>,
}

impl Sleeper {
    /// A sleeper whose sleep `notify` ends; see [`Sleeper::sleep`].
    pub fn new(notify: impl Notify + 'static) -> Self {
        Self::with(Box::new(notify), None)
    }

    /// A sleeper that parks its thread; see [`Sleeper::park`]. The thread is the first that goes to
    /// sleep.
    pub fn parking() -> Self {
        let thread = StdArc::new(OnceLock::new());
        Self::with(Box::new(Unpark(StdArc::clone(&thread))), Some(thread))
    }

    fn with(notify: Box<dyn Notify>, thread: Option<StdArc<OnceLock<Thread>>>) -> Self {
        let asleep = CachePadded::new(AtomicBool::new(false));
        let bell = Bell {
            asleep,
            notifications: AtomicU64::new(0),
            notify,
        };
        Self {
            bell: Arc::new(bell),
            thread,
            one_thread: PhantomData,
        }
    }

    /// A handle that wakes this sleeper; give it to each ring that it reads.
    pub fn waker(&self) -> Waker {
        Waker {
            bell: Some(Arc::clone(&self.bell)),
        }
    }

    /// Announces the sleep, looks once more with `has_work`, and runs `sleep` only if that finds
    /// none. Returns whether it slept.
    ///
    /// `has_work` must look at everything that wakers of this sleeper publish. `sleep` blocks until
    /// it is notified, and may return earlier or for no reason: the caller polls and comes again.
    ///
    /// # Panics
    /// When it was made by [`Sleeper::parking`] and has slept on another thread before.
    pub fn sleep(&self, has_work: impl FnOnce() -> bool, sleep: impl FnOnce()) -> bool {
        self.announce();
        let slept = !has_work();
        if slept {
            sleep();
        }
        // A waker may take the announcement down at the same moment and notify: then the next sleep
        // is short.
        self.bell.asleep.store(false, Relaxed);
        slept
    }

    /// Announces a sleep that no thread sleeps: the next wake notifies, once. For a scheduler that polls readers by itself,
    /// as a simulator does; the announcement stands until then.
    pub fn announce(&self) {
        self.stay_on_one_thread();
        // Release: see `Bell::ring`.
        self.bell.asleep.store(true, Release);
        fence(SeqCst);
    }

    /// [`Sleeper::sleep`] by parking the thread, at most for `timeout`. Returns whether it parked.
    ///
    /// # Panics
    /// When the sleeper was not made by [`Sleeper::parking`], since then nobody would unpark it;
    /// and as [`Sleeper::sleep`].
    pub fn park(&self, has_work: impl FnOnce() -> bool, timeout: Option<Duration>) -> bool {
        assert!(
            self.thread.is_some(),
            "only a sleeper made by `Sleeper::parking` can park"
        );
        self.sleep(has_work, || sync::park(timeout))
    }

    fn stay_on_one_thread(&self) {
        let Some(thread) = &self.thread else { return };
        let (current, home) = (sync::current().id(), thread.get_or_init(sync::current).id());
        assert!(
            current == home,
            "a sleeper of {home:?} went to sleep on {current:?}: nobody would wake it"
        );
    }
}

/// Unparks the thread that has gone to sleep first.
struct Unpark(StdArc<OnceLock<Thread>>);

impl Notify for Unpark {
    fn notify(&self) {
        // Who notifies has seen an announcement, and the thread is known before that.
        self.0
            .get()
            .expect("a sleeper says which thread it is before it announces its sleep")
            .unpark();
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bell {
            Some(_) => write!(f, "Waker, notified {} times", self.notifications()),
            None => write!(f, "Waker of nobody"),
        }
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.thread.is_some() {
            "parking"
        } else {
            "notified"
        };
        write!(
            f,
            "Sleeper, {way}, notified {} times",
            self.waker().notifications()
        )
    }
}
