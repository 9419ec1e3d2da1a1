//! The state machines that simulated nodes run, and the reference that their histories are held against.

pub(crate) mod ledger;
pub(crate) mod model;
pub(crate) mod recorder;
