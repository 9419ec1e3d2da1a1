//! Panics: where they are caught, and what becomes of them.
//!
//! A panic in a stage leaves its state half changed. It is a [`Fault`]: the node ends, and nothing of that stage runs again, not
//! even its orderly end. A panic in code of the embedder that no state of ours depends on - a task's waker, a callback, a
//! `notify` - is logged where it was called, and the stage goes on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Fault;

/// The text of a panic.
pub(crate) fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// What a panic in a stage is for its node.
pub(crate) fn fault(stage: &str, panic: &(dyn Any + Send)) -> Fault {
    Fault::Panic(format!("the {stage} stage panicked: {}", text(panic)).into())
}

/// Runs code of the embedder that may panic without harm to the node.
pub(crate) fn contain(what: &str, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        log(|| tracing::error!("{what} panicked: {}; the node goes on", text(&*panic)));
    }
}

/// Logs where a panic of the embedder's subscriber must not get in the way.
pub(crate) fn log(event: impl FnOnce()) {
    // The panic hook has reported it, and there is nowhere else to say it.
    let _ = catch_unwind(AssertUnwindSafe(event));
}
