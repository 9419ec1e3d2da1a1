//! Runs the stages of whole clusters in one thread from a seed.

pub(crate) mod clock;
