//! What the background asks of the transfer stage: records that its scrub has found bad. One repair_request at a time, and nobody waits.
//!
//! ```text
//!  background                       transfer                    a peer
//!    │  ask {first, last, …}      │                          │
//!    ├───────────────────────────▶│  Fetch {first, last, …}   │
//!    │                            ├─────────────────────────▶│  reads them from its disk, verifies them
//!    │                            │  Give {first}, records   │
//!    │  answer: who, records      │◀─────────────────────────┤
//!    │◀───────────────────────────┤  None, or no answer in time: the next peer
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringbuf::Waker;
use storage::scrub::record_repair::Fetch;

/// What is wanted, and of whom it is not to be had.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) want: Fetch,
    /// They have given something else.
    pub(crate) not_of: Vec<u64>,
}

/// What came of it: who gave which records; or why nobody did.
pub(crate) type Answer = Result<(u64, Vec<u8>), String>;

pub(crate) struct RepairRequest {
    ask: Mutex<Option<Ask>>,
    answer: Mutex<Option<Answer>>,
    is_asked: AtomicBool,
    is_answered: AtomicBool,
    background: Waker,
    transfer: Waker,
}

impl std::fmt::Debug for RepairRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RepairRequest")
    }
}

impl RepairRequest {
    pub(crate) fn new(background: Waker, transfer: Waker) -> Self {
        Self {
            ask: Mutex::default(),
            answer: Mutex::default(),
            is_asked: AtomicBool::new(false),
            is_answered: AtomicBool::new(false),
            background,
            transfer,
        }
    }

    /// Asks; what was answered before and not taken is forgotten.
    pub(crate) fn ask(&self, ask: Ask) {
        self.take_answer();
        *locked(&self.ask) = Some(ask);
        self.is_asked.store(true, Ordering::Release);
        self.transfer.wake();
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }

    /// For the transfer stage, which answers it some time.
    pub(crate) fn take_ask(&self) -> Option<Ask> {
        if !self.is_asked.swap(false, Ordering::AcqRel) {
            return None;
        }
        locked(&self.ask).take()
    }

    pub(crate) fn answer(&self, answer: Answer) {
        *locked(&self.answer) = Some(answer);
        self.is_answered.store(true, Ordering::Release);
        self.background.wake();
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Acquire)
    }

    pub(crate) fn take_answer(&self) -> Option<Answer> {
        if !self.is_answered.swap(false, Ordering::AcqRel) {
            return None;
        }
        locked(&self.answer).take()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
