//! What a start does with a directory, whatever the last stop left.
//!
//! `open` is the way through: `segments` opens the files, `walk` reads their records (through `segment_reader`), `tail_scan`
//! looks at what stands behind them, `plan` decides, `repair` carries it out; `reset` replaces a log by a snapshot,
//! `lost_vote` makes a damaged meta file anew. [`Recovered`](recovered::Recovered) is what comes out.

pub(crate) mod lost_vote;
pub(crate) mod open;
pub(crate) mod plan;
pub(crate) mod recovered;
pub(crate) mod repair;
pub(crate) mod reset;
pub(crate) mod segment_reader;
pub(crate) mod segments;
pub(crate) mod tail_scan;
pub(crate) mod walk;
