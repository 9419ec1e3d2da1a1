//! The end of a node: which of its threads still run, and who waits for the last of them.
//!
//! A thread leaves in two steps, each under the lock: it has let go of what it holds (directory, sockets, state machine); then
//! the last one on an entry's way answers what is left; and only then it is off the list, and those who wait go on. Those beside
//! that way (limits, background, transfer) are not waited for by any request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{deadline, time_left};
use crate::request::own_thread;

/// The longest single wait for a condition: a deadline farther away is looked at again then.
const LOOK: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub(crate) struct Ending {
    running: Mutex<Running>,
    changed: Condvar,
    /// The thread that last drove a node without threads, or made it; 0 when it has threads, or the driver is gone.
    driver: AtomicUsize,
    is_driven: AtomicBool,
}

#[derive(Debug, Default)]
struct Running {
    /// The threads, by name, until they are gone.
    names: Vec<&'static str>,
    /// Those of them on an entry's way that have not let go yet.
    holding: usize,
}

impl Ending {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread begins. Called before it is started, so that no other one takes itself for the last.
    pub(crate) fn enter(&self, name: &'static str, is_aside: bool) {
        let mut running = self.running();
        running.names.push(name);
        running.holding += usize::from(!is_aside);
    }

    /// A thread on an entry's way has let go of what it holds. True for the last one.
    pub(crate) fn let_go(&self) -> bool {
        let mut running = self.running();
        running.holding -= 1;
        running.holding == 0
    }

    /// A thread is gone, but for its last instructions.
    pub(crate) fn leave(&self, name: &'static str) {
        let mut running = self.running();
        if let Some(at) = running.names.iter().position(|of| *of == name) {
            running.names.swap_remove(at);
        }
        drop(running);
        self.changed.notify_all();
    }

    /// Waits until no thread runs; for `limit` at the most, and then says which do.
    pub(crate) fn wait(&self, limit: Duration) -> Result<(), Vec<&'static str>> {
        let deadline = deadline(limit);
        let mut running = self.running();
        while !running.names.is_empty() {
            let left = time_left(deadline);
            if left.is_zero() {
                return Err(running.names.clone());
            }
            running = self
                .changed
                .wait_timeout(running, left.min(LOOK))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// This thread made a driver. It is taken for the one that drives as long as none does.
    pub(crate) fn made_driver(&self) {
        self.driver.store(own_thread::thread(), Ordering::Relaxed);
    }

    /// This thread drives the node.
    pub(crate) fn drives(&self) {
        self.driver.store(own_thread::thread(), Ordering::Relaxed);
        self.is_driven.store(true, Ordering::Relaxed);
    }

    pub(crate) fn driver_left(&self) {
        self.driver.store(0, Ordering::Relaxed);
    }

    /// Whether this thread drives the node: waiting for the end here is waiting for oneself.
    pub(crate) fn is_driver(&self) -> bool {
        self.may_be_driver() && self.is_driven.load(Ordering::Relaxed)
    }

    /// Whether this thread drives the node, or made a driver that nobody has polled yet.
    pub(crate) fn may_be_driver(&self) -> bool {
        self.driver.load(Ordering::Relaxed) == own_thread::thread()
    }
}
