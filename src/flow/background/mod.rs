//! What may take long, on a thread that nobody waits for: snapshots are written, read back and restored, the log is scrubbed.

pub(crate) mod handoff;
pub(crate) mod pace;
pub(crate) mod repair_request;
pub(crate) mod restore;
pub(crate) mod scrubber;
pub(crate) mod trigger;
pub(crate) mod worker;
