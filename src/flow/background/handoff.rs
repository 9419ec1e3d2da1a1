//! The handoff between the apply stage and the background: what one lays down, the other picks up.
//!
//! A snapshot is captured on the apply stage and written by the background; a state that is restored goes to the background whole,
//! with its machine, and comes back with it. Both are rare and there is one at a time, so this is a pair of small queues
//! and no ring.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_queue::ArrayQueue;
use ringbuf::Waker;
use storage::{SnapshotId, SnapshotMeta};

use crate::request::token::Token;
use crate::state_machine::SnapshotWriter;
use crate::state_machine::StateMachine;
use crate::types::Index;

/// Calls for a snapshot that may wait for the apply stage to see them.
const MOST_CALLS: usize = 64;

const MOST_DOUBTS: usize = 4;

/// Work for the background.
pub(crate) enum Job {
    /// Write a captured state out.
    Take {
        meta: SnapshotMeta,
        writer: SnapshotWriter,
        /// Who asked for it.
        caller: Option<Token>,
    },
    /// Replace the machine's state by the snapshot of everything up to `index`.
    Restore {
        machine: Box<dyn StateMachine>,
        index: Index,
    },
}

/// A machine that comes back, and what is in it now; or why the snapshot could not be restored.
pub(crate) struct Returned {
    pub(crate) machine: Box<dyn StateMachine>,
    pub(crate) outcome: Result<SnapshotMeta, String>,
}

pub(crate) struct Handoff {
    jobs: ArrayQueue<Job>,
    back: ArrayQueue<Returned>,
    calls: ArrayQueue<Token>,
    /// Snapshots that may be bad. One that finds no room is met again at the next offer.
    doubts: ArrayQueue<SnapshotId>,
    /// A snapshot is wanted without anybody waiting for it.
    wanted: AtomicBool,
    /// A snapshot is being taken.
    taking: AtomicBool,
    background: Waker,
    apply: Waker,
}

impl std::fmt::Debug for Handoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handoff {{ {} jobs }}", self.jobs.len())
    }
}

impl Handoff {
    pub(crate) fn new(background: Waker, apply: Waker) -> Self {
        Self {
            jobs: ArrayQueue::new(2),
            back: ArrayQueue::new(1),
            calls: ArrayQueue::new(MOST_CALLS),
            doubts: ArrayQueue::new(MOST_DOUBTS),
            wanted: AtomicBool::new(false),
            taking: AtomicBool::new(false),
            background,
            apply,
        }
    }

    /// Asks the apply stage for a snapshot; false when too many have asked already.
    pub(crate) fn call(&self, caller: Token) -> bool {
        let called = self.calls.push(caller).is_ok();
        self.apply.wake();
        called
    }

    /// Asks for a snapshot that nobody waits for: of whatever is applied, as soon as none is being taken.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Release);
        self.apply.wake();
    }

    /// Asks the background to read a snapshot again.
    pub(crate) fn doubt(&self, id: SnapshotId) {
        let _ = self.doubts.push(id);
        self.background.wake();
    }

    pub(crate) fn has_doubts(&self) -> bool {
        !self.doubts.is_empty()
    }

    pub(crate) fn next_doubt(&self) -> Option<SnapshotId> {
        self.doubts.pop()
    }

    /// The state machine has none to give.
    pub(crate) fn unwant(&self) {
        self.wanted.store(false, Ordering::Release);
    }

    /// Whether one is wanted and can be begun.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) && !self.is_taking()
    }

    pub(crate) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    pub(crate) fn next_call(&self) -> Option<Token> {
        self.calls.pop()
    }

    pub(crate) fn is_taking(&self) -> bool {
        self.taking.load(Ordering::Acquire)
    }

    /// Lays a job down for the background: at most one of each kind.
    pub(crate) fn give(&self, job: Job) {
        if let Job::Take { .. } = job {
            let before = self.taking.swap(true, Ordering::AcqRel);
            assert!(!before, "a snapshot is begun while another is being taken");
            self.wanted.store(false, Ordering::Release);
        }
        assert!(
            self.jobs.push(job).is_ok(),
            "one job of each kind at a time"
        );
        self.background.wake();
    }

    pub(crate) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    pub(crate) fn next_job(&self) -> Option<Job> {
        self.jobs.pop()
    }

    /// The snapshot is taken, or failed.
    pub(crate) fn taken(&self) {
        self.taking.store(false, Ordering::Release);
        self.apply.wake();
    }

    pub(crate) fn give_back(&self, returned: Returned) {
        assert!(self.back.push(returned).is_ok(), "there is one machine");
        self.apply.wake();
    }

    /// Drops what nobody picks up any more.
    pub(crate) fn clear(&self) {
        while self.jobs.pop().is_some() {}
        drop(self.back.pop());
    }

    pub(crate) fn has_back(&self) -> bool {
        !self.back.is_empty()
    }

    pub(crate) fn take_back(&self) -> Option<Returned> {
        self.back.pop()
    }
}
