//! The atomics and threads that the wake-up protocol is made of: std's, and loom's in its tests.

#[cfg(not(all(loom, test)))]
mod imp {
    pub(crate) use std::sync::Arc;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, fence};
    pub(crate) use std::thread::{Thread, current};

    use std::time::Duration;

    /// May return early and for no reason, as std's does.
    pub(crate) fn park(timeout: Option<Duration>) {
        match timeout {
            Some(timeout) => std::thread::park_timeout(timeout),
            None => std::thread::park(),
        }
    }
}

#[cfg(all(loom, test))]
mod imp {
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, fence};
    pub(crate) use loom::thread::{Thread, current};

    use std::time::Duration;

    /// Time does not pass in a model: who is not woken sleeps for ever, and loom calls that a
    /// deadlock.
    pub(crate) fn park(_timeout: Option<Duration>) {
        loom::thread::park();
    }
}

pub(crate) use imp::*;
