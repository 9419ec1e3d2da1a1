//! The stages, one file a hop, in the order in which an entry passes them. They do what the core says and decide nothing.

pub(crate) mod clock;
pub(crate) mod hops;
pub(crate) mod rings;
pub(crate) mod shared;

pub(crate) mod consensus;
pub(crate) mod forward;
pub(crate) mod sizes;
pub(crate) mod spill;

pub(crate) mod append;

pub(crate) mod current;
pub(crate) mod limits;
pub(crate) mod link;
pub(crate) mod log_clock;
pub(crate) mod receive;
pub(crate) mod replicate;

pub(crate) mod apply;
pub(crate) mod occasion;
pub(crate) mod portion;
pub(crate) mod reply;
pub(crate) mod waiting;

pub(crate) mod desk;
pub(crate) mod errand;
pub(crate) mod saver;
pub(crate) mod scrubber;
pub(crate) mod transfer;
pub(crate) mod trim;

pub(crate) mod begin;
pub(crate) mod ending;
pub(crate) mod graph;
pub(crate) mod guard;
pub(crate) mod runner;
pub(crate) mod stages;
