//! What recovery hands to a log: the records as found, and what the log is made of.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::decision::Decision;
use crate::files::identity::Identity;
use crate::files::known_peers::KnownPeers;
use crate::files::meta::Meta;
use crate::log::preallocate::{Preallocator, Segment};
use crate::medium::Dir;
use crate::options::Options;
use crate::snapshot::Snapshots;

/// The log as found, ready to go on.
pub(crate) struct Loaded<F> {
    pub(crate) segments: VecDeque<Segment<F>>,
    /// Where the next record goes in the last segment.
    pub(crate) tail: u64,
    pub(crate) last: u64,
    pub(crate) last_term: u64,
    pub(crate) last_time_us: u64,
    /// Term of the record before the first.
    pub(crate) prev_term: u64,
    pub(crate) term_runs: Vec<(u64, u64)>,
    /// What the marker at the tail says was flushed.
    pub(crate) marked: u64,
    pub(crate) next_seq: u64,
    pub(crate) decisions: Vec<Decision>,
}

pub(crate) struct Parts<D: Dir> {
    pub(crate) dir: D,
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) meta: Meta<D::File>,
    pub(crate) known_peers: KnownPeers<D>,
    pub(crate) snapshots: Snapshots<D>,
    pub(crate) flusher: D::Flusher,
    pub(crate) preallocator: Preallocator<D>,
    pub(crate) lock: Arc<D::Lock>,
}
