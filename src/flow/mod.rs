//! The stages on an entry's way, in the order in which it passes them, and those beside it. They carry out what the core says,
//! and decide nothing about terms, votes or commits.

pub(crate) mod consensus;

pub(crate) mod append;
pub(crate) mod network;

pub(crate) mod apply;
pub(crate) mod reply;

pub(crate) mod background;
pub(crate) mod transfer;

pub(crate) mod guard;
pub(crate) mod log_clock;
pub(crate) mod rings;
pub(crate) mod shared;
pub(crate) mod trim;
pub(crate) mod watermarks;
