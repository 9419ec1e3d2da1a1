//! The stages of one node, and what is asked of all of them together by whoever runs them on one thread.

use storage::{Dir, Disk};

use crate::error::Fault;
use crate::flow::append::Append;
use crate::flow::apply::Apply;
use crate::flow::background::worker::BackgroundWorker;
use crate::flow::consensus::Consensus;
use crate::flow::network::Network;
use crate::flow::network::link::{GroupLink, Link};
use crate::flow::reply::ReplyStage;
use crate::flow::transfer::Transfer;
use crate::request::time_limits::Limits;

/// The stages on an entry's way.
pub(crate) struct Stages<D: Dir = Disk, L: Link = GroupLink> {
    pub(crate) consensus: Consensus,
    pub(crate) append: Append<D>,
    pub(crate) network: Network<L>,
    pub(crate) apply: Apply,
    pub(crate) reply: ReplyStage,
}

/// The stages beside it: each always has a thread of its own. BackgroundWorker and transfer wait for disks, the keeper of the limits for
/// nothing.
pub(crate) struct Aside<D: Dir = Disk> {
    pub(crate) limits: Limits,
    pub(crate) background: BackgroundWorker<D>,
    pub(crate) transfer: Transfer<D>,
}

impl<D: Dir, L: Link> Stages<D, L> {
    /// Whether any stage would find something, by its own word: this is what a thread asks before it sleeps.
    pub(crate) fn has_work(&mut self) -> bool {
        self.consensus.has_work()
            || self.append.has_work()
            || self.network.has_work()
            || self.apply.has_work()
            || self.reply.has_work()
    }

    /// When a stage wants to be polled even if nothing comes.
    pub(crate) fn deadline_us(&self) -> u64 {
        self.consensus
            .deadline_us()
            .min(self.append.deadline_us())
            .min(self.apply.deadline_us())
    }

    /// Whether everything that was taken is done, so that a draining node may end.
    pub(crate) fn drained(&mut self) -> bool {
        !self.has_work() && !self.append.flushing() && self.apply.caught_up()
    }

    /// The end, in order. `settle`: what waits for the disk is written and flushed first.
    pub(crate) fn close(&mut self, settle: bool) -> Result<(), Fault> {
        self.consensus.close();
        let settled = if settle { self.append.close() } else { Ok(()) };
        self.apply.close();
        while self.reply.poll() > 0 {}
        settled
    }
}
