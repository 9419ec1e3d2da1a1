//! Interrupts the event loop from any thread.

use std::fmt;
use std::sync::Arc;

/// Interrupts a [`Net::poll`](crate::Net::poll) from any thread, now or the next one. Clones interrupt the same.
#[derive(Clone)]
pub struct Waker(pub(crate) Arc<mio::Waker>);

impl Waker {
    /// Makes a sleeping poll return, or else the next one not sleep. Costs a system call: callers
    /// know who sleeps.
    pub fn wake(&self) {
        if let Err(error) = self.0.wake() {
            tracing::error!(%error, "the network cannot be woken");
        }
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}
