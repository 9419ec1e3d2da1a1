//! What openraft keeps, in memory: the log in a queue, and a state machine that counts.
//!
//! As little as its traits allow, so that the figures are those of openraft itself. Snapshots hold
//! the count; they let the log go of its front.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::{Stream, TryStreamExt};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder,
    RaftStateMachine,
};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, OptionalSend, RaftTypeConfig};

/// A command: its bytes are shared, so that a copy of an entry costs no allocation.
#[derive(Clone, Debug)]
pub struct Command(pub Arc<[u8]>);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The types of this cluster: openraft's own wherever it has some. Not by its macro, which has no place
/// for the responder that its own benchmark takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl RaftTypeConfig for Types {
    type D = Command;
    type R = u64;
    type NodeId = u64;
    type Node = ();
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Command, u64, ()>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// The log of one node; its reader shares it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    vote: Option<VoteOf<Types>>,
    purged: Option<LogIdOf<Types>>,
    /// Without gaps, from the one after `purged` on.
    entries: VecDeque<EntryOf<Types>>,
}

impl Kept {
    /// Index of the first entry that is there, or would be.
    fn first(&self) -> u64 {
        self.purged.map_or(0, |id| id.index() + 1)
    }
}

impl Log {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let kept = self.kept();
        let offset = |index: u64| {
            let offset = index.saturating_sub(kept.first()) as usize;
            offset.min(kept.entries.len())
        };
        let from = match range.start_bound() {
            Bound::Included(&index) => offset(index),
            Bound::Excluded(&index) => offset(index + 1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&index) => offset(index + 1),
            Bound::Excluded(&index) => offset(index),
            Bound::Unbounded => kept.entries.len(),
        };
        Ok(kept.entries.range(from..to.max(from)).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.kept().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let kept = self.kept();
        Ok(LogState {
            last_purged_log_id: kept.purged,
            last_log_id: kept.entries.back().map(RaftEntry::log_id).or(kept.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        self.kept().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.kept().entries.extend(entries);
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let mut kept = self.kept();
        let stays = last.map_or(0, |id| (id.index() + 1).saturating_sub(kept.first()));
        kept.entries.truncate(stays as usize);
        Ok(())
    }

    async fn purge(&mut self, to: LogIdOf<Types>) -> Result<(), io::Error> {
        let mut kept = self.kept();
        let goes = (to.index() + 1).saturating_sub(kept.first()) as usize;
        let goes = goes.min(kept.entries.len());
        kept.entries.drain(..goes);
        kept.purged = Some(to);
        Ok(())
    }
}

/// Counts commands. A snapshot is the count.
#[derive(Clone, Default)]
pub struct Counter {
    count: u64,
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
    snapshot: Option<(SnapshotMetaOf<Types>, u64)>,
}

/// The state machine of one node; its snapshot builder shares it.
#[derive(Clone, Default)]
pub struct Machine(Arc<Mutex<Counter>>);

impl Machine {
    fn counter(&self) -> MutexGuard<'_, Counter> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = u64;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let counter = self.counter();
        Ok((counter.applied, counter.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut counter = self.counter();
            counter.applied = Some(entry.log_id());
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(_) => counter.count += 1,
                EntryPayload::Membership(members) => {
                    counter.membership = StoredMembershipOf::<Types>::new(counter.applied, members);
                }
            }
            if let Some(responder) = responder {
                responder.send(counter.count);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: u64,
    ) -> Result<(), io::Error> {
        let mut counter = self.counter();
        counter.count = snapshot;
        counter.applied = meta.last_log_id;
        counter.membership = meta.last_membership.clone();
        counter.snapshot = Some((meta.clone(), snapshot));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, u64>>, io::Error> {
        let kept = self.counter().snapshot.clone();
        Ok(kept.map(|(meta, snapshot)| SnapshotOf::<Types, u64> { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = u64;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, u64>, io::Error> {
        let mut counter = self.counter();
        let meta = SnapshotMetaOf::<Types> {
            last_log_id: counter.applied,
            last_membership: counter.membership.clone(),
        };
        let snapshot = counter.count;
        counter.snapshot = Some((meta.clone(), snapshot));
        Ok(SnapshotOf::<Types, u64> { meta, snapshot })
    }
}
